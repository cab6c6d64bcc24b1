"""What a run remarks on: signs that nothing is learnt, each once."""

from __future__ import annotations

import json

import pytest

from fastrl.training.remarks import LearningSigns

HEALTHY = {"explained_variance": 0.9, "value_loss": 0.3, "policy_loss": -0.01}
UNEXPLAINED = {**HEALTHY, "explained_variance": 0.001}
DWARFED = {**HEALTHY, "value_loss": 4000.0}


def said(rows, shares=True):
    signs = LearningSigns(value_coef=0.5, is_body_shared=shares)
    return [sign for row in rows for sign in signs.look(row)]


def test_a_run_that_learns_gets_no_remark():
    assert said([HEALTHY] * 100) == []


def test_a_sign_must_last_and_is_reported_once():
    assert said([UNEXPLAINED] * 9 + [HEALTHY]) == []
    (line,) = said([UNEXPLAINED] * 50)
    assert "explained_variance" in line
    assert "docs/guide/not_learning.md" in line


def test_a_large_value_loss_matters_only_to_a_shared_body():
    (line,) = said([DWARFED] * 50)
    assert "model.shared_body=false" in line
    assert said([DWARFED] * 50, shares=False) == []


def test_metrics_without_these_numbers_are_passed_over():
    assert said([{}, {"explained_variance": float("nan")}] * 30) == []


@pytest.mark.parametrize("sign", ["explained_variance stays near 0"])
def test_the_log_of_a_run_points_to_the_guide(tmp_path, capsys, sign):
    from fastrl.cli import main

    overrides = [
        "env.id=tests.training.reach:Noise",
        "total_steps=4000",
        f"run_dir={tmp_path / 'run'}",
        "logging.every_steps=100",
        "evaluation.enabled=false",
        "sampler.kind=serial",
        "sampler.num_env_workers=1",
        "sampler.envs_per_worker=2",
        "sampler.rollout_length=64",
        "algorithm.epochs=1",
    ]
    assert main(["train", *overrides]) == 0
    assert sign in capsys.readouterr().err
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(row)["explained_variance"] for row in rows[-10:]) < 0.05
