"""The interface of environments for workers: n at once, which write into given views."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fastrl.errors import EnvError
from fastrl.spaces import TensorSpec
from fastrl.spec import EnvSpec

_SHAPE: Callable[[NDArray[Any]], tuple[int, ...]] = attrgetter("shape")

Rows = tuple[NDArray[Any], ...]
"""One array ``[n, *leaf.shape]`` per leaf of a space, in the order of `fastrl.spaces.leaves`."""


@dataclass(frozen=True)
class StepViews:
    """The arrays that one step of n environments reads and writes: views of the shared table.

    Attributes:
        action: Per action leaf ``[n, *shape]``, as the policy sampled it; read only.
        observation: Per observation leaf ``[n, *shape]``: the next input of the policy, which is
            the first observation of the next episode if one ended.
        reward: ``[n]`` float32.
        terminated: ``[n]`` bool: the episode reached a terminal state.
        truncated: ``[n]`` bool: the episode was truncated, by a time limit for instance.
        final_observation: Per observation leaf ``[n, *shape]``: the last observation of an
            episode that ended in this step; rows of other environments do not change.
        episode_info: ``[n, len(spec.episode_info)]`` float32: the values of an episode that
            ended in this step; rows of other environments do not change. None if the
            specification names none, or the caller does not need them.
        extras: By name ``[n, *shape]``: the fields of `EnvSpec.extras`, all written in every
            step. A name is missing if nothing reads it, as in an evaluation.
    """

    action: Rows
    observation: Rows
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    final_observation: Rows
    episode_info: NDArray[np.float32] | None = None
    extras: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @classmethod
    def zeros(cls, spec: EnvSpec, num_envs: int) -> StepViews:
        """Return new arrays for n environments, without ``episode_info`` and extras."""

        def rows(leaves: Mapping[str, TensorSpec]) -> Rows:
            shapes = ((num_envs, *leaf.shape) for leaf in leaves.values())
            dtypes = (leaf.numpy_dtype for leaf in leaves.values())
            return tuple(map(np.zeros, shapes, dtypes))

        return cls(
            action=rows(spec.action),
            observation=rows(spec.observation),
            reward=np.zeros(num_envs, np.float32),
            terminated=np.zeros(num_envs, np.bool_),
            truncated=np.zeros(num_envs, np.bool_),
            final_observation=rows(spec.observation),
        )

    def part(self, rows: slice) -> StepViews:
        """Return the views of some environments, without ``episode_info`` and extras."""
        return StepViews(
            action=part_of(self.action, rows),
            observation=part_of(self.observation, rows),
            reward=self.reward[rows],
            terminated=self.terminated[rows],
            truncated=self.truncated[rows],
            final_observation=part_of(self.final_observation, rows),
        )

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of all arrays, in the order of the attributes, up to ``final_observation``."""
        flat = (self.reward, self.terminated, self.truncated)
        # Called in every step; a comprehension would take twice the time.
        return tuple(map(_SHAPE, (*self.action, *self.observation, *flat, *self.final_observation)))


def part_of(leaves: Rows, rows: slice) -> Rows:
    """Return the rows of some environments, as views."""
    return tuple(leaf[rows] for leaf in leaves)


class BatchShapes:
    """Checks the arrays given to a batch of n environments: compiled code checks no bounds."""

    def __init__(self, spec: EnvSpec, num_envs: int) -> None:
        self._spec, self._num_envs = spec, num_envs
        seen = tuple((num_envs, *leaf.shape) for leaf in spec.observation.values())
        action = [(num_envs, *leaf.shape) for leaf in spec.action.values()]
        self._seen, self._views = seen, (*action, *seen, *[(num_envs,)] * 3, *seen)

    def check_views(self, views: StepViews) -> None:
        """Raise an `EnvError` for views of other shapes than those of n environments."""
        if (found := views.shapes) != self._views:
            raise EnvError(
                f"'{self._spec.id}' steps action, observation, reward, terminated, truncated and "
                f"final_observation of shapes {', '.join(map(str, self._views))}; got "
                f"{', '.join(map(str, found))}"
            )

    def check_seeds(self, seeds: Sequence[int]) -> None:
        """Raise an `EnvError` unless there is one seed per environment."""
        if len(seeds) != self._num_envs:
            raise EnvError(f"expected {self._num_envs} seeds, got {len(seeds)}")

    def check_restart(self, rows: Rows, chosen: NDArray[np.bool_] | None = None) -> None:
        """Raise an `EnvError` for observations, or a mask ``[n]`` bool, of another shape."""
        name, shape = self._spec.id, (self._num_envs,)
        if (found := tuple(map(_SHAPE, rows))) != self._seen:
            raise EnvError(f"'{name}': expected observations of shapes {self._seen}, got {found}")
        if chosen is not None and (chosen.shape != shape or chosen.dtype != np.bool_):
            raise EnvError(
                f"'{name}': expected a mask {shape} bool, got {chosen.shape} {chosen.dtype}"
            )


