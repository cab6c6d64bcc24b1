"""Rules that can be checked automatically: imports, names, lengths, and the pages about them."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastrl"
DOCS = ROOT / "docs"
MODULES = sorted(PACKAGE.glob("**/*.py"))

# A module imports only its own package and the layers above it in this list.
LAYERS = (
    ("errors", "closing", "global_streams", "once", "json_lines"),
    ("imports",),
    ("arguments", "jit", "system"),
    ("durable", "formats", "registry"),
    ("builtin", "curves", "live_display"),
    ("spaces",),
    ("spec",),
    ("config",),
    ("runs", "program_code"),
    ("envs", "models", "shared", "learning.returns", "learning.losses"),
    ("datasets",),
    ("workers", "learning"),
    ("sampling",),
    ("cluster",),
    ("training", "throughput", "vector"),
    ("tuning", "sweeps", "watch"),
    ("play",),
    ("", "cli", "__main__"),
)
STRANGERS = {frozenset({"learning", "workers"}), frozenset({"learning", "sampling"})}
MAX_LINES = 800
VAGUE_NAMES = {"utils", "util", "misc", "helpers", "helper", "common"}
PROCESS_OWNERS = {"workers.processes", "workers.supervisor", "shared.memory"}
OWNERS = {
    "ray": {"cluster.connection"},
    "multiprocessing": PROCESS_OWNERS,
    "torch.multiprocessing": PROCESS_OWNERS,
    "typer": {
        "cli",
        "cli.learn",
        "cli.inputs",
        "cli.show",
        "cli.speed",
        "cli.watching",
    },
    "yaml": {"config.text"},
    "stable_baselines3": {"vector.sb3"},
    "tianshou": {"vector.tianshou"},
    "envpool": {"envs.env_factory"},
    "h5py": {"datasets.files"},
    "minari": {"datasets.files"},
    "huggingface_hub": {"training.hub"},
    "optuna": {"sweeps.optuna_search"},
}
"""Packages, and the modules that alone may import them."""

SHARED_CLASS_NAMES: dict[str, str] = {}
"""Names that several classes have, and why they may."""
SHARED_FILE_NAMES: dict[str, str] = {}
"""Names that several files have, and why they may."""


@cache
def name_of(path: Path) -> str:
    """Return a module's name inside fastrl, empty for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> int:
    """Return the layer that a module is on; its own entry counts before its package's."""
    packages = [(package, layer) for layer, packages in enumerate(LAYERS) for package in packages]
    for name in (module, module.partition(".")[0]):
        for package, layer in packages:
            if package == name:
                return layer
    raise LookupError(f"fastrl.{module} is in no layer of the architecture")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports_of(path: Path) -> list[str]:
    """Return the full names of all that a module imports: in functions and for types as well."""
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ["fastrl", *name_of(path).split(".")][: -node.level or None]
            start = ".".join(package) if node.level else ""
            module = ".".join(part for part in (start, node.module) if part)
            found += [f"{module}.{alias.name}" for alias in node.names]
    return found


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
    packages = (importer.partition(".")[0], imported.partition(".")[0])
    if frozenset(packages) in STRANGERS:
        return "these two packages never import each other"
    same_package = packages[0] == packages[1] and layer_of(imported) <= layer_of(importer)
    if not same_package and layer_of(imported) >= layer_of(importer) != len(LAYERS) - 1:
        return "imports point down only"
    return ""


def test_imports_point_down():
    problems = {
        f"fastrl.{importer} imports fastrl.{imported}: {problem}"
        for path in MODULES
        for importer in [name_of(path)]
        for imported in own_imports_of(path)
        if (problem := problem_with(importer, imported))
    }
    assert not problems


def test_rule_about_imports():
    allowed = [
        ("cli", "training.trainer"),
        ("", "sampling.sampler"),
        ("sampling.sampler", "workers.supervisor"),
        ("learning.ppo", "learning.returns"),
        ("envs.env_factory", "envs.gym_loop"),
    ]
    refused = [
        ("learning.returns", "learning.ppo"),
        ("workers.env_worker", "sampling.sampler"),
        ("envs.env_factory", "models.networks"),
        ("learning.ppo", "workers.supervisor"),
        ("workers.supervisor", "learning.losses"),
        ("sampling.sampler", "learning.returns"),
        ("spec", "config.models"),
        ("training.trainer", "cli"),
        ("throughput.measure", "training.trainer"),
    ]
    assert [pair for pair in allowed if problem_with(*pair)] == []
    assert [pair for pair in refused if not problem_with(*pair)] == []


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
    """Write the modules of ``fastrl.package``, and have the functions of this file read them."""
    paths = [directory / "package" / f"{name}.py" for name in texts]
    (directory / "package").mkdir(parents=True)
    for path, text in zip(paths, texts.values(), strict=True):
        path.write_text(text)
    monkeypatch.setattr(f"{__name__}.PACKAGE", directory)
    monkeypatch.setattr(f"{__name__}.MODULES", paths)
    return paths


