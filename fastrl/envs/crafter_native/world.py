"""The state of n worlds, and functions that add, move and find objects in one."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fastrl.envs.crafter_native.rng import STREAM_WORDS
from fastrl.envs.crafter_native.rules import (
    CHUNK,
    NUM_ACHIEVEMENTS,
    NUM_ITEMS,
    NUM_KINDS,
    NUM_MATERIALS,
    OUTSIDE,
    WALKABLE,
)
from fastrl.envs.crafter_native.world_compiler import compiled, inlined, int64
from fastrl.envs.state import State, StateError, fitting

PLAYER_INDEX = 1
REMOVED_BEFORE_COMPACTION = 32


class Record(Protocol):
    """The numbers of a world that are not arrays; a record of `RECORD`."""

    steps: int  # steps since the episode began
    num_objects: int  # entries in use at the start of `World.objects`, removed ones among them
    num_removed: int  # removed ones among them
    num_joins: int  # number of times an object joined a chunk
    num_chunks: int  # chunks that have had an object so far
    reward_health: int  # the player's health when the last reward was computed
    last_health: int  # the player's health at the end of its last update
    facing_x: int  # direction of the player
    facing_y: int
    sleeping: bool  # whether it sleeps
    hunger: float  # counters towards a change of food, drink, energy, health
    thirst: float
    fatigue: float
    recover: float


class Thing(Protocol):
    """One object of a world; a record of `OBJECT`."""

    kind: int  # its kind, 0 once it is removed
    x: int  # its cell
    y: int
    health: int  # its health, except the player's, which is an item of its inventory
    timer: int  # the zombie's cooldown, the skeleton's reload, the age of the plant
    facing_x: int  # direction of an arrow
    facing_y: int
    chunk: int  # the chunk it is in
    joined: int  # `Record.num_joins` when it joined the chunk, which orders the chunk's objects


def _dtype(protocol: type) -> np.dtype[Any]:
    stored = {"int": np.int32, "float": np.float64, "bool": np.bool_}
    fields = [(name, stored[kind]) for name, kind in protocol.__annotations__.items()]
    return np.dtype(fields, align=True)


RECORD = _dtype(Record)
OBJECT = _dtype(Thing)


class World(NamedTuple):
    """The state of one environment; or of n environments, with a leading axis."""

    record: Record  # single numbers
    material: NDArray[np.uint8]  # ``[width, height] uint8``
    # ``[width, height] int32``: index of the object on each cell, 0 if there is none.
    object_at: NDArray[np.int32]
    # ``[capacity]`` of `OBJECT`, in order of creation; the first entry is empty, the
    # second the player.
    objects: Any
    inventory: NDArray[np.int32]  # ``[items] int32``
    # ``[achievements] int32``: count of each in this episode.
    achievements: NDArray[np.int32]
    unlocked: NDArray[np.bool_]  # ``[achievements] bool``: rewarded ones
    # ``[chunks] int32``: chunks in the order of their first object.
    chunk_order: NDArray[np.int32]
    chunk_kinds: NDArray[np.int32]  # ``[chunks, kinds] int32``: objects of each kind
    chunk_materials: NDArray[np.int32]  # ``[chunks, materials] int32``: cells of each material
    stream: NDArray[np.uint32]  # ``[625] uint32``: the random stream


def allocate(num_envs: int, area: tuple[int, int]) -> World:
    """Return the state of ``num_envs`` worlds of an area; unused memory pages stay unmapped.

    The arrays hold an object on every cell, as many removed ones, and the new objects of one step:
    one for each object, and one of each creature in each chunk.
    """
    cells = area[0] * area[1]
    chunks = -(-area[0] // CHUNK) * -(-area[1] // CHUNK)
    capacity = 2 * (cells + 1) + 3 * chunks + REMOVED_BEFORE_COMPACTION
    return World(
        record=np.zeros(num_envs, RECORD),  # type: ignore[arg-type]
        material=np.zeros((num_envs, *area), np.uint8),
        object_at=np.zeros((num_envs, *area), np.int32),
        objects=np.zeros((num_envs, capacity), OBJECT),
        inventory=np.zeros((num_envs, NUM_ITEMS), np.int32),
        achievements=np.zeros((num_envs, NUM_ACHIEVEMENTS), np.int32),
        unlocked=np.zeros((num_envs, NUM_ACHIEVEMENTS), np.bool_),
        chunk_order=np.zeros((num_envs, chunks), np.int32),
        chunk_kinds=np.zeros((num_envs, chunks, NUM_KINDS), np.int32),
        chunk_materials=np.zeros((num_envs, chunks, NUM_MATERIALS), np.int32),
        stream=np.zeros((num_envs, STREAM_WORDS), np.uint32),
    )


def saved(worlds: World) -> State:
    """Return copies of all arrays by name; only used entries of objects."""
    used = int(worlds.record["num_objects"].max())  # type: ignore[index]
    found: dict[str, State] = (
        worlds._asdict()
        | {
            "record": {name: worlds.record[name].copy() for name in RECORD.names or ()},  # type: ignore[index]
            "objects": {name: worlds.objects[name][:, :used].copy() for name in OBJECT.names or ()},
        }
    )
    return {name: each if isinstance(each, dict) else each.copy() for name, each in found.items()}


def load(worlds: World, state: State) -> None:
    """Restore a state of `saved`.

    Raises:
        StateError: It belongs to other worlds, or has indices outside of the arrays.
    """
    used = len(state["objects"]["kind"][0])
    parts: Any = worlds._asdict()
    parts |= {f"record/{name}": worlds.record[name] for name in RECORD.names or ()}  # type: ignore[index]
    parts |= {f"objects/{name}": worlds.objects[name][:, :used] for name in OBJECT.names or ()}
    given = {name: each for name, each in state.items() if not isinstance(each, dict)}
    for kind in ("record", "objects"):
        del parts[kind]
        given |= {f"{kind}/{name}": each for name, each in state[kind].items()}
    found = {name: fitting(given, name, like) for name, like in parts.items()}
    for name, (low, high) in _ranges(worlds, found["record/num_objects"], used).items():
        values = found[name]
        if values.size and not (np.min(values) >= low and (values <= high).all()):
            raise StateError(f"the state's array '{name}' is outside {low} to {np.max(high)}")
    for name, like in parts.items():
        like[...] = found[name]


def _ranges(worlds: World, num_objects: NDArray[np.int32], used: int) -> dict[str, tuple[int, Any]]:
    """Return the valid ranges of all numbers that compiled code uses as indices."""
    _, width, height = worlds.material.shape
    chunks = worlds.chunk_order.shape[1]
    return {
        "record/num_objects": (2, used),
        "record/num_removed": (0, used),
        "record/num_chunks": (0, chunks),
        "record/steps": (0, 2**31 - 2),
        "record/facing_x": (-1, 1),
        "record/facing_y": (-1, 1),
        "material": (0, NUM_MATERIALS - 1),
        "object_at": (0, num_objects[:, None, None] - 1),
        "objects/kind": (0, NUM_KINDS - 1),
        "objects/x": (0, width - 1),
        "objects/y": (0, height - 1),
        "objects/facing_x": (-1, 1),
        "objects/facing_y": (-1, 1),
        "objects/chunk": (0, chunks - 1),
        "chunk_order": (0, chunks - 1),
        "inventory": (0, 9),
        "stream": (0, np.append(np.full(STREAM_WORDS - 1, 2**32 - 1), STREAM_WORDS - 1)),
    }


@inlined
def world_of(worlds: World, index: int) -> World:
    """Return the views of one environment's state."""
    return World(
        worlds.record[index],  # type: ignore[index]
        worlds.material[index],
        worlds.object_at[index],
        worlds.objects[index],
        worlds.inventory[index],
        worlds.achievements[index],
        worlds.unlocked[index],
        worlds.chunk_order[index],
        worlds.chunk_kinds[index],
        worlds.chunk_materials[index],
        worlds.stream[index],
    )


