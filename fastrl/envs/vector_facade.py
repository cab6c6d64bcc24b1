"""Any `BatchedEnv` behind gymnasium's interfaces for vector and single environments.

In autoreset mode SAME_STEP ``infos`` has ``final_obs`` and the mask ``_final_obs``, like that of
`gymnasium.vector.SyncVectorEnv`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, create_empty_array
from numpy.typing import NDArray

from fastrl.arguments import brief, nearest, one_of, whole
from fastrl.envs.actions import stored_leaves
from fastrl.envs.batched_env import BatchedEnv, Rows, StepViews
from fastrl.errors import ArgumentError, EnvError, one_line
from fastrl.spaces import flatten, leaves, nested

_MAX_SEED = 2**31 - 1
AUTORESET_MODES: Mapping[str, AutoresetMode] = {
    "same_step": AutoresetMode.SAME_STEP,
    "next_step": AutoresetMode.NEXT_STEP,
    "disabled": AutoresetMode.DISABLED,
}
Frame = NDArray[np.uint8]
Seeds = int | Sequence[int] | None


class Painter(Protocol):
    """Draws the environments of a batch."""

    def picture(self, index: int) -> Frame:
        """Return the picture ``[height, width, 3]`` of one environment."""

    def close(self) -> None:
        """Free the resources of drawing."""


class BatchedVectorEnv(VectorEnv[Any, Any, NDArray[Any]]):
    """Steps a `BatchedEnv` behind gymnasium's interface.

    `step_rows` and `reset_rows` do the same for `fastrl.make_vec`, on its own arrays.

    Where ``batched.exact`` is true, observations have the dtypes of their spaces, rewards are
    float64, and actions float64 where they are given so. Else observations are as in the shared
    table (float64 becomes float32), rewards float32, and actions in the dtype of their space.

    Attributes:
        batched: The environments.
    """

    def __init__(
        self,
        batched: BatchedEnv,
        *,
        copy: bool = True,
        info: bool = False,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        seed: int | None = None,
        render_mode: str | None = None,
        painter: Callable[[], Painter] | None = None,
        final_objects: bool = True,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Own ``batched``, which `close` closes.

        Args:
            batched: The environments.
            copy: Return copies of the observations; else views that the next step overwrites.
            info: Add the arrays ``[n]`` of ``batched.info()`` to each step's infos.
            autoreset_mode: Whether the next episode begins in the step that ends one, or in the
                next step, whose action is then ignored. The latter needs ``batched.advance``.
            seed: Seed of the first `reset` without a seed; None for a random one.
            render_mode: ``rgb_array``, or None if nothing is drawn.
            painter: Called once before the first picture; without one, pictures are the
                observations.
            final_objects: Whether ``infos["final_obs"]`` is an array of objects; else it is an
                array ``[n, *shape]`` of which only the rows in ``infos["_final_obs"]`` are valid.
            metadata: Added to ``metadata``.

        Raises:
            ArgumentError: The render mode is unknown.
            EnvError: ``info`` is requested but not available, or the autoreset mode
                is not supported.
        """
        spec = batched.spec
        if info and not hasattr(batched, "info"):
            raise EnvError(f"'{spec.id}' has no info; leave out the argument 'info'")
        self.batched, self.num_envs = batched, batched.num_envs
        self.render_mode = one_of("render_mode", render_mode, ("rgb_array", None))
        self._open_painter = painter
        self._painter: Painter | None = None
        mode = self._checked_mode(autoreset_mode)
        self._resets_later = mode is AutoresetMode.NEXT_STEP
        self.metadata = {**(metadata or {}), "autoreset_mode": mode}
        self._exact = bool(getattr(batched, "exact", False))
        self.single_action_space = spec.action_space
        self.action_space = batch_space(spec.action_space, self.num_envs)
        self.single_observation_space = _stored(spec.observation_space, exact=self._exact)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self._copy, self._info, self._final_objects = copy, info, final_objects
        self._first_seed, self._seeded = seed, False
        self._restart: Any = getattr(batched, "restart", None)
        self._resets_some = self._restart is not None and (
            "chosen" in inspect.signature(self._restart).parameters
        )
        # Environments whose next step begins an episode.
        self._waiting = np.zeros(self.num_envs, np.bool_)
        self._final_rows = self._rows()
        self._latest: Rows = ()
        self._leaves = leaves(spec.action_space)
        self._starts = [np.asarray(getattr(leaf, "start", 0)) for leaf in self._leaves.values()]
        self._are_from_zero = not any(start.any() for start in self._starts)

    def reset(
        self, *, seed: Seeds = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every environment, or in some.

        Args:
            seed: One for each environment, or the first of consecutive ones; None continues the
                random stream of each environment.
            options: ``reset_mask``, ``[n]`` bool, selects the environments to reset, if
                ``batched.restart`` supports that. Others are passed to ``batched.beginning``.

        Raises:
            ArgumentError: There is not one seed per environment, the mask is invalid, or only
                some environments are selected before the first reset of all. Or ``batched`` takes
                no options, or resets all environments together.
            EnvError: An option is unknown or invalid.
        """
        self.reset_rows(self._views.observation, seed, options)
        return self._observation(), {}

    def step(
        self,
        actions: Any,
    ) -> tuple[Any, NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step every environment once.

        Args:
            actions: A sample of ``action_space``.

        Raises:
            ArgumentError: The actions have another shape or kind; no environment was stepped.
        """
        action = self._stored_actions(actions, self.num_envs)
        views = self._views
        infos = self.step_rows(replace(views, action=action))
        flags = views.terminated.copy(), views.truncated.copy()
        return self._observation(), views.reward.copy(), *flags, infos

    def render(self) -> tuple[Frame, ...] | None:
        """Return one picture ``[height, width, 3]`` per environment, None without a render mode.

        Raises:
            EnvError: What drawing needs is missing, or there was no reset yet.
        """
        if self.render_mode is None:
            return None
        if self._open_painter is None:
            if not self._latest:
                raise EnvError(f"'{self.batched.spec.id}' was drawn before its first reset")
            return tuple(image.copy() for image in self._latest[0])
        if self._painter is None:
            self._painter = self._open_painter()
        return tuple(self._painter.picture(index) for index in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """Free the resources of drawing, and close the environments."""
        painter, self._painter = self._painter, None
        if painter is not None:
            painter.close()
        self.batched.close()

    def bound(self, views: StepViews) -> StepViews:
        """Return views for `step_rows`: the arrays of ``views``, and some of this object.

        These are for final observations, and for rewards if ``batched`` writes only float32.
        """
        reward: Any = views.reward if self._exact else np.zeros(self.num_envs, np.float32)
        return replace(views, reward=reward, final_observation=self._final_rows)

    def step_rows(self, views: StepViews) -> dict[str, Any]:
        """Step every environment once, and return the infos.

        Args:
            views: ``action`` and ``observation`` are in the dtypes of the spaces.
        """
        batched = self.batched
        if not self._are_from_zero:
            pairs = zip(views.action, self._starts, strict=True)
            views = replace(views, action=tuple(rows - start for rows, start in pairs))
        self._latest = views.observation
        if self._resets_later:
            waiting = self._waiting
            some_wait = waiting.any()
            if some_wait:  # their actions are ignored, so they may be invalid
                action = tuple(map(np.copy, views.action))
                for rows in action:
                    rows[waiting] = 0
                views = replace(views, action=action)
            batched.advance(views, restart=False)  # type: ignore[attr-defined]
            if some_wait:
                self._restart(views.observation, waiting)
                views.reward[waiting] = 0
                views.terminated[waiting] = views.truncated[waiting] = False
            self._waiting = views.terminated | views.truncated
            return {}
        batched.step(views)
        infos: dict[str, Any] = {}
        if self._info:
            infos.update(batched.info())  # type: ignore[attr-defined]
        ended = views.terminated | views.truncated
        if ended.any():
            infos["final_obs"], infos["_final_obs"] = self._final(ended), ended
        return infos

    def reset_rows(self, rows: Rows, seed: Seeds, options: Mapping[str, Any] | None) -> None:
        """Start episodes and write their first observations; see `reset`."""
        given = checked_options(options) or {}
        chosen = checked_mask(given, self.num_envs, was_reset=self._seeded)
        begin: Any = getattr(self.batched, "beginning", None)
        if given and begin is None:
            raise ArgumentError(f"'{self.batched.spec.id}' takes no options, got {[*given]}")
        if not (self._resets_some or chosen.all()):
            raise ArgumentError(
                f"options['reset_mask']: '{self.batched.spec.id}' resets all environments together"
            )
        self._latest = rows
        with begin(given) if begin is not None else nullcontext():
            if chosen.all():
                self._reset_all(rows, seed)
            else:
                seeds = None if seed is None else _each_seed(seed, int(chosen.sum()))
                self._restart(rows, chosen, seeds)
                self._waiting[chosen] = False

    def _reset_all(self, rows: Rows, seed: Seeds) -> None:
        self._waiting[:] = False
        if seed is None and not self._seeded:
            seed = self._first_seed
        if seed is None and self._seeded and self._restart is not None:
            self._restart(rows)
            return
        self.batched.reset(self._seeds(seed), rows)
        self._seeded = True

    def _stored_actions(self, actions: Any, *num_envs: int) -> Rows:
        """Return the leaves of the actions of all environments, or of one without their axis."""
        space, exact = self.single_action_space, self._exact
        return tuple(stored_leaves(space, self._leaves, actions, num_envs, keep_float64=exact))

    def _seeds(self, seed: Seeds) -> list[int]:
        """Return one seed per environment, and seed the stream of later seeds."""
        if seed is None:
            return cast(
                "list[int]", self.np_random.integers(_MAX_SEED, size=self.num_envs).tolist()
            )
        seeds = _each_seed(seed, self.num_envs)
        if isinstance(seed, int | np.integer):
            super().reset(seed=int(seed))
        else:
            self.np_random = np.random.default_rng(seeds)
        return seeds

    def _checked_mode(self, given: AutoresetMode | str) -> AutoresetMode:
        mode = checked_autoreset(given, "autoreset_mode")
        known = [AutoresetMode.SAME_STEP]
        if hasattr(self.batched, "advance"):
            known.append(AutoresetMode.NEXT_STEP)
        if mode not in known:
            names = " or ".join(each.value for each in known)
            raise EnvError(
                f"autoreset_mode must be {names} for '{self.batched.spec.id}', got {given!r}"
            )
        return mode

    @cached_property
    def _views(self) -> StepViews:
        """The arrays of `step` and `reset`."""
        return self.bound(
            StepViews(
                action=(),
                observation=self._rows(),
                reward=cast("Any", np.zeros(self.num_envs)),
                terminated=np.zeros(self.num_envs, np.bool_),
                truncated=np.zeros(self.num_envs, np.bool_),
                final_observation=(),
            )
        )

    def _rows(self) -> Rows:
        space = self.single_observation_space
        empty: Any = create_empty_array(space, self.num_envs, np.zeros)
        return tuple(flatten(space, empty))

    def _observation(self) -> Any:
        rows = self._views.observation
        return self._nested([array.copy() for array in rows] if self._copy else rows)

    def _final(self, ended: NDArray[np.bool_]) -> Any:
        if not self._final_objects:
            return self._nested([rows.copy() for rows in self._final_rows])
        final = np.full(self.num_envs, None, dtype=object)
        for index in np.flatnonzero(ended).tolist():
            final[index] = self._nested([rows[index].copy() for rows in self._final_rows])
        return final

    def _nested(self, arrays: Sequence[Any]) -> Any:
        return nested(self.single_observation_space, arrays)


class SingleBatchedEnv(gymnasium.Env[Any, Any]):
    """A batch of one as a `gymnasium.Env`, to evaluate and to record.

    After the end of an episode, `reset` begins the next one. ``info`` contains
    ``batched.info()`` of the step, if the batch has that method.

    Attributes:
        batched: The batch.
        action: Leaves ``[1, *shape]`` of the last action; empty before the first step.
    """

    def __init__(
        self,
        batched: BatchedEnv,
        *,
        render_mode: str | None,
        painter: Callable[[], Painter],
        fps: int,
    ) -> None:
        """Own ``batched``, which `close` closes.

        Args:
            batched: One environment, with ``restart``.
            render_mode: ``rgb_array``, or None for no pictures.
            painter: Called once before the first picture.
            fps: Frames per second.

        Raises:
            ArgumentError: The render mode is unknown.
            EnvError: ``batched`` holds several environments.
        """
        if batched.num_envs != 1:
            raise EnvError(f"expected a batch of one environment, got {batched.num_envs}")
        self.batched: Any = batched
        # If the batch can, it waits at the end of an episode for `reset`.
        self._waits = hasattr(batched, "advance")
        self._vector = BatchedVectorEnv(
            batched,
            autoreset_mode=AutoresetMode.NEXT_STEP if self._waits else AutoresetMode.SAME_STEP,
            render_mode=render_mode,
            painter=painter,
        )
        self.render_mode = render_mode
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": fps}
        self.observation_space = batched.spec.observation_space
        self.action_space = batched.spec.action_space
        self.action: Rows = ()
        self._info: Callable[[], dict[str, Any]] = getattr(batched, "info", dict)
        self._seeded = self._has_begun = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode: the first of a seed's random stream, or without a seed the next.

        Options are ignored if the batch has no ``beginning``.

        Raises:
            EnvError: An option is unknown or invalid.
        """
        super().reset(seed=seed)
        if seed is None and not self._seeded:
            seed = int(self.np_random.integers(_MAX_SEED))
        if seed is not None or not self._has_begun:
            given = options if hasattr(self.batched, "beginning") else None
            self._vector.reset_rows(self._vector._views.observation, seed, given)
        self._seeded, self._has_begun, self.action = True, False, ()
        return self._first_of(self._vector._views.observation), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step once; the last observation of an episode is that of its end.

        Raises:
            ArgumentError: The action has another shape or kind than the space.
            EnvError: The environment was never reset, or the action is not in its space.
        """
        stored = self._vector._stored_actions(action)
        self.action = tuple(each[None] for each in stored)
        views = replace(self._vector._views, action=self.action)
        self._vector.step_rows(views)
        reward, terminated = views.reward.item(), views.terminated.item()
        truncated = views.truncated.item()
        self._has_begun = not self._waits and (terminated or truncated)
        seen = views.final_observation if self._has_begun else views.observation
        info = {name: float(values[0]) for name, values in self._info().items()}
        return self._first_of(seen), reward, terminated, truncated, info

    def render(self) -> Frame | None:
        """Return the picture ``[height, width, 3]``, None without a render mode.

        If the batch has no ``advance``, a picture after the end of an episode shows the
        beginning of the next one.

        Raises:
            EnvError: A package or file for drawing is missing.
        """
        pictures = self._vector.render()
        return None if pictures is None else pictures[0]

    def close(self) -> None:
        """Free the resources of drawing, and close the batch; safe to call twice."""
        self._vector.close()

    def _first_of(self, rows: Rows) -> Any:
        return self._vector._nested([each[0].copy() for each in rows])


def _stored(space: spaces.Space[Any], *, exact: bool) -> spaces.Space[Any]:
    """Return the space of stored values: float64 becomes float32, unless ``exact``."""
    if isinstance(space, spaces.Dict):
        # Pairs keep their order; a mapping would be sorted.
        return spaces.Dict([(key, _stored(each, exact=exact)) for key, each in space.items()])
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple([_stored(each, exact=exact) for each in space.spaces])
    if not exact and isinstance(space, spaces.Box) and space.dtype == np.float64:
        return spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32))
    return space


