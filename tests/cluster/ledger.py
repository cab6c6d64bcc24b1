"""Checks the slots of counting environments on a cluster from rollout to rollout."""

from __future__ import annotations

import itertools

import numpy as np

from fastrl.shared.rollouts import Rollout
from tests.counting_env import length_of, reward_of


class Ledger:
    """Rejects transitions that do not follow from the previous ones.

    Observations are those of `tests.counting_env` of the kind ``vector``.

    Attributes:
        begun: Number of restarts of a slot between two rollouts.
        cut: Number of restarts within a rollout.

    Args:
        length: Length of episodes; see `CountingEnv`, which is ``uneven``.
    """

    def __init__(self, length: int = 5) -> None:
        self._length = length
        self._at: dict[int, np.ndarray] = {}
        self._sums: dict[int, tuple[float, int]] = {}
        self._tags: set[int] = set()
        self.begun = self.cut = 0

    def check(self, rollout: Rollout) -> None:
        """Check every number of a rollout."""
        assert rollout.slots is not None
        slots = rollout.slots.tolist()
        assert len(set(slots)) == len(slots)
        episodes = []
        for column, slot in enumerate(slots):
            episodes += self._follow(rollout, column, slot)
        found = rollout.episodes
        rows = zip(found.end_step, found.slot, found.returns, found.lengths, strict=True)
        assert list(rows) == sorted(episodes)

    def _follow(self, rollout: Rollout, column: int, slot: int) -> list[tuple[float, ...]]:
        places = rollout.observation[:, column].numpy().astype(np.int64)
        if rollout.restarted[column]:
            self.begun += slot in self._at
            self._begin(places[0], slot)
        assert (places[0] == self._at[slot]).all(), (slot, places[0], self._at[slot])
        ended = []
        for t, (before, after) in enumerate(itertools.pairwise(places)):
            tag, episode, step, _ = before.tolist()
            over = step + 1 >= length_of(tag, episode, self._length, uneven=True)
            total, length = self._sums[slot]
            reward = float(rollout.reward[t, column])
            # float32 does not represent every number of many thousand episodes.
            expected = float(np.float32(reward_of(episode, step + 1)))
            assert reward == expected, (slot, t, reward, expected, before.tolist(), after.tolist())
            self._sums[slot] = total + reward, length + 1
            terminated, truncated = (
                bool(flags[t, column]) for flags in (rollout.terminated, rollout.truncated)
            )
            assert not (terminated and truncated)
            assert terminated == (over and episode % 2 == 0)
            assert truncated or not (over and episode % 2)
            if over or truncated:
                ended.append((t, column, *self._sums[slot]))
                self._sums[slot] = 0.0, 0
            if after[0] != tag:
                # Its worker was replaced, which truncates the episode unless it is over.
                assert over or truncated
                self.cut += 1
                self._begin(after, slot)
            else:
                follows = [tag, episode + 1, 0, -1] if over else [tag, episode, step + 1]
                follows += [] if over else [int(rollout.action[t, column])]
                assert after.tolist() == follows, (slot, t)
        self._at[slot] = places[-1]
        return ended

    def _begin(self, place: np.ndarray, slot: int) -> None:
        tag, *rest = place.tolist()
        assert rest == [0, 0, -1]
        assert tag not in self._tags, "an environment has the seed of another one"
        self._tags.add(tag)
        self._at[slot], self._sums[slot] = place, (0.0, 0)
