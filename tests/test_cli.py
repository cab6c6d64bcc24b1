from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch  # noqa: F401 - the first command would write that it is loading
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastrl import cli
from fastrl.__main__ import main as run_command
from fastrl.config import load_config
from fastrl.errors import ConfigError, EnvError, WorkerError

CONFIG = "configs/cartpole_ppo.yaml"


@pytest.fixture
def run(capsys):
    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def run_raising(monkeypatch, run):
    """Run a command that raises the given error."""

    def run_raising(error: BaseException) -> tuple[int, str, str]:
        app = typer.Typer()

        @app.command()
        def fail() -> None:
            raise error

        monkeypatch.setattr(cli, "app", app)
        return run()

    return run_raising


def test_lack_of_threads_is_one_line(run_raising):
    code, out, err = run_raising(RuntimeError("can't start new thread"))
    assert (code, out) == (2, "")
    assert err.startswith("fastrl: error: no thread can be started: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 30.5 GiB for an array"),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("can't allocate memory: you tried to allocate 400000000000 bytes"),
    ],
)
def test_lack_of_memory_is_one_line(run_raising, error):
    code, out, err = run_raising(error)
    assert (code, out) == (2, "")
    assert re.fullmatch(
        r"fastrl: error: not enough memory: .* .iB are free; lower .* \[system\]\n", err
    )


def test_no_command_prints_help(run):
    code, out, err = run()
    assert (code, err) == (0, "")
    assert "config" in out
    assert "envs" in out


def test_commands_are_listed_with_whole_sentences(run):
    _, out, _ = run("--help")
    listed = out.partition("Commands:")[2].strip().splitlines()
    assert len(listed) == len(cli.app.registered_commands)
    assert all(line.endswith(".") and not line.endswith("...") for line in listed)


@pytest.mark.parametrize("option", ["--json", "--overlay", "--plots", "--study"])
def test_tuning_is_refused_where_its_result_cannot_be_written(run, tmp_path, option):
    (tmp_path / "file").write_text("")
    wrong = tmp_path if option != "--plots" else tmp_path / "file"
    code, _, err = run("tune", "--env", "CartPole-v1", option, str(wrong))
    assert code == 2
    assert err.startswith(f"fastrl: error: {option}: '{wrong}' is ")


def test_version_is_printed(run):
    code, out, err = run("--version")
    assert (code, err) == (0, "")
    assert out.startswith("fastrl ")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["config", "--nonsense"], "No such option: --nonsense; see fastrl config --help"),
        (["config", "--env"], "Option '--env' requires an argument; see fastrl config --help"),
        (["config", "a.yaml", "b.yaml"], "'b.yaml' is a second configuration file after 'a.yaml'"),
        (["config", "missing.yaml"], "missing.yaml: no such file"),
        (["config", "env.id=A", "seed"], "'A' is a second environment after 'seed'; changes are"),
        (["config", CONFIG, "sampler.groups=0"], "sampler.groups: must be an integer"),
        (["config"], "env: missing"),
        (["envs", "no-such-environment"], "'no-such-environment'"),
    ],
)
def test_bad_input_is_one_line_and_code_2(run, arguments, problem):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("fastrl: error: ")
    assert problem in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "command",
    [
        *(["eval", ""], ["watch", ""], ["plot", ""], ["push", "", "./shared"]),
        *(["dataset", ""], ["new", ""], ["convert", ""], ["pull", "./shared", ""]),
        *(["sweep", CONFIG, "--dir", ""], ["sweep", CONFIG, "--space", ""]),
        *(["record", "reach", "--video", ""], ["record", "reach", "--dataset", ""]),
        *(["tune", CONFIG, "--plots", ""], ["tune", CONFIG, "--study", ""]),
        *(["plot", "reach", "-o", ""], ["play", "CartPole-v1", "--record", ""]),
    ],
)
def test_empty_text_is_no_path(run, command, tmp_path, monkeypatch):
    command = [os.path.abspath(word) if word == CONFIG else word for word in command]
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*command)
    assert (code, out) == (2, "")
    assert "got ''" in err or 'got ""' in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_config_prints_what_will_be_used(run, tmp_path):
    code, out, err = run("config", CONFIG, "seed=7", "algorithm.gamma=0.5")
    assert (code, err) == (0, "")
    (tmp_path / "printed.yaml").write_text(out)
    printed = load_config(tmp_path / "printed.yaml")
    assert printed == load_config(CONFIG, ["seed=7", "algorithm.gamma=0.5"])


