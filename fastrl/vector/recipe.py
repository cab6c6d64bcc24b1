"""What the user asked for, sorted out: which environment, how many, and with what parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec as GymnasiumSpec

from fastrl.envs.family import batch_family
from fastrl.envs.make import EnvFactory, Wrapper
from fastrl.vector.failures import ArgumentError, at_least_one, brief
from fastrl.vector.instances import EnvKwargs, kwargs_of_instances
from fastrl.vector.spec import InstanceFactory

Id = str | Callable[..., Any] | GymnasiumSpec


@dataclass(frozen=True)
class Recipe:
    """What to build.

    Attributes:
        ids: One id, factory or specification for all environments, or one for each.
        num_envs: How many environments.
        given: Parameters that go with each of ``ids``.
        own: Parameters of every instance; a single mapping where all are the same.
    """

    ids: Sequence[Any]
    num_envs: int
    given: Sequence[dict[str, Any]]
    own: Sequence[dict[str, Any]]

    @classmethod
    def of(
        cls,
        env: Id | Sequence[Callable[..., Any]],
        num_envs: int | None,
        kwargs: Mapping[str, Any],
        env_kwargs: EnvKwargs | None,
        seed: int,
    ) -> Recipe:
        """Sort out the arguments of `fastrl.make_vec`.

        Raises:
            ArgumentError: An environment is neither an id nor a factory, or numbers do not match.
        """
        several = isinstance(env, Sequence) and not isinstance(env, str)
        ids: list[Any] = list(env) if several else [env]  # type: ignore[arg-type]
        for each in ids:
            if not isinstance(each, str | GymnasiumSpec) and not callable(each):
                raise ArgumentError(
                    "env must be an id such as 'CartPole-v1', a factory or a list of factories, "
                    f"got {brief(repr(each))}"
                )
        num_envs = at_least_one("num_envs", len(ids) if num_envs is None else num_envs)
        if len(ids) not in (1, num_envs):
            raise ArgumentError(f"num_envs: got {num_envs} for a list of {len(ids)} factories")
        return cls(
            ids=[_as_registered(each) for each in ids],
            num_envs=num_envs,
            given=[
                {**(each.kwargs if isinstance(each, GymnasiumSpec) else {}), **kwargs}
                for each in ids
            ],
            own=kwargs_of_instances(env_kwargs, num_envs, seed),
        )

    @property
    def is_uniform(self) -> bool:
        """Whether all environments are built alike, but for parameters of their own."""
        return all(each == self.ids[0] for each in self.ids) and all(
            each == self.given[0] for each in self.given
        )

    @property
    def name(self) -> str:
        """What messages call the environment: of a partial, what it calls."""
        return EnvFactory(self.ids[0]).name

    @property
    def common(self) -> dict[str, Any]:
        """The parameters that all instances share."""
        return dict(self.given[0]) if len(self.own) > 1 else {**self.given[0], **self.own[0]}

    @property
    def kwargs_of_all(self) -> list[dict[str, Any]]:
        """The parameters of every instance that were its own."""
        return [dict(self.own[index % len(self.own)]) for index in range(self.num_envs)]

    def instances(
        self,
        wrappers: Sequence[Wrapper] | None,
        max_episode_steps: int | None,
        preprocessing: bool,
    ) -> list[InstanceFactory]:
        """Return a factory for each environment, or a single one where all are the same.

        Raises:
            ArgumentError: The wrappers are no list.
        """
        wrappers = () if wrappers is None else wrappers
        if isinstance(wrappers, str) or not isinstance(wrappers, Sequence):
            raise ArgumentError(
                f"wrappers must be a list of callables or paths, got {brief(repr(wrappers))}"
            )
        count = 1 if len(self.own) == len(self.ids) == 1 else self.num_envs
        found = []
        for index in range(count):
            env = self.ids[index % len(self.ids)]
            kwargs: Mapping[str, Any] = {
                **self.given[index % len(self.ids)],
                **self.own[index % len(self.own)],
            }
            if preprocessing and (family := batch_family(env)):
                env, kwargs = family.single_like_batch(env, kwargs)
            factory = EnvFactory(env, kwargs, max_episode_steps=max_episode_steps)
            found.append(InstanceFactory(factory, tuple(wrappers)))
        return found


def _as_registered(env: Any) -> Any:  # noqa: ANN401
    """Return the id in place of gymnasium's own specification of it, anything else as it is."""
    registered = isinstance(env, GymnasiumSpec) and env is gymnasium.registry.get(env.id)
    return env.id if registered else env
