from __future__ import annotations

import json

import numpy as np
import pytest
from matplotlib import pyplot as plt

from fastrl.config import EnvConfig, SamplerConfig
from fastrl.errors import ConfigError
from fastrl.training import plotting
from fastrl.training.plotting import mean_curve, plot_runs
from fastrl.training.run_directory import RunDirectory
from tests.training.clockwork import small_run


@pytest.fixture
def finished(tmp_path):
    def finished(name, seed=0, kind="training", **changes):
        path = tmp_path / name
        RunDirectory.create(path, small_run(path, seed=seed, **changes)).close()
        rows = [{"kind": kind, "steps": n, "return_mean": float(n + seed)} for n in (10, 20, 30)]
        rows.insert(0, {"kind": kind, "steps": 5, "return_mean": None})
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return finished


@pytest.fixture
def drawn(monkeypatch):
    """Return the curves that were drawn."""
    seen = []

    def spy(curves):
        seen.append(curves)
        return mean_curve(curves)

    monkeypatch.setattr(plotting, "mean_curve", spy)
    return seen


def test_picture_is_a_png(finished, tmp_path):
    plot_runs([finished("a"), finished("b", seed=1)], tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_seeds_become_one_curve_and_other_configurations_another(finished, drawn, tmp_path):
    runs = [finished("a"), finished("b", seed=1), finished("c", total_steps=1024)]
    plot_runs([*runs, runs[0]], tmp_path / "x.png")
    assert [len(curves) for curves in drawn] == [2, 1]
    steps, returns = drawn[0][1]
    assert steps.tolist() == [10, 20, 30]
    assert returns.tolist() == [11, 21, 31]


def test_curves_of_one_environment_are_told_apart_by_what_differs(finished, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(plt.Axes, "legend", lambda self: seen.extend(self.get_lines()))
    sampler = SamplerConfig(kind="serial", envs_per_worker=2)
    runs = [
        finished("a"),
        finished("b", seed=1),
        finished("c", total_steps=1024),
        finished("d", sampler=sampler),
    ]
    plot_runs(runs, tmp_path / "x.png")
    name = "tests.training.clockwork:Clockwork PPO, total_steps="
    sizes = "sampler.envs_per_worker="
    assert [line.get_label() for line in seen] == [
        f"{name}512, {sizes}4, sampler.num_env_workers=2, … (2 seeds)",
        f"{name}1024, {sizes}4, sampler.num_env_workers=2, …",
        f'{name}512, {sizes}2, sampler.num_env_workers="auto", …',
    ]


def test_compiled_environment_has_the_name_of_its_original(finished, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(plt.Axes, "legend", lambda self: seen.extend(self.get_lines()))
    original, compiled = EnvConfig(id="CartPole-v1"), EnvConfig(id="fastrl/CartPole-v1")
    plot_runs([finished("a", env=compiled)], tmp_path / "x.png")
    plot_runs([finished("b", env=original), tmp_path / "a"], tmp_path / "x.png")
    assert [line.get_label() for line in seen] == [
        "CartPole-v1 PPO",
        'CartPole-v1 PPO, env.id="CartPole-v1"',
        'CartPole-v1 PPO, env.id="fastrl/CartPole-v1"',
    ]


def test_spread_is_over_curves_where_all_have_values():
    first = (np.array([0.0, 10.0]), np.array([0.0, 10.0]))
    second = (np.array([5.0, 20.0]), np.array([7.0, 22.0]))
    steps, mean, spread = mean_curve([first, second])
    assert (steps[0], steps[-1]) == (5.0, 10.0)
    assert mean == pytest.approx(steps + 1)
    assert spread == pytest.approx(np.ones_like(steps))


def test_evaluations_can_be_drawn_instead(finished, drawn, tmp_path):
    run = finished("a", kind="evaluation")
    plot_runs([run], tmp_path / "x.png", "evaluation")
    assert drawn[0][0][1].tolist() == [10, 20, 30]
    with pytest.raises(ConfigError, match="has no training returns yet"):
        plot_runs([run], tmp_path / "x.png")


def test_file_that_cannot_be_written_is_one_line(finished, tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        plot_runs([finished("a")], tmp_path / "missing" / "x.png")


def test_metrics_that_cannot_be_read_are_one_line(finished, tmp_path):
    run = finished("a")
    rows = [{"kind": "training", "steps": 1, "return_mean": "high"}, {"kind": "training"}, 3]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match="has no training returns yet"):
        plot_runs([run], tmp_path / "x.png")
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    with pytest.raises(ConfigError, match=r"^metrics of '.*' cannot be read: Is a directory$"):
        plot_runs([run], tmp_path / "x.png")
