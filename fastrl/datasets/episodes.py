"""Collects whole episodes from rollouts, which begin and end in the middle of episodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.datasets.files import Episode
from fastrl.envs.actions import ActionBounds, ActionConverter
from fastrl.shared.rollouts import Rollout
from fastrl.spaces import flatten, leaves
from fastrl.spec import EnvSpec

_Columns = dict[str, NDArray[Any]]
_OBSERVATION, _ACTION, _FIELD = "observation/", "action/", "field/"


class EpisodeCutter:
    """Collects a fixed number of whole episodes from each slot.

    The episodes that end first among all slots would be short ones, so each slot contributes its
    own first episodes, of any length.

    Args:
        env_spec: The environment.
        num_slots: B.
        episodes: Number of episodes, divided among the slots.
        fields: Names of further fields ``[T, B, *]`` of the rollouts to keep.
    """

    def __init__(
        self, env_spec: EnvSpec, num_slots: int, episodes: int, fields: Sequence[str] = ()
    ) -> None:
        self._env_spec, self._fields = env_spec, tuple(fields)
        share, rest = divmod(episodes, num_slots)
        self._left = np.full(num_slots, share)
        self._left[:rest] += 1
        self._begun: list[list[_Columns]] = [[] for _ in range(num_slots)]

    @property
    def is_done(self) -> bool:
        """Whether every slot has contributed its episodes."""
        return not self._left.any()

    def add(self, rollout: Rollout) -> Iterator[Episode]:
        """Yield copies of the wanted episodes that end in a rollout, slot by slot.

        Args:
            rollout: The next rollout, with the field ``final_observation``.
        """
        wanted = np.flatnonzero(self._left).tolist()
        if rollout.restarted is not None:
            for slot in rollout.restarted.nonzero().flatten().tolist():
                self._begun[slot].clear()
        for slot, part, last, end in _parts(self._env_spec, rollout, self._fields, wanted):
            if not self._left[slot]:
                continue
            parts = self._begun[slot]
            parts.append({name: leaf.copy() for name, leaf in part.items()})
            if end is not None:
                rows = {name: np.concatenate([each[name] for each in parts]) for name in part}
                self._begun[slot] = []
                self._left[slot] -= 1
                yield _episode(rows, last, bool(rollout.terminated[end, slot]))


class EpisodeBuilder:
    """Collects the steps of a single environment into an episode.

    Args:
        env_spec: The environment.
        action_bounds: ``clip`` or ``squash`` for bounded ``Box`` actions in the dataset.
    """

    def __init__(self, env_spec: EnvSpec, action_bounds: ActionBounds = "clip") -> None:
        self._env_spec = env_spec
        self._observed = leaves(env_spec.observation_space)
        self._converter = ActionConverter(env_spec.action_space, action_bounds)
        self._observations: list[list[NDArray[Any]]] = []
        self._actions: list[list[NDArray[Any]]] = []
        self._rewards: list[float] = []

    def begin(self, observation: Any) -> None:
        """Start an episode with the observation of a reset; discard an unfinished one."""
        self._observations, self._actions, self._rewards = [], [], []
        self._observe(observation)

    def add(self, action: Any, reward: float, observation: Any) -> None:
        """Append a step: an action that the environment accepts, and its results."""
        acted = flatten(self._env_spec.action_space, action)
        self._actions.append([np.array(leaf) for leaf in acted])
        self._rewards.append(float(reward))
        self._observe(observation)

    def finish(self, *, terminated: bool) -> Episode:
        """Return the episode.

        Args:
            terminated: Whether the last step ended in a terminal state.

        Raises:
            EnvError: A discrete action is not in the space.
        """
        observed = [np.stack(column) for column in zip(*self._observations, strict=True)]
        acted = tuple(np.stack(column) for column in zip(*self._actions, strict=True))
        sampled = self._converter.sampled(acted)
        return Episode(
            dict(zip(self._observed, observed, strict=True)),
            dict(zip(self._env_spec.action, sampled, strict=True)),
            np.array(self._rewards, np.float32),
            terminated,
        )

    def _observe(self, observation: Any) -> None:
        # Copies, since an environment may return the same array at each step.
        found = flatten(self._env_spec.observation_space, observation)
        spaces = self._observed.values()
        self._observations.append(
            [np.array(leaf, space.dtype) for leaf, space in zip(found, spaces, strict=True)]
        )


def fragments(env_spec: EnvSpec, rollout: Rollout, fields: Sequence[str] = ()) -> Iterator[Episode]:
    """Yield the parts of episodes within a rollout, slot by slot.

    If the episode continues in the next rollout, its part counts as truncated.

    Args:
        env_spec: The environment.
        rollout: The rollout, with the field ``final_observation``.
        fields: Names of further fields ``[T, B, *]`` of the rollout to keep.
    """
    slots = range(rollout.reward.shape[1])
    for slot, part, last, end in _parts(env_spec, rollout, fields, slots):
        terminated = end is not None and bool(rollout.terminated[end, slot])
        yield _episode(part, last, terminated)


def _parts(
    env_spec: EnvSpec, rollout: Rollout, fields: Sequence[str], slots: Iterable[int]
) -> Iterator[tuple[int, _Columns, _Columns, int | None]]:
    """Yield the parts of episodes in some slots of a rollout.

    Yields:
        The slot, views of the steps' rows, the observation after them, and the step at which the
        episode ends, or None if it continues.
    """
    final = _by_path(env_spec, rollout.final_observation)
    after = {path: leaf[-1] for path, leaf in _by_path(env_spec, rollout.observation).items()}
    rows = _rows(env_spec, rollout, fields)
    ended = (rollout.terminated | rollout.truncated).numpy()
    for slot in slots:
        start = 0
        for end in np.flatnonzero(ended[:, slot]).tolist():
            part = {name: leaf[start : end + 1, slot] for name, leaf in rows.items()}
            yield slot, part, {path: leaf[end, slot] for path, leaf in final.items()}, end
            start = end + 1
        if start < len(ended):
            part = {name: leaf[start:, slot] for name, leaf in rows.items()}
            yield slot, part, {path: leaf[slot] for path, leaf in after.items()}, None


def _by_path(spec: EnvSpec, observation: Any) -> _Columns:
    leaves = flatten(spec.observation_space, observation)
    return {path: leaf.numpy() for path, leaf in zip(spec.observation, leaves, strict=True)}


def _rows(spec: EnvSpec, rollout: Rollout, fields: Sequence[str] = ()) -> _Columns:
    """Return ``[T, B, *]`` by label."""
    length, observed = len(rollout.reward), _by_path(spec, rollout.observation)
    rows = {_OBSERVATION + path: leaf[:length] for path, leaf in observed.items()}
    acted = zip(spec.action, flatten(spec.action_space, rollout.action), strict=True)
    rows |= {_ACTION + path: leaf.numpy() for path, leaf in acted}
    rows |= {_FIELD + name: rollout.fields[name].numpy() for name in fields}
    return rows | {"reward": rollout.reward.numpy()}


def _episode(rows: _Columns, last: Mapping[str, NDArray[Any]], terminated: bool) -> Episode:
    def group(prefix: str) -> _Columns:
        return {k.removeprefix(prefix): v for k, v in rows.items() if k.startswith(prefix)}

    observation = {
        path: np.concatenate([leaf, last[path][None]]) for path, leaf in group(_OBSERVATION).items()
    }
    return Episode(observation, group(_ACTION), rows["reward"], terminated, group(_FIELD))
