from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import gymnasium
import numpy as np
import psutil
import pytest
from gymnasium import spaces
from matplotlib.figure import Figure

from fastrl.config import load_config
from fastrl.errors import EnvError
from fastrl.spec import Topology
from fastrl.system import circumstances
from fastrl.throughput.limits import Limit

ROOT = Path(__file__).parents[1]
EPISODE = 7
WRAPPER = "gymnasium.wrappers:FlattenObservation"
TINY = [
    "sampler.envs_per_worker=2",
    "sampler.num_env_workers=1",
    "sampler.rollout_length=8",
    "env.id=test_compare:CountingEnv",
]


class CountingEnv(gymnasium.Env):
    """Adds its steps to a file, which other processes can read; episodes have 7 steps."""

    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, directory):
        path = Path(directory) / f"{uuid.uuid4()}.steps"
        self._steps = np.memmap(path, np.int64, "w+", shape=1)
        self._t = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._t = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self._steps += 1
        self._t += 1
        return np.zeros(3, np.float32), 0.0, self._t == EPISODE, False, {}


def steps_made(directory):
    return sum(int(np.fromfile(path, np.int64)[0]) for path in directory.glob("*.steps"))


@pytest.fixture(scope="module", autouse=True)
def _importable():
    """Let workers and this module import the scripts, and workers this module's environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        patch.syspath_prepend(ROOT / "tests")
        yield


@pytest.fixture
def task(tmp_path):
    return task_of(*TINY, f"env.kwargs.directory={tmp_path}")


def task_of(*overrides):
    config = load_config(None, list(overrides))
    return importlib.import_module("comparison.task").Task.from_config(config)


def options(**changes):
    return importlib.import_module("comparison.rounds").Options(sizes=(3,), **changes)


def method_of(name, task):
    return importlib.import_module("comparison.rounds").candidates(name, task, options())[0]


def check_counts(name, task, directory):
    method = method_of(name, task)
    method.start()
    try:
        for _ in range(2):
            before = steps_made(directory)
            frames = method.run(0.1)
            method.rest()
            assert frames == steps_made(directory) - before
            assert frames > 2 * EPISODE
    finally:
        method.close()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    "name",
    [
        *("gymnasium-sync", "fastrl-default"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("single-env", "gymnasium-async")),
    ],
)
def test_counts_every_step_no_reset_and_leaves_no_process(name, task, tmp_path):
    check_counts(name, task, tmp_path)


@pytest.mark.parametrize("name", ["sb3-dummy", pytest.param("sb3-subproc", marks=pytest.mark.slow)])
def test_sb3_counts_every_step_no_reset_and_leaves_no_process(name, task, tmp_path):
    pytest.importorskip("stable_baselines3")
    check_counts(name, task, tmp_path)


@pytest.mark.parametrize("name", ["gymnasium-native", "envpool-sync"])
def test_batched_cartpole_is_not_credited_for_resets(name):
    if name == "envpool-sync":
        pytest.importorskip("envpool")
    method = method_of(name, task_of("env.id=CartPole-v1"))
    method.start()
    total = sum(method.run(1e-9) for _ in range(400))
    method.close()
    # A random policy's episodes have about 22 steps, so one call in 23 is a reset.
    assert 0.8 * 400 * 3 < total < 400 * 3


def test_asynchronous_envpool_does_not_count_what_was_stepped_before():
    pytest.importorskip("envpool")
    rounds = importlib.import_module("comparison.rounds")
    task = task_of("env.id=CartPole-v1")
    method = rounds.candidates("envpool-async", task, rounds.Options(sizes=(8,)))[0]
    assert method.settings == {"num_envs": 8, "batch_size": 4, "torch_threads": 1}
    method.start()
    # All eight have been reset; the batch after these two is the first to be stepped.
    assert method.run(1e-9) == 4
    method.close()


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["env.id=Blackjack-v1"], "observes something else"),
        (["env.id=CartPole-v1", f"env.wrappers=['{WRAPPER}']"], "takes no wrappers"),
        (["env.id=Crafter-v1"], "has no environment 'Crafter-v1'"),
    ],
)
def test_envpool_is_left_out_where_it_has_not_the_same_environment(overrides, reason):
    pytest.importorskip("envpool")
    with pytest.raises(EnvError, match=reason):
        method_of("envpool-sync", task_of(*overrides)).start()


def test_command_writes_json_table_and_plot(tmp_path, capsys):
    compare = importlib.import_module("compare")
    found, plot = tmp_path / "found.json", tmp_path / "found.png"
    code = compare.main(
        [
            *TINY,
            f"env.kwargs.directory={tmp_path}",
            *("--methods", "single-env", "gymnasium-sync", "fastrl-default", "fastrl-best"),
            *("--num-envs", "2", "3", "--best", "4,1,0,1"),
            *("--seconds", "0.1", "--repeats", "3", "--scan-seconds", "0.05"),
            *("--json", str(found), "--plot", str(plot)),
        ]
    )
    assert code == 0
    data = json.loads(found.read_text())
    assert [each["method"] for each in data["results"]] == [
        "single-env",
        "gymnasium-sync",
        "fastrl-default",
        "fastrl-best",
    ]
    for each in data["results"]:
        assert each["env"] == "test_compare:CountingEnv"
        assert len(each["fps"]) == 3
        assert 0 < each["fps_min"] <= each["fps_median"] <= each["fps_max"]
    assert data["results"][1]["settings"]["num_envs"] in (2, 3)
    assert data["results"][3]["settings"] == {
        "envs_per_worker": 4,
        "num_env_workers": 1,
        "num_model_workers": 0,
        "groups": 1,
    }
    assert {"machine", "versions", "date", "command", "ratios", "scan"} <= data.keys()
    assert data["best_vector_env"] == "gymnasium-sync"
    table = found.with_suffix(".md").read_text()
    assert table in capsys.readouterr().out
    assert "| gymnasium SyncVectorEnv | num_envs=" in table
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert multiprocessing.active_children() == []
    again = tmp_path / "again.png"
    assert compare.main(["--redraw", str(found), "--plot", str(again)]) == 0
    assert again.read_bytes() == plot.read_bytes()


def test_picture_has_no_bars_since_its_axis_has_no_zero(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    found = json.loads((ROOT / "results/compare_CartPole-v1.json").read_text())
    importlib.import_module("comparison.picture").draw(found, tmp_path / "x.png")
    (axes,) = figures[0].axes
    assert axes.get_xscale() == "log"
    assert list(axes.patches) == []
    points = max((each.get_offsets() for each in axes.collections), key=len)
    assert len(points) == len(found["results"])
    low, high = axes.get_xlim()
    for result in found["results"]:
        assert low < result["fps_min"] <= result["fps_max"] < high


def test_missing_package_leaves_a_method_out_and_says_so(task, monkeypatch, capsys):
    rounds = importlib.import_module("comparison.rounds")
    monkeypatch.setattr(rounds.PEERS["sb3-dummy"], "requires", "no_such_package")
    wanted = options(methods=("sb3-dummy", "single-env"), seconds=0.05, repeats=1, scan_s=0.05)
    comparison = rounds.compare(task, wanted)
    assert [row["method"] for row in comparison["results"]] == ["single-env"]
    assert "no_such_package is not installed" in comparison["skipped"]["sb3-dummy"]
    assert "sb3-dummy          left out: no_such_package" in capsys.readouterr().err


def test_list_names_every_method(capsys):
    assert importlib.import_module("compare").main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "single-env",
        "gymnasium-sync",
        "gymnasium-async",
        "gymnasium-native",
        "sb3-dummy",
        "sb3-subproc",
        "envpool-sync",
        "envpool-async",
        "fastrl-python",
        "fastrl-default",
        "fastrl-best",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--best", "4,1,0"], "'4,1,0' is not n,N,M,groups"),
        (["--best", "3,1,0,2"], "divisible by groups"),
        (["--num-envs", "0"], "must be a whole number of at least 1, got '0'"),
        (["--seconds", "nan"], "must be a number of at least 0, got 'nan'"),
        (["--methods", "gym"], "invalid choice: 'gym'"),
    ],
)
def test_wrong_argument_is_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module("compare").main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_unknown_environment_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compare.py", "--env", "CartPole-v99"])
    main = importlib.import_module("compare").main
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module("command_line").run(main)
    assert stopped.value.code == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("compare: error: ")
    assert "CartPole-v99" in complaint
    assert complaint.count("\n") == 1


@pytest.fixture
def report():
    return importlib.import_module("comparison.report")


@pytest.fixture
def rows():
    found = {
        "single-env": ("single env", {"num_envs": 1, "torch_threads": 1}, [2, 4, 8]),
        "gymnasium-sync": ("Sync", {"num_envs": 8, "torch_threads": 2}, [5, 8, 20]),
        "sb3-dummy": ("Dummy", {"num_envs": 8}, [6, 6, 7]),
        "envpool-sync": ("EnvPool", {"num_envs": 8}, [300, 300, 300]),
        "fastrl-best": ("fastrl", {"envs_per_worker": 4}, [20, 24, 40]),
    }
    quantity = importlib.import_module("bench.results").quantity
    return [
        {"method": method, "label": label, "settings": settings, **quantity("fps", fps)}
        for method, (label, settings, fps) in found.items()
    ]


# 2 / (0.05 + 0.05), 2 / (0.03 + 0.02) and 2 / (0.03 + 0.01) frames per second.
LIMITS = [Limit(2, 0.05, 0.05).fps, Limit(2, 0.03, 0.02).fps, Limit(2, 0.03, 0.01).fps]


def test_ratios_are_medians_of_ratios_within_rounds(report, rows):
    assert report.best_vector_env(rows) == "gymnasium-sync"
    ratios = report.ratios(rows, LIMITS)["fastrl-best"]
    assert ratios == pytest.approx(
        {
            "single-env": 6.0,  # of 10, 6, 5
            "gymnasium-sync": 3.0,  # of 4, 3, 2
            "sb3-dummy": 4.0,  # of 3.33, 4, 5.71
            "envpool-sync": 0.08,
            "best-vector-env": 3.0,
            "limit": 0.8,  # of 1, 0.6, 0.8; the ratio of the medians would be 0.6
        }
    )


def test_table_ranks_methods_and_gives_no_share_of_the_limit_to_compiled_ones(report, rows):
    found = {"env": "x", "results": rows, "limits": [{"fps": fps} for fps in LIMITS]}
    table = report.markdown(found | {"policy": "MLP", **circumstances()})
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in lines]
    assert [row[0] for row in cells] == ["single env", "Dummy", "Sync", "fastrl", "EnvPool"]
    assert cells[2] == ["Sync", "num_envs=8, torch_threads=2", "8", "5 … 20", "2.5", "25%"]
    assert cells[3] == ["fastrl", "n=4", "24", "20 … 40", "6.0", "80%"]
    assert cells[4][-1] == "–"


def test_default_grid_has_one_env_worker_per_core(task):
    grid = importlib.import_module("comparison.rounds").default_grid(task)
    assert all(isinstance(topology, Topology) for topology in grid)
    assert {topology.num_env_workers for topology in grid} == {task.cores}
    assert {topology.num_model_workers for topology in grid} == {0, 1}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_ends_everything_within_5s():
    command = [sys.executable, str(ROOT / "scripts" / "compare.py"), "--env", "CartPole-v1"]
    command += ["--methods", "gymnasium-async", "fastrl-default", "--num-envs", "2"]
    command += ["--scan-seconds", "0.1", "--seconds", "60", "--no-plot"]
    with subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("gymnasium-async")
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(5) == 130
        _, alive = psutil.wait_procs(children, timeout=5)
        assert alive == []
        assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([], 0.0),
        (["env.kwargs.repeat_action_probability=0.25"], 0.25),
        (["env.wrappers=[]"], None),
        (["env.kwargs={frameskip: 4}"], None),
        (["env.id=CartPole-v1"], None),
    ],
)
def test_envpool_plays_only_games_that_are_preprocessed_as_its_own(changes, expected):
    from comparison.peers import same_game

    game = same_game(load_config(ROOT / "configs/breakout_throughput.yaml", changes).env)
    if expected is None:
        assert game is None
    else:
        name, arguments = game
        assert name == "Breakout-v5"
        assert arguments["repeat_action_probability"] == expected
        assert arguments["stack_num"] == 1
