"""The page about the architecture names every module, in its room, and the floors as they are."""

from __future__ import annotations

import re
from collections import defaultdict

from tests.test_architecture import FLOORS, MODULES, PACKAGE, ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """Return the part of the page below a title."""
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_every_module_is_told_of_in_its_room():
    told = {}
    for part in re.split(r"\n\n|\n(?=- )", section("Rooms")):
        title, text = re.match(r"\s*(?:- )?\*\*(.*?)\*\*(.*)", part, re.DOTALL).groups()
        told["." if title == "The ground." else title] = set(re.findall(r"`(\w+)\.py`", text))
    there = defaultdict(set)
    for path in MODULES:
        if not path.stem.startswith("__"):
            there[path.parent.relative_to(PACKAGE).as_posix()].add(path.stem)
    for room in sorted(told.keys() | there.keys()):
        missing, gone = there[room] - told.get(room, set()), told.get(room, set()) - there[room]
        assert (missing, gone) == (set(), set()), f"to be named, and no longer, in {room}"


def test_floors_are_those_that_imports_are_held_to():
    (drawn,) = re.findall(r"```\n(.*?)```", section("Floors"), re.DOTALL)
    told = [line.split() for line in drawn.splitlines()]
    assert told == [["fastrl" if room == "" else room for room in rooms] for rooms in FLOORS]


def test_every_file_to_look_into_exists():
    names = re.findall(r"`((?:\w+/)+(?:\w+\.\w+)?)`", PAGE)
    assert len(names) > 20
    for name in names:
        assert any((root / name).exists() for root in (ROOT, PACKAGE)), name
