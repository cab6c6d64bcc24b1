"""The rules of the installed ``crafter``, as numbers and tables that compiled code can index.

Names of materials, items, actions and achievements become their positions in crafter's lists;
materials are counted from 1, as in crafter's maps, where 0 is outside the world.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from crafter import constants
from numpy.typing import NDArray

MATERIALS: tuple[str, ...] = tuple(constants.materials)
ITEMS: tuple[str, ...] = tuple(constants.items)
ACTIONS: tuple[str, ...] = tuple(constants.actions)
ACHIEVEMENTS: tuple[str, ...] = tuple(constants.achievements)

NUM_MATERIALS = len(MATERIALS) + 1
NUM_ITEMS = len(ITEMS)
NUM_ACTIONS = len(ACTIONS)
NUM_ACHIEVEMENTS = len(ACHIEVEMENTS)
CHUNK = 12
"""Width and height, in cells, of the chunks in which the number of creatures is balanced."""


def material_id(name: str) -> int:
    """Return the number of a material in the map."""
    return MATERIALS.index(name) + 1


OUTSIDE = 0
WATER, GRASS, STONE, PATH, SAND, TREE, LAVA, COAL, IRON, DIAMOND, TABLE, FURNACE = (
    material_id(name)
    for name in (
        *("water", "grass", "stone", "path", "sand", "tree"),
        *("lava", "coal", "iron", "diamond", "table", "furnace"),
    )
)

# Kinds of objects; 0 is none. The player is always object 1.
PLAYER, COW, ZOMBIE, SKELETON, ARROW, PLANT = range(1, 7)
NUM_KINDS = 7

HEALTH, FOOD, DRINK, ENERGY = map(ITEMS.index, ("health", "food", "drink", "energy"))
WOOD_SWORD, STONE_SWORD, IRON_SWORD = map(ITEMS.index, ("wood_sword", "stone_sword", "iron_sword"))
EAT_COW, EAT_PLANT, DEFEAT_ZOMBIE, DEFEAT_SKELETON, WAKE_UP = map(
    ACHIEVEMENTS.index, ("eat_cow", "eat_plant", "defeat_zombie", "defeat_skeleton", "wake_up")
)

# Kinds of actions; MOVE, PLACE and MAKE have an argument.
NOOP, MOVE, DO, SLEEP, PLACE, MAKE = range(6)
DIRECTIONS = np.array(((-1, 0), (1, 0), (0, -1), (0, 1)), np.int64)
"""Left, right, up, down, in the order of creatures' draws."""

_MOVES = ("left", "right", "up", "down")
_PLACEABLE = tuple(constants.place)
_MAKEABLE = tuple(constants.make)
_NONE = -1


def _actions() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    plain = {"noop": NOOP, "do": DO, "sleep": SLEEP}
    prefixed = {"move": (MOVE, _MOVES), "place": (PLACE, _PLACEABLE), "make": (MAKE, _MAKEABLE)}
    meaning = []
    for name in ACTIONS:
        if name in plain:
            meaning.append((plain[name], _NONE))
        else:
            verb, _, what = name.partition("_")
            kind, arguments = prefixed[verb]
            meaning.append((kind, arguments.index(what)))
    kinds, arguments_of = np.array(meaning, np.int64).T
    return kinds.copy(), arguments_of.copy()


def _counts(amounts: dict[str, int]) -> list[int]:
    """Return the number of each item."""
    return [amounts.get(name, 0) for name in ITEMS]


def _which(materials: list[str]) -> list[bool]:
    """Return for each material, from 0, whether it is among ``materials``."""
    return [False, *(name in materials for name in MATERIALS)]


def _achievement(name: str) -> int:
    return ACHIEVEMENTS.index(name) if name in ACHIEVEMENTS else _NONE


def _collect(key: str, default: Any) -> list[Any]:
    """Return a property of the rule for collecting each material, from 0."""
    rules = (constants.collect.get(name, {}) for name in ("outside", *MATERIALS))
    return [rule.get(key, default) for rule in rules]


ACTION_KIND, ACTION_ARGUMENT = _actions()

ITEM_MAX = np.array([constants.items[name]["max"] for name in ITEMS], np.int32)
ITEM_INITIAL = np.array([constants.items[name]["initial"] for name in ITEMS], np.int32)

WALKABLE = np.zeros((NUM_KINDS, NUM_MATERIALS), np.bool_)
"""``[kind, material]``: True if this kind of object may enter the material."""
WALKABLE[:] = _which(constants.walkable)
WALKABLE[PLAYER] = _which([*constants.walkable, "lava"])
WALKABLE[ARROW] = _which([*constants.walkable, "water", "lava"])
CAN_HOLD_OBJECT = np.array(_which(constants.walkable), np.bool_)
"""``[material]``: True if a new world may have creatures there."""

CAN_COLLECT = np.array(_which(list(constants.collect)), np.bool_)
COLLECT_REQUIRES = np.array([_counts(rule) for rule in _collect("require", {})], np.int32)
COLLECT_RECEIVES = np.array([_counts(rule) for rule in _collect("receive", {})], np.int32)
COLLECT_PROBABILITY = np.array(_collect("probability", 1), np.float64)
COLLECT_LEAVES = np.array(
    [material_id(name) if name else OUTSIDE for name in _collect("leaves", None)], np.uint8
)
COLLECT_ACHIEVEMENT = np.array([_achievement(f"collect_{name}") for name in ITEMS], np.int64)
"""``[item]``: the achievement of receiving it, -1 if there is none."""

_place = [constants.place[name] for name in _PLACEABLE]
PLACE_USES = np.array([_counts(rule["uses"]) for rule in _place], np.int32)
PLACE_WHERE = np.array([_which(rule["where"]) for rule in _place], np.bool_)
PLACE_MATERIAL = np.array(
    [
        material_id(name) if rule["type"] == "material" else OUTSIDE
        for name, rule in zip(_PLACEABLE, _place, strict=True)
    ],
    np.uint8,
)
"""``[placeable]``: its material, or 0 for an object, the plant."""
PLACE_ACHIEVEMENT = np.array([_achievement(f"place_{name}") for name in _PLACEABLE], np.int64)

_make = [constants.make[name] for name in _MAKEABLE]
MAKE_USES = np.array([_counts(rule["uses"]) for rule in _make], np.int32)
MAKE_NEARBY = np.array([_which(rule["nearby"]) for rule in _make], np.bool_)
MAKE_ITEM = np.array([ITEMS.index(name) for name in _MAKEABLE], np.int64)
MAKE_GIVES = np.array([rule["gives"] for rule in _make], np.int32)
MAKE_ACHIEVEMENT = np.array([_achievement(f"make_{name}") for name in _MAKEABLE], np.int64)
