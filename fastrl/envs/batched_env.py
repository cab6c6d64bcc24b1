"""The one interface that env workers step: n environments at once, writing into given views."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fastrl.errors import EnvError
from fastrl.spec import EnvSpec

_SHAPE: Callable[[NDArray[Any]], tuple[int, ...]] = attrgetter("shape")

Rows = tuple[NDArray[Any], ...]
"""One array ``[n, *leaf.shape]`` per leaf of a space, in the order of `fastrl.spaces.leaves`."""


@dataclass(frozen=True)
class StepViews:
    """Where one step of n environments is read from and written to; views of the shared table.

    Attributes:
        action: Per action leaf ``[n, *shape]``, as the policy sampled it; read only.
        observation: Per observation leaf ``[n, *shape]``: what the policy sees next, which is
            the first observation of the next episode where one ended.
        reward: ``[n]`` float32.
        terminated: ``[n]`` bool: the episode reached a terminal state.
        truncated: ``[n]`` bool: the episode was cut off, by a time limit for instance.
        final_observation: Per observation leaf ``[n, *shape]``: the last observation of an
            episode that ended in this step; rows of other environments are left alone.
        episode_info: ``[n, len(spec.episode_info)]`` float32: the figures of an episode that
            ended in this step; rows of other environments are left alone. None where the
            specification names no figures, or nobody asks for them.
        extras: By name ``[n, *shape]``: what `EnvSpec.extras` declares, all of it written in every
            step. A name is missing where nothing reads it, as in an evaluation.
    """

    action: Rows
    observation: Rows
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    final_observation: Rows
    episode_info: NDArray[np.float32] | None = None
    extras: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of all arrays, in the order of the attributes, up to ``final_observation``."""
        flat = (self.reward, self.terminated, self.truncated)
        # Asked for in every step: a comprehension would take twice the time.
        return tuple(map(_SHAPE, (*self.action, *self.observation, *flat, *self.final_observation)))


def step_shapes(spec: EnvSpec, num_envs: int) -> tuple[tuple[int, ...], ...]:
    """Return what `StepViews.shapes` must be for n environments."""
    seen = [(num_envs, *leaf.shape) for leaf in spec.observation.values()]
    action = [(num_envs, *leaf.shape) for leaf in spec.action.values()]
    return (*action, *seen, *[(num_envs,)] * 3, *seen)


def wrong_shapes(
    spec: EnvSpec,
    expected: tuple[tuple[int, ...], ...],
    found: tuple[tuple[int, ...], ...],
) -> EnvError:
    """Return the error of views that do not fit: compiled code does not look where arrays end."""
    return EnvError(
        f"'{spec.id}' steps action, observation, reward, terminated, truncated and "
        f"final_observation of shapes {', '.join(map(str, expected))}; got "
        f"{', '.join(map(str, found))}"
    )


def check_restart(
    spec: EnvSpec, num_envs: int, observation: Rows, chosen: NDArray[np.bool_] | None = None
) -> None:
    """Reject rows or a mask that do not fit n environments.

    Args:
        spec: Of the environments.
        num_envs: Number of environments, n.
        observation: Per leaf ``[n, *shape]``.
        chosen: ``[n]`` bool: which episodes begin.

    Raises:
        EnvError: Says what was expected, and what came.
    """
    expected = tuple((num_envs, *leaf.shape) for leaf in spec.observation.values())
    found = tuple(leaf.shape for leaf in observation)
    if found != expected:
        raise EnvError(f"'{spec.id}': expected observations of shapes {expected}, got {found}")
    if chosen is not None and (chosen.shape != (num_envs,) or chosen.dtype != np.bool_):
        raise EnvError(
            f"'{spec.id}': expected a mask ({num_envs},) bool, got {chosen.shape} {chosen.dtype}"
        )


@runtime_checkable
class BatchedEnv(Protocol):
    """n environments, stepped together, reset in the step in which an episode ends (SAME_STEP).

    Implementations write every element of ``observation``, ``reward``, ``terminated`` and
    ``truncated`` in each step, and nothing outside the views they are given. ``terminated`` and
    ``truncated`` are never both set: termination wins.
    """

    spec: EnvSpec
    num_envs: int

    def reset(self, seeds: Sequence[int], observation: Rows) -> None:
        """Start an episode in every environment and write the first observations.

        Args:
            seeds: One seed per environment; later episodes continue its random stream.
            observation: Per leaf ``[n, *shape]``, written.
        """
        ...

    def step(self, views: StepViews) -> None:
        """Step every environment once with ``views.action``; see `StepViews` for what is written.

        Raises:
            EnvError: An environment raised or broke its contract; names it by index.
        """
        ...

    def close(self) -> None:
        """Free what the environments hold; safe to call twice."""
        ...


_NAMED = re.compile(r"env (\d+)\b")


def renumber(error: EnvError, first: int) -> int | None:
    """Let the error of a batch name environments of the run, which the batch counts from 0.

    Args:
        error: Changed in place, if it begins with an environment's index.
        first: Index of the batch's first environment in the run.

    Returns:
        The index that it names now, None if it names none.
    """
    # What follows the first colon may be the environment's own words.
    head, colon, tail = str(error).partition(": ")
    named = _NAMED.match(head)
    if named is None:
        return None
    head = _NAMED.sub(lambda found: f"env {first + int(found[1])}", head)
    error.args = (f"{head}{colon}{tail}", *error.args[1:])
    return first + int(named[1])
