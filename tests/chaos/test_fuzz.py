"""Input made of chance: the short form of ``python -m tests.chaos.storm --fuzz``."""

from tests.chaos.storm import fuzz
from tests.chaos.storm.fuzz_commands import commands
from tests.chaos.storm.fuzz_constructors import constructors


def test_any_input_is_accepted_or_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(fuzz, "SHARES", {**fuzz.SHARES, constructors: 0.2, commands: 0.01})
    found = fuzz.fuzz_configurations(40, max_s=100.0, seed=0)
    assert found["wrong"] == []
    assert all(found[kind]["refused"] for kind in ("overrides", "files", "constructors"))
