"""What is kept with every figure."""

from __future__ import annotations

import re
import sys

import torch

from fastrl.cores import usable_cores
from fastrl.machine import circumstances, versions


def test_circumstances_say_where_when_and_how(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scripts/measure.py", "--env", "a b"])
    found = circumstances()
    assert found["command"] == "python scripts/measure.py --env 'a b'"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])
    assert found["machine"]["cores"] == usable_cores()
    assert found["machine"]["memory_gib"] > 0
    assert found["versions"]["torch"] == torch.__version__


def test_versions_of_what_is_not_installed_are_left_out():
    found = versions("pytest", "no-such-package")
    assert "pytest" in found
    assert "no-such-package" not in found
    assert found.items() >= versions().items()
