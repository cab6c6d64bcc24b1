"""Checks of the arguments of `make_vec`.

A distribution among the parameters of environments, ``{uniform: [low, high]}`` for instance, gives
each environment its own value, drawn once; see `fastrl.envs.parameter_distributions`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from threading import TIMEOUT_MAX
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec as GymnasiumSpec
from gymnasium.spaces import Space
from gymnasium.vector import AutoresetMode

from fastrl.arguments import at_least_one, brief, nearest, one_of, seconds, whole
from fastrl.envs.env_factory import EnvFactory, Wrapper
from fastrl.envs.family import batch_family
from fastrl.envs.parameter_distributions import KINDS, distribution
from fastrl.envs.vector_facade import AUTORESET_MODES, checked_autoreset
from fastrl.errors import ArgumentError, EnvError, one_line
from fastrl.vector.vector_plan import VectorPlan

Id = str | Callable[..., Any] | GymnasiumSpec
EnvKwargs = Mapping[str, Any] | Sequence[Mapping[str, Any]] | Callable[[int], Mapping[str, Any]]
Backend = Literal["auto", "serial", "threads", "processes", "native"]
Autoreset = Literal["same_step", "next_step", "disabled"]
ObservationMode = Literal["same", "different"] | tuple[Space[Any], Space[Any]]

_BACKENDS = {"sync": "serial", "async": "processes", "vector_entry_point": "native"}
_VECTOR_KWARGS = (
    *("autoreset_mode", "copy", "observation_mode"),
    # Of gymnasium's `AsyncVectorEnv`; they change neither results nor the start of workers.
    *("shared_memory", "context", "daemon"),
)


@dataclass(frozen=True)
class Recipe:
    """The environments to build.

    Attributes:
        ids: One id, factory or specification for all environments, or one for each.
        num_envs: Number of environments.
        given: Parameters of each of ``ids``.
        own: Parameters of every environment; a single mapping if all are the same.
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
        """Check the arguments of `fastrl.make_vec` that define the environments.

        Raises:
            ArgumentError: An environment is neither an id nor a factory, or numbers do not match.
        """
        several = isinstance(env, Sequence) and not isinstance(env, str)
        ids: list[Any] = list(env) if several else [env]  # type: ignore[arg-type]
        given = []
        for index, each in enumerate(ids):
            if not isinstance(each, str | GymnasiumSpec) and not callable(each):
                raise ArgumentError(
                    "env must be an id such as 'CartPole-v1', a factory or a list of factories, "
                    f"got {one_line(each)}"
                )
            given.append({**(each.kwargs if isinstance(each, GymnasiumSpec) else {}), **kwargs})
            if isinstance(each, GymnasiumSpec) and each is gymnasium.registry.get(each.id):
                ids[index] = each.id
        num_envs = at_least_one("num_envs", len(ids) if num_envs is None else num_envs)
        if len(ids) not in (1, num_envs):
            raise ArgumentError(f"num_envs: got {num_envs} for a list of {len(ids)} factories")
        return cls(ids, num_envs, given, _kwargs_of_each(env_kwargs, num_envs, seed))

    @property
    def is_uniform(self) -> bool:
        """Whether all environments are built alike, except for individual parameters."""
        return all(
            (each, given) == (self.ids[0], self.given[0])
            for each, given in zip(self.ids, self.given, strict=True)
        )

    @property
    def common(self) -> dict[str, Any]:
        """The parameters that all environments share."""
        return dict(self.given[0]) if len(self.own) > 1 else {**self.given[0], **self.own[0]}

    def plan(
        self,
        autoreset: AutoresetMode,
        wrappers: Sequence[Wrapper] | None,
        max_episode_steps: int | None,
        *,
        preprocessing: bool = True,
        different_spaces: bool = False,
        **deadlines: float,
    ) -> VectorPlan:
        """Return the plan of single environments, which one worker steps.

        Raises:
            ArgumentError: Wrappers or deadlines are of the wrong kind.
        """
        is_list = isinstance(wrappers, Sequence | None) and not isinstance(wrappers, str | bytes)
        if not is_list or any(
            not callable(each) and not isinstance(each, str | Mapping) for each in wrappers or ()
        ):
            raise ArgumentError(
                f"wrappers must be a list of callables or paths, got {one_line(wrappers)}"
            )
        # Threads cannot wait for an infinite time.
        checked: dict[str, Any] = {
            name: min(seconds(name, each), TIMEOUT_MAX) for name, each in deadlines.items()
        }
        alike = len(self.own) == len(self.ids) == 1
        each = range(1 if alike else self.num_envs)
        return VectorPlan(
            name=EnvFactory(self.ids[0]).name,
            wrappers=tuple(wrappers or ()),
            factories=[self._factory(i, max_episode_steps, preprocessing) for i in each],
            num_envs=self.num_envs,
            num_workers=1,
            autoreset=autoreset,
            different_spaces=different_spaces,
            env_kwargs=[dict(self.own[i % len(self.own)]) for i in range(self.num_envs)],
            **checked,
        )

    def _factory(
        self, index: int, max_episode_steps: int | None, preprocessing: bool
    ) -> EnvFactory:
        place = index % len(self.ids)
        env = self.ids[place]
        kwargs: Mapping[str, Any] = {**self.given[place], **self.own[index % len(self.own)]}
        if preprocessing and (family := batch_family(env)):
            env, kwargs = family.single_like_batch(env, kwargs)
        # Observations and infos of `make_vec` are those of the environments.
        return EnvFactory(env, kwargs, max_episode_steps=max_episode_steps, action_mask="off")


