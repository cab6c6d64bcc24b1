"""Agents reach the scores of their references."""

from __future__ import annotations

import pytest

from fastrl.config import load_config
from fastrl.training import train

pytestmark = pytest.mark.timeout(900)

REACHED_SOON = [("cartpole_ppo", 475), ("cartpole_a2c", 475), ("pendulum_ppo", -300)]
# A2C needs nearly all its steps, which takes minutes.
_WITHIN_ITS_STEPS = [
    pytest.param(
        name, wanted, seed, marks=pytest.mark.slow if name == "cartpole_a2c" and seed else ()
    )
    for name, wanted in REACHED_SOON
    for seed in range(3)
]
REACHED_AT_THE_END = [*REACHED_SOON, ("acrobot_ppo", -100)]


def evaluated_at_the_end(name, *changes):
    """Return the evaluation with which training ends; it is of a hundred episodes."""
    evaluation = train(load_config(f"configs/{name}.yaml", changes)).outcome.evaluation
    assert len(evaluation.returns) == 100
    return evaluation.return_mean


@pytest.mark.parametrize(("name", "wanted", "seed"), _WITHIN_ITS_STEPS)
def test_agent_reaches_the_score_within_its_steps(tmp_path, name, wanted, seed):
    stop = f"evaluation.stop_at={wanted}"
    assert evaluated_at_the_end(name, f"seed={seed}", f"run_dir={tmp_path / 'run'}", stop) >= wanted


@pytest.mark.parametrize("seed", range(2))
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
