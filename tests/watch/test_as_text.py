"""Runs as text and as JSON, and the command that serves the page."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import urllib.request

import pytest
from rich.console import Console

from fastrl import cli
from fastrl.watch.as_text import show
from fastrl.watch.run_index import RunIndex
from tests.terminal import Terminal
from tests.watch.made_runs import fault, make_run, rows_of


@pytest.fixture
def runs(tmp_path):
    faults = [fault()]
    make_run(tmp_path / "CartPole-v1-ppo-s0-20261130-010203", seed=0, finished=True)
    make_run(tmp_path / "CartPole-v1-ppo-s1-20261130-010204", seed=1, faults=faults)
    return tmp_path


def text_of(runs, width):
    console = Console(file=io.StringIO(), width=width)
    show(RunIndex([runs]), console)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_text_has_what_the_page_has_and_fits(runs, width):
    text = text_of(runs, width)
    for part in (
        "CartPole-v1-ppo-s1",
        "100%",
        "steps/s",
        "env-worker-1",
        "49%",
        "31% learning",
        "with training",
        "8,000",
        "seed",
    ):
        assert part in text
    assert re.search(r" [67]\d%", text)  # of the limit
    assert re.search(r"share +– +60% +[67]\d%", text)
    assert "faults: 1" in text
    assert "killed by signal 9" in text
    assert max(map(len, text.splitlines())) <= width
    assert ("█" in text) == (width == 120)


def test_no_run_yet_is_one_line(tmp_path):
    assert text_of(tmp_path, 200) == f"no run in {tmp_path} yet\n"


def test_json_has_every_run(runs, capsys):
    assert cli.main(["watch", str(runs), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["seed"] for run in found["runs"]] == [1, 0]
    assert found["runs"][0]["workers"]["env-worker-0"] == [0.52, 0.21, 0.24, 0.03]
    assert found["faults"]["total"] == 1


def test_a_directory_that_is_missing_is_one_line(capsys, tmp_path):
    assert cli.main(["watch", str(tmp_path / "nothing")]) == 2
    assert re.fullmatch(
        r"fastrl: error: '\S+/nothing' is not a directory of runs \[config\]\n",
        capsys.readouterr().err,
    )


@pytest.mark.parametrize("quiet", [False, True])
def test_command_prints_an_address_and_serves_until_ctrl_c(runs, quiet):
    command = [sys.executable, "-m", "fastrl", "watch", str(runs), *(["--quiet"] if quiet else [])]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            url = process.stdout.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
            with urllib.request.urlopen(f"{url}api/overview", timeout=20) as answer:
                assert len(json.load(answer)["runs"]) == 2
        finally:
            process.send_signal(signal.SIGINT)
            _, hints = process.communicate(timeout=20)
    assert process.returncode == 130
    port = url.rpartition(":")[2].strip("/")
    assert (f"ssh -L {port}:127.0.0.1:{port} " in hints) is not quiet
    assert "Traceback" not in hints


def test_text_on_a_terminal_is_renewed_and_remains_at_the_end(runs):
    path = runs / "now"
    make_run(path, rows_of(0)[:30], running=True, total_steps=60_000)
    command = [sys.executable, "-m", "fastrl", "watch", str(runs), "--terminal"]
    terminal = Terminal(command, 80, 50)
    try:
        terminal.wait_for("●  now")
        terminal.wait_for("50%")
        (path / "summary.json").write_text("{}")
        (path / "metrics.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows_of(0)[:45])
        )
        assert terminal.wait() == 0
        shown = str(terminal.screen)
        assert shown.count("●  now") == 1
        assert "75%" in shown
    finally:
        terminal.close()


def test_numbers_beyond_all_measure_leave_the_rest_readable(tmp_path):
    values = (1e308, -1e308, 1e40, 5.0, -1e40)
    rows = [{"kind": "training", "steps": n, "return_mean": v} for n, v in enumerate(values)]
    for name in ("a", "b"):
        make_run(tmp_path / name, rows)
    for width in (60, 120):
        assert "-1e+40" in text_of(tmp_path, width)
    RunIndex([tmp_path]).curves("return_mean", "training")
