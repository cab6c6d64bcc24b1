"""Agents reach the scores of their references. Minutes each, so not by default."""

from __future__ import annotations

import pytest

from fastrl.config import load_config
from fastrl.training import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("config", "wanted"),
    [("cartpole_ppo", 475), ("cartpole_a2c", 475), ("acrobot_ppo", -100), ("pendulum_ppo", -300)],
)
def test_agent_reaches_the_score(tmp_path, config, wanted, seed):
    changes = [f"seed={seed}", f"run_dir={tmp_path / 'run'}", "evaluation.stop_at=null"]
    done = train(load_config(f"configs/{config}.yaml", changes))
    assert len(done.outcome.evaluation.returns) == 100
    assert done.outcome.evaluation.return_mean >= wanted
