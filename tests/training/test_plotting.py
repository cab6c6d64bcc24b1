from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from fastrl.config import EnvConfig, SamplerConfig
from fastrl.errors import ConfigError
from fastrl.formats import PICTURES
from fastrl.training import plotting
from fastrl.training.plotting import mean_curve, plot_runs, read_curve
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


@pytest.fixture
def legend(monkeypatch):
    """Return a function that gives the labels of the last legend, and the title below."""
    seen = {}

    def add(figure, handles, **_):
        seen["labels"] = [handle.get_label() for handle in handles]

    title = plt.Axes.set_title

    def set_title(axes, text, **kwargs):
        seen["title"] = text
        return title(axes, text, **kwargs)

    monkeypatch.setattr(Figure, "legend", add)
    monkeypatch.setattr(plt.Axes, "set_title", set_title)
    return seen


def test_curves_of_one_environment_are_told_apart_by_what_differs(finished, tmp_path, legend):
    sampler = SamplerConfig(kind="serial", envs_per_worker=2)
    runs = [
        finished("a"),
        finished("b", seed=1),
        finished("c", total_steps=1024),
        finished("d", sampler=sampler),
    ]
    plot_runs(runs, tmp_path / "x.png")
    assert legend["title"] == "tests.training.clockwork:Clockwork PPO"
    assert legend["labels"] == [
        "total_steps=512, envs_per_worker=4 (2 seeds)",
        "total_steps=1024, envs_per_worker=4",
        "total_steps=512, envs_per_worker=2",
        "± one standard deviation over seeds",
    ]


def test_different_environments_are_told_apart_by_their_names(finished, tmp_path, legend):
    first, second = EnvConfig(id="CartPole-v1"), EnvConfig(id="Acrobot-v1")
    plot_runs([finished("a", env=first), finished("b", env=second)], tmp_path / "x.png")
    assert legend == {"title": "", "labels": ["CartPole-v1 PPO", "Acrobot-v1 PPO"]}
    plot_runs([tmp_path / "a", tmp_path / "b"], tmp_path / "x.png", title="Mine")
    assert legend["title"] == "Mine"


def test_compiled_environment_has_the_name_of_its_original(finished, tmp_path, legend):
    original, compiled = EnvConfig(id="CartPole-v1"), EnvConfig(id="fastrl/CartPole-v1")
    plot_runs([finished("a", env=compiled)], tmp_path / "x.png")
    assert legend == {"title": "CartPole-v1 PPO"}
    plot_runs([finished("b", env=original), tmp_path / "a"], tmp_path / "x.png")
    assert legend["labels"] == ["id=CartPole-v1", "id=fastrl/CartPole-v1"]


def test_arguments_of_environments_are_named_one_by_one(finished, tmp_path, legend):
    words = ["long"] * 40
    kwargs = [{}, {"gravity": 5.0, "words": words}, {"gravity": 9.8, "words": words}]
    runs = [
        finished(str(n), env=EnvConfig(id="CartPole-v1", kwargs=each))
        for n, each in enumerate(kwargs)
    ]
    plot_runs(runs, tmp_path / "x.png")
    assert legend["labels"] == ["gravity not set", "gravity=5.0", "gravity=9.8"]


def test_no_two_curves_look_the_same(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    steps = np.arange(30.0)
    curves = {f"_{n}": [(steps, steps * n)] for n in range(25)}
    plotting.draw_curves(curves, tmp_path / "x.png")
    lines = drawn[0].axes[0].get_lines()
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(curves)
    assert len(drawn[0].legends[0].get_texts()) == len(curves)


def inside(figure):
    """Return whether every text and every legend is drawn within the figure, and off the axes."""
    figure.canvas.draw()
    renderer, box = figure.canvas.get_renderer(), figure.bbox
    (axes,), legends = figure.axes, figure.legends
    parts = [axes.get_tightbbox(renderer), *(each.get_window_extent(renderer) for each in legends)]
    clear = all(not axes.bbox.overlaps(each.get_window_extent(renderer)) for each in legends)
    return clear and all(
        part.x0 >= box.x0 and part.x1 <= box.x1 and part.y0 >= box.y0 and part.y1 <= box.y1
        for part in parts
    )


@given(
    st.lists(st.text("abc_=$0.", min_size=1, max_size=150), min_size=1, max_size=12, unique=True),
    st.integers(1, 3),
    st.integers(1, 30),
)
@settings(max_examples=8)
def test_legends_are_within_the_figure_and_off_the_curves(labels, seeds, points):
    steps = np.arange(1.0, points + 1)
    curves = {label: [(steps, steps + n) for n in range(seeds)] for label in labels}
    drawn = []
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(plt, "close", drawn.append)
        plotting.draw_curves(curves, Path(directory) / "x.png")
        (figure,) = drawn
        assert inside(figure)
    plt.close(figure)


@pytest.mark.parametrize("suffix", PICTURES)
def test_pictures_have_the_format_of_their_name(finished, tmp_path, suffix):
    output = tmp_path / f"x{suffix}"
    plot_runs([finished("a")], output)
    begins = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}
    assert output.read_bytes().startswith(begins[suffix])


def test_a_curve_of_one_point_is_a_visible_mark(finished, tmp_path, monkeypatch):
    run = finished("a")
    row = {"kind": "training", "steps": 10, "return_mean": 1.0}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    plot_runs([run, finished("b", total_steps=1024)], tmp_path / "x.png")
    first, second = drawn[0].axes[0].get_lines()
    assert (first.get_marker(), len(first.get_xdata())) == ("o", 1)
    assert len(second.get_xdata()) == 3


def test_any_number_of_the_rows_can_be_drawn(finished, drawn, tmp_path):
    run = finished("a")
    rows = [{"kind": "training", "steps": n, "info/is_success": n / 10} for n in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plot_runs(run, tmp_path / "x.png", metric="info/is_success")
    assert drawn[0][0][1].tolist() == [0.1, 0.2]
    with pytest.raises(ConfigError, match="no training metric 'fps'; there are info/is_success"):
        plot_runs(run, tmp_path / "x.png", metric="fps")


def test_the_final_evaluation_is_a_point_and_no_part_of_the_curve(finished, tmp_path, monkeypatch):
    run = finished("a", kind="evaluation")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "final_evaluation", "steps": 40, "return_mean": 7}) + "\n")
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    plot_runs(run, tmp_path / "x.png", "evaluation")
    curve, point = drawn[0].axes[0].get_lines()
    assert list(curve.get_xdata()) == [10, 20, 30]
    assert (list(point.get_xdata()), list(point.get_ydata())) == ([40], [7])


def test_a_run_with_a_final_evaluation_alone_is_a_point(finished, tmp_path):
    run = finished("a", kind="final_evaluation")
    steps, returns = read_curve(run, "evaluation")
    assert (steps.tolist(), len(returns)) == ([10, 20, 30], 3)
    plot_runs(run, tmp_path / "x.png", "evaluation")


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