@runtime_checkable
class BatchedEnv(Protocol):
    """n environments, stepped together, reset in the step in which an episode ends (SAME_STEP).

    Implementations write every element of ``observation``, ``reward``, ``terminated`` and
    ``truncated`` in each step, and nothing outside of the given views. ``terminated`` and
    ``truncated`` are never both set: termination wins.

    A batch may also have:

    - ``exact``, whether views may be of any floating dtype: by default they have the dtypes of
      ``spec.observation``, and rewards are float32;
    - ``info()``, details of the last step, arrays ``[n]`` or ``[n, *shape]`` by name;
    - ``restart(observation, chosen=None, seeds=None)``, which begins the next episode in all
      environments, or in those of the mask ``chosen``, if it has that parameter: from their own
      random streams, or from one seed for each of them;
    - ``advance(views, restart=False)``, a step that begins no new episodes;
    - ``beginning(options)``, a context in which episodes begin with options of gymnasium's
      ``reset``.
    """

    spec: EnvSpec
    num_envs: int

    def reset(self, seeds: Sequence[int], observation: Rows) -> None:
        """Start an episode in every environment and write the first observations.

        Args:
            seeds: One seed per environment; later episodes continue its random stream.
            observation: Per leaf ``[n, *shape]``, written.
        """

    def step(self, views: StepViews) -> None:
        """Step every environment once with ``views.action``, and write the others of `StepViews`.

        Raises:
            EnvError: An environment raised or broke its contract; the error names its index.
        """

    def close(self) -> None:
        """Free the resources of the environments; safe to call twice."""


class NumberTable(NamedTuple):
    """Infos of environments that have the same keys, with numbers of the same types.

    Attributes:
        names: The keys.
        indices: Indices of the environments.
        numbers: ``[keys, environments]``: one array is sent and joined much faster than many.
        narrow: Positions of the keys whose values are float32, in an array of float64.
    """

    names: tuple[str, ...]
    indices: list[int]
    numbers: NDArray[Any]
    narrow: tuple[int, ...] = ()

    def items(self) -> Iterator[tuple[str, tuple[list[int], NDArray[Any]]]]:
        """Yield the columns, as a dict of them would."""
        for number, (name, row) in enumerate(zip(self.names, self.numbers, strict=True)):
            narrowed = row.astype(np.float32) if number in self.narrow else row
            yield name, (self.indices, narrowed)


Columns = dict[str, tuple[list[int], Any]] | NumberTable
"""By key, the indices of the environments that have it, and their values: an array with one row for
each, a list, or nested columns."""

_NAMED = re.compile(r"env (\d+)\b")


def renumber(error: EnvError, first: int) -> int | None:
    """Replace the index in an error of a batch, which counts from 0, by the index in the run.

    Args:
        error: Changed in place, if it begins with an environment's index.
        first: Index of the batch's first environment in the run.

    Returns:
        The new index; None if the error has no index.
    """
    # The text after the first colon may come from the environment.
    head, colon, tail = str(error).partition(": ")
    named = _NAMED.match(head)
    if named is None:
        return None
    head = _NAMED.sub(lambda found: f"env {first + int(found[1])}", head)
    error.args = (f"{head}{colon}{tail}", *error.args[1:])
    return first + int(named[1])