def test_config_needs_no_file(run):
    code, out, _ = run("config", "env.id=Pendulum-v1")
    assert code == 0
    assert "id: Pendulum-v1" in out


def test_file_with_an_equals_sign_is_a_file(run, tmp_path):
    path = tmp_path / "lr=1" / "config.yaml"
    path.parent.mkdir()
    path.write_text("env: {id: Pendulum-v1}\n")
    assert run("config", str(path))[0] == 0


def test_long_values_are_not_wrapped(run):
    code, out, _ = run("config", f"env.id={'x' * 400}")
    assert code == 0
    assert f"id: {'x' * 400}\n" in out


def test_schema_is_json(run):
    code, out, err = run("config", "--schema")
    assert (code, err) == (0, "")
    assert "sampler" in json.loads(out)["properties"]


def test_error_of_a_run_is_one_line_and_code_2(run_raising):
    code, _, err = run_raising(EnvError("it broke\n  in two lines"))
    assert (code, err) == (2, "fastrl: error: it broke in two lines [environment]\n")
    assert run_raising(ConfigError("no"))[0] == 2


def test_worker_error_shows_the_remote_traceback_and_code_1(run_raising):
    code, _, err = run_raising(WorkerError("env-worker-3", "env-worker-3 died", "Traceback: boom"))
    assert code == 1
    assert err.startswith("fastrl: error: env-worker-3 died [worker]\n")
    assert "Traceback: boom" in err


def test_interrupt_is_code_130(run_raising):
    assert run_raising(KeyboardInterrupt())[0] == 130


def test_defect_of_fastrl_keeps_its_traceback(run_raising):
    with pytest.raises(ZeroDivisionError):
        run_raising(ZeroDivisionError())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    arguments=st.lists(
        st.text(max_size=12)
        | st.sampled_from(["--schema", "--help", "-h", CONFIG, "seed=1", "env.id=A", "--", "="]),
        max_size=4,
    )
)
def test_any_arguments_are_success_or_one_line(run, arguments):
    code, out, err = run("config", *arguments)
    assert (code == 0 and out) or (code == 2 and len(err.splitlines()) == 1)


HEAVY = {"gymnasium", "matplotlib", "numba", "numpy", "rich", "torch", "yaml"}
"""Packages, each of which takes longer to import than a command's help."""


@pytest.mark.parametrize("command", [["--help"], ["train", "--help"], ["new", "project"]])
def test_quick_commands_need_none_of_the_large_packages(command, tmp_path):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "fastrl", *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "fastrl.cli" in imported
    assert not imported & HEAVY


