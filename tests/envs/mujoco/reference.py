"""Gymnasium's robots, and a batch that is compared with them step by step."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import gymnasium
import numpy as np

from fastrl.envs import StepViews
from fastrl.envs.mujoco import build

TOLERANCE = 1e-9


@dataclass
class Difference:
    """The largest differences of a run, and the number of its episodes."""

    observation: float = 0.0
    reward: float = 0.0
    terms: float = 0.0
    compared: int = 0
    ended: int = 0


def originals(name, num_envs, kwargs):
    """Return gymnasium's environments, with their time limit and no other wrapper."""
    with warnings.catch_warnings():
        # gymnasium warns that version 4 is out of date.
        warnings.simplefilter("ignore")
        return [gymnasium.make(name, disable_env_checker=True, **kwargs) for _ in range(num_envs)]


def compare(name, num_envs, steps, kwargs=None, seed=0):
    """Step both sides with the same seeds and actions, through all ends and resets."""
    kwargs = kwargs or {}
    env, singles = build(name, num_envs, **kwargs), originals(name, num_envs, kwargs)
    size = env.spec.observation_space.shape[0]
    observation, final = np.zeros((num_envs, size)), np.zeros((num_envs, size))
    reward = np.zeros(num_envs)
    terminated, truncated = np.zeros(num_envs, bool), np.zeros(num_envs, bool)
    found = Difference()

    env.reset(range(seed, seed + num_envs), (observation,))
    firsts = [single.reset(seed=seed + index)[0] for index, single in enumerate(singles)]
    assert np.array_equal(observation, firsts)
    space = env.spec.action_space
    generator = np.random.default_rng(seed)
    for _ in range(steps):
        action = generator.uniform(space.low, space.high, (num_envs, *space.shape))
        action = action.astype(np.float32)
        env.step(StepViews((action,), (observation,), reward, terminated, truncated, (final,)))
        terms = env.info()
        for index, single in enumerate(singles):
            seen, earned, is_terminal, is_cut, info = single.step(action[index])
            found.reward = max(found.reward, abs(earned - reward[index]))
            assert terminated[index] == is_terminal
            assert truncated[index] == (is_cut and not is_terminal)
            if "use_contact_forces" in kwargs:
                # Version 4 of the ant gives the cost of contacts by the name of another.
                info["reward_contact"] = info.pop("reward_ctrl")
            for term in terms.keys() & info.keys():
                found.compared += 1
                found.terms = max(found.terms, abs(info[term] - terms[term][index]))
            if is_terminal or is_cut:
                found.ended += 1
                found.observation = max(found.observation, np.abs(seen - final[index]).max())
                seen, _ = single.reset()
            found.observation = max(found.observation, np.abs(seen - observation[index]).max())
    assert env.spec.action_space == singles[0].action_space
    assert env.spec.observation_space == singles[0].observation_space
    return found
