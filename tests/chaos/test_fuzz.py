"""Input made of chance: the short form of ``scripts/chaos.py --fuzz``."""

from scripts.storm import fuzz
from scripts.storm.fuzz_commands import commands
from scripts.storm.fuzz_constructors import constructors


def test_any_input_is_accepted_or_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(fuzz, "SHARES", {**fuzz.SHARES, constructors: 0.2, commands: 0.01})
    found = fuzz.fuzz_configurations(60, max_s=100.0, seed=0)
    assert found["wrong"] == []
    assert all(found[kind]["refused"] for kind in ("overrides", "files", "constructors"))
