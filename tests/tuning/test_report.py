"""A tuning's figures agree with each other, however much the machine drifts meanwhile."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from rich.console import Console

from fastrl.tuning import Candidate, Finding, Notes, Search, Settings, Trial
from fastrl.tuning import tune_report as plots
from fastrl.tuning.tune_report import TuneReport, find_bottleneck
from tests.tuning import surfaces
from tests.tuning.surfaces import Trials

DEFAULT, BEST, LOSER = Candidate(16, 2), Candidate(64, 2), Candidate(256, 2)


def tuned_on_paper(machine, drift, seed):
    surface = replace(surfaces.machine(machine), drift=drift)
    measure = Trials(surface, seed=seed)
    options = Settings(budget_s=12.0)
    search = Search(surface.space, surface.default, measure, options, clock=measure.clock)
    return TuneReport("Paper-v0", "fps", search.run())


def drifting():
    """A machine that is fast while the loser is measured, and slows down until the end."""
    trials = (
        Trial(DEFAULT, None, 0.4, 100_000.0, cost_s=1.0),
        Trial(BEST, DEFAULT, 0.4, 300_000.0, 200_000.0, 1.0),
        Trial(LOSER, BEST, 0.4, 540_000.0, 600_000.0, 1.0),
        Trial(BEST, DEFAULT, 0.8, 151_703.0, 101_135.0, 1.0),
    )
    finding = Finding(
        *(BEST, DEFAULT, (151_703.0,), (101_135.0,), trials, (DEFAULT, BEST)),
        *(4.0, "no neighbour is faster", 1, {DEFAULT: 1.0, BEST: 151_703 / 101_135, LOSER: 1.35}),
    )
    return TuneReport("x", "fps", finding, (145_733.0, 118_919.0))


def shown(report):
    console = Console(file=io.StringIO(), width=200)
    console.print(report.to_rich())
    return console.file.getvalue().splitlines()


def rows_of_the_ranking(report):
    lines = shown(report)
    first = next(i for i, line in enumerate(lines) if "Fastest trials" in line)
    return [line.split("│")[1:-1] for line in lines[first:] if line.startswith("│")]


def best_so_far(report):
    axes = Figure().add_subplot()
    plots._path(axes, report)
    line = next(line for line in axes.lines if line.get_label() == "best so far")
    return line.get_ydata()


@settings(max_examples=5)
@given(machine=st.integers(0, 9), drift=st.floats(0, 1), seed=st.integers(0, 99))
def test_figures_of_a_drifting_machine_agree(machine, drift, seed):
    report = tuned_on_paper(machine, drift, seed)
    finding, ratios = report.finding, dict(report.ranking())
    assert next(iter(ratios)) == finding.best
    assert rows_of_the_ranking(report)[0][0].strip() == finding.best.label
    ranked = list(ratios.values())[1:]
    assert ranked == sorted(ranked, reverse=True)
    if finding.default_fps:
        assert ratios[finding.default] == 1
        assert ratios[finding.best] == pytest.approx(finding.gain)
        assert finding.gain == pytest.approx(finding.fps_median / finding.default_fps_median)
    assert (np.diff(best_so_far(report)) >= 0).all()


def test_a_loser_of_fast_minutes_is_not_on_top():
    report = drifting()
    assert [[cell.strip() for cell in row] for row in rows_of_the_ranking(report)] == [
        [BEST.label, "1.50", "best"],
        [LOSER.label, "1.35", ""],
        [DEFAULT.label, "1.00", "default"],
    ]


def test_what_is_reached_is_the_share_of_the_limit_of_the_same_moment():
    report, found = drifting(), drifting().to_dict()
    assert (found["limit_fps"], found["fps_beside_limit"]) == pytest.approx((145_733, 118_919))
    assert found["efficiency"] == pytest.approx(118_919 / 145_733)
    (row,) = (line for line in shown(report) if line.startswith("│ limit"))
    for figure in ("145,733", "118,919", "81.6%"):
        assert figure in row


def test_figures_as_json_are_those_of_the_tables():
    found = drifting().to_dict()
    assert found["gain"] == pytest.approx(found["fps_median"] / found["default_fps_median"])
    ratios = [each.pop("ratio") for each in found["ranking"]]
    assert [Candidate(**each) for each in found["ranking"]] == [BEST, LOSER, DEFAULT]
    assert ratios[0] == pytest.approx(found["gain"])


def test_a_candidate_that_is_faster_by_less_than_the_noise_stands_below_the_best():
    report = drifting()
    finding = replace(report.finding, ratios={DEFAULT: 1.0, BEST: 1.5, LOSER: 1.53})
    rows = rows_of_the_ranking(replace(report, finding=finding))
    assert [cell.strip() for cell in rows[1]] == [LOSER.label, "1.53", "not clearly faster"]


def test_an_interrupted_tuning_compares_no_figures_of_different_minutes():
    surface = replace(surfaces.machine(4), drift=1.0)

    class Interrupted(Trials):
        def __call__(self, candidate, seconds):
            if search.incumbent not in (None, surface.default):
                raise KeyboardInterrupt
            return super().__call__(candidate, seconds)

    search = Search(surface.space, surface.default, Interrupted(surface))
    with pytest.raises(KeyboardInterrupt):
        search.run()
    report = TuneReport("x", "fps", search.finding())
    assert report.finding.gain == pytest.approx(dict(report.ranking())[report.finding.best])
    told = "\n".join(shown(report))
    assert "not compared with the best at the end" in told
    assert f"{report.finding.gain:.2f} ×" in told


def test_pictures_of_a_default_that_fails_name_what_ratios_are_relative_to(tmp_path):
    finding = replace(
        drifting().finding,
        trials=(
            Trial(DEFAULT, None, 0.4, None, None, 1.0, "out of memory"),
            Trial(BEST, None, 0.4, 100.0, None, 1.0),
            Trial(LOSER, BEST, 0.4, 90.0, 100.0, 1.0),
        ),
        path=(BEST,), default_fps=(), num_final=0, ratios={BEST: 1.0, LOSER: 0.9},
    )  # fmt: skip
    report = TuneReport("x", "fps", finding)
    assert finding.gain is None
    assert [c for c, _ in report.ranking()] == [BEST, LOSER]
    assert "failed" in "\n".join(shown(report))
    axes = Figure().add_subplot()
    plots._path(axes, report)
    assert axes.get_ylabel() == f"times {BEST.label}"
    assert len(plots.plot_tuning(report, tmp_path)) == 3


def shares(stepping=0.0, inference=0.0, waiting=0.0, handoff=0.0):
    return {
        "stepping": stepping,
        "inference": inference,
        "waiting": waiting,
        "handoff": handoff,
    }


@pytest.mark.parametrize(
    ("candidate", "notes", "name"),
    [
        (Candidate(8, 2), {"shares": {"env-worker": shares(0.7, 0.3)}}, "env stepping"),
        (Candidate(8, 2), {"shares": {"env-worker": shares(0.3, 0.6, 0, 0.1)}}, "inference"),
        (Candidate(1, 2), {"shares": {"env-worker": shares(0.2, 0.3, 0, 0.5)}}, "handoff"),
        (
            Candidate(8, 2),
            {"shares": {"env-worker": shares(0.7, 0.3)}, "learner_share": 0.8},
            "learner",
        ),
        (
            Candidate(8, 2, 1),
            {"shares": {"env-worker": shares(0.2, 0, 0.8), "model-worker": shares(0, 0.9, 0.1)}},
            "inference",
        ),
        (
            Candidate(8, 2, 1),
            {"shares": {"env-worker": shares(0.2, 0, 0.8), "model-worker": shares(0, 0.1, 0.9)}},
            "handoff",
        ),
    ],
)
def test_bottleneck(candidate, notes, name):
    assert find_bottleneck(candidate, Notes(**notes)).startswith(f"{name} (")


def test_nothing_is_said_where_nothing_was_seen():
    assert find_bottleneck(Candidate(8, 2), Notes()) == ""
