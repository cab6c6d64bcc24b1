"""Real tunings, short ones: they find something, keep it, and leave nothing behind."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import torch

from fastrl.cli import main
from fastrl.cli.speed import parse_batch, parse_seconds
from fastrl.config import load_config
from fastrl.errors import ConfigError, FastrlError
from fastrl.sampling import build
from fastrl.tuning import Candidate, Sample, TrialError, tune, workbench
from fastrl.tuning.tune import TuneOptions, Tuning, could_find, study_name
from fastrl.tuning.workbench import Workbench
from tests.tuning.busy import used_s
from tests.tuning.failing_env import failing_once

TINY = ["env.id=CartPole-v1", "sampler.envs_per_worker=4", "sampler.num_env_workers=2"]


def children():
    return {p.pid for p in psutil.Process().children(recursive=True) if "resource" not in p.name()}


def test_a_workbench_measures_in_turn_and_ends_what_it_started():
    config = load_config(None, [*TINY, "sampler.rollout_length=8"])
    with Workbench(config) as bench:
        bench.calibrate(Candidate(4, 2))
        before = children()
        for candidate in (Candidate(4, 2), Candidate(8, 1), Candidate(4, 2), Candidate(4, 2, 1, 2)):
            sample = bench(candidate, 0.05)
            assert sample.fps > 0
            assert set(sample.notes.shares) <= {"env-worker", "model-worker"}
            # Of all candidates the two latest are kept.
            assert len(children() - before) <= 2 + 3
    assert not children() - before


@pytest.mark.parametrize("objective", ["fps", "train_fps"])
def test_a_candidate_whose_steps_are_long_rests_while_others_are_measured(objective):
    overrides = ["env.id=tests.tuning.failing_env:make_busy", "sampler.rollout_length=2"]
    overrides += ["sampler.mode=async", "algorithm.minibatch_size=16"]
    with Workbench(load_config(None, [*TINY, *overrides]), objective) as bench:
        # No counter moves in the 0.16 s of a group's step.
        before = children()
        bench(Candidate(32, 1, 1), 0.01)
        pids = list(children() - before)
        assert len(pids) == 2
        before_s = used_s(pids)
        time.sleep(0.1)
        assert used_s(pids) - before_s < 0.04


def test_candidates_do_not_build_the_environment_just_to_look_at_it(monkeypatch):
    def refuse(*_):
        raise AssertionError("probed again")

    with Workbench(load_config(None, [*TINY, "sampler.rollout_length=8"])) as bench:
        monkeypatch.setattr(build, "call_in_child", refuse)
        assert bench(Candidate(4, 1), 0.05).fps > 0


def test_training_counts_the_learner():
    config = load_config(None, [*TINY, "sampler.rollout_length=8", "algorithm.minibatch_size=16"])
    with Workbench(config, "train_fps") as bench:
        sample = bench(Candidate(4, 2), 0.05)
    assert sample.fps > 0
    assert 0 < sample.notes.learner_share < 1


def test_a_candidate_that_fails_leaves_nothing_behind():
    config = load_config(None, ["env.id=tests.tuning.failing_env:make", *TINY[1:]])
    with Workbench(config) as bench:
        before = children()
        with pytest.raises(FastrlError, match="on purpose"):
            bench(Candidate(16, 1), 0.05)
        assert not children() - before
        assert bench(Candidate(4, 1), 0.05).fps > 0


def test_a_candidate_that_takes_too_long_is_given_up():
    config = load_config(None, ["env.id=tests.tuning.failing_env:make_slow", *TINY[1:]])
    with Workbench(config, limit_s=1.0) as bench:
        # Its workers are not replaced either.
        with pytest.raises(TrialError, match="took longer than 1 s"):
            bench(Candidate(64, 1), 0.05)
        assert bench(Candidate(1, 1), 0.05).fps > 0


@pytest.mark.parametrize("sleeps", ["false", "true"])
def test_workers_of_a_candidate_are_replaced_as_in_a_run(tmp_path, sleeps):
    config = load_config(None, [*failing_once(tmp_path / "flag", sleeps), *TINY[1:]])
    with Workbench(config) as bench:
        assert bench(Candidate(2, 1), 0.2).fps > 0
    assert (tmp_path / "flag").exists()


def test_a_candidate_fails_where_a_run_would(tmp_path):
    overrides = [*failing_once(tmp_path / "flag", "false"), "faults.max_restarts=0"]
    with Workbench(load_config(None, [*overrides, *TINY[1:]])) as bench:
        with pytest.raises(FastrlError, match="exit code 3"):
            bench(Candidate(2, 1), 0.2)
        assert bench(Candidate(2, 1), 0.05).fps > 0


def test_a_candidate_that_is_slow_to_start_is_measured_like_any_other():
    config = load_config(None, ["env.id=tests.tuning.failing_env:make_slow_to_build", *TINY[1:]])
    with Workbench(config, limit_s=1.0, start_limit_s=60.0) as bench:
        began_s = time.perf_counter()
        assert bench(Candidate(16, 1), 0.05).fps > 0
        assert time.perf_counter() - began_s > 1.6


def test_a_short_budget_is_for_trials_and_not_for_setting_up(monkeypatch):
    class Bench(Workbench):
        def calibrate(self, candidate):
            time.sleep(1.0)
            return SimpleNamespace(fits=lambda c: True)

        def __call__(self, candidate, seconds):
            return Sample(1000.0 * candidate.num_env_workers)

    monkeypatch.setattr(tune, "Workbench", Bench)
    for with_limit, budget_s in ((False, 2.0), (True, 3.0)):
        options = TuneOptions("train_fps", budget_s, with_limit=with_limit)
        with Tuning(load_config(None, TINY), options) as tuning:
            monkeypatch.setattr(tuning, "_measured_limit", lambda best: None)
            tried = {trial.candidate for trial in tuning.run().finding.trials}
        assert len(tried) > 1


def test_a_batch_is_kept_in_training():
    config = load_config(None, [*TINY, "sampler.rollout_length=8"])
    options = TuneOptions("train_fps")
    assert could_find(config, options, Candidate(8, 1))
    assert not could_find(config, options, Candidate(8, 2))
    assert could_find(config, replace(options, batch=(16, 16)), Candidate(8, 2))


def test_memory_is_judged_by_a_few_environments_whatever_the_groups(monkeypatch):
    """Starting 300 of these would fail."""
    monkeypatch.setattr(workbench, "_CALIBRATION_S", 0.5)  # no episode ends, which it waits for
    config = load_config(
        None,
        [
            "env.id=tests.tuning.failing_env:make",
            "sampler.rollout_length=8",
            "sampler.num_env_workers=1",
        ],
    )
    with Workbench(config) as bench:
        need = bench.calibrate(Candidate(300, 1, 1, 3))
    # What 300 hold, taken for what 6 hold, would be far too much.
    assert 0 <= need.env_bytes < need.process_bytes
    assert need.fits(Candidate(8, 1))


def test_names_of_studies_depend_on_what_matters():
    config = load_config(None, TINY)

    def name(*overrides, **options):
        return study_name(load_config(None, [*TINY, *overrides]), TuneOptions(**options))

    assert name() == study_name(config, TuneOptions(budget_s=5))
    assert name("sampler.envs_per_worker=64") == name()
    different = {
        name(),
        name(objective="train_fps"),
        name(batch=(8, 8)),
        name("env.max_episode_steps=7"),
        name("model.hidden_sizes=[8]"),
        name("sampler.rollout_length=3"),
        name("sampler.engine=eager"),
        name("sampler.lock_step=true"),
        name("sampler.debug=true"),
        name("faults.bad_numbers=truncate_episode"),
    }
    assert len(different) == 10


def test_what_was_found_with_other_devices_is_not_taken_for_ones_own(monkeypatch):
    config = load_config(None, TINY)
    name = study_name(config, TuneOptions())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert study_name(config, TuneOptions()) != name


def test_training_that_cannot_be_set_up_gives_its_memory_back(monkeypatch):
    def refuse(*_):
        raise ConfigError("no learner")

    monkeypatch.setattr(workbench, "endless_learner", refuse)
    config = load_config(None, [*TINY, "sampler.rollout_length=8"])
    with Workbench(config, "train_fps") as bench:
        gc.collect()  # or what other tests have dropped is closed meanwhile
        before = psutil.Process().num_fds()
        with pytest.raises(ConfigError, match="no learner"):
            bench(Candidate(4, 2), 0.05)
        assert psutil.Process().num_fds() == before


@pytest.mark.parametrize(("text", "found"), [(None, None), ("64", (64, 64)), ("8:64", (8, 64))])
def test_batches(text, found):
    assert parse_batch(text) == found


@pytest.mark.parametrize("text", ["", "x", "8:", ":8", "64:8", "0", "-3", "1.5", "9" * 5000])
def test_bad_batches(text):
    with pytest.raises(ConfigError, match="--batch") as caught:
        parse_batch(text)
    assert len(str(caught.value)) < 200


def test_budgets():
    assert (parse_seconds("90"), parse_seconds("120s"), parse_seconds("2m")) == (90, 120, 120)
    for text in ("", "s", "nan", "-3s", "1h", "1e9"):
        with pytest.raises(ConfigError, match="--budget"):
            parse_seconds(text)


def cli(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "fastrl", "tune", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.timeout(300)
def test_command_writes_everything_it_is_asked_for(tmp_path, capsys):
    config = tmp_path / "run.yaml"
    text = "# kept\nenv: {id: CartPole-v1}\nsampler:\n  envs_per_worker: 4\n"
    config.write_text(text)
    found = tmp_path / "found.json"
    options = ["--budget", "2s", "--write", "--json", str(found)]
    options += ["--plots", str(tmp_path / "plots"), "--study", str(tmp_path / "study.jsonl")]
    assert main(["tune", str(config), *options]) == 0
    assert "frames per second" in capsys.readouterr().out
    report = json.loads(found.read_text())
    assert {"best", "fps_median", "default_fps_median", "limit_fps", "trials", "wall_s"} <= set(
        report
    )
    assert {"envs_per_worker", "num_env_workers", "num_model_workers", "groups", "device"} <= set(
        report["best"]
    )
    written = load_config(tmp_path / "run.tuned.yaml")
    assert written.sampler.envs_per_worker == report["best"]["envs_per_worker"]
    assert config.read_text() == text
    assert len(list((tmp_path / "plots").glob("*.png"))) == 3
    assert (tmp_path / "study.jsonl").is_file()


def test_interrupting_prints_the_best_so_far_and_leaves_nothing_behind(tmp_path):
    process = cli(
        *("--env", "CartPole-v1", "--budget", "300s", "--study", str(tmp_path / "study.jsonl")),
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    for line in process.stderr:
        if "×" in line:
            break
    workers = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 130, errors
    assert "frames per second" in output
    assert "Traceback" not in errors
    deadline = time.monotonic() + 30
    while any(p.is_running() and p.status() != "zombie" for p in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_interrupt_before_the_first_trial_is_no_error(monkeypatch, capsys, tmp_path):
    def interrupted(search):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastrl.tuning.search.Search.run", interrupted)
    assert main(["tune", "--env", "CartPole-v1", "--study", str(tmp_path / "study.jsonl")]) == 130
    assert "error" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--env", "CartPole-v1", "--budget", "soon"], "--budget"),
        (["--env", "CartPole-v1", "--objective", "speed"], "--objective"),
        (["--env", "CartPole-v1", "--write"], "--write"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, told):
    assert main(["tune", *arguments]) == 2
    errors = capsys.readouterr().err
    assert told in errors
    assert len(errors.strip().splitlines()) == 1
