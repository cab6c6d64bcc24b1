"""Environments and a policy whose every number encodes its place.

An observation is (seed of the environment, episode, step within the episode, last action), all
int64, so any transition that lands in the wrong slot, step or bank contradicts its neighbours.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import time

import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from fastrl.spec import EnvSpec, PolicyStep, Topology
from fastrl.workers.plan import SamplingPlan

NUMBERS = spaces.Box(0, 2**32, (4,), np.int64)
NESTED = spaces.Dict(
    {
        "numbers": NUMBERS,
        "rest": spaces.Tuple((spaces.Discrete(1000), spaces.Box(0, 255, (2, 2), np.uint8))),
    }
)
ACTIONS = spaces.Discrete(5)


def episode_length(seed, episode):
    """Return the length of an episode: 1 to 13 steps."""
    return 1 + (seed * 7 + episode * 5) % 13


def is_truncated(seed, episode):
    """Return whether the episode is truncated."""
    return (seed + episode) % 3 == 0


def reward_of(seed, episode, step, action):
    """Return a reward, exact in float32, that differs by slot, step, episode and action."""
    return (seed % 97) + 100 * (episode % 50) + 10_000 * step + 0.125 * action


class CountingEnvs:
    """A `BatchedEnv` that counts."""

    def __init__(self, num_envs, nested=False, fault=None, fault_at=10):
        self.spec = EnvSpec("counting", NESTED if nested else NUMBERS, ACTIONS)
        self.num_envs, self._nested = num_envs, nested
        self._fault, self._steps_until_fault = fault, fault_at

    def reset(self, seeds, observation):
        self._state = np.zeros((self.num_envs, 4), np.int64)
        self._state[:, 0] = seeds
        self._write(observation, slice(None))

    def step(self, views):
        if self._fault is not None:
            self._steps_until_fault -= 1
            if self._steps_until_fault == 0:
                self._fault()
        state, actions = self._state, views.action[0]
        for index, (seed, episode, step, _) in enumerate(state.tolist()):
            action = int(actions[index])
            views.reward[index] = reward_of(seed, episode, step, action)
            state[index] = (seed, episode, step + 1, action)
            over = step + 1 == episode_length(seed, episode)
            cut = over and is_truncated(seed, episode)
            views.terminated[index], views.truncated[index] = over and not cut, cut
            if over:
                self._write(views.final_observation, index)
                state[index] = (seed, episode + 1, 0, 0)
        self._write(views.observation, slice(None))

    def _write(self, rows, index):
        rows[0][index] = self._state[index]
        if self._nested:
            rows[1][index] = self._state[index][..., 2]
            rows[2][index] = (self._state[index][..., 0] % 256)[..., None, None]

    def close(self):
        """Do nothing: there is nothing to free."""


class CountingPolicy(nn.Module):
    """Policy whose values follow from the observation and log-probabilities encode the weights."""

    def __init__(self, nested=False):
        super().__init__()
        self.name_of_weights = nn.Parameter(torch.zeros(()))
        self._leaf = "numbers" if nested else ""

    def draw_noise(self, shape, generator=None, device="cpu"):
        return torch.rand((*shape, 1), generator=generator)

    def act(self, observation, noise):
        numbers = observation[self._leaf]
        action = (noise[..., 0] * ACTIONS.n).long()
        log_prob = self.name_of_weights.expand(numbers.shape[:-1])
        return PolicyStep({"": action}, {"log_prob": log_prob, "value": self.value(observation)})

    def value(self, observation):
        numbers = observation[self._leaf]
        return value_of(numbers[..., 0], numbers[..., 1], numbers[..., 2])

    def evaluate(self, observation, action):
        raise AssertionError("workers never evaluate")

    def mode(self, observation):
        raise AssertionError("workers never take the mode")


def value_of(seed, episode, step):
    """Return the value of a step, exact in float32."""
    return (seed % 97 + 100 * (episode % 50) + 10_000 * step) * 1.0


def make_plan(topology: Topology, rollout_length: int, nested=False, **changes) -> SamplingPlan:
    """Return a plan with counting environments."""
    plan = SamplingPlan(
        env_spec=EnvSpec("counting", NESTED if nested else NUMBERS, ACTIONS),
        topology=topology,
        rollout_length=rollout_length,
        seed=3,
        build_env=lambda num_envs: CountingEnvs(num_envs, nested),
        build_model=lambda: CountingPolicy(nested),
    )
    return dataclasses.replace(plan, **changes)


def weights(name):
    """Return parameters that every log-probability will encode."""
    return {"name_of_weights": torch.tensor(float(name))}


class Ledger:
    """Checks every slot from rollout to rollout and rejects a step that does not follow.

    Attributes:
        cuts: Number of slots whose environment was replaced in the middle of a rollout.
        lost: Number of them that were replaced between two rollouts.
    """

    def __init__(self, plan: SamplingPlan, value_of=value_of):
        self._plan, topology, self._value_of = plan, plan.topology, value_of
        self._expected = np.zeros((topology.num_envs, 3), np.int64)
        self._replaced = np.zeros(topology.num_envs, np.int64)
        self._owner = {}
        for worker, group in topology.all_groups():
            slots = topology.slots(worker, group)
            self._expected[slots, 0] = plan.env_seeds(worker, group)
            for index, slot in enumerate(range(slots.start, slots.stop)):
                self._owner[slot] = (worker, group, index)
        self.returns, self.lengths = [0.0] * topology.num_envs, [0] * topology.num_envs
        self.cuts = self.lost = 0

    def check(self, rollout, nested=False, faults=False):
        """Check every number of a rollout that follows the last one checked.

        Args:
            rollout: Rollout to check.
            nested: Whether observations are nested.
            faults: Whether env workers may have been replaced meanwhile.
        """
        observation = rollout.observation["numbers"] if nested else rollout.observation
        if nested:
            count, image = rollout.observation["rest"]
            assert torch.equal(count, observation[..., 2])
            assert torch.equal(image, (observation[..., :1, None] % 256).expand_as(image))
        steps = len(rollout.reward)
        found, episodes = observation.numpy(), []
        lost = self._accept_lost(found[0]) if faults else set()
        everywhere = set(range(self._plan.topology.num_envs))
        expected = everywhere if rollout.index == 0 else lost
        assert set(rollout.restarted.nonzero()[:, 0].tolist()) == expected
        for t in range(steps + 1):
            seed, episode, step = self._expected.T
            assert (found[t, :, :3] == self._expected).all(), (t, found[t], self._expected)
            assert (rollout.value[t].numpy() == self._value_of(seed, episode, step)).all()
            if t < steps:
                episodes += self._advance(rollout, t, faults)
        rows = rollout.episodes
        assert [*zip(rows.returns, rows.lengths, rows.end_step, rows.slot, strict=True)] == episodes

    def _accept_lost(self, found):
        lost = set()
        for slot, (seed, episode, step) in enumerate(found[:, :3].tolist()):
            if seed != self._expected[slot, 0]:
                assert (episode, step) == (0, 0)
                self._replace(slot, seed)
                self.returns[slot], self.lengths[slot] = 0.0, 0
                self.lost += 1
                lost.add(slot)
        return lost

    def _replace(self, slot, seed=None):
        """Expect the first episode of the replacement, by default the next one.

        Those that fail before they have made a step are never seen.
        """
        worker, group, index = self._owner[slot]
        for replaced in range(self._replaced[slot] + 1, self._replaced[slot] + 20):
            found = self._plan.env_seeds(worker, group, int(replaced))[index]
            if found == seed or seed is None:
                self._replaced[slot] = replaced
                self._expected[slot] = (found, 0, 0)
                return
        raise AssertionError(f"seed {seed} is none of slot {slot}")

    def _advance(self, rollout, t, faults):
        ended = []
        for slot, (seed, episode, step) in enumerate(self._expected.tolist()):
            action = int(rollout.action[t, slot])
            reward = reward_of(seed, episode, step, action)
            assert rollout.reward[t, slot] == reward
            self.returns[slot] += reward
            self.lengths[slot] += 1
            over = step + 1 == episode_length(seed, episode)
            cut = over and is_truncated(seed, episode)
            left = faults and not over and bool(rollout.truncated[t, slot])
            assert bool(rollout.truncated[t, slot]) == (cut or left)
            assert bool(rollout.terminated[t, slot]) == (over and not cut)
            bootstrap = self._value_of(seed, episode, step + 1) if cut or left else 0.0
            assert rollout.final_value[t, slot] == bootstrap
            observation = rollout.observation
            numbers = observation["numbers"] if isinstance(observation, dict) else observation
            after = numbers[t + 1, slot].tolist()
            if left or (faults and over and after[0] != seed):
                self._replace(slot, after[0])
                self.cuts += 1
            else:
                self._expected[slot] = (seed, episode + over, 0 if over else step + 1)
                assert after[3] == (0 if over else action)
            if over or left:
                ended.append((self.returns[slot], self.lengths[slot], t, slot))
                self.returns[slot], self.lengths[slot] = 0.0, 0
        return ended


def raise_error():
    """Fail like a broken environment."""
    raise RuntimeError("the simulator exploded")


def kill():
    """Fail as if the kernel killed it for lack of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def abort():
    """Fail like native code."""
    os.abort()


def hang():
    """Fail like a lost connection."""
    time.sleep(600)
