"""Atari games by ALE's ids: gymnasium builds single ones, ALE batches of them."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode

from fastrl.envs.atari import game_factory, options_of_batch
from fastrl.envs.family import Family, Vector, arrays
from fastrl.envs.lookup import registered_spec
from fastrl.errors import EnvError

_MAX_SEED = 2**31


class Atari(Family):
    """``ALE/Breakout-v5`` and others; `make_vec` builds them with the standard preprocessing."""

    prefix = "ALE/"
    package, extra = "ale_py", "atari"
    factories: ClassVar = {"fastrl.envs.atari:sb3_atari": "name"}
    autoreset_modes = tuple(AutoresetMode)
    shares_threads = True
    singles_take_more = True

    def name_of(self, env_id: str) -> None:
        """Return None: gymnasium builds what it has registered."""

    def batch_id(self, env_id: str) -> str | None:
        """Return the id itself, where it is one of ALE's."""
        return env_id if env_id.startswith(self.prefix) else None

    def import_ids(self, env_id: str) -> None:
        """Register ALE's ids with gymnasium, where ALE is installed or one of them is asked for."""
        if env_id.startswith(self.prefix):
            gymnasium.register_envs(self.imported(env_id))
        elif importlib.util.find_spec(self.package) is not None:
            # The names from before the namespace, such as BreakoutNoFrameskip-v4.
            gymnasium.register_envs(importlib.import_module(self.package))

    def vector(
        self,
        name: str,
        num_envs: int,
        each: Mapping[str, Sequence[Any]],
        /,
        **kwargs: Any,  # noqa: ANN401
    ) -> Vector:
        """Build ALE's vector environment; see `Family.vector`.

        Raises:
            EnvError: There is no such game, or a time limit is asked for.
        """
        if "max_episode_steps" in kwargs:
            raise EnvError("max_episode_steps: ALE's batch takes max_num_frames_per_episode")
        spec = registered_spec(self.prefix + name)
        create: Any = load_env_creator(cast("str", spec.vector_entry_point))
        given = {**spec.kwargs, **options_of_batch(kwargs), **arrays(each)}
        return cast("Vector", create(num_envs=num_envs, **given))

    def seeds(self, seeds: list[int]) -> Any:  # noqa: ANN401
        """Return an array of seeds below 2**31, as ALE takes them."""
        return np.array([seed % _MAX_SEED for seed in seeds])

    def single_like_batch(
        self, env_id: str, kwargs: Mapping[str, Any]
    ) -> tuple[str | Callable[..., Any], Mapping[str, Any]]:
        """Return what builds one game with the preprocessing among ``kwargs``."""
        return game_factory(env_id, kwargs), {}


FAMILY = Atari()
