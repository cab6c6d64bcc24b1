"""A new world from a seed: terrain from noise, then creatures.

Random numbers are drawn cell by cell, only if the original draws them; noise that cannot change
the material of a cell is not computed.

Only an exponential is inexact: NumPy's, in the original, may differ from the compiled one in its
last bit, as it does on different processors. A world changes only if a number is within 1e-16 of
a threshold.
"""

from __future__ import annotations

from math import exp, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrl.envs.crafter_native import rules, world
from fastrl.envs.crafter_native.noise import (
    PERMUTATION_SIZE,
    Permutation,
    noise3,
    seed_permutation,
)
from fastrl.envs.crafter_native.rng import Stream, below, seed_stream, uniform
from fastrl.envs.crafter_native.world import World
from fastrl.envs.crafter_native.world_compiler import compiled

_NOISE_SEEDS = 2**31 - 1
# (z, size in cells) of the layers that every cell needs: start, water twice, mountain twice.
_LAYERS = ((8.0, 3.0), (3.0, 15.0), (3.0, 5.0), (0.0, 15.0), (0.0, 5.0))
_COW_HEALTH, _ZOMBIE_HEALTH, _SKELETON_HEALTH = 3, 5, 3


class WorldScratch(NamedTuple):
    """Temporary memory for making a world."""

    permutation: Permutation  # ``[256] int64``: the noise of this world
    source: Permutation  # ``[256] int64``
    # ``[5, width, height] float64``: the layers of noise that every cell needs.
    layers: NDArray[np.float64]
    tunnels: NDArray[np.bool_]  # ``[width, height] bool``: cells of tunnels, with skeletons


def world_scratch(area: tuple[int, int]) -> WorldScratch:
    """Return scratch for worlds of an area."""
    source, permutation = np.zeros((2, PERMUTATION_SIZE), np.int64)
    layers = np.zeros((len(_LAYERS), *area))
    return WorldScratch(permutation, source, layers, np.zeros(area, np.bool_))


@compiled
def generate(new: World, seed: int, scratch: WorldScratch) -> None:
    """Start the episode whose ``crafter`` world has the random seed ``seed``."""
    seed_stream(new.stream, seed)
    _clear(new)
    width, height = new.material.shape
    world.add(new, rules.PLAYER, width // 2, height // 2, 0)
    seed_permutation(below(new.stream, _NOISE_SEEDS), scratch.source, scratch.permutation)
    _compute_layers(scratch)
    _lay_terrain(scratch, new.stream, new.material)
    for x in range(width):
        for y in range(height):
            material = new.material[x, y]
            new.chunk_materials[world.chunk_of(new, x, y), material] += 1
            # Not a call for every cell, as a call passes the whole world.
            if rules.CAN_HOLD_OBJECT[material]:
                _populate(new, material, scratch.tunnels[x, y], x, y)


@compiled
def _clear(new: World) -> None:
    record = new.record
    record.steps = 0
    record.num_objects = world.PLAYER_INDEX
    record.num_removed = 0
    record.num_joins = 0
    record.num_chunks = 0
    record.facing_x = 0
    record.facing_y = 1
    record.sleeping = False
    record.hunger = 0.0
    record.thirst = 0.0
    record.fatigue = 0.0
    record.recover = 0.0
    new.object_at[:] = 0
    new.chunk_kinds[:] = 0
    new.chunk_materials[:] = 0
    new.achievements[:] = 0
    new.unlocked[:] = False
    for item in range(rules.NUM_ITEMS):
        new.inventory[item] = rules.ITEM_INITIAL[item]
    record.last_health = new.inventory[rules.HEALTH]
    record.reward_health = new.inventory[rules.HEALTH]


@compiled
def _compute_layers(scratch: WorldScratch) -> None:
    _, width, height = scratch.layers.shape
    for index in range(len(_LAYERS)):
        z, size = _LAYERS[index]
        for x in range(width):
            for y in range(height):
                value = noise3(scratch.permutation, x / size, y / size, z)
                scratch.layers[index, x, y] = value


@compiled
def _lay_terrain(scratch: WorldScratch, stream: Stream, terrain: NDArray[np.uint8]) -> None:
    """Write the material of every cell, and the cells of tunnels."""
    scratch.tunnels[:] = False
    width, height = terrain.shape
    for x in range(width):
        for y in range(height):
            dx, dy = x - width // 2, y - height // 2
            start = 4 - sqrt(dx * dx + dy * dy)
            terrain[x, y] = _material(scratch, stream, x, y, start)


@compiled
def _material(scratch: WorldScratch, stream: Stream, x: int, y: int, start: float) -> int:
    """Return the material of a cell at a distance of 4 - ``start`` from the player."""
    noise = scratch.permutation
    layers = scratch.layers
    start += 2 * layers[0, x, y]
    start = 1 / (1 + exp(-start))
    if start > 0.5:
        return rules.GRASS
    water = layers[1, x, y] + 0.15 * layers[2, x, y] + 0.1
    water -= 2 * start
    mountain = (layers[3, x, y] + 0.3 * layers[4, x, y]) / (1 + 0.3)
    mountain -= 4 * start + 0.3 * water
    if mountain > 0.15:
        return _mountain(scratch, stream, x, y, mountain)
    if 0.25 < water <= 0.35 and _simplex(noise, x, y, 4, 9) > -0.2:
        return rules.SAND
    if water > 0.3:
        return rules.WATER
    if _simplex(noise, x, y, 5, 7) > 0 and uniform(stream) > 0.8:
        return rules.TREE
    return rules.GRASS


@compiled
def _mountain(scratch: WorldScratch, stream: Stream, x: int, y: int, mountain: float) -> int:
    """Return the material of a cell of a mountain."""
    noise = scratch.permutation
    if mountain > 0.3 and _simplex(noise, x, y, 6, 7) > 0.15:
        return rules.PATH
    across = noise3(noise, 2 * x / 3, y / 5 / 3, 7.0) > 0.4
    if across or noise3(noise, x / 5 / 3, 2 * y / 3, 7.0) > 0.4:
        scratch.tunnels[x, y] = True
        return rules.PATH
    if _simplex(noise, x, y, 1, 8) > 0 and uniform(stream) > 0.85:
        return rules.COAL
    if _simplex(noise, x, y, 2, 6) > 0.4 and uniform(stream) > 0.75:
        return rules.IRON
    if mountain > 0.18 and uniform(stream) > 0.994:
        return rules.DIAMOND
    if mountain > 0.3 and _simplex(noise, x, y, 6, 5) > 0.35:
        return rules.LAVA
    return rules.STONE


@compiled
def _simplex(noise: Permutation, x: int, y: int, layer: int, size: int) -> float:
    """Return one layer of noise whose features have a size in cells."""
    return noise3(noise, x / size, y / size, float(layer))


@compiled
def _populate(new: World, material: int, in_tunnel: bool, x: int, y: int) -> None:
    """Put a creature on a cell, or none."""
    player = new.objects[world.PLAYER_INDEX]
    dx, dy = x - player.x, y - player.y
    distance = sqrt(dx * dx + dy * dy)
    if distance > 3 and material == rules.GRASS and uniform(new.stream) > 0.985:
        world.add(new, rules.COW, x, y, _COW_HEALTH)
    elif distance > 10 and uniform(new.stream) > 0.993:
        world.add(new, rules.ZOMBIE, x, y, _ZOMBIE_HEALTH)
    elif material == rules.PATH and in_tunnel and uniform(new.stream) > 0.95:
        world.add(new, rules.SKELETON, x, y, _SKELETON_HEALTH)
