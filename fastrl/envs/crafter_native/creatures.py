"""Steps of cows, zombies, skeletons, arrows and plants, and the number of creatures.

A creature without health is removed from the world at the start of its next update, but finishes
that update, as in the original: it draws its random numbers, and may strike or shoot once more.
"""

from __future__ import annotations

from typing import NamedTuple

from fastrl.envs.crafter_native import rules, world
from fastrl.envs.crafter_native.player import hurt_player
from fastrl.envs.crafter_native.rng import below, uniform
from fastrl.envs.crafter_native.world import World
from fastrl.envs.crafter_native.world_compiler import compiled, int64

_ARROW_DAMAGE = 2
_ZOMBIE_DAMAGE, _ZOMBIE_DAMAGE_ASLEEP, _ZOMBIE_COOLDOWN = 2, 7, 5
_SKELETON_RELOAD = 4


class Species(NamedTuple):
    """Rules by which one kind of creature appears and disappears; distances are in steps."""

    kind: int
    health: int  # initial health
    material: int  # material of the cells where it appears
    spawn_distance: int  # least distance at which it appears
    despawn_distance: int  # least distance at which it disappears
    spawn_probability: float  # per chunk and balancing
    despawn_probability: float


_ZOMBIE = Species(rules.ZOMBIE, 5, rules.GRASS, 6, 0, 0.3, 0.4)
_SKELETON = Species(rules.SKELETON, 3, rules.PATH, 7, 7, 0.1, 0.1)
_COW = Species(rules.COW, 3, rules.GRASS, 5, 5, 0.01, 0.1)


@compiled
def update_creature(here: World, index: int) -> None:
    """Update any object but the player."""
    kind = here.objects[index].kind
    if kind == rules.COW:
        _update_cow(here, index)
    elif kind == rules.ZOMBIE:
        _update_zombie(here, index)
    elif kind == rules.SKELETON:
        _update_skeleton(here, index)
    elif kind == rules.ARROW:
        _update_arrow(here, index)
    elif kind == rules.PLANT:
        _update_plant(here, index)


@compiled
def _update_cow(here: World, index: int) -> None:
    if here.objects[index].health <= 0:
        world.remove(here, index)
    if uniform(here.stream) < 0.5:
        _wander(here, index, rules.COW)


@compiled
def _update_zombie(here: World, index: int) -> None:
    zombie = here.objects[index]
    if zombie.health <= 0:
        world.remove(here, index)
    near = world.distance_to_player(here, zombie.x, zombie.y) <= 8
    if near and uniform(here.stream) < 0.9:
        dx, dy = _toward_player(here, index, uniform(here.stream) < 0.8)
        world.move(here, index, rules.ZOMBIE, dx, dy)
    else:
        _wander(here, index, rules.ZOMBIE)
    if world.distance_to_player(here, zombie.x, zombie.y) > 1:
        return
    if zombie.timer:
        zombie.timer -= 1
    else:
        hurt_player(here, _ZOMBIE_DAMAGE_ASLEEP if here.record.sleeping else _ZOMBIE_DAMAGE)
        zombie.timer = _ZOMBIE_COOLDOWN


@compiled
def _update_skeleton(here: World, index: int) -> None:
    skeleton, stream = here.objects[index], here.stream
    if skeleton.health <= 0:
        world.remove(here, index)
    skeleton.timer = max(0, skeleton.timer - 1)
    distance = world.distance_to_player(here, skeleton.x, skeleton.y)
    if distance <= 3:
        dx, dy = _toward_player(here, index, uniform(stream) < 0.6)
        if world.move(here, index, rules.SKELETON, -dx, -dy):
            return
    if distance <= 5 and uniform(stream) < 0.5:
        _shoot(here, index)
    elif distance <= 8 and uniform(stream) < 0.3:
        dx, dy = _toward_player(here, index, uniform(stream) < 0.6)
        world.move(here, index, rules.SKELETON, dx, dy)
    elif uniform(stream) < 0.2:
        _wander(here, index, rules.SKELETON)


@compiled
def _shoot(here: World, index: int) -> None:
    skeleton = here.objects[index]
    dx, dy = _toward_player(here, index, True)
    if skeleton.timer > 0 or (dx == 0 and dy == 0):
        return
    x, y = int64(skeleton.x) + dx, int64(skeleton.y) + dy
    if world.is_free(here, x, y, rules.ARROW):
        arrow = here.objects[world.add(here, rules.ARROW, x, y, 0)]
        arrow.facing_x = dx
        arrow.facing_y = dy
        skeleton.timer = _SKELETON_RELOAD


