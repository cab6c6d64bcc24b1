from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import fastrl
from fastrl import cli
from fastrl.config import load_config
from fastrl.errors import ConfigError
from fastrl.sweeps import Sweep, SweepPlan, TrialPruning, load_space
from fastrl.sweeps.sweep_plan import Pins, make_grid, parse_over, parse_seeds
from fastrl.sweeps.trial_process import shares

ROOT = Path(__file__).parents[2]
TINY = [
    *("sampler.num_envs=4", "sampler.rollout_length=16", "algorithm.minibatch_size=32"),
    *("total_steps=256", "evaluation.enabled=false", "logging.tensorboard=false"),
]


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """Let trials be the stub, in a directory of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("fastrl.sweeps.trial_process.PROGRAM", "tests.sweeps.stub_trial")
    return tmp_path


@pytest.fixture
def sweep(stub, capsys):
    """Run ``fastrl sweep`` on CartPole; return its exit code, output and error output."""

    def sweep(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["sweep", "--env", "CartPole-v1", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return sweep


def orders(run):
    return [json.loads(line) for line in (run / "orders.jsonl").read_text().splitlines()]


def assert_gone(processes):
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]


def until(condition, timeout_s=150.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("text", "seeds"), [("0:3", [0, 1, 2]), ("7", [7]), ("5,3,5", [5, 3]), ("2:4", [2, 3])]
)
def test_seeds_are_a_range_or_a_list(text, seeds):
    assert parse_seeds(text) == seeds


def test_values_are_yaml():
    over = ["algorithm.gamma=0.9,1e-1", "model.hidden_sizes=[64, 64],[8]", "env.id=A-v1"]
    assert parse_over(over) == {
        "algorithm.gamma": [0.9, 0.1],
        "model.hidden_sizes": [[64, 64], [8]],
        "env.id": ["A-v1"],
    }


def test_every_combination_is_a_trial_and_the_first_seed_comes_first():
    grid = make_grid("0:2", ["algorithm.gamma=0.9,0.99,9e-1"])
    trials = [tuple(each.values()) for each in SweepPlan(None, ["env.id=A"], grid).combinations()]
    assert trials == [(0, 0.9), (0, 0.99), (1, 0.9), (1, 0.99)]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "a sweep needs values to vary"),
        (["--seeds", "3:3"], "--seeds must be first:end, such as 0:5"),
        (["--over", "algorithm.gamma"], "--over must be key=value,value"),
        (["--over", "algorithm.gamma=2,3"], "algorithm.gamma: must be a number"),
        (["--over", "algorithm.gama=0.9"], "did you mean algorithm.gamma?"),
        (["--over", "seed=1", "--seeds", "1"], "--seeds and --over seed=…: give only one of them"),
        (["--seeds", "0:2", "run_dir=here"], "run_dir: a sweep makes the directory"),
        (["--over", "cluster.nodes=1,2"], "cluster.nodes: cannot be varied in a sweep"),
        (["--seeds", "0:2", "env.id=NoSuch-v0"], "NoSuch"),
        (["--seeds", "0:2", "callbacks=[nothing:X]"], "callbacks: 'nothing:X' cannot be imported"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(sweep, arguments, problem):
    code, out, err = sweep(*arguments)
    assert (code, out) == (2, "")
    assert problem in err
    assert len(err.splitlines()) == 1
    assert not Path("runs").exists()


def test_a_trial_that_fails_is_one_line_and_is_tried_again_by_the_same_command(sweep):
    command = ["--over", "algorithm.gamma=0.5,0.9", "--seeds", "0:2", "--dir", "all", "--json"]
    code, out, err = sweep(*command, "found.json")
    assert code == 1
    failed = "trial 0 (seed=0 algorithm.gamma=0.5) failed: the environment is on fire"
    assert failed in err.splitlines()
    assert "2 failed" in out
    found = json.loads(Path("found.json").read_text())
    assert [trial["state"] for trial in found["trials"]] == ["failed", "finished"] * 2
    assert found["groups"][0]["values"] == {"algorithm.gamma": 0.9}
    assert found["groups"][0]["scores"] == [0.9, 0.9]
    assert found["best"] in (1, 3)

    Path("cured").touch()
    code, _, err = sweep(*command, "found.json")
    assert code == 0
    assert len([line for line in err.splitlines() if line.startswith("trial ")]) == 2
    assert [each["does"] for each in orders(Path("all/trial-000"))] == ["train", "resume"]
    assert [each["does"] for each in orders(Path("all/trial-001"))] == ["train"]


def test_progress_says_how_many_trials_have_ended_and_how_far_the_others_are(stub):
    said = []

    def listen(line):
        said.append(line)
        if "50%" in line:
            Path("cured").touch()

    base = ["env.id=CartPole-v1", "total_steps=40"]
    Sweep(SweepPlan(None, base, {"algorithm.gamma": [0.75]})).run(print, on_progress=listen)
    assert said[-1] == "training: 0 of 1 trials have ended, 1 running, 50% of the steps done"


def test_a_sweep_is_continued_where_it_is_and_another_one_is_not_mixed_in(sweep):
    assert sweep("--seeds", "0:1")[0] == 0
    (first,) = Path("runs").iterdir()
    assert sweep("--seeds", "0:2")[0] == 0
    assert len(list(Path("runs").iterdir())) == 2
    code, _, err = sweep("--seeds", "0:3", "--dir", str(first))
    assert code == 2
    assert f"'{first}' holds another sweep: its grid differ" in err
    (first / "sweep.jsonl").unlink()
    assert "contains other files" in sweep("--seeds", "0:1", "--dir", str(first))[2]


def test_a_row_that_a_crash_has_cut_is_left_out(sweep):
    sweep("--seeds", "0:1", "--dir", "all")
    with Path("all/sweep.jsonl").open("a") as file:
        file.write('{"trial": 0, "sta')
    assert sweep("--seeds", "0:1", "--dir", "all")[0] == 0
    assert len(orders(Path("all/trial-000"))) == 1


def test_trials_share_the_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(2, 10)), raising=False)
    monkeypatch.setattr("fastrl.sweeps.trial_process.usable_cores", lambda: 8)
    assert shares(3) == [[2, 3], [4, 5, 6], [7, 8, 9]]
    assert shares(8) == [[core] for core in range(2, 10)]
    assert len(shares(20)) == 20
    assert {core for share in shares(20) for core in share} == set(range(2, 10))
    monkeypatch.setattr("fastrl.sweeps.trial_process.usable_cores", lambda: 2)
    assert shares(2) == [[2], [3]]


@pytest.mark.parametrize("cores", [1, 8])
def test_what_depends_on_the_cores_is_that_of_the_whole_machine(monkeypatch, cores):
    for module in ("fastrl.config.models", "fastrl.learning.learner"):
        monkeypatch.setattr(f"{module}.usable_cores", lambda: cores)
    fixed = load_config(None, ["env.id=CartPole-v1", "sampler.num_envs=8"])
    assert Pins().of(fixed) == []
    per_core = load_config(None, ["env.id=CartPole-v1", "sampler.envs_per_worker=8"])
    assert Pins().of(per_core) == [f"sampler.num_env_workers={cores}"]
    images = load_config(
        None, ["env.id=tests.training.bright_quarter:BrightQuarter", "sampler=auto"]
    )
    threads = [f"algorithm.torch_threads={cores}"] if cores > 1 else []
    assert Pins().of(images) == ["sampler.tune_s=null", *threads]


@pytest.mark.timeout(300)  # it starts programs in turn
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_sweep_that_is_ended_ends_its_trials_and_the_same_command_continues(sweep, number, code):
    options = ["--dir", "all", "--over", "algorithm.gamma=0.75,0.7", "--jobs", "1"]
    command = [sys.executable, "-c", CODE, "sweep", "--env", "CartPole-v1", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: Path("all/trial-000/metrics.jsonl").exists())
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert children
    assert_gone(children)
    if number == signal.SIGINT:
        assert "trial 0 (algorithm.gamma=0.75) stopped" in err
        assert "the same command continues" in err
    assert not Path("all/trial-001").exists()
    Path("cured").touch()
    assert sweep(*options)[0] == 0
    assert [each["does"] for each in orders(Path("all/trial-000"))] == ["train", "resume"]


# Runs the command line with the stub in place of trials.
CODE = """
import sys
from fastrl import cli
from fastrl.sweeps import trial_process
trial_process.PROGRAM = "tests.sweeps.stub_trial"
sys.exit(cli.main(sys.argv[1:]))
"""

SPACE = """
trials: 6
sampler: {path: TPESampler, kwargs: {n_startup_trials: 2}}
pruner: {path: ThresholdPruner, kwargs: {lower: 0.3}}
space:
  algorithm.gamma: {choices: [0.75, 0.2]}
  algorithm.learning_rate: {low: 1.0e-5, high: 1.0e-2, log: true}
  algorithm.epochs: {low: 1, high: 4}
