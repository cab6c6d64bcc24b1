"""Crafter by id and by factory: as `BatchedEnv`, and as a vector environment of gymnasium."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium

from fastrl.envs.crafter_native.batch import ID, CrafterBatch
from fastrl.envs.crafter_native.options import CrafterOptions
from fastrl.envs.vector_facade import BatchedVectorEnv


class CrafterVector(BatchedVectorEnv):
    """`CrafterBatch` behind gymnasium's interface.

    ``reset()`` without a seed starts the next episode of each environment, as the original's
    ``reset`` does. Rewards are float64, as the original's.
    """

    def __init__(
        self,
        batched: CrafterBatch,
        *,
        seed: int | None = None,
        copy: bool = True,
        info: bool = False,
    ) -> None:
        """Take over ``batched``.

        Args:
            batched: The environments.
            seed: What the first ``reset()`` without a seed starts from; None for a random one.
            copy: Return copies of the observations; else views that the next step overwrites.
            info: Return what `CrafterBatch.info` knows of each step.
        """
        super().__init__(batched, copy=copy, exact=True, info=info)
        self._crafter = batched
        self._first_seed = seed
        self._seeded = False

    def reset(
        self,
        *,
        seed: int | Sequence[int] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every environment.

        Args:
            seed: One for each environment, or the first of consecutive ones; None starts each
                environment's next episode.
            options: None are known.

        Raises:
            EnvError: There is not one seed per environment, or there are options.
        """
        if seed is None and not options and self._seeded:
            self._crafter.restart(self._views.observation)
            return self._observation(), {}
        observation = super().reset(
            seed=self._first_seed if seed is None else seed, options=options
        )
        self._seeded = True
        return observation


def build(
    num_envs: int = 1,
    max_episode_steps: int | None = None,
    **options: Any,  # noqa: ANN401
) -> CrafterBatch:
    """Build n Crafter worlds.

    Args:
        num_envs: Number of environments, n.
        max_episode_steps: Takes the place of the option ``length`` where it is given.
        **options: Those of `CrafterOptions`.

    Raises:
        EnvError: There is no such option, or its value is not possible.
    """
    if max_episode_steps is not None:
        options["length"] = max_episode_steps
    return CrafterBatch(num_envs, CrafterOptions.of(**options))


def make_vec(
    num_envs: int = 1,
    max_episode_steps: int | None = None,
    **options: Any,  # noqa: ANN401
) -> CrafterVector:
    """Build n Crafter worlds as a vector environment.

    Args:
        num_envs: Number of environments, n.
        max_episode_steps: Takes the place of the option ``length`` where it is given.
        **options: Those of `CrafterOptions`, and ``seed``, ``copy`` and ``info`` of
            `CrafterVector`.

    Raises:
        EnvError: There is no such option, or its value is not possible.
    """
    facade = {key: options.pop(key) for key in ("seed", "copy", "info") if key in options}
    return CrafterVector(build(num_envs, max_episode_steps, **options), **facade)


def register() -> None:
    """Register ``fastrl/Crafter-v1`` with gymnasium; again does nothing."""
    if ID not in gymnasium.registry:
        gymnasium.register(
            ID,
            entry_point="fastrl.envs.crafter:CrafterEnv",
            vector_entry_point="fastrl.envs.crafter_native.vector:make_vec",
        )


register()
