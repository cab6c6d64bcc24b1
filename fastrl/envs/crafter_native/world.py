"""Putting, moving and finding things in a world."""

from __future__ import annotations

from fastrl.envs.crafter_native.rules import CHUNK, OUTSIDE, WALKABLE
from fastrl.envs.crafter_native.world_compiler import compiled, int64
from fastrl.envs.crafter_native.world_state import World

PLAYER_INDEX = 1


@compiled
def inside(world: World, x: int, y: int) -> bool:
    """Return whether a cell is part of the world."""
    width, height = world.material.shape
    within: bool = 0 <= x < width and 0 <= y < height
    return within


@compiled
def material_at(world: World, x: int, y: int) -> int:
    """Return the material of a cell, `OUTSIDE` beyond the world."""
    if inside(world, x, y):
        return int64(world.material[x, y])
    return OUTSIDE


@compiled
def object_at(world: World, x: int, y: int) -> int:
    """Return the index of the object on a cell, 0 where there is none."""
    if inside(world, x, y):
        return int64(world.object_at[x, y])
    return 0


@compiled
def chunk_of(world: World, x: int, y: int) -> int:
    """Return the number of the chunk that a cell is in."""
    rows = (world.material.shape[1] + CHUNK - 1) // CHUNK
    chunk: int = x // CHUNK * rows + y // CHUNK
    return chunk


@compiled
def set_material(world: World, x: int, y: int, material: int) -> None:
    """Change the material of a cell of the world."""
    counts = world.chunk_materials[chunk_of(world, x, y)]
    counts[world.material[x, y]] -= 1
    counts[material] += 1
    world.material[x, y] = material


@compiled
def add(world: World, kind: int, x: int, y: int, health: int) -> int:
    """Put a new object on a free cell and return its index."""
    index = int64(world.record.num_objects)
    world.record.num_objects = index + 1
    thing = world.objects[index]
    thing.kind = kind
    thing.x = x
    thing.y = y
    thing.health = health
    thing.timer = 0
    thing.facing_x = 0
    thing.facing_y = 0
    world.object_at[x, y] = index
    _join(world, index, chunk_of(world, x, y))
    return index


@compiled
def remove(world: World, index: int) -> None:
    """Take an object out of the world; its entry keeps its place until `compact`."""
    thing = world.objects[index]
    world.object_at[thing.x, thing.y] = 0
    world.chunk_kinds[thing.chunk, thing.kind] -= 1
    thing.kind = 0
    world.record.num_removed += 1


@compiled
def move(world: World, index: int, kind: int, dx: int, dy: int) -> bool:
    """Move an object by one cell if it can; return whether the cell was free for it.

    Args:
        world: Changed.
        index: The object. One that was removed in this step stays where it was, and yet gets the
            answer, as creatures do in their last update.
        kind: What it is, or was.
        dx: Step along x.
        dy: Step along y.
    """
    thing = world.objects[index]
    x, y = int64(thing.x) + dx, int64(thing.y) + dy
    if not is_free(world, x, y, kind):
        return False
    if thing.kind != 0:
        world.object_at[x, y] = index
        world.object_at[thing.x, thing.y] = 0
        thing.x = x
        thing.y = y
        chunk = chunk_of(world, x, y)
        if chunk != thing.chunk:
            world.chunk_kinds[thing.chunk, kind] -= 1
            _join(world, index, chunk)
    return True


@compiled
def is_free(world: World, x: int, y: int, kind: int) -> bool:
    """Return whether an object of a kind may go to a cell that holds no other."""
    return object_at(world, x, y) == 0 and WALKABLE[kind, material_at(world, x, y)]


@compiled
def distance_to_player(world: World, x: int, y: int) -> int:
    """Return the number of steps between a cell and the player."""
    player = world.objects[PLAYER_INDEX]
    return abs(int64(player.x) - x) + abs(int64(player.y) - y)


@compiled
def compact(world: World) -> None:
    """Close the gaps that removed objects left, in order."""
    kept = PLAYER_INDEX
    for index in range(PLAYER_INDEX, world.record.num_objects):
        thing = world.objects[index]
        if thing.kind != 0:
            world.object_at[thing.x, thing.y] = kept
            world.objects[kept] = thing
            kept += 1
    world.record.num_objects = kept
    world.record.num_removed = 0


@compiled
def _join(world: World, index: int, chunk: int) -> None:
    """Make an object the last one of a chunk, and the chunk known if this is its first."""
    record, thing = world.record, world.objects[index]
    known = False
    for position in range(record.num_chunks):
        known = known or world.chunk_order[position] == chunk
    if not known:
        world.chunk_order[record.num_chunks] = chunk
        record.num_chunks += 1
    thing.chunk = chunk
    thing.joined = record.num_joins
    record.num_joins += 1
    world.chunk_kinds[chunk, thing.kind] += 1