"""


def test_optuna_draws_values_and_prunes(sweep):
    pytest.importorskip("optuna")
    Path("space.yaml").write_text(SPACE.replace("0.75, 0.2", "0.9, 0.75"))
    Path("cured").touch()
    assert sweep("--space", "space.yaml", "--dir", "all", "--json", "found.json")[0] == 0
    found = json.loads(Path("found.json").read_text())
    assert [trial["state"] for trial in found["trials"]] == ["finished"] * 6
    assert all(1e-5 <= t["values"]["algorithm.learning_rate"] <= 1e-2 for t in found["trials"])
    assert {type(trial["values"]["algorithm.epochs"]) for trial in found["trials"]} == {int}
    # The best values come from the samples that Optuna was told about.
    assert found["trials"][found["best"]]["score"] == max(t["score"] for t in found["trials"])


def test_trials_that_fall_behind_are_pruned_and_stay_so(sweep):
    pytest.importorskip("optuna")
    text = SPACE.replace("0.75, 0.2", "0.75").replace("lower: 0.3", "lower: 0.8")
    Path("space.yaml").write_text(text.replace("trials: 6", "trials: 2"))
    command = ["--space", "space.yaml", "--dir", "all", "--json", "found.json"]
    for _ in range(2):
        assert sweep(*command)[0] == 0
        found = json.loads(Path("found.json").read_text())
        assert [trial["state"] for trial in found["trials"]] == ["pruned"] * 2
    assert len(orders(Path("all/trial-000"))) == 1


def test_a_search_that_continues_gives_unfinished_trials_their_values_again(sweep):
    pytest.importorskip("optuna")
    Path("space.yaml").write_text(
        SPACE.replace("0.75, 0.2", "0.5").replace("trials: 6", "trials: 2")
    )
    command = ["--space", "space.yaml", "--dir", "all", "--json", "found.json"]
    assert sweep(*command)[0] == 1
    before = json.loads(Path("found.json").read_text())["trials"]
    Path("cured").touch()
    assert sweep(*command)[0] == 0
    after = json.loads(Path("found.json").read_text())["trials"]
    assert [t["state"] for t in before + after] == ["failed"] * 2 + ["finished"] * 2
    assert [t["values"] for t in before] == [t["values"] for t in after]


def test_a_search_that_continues_draws_what_an_uninterrupted_one_draws(sweep):
    pytest.importorskip("optuna")
    Path("space.yaml").write_text(SPACE.replace("0.75, 0.2", "0.9, 0.75"))
    Path("cured").touch()
    command = ["--space", "space.yaml", "--dir", "all", "--jobs", "1", "--json", "found.json"]
    assert sweep(*command)[0] == 0
    whole = json.loads(Path("found.json").read_text())["trials"]
    rows = Path("all/sweep.jsonl").read_text().splitlines(keepends=True)
    Path("all/sweep.jsonl").write_text("".join(rows[:8]))  # trial 3 was killed
    for number in range(3, 6):
        shutil.rmtree(f"all/trial-{number:03d}")
    assert sweep(*command)[0] == 0
    continued = json.loads(Path("found.json").read_text())["trials"]
    assert [t["values"] for t in continued] == [t["values"] for t in whole]


@pytest.mark.parametrize("sampler", ["BruteForceSampler", "TPESampler"])
def test_a_search_ends_when_every_combination_has_been_tried(sweep, sampler):
    pytest.importorskip("optuna")
    space = "space: {algorithm.gamma: {choices: [0.9, 0.8, 0.7]}}"
    Path("space.yaml").write_text(f"trials: 9\nsampler: {sampler}\n{space}")
    command = ["--space", "space.yaml", "--dir", "all", "--jobs", "2", "--json", "found.json"]
    for _ in range(2):
        assert sweep(*command)[0] == 0
        found = json.loads(Path("found.json").read_text())
        assert sorted(t["values"]["algorithm.gamma"] for t in found["trials"]) == [0.7, 0.8, 0.9]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("trials: 3", "space: missing; must be a mapping"),
        ("- 1", "space.yaml: must be a mapping of keys to values"),
        ("trials: many", "trials: must be an integer of at least 1"),
        ("trails: 3", "trails: unknown key; did you mean trials?"),
        ("space: {a.b: 5}", "space.a.b: must be a mapping with keys among low, high, log"),
        ("space: {a.b: {low: x, high: 2}}", "space.a.b.low: must be an integer or a number"),
        ("space: {a.b: {min: 1, high: 2}}", "space.a.b.min: unknown key; known are low, high"),
        ("space: {a.b: {low: 1}}", "space.a.b: needs low and high, or choices"),
        ("space: {a.b: {low: 2, high: 1}}", "a.b: ValueError"),
        ("space: {a.b: {low: 0.5, high: 1.0, step: 0.3}}", "a.b: high must be low plus a multiple"),
        ("sampler: GridSampler\nspace: {a.b: {low: 1, high: 2}}", "--over runs a grid"),
        ("sampler: Tpe\nspace: {a.b: {low: 1, high: 2}}", "sampler: 'Tpe' is not in optuna"),
        ("pruner: {path: MedianPruner, kwargs: {n: 1}}\nspace: {a.b: {low: 1, high: 2}}", "'n'"),
        ("space: {algorithm.gama: {low: 0.1, high: 0.2}}", "did you mean algorithm.gamma?"),
        ("[1", "space.yaml:"),
    ],
)
def test_mistakes_in_a_space_are_one_line(sweep, text, problem):
    pytest.importorskip("optuna")
    Path("space.yaml").write_text(text)
    code, _, err = sweep("--space", "space.yaml")
    assert code == 2
    assert problem in err
    assert len(err.splitlines()) == 1


def test_pruning_is_a_callback_of_own_objectives(tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    config = load_config(None, ["env.id=CartPole-v1", "sampler=serial", *TINY])
    evaluation = config.evaluation.model_copy(
        update={"enabled": True, "every_steps": 64, "episodes": 1, "final_episodes": 1}
    )
    config = config.model_copy(update={"evaluation": evaluation, "total_steps": 100_000})
    study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(lower=1e6))
    pruning = TrialPruning(study.ask())
    trained = fastrl.train(config, callbacks=[pruning])
    assert pruning.pruned
    assert trained.outcome.steps < config.total_steps


def test_a_trial_learns_what_train_learns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    overrides = ["env.id=CartPole-v1", *TINY]
    sweep = Sweep(SweepPlan(None, overrides, {"seed": [3]}), Path("all"), 1)
    cores = os.sched_getaffinity(0)
    monkeypatch.setattr("fastrl.sweeps.sweep.shares", lambda _: [[min(cores)]])
    (trial,) = sweep.run(print).trials
    alone = fastrl.train(load_config(None, [*overrides, "seed=3"]))
    models = [
        max(path.glob("checkpoints/step_*")) / "model.safetensors"
        for path in (trial.path, alone.path)
    ]
    assert models[0].read_bytes() == models[1].read_bytes()
    assert trial.state == "finished"


def test_a_plan_takes_values_of_numpy_and_rejects_what_yaml_cannot_write():
    grid = {"algorithm.gamma": np.array([0.5, 0.9, 0.5]), "seed": np.arange(2)}
    plan = SweepPlan(None, ["env.id=CartPole-v1"], grid)
    assert plan.grid == {"algorithm.gamma": [0.5, 0.9], "seed": [0, 1]}
    for values in ("0:5", [], 5, [object()]):
        with pytest.raises(ConfigError, match="grid must have a list of values"):
            SweepPlan(None, ["env.id=CartPole-v1"], {"seed": values})


def test_spaces_and_grids_exclude_each_other(tmp_path):
    pytest.importorskip("optuna")
    (tmp_path / "space.yaml").write_text("space: {algorithm.gamma: {low: 0.1, high: 0.9}}")
    space = load_space(tmp_path / "space.yaml")
    with pytest.raises(ConfigError, match="--space draws all values"):
        SweepPlan(None, ["env.id=CartPole-v1"], {"seed": [1]}, space)
