"""The example of a `DeviceEnv`: robots stepped by MJX; needs the extra 'mjx'."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from fastrl.config import load_config
from fastrl.learning import build_learner
from fastrl.sampling import DeviceSampler, make_plan, make_sampler

pytest.importorskip("mujoco.mjx", exc_type=ImportError)
pytestmark = [
    pytest.mark.slow,  # JAX compiles for half a minute
    pytest.mark.filterwarnings("default"),
]

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "mjx"
N, LENGTH = 4, 24


def test_a_robot_moves_as_in_mujoco_and_is_learnt_from(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE)
    overrides = [f"sampler.num_envs={N}", f"sampler.rollout_length={LENGTH}"]
    limit = ["env.max_episode_steps=10", "algorithm.minibatch_size=48"]
    config = load_config(EXAMPLE / "pendulum.yaml", [*overrides, *limit])
    plan = make_plan(config)
    learner = build_learner(config, plan.env_spec)
    with make_sampler(config, plan, learner.weights()) as sampler:
        assert isinstance(sampler, DeviceSampler)
        state = None
        for _ in range(2):
            rollout = sampler.collect()
            assert learner.update(rollout)["gradient_steps"] > 0
            state = sampler.get_state()
    seen, action, ended = (
        each.numpy()
        for each in (rollout.observation, rollout.action, rollout.terminated | rollout.truncated)
    )
    assert rollout.truncated.any()
    assert torch.equal(rollout.reward, torch.where(rollout.terminated, 0.0, 1.0))
    original = gymnasium.make("InvertedPendulum-v5").unwrapped
    original.reset(seed=0)
    for t, slot in zip(*np.nonzero(~ended), strict=True):
        original.set_state(seen[t, slot, :2].astype(float), seen[t, slot, 2:].astype(float))
        reached = original.step(np.clip(action[t, slot], -3, 3))[0]
        np.testing.assert_allclose(seen[t + 1, slot], reached, rtol=1e-3, atol=1e-3)
    original.close()

    again = make_sampler(config, plan, learner.weights())
    again.set_state(state)
    with again:
        assert torch.equal(again.collect().observation[0], rollout.observation[-1])