def _kwargs_of_each(env_kwargs: EnvKwargs | None, num_envs: int, seed: int) -> list[dict[str, Any]]:
    """Return the parameters of every environment, a single mapping if all are the same.

    Args:
        env_kwargs: One mapping for all, with or without distributions; one per environment; or a
            function of the index.
        num_envs: Number of environments.
        seed: Seed of the draws; those of environment i do not depend on ``num_envs``.

    Raises:
        ArgumentError: There is not one mapping per environment, or a distribution is invalid.
    """
    seed = whole("env_kwargs_seed", seed, 0, math.inf)
    if env_kwargs is None:
        return [{}]
    if isinstance(env_kwargs, Mapping):
        if not any(_is_distribution(value) for value in env_kwargs.values()):
            return [dict(env_kwargs)]
        each: list[Any] = [env_kwargs] * num_envs
    elif callable(env_kwargs):
        each = [env_kwargs(index) for index in range(num_envs)]
    elif isinstance(env_kwargs, Sequence) and not isinstance(env_kwargs, str):
        each = list(env_kwargs)
    else:
        raise ArgumentError(
            "env_kwargs must be a mapping, a list of mappings or a function of the index, "
            f"got {brief(env_kwargs)}"
        )
    if len(each) != num_envs:
        raise ArgumentError(f"env_kwargs: got {len(each)} mappings for {num_envs} environments")
    drawn = []
    for index, kwargs in enumerate(each):
        if not isinstance(kwargs, Mapping):
            raise ArgumentError(f"env_kwargs of env {index} is not a mapping: {one_line(kwargs)}")
        rng = np.random.default_rng((seed, index))
        drawn.append({name: _drawn(name, value, rng) for name, value in kwargs.items()})
    return drawn


def _drawn(name: str, value: Any, rng: np.random.Generator) -> Any:
    """Return a draw from a distribution; return any other value unchanged."""
    if not _is_distribution(value):
        return value
    ((kind, given),) = value.items()
    if kind == "choice" and isinstance(given, Iterable) and (choices := list(given)):
        return choices[int(rng.integers(len(choices)))]  # of any type, such as text
    try:
        return distribution(value, f"env_kwargs.{name}").sample(rng, ()).tolist()
    except EnvError as error:
        raise ArgumentError(str(error)) from error


