"""Things are registered by name, by a program or by the entry points of a distribution."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastrl
from fastrl import registry
from fastrl.errors import ConfigError

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    registry.names("algorithm")
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))


def test_what_is_registered_is_found():
    class Mine:
        pass

    fastrl.register("algorithm", "mine", Mine)
    fastrl.register("algorithm", "mine", Mine)
    assert registry.find("algorithm", "mine", "algorithm.name") is Mine
    assert "mine" in registry.names("algorithm")
    (entry,) = [entry for entry in registry.entries() if entry.name == "mine"]
    assert entry.source == __name__


def test_import_path_is_imported_when_it_is_asked_for():
    fastrl.register("algorithm", "later", "tests.models.broken_module:Net")
    with pytest.raises(
        ConfigError,
        match=r"^algorithm.name: 'tests.models.broken_module:Net' cannot be imported: "
        r"ValueError: not today$",
    ):
        registry.find("algorithm", "later", "algorithm.name")


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("algorithms", "mine", "kind must be 'algorithm' or .*, got 'algorithms'"),
        ("algorithm", "my algorithm", "name must be letters, digits, _ and -, got 'my algorithm'"),
        ("algorithm", "ppo", "algorithm 'ppo' is registered by fastrl already; choose another"),
    ],
)
def test_what_cannot_be_registered_is_rejected(kind, name, message):
    with pytest.raises(ConfigError, match=message):
        fastrl.register(kind, name, object)


@pytest.mark.parametrize("thing", [None, 5, "", "Mine", ["tests:Mine"]])
def test_plain_data_cannot_be_registered(thing):
    with pytest.raises(ConfigError, match="thing must be an object or its import path"):
        fastrl.register("logger", "none", thing)


def test_unknown_name_gets_the_nearest():
    with pytest.raises(
        ConfigError, match=r"^algorithm.name: no algorithm 'pqo'; did you mean 'ppo'\?$"
    ):
        registry.find("algorithm", "pqo", "algorithm.name")
    with pytest.raises(
        ConfigError,
        match=r"^x: no algorithm 'zzzz'; there are a2c, .*, ppo$",
    ):
        registry.find("algorithm", "zzzz", "x")


PROGRAM = """
from fastrl import registry
print(registry.find("algorithm", "theirs", "algorithm.name").__name__)
print([(entry.name, entry.source) for entry in registry.entries() if entry.source != "fastrl"])
"""


def run(program, **options):
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, **options
    )


def test_plug_ins_of_installed_distributions_are_found_and_broken_ones_named(tmp_path):
    (tmp_path / "theirs.py").write_text(
        "import fastrl\nclass Theirs: pass\n"
        "def register():\n"
        "    assert 'ppo' in fastrl.registry.names('algorithm')\n"
        "    fastrl.register('algorithm', 'theirs', Theirs)\n"
    )
    (tmp_path / "broken.py").write_text("raise RuntimeError('not today')\n")
    for name, point in {"good": "theirs:register", "bad": "broken"}.items():
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[fastrl.plugins]\n{name} = {point}\n")
    installed = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    done = run(PROGRAM, env=installed)
    assert done.stdout == "Theirs\n[('theirs', 'good')]\n"
    (said,) = done.stderr.splitlines()
    assert said == "plug-in 'bad' of bad cannot be loaded: RuntimeError: not today"
    # Metadata that lie where a command is given, or beside its configuration, install nothing.
    done = run(PROGRAM, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path)
    assert done.stderr.splitlines()[-1].endswith(
        "no algorithm 'theirs'; there are a2c, airl, appo, bc, dagger, gail, impala, ppo"
    )
    done = run(f"import sys; sys.path.append({str(tmp_path)!r})\n{PROGRAM}")
    assert done.stderr.splitlines()[-1].endswith(
        "no algorithm 'theirs'; there are a2c, airl, appo, bc, dagger, gail, impala, ppo"
    )
