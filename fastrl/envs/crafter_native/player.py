"""The player's step: its action, hunger, thirst, fatigue and healing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastrl.envs.crafter_native import rules, world
from fastrl.envs.crafter_native.rng import uniform
from fastrl.envs.crafter_native.world import World
from fastrl.envs.crafter_native.world_compiler import compiled, int64

RIPE_AGE = 300
"""Number of updates after which a plant can be eaten."""


@compiled
def update_player(here: World, action: int) -> None:
    """Perform the player's action, and update its food, drink, energy and health."""
    record, inventory = here.record, here.inventory
    kind, argument = rules.ACTION_KIND[action], rules.ACTION_ARGUMENT[action]
    # The cell in front of it, before it turns.
    player = here.objects[world.PLAYER_INDEX]
    x, y = int64(player.x) + record.facing_x, int64(player.y) + record.facing_y
    if record.sleeping:
        if _is_tired(here):
            kind = rules.SLEEP
        else:
            record.sleeping = False
            here.achievements[rules.WAKE_UP] += 1
    _act(here, kind, argument, x, y)
    _live(here)
    _heal(here)
    for item in range(rules.NUM_ITEMS):
        inventory[item] = max(0, min(inventory[item], rules.ITEM_MAX[item]))
    if inventory[rules.HEALTH] < record.last_health:
        record.sleeping = False
    record.last_health = inventory[rules.HEALTH]


@compiled
def _act(here: World, kind: int, argument: int, x: int, y: int) -> None:
    """Perform an action; (x, y) is the cell that the player faces."""
    if kind == rules.MOVE:
        _walk(here, argument)
    elif kind == rules.DO:
        target = world.object_at(here, x, y)
        if target != 0:
            _touch(here, target)
        else:
            _collect(here, x, y)
    elif kind == rules.SLEEP:
        here.record.sleeping = here.record.sleeping or _is_tired(here)
    elif kind == rules.PLACE:
        _place(here, argument, x, y)
    elif kind == rules.MAKE:
        _make(here, argument)


@compiled
def _is_tired(here: World) -> bool:
    tired: bool = here.inventory[rules.ENERGY] < rules.ITEM_MAX[rules.ENERGY]
    return tired


@compiled
def hurt_player(here: World, damage: int) -> None:
    """Take health from the player."""
    here.inventory[rules.HEALTH] = max(0, here.inventory[rules.HEALTH] - damage)


@compiled
def _walk(here: World, direction: int) -> None:
    dx, dy = rules.DIRECTIONS[direction, 0], rules.DIRECTIONS[direction, 1]
    here.record.facing_x = dx
    here.record.facing_y = dy
    world.move(here, world.PLAYER_INDEX, rules.PLAYER, dx, dy)
    player = here.objects[world.PLAYER_INDEX]
    if here.material[player.x, player.y] == rules.LAVA:
        here.inventory[rules.HEALTH] = 0


@compiled
def _damage(inventory: NDArray[np.int32]) -> int:
    if inventory[rules.IRON_SWORD]:
        return 5
    if inventory[rules.STONE_SWORD]:
        return 3
    return 2 if inventory[rules.WOOD_SWORD] else 1


@compiled
def _touch(here: World, target: int) -> None:
    """Eat or strike an object."""
    thing, inventory, achievements = here.objects[target], here.inventory, here.achievements
    if thing.kind == rules.PLANT:
        if thing.timer > RIPE_AGE:
            thing.timer = 0
            inventory[rules.FOOD] += 4
            achievements[rules.EAT_PLANT] += 1
        return
    if thing.kind == rules.ARROW:
        return
    thing.health = max(0, thing.health - _damage(inventory))
    if thing.health > 0:
        return
    if thing.kind == rules.ZOMBIE:
        achievements[rules.DEFEAT_ZOMBIE] += 1
    elif thing.kind == rules.SKELETON:
        achievements[rules.DEFEAT_SKELETON] += 1
    elif thing.kind == rules.COW:
        inventory[rules.FOOD] += 6
        achievements[rules.EAT_COW] += 1
        here.record.hunger = 0.0