@pytest.mark.parametrize("command", ["train CartPole-v1", "eval reach", "push reach ./shared"])
def test_terminal_shows_that_a_command_is_loading_before_torch_is_loaded(command):
    code = """
import sys
from fastrl.cli import learn, main

def loading(**how):
    print(sorted({"gymnasium", "numpy", "torch"} & sys.modules.keys()))
    raise SystemExit

def print_nothing(*arguments):
    pass

learn.loading, learn.check_run = loading, print_nothing
main(sys.argv[1:])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split()], capture_output=True, text=True, check=False
    )
    assert done.stdout == "[]\n", done.stderr


def test_a_pipe_shows_that_a_command_is_loading_before_torch_is_loaded(tmp_path):
    (tmp_path / "config.yaml").write_text("env: {id: CartPole-v1}")
    (tmp_path / "checkpoints" / "step_000000000001").mkdir(parents=True)
    command = [sys.executable, "-X", "importtime", "-m", "fastrl", "eval", "."]
    env = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=env
    )
    before, line, after = done.stderr.partition("loading …\n")
    assert line
    assert "torch" not in before
    assert "torch" in after
    assert after.endswith("[checkpoint]\n")


def test_what_is_missing_is_reported_without_waiting_for_torch(tmp_path):
    (tmp_path / "runs" / "mine" / "checkpoints" / "step_000000000001").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "config.yaml").write_text("env: {id: CartPole-v1}")
    wrong = {
        "train CartPole-v9": "unknown environment 'CartPole-v9'; did you mean 'CartPole-v1'?",
        "tune CartPole": "unknown environment 'CartPole'; did you mean 'CartPole-v1'?",
        "play cartpole": "; unknown environment 'cartpole'; did you mean 'CartPole-v1'?",
        "eval mine --checkpoint step_7": "no checkpoint 'step_7'",
        "play mine --checkpoint best": "there are last, step_000000000001",
        "resume mine --checkpoint best": "no checkpoint 'best'",
        "train CartPole-v1 init_from=runs/mine/checkpoints/step_7": "init_from: no checkpoint",
    }
    commands = [
        *wrong,
        "train CartPole-v1 --name ../up",
        "train CartPole-v1 --name mine",
        "train CartPole-v1 init_from=nothing",
        "train CartPole-v1 algorithm.name=bc dataset.path=nothing",
        "resume mine total_steps=x",
        *(f"{each} nothing" for each in ("resume", "eval", "record", "plot")),
        "export nothing --format onnx",
        "export mine --format xyz",
        "record mine --video x.avi",
        "record mine --dataset runs",
        "plot mine -o x.bad",
        "push nothing ./shared",
        "push mine ./runs",
        "pull ./runs runs",
        "pull ./nowhere new",
        "play nothing",
        "play mine seed=1",
        "play CartPole-v1 --record runs",
    ]
    code = """
import sys
sys.modules["torch"] = None
from fastrl.cli import main
print([main(command.split()) for command in sys.argv[1:]])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *commands],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    assert done.stdout == f"{[2] * len(commands)}\n"
    assert len(done.stderr.splitlines()) == len(commands)
    for line, problem in zip(done.stderr.splitlines(), wrong.values(), strict=False):
        assert problem in line
    kinds = {line.split()[-1] for line in done.stderr.splitlines()[len(wrong) :]}
    assert kinds == {"[config]"}


def test_modules_in_the_current_directory_are_found(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import gymnasium\n\n\ndef build():\n    return gymnasium.make('CartPole-v1')\n"
    )
    code = "import sys; sys.path.remove(''); from fastrl.cli import main; sys.exit(main())"
    command = ["throughput", "env.id=mine:build", "--seconds", "0.1"]
    command += ["--repeats", "1", "--warm-up", "0"]
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_what_a_terminal_has_no_code_for_is_no_error():
    done = subprocess.run(
        [sys.executable, "-m", "fastrl", "config", "env.id=Ünïcode"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "id: ?n?code" in done.stdout


def test_ctrl_c_while_modules_are_imported_has_no_traceback(tmp_path):
    kill = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nwhile True: pass\n"
    (tmp_path / "typer.py").write_text(kill)
    done = subprocess.run(
        [sys.executable, "-m", "fastrl", "--version"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])},
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_ctrl_c_as_a_command_ends_has_no_traceback(monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("fastrl.cli.drop_lost_output", interrupted)
    monkeypatch.setattr("gc.freeze", lambda: None)
    monkeypatch.setattr(sys, "argv", ["fastrl", "--version"])
    handler = signal.getsignal(signal.SIGINT)
    try:
        assert run_command() == cli.EXIT_INTERRUPTED
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handler)


def test_a_result_that_cannot_be_written_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fastrl", "completion", "bash"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    line = "fastrl: error: 'standard output' cannot be written: No space left on device [write]\n"
    assert (done.returncode, done.stderr) == (2, line)


@pytest.mark.parametrize("command", [["config"], ["convert", "ppo.yml", "A", "--output"]])
def test_a_loop_of_links_is_one_line(run, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.symlink("loop.yaml", "loop.yaml")
    code, out, err = run(*command, "loop.yaml")
    assert (code, out) == (2, "")
    assert "loop.yaml" in err
    assert len(err.splitlines()) == 1