def checked_autoreset(value: AutoresetMode | str | None, name: str) -> AutoresetMode | None:
    """Return the autoreset mode of a name, fastrl's or gymnasium's; None for None."""
    if value is None or isinstance(value, AutoresetMode):
        return value
    for word, mode in AUTORESET_MODES.items():
        if str(value).lower() in (word, mode.value.lower()):
            return mode
    raise ArgumentError(
        f"{name} must be one of {', '.join(AUTORESET_MODES)}, got '{value}'"
        f"{nearest(str(value), AUTORESET_MODES)}"
    )


def _each_seed(seed: int | Sequence[int], count: int) -> list[int]:
    """Return one seed for each of some environments; see `checked_seeds`."""
    return [whole("seed", each, 0, math.inf) for each in checked_seeds(seed, count)]


class MaskTypeError(ArgumentError, TypeError):
    """A mask is not an array of bool."""


def checked_seeds(seed: int | Sequence[int | None] | None, num_envs: int) -> list[int | None]:
    """Return one seed per environment.

    Args:
        seed: One for each, or the first of consecutive ones, or None for none.
        num_envs: Number of environments.

    Raises:
        ArgumentError: There is not one seed per environment, or a seed is not a whole number of at
            least 0.
    """
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, int | np.integer):
        first = whole("seed", seed, 0, math.inf)
        return [first + index for index in range(num_envs)]
    if isinstance(seed, str) or not isinstance(seed, Iterable):
        raise ArgumentError(f"seed must be a whole number or one for each, got {brief(seed)}")
    seeds = [None if each is None else whole("seed", each, 0, math.inf) for each in seed]
    if len(seeds) != num_envs:
        raise ArgumentError(f"seed: got {len(seeds)} seeds for {num_envs} environments")
    return seeds


