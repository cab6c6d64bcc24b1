"""Whole episodes out of rollouts, which begin and end in the middle of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.datasets.files import Episode
from fastrl.shared.rollouts import Rollout
from fastrl.spaces import flatten
from fastrl.spec import EnvSpec

_Columns = dict[str, NDArray[Any]]
_OBSERVATION, _ACTION, _FIELD = "observation/", "action/", "field/"


class EpisodeCutter:
    """Collects a fixed number of whole episodes from each slot.

    The first episodes that end among all slots would be short ones. Here each slot contributes its
    first ones, however long they are.

    Args:
        env_spec: The environment.
        num_slots: B.
        episodes: How many, divided among the slots.
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
        """Yield copies of the episodes that end in a rollout and are wanted, slot by slot.

        Args:
            rollout: The next one, with the field ``final_observation``.
        """
        spec = self._env_spec
        final = [
            leaf.numpy() for leaf in flatten(spec.observation_space, rollout.final_observation)
        ]
        rows = self._rows(rollout)
        ended = rollout.terminated.numpy() | rollout.truncated.numpy()
        for slot in np.flatnonzero(self._left).tolist():
            if rollout.restarted is not None and rollout.restarted[slot]:
                self._begun[slot].clear()
            column = {name: leaf[:, slot] for name, leaf in rows.items()}
            start = 0
            for end in np.flatnonzero(ended[:, slot]).tolist():
                self._keep(slot, column, start, end + 1)
                last = dict(zip(spec.observation, (leaf[end, slot] for leaf in final), strict=True))
                yield self._episode(slot, last, bool(rollout.terminated[end, slot]))
                self._left[slot] -= 1
                start = end + 1
                if not self._left[slot]:
                    break
            else:
                self._keep(slot, column, start, len(ended))

    def _rows(self, rollout: Rollout) -> _Columns:
        """Return ``[T, B, *]`` by label."""
        spec, length = self._env_spec, len(rollout.reward)
        observed = flatten(spec.observation_space, rollout.observation)
        rows = {
            _OBSERVATION + path: leaf[:length].numpy()
            for path, leaf in zip(spec.observation, observed, strict=True)
        }
        acted = zip(spec.action, flatten(spec.action_space, rollout.action), strict=True)
        rows |= {_ACTION + path: leaf.numpy() for path, leaf in acted}
        rows |= {_FIELD + name: rollout.fields[name].numpy() for name in self._fields}
        return rows | {"reward": rollout.reward.numpy()}

    def _keep(self, slot: int, column: Mapping[str, NDArray[Any]], start: int, stop: int) -> None:
        if stop > start:
            part = {name: leaf[start:stop].copy() for name, leaf in column.items()}
            self._begun[slot].append(part)

    def _episode(self, slot: int, last: Mapping[str, NDArray[Any]], terminated: bool) -> Episode:
        parts, self._begun[slot] = self._begun[slot], []
        rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

        def group(prefix: str) -> _Columns:
            return {k.removeprefix(prefix): v for k, v in rows.items() if k.startswith(prefix)}

        observation = {
            path: np.concatenate([leaf, last[path][None]])
            for path, leaf in group(_OBSERVATION).items()
        }
        return Episode(observation, group(_ACTION), rows["reward"], terminated, group(_FIELD))
