"""What is shown of runs: states, curves over seeds, differences, and files that are damaged."""

from __future__ import annotations

import json
import os
import time

import pytest

from fastrl.config import PPOConfig
from fastrl.errors import ConfigError
from fastrl.watch import run_index
from fastrl.watch.run_index import RunIndex
from tests.watch.made_runs import append, fault, make_run, rows_of


def constant(value, last=100):
    return [{"kind": "training", "steps": n, "return_mean": value} for n in range(10, last + 1, 10)]


def test_states_are_running_finished_and_stopped(serve, tmp_path):
    make_run(tmp_path / "done", finished=True)
    make_run(tmp_path / "at_it", running=True)
    make_run(tmp_path / "killed")
    found = serve(tmp_path).ask("overview")["runs"]
    states = {run["name"]: run["state"] for run in found}
    assert states == {"done": "finished", "at_it": "running", "killed": "stopped"}


def test_runs_of_deeper_directories_are_found_and_new_ones_later(serve, tmp_path):
    make_run(tmp_path / "sweep" / "trial-000")
    client = serve(tmp_path)
    assert [run["name"] for run in client.ask("overview")["runs"]] == ["sweep/trial-000"]
    before = client.ask("overview")["version"]
    assert client.ask("overview")["version"] == before
    make_run(tmp_path / "later")
    assert {run["name"] for run in client.ask("overview")["runs"]} == {"sweep/trial-000", "later"}
    assert client.ask("overview")["version"] != before


def test_one_run_can_be_named(serve, tmp_path):
    make_run(tmp_path / "mine")
    make_run(tmp_path / "other")
    assert [run["name"] for run in serve(tmp_path / "mine").ask("overview")["runs"]] == ["mine"]


def test_seeds_become_one_curve_with_a_spread_and_other_configurations_another(serve, tmp_path):
    make_run(tmp_path / "a", constant(10.0), seed=0)
    make_run(tmp_path / "b", constant(20.0), seed=1)
    make_run(tmp_path / "c", constant(7.0), algorithm=PPOConfig(learning_rate=0.5))
    client = serve(tmp_path)
    first, second = sorted(
        client.ask("curves", metric="return_mean")["groups"], key=lambda group: group["mean"][0]
    )
    assert set(first["mean"]) == {7.0}
    assert first["spread"] == first["runs"] == []
    assert set(second["mean"]) == {15.0}
    assert set(second["spread"]) == {5.0}
    assert {run["name"]: set(run["y"]) for run in second["runs"]} == {"a": {10.0}, "b": {20.0}}
    labels = {group["group"]: group["label"] for group in client.ask("overview")["groups"]}
    assert "learning_rate=0.5" in labels[first["group"]]
    only = client.ask("curves", metric="return_mean", groups=first["group"])["groups"]
    assert [group["group"] for group in only] == [first["group"]]


def test_a_curve_over_time_has_seconds(serve, tmp_path):
    make_run(tmp_path / "a", rows_of(0))
    (curve,) = serve(tmp_path).ask("curves", metric="entropy", over="wall_s")["groups"]
    assert curve["x"][-1] == 30.0


def test_new_rows_are_shown_and_unfinished_ones_are_not(serve, tmp_path):
    run = make_run(tmp_path / "a", constant(1.0), running=True)
    client = serve(tmp_path)

    def last():
        return client.ask("curves", metric="return_mean")["groups"][0]["x"][-1]

    assert last() == 100
    row = json.dumps({"kind": "training", "steps": 110, "return_mean": 2.0})
    with (run / "metrics.jsonl").open("a") as file:
        file.write(row[:20])
        file.flush()
        assert last() == 100
        file.write(row[20:] + "\n")
    assert last() == 110


def test_rows_that_a_resumed_run_drops_are_dropped(serve, tmp_path):
    run = make_run(tmp_path / "a", constant(1.0, last=200))
    client = serve(tmp_path)
    client.ask("overview")
    (run / "new").write_text("".join(json.dumps(row) + "\n" for row in constant(2.0, last=50)))
    (run / "new").replace(run / "metrics.jsonl")
    (curve,) = client.ask("curves", metric="return_mean")["groups"]
    assert curve["x"][-1] == 50
    assert set(curve["mean"]) == {2.0}


def test_many_rows_are_thinned_evenly_and_evaluations_are_kept(serve, tmp_path):
    rows = [{"kind": "training", "steps": n, "return_mean": float(n)} for n in range(1, 30_001)]
    rows[500:500] = [{"kind": "evaluation", "steps": 7, "return_mean": 3.0}]
    make_run(tmp_path / "a", rows)
    client = serve(tmp_path)
    (curve,) = client.ask("curves", metric="return_mean")["groups"]
    assert len(curve["x"]) <= 400
    assert curve["x"] == curve["mean"]
    gaps = [after - before for before, after in zip(curve["x"], curve["x"][1:], strict=False)]
    assert max(gaps) < 2 * min(gaps)
    assert client.ask("curves", metric="return_mean", kind="evaluation")["groups"][0]["x"] == [7]


def test_workers_speed_and_limit_of_a_run(serve, tmp_path):
    make_run(tmp_path / "a")
    run = serve(tmp_path).ask("run", run="a")
    assert run["activities"] == ["stepping", "inference", "waiting", "handoff"]
    assert run["workers"]["env-worker-0"] == [0.52, 0.21, 0.24, 0.03]
    assert run["limit_fps"] == 2900.0
    assert run["limits_fps"] == {"environment": 8000.0, "policy": 5000.0, "training": 2900.0}
    assert run["sampling_fps"] == 3000.0
    assert 1900 <= run["fps"] <= 2100
    assert run["shares"] == {"sampling": 0.63, "learning": 0.31}


