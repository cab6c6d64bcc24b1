"""Environments are closed at the end of a run, each within a deadline of its own."""

import time

from fastrl import Config, make_sampler
from tests.workers.slow_close import pids
from tests.workers.test_survival import assert_gone


def sample(directory, close_s, **env):
    config = Config.model_validate(
        {
            "env": {
                "id": "tests.workers.slow_close:SlowClose",
                "kwargs": {"directory": str(directory), "close_s": close_s},
                **env,
            },
            "sampler": {"num_env_workers": 1, "envs_per_worker": 5, "rollout_length": 8},
        }
    )
    with make_sampler(config) as sampler:
        sampler.collect()
        # The probe has closed its environment; what is left are those of the worker.
        before = len(pids(directory, "closed"))
        begun_s = time.monotonic()
    return len(pids(directory, "closed")) - before, time.monotonic() - begun_s


def test_every_environment_of_a_worker_has_time_to_close(tmp_path, caplog):
    closed, wall_s = sample(tmp_path, close_s=0.5)
    assert closed == 5
    assert wall_s > 2.5
    assert pids(tmp_path, "closed") == pids(tmp_path, "started")
    assert not caplog.records


def test_worker_whose_close_is_overdue_is_ended_with_what_it_has_started(tmp_path, caplog):
    closed, wall_s = sample(tmp_path, close_s=50, close_timeout_s=0.3)
    assert closed == 0
    assert wall_s < 50
    assert [record.getMessage() for record in caplog.records] == [
        f"{name} did not close an environment within 0.3 s, and was killed with its child "
        "processes; raise env.close_timeout_s if it needs longer"
        for name in ("probe", "env-worker-0")
    ]
    assert_gone(pids(tmp_path, "started"))
