"""Runs say where the time of their workers goes, and how fast they could be at most."""

from __future__ import annotations

import json

import pytest

import fastrl
from fastrl.config import LoggingConfig, SamplerConfig
from fastrl.system import usable_cores
from tests.training.clockwork import small_run

SAMPLERS = {
    "serial": SamplerConfig(kind="serial", envs_per_worker=4, num_env_workers=1, rollout_length=16),
    "process": SamplerConfig(envs_per_worker=2, num_env_workers=2, rollout_length=16),
    "async with a model worker": SamplerConfig(
        envs_per_worker=2, num_env_workers=2, num_model_workers=1, rollout_length=16, mode="async"
    ),
}


def workers_of(path, **changes):
    """Train and return the content of ``workers.json``."""
    # The window is the whole run, in which every worker completes something.
    logging = LoggingConfig(tensorboard=False, every_steps=512)
    fastrl.train(small_run(path, logging=logging, **changes))
    assert not (path / ".workers.json.partial").exists()
    return json.loads((path / "workers.json").read_text())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_shares_of_each_worker_add_up(tmp_path, sampler):
    found = workers_of(tmp_path / "run", sampler=SAMPLERS[sampler])
    names = ["env-worker-0", "env-worker-1", "model-worker-0"]
    assert list(found["workers"]) == names[: {"serial": 1, "process": 2}.get(sampler, 3)]
    for shares in found["workers"].values():
        assert len(shares) == len(found["activities"])
        assert sum(shares) == pytest.approx(1, abs=0.001)
    assert found["steps"] == 512
    assert found["limit_fps"] >= found["fps"] > 0
    limits = found["limits_fps"]
    assert limits["environment"] >= limits["policy"] >= limits["training"] == found["limit_fps"]


def test_a_single_busy_process_is_far_from_the_limit_of_several_cores(tmp_path, monkeypatch):
    cores = 8 * usable_cores()
    monkeypatch.setattr("fastrl.training.journal.usable_cores", lambda: cores)
    found = workers_of(tmp_path / "run", sampler=SAMPLERS["serial"])
    assert found["limit_fps"] >= found["fps"] * cores / 2
