"""Keeps the number of creatures in each chunk near what its terrain and the daylight ask for."""

from __future__ import annotations

from typing import NamedTuple

from fastrl.envs.crafter_native import rules, world
from fastrl.envs.crafter_native.compiled import compiled, int64
from fastrl.envs.crafter_native.rng import below, uniform
from fastrl.envs.crafter_native.state import World


class Species(NamedTuple):
    """How one kind of creature appears and disappears.

    Attributes:
        kind: What it is.
        health: What it starts with.
        material: Where it appears.
        spawn_distance: Smallest distance to the player, in steps, at which it appears.
        despawn_distance: Smallest distance at which it disappears.
        spawn_probability: Of appearing, per chunk and balancing.
        despawn_probability: Of disappearing.
    """

    kind: int
    health: int
    material: int
    spawn_distance: int
    despawn_distance: int
    spawn_probability: float
    despawn_probability: float


_ZOMBIE = Species(rules.ZOMBIE, 5, rules.GRASS, 6, 0, 0.3, 0.4)
_SKELETON = Species(rules.SKELETON, 3, rules.PATH, 7, 7, 0.1, 0.1)
_COW = Species(rules.COW, 3, rules.GRASS, 5, 5, 0.01, 0.1)


@compiled
def balance(here: World, daylight: float) -> None:
    """Let creatures appear or disappear, at most one of each kind in each known chunk."""
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
    """Return the creature of a kind that joined the chunk after ``rank`` others of them."""
    found, joined = 0, -1
    for _ in range(rank + 1):
        found, earliest = 0, int64(2**31)
        for index in range(world.PLAYER_INDEX, here.record.num_objects):
            thing = here.objects[index]
            if thing.kind == kind and thing.chunk == chunk and joined < thing.joined < earliest:
                found, earliest = index, int64(thing.joined)
        joined = earliest
    return found
