"""Environments of dm_control, through shimmy, run as any other."""

from __future__ import annotations

from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

import fastrl
from fastrl.config import Config, EnvConfig, EvaluationConfig, PPOConfig, SamplerConfig
from fastrl.training import train
from tests.vector.test_drop_in import stepped_alike

pytest.importorskip("shimmy")
pytest.importorskip("dm_control")

pytestmark = pytest.mark.others

SWING_UP = "shimmy:dm_control/cartpole-swingup-v0"


@pytest.mark.parametrize("backend", ["serial", "processes"])
def test_every_step_is_that_of_sync_vector_env(backend):
    build = partial(gymnasium.make, SWING_UP, max_episode_steps=13)
    ours = fastrl.make_vec(SWING_UP, 2, backend=backend, num_workers=1, max_episode_steps=13)
    assert stepped_alike(ours, SyncVectorEnv([build] * 2)) >= 2


@pytest.mark.slow
def test_policy_is_trained_in_processes(tmp_path):
    config = Config(
        run_dir=str(tmp_path / "run"),
        total_steps=128,
        env=EnvConfig(id=SWING_UP, max_episode_steps=10),
        sampler=SamplerConfig(envs_per_worker=2, num_env_workers=1, rollout_length=16),
        algorithm=PPOConfig(epochs=1, minibatch_size=16),
        evaluation=EvaluationConfig(final_episodes=1),
    )
    done = train(config)
    assert done.outcome.steps == 128
    assert np.isfinite(done.outcome.evaluation.return_mean)
