"""A policy whose state counts the steps of its episode and which outputs its input state.

Any reset that is missing, misplaced or done twice shows in the numbers of a rollout.
"""

from __future__ import annotations

import torch
from torch import nn

from fastrl import PolicyStep, TensorSpec
from tests.sampling import counting
from tests.sampling.counting import ACTIONS, Ledger, make_plan

FIRST = torch.tensor([0.0, -1.0, 0.5])
"""Initial state: number of steps, seed of the environment (unknown) and a constant."""
SEEDS = 97


class Remembering(nn.Module):
    """Policy that counts the steps of an episode and remembers its environment's seed."""

    def __init__(self, puts_out=("log_prob", "value", "given")):
        super().__init__()
        self.name_of_weights = nn.Parameter(torch.zeros(()))
        self.first = nn.Parameter(FIRST.clone())
        shapes = {"log_prob": (), "value": (), "given": FIRST.shape}
        self.outputs = {name: TensorSpec(shapes[name], torch.float32) for name in puts_out}

    def draw_noise(self, shape, generator=None, device="cpu"):
        return torch.rand((*shape, 1), generator=generator, device=device)

    def initial_state(self, n):
        return self.first.expand(n, -1)

    def act(self, observation, noise, state):
        numbers = observation[""]
        found = {"log_prob": self.name_of_weights.expand(len(numbers)), "given": state}
        found["value"] = self.value(observation, state)
        steps, _, constant = state.unbind(-1)
        following = torch.stack([steps + 1, (numbers[..., 0] % SEEDS).float(), constant], dim=-1)
        action = {"": (noise[..., 0] * ACTIONS.n).long()}
        return PolicyStep(action, {name: found[name] for name in self.outputs}, following)

    def value(self, observation, state):
        seed, episode, _, _ = observation[""].unbind(-1)
        return value_of(seed, episode, state[..., 0])

    def evaluate(self, observation, action, state, keep):
        raise AssertionError("workers never evaluate")

    def mode(self, observation, state):
        raise AssertionError("workers never take the mode")


def value_of(seed, episode, step):
    """Exact in float32; the step is that of the state."""
    return counting.value_of(seed, episode, 0) + step / 16


def plan_of(topology, rollout_length, **changes):
    """Return a plan of counting environments with the counting policy."""
    return make_plan(topology, rollout_length, build_model=Remembering, **changes)


def weights(name, first=FIRST):
    """Return parameters that every log-probability encodes, with the initial state ``first``."""
    return {"name_of_weights": torch.tensor(float(name)), "first": first}


def state_at(observation):
    """Return the state ``[*, 3]`` before the step that the observation ``[*, 4]`` encodes."""
    seed, _, step, _ = observation.unbind(-1)
    known = torch.where(step > 0, (seed % SEEDS).float(), FIRST[1])
    return torch.stack([step.float(), known, FIRST[2].expand(step.shape)], dim=-1)


class MemoryLedger(Ledger):
    """Ledger that checks states as well."""

    def __init__(self, plan):
        super().__init__(plan, value_of)

    def check(self, rollout, nested=False, faults=False):
        super().check(rollout, nested, faults)
        expected = state_at(rollout.observation)
        if "given" in rollout.fields:
            assert torch.equal(rollout.given, expected[:-1])
        stride = self._plan.sequence_length or self._plan.rollout_length
        assert torch.equal(rollout.policy_state, expected[::stride])


class Steps(nn.Module):
    """Policy for discrete actions that counts the steps of episodes and acts by the count.

    In mode it takes every action in turn, so that an episode shows where its state began.
    """

    BEGIN = 3.0

    def __init__(self, env_spec):
        super().__init__()
        self.choices = int(env_spec.action_space.n)
        self.bias = nn.Parameter(torch.zeros(()))
        scalar = TensorSpec((), torch.float32)
        self.outputs = {"log_prob": scalar, "value": scalar, "given": scalar}

    def draw_noise(self, shape, generator=None, device="cpu"):
        return torch.rand((*shape, 1), generator=generator, device=device)

    def initial_state(self, n):
        return torch.full((n, 2), self.BEGIN, device=self.bias.device)

    def act(self, observation, noise, state):
        step = self.mode(observation, state)
        action = {"": (step.action[""] + (noise[..., 0] * 2).long()) % self.choices}
        value = self.value(observation, state)
        outputs = {"log_prob": torch.zeros_like(value), "value": value, "given": state[..., 0]}
        return step._replace(action=action, outputs=outputs)

    def mode(self, observation, state):
        action = (state[..., 0] - self.BEGIN).long() % self.choices
        return PolicyStep({"": action}, {}, state + torch.tensor([1.0, 0.5], device=state.device))

    def value(self, observation, state):
        return state[..., 0] + 0.0 * self.bias

    def evaluate(self, observation, action, state=None, keep=None):
        like = self.bias.expand(action[""].shape)
        return like, like, like