def checked_options(options: object) -> dict[str, Any] | None:
    """Return a copy of the options of a reset.

    Raises:
        ArgumentError: They are not a mapping.
    """
    if options is not None and not isinstance(options, Mapping):
        raise ArgumentError(f"options must be a mapping, got {brief(options)}")
    return None if options is None else dict(options)


def checked_mask(
    options: dict[str, Any] | None, num_envs: int, *, was_reset: bool
) -> NDArray[np.bool_]:
    """Remove and return ``reset_mask`` of a reset's options; by default all environments.

    Args:
        options: Options of the reset.
        num_envs: Number of environments.
        was_reset: Whether all environments were reset before.

    Raises:
        ArgumentError: It is not an array ``[num_envs]`` of bool, selects no environment, or leaves
            out environments that were never reset.
    """
    if options is None or "reset_mask" not in options:
        return np.ones(num_envs, np.bool_)
    mask = options.pop("reset_mask")
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        raise MaskTypeError(f"options['reset_mask'] must be an array of bool, got {one_line(mask)}")
    if mask.shape != (num_envs,):
        raise ArgumentError(
            f"options['reset_mask'] must have the shape ({num_envs},), got {mask.shape}"
        )
    if not mask.any():
        raise ArgumentError("options['reset_mask'] selects no environment")
    if not was_reset and not mask.all():
        raise ArgumentError("reset all environments before some of them")
    return mask