@compiled
def _collect(here: World, x: int, y: int) -> None:
    """Collect the material of a cell if the player has the tool for it."""
    material = world.material_at(here, x, y)
    if material == rules.WATER:
        here.record.thirst = 0.0
    if not rules.CAN_COLLECT[material]:
        return
    if not _has(here.inventory, rules.COLLECT_REQUIRES[material]):
        return
    world.set_material(here, x, y, rules.COLLECT_LEAVES[material])
    if uniform(here.stream) > rules.COLLECT_PROBABILITY[material]:
        return
    for item in range(rules.NUM_ITEMS):
        amount = rules.COLLECT_RECEIVES[material, item]
        if amount:
            here.inventory[item] += amount
            _achieve(here, rules.COLLECT_ACHIEVEMENT[item])


@compiled
def _place(here: World, what: int, x: int, y: int) -> None:
    if world.object_at(here, x, y) != 0:
        return
    if not rules.PLACE_WHERE[what, world.material_at(here, x, y)]:
        return
    if not _has(here.inventory, rules.PLACE_USES[what]):
        return
    _use(here.inventory, rules.PLACE_USES[what])
    if rules.PLACE_MATERIAL[what] != rules.OUTSIDE:
        world.set_material(here, x, y, rules.PLACE_MATERIAL[what])
    else:
        world.add(here, rules.PLANT, x, y, 1)
    _achieve(here, rules.PLACE_ACHIEVEMENT[what])


@compiled
def _make(here: World, what: int) -> None:
    for material in range(rules.NUM_MATERIALS):
        if rules.MAKE_NEARBY[what, material] and not _is_near(here, material):
            return
    if not _has(here.inventory, rules.MAKE_USES[what]):
        return
    _use(here.inventory, rules.MAKE_USES[what])
    here.inventory[rules.MAKE_ITEM[what]] += rules.MAKE_GIVES[what]
    _achieve(here, rules.MAKE_ACHIEVEMENT[what])


@compiled
def _is_near(here: World, material: int) -> bool:
    """Return whether a material is on one of the nine cells around the player."""
    width, height = here.material.shape
    player = here.objects[world.PLAYER_INDEX]
    for x in range(_first(player.x, width), min(player.x + 2, width)):
        for y in range(_first(player.y, height), min(player.y + 2, height)):
            if here.material[x, y] == material:
                return True
    return False


@compiled
def _first(center: int, size: int) -> int:
    """Return the start of the slice ``[center - 1 :]``; at 0 the original's slice is empty."""
    return center - 1 if center > 0 else size - 1


@compiled
def _has(inventory: NDArray[np.int32], amounts: NDArray[np.int32]) -> bool:
    lacking = 0
    for item in range(rules.NUM_ITEMS):
        lacking += inventory[item] < amounts[item]
    return lacking == 0


@compiled
def _use(inventory: NDArray[np.int32], amounts: NDArray[np.int32]) -> None:
    for item in range(rules.NUM_ITEMS):
        inventory[item] -= amounts[item]


@compiled
def _achieve(here: World, achievement: int) -> None:
    if achievement >= 0:
        here.achievements[achievement] += 1


@compiled
def _live(here: World) -> None:
    """Grow hungry, thirsty and tired; half as fast asleep, when energy increases."""
    record, inventory = here.record, here.inventory
    effort = 0.5 if record.sleeping else 1.0
    record.hunger += effort
    if record.hunger > 25:
        record.hunger = 0.0
        inventory[rules.FOOD] -= 1
    record.thirst += effort
    if record.thirst > 20:
        record.thirst = 0.0
        inventory[rules.DRINK] -= 1
    if record.sleeping:
        record.fatigue = min(record.fatigue - 1, 0.0)
    else:
        record.fatigue += 1
    if record.fatigue < -10:
        record.fatigue = 0.0
        inventory[rules.ENERGY] += 1
    if record.fatigue > 30:
        record.fatigue = 0.0
        inventory[rules.ENERGY] -= 1


@compiled
def _heal(here: World) -> None:
    """Gain health if nothing is lacking, lose it otherwise."""
    record, inventory = here.record, here.inventory
    rested = inventory[rules.ENERGY] > 0 or record.sleeping
    if inventory[rules.FOOD] > 0 and inventory[rules.DRINK] > 0 and rested:
        record.recover += 2.0 if record.sleeping else 1.0
    else:
        record.recover -= 0.5 if record.sleeping else 1.0
    if record.recover > 25:
        record.recover = 0.0
        inventory[rules.HEALTH] += 1
    if record.recover < -15:
        record.recover = 0.0
        hurt_player(here, 1)