def test_imports_in_functions_relative_ones_and_those_for_types_are_seen(tmp_path, monkeypatch):
    text = "def f():\n    import a.b\n    from . import c\n    from ..d import e\n"
    for_types = "if TYPE_CHECKING:\n    from f import g\n"
    (path,) = write_room(tmp_path, monkeypatch, module=text + for_types)
    assert sorted(imports_of(path)) == ["a.b", "f.g", "fastrl.d.e", "fastrl.package.c"]


def test_a_cycle_of_imports_for_types_is_seen(tmp_path, monkeypatch):
    texts = {
        "a": "from fastrl.package.b import f",
        "b": "from fastrl.package import c",
        "c": "if TYPE_CHECKING:\n    from fastrl.package.a import g",
    }
    paths = write_room(tmp_path, monkeypatch, **texts)
    assert set(cycle_in(paths)) == {"package.a", "package.b", "package.c"}
    assert not cycle_in(write_room(tmp_path / "cured", monkeypatch, **texts | {"c": ""}))


def test_packages_are_imported_by_their_owners_only():
    # A connection's type is no process; its holder was given it.
    harmless = {"multiprocessing.connection.Connection"}
    problems = {
        f"fastrl.{name_of(path)} imports {imported}; only {sorted(owners)} may"
        for path in MODULES
        for imported in set(imports_of(path)) - harmless
        for package, owners in OWNERS.items()
        if f"{imported}.".startswith(f"{package}.") and name_of(path) not in owners
    }
    assert not problems


def test_modules_have_a_docstring_and_ask_whether_they_have_two_jobs():
    problems = []
    for path in MODULES:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_LINES:
            problems.append(f"{path} has {lines} lines, more than {MAX_LINES}: has it two jobs?")
        if not ast.get_docstring(tree_of(path)):
            problems.append(f"{path} has no docstring")
        if vague := VAGUE_NAMES & set(name_of(path).split(".")):
            problems.append(f"{path}: {vague} says nothing about what is in it")
    assert not problems


@pytest.mark.parametrize("kind", ["class", "file"])
def test_no_two_share_a_name(kind):
    places = defaultdict(list)
    for path in MODULES:
        classes = [node.name for node in tree_of(path).body if isinstance(node, ast.ClassDef)]
        files = [path.name] if path.name != "__init__.py" else []
        for name in classes if kind == "class" else files:
            places[name].append(name_of(path))
    shared = {name: found for name, found in places.items() if len(found) > 1}
    allowed = SHARED_CLASS_NAMES if kind == "class" else SHARED_FILE_NAMES
    assert {name: shared[name] for name in shared.keys() - allowed.keys()} == {}, "rename these"
    assert sorted(allowed.keys() - shared.keys()) == [], "unique now: remove them from the list"


@cache
def lists():
    """Return the functions of what writes the lists of the pages."""
    return runpy.run_path(str(DOCS / "write_lists.py"))


def test_page_lists_every_module_and_the_floors():
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    assert lists()["architecture"](page) == page, "run python docs/write_lists.py"
    (drawn,) = re.findall(r"## Layers\n.*?```\n(.*?)```", page, re.DOTALL)
    listed = [line.split() for line in drawn.splitlines()]
    assert listed == [[name or "fastrl" for name in layer] for layer in LAYERS]


def test_every_file_that_the_page_names_exists():
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    names = re.findall(r"`((?:\w+/)+(?:\w+\.\w+)?)`", page)
    assert len(names) > 20
    lost = [name for name in names if not any((root / name).exists() for root in (ROOT, PACKAGE))]
    assert lost == []


def test_page_lists_every_public_name():
    page = (DOCS / "reference.md").read_text(encoding="utf-8")
    assert lists()["reference"]() == page, "run python docs/write_lists.py"
    for module, names in lists()["public_names"]().items():
        found = importlib.import_module(module)
        assert [name for name in names if not hasattr(found, name)] == [], module


def test_guides_and_examples_import_public_names_only():
    public = lists()["public_names"]()
    pages = [path for path in DOCS.rglob("*") if path.suffix in (".md", ".py", ".ipynb")]
    problems = set()
    for page in [ROOT / "README.md", *pages]:
        text = page.read_text(encoding="utf-8")
        for module, names in re.findall(r"from (fastrl[\w.]*) import ([\w, ]+)", text):
            known = {*public.get(module, ()), *(each.removeprefix(f"{module}.") for each in public)}
            unknown = {name.strip() for name in names.split(",")} - known
            problems |= {f"{page.name}: {module}.{name}" for name in unknown}
    assert not problems