@compiled
def _update_arrow(here: World, index: int) -> None:
    arrow = here.objects[index]
    dx, dy = int64(arrow.facing_x), int64(arrow.facing_y)
    x, y = arrow.x + dx, arrow.y + dy
    target = world.object_at(here, x, y)
    material = world.material_at(here, x, y)
    if target == world.PLAYER_INDEX:
        hurt_player(here, _ARROW_DAMAGE)
        world.remove(here, index)
    elif target != 0:
        thing = here.objects[target]
        thing.health = max(0, thing.health - _ARROW_DAMAGE)
        world.remove(here, index)
    elif not rules.WALKABLE[rules.ARROW, material]:
        world.remove(here, index)
        if material == rules.TABLE or material == rules.FURNACE:
            world.set_material(here, x, y, rules.PATH)
    else:
        world.move(here, index, rules.ARROW, dx, dy)


@compiled
def _update_plant(here: World, index: int) -> None:
    plant = here.objects[index]
    plant.timer += 1
    x, y = int64(plant.x), int64(plant.y)
    for direction in range(len(rules.DIRECTIONS)):
        dx, dy = rules.DIRECTIONS[direction, 0], rules.DIRECTIONS[direction, 1]
        kind = here.objects[world.object_at(here, x + dx, y + dy)].kind
        if kind == rules.ZOMBIE or kind == rules.SKELETON or kind == rules.COW:
            plant.health = max(0, plant.health - 1)
            break
    if plant.health <= 0:
        world.remove(here, index)


@compiled
def _wander(here: World, index: int, kind: int) -> None:
    """Try to take a step in a random direction."""
    direction = below(here.stream, len(rules.DIRECTIONS))
    dx, dy = rules.DIRECTIONS[direction, 0], rules.DIRECTIONS[direction, 1]
    world.move(here, index, kind, dx, dy)


@compiled
def _toward_player(here: World, index: int, long_axis: bool) -> tuple[int, int]:
    """Return the step towards the player along the longer axis, or the other."""
    thing, player = here.objects[index], here.objects[world.PLAYER_INDEX]
    dx, dy = int64(player.x) - thing.x, int64(player.y) - thing.y
    if (abs(dx) > abs(dy)) == long_axis:
        return (dx > 0) - (dx < 0), 0
    return 0, (dy > 0) - (dy < 0)


@compiled
def balance(here: World, daylight: float) -> None:
    """Add or remove creatures, at most one of each kind in each known chunk."""
    for position in range(here.record.num_chunks):
        chunk = int64(here.chunk_order[position])
        grass = here.chunk_materials[chunk, rules.GRASS]
        path = here.chunk_materials[chunk, rules.PATH]
        zombies = 3.5 - 3 * daylight
        _balance_species(here, chunk, _ZOMBIE, 0.0 if grass < 50 else zombies, zombies)
        _balance_species(here, chunk, _SKELETON, 0.0 if path < 6 else 1.0, 2.0)
        _balance_species(here, chunk, _COW, 0.0 if grass < 30 else 1.0, 1.5 + daylight)


@compiled
def _balance_species(
    here: World, chunk: int, species: Species, at_least: float, at_most: float
) -> None:
    count = int64(here.chunk_kinds[chunk, species.kind])
    few, many = count < int64(at_least), count > int64(at_most)
    if few and uniform(here.stream) < species.spawn_probability:
        _spawn(here, chunk, species)
    elif many and uniform(here.stream) < species.despawn_probability:
        index = _member(here, chunk, species.kind, below(here.stream, count))
        thing = here.objects[index]
        if world.distance_to_player(here, thing.x, thing.y) >= species.despawn_distance:
            world.remove(here, index)


@compiled
def _spawn(here: World, chunk: int, species: Species) -> None:
    """Put a creature on a random cell of its material, if that is free and far enough."""
    width, height = here.material.shape
    rows = (height + rules.CHUNK - 1) // rules.CHUNK
    left, top = chunk // rows * rules.CHUNK, chunk % rows * rules.CHUNK
    left_to_pass = below(here.stream, here.chunk_materials[chunk, species.material])
    for x in range(left, min(left + rules.CHUNK, width)):
        for y in range(top, min(top + rules.CHUNK, height)):
            if here.material[x, y] != species.material:
                continue
            if left_to_pass > 0:
                left_to_pass -= 1
                continue
            away = world.distance_to_player(here, x, y) >= species.spawn_distance
            if away and here.object_at[x, y] == 0:
                world.add(here, species.kind, x, y, species.health)
            return


@compiled
def _member(here: World, chunk: int, kind: int, rank: int) -> int:
    """Return creature number ``rank`` of a kind in a chunk, in the order of joining."""
    found, joined = 0, -1
    for _ in range(rank + 1):
        found, earliest = 0, int64(2**31)
        for index in range(world.PLAYER_INDEX, here.record.num_objects):
            thing = here.objects[index]
            if thing.kind == kind and thing.chunk == chunk and joined < thing.joined < earliest:
                found, earliest = index, int64(thing.joined)
        joined = earliest
    return found
