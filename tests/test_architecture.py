"""The house rules that a machine can check: which room may import which, and how long files are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastrl"
MODULES = sorted(PACKAGE.glob("**/*.py"))

# From the ground up: a module imports its own room and the floors below.
FLOORS = (
    (
        "errors",
        "cgroups",
        "extras",
        "allocator",
        "closing",
        "global_streams",
        "once",
        "live_display",
    ),
    ("arguments", "compiled", "cores", "free_memory", "imports"),
    ("registry",),
    ("builtin",),
    ("devices", "machine"),
    ("spaces",),
    ("spec",),
    ("config",),
    ("envs", "models", "shared", "learning.returns", "learning.losses"),
    ("workers", "learning"),
    ("sampling",),
    ("training", "throughput", "vector"),
    ("tuning",),
    ("", "cli", "__main__"),
)
STRANGERS = {frozenset({"learning", "workers"}), frozenset({"learning", "sampling"})}
MAX_LINES = 800
PROCESS_OWNERS = {"workers.processes", "workers.supervisor", "shared.signals", "shared.memory"}


def name_of(path: Path) -> str:
    """Return a module's name inside fastrl, empty for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module: str) -> int:
    """Return the floor that a module is on; its own entry counts before its room's."""
    rooms = [(room, floor) for floor, rooms in enumerate(FLOORS) for room in rooms]
    for name in (module, module.partition(".")[0]):
        for room, floor in rooms:
            if room == name:
                return floor
    raise LookupError(f"fastrl.{module} is in no room of the architecture")


def imports_of(path: Path) -> Iterator[str]:
    """Yield the full names of all that a module imports: in functions and for types as well."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ["fastrl", *name_of(path).split(".")][: -node.level or None]
            start = ".".join(package) if node.level else ""
            module = ".".join(part for part in (start, node.module) if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def own_imports_of(path: Path) -> Iterator[str]:
    """Yield the modules of fastrl that a module imports, by their name inside fastrl."""
    known = {name_of(module) for module in MODULES}
    for imported in imports_of(path):
        package, _, name = imported.partition(".")
        if package == "fastrl":
            # Of 'fastrl.spec.Topology' the module is 'spec'.
            while name not in known:
                name = name.rpartition(".")[0]
            yield name


def problem_with(importer: str, imported: str) -> str:
    """Return what is wrong with one module of fastrl importing another; empty if nothing is."""
    rooms = (importer.partition(".")[0], imported.partition(".")[0])
    if frozenset(rooms) in STRANGERS:
        return "these two rooms never import each other"
    same_room = rooms[0] == rooms[1] and floor_of(imported) <= floor_of(importer)
    if not same_room and floor_of(imported) >= floor_of(importer) != len(FLOORS) - 1:
        return "imports point down only"
    return ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: name_of(path) or "fastrl")
def test_imports_point_down(path):
    importer = name_of(path)
    problems = {
        f"fastrl.{importer} imports fastrl.{imported}: {problem}"
        for imported in own_imports_of(path)
        if (problem := problem_with(importer, imported))
    }
    assert not problems


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("cli", "training.trainer", True),
        ("", "sampling.sampler", True),
        ("sampling.sampler", "workers.supervisor", True),
        ("learning.ppo", "learning.returns", True),
        ("envs.make", "envs.gym_loop", True),
        ("learning.returns", "learning.ppo", False),
        ("workers.env_worker", "sampling.sampler", False),
        ("envs.make", "models.networks", False),
        ("learning.ppo", "workers.supervisor", False),
        ("workers.supervisor", "learning.losses", False),
        ("sampling.sampler", "learning.returns", False),
        ("spec", "config.models", False),
        ("training.trainer", "cli", False),
        ("throughput.measure", "training.trainer", False),
    ],
)
def test_rule_itself(importer, imported, allowed):
    assert (problem_with(importer, imported) == "") is allowed


def cycle_in(paths: list[Path]) -> list[str]:
    """Return the modules of an import cycle, each imported by the next; empty if there is none."""
    graph = {name_of(path): set(own_imports_of(path)) - {name_of(path)} for path in paths}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_modules_import_each_other():
    assert not cycle_in(MODULES)


def write_room(directory, monkeypatch, **texts):
    """Write the modules of ``fastrl.room``, and have the functions of this file read them."""
    paths = [directory / "room" / f"{name}.py" for name in texts]
    (directory / "room").mkdir()
    for path, text in zip(paths, texts.values(), strict=True):
        path.write_text(text)
    monkeypatch.setattr(f"{__name__}.PACKAGE", directory)
    monkeypatch.setattr(f"{__name__}.MODULES", paths)
    return paths


def test_imports_in_functions_relative_ones_and_those_for_types_are_seen(tmp_path, monkeypatch):
    text = "def f():\n    import a.b\n    from . import c\n    from ..d import e\n"
    for_types = "if TYPE_CHECKING:\n    from f import g\n"
    (path,) = write_room(tmp_path, monkeypatch, module=text + for_types)
    assert sorted(imports_of(path)) == ["a.b", "f.g", "fastrl.d.e", "fastrl.room.c"]


def test_a_cycle_of_imports_for_types_is_seen(tmp_path, monkeypatch):
    paths = write_room(
        tmp_path,
        monkeypatch,
        a="from fastrl.room.b import f",
        b="from fastrl.room import c",
        c="if TYPE_CHECKING:\n    from fastrl.room.a import g",
    )
    assert set(cycle_in(paths)) == {"room.a", "room.b", "room.c"}
    paths[2].write_text("")
    assert not cycle_in(paths)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: name_of(path) or "fastrl")
def test_module_is_short_and_says_what_it_is(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    assert ast.get_docstring(ast.parse(text)), "the module has no docstring"


def test_there_is_no_room_for_everything_else():
    vague = {"utils", "util", "misc", "helpers", "helper", "common"}
    assert not vague & {part for path in MODULES for part in name_of(path).split(".")}


def importers_of(package: str) -> set[str]:
    # A connection's type is no process; whoever holds one was given it.
    harmless = {"multiprocessing.connection.Connection"}
    return {
        name_of(path)
        for path in MODULES
        for name in imports_of(path)
        if f"{name}.".startswith(f"{package}.") and name not in harmless
    }


@pytest.mark.parametrize(
    ("package", "owners"),
    [
        ("ray", set()),
        ("multiprocessing", PROCESS_OWNERS),
        ("torch.multiprocessing", PROCESS_OWNERS),
        ("typer", {"cli", "cli.arguments", "cli.learn", "cli.measure", "cli.show", "cli.tune"}),
        ("yaml", {"config.text"}),
        ("stable_baselines3", {"vector.sb3"}),
        ("tianshou", {"vector.tianshou"}),
        ("envpool", {"envs.make"}),
    ],
)
def test_package_is_imported_by_its_owner_only(package, owners):
    assert importers_of(package) <= owners
