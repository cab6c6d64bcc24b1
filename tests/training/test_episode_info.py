"""Figures of episodes in metrics and summaries."""

import json
import math

import pytest

from fastrl.config import EnvConfig, load_config
from fastrl.training import resume, train
from fastrl.training.metrics import read_rows
from fastrl.training.window import EpisodeInfo
from tests.training.clockwork import small_run

ENV = EnvConfig(id="tests.telling_env:TellingEnv")


def test_run_says_what_was_achieved(tmp_path):
    train(small_run(tmp_path / "run", env=ENV))
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl")]
    last = rows[-1]
    assert last["info/total"] == pytest.approx(last["return_mean"])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    shares = summary["episode_info_positive"]
    assert set(shares) == {"total", "achievements/early", "achievements/late"}
    expected = math.sqrt(
        (1 + 100 * shares["achievements/early"]) * (1 + 100 * shares["achievements/late"])
    )
    assert summary["achievement_score"] == pytest.approx(expected - 1)
    assert last["achievement_score"] == pytest.approx(expected - 1)


def test_resumed_run_counts_on(tmp_path):
    path = tmp_path / "run"
    first = train(small_run(path, env=ENV))
    done = resume(path, ["total_steps=1024"])
    before, after = first.outcome.info.totals, done.outcome.info.totals
    for name in before:
        assert after[name][0] > before[name][0] > 0
        assert after[name][1] >= before[name][1]


def test_score_is_the_geometric_mean_of_success_rates():
    rates = [0.0] * 12 + [0.1, 0.3, 23.1, 0.9, 0.2, 0.2, 34.3, 44.9, 84.6, 11.4]
    totals = {f"achievements/{i}": (1000, round(10 * r)) for i, r in enumerate(rates)}
    expected = math.exp(sum(math.log1p(rate) for rate in rates) / 22) - 1
    assert EpisodeInfo(totals).achievement_score() == pytest.approx(expected)
    assert EpisodeInfo({"is_success": (10, 5)}).achievement_score() is None


def test_crafter_tells_its_22_achievements():
    config = load_config("configs/crafter_ppo.yaml")
    from fastrl.envs import EnvFactory

    names = EnvFactory.from_config(config.env).probe().episode_info
    assert len([name for name in names if name.startswith("achievements/")]) == 22
