"""Agents reach the scores of their references."""

from __future__ import annotations

import pytest

from fastrl.config import load_config
from fastrl.training import train
from fastrl.training.metrics import read_rows

pytestmark = pytest.mark.timeout(900)

REACHED_SOON = [
    *(("cartpole_ppo", 475), ("cartpole_appo", 475), ("cartpole_a2c", 475)),
    ("pendulum_ppo", -300),
]
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]
REACHED_AT_THE_END = [*REACHED_SOON, ("acrobot_ppo", -100)]
# A2C needs nearly all its steps, which takes minutes; on CartPole all learn in a short run as well.
LONG = ("cartpole_a2c", "cartpole_appo", "cartpole_ppo")
WITHIN_ITS_STEPS = [
    pytest.param(*task, marks=pytest.mark.slow if task[0] in LONG else ()) for task in REACHED_SOON
]
# Chance keeps the pole up for some 22 steps. Thirty seeds of PPO reach 119 to 500, and twelve of
# A2C 210 to 500; which of these a seed reaches depends on the processor and its threads.
SHORT_RUNS = {
    "cartpole_ppo": (90, ["total_steps=40960", "algorithm.epochs=10"]),
    "cartpole_a2c": (100, ["total_steps=100000", "sampler.num_envs=16"]),
}


def evaluated_at_the_end(name, *changes):
    """Return the evaluation with which training ends; it is of a hundred episodes."""
    evaluation = train(load_config(f"configs/{name}.yaml", changes)).outcome.evaluation
    assert len(evaluation.returns) == 100
    return evaluation.return_mean


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", SHORT_RUNS)
def test_a_short_run_learns_with_every_seed(tmp_path, name, seed):
    wanted, changes = SHORT_RUNS[name]
    run = [f"seed={seed}", f"run_dir={tmp_path / 'run'}", "sampler.kind=serial"]
    run += ["env.id=fastrl/CartPole-v1", "logging.tensorboard=false"]
    run += ["evaluation.every_steps=1000000", "evaluation.final_episodes=20"]
    done = train(load_config(f"configs/{name}.yaml", [*changes, *run]))
    assert done.outcome.evaluation.return_mean >= wanted
    first = next(read_rows(done.path / "metrics.jsonl"))
    assert first["return_mean"] is None or first["return_mean"] < 60


@pytest.mark.parametrize("seed", SEEDS)
def test_a_short_asynchronous_run_learns(tmp_path, seed):
    changes = ("total_steps=40960", "algorithm.epochs=10", "env.id=fastrl/CartPole-v1")
    run = (f"seed={seed}", f"run_dir={tmp_path / 'run'}", "sampler.num_env_workers=1")
    evaluation = ("evaluation.every_steps=1000000", "evaluation.final_episodes=20")
    done = train(load_config("configs/cartpole_appo.yaml", [*changes, *run, *evaluation]))
    assert done.outcome.evaluation.return_mean >= 90
    rows = read_rows(done.path / "metrics.jsonl")
    assert max(row["policy_lag"] for row in rows if row["kind"] == "training") == 1


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("name", "wanted"), WITHIN_ITS_STEPS)
def test_agent_reaches_the_score_within_its_steps(tmp_path, name, wanted, seed):
    stop = f"evaluation.stop_at={wanted}"
    assert evaluated_at_the_end(name, f"seed={seed}", f"run_dir={tmp_path / 'run'}", stop) >= wanted


@pytest.mark.parametrize("seed", SEEDS)
def test_the_defaults_learn_a_small_task_of_large_returns(tmp_path, seed):
    changes = ("env.id=tests.training.reach:Reach", "total_steps=81920", f"seed={seed}")
    run = ("sampler.num_env_workers=2", f"run_dir={tmp_path / 'run'}")
    evaluation = train(load_config(None, [*changes, *run])).outcome.evaluation
    assert evaluation.return_mean > -12


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "wanted"), REACHED_AT_THE_END)
def test_agent_has_the_score_after_its_last_step(tmp_path, name, wanted, seed):
    stop = "evaluation.stop_at=null"
    assert evaluated_at_the_end(name, f"seed={seed}", f"run_dir={tmp_path / 'run'}", stop) >= wanted
