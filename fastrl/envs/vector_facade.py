"""Any `BatchedEnv` as a `gymnasium.vector.VectorEnv`: what ``gymnasium.make_vec`` returns.

The environments reset in the step in which an episode ends (autoreset mode SAME_STEP); ``infos``
then holds ``final_obs`` and the mask ``_final_obs``, as `gymnasium.vector.SyncVectorEnv` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from fastrl.arguments import brief
from fastrl.envs.actions import as_stored
from fastrl.envs.batched_env import BatchedEnv, Rows, StepViews
from fastrl.errors import EnvError
from fastrl.spaces import flatten, leaves, unflatten

_MAX_SEED = 2**31 - 1


class BatchedVectorEnv(VectorEnv[Any, Any, NDArray[Any]]):
    """Steps a `BatchedEnv` behind gymnasium's interface.

    Attributes:
        batched: The environments.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self, batched: BatchedEnv, *, copy: bool = True, exact: bool = False, info: bool = False
    ) -> None:
        """Take over ``batched``, which is closed by `close`.

        Args:
            batched: The environments.
            copy: Return copies of the observations; else views that the next step overwrites.
            exact: Keep observations in the dtypes of their spaces, rewards in float64, and actions
                in float64 where they are given so, for environments that take views of any
                floating dtype; else observations are as in the shared table (float64 becomes
                float32), rewards float32, and actions in the dtype of their space.
            info: Return what ``batched.info()`` knows of each step, arrays ``[n]`` by name.

        Raises:
            EnvError: ``info`` was asked for, and the environments have none.
        """
        if info and not hasattr(batched, "info"):
            raise EnvError(f"'{batched.spec.id}' has no info; leave out the argument 'info'")
        self.batched = batched
        self.num_envs = batched.num_envs
        spec = batched.spec
        self.single_action_space = spec.action_space
        self.action_space = batch_space(spec.action_space, self.num_envs)
        self.single_observation_space = _stored(spec.observation_space, exact=exact)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self._copy, self._exact = copy, exact
        self._info = info
        self._seeded = False
        self._paths = tuple(leaves(self.single_observation_space))
        self._views = StepViews(
            action=(),
            observation=self._rows(),
            reward=np.zeros(self.num_envs, np.float64 if exact else np.float32),
            terminated=np.zeros(self.num_envs, np.bool_),
            truncated=np.zeros(self.num_envs, np.bool_),
            final_observation=self._rows(),
        )
        # Discrete actions are stored as indices from 0.
        self._leaves = self._action_leaves()
        self._starts = [np.asarray(getattr(leaf, "start", 0)) for leaf in self._leaves]

    def reset(
        self,
        *,
        seed: int | Sequence[int] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every environment.

        Args:
            seed: One for each environment, or the first of consecutive ones; None goes on with
                the random stream of each environment.
            options: None are known.

        Raises:
            EnvError: There is not one seed per environment, or there are options.
        """
        if options:
            raise EnvError(f"'{self.batched.spec.id}' knows no reset options, got {list(options)}")
        if seed is not None or not self._seeded or not self._go_on():
            self.batched.reset(self._seeds(seed), self._views.observation)
            self._seeded = True
        return self._observation(), {}

    def step(
        self,
        actions: Any,  # noqa: ANN401
    ) -> tuple[Any, NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step every environment once.

        Args:
            actions: A sample of ``action_space``.

        Raises:
            EnvError: They are of another shape or kind; no environment was stepped.
        """
        views = self._views
        self.batched.step(
            StepViews(
                action=self._action_rows(actions),
                observation=views.observation,
                reward=views.reward,
                terminated=views.terminated,
                truncated=views.truncated,
                final_observation=views.final_observation,
            )
        )
        infos: dict[str, Any] = {}
        if self._info:
            infos.update(self.batched.info())  # type: ignore[attr-defined]
        ended = views.terminated | views.truncated
        if ended.any():
            infos["final_obs"] = self._final(ended)
            infos["_final_obs"] = ended
        flags = views.terminated.copy(), views.truncated.copy()
        return self._observation(), views.reward.copy(), *flags, infos

    def close_extras(self, **kwargs: Any) -> None:  # noqa: ANN401
        """Close the environments."""
        self.batched.close()

    def _go_on(self) -> bool:
        """Begin every environment's next episode from its own stream; False where none can."""
        return False

    def _seeds(self, seed: int | Sequence[int] | None) -> list[int]:
        """Return one seed per environment, and draw later ones from the given."""
        if seed is None:
            return cast(
                "list[int]", self.np_random.integers(_MAX_SEED, size=self.num_envs).tolist()
            )
        if isinstance(seed, int | np.integer) and seed >= 0:
            super().reset(seed=int(seed))
            return [int(seed) + index for index in range(self.num_envs)]
        seeds = list(seed) if isinstance(seed, Iterable) else [seed]
        if not all(isinstance(each, int | np.integer) and each >= 0 for each in seeds):
            raise EnvError(f"seed: expected whole numbers of at least 0, got {brief(seed)}")
        if len(seeds) != self.num_envs:
            raise EnvError(f"expected {self.num_envs} seeds, got {len(seeds)}")
        seeds = [int(each) for each in seeds]
        self.np_random = np.random.default_rng(seeds)
        return seeds

    def _rows(self) -> Rows:
        found = leaves(self.single_observation_space).values()
        return tuple(np.zeros((self.num_envs, *_shape(leaf)), leaf.dtype) for leaf in found)

    def _action_leaves(self) -> Sequence[spaces.Space[Any]]:
        return tuple(leaves(self.single_action_space).values())

    def _action_rows(self, actions: Any) -> Rows:  # noqa: ANN401
        found = flatten(self.single_action_space, actions)
        each = zip(found, self._starts, self._leaves, strict=True)
        return tuple(self._action_row(*one) for one in each)

    def _action_row(
        self,
        actions: Any,  # noqa: ANN401
        start: NDArray[Any],
        leaf: spaces.Space[Any],
    ) -> NDArray[Any]:
        shape = (self.num_envs, *_shape(leaf))
        rows = as_stored(actions, leaf, shape, keep_float64=self._exact)
        return rows - start if start.any() else rows

    def _observation(self) -> Any:  # noqa: ANN401
        rows = self._views.observation
        arrays = [array.copy() for array in rows] if self._copy else rows
        by_path = dict(zip(self._paths, arrays, strict=True))
        return unflatten(self.single_observation_space, by_path)

    def _final(self, ended: NDArray[np.bool_]) -> NDArray[np.object_]:
        final = np.full(self.num_envs, None, dtype=object)
        for index in np.flatnonzero(ended).tolist():
            rows = (array[index].copy() for array in self._views.final_observation)
            by_path = dict(zip(self._paths, rows, strict=True))
            final[index] = unflatten(self.single_observation_space, by_path)
        return final


def _shape(leaf: spaces.Space[Any]) -> tuple[int, ...]:
    return leaf.shape or ()


def _stored(space: spaces.Space[Any], *, exact: bool) -> spaces.Space[Any]:
    """Return the space of what is stored: float64 is halved, unless exactness is asked for."""
    if isinstance(space, spaces.Dict):
        # Pairs keep their order, where a mapping would be sorted.
        return spaces.Dict([(key, _stored(each, exact=exact)) for key, each in space.items()])
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple([_stored(each, exact=exact) for each in space.spaces])
    if not exact and isinstance(space, spaces.Box) and space.dtype == np.float64:
        return spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32))
    return space
