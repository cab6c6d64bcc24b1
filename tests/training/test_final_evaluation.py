"""The evaluation after the last step: bounded, replaced where it fails, finished by resume."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from pathlib import Path

import pytest

from fastrl.config import Config, EvaluationConfig
from fastrl.envs.env_factory import EnvFactory
from fastrl.errors import ConfigError, EnvError, FastrlError, WorkerError
from fastrl.training import evaluate_run, resume, train
from fastrl.training.checkpoint import CheckpointStore
from fastrl.training.evaluation import EvaluationProtocol, EvaluationResult, evaluate
from tests.training.clockwork import Clockwork, small_run
from tests.training.test_evaluation import model_for

CLOCKWORK = "tests.training.clockwork"


def play(name, **protocol):
    factory = EnvFactory(f"{CLOCKWORK}:{name}")
    settings = EvaluationProtocol(**({"episodes": 5, "seed": 7} | protocol))
    return evaluate(model_for(factory), factory.probe(), factory.batched, settings)


def changed(config, section, **changes):
    part = getattr(config, section).model_copy(update=changes)
    return config.model_copy(update={section: part})


@pytest.fixture
def config(tmp_path) -> Config:
    evaluation = EvaluationConfig(episodes=2, final_episodes=4, every_steps=10_000)
    return small_run(tmp_path / "run", total_steps=64, evaluation=evaluation)


class Successful(Clockwork):
    """Reports a success in every second episode, and counts its episodes."""

    metadata = {**Clockwork.metadata, "episode_info": ("is_success",)}  # noqa: RUF012

    def reset(self, *, seed=None, options=None):
        found = super().reset(seed=seed, options=options)
        self._wins = bool(self.np_random.integers(2))
        return found

    def step(self, action):
        observation, reward, terminated, truncated, _ = super().step(action)
        info = {"is_success": self._wins} if terminated or truncated else {}
        return observation, reward, terminated, truncated, info


class AbortsOnce(Clockwork):
    """Takes its process down in the first step after a file was made, and removes the file."""

    def __init__(self, marker, again=False):
        super().__init__()
        self._marker, self._again = Path(marker), again

    def step(self, action):
        if self._marker.exists():
            if not self._again:
                self._marker.unlink()
            os.abort()
        return super().step(action)


@pytest.mark.parametrize(
    ("limits", "key"), [({"max_steps": 50}, "max_steps"), ({"max_s": 0.2}, "max_s")]
)
def test_episodes_that_do_not_end_are_taken_as_they_are(limits, key):
    began_s = time.monotonic()
    result = play("Endless", **limits)
    assert time.monotonic() - began_s < 20
    assert result.cut == len(result.returns) == 5
    assert f"evaluation.{key}" in result.remark()
    assert "env.max_episode_steps" in result.remark()
    if key == "max_steps":
        assert sum(result.lengths) == 50


def test_limits_that_are_not_reached_change_nothing():
    assert play("Uneven", max_steps=10_000, max_s=100.0) == play("Uneven")
    assert play("Uneven").remark() == ""


def test_episodes_that_were_not_begun_do_not_count():
    result = play("Endless", episodes=40, max_steps=100)
    assert len(result.returns) == len(result.lengths) == 16


@pytest.mark.parametrize("wrong", [{"max_steps": 0}, {"max_s": 0.0}, {"max_s": math.nan}])
def test_limits_that_leave_nothing_are_rejected(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        EvaluationProtocol(1, 0, **wrong)


@pytest.mark.parametrize(
    ("name", "what", "length"),
    [("EndlessUndefined", "observation", 20), ("EndlessUnbounded", "reward", 24)],
)
def test_numbers_that_are_not_finite_end_an_evaluation_or_cut_the_episode(name, what, length):
    with pytest.raises(EnvError, match=rf"the {what} of episode \d+ \(seed \d+\) .*not finite"):
        play(name, max_steps=1000)
    result = play(name, max_steps=1000, cuts_bad_numbers=True)
    assert all(map(math.isfinite, result.returns))
    assert result.cut >= result.bad >= 1
    assert f"{result.bad} of {len(result.returns)} episodes were cut at a number" in result.remark()
    assert length in result.lengths


def test_remark_advises_a_time_limit_only_for_episodes_that_did_not_end():
    assert EvaluationResult((0.0,), (1,), cut=1, bad=1).remark() == (
        "1 of 1 episodes were cut at a number that is not finite"
    )
    assert EvaluationResult((0.0,), (1,), cut=1).remark() == (
        "1 of 1 episodes did not end; env.max_episode_steps limits them"
    )


def test_evaluation_of_a_run_meets_bad_numbers_as_the_run_does(config):
    config = changed(config, "env", id=f"{CLOCKWORK}:EndlessUndefined")
    config = changed(config, "faults", bad_numbers="truncate_episode", max_restarts=100)
    trained = train(changed(config, "evaluation", enabled=False))
    result = evaluate_run(trained.path, episodes=2).result
    assert result.cut == result.bad == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_best_that_is_not_finite_is_none(tmp_path, trained, value):
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    store = CheckpointStore(tmp_path / "checkpoints")
    best = {"checkpoint": store.names()[-1], "return_mean": 1.0}
    (tmp_path / "checkpoints" / "best.json").write_text(json.dumps(best))
    assert store.best() == best
    (tmp_path / "checkpoints" / "best.json").write_text(json.dumps({**best, "return_mean": value}))
    assert store.best() is None


def test_figures_of_episodes_are_part_of_an_evaluation(config, capsys):
    env = {"id": "tests.training.test_final_evaluation:Successful"}
    config = changed(config, "env", **env)
    trained = train(changed(config, "evaluation", metric="info/is_success", final_episodes=20))
    result = trained.outcome.evaluation
    assert set(result.info["is_success"]) == {0.0, 1.0}
    mean = result.info_means()["is_success"]
    assert result.score("info/is_success") == mean == sum(result.info["is_success"]) / 20
    summary = json.loads((trained.path / "summary.json").read_text())
    assert summary["eval_info"] == {"is_success": mean}
    rows = [json.loads(row) for row in (trained.path / "metrics.jsonl").read_text().splitlines()]
    assert [row["info/is_success"] for row in rows if row["kind"] == "final_evaluation"][-1] == mean
    best = json.loads((trained.path / "checkpoints" / "best.json").read_text())
    assert "info/is_success" in best
    assert evaluate_run(trained.path, episodes=20, checkpoint="last").result == result


def test_a_metric_that_is_not_reported_is_rejected(config):
    with pytest.raises(ConfigError, match="'info/is_success' is not reported"):
        train(changed(config, "evaluation", metric="info/is_success"))


def test_a_figure_can_be_the_score():
    good = EvaluationResult((0.0,), (1,), {"is_success": (1.0,)})
    assert good.score("info/is_success") == 1.0
    assert math.isnan(good.score("info/other"))
    assert good.score("return_mean") == 0.0


def test_an_environment_that_aborts_in_the_final_evaluation_is_replaced(config, tmp_path):
    marker = tmp_path / "marker"
    config = changed(config, "env", id="tests.training.test_final_evaluation:AbortsOnce")
    config = changed(config, "env", kwargs={"marker": str(tmp_path / "never")})
    marker.touch()
    config = changed(config, "evaluation", env_kwargs={"marker": str(marker)})
    trained = train(config)
    assert not marker.exists()
    assert trained.outcome.evaluation is not None


def test_a_run_whose_final_evaluation_failed_is_finished_by_resume(config, tmp_path):
    marker = tmp_path / "marker"
    config = changed(config, "env", id="tests.training.test_final_evaluation:AbortsOnce")
    config = changed(config, "env", kwargs={"marker": str(tmp_path / "never")})
    marker.touch()
    kwargs = {"marker": str(marker), "again": True}
    config = changed(config, "evaluation", env_kwargs=kwargs)
    with pytest.raises(WorkerError, match="evaluator was killed by SIGABRT"):
        train(config)
    path = tmp_path / "run"
    assert not (path / "summary.json").exists()
    marker.unlink()
    before = CheckpointStore(path / "checkpoints").names()
    finished = resume(path)
    assert finished.outcome.evaluation is not None
    assert finished.outcome.steps == 64
    assert json.loads((path / "summary.json").read_text())["eval_episodes"] > 0
    assert CheckpointStore(path / "checkpoints").names() == before
    with pytest.raises(FastrlError, match="has trained its 64 steps"):
        resume(path)