def _is_distribution(value: object) -> bool:
    """Return whether a value is a distribution.

    Raises:
        ArgumentError: It has the form of a distribution, but an unknown name.
    """
    if not isinstance(value, Mapping) or len(value) != 1:
        return False
    kind = next(iter(value))
    if kind not in KINDS and isinstance(kind, str) and (hint := nearest(kind, KINDS, 0.75)):
        raise ArgumentError(f"env_kwargs: unknown distribution '{one_line(kind)}'{hint}")
    return kind in KINDS


def joined(
    backend: str = "auto",
    autoreset: AutoresetMode | str | None = None,
    copy: bool = True,
    observation_mode: Any = None,
    vectorization_mode: Any = None,
    vector_kwargs: Any = None,
    autoreset_mode: AutoresetMode | str | None = None,
) -> tuple[str, AutoresetMode | None, bool, ObservationMode | None]:
    """Join arguments of `fastrl.make_vec` with equivalent ones of `gymnasium.make_vec`.

    Returns:
        Backend, autoreset mode, ``copy`` and observation mode; by default those of fastrl.

    Raises:
        ArgumentError: An argument is unknown, or two contradict each other.
    """
    one_of("backend", backend, get_args(Backend))
    by_mode: list[tuple[str, Any]] = []
    if vectorization_mode is not None:
        name = str(getattr(vectorization_mode, "value", vectorization_mode))
        one_of("vectorization_mode", name, tuple(_BACKENDS))
        by_mode = [(f"vectorization_mode='{name}'", _BACKENDS[name])]
    given = _checked_vector_kwargs(vector_kwargs)
    where = "vector_kwargs['{}']".format
    modes = [
        (name, checked_autoreset(value, name))
        for name, value in (
            ("autoreset", autoreset),
            ("autoreset_mode", autoreset_mode),
            (where("autoreset_mode"), given.get("autoreset_mode")),
        )
    ]
    spaces = [
        ("observation_mode", _checked_observation_mode(observation_mode)),
        (where("observation_mode"), _checked_observation_mode(given.get("observation_mode"))),
    ]
    return (
        _one("backend", "auto", [("backend", backend), *by_mode]),
        _one("autoreset", None, modes),
        _one("copy", True, [("copy", copy), (where("copy"), given.get("copy"))]),
        _one("observation_mode", None, spaces),
    )


def _one(name: str, default: Any, given: list[tuple[str, Any]]) -> Any:
    """Return the value that was given under several names, by default ``default``."""
    found = default
    for said, value in given:
        if value is None or value == found:
            continue
        if found != default:
            names = {mode: word for word, mode in AUTORESET_MODES.items()}
            shown = repr(names[found]) if isinstance(found, AutoresetMode) else brief(found)
            raise ArgumentError(f"{said} contradicts {name}={shown}; leave one of them out")
        found = value
    return found


def _checked_observation_mode(value: Any) -> ObservationMode | None:
    if value is None or (isinstance(value, str) and value in ("same", "different")):
        return value  # type: ignore[return-value]
    if isinstance(value, tuple) and len(value) == 2:
        whole, single = value
        if isinstance(whole, Space) and isinstance(single, Space):
            return whole, single
    raise ArgumentError(
        "observation_mode must be 'same', 'different' or a tuple of the observation space of all "
        f"environments and that of one, got {brief(value)}"
    )


def _checked_vector_kwargs(given: Any) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ArgumentError(f"vector_kwargs must be a mapping, got {brief(given)}")
    for name in given:
        if name not in _VECTOR_KWARGS:
            raise ArgumentError(
                f"vector_kwargs: '{name}' is unknown here{nearest(str(name), _VECTOR_KWARGS)}; "
                f"known are {', '.join(_VECTOR_KWARGS)}"
            )
    return given