def test_faults_of_all_runs_the_latest_first(serve, tmp_path):
    early, late = fault("early"), fault("late", at="2026-11-30T02:00:00.000+00:00")
    make_run(tmp_path / "a", faults=[late])
    make_run(tmp_path / "b", faults=[early])
    found = serve(tmp_path).ask("faults")
    assert found["total"] == 2
    assert [(each["run"], each["cause"]) for each in found["faults"]] == [
        ("a", "late"),
        ("b", "early"),
    ]


def test_differences_name_keys_and_values_of_each_run(serve, tmp_path):
    make_run(tmp_path / "a", seed=3)
    make_run(tmp_path / "b", seed=4, total_steps=1024)
    found = serve(tmp_path).ask("differences")
    values = {
        key["key"]: dict(zip(found["runs"], key["values"], strict=True)) for key in found["keys"]
    }
    assert values == {"seed": {"a": "3", "b": "4"}, "total_steps": {"a": "512", "b": "1024"}}


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.yaml", "env: [unclosed"),
        ("config.yaml", "- a list"),
        ("metrics.jsonl", '[]\n{"steps": "x"}\n{"steps": 1, "kind": [], "fps": NaN}\n\0\n'),
        ("metrics.jsonl", '{"steps": 1, "kind": "training", "fps": 1e999, "return_mean": NaN}\n'),
        ("metrics.jsonl", "[" * 100_000 + "\n"),
        ("workers.json", '{"activities": ["a"], "workers": {"w": [1, 2]}, "limit_fps": "x"}'),
        ("workers.json", '{"activities": [], "workers": {}, "limits_fps": {"policy": NaN}}'),
        ("workers.json", '{"activities": [], "workers": {}, "limits_fps": [1, 2]}'),
        ("faults.jsonl", '{"at": {}, "cause": 3}\nnot json\n'),
        ("faults.jsonl", '{"at": NaN, "worker": NaN}\n'),
        ("workers.json", '{"activities": ["a"], "workers": {"w": [NaN]}, "limit_fps": NaN}'),
        ("config.yaml", "env: {id: .nan}\nseed: .nan\ntotal_steps: .inf\n"),
        ("config.yaml", "env: {id: 2026-11-30}\nseed: [2026-11-30]\n"),
        ("summary.json", ""),
    ],
)
def test_damaged_files_are_shown_as_far_as_they_go(serve, tmp_path, file, content):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    (tmp_path / "a" / file).write_text(content)
    client = serve(tmp_path)
    names = [run["name"] for run in client.ask("overview")["runs"]]
    assert sorted(names) == ["a", "b"]
    for answer in (
        client.ask("overview"),
        client.ask("run", run="a"),
        client.ask("faults"),
        client.ask("differences"),
    ):
        json.dumps(answer, allow_nan=False)
    assert client.ask("curves", metric="return_mean")["groups"]


def test_files_that_would_block_are_not_read(serve, tmp_path):
    run = make_run(tmp_path / "a")
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")
    began_s = time.monotonic()
    assert serve(tmp_path).ask("overview")["runs"][0]["steps"] == 0
    assert time.monotonic() - began_s < 5


def test_what_is_no_directory_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="'nothing' is not a directory of runs"):
        RunIndex(["nothing"])
    with pytest.raises(ConfigError, match="'runs' is not a directory of runs; train one first"):
        RunIndex(["runs"])


def test_a_project_with_a_configuration_is_no_run(serve, tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1")
    make_run(tmp_path / "runs" / "mine")
    assert [run["name"] for run in serve(tmp_path).ask("overview")["runs"]] == ["runs/mine"]


def test_a_name_that_no_page_can_show_is_escaped(serve, tmp_path):
    make_run(tmp_path / "a").rename(tmp_path / os.fsdecode(b"\xff\x1b[2J"))
    client = serve(tmp_path)
    (run,) = client.ask("overview")["runs"]
    assert run["name"] == r"\udcff\x1b[2J"
    assert client.ask("run", run=run["name"])["name"] == run["name"]


def test_the_newest_of_many_runs_are_shown(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(run_index, "_MOST_RUNS", 2)
    for number, name in enumerate("bca"):
        os.utime(make_run(tmp_path / name) / "config.yaml", (number, number))
    overview = serve(tmp_path).ask("overview")
    assert ([run["name"] for run in overview["runs"]], overview["hidden"]) == (["a", "c"], 1)


def test_names_under_runs_are_found(serve, tmp_path, monkeypatch):
    make_run(tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    assert serve("mine").ask("overview")["runs"][0]["name"] == "mine"


@pytest.mark.perf
def test_fifty_runs_are_shown_within_two_seconds(serve, tmp_path):
    for number in range(50):
        rows = rows_of(number, num_rows=400)
        make_run(tmp_path / f"run-{number}", rows, seed=number % 5, total_steps=512 + number // 5)
    client, began_s = serve(tmp_path), time.monotonic()
    client.ask("overview")
    for metric in ("return_mean", "fps", "entropy", "explained_variance", "approx_kl"):
        client.ask("curves", metric=metric)
    assert time.monotonic() - began_s < 2


def test_appended_rows_are_read_once(serve, tmp_path):
    run = make_run(tmp_path / "a", constant(1.0), running=True)
    client = serve(tmp_path)
    client.ask("overview")
    append(run, [{"kind": "training", "steps": 110, "return_mean": 1.0}])
    for _ in range(3):
        (curve,) = client.ask("curves", metric="return_mean")["groups"]
    assert curve["x"] == list(range(10, 111, 10))