@compiled
def inside(world: World, x: int, y: int) -> bool:
    """Return whether a cell is part of the world."""
    width, height = world.material.shape
    within: bool = 0 <= x < width and 0 <= y < height
    return within


@compiled
def material_at(world: World, x: int, y: int) -> int:
    """Return the material of a cell, `OUTSIDE` outside of the world."""
    if inside(world, x, y):
        return int64(world.material[x, y])
    return OUTSIDE


@compiled
def object_at(world: World, x: int, y: int) -> int:
    """Return the index of the object on a cell, 0 if there is none."""
    if inside(world, x, y):
        return int64(world.object_at[x, y])
    return 0


@compiled
def chunk_of(world: World, x: int, y: int) -> int:
    """Return the number of a cell's chunk."""
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
    """Add a new object on a free cell and return its index."""
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
    """Remove an object from the world; its entry keeps its index until `compact`."""
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
        index: Index of the object. One that was removed in this step does not move, but the
            result is the same, as in a creature's last update.
        kind: Kind of the object, also if it was removed.
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
    """Return whether an object of a kind may enter a cell, which must have no other object."""
    return object_at(world, x, y) == 0 and WALKABLE[kind, material_at(world, x, y)]


@compiled
def distance_to_player(world: World, x: int, y: int) -> int:
    """Return the number of steps between a cell and the player."""
    player = world.objects[PLAYER_INDEX]
    return abs(int64(player.x) - x) + abs(int64(player.y) - y)


@compiled
def compact(world: World) -> None:
    """Close the gaps of removed objects, keeping the order."""
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
    """Add an object to a chunk as its last one; register the chunk at its first object."""
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
