"""Collects whole episodes from rollouts, which begin and end in the middle of episodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
        spec = self._env_spec
        final = _by_path(spec, rollout.final_observation)
        rows = _rows(spec, rollout, self._fields)
        ended = rollout.terminated.numpy() | rollout.truncated.numpy()
        for slot in np.flatnonzero(self._left).tolist():
            if rollout.restarted is not None and rollout.restarted[slot]:
                self._begun[slot].clear()
            column = {name: leaf[:, slot] for name, leaf in rows.items()}
            start = 0
            for end in np.flatnonzero(ended[:, slot]).tolist():
                self._keep(slot, column, start, end + 1)
                last = {path: leaf[end, slot] for path, leaf in final.items()}
                yield self._episode(slot, last, bool(rollout.terminated[end, slot]))
                self._left[slot] -= 1
                start = end + 1
                if not self._left[slot]:
                    break
            else:
                self._keep(slot, column, start, len(ended))

    def _keep(self, slot: int, column: Mapping[str, NDArray[Any]], start: int, stop: int) -> None:
        if stop > start:
            part = {name: leaf[start:stop].copy() for name, leaf in column.items()}
            self._begun[slot].append(part)

    def _episode(self, slot: int, last: Mapping[str, NDArray[Any]], terminated: bool) -> Episode:
        parts, self._begun[slot] = self._begun[slot], []
        rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return _episode(rows, last, terminated)


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
    final = _by_path(env_spec, rollout.final_observation)
    after = {path: leaf[-1] for path, leaf in _by_path(env_spec, rollout.observation).items()}
    rows = _rows(env_spec, rollout, fields)
    terminated = rollout.terminated.numpy()
    ended = terminated | rollout.truncated.numpy()
    length, num_slots = ended.shape
    for slot in range(num_slots):
        start = 0
        for end in np.flatnonzero(ended[:, slot]).tolist():
            part = {name: leaf[start : end + 1, slot] for name, leaf in rows.items()}
            last = {path: leaf[end, slot] for path, leaf in final.items()}
            yield _episode(part, last, bool(terminated[end, slot]))
            start = end + 1
        if start < length:
            part = {name: leaf[start:, slot] for name, leaf in rows.items()}
            yield _episode(part, {path: leaf[slot] for path, leaf in after.items()}, False)


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
