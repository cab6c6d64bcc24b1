"""A long run: what does not exist is told before it begins."""

import sys

import pytest

from scripts.command_line import run
from tests.chaos import soak


@pytest.mark.parametrize("arguments", ["--env CartPole-1", "--train no_such_config.yaml"])
def test_what_does_not_exist_is_told_in_one_line(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["soak.py", *arguments.split()])
    with pytest.raises(SystemExit, match="2"):
        run(soak.main)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("soak: error: ")
