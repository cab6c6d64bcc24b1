"""Run batched environments and their references, and record their outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from fastrl.envs import BatchedEnv, StepViews
from fastrl.spaces import TensorSpec, flatten, leaves
from fastrl.spec import EnvSpec

POISON = 77


@dataclass
class Stream:
    """Outputs of n environments: one entry per step in every list, and one more observation."""

    observations: list[tuple[np.ndarray, ...]] = field(default_factory=list)
    rewards: list[np.ndarray] = field(default_factory=list)
    terminated: list[np.ndarray] = field(default_factory=list)
    truncated: list[np.ndarray] = field(default_factory=list)
    finals: list[dict[int, tuple[np.ndarray, ...]]] = field(default_factory=list)

    @property
    def episodes(self) -> int:
        return sum(len(final) for final in self.finals)


def rows(specs: dict[str, TensorSpec], num_envs: int) -> tuple[np.ndarray, ...]:
    """Return rows of every leaf, filled with invalid values."""
    return tuple(
        np.full((num_envs, *spec.shape), POISON).astype(spec.numpy_dtype) for spec in specs.values()
    )


def views(spec: EnvSpec, num_envs: int, action: tuple[np.ndarray, ...]) -> StepViews:
    """Return views with ``action``, the other fields filled with invalid values."""
    return StepViews(
        action=action,
        observation=rows(spec.observation, num_envs),
        reward=np.full(num_envs, np.nan, np.float32),
        terminated=np.ones(num_envs, bool),
        truncated=np.ones(num_envs, bool),
        final_observation=rows(spec.observation, num_envs),
    )


def random_actions(spec: EnvSpec, num_envs: int, steps: int, seed: int = 0) -> list[tuple]:
    """Return an array per step and action leaf, as a policy would sample it."""
    rng = np.random.default_rng(seed)

    def sample(leaf):
        shape = (num_envs, *leaf.shape)
        if isinstance(leaf, spaces.Box):
            return rng.standard_normal(shape).astype(np.float32)
        if isinstance(leaf, spaces.MultiBinary):
            return rng.integers(0, 2, shape).astype(np.int8)
        return rng.integers(
            0, leaf.nvec if isinstance(leaf, spaces.MultiDiscrete) else leaf.n, shape
        )

    return [
        tuple(sample(leaf) for leaf in leaves(spec.action_space).values()) for _ in range(steps)
    ]


def run(env: BatchedEnv, seeds: Sequence[int], actions: Sequence[tuple]) -> Stream:
    """Step ``env`` through ``actions`` and check that it wrote all of its fields and no others."""
    stream = Stream()
    first = rows(env.spec.observation, env.num_envs)
    env.reset(seeds, first)
    stream.observations.append(first)
    for action in actions:
        seen = views(env.spec, env.num_envs, action)
        before = [array.copy() for array in action]
        env.step(seen)
        assert all((a == b).all() for a, b in zip(before, action, strict=True)), "actions changed"
        over = seen.terminated | seen.truncated
        for final, poison in zip(
            seen.final_observation, rows(env.spec.observation, env.num_envs), strict=True
        ):
            np.testing.assert_array_equal(final[~over], poison[~over])
        stream.observations.append(seen.observation)
        stream.rewards.append(seen.reward)
        stream.terminated.append(seen.terminated)
        stream.truncated.append(seen.truncated)
        stream.finals.append(
            {i: tuple(final[i] for final in seen.final_observation) for i in np.flatnonzero(over)}
        )
    return stream


def run_singly(
    make: Callable[[], gymnasium.Env],
    spec: EnvSpec,
    seeds: Sequence[int],
    actions: Sequence[Sequence[Any]],
) -> Stream:
    """Run the reference: one environment after the other, as gymnasium documents.

    Args:
        make: Function that builds an environment with its time limit.
        spec: Spec of the environment.
        seeds: Seed of each environment.
        actions: One action per environment for each step.
    """
    stream = Stream()
    steps, num_envs = len(actions), len(seeds)
    stream.observations = [rows(spec.observation, num_envs) for _ in range(steps + 1)]
    stream.rewards = [np.zeros(num_envs, np.float32) for _ in range(steps)]
    stream.terminated = [np.zeros(num_envs, bool) for _ in range(steps)]
    stream.truncated = [np.zeros(num_envs, bool) for _ in range(steps)]
    stream.finals = [{} for _ in range(steps)]
    stored = [leaf.numpy_dtype for leaf in spec.observation.values()]

    def stored_leaves(observation: Any) -> tuple[np.ndarray, ...]:
        parts = flatten(spec.observation_space, observation)
        return tuple(np.asarray(p).astype(d) for p, d in zip(parts, stored, strict=True))

    for i, seed in enumerate(seeds):
        env = make()
        observation, _ = env.reset(seed=seed)
        for t in range(steps + 1):
            for array, leaf in zip(stream.observations[t], stored_leaves(observation), strict=True):
                array[i] = leaf
            if t == steps:
                break
            observation, reward, terminated, truncated, _ = env.step(actions[t][i])
            stream.rewards[t][i] = reward
            stream.terminated[t][i], stream.truncated[t][i] = (
                terminated,
                truncated and not terminated,
            )
            if terminated or truncated:
                stream.finals[t][i] = stored_leaves(observation)
                observation, _ = env.reset()
        env.close()
    return stream


def assert_same(found: Stream, expected: Stream) -> None:
    """Compare two streams bit for bit."""
    for name in ("rewards", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    assert len(found.observations) == len(expected.observations)
    for t, (ours, theirs) in enumerate(zip(found.observations, expected.observations, strict=True)):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"observation {t}")
    for t, (ours, theirs) in enumerate(zip(found.finals, expected.finals, strict=True)):
        assert ours.keys() == theirs.keys(), f"episodes that end at step {t}"
        for i in ours:
            for a, b in zip(ours[i], theirs[i], strict=True):
                np.testing.assert_array_equal(a, b, err_msg=f"final observation {t} of env {i}")
