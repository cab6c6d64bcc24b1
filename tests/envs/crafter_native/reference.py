"""The original Crafter, and a batch that is compared with it step by step."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import crafter
import numpy as np

from fastrl.envs.crafter_native import CrafterBatch, CrafterOptions
from tests.envs.stepping import POISON, rows, views

ACTIONS = list(crafter.constants.actions)
ITEMS = list(crafter.constants.items)
ACHIEVEMENTS = list(crafter.constants.achievements)


class InOrder(dict):
    """Set in the order of insertion, with the methods that Crafter uses."""

    add = dict.setdefault
    remove = dict.__delitem__


class OrderedWorld(crafter.engine.World):
    """Crafter's chunks with ordered sets; the order of the original depends on memory addresses."""

    def reset(self, seed=None):
        super().reset(seed)
        self._chunks = defaultdict(InOrder)


def original(seed, **options):
    """Return ``crafter.Env`` with its creatures in order; nothing else is changed."""
    env = crafter.Env(seed=seed, **options)
    world = OrderedWorld(env._area, crafter.constants.materials, (12, 12))
    env._world = env._local_view._world = env._sem_view._world = world
    return env


Policy = Callable[[crafter.Env, np.random.Generator], int]


def random_policy(env, rng):
    return int(rng.integers(len(ACTIONS)))


class Comparison:
    """Originals and a batch that take the same actions, and whose outputs are all compared."""

    def __init__(
        self, seeds: Sequence[int], policy: Policy, gifts: dict[str, int] | None = None, **options
    ) -> None:
        """Start both; all players are given ``gifts`` again every three steps."""
        self.gifts = gifts or {}
        self.originals = [original(seed, **options) for seed in seeds]
        self.policy = policy
        self.rngs = [np.random.default_rng((seed, 1)) for seed in seeds]
        self.batch = CrafterBatch(len(seeds), CrafterOptions.of(**options))
        self.views = views(self.batch.spec, len(seeds), (np.zeros(len(seeds), np.int64),))
        self.batch.reset(seeds, self.views.observation)
        self.unlocked: Counter[str] = Counter()
        self.deaths = self.time_outs = self.sleeping = self.nights = 0
        self.same_picture("first", self.views.observation[0], [e.reset() for e in self.originals])

    def run(self, steps: int) -> Comparison:
        for t in range(steps):
            self.step(t)
        return self

    def step(self, t: int) -> None:
        seen, envs = self.views, self.originals
        if t % 3 == 0:
            for name, amount in self.gifts.items():
                self.batch._worlds.inventory[:, ITEMS.index(name)] = amount
                for env in envs:
                    env._player.inventory[name] = amount
        actions = [self.policy(e, rng) for e, rng in zip(envs, self.rngs, strict=True)]
        seen.action[0][:] = actions
        for final, poison in zip(
            seen.final_observation,
            rows(self.batch.spec.observation, len(envs)),
            strict=True,
        ):
            final[:] = poison
        self.batch.step(seen)
        info = self.batch.info()
        told = [env.step(action) for env, action in zip(envs, actions, strict=True)]
        pictures = [each[0] for each in told]
        for i, (env, (_, reward, over, said)) in enumerate(zip(envs, told, strict=True)):
            where = f"env {i} (seed {env._seed}, episode {env._episode}), step {t}"
            assert info["reward"][i] == said["reward"], where
            assert seen.reward[i] == np.float32(reward), where
            assert seen.terminated[i] == (said["discount"] == 0), where
            assert seen.truncated[i] == (bool(over) and said["discount"] != 0), where
            counts = list(said["achievements"].values())
            key = "final_achievements" if over else "achievements"
            assert info[key][i].tolist() == counts, where
            self.sleeping += env._player.sleeping
            self.nights += env._world.daylight < 0.5
            if over:
                np.testing.assert_array_equal(
                    seen.final_observation[0][i], pictures[i], err_msg=where
                )
                self.deaths += int(seen.terminated[i])
                self.time_outs += int(seen.truncated[i])
                self.unlocked.update(name for name, n in said["achievements"].items() if n)
                pictures[i] = env.reset()
            else:
                assert (seen.final_observation[0][i] == POISON).all(), where
                assert info["inventory"][i].tolist() == list(said["inventory"].values()), where
                assert info["player_pos"][i].tolist() == said["player_pos"].tolist(), where
        self.same_picture(f"step {t}", seen.observation[0], pictures)

    def same_picture(self, when, ours, theirs) -> None:
        for i, (our, their) in enumerate(zip(ours, theirs, strict=True)):
            # For players who look at it; drawing it anew would draw other noise.
            self.originals[i].picture = their
            if not np.array_equal(our, their):
                where = np.argwhere((our != their).any(axis=-1))[:3].tolist()
                raise AssertionError(f"{when}, env {i}: pixels differ at (y, x) {where} …")

    def same_worlds(self) -> None:
        """Compare the hidden state: the whole map and every object."""
        for ours, env in zip(self.batch.semantic(), self.originals, strict=True):
            np.testing.assert_array_equal(ours, env._sem_view())

    def reached(self) -> set[str]:
        """Return the achievements of all episodes, including the running ones."""
        running = {
            name
            for env in self.originals
            for name, count in env._player.achievements.items()
            if count
        }
        return running | set(self.unlocked)
