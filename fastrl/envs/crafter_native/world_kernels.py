"""The compiled functions that Python calls: n worlds are reset or stepped at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrl.envs.crafter_native import rules, world
from fastrl.envs.crafter_native.creatures import balance, update_creature
from fastrl.envs.crafter_native.picture import RenderScratch, draw, draw_map, skip_picture
from fastrl.envs.crafter_native.player import update_player
from fastrl.envs.crafter_native.textures import Geometry, Pictures
from fastrl.envs.crafter_native.world import REMOVED_BEFORE_COMPACTION, World, world_of
from fastrl.envs.crafter_native.world_compiler import compiled, int64, kernel
from fastrl.envs.crafter_native.worldgen import WorldScratch, generate

_BALANCE_EVERY = 10


class Game(NamedTuple):
    """Settings and memory of all worlds of a batch."""

    reach: int  # objects closer to the player than this act
    # Steps after which an episode is truncated; an unreachable number for no limit.
    length: int
    # ``[k] float64``: light at each step of an episode, for more steps than any world has made.
    daylight: NDArray[np.float64]
    symbolic: bool  # whether symbols are observed instead of pixels
    layout: Geometry  # layout of the image
    pictures: Pictures  # pixels of its parts
    render_scratch: RenderScratch  # temporary memory for drawing
    world_scratch: WorldScratch  # temporary memory for new worlds


class StepResults(NamedTuple):
    """Results of a step of n worlds."""

    reward: NDArray[np.float64]  # ``[n] float64``
    terminated: NDArray[np.bool_]  # ``[n] bool``: the player died
    truncated: NDArray[np.bool_]  # ``[n] bool``: at the time limit, with the player alive


class Screens(NamedTuple):
    """Observations of n players: the first array or the others; unused ones have no rows."""

    image: NDArray[np.uint8]  # ``[n, height, 3 * width] uint8``
    # ``[n, rows, columns, 2] uint8``: material and sprite of each cell in view.
    map: NDArray[np.uint8]
    inventory: NDArray[np.uint8]  # ``[n, items] uint8``
    daylight: NDArray[np.float32]  # ``[n, 1] float32``


@compiled
def _advance(here: World, action: int, daylight: float, reach: int) -> float:
    """Step one world without its picture, and return the reward.

    Args:
        here: The world; its ``steps`` already count this step.
        action: Action of the player, ``0 <= action < 17``.
        daylight: Between 0 and 1.
        reach: Objects closer to the player than this act.
    """
    record = here.record
    # Objects that appear in this step act in the next one.
    num_objects = int64(record.num_objects)
    update_player(here, action)
    for index in range(world.PLAYER_INDEX + 1, num_objects):
        thing = here.objects[index]
        if thing.kind != 0 and world.distance_to_player(here, thing.x, thing.y) < reach:
            update_creature(here, index)
    if record.steps % _BALANCE_EVERY == 0:
        balance(here, daylight)
    if record.num_removed > REMOVED_BEFORE_COMPACTION:
        world.compact(here)
    return _reward(here)


@compiled
def _reward(here: World) -> float:
    """Return a tenth of the gained health, plus 1 for each new achievement."""
    record, health = here.record, here.inventory[rules.HEALTH]
    reward: float = (health - record.reward_health) / 10
    record.reward_health = health
    unlocked = False
    for achievement in range(rules.NUM_ACHIEVEMENTS):
        if here.achievements[achievement] > 0 and not here.unlocked[achievement]:
            here.unlocked[achievement] = True
            unlocked = True
    return reward + 1.0 if unlocked else reward


@compiled
def _show(here: World, game: Game, screens: Screens, index: int) -> None:
    light = game.daylight[here.record.steps]
    if game.symbolic:
        skip_picture(here, light, game.layout)
        draw_map(here, game.layout, screens.map[index])
        for item in range(rules.NUM_ITEMS):
            screens.inventory[index, item] = here.inventory[item]
        screens.daylight[index, 0] = light
    else:
        image = screens.image[index]
        draw(here, light, game.layout, game.pictures, game.render_scratch, image)


@kernel
def reset_worlds(digest: int) -> Callable[..., None]:
    """Return the kernel that starts an episode in every world."""

    def reset_worlds(worlds: World, game: Game, seeds: NDArray[np.int64], screens: Screens) -> None:
        """Start an episode in every world.

        Args:
            worlds: State of n environments.
            game: Shared settings and memory.
            seeds: ``[n] int64``: seeds of the worlds' random streams; a world does not change if
                it is negative.
            screens: Written.
        """
        _ = digest
        for index in range(len(seeds)):
            if seeds[index] < 0:
                continue
            here = world_of(worlds, index)
            generate(here, seeds[index], game.world_scratch)
            _show(here, game, screens, index)

    return reset_worlds


@kernel
def step_worlds(digest: int) -> Callable[..., int]:
    """Return the kernel that steps every world."""

    def step_worlds(
        worlds: World,
        game: Game,
        actions: NDArray[np.int64],
        outcome: StepResults,
        screens: Screens,
    ) -> int:
        """Step every world; return the number of episodes that ended.

        Args:
            worlds: State of n environments.
            game: Shared settings and memory.
            actions: ``[n] int64``. If one is not of the 17, nothing is stepped and the result
                is ``-1 - index``.
            outcome: Written.
            screens: Written.
        """
        _ = digest
        for index in range(len(actions)):
            if actions[index] < 0 or actions[index] >= rules.NUM_ACTIONS:
                return -1 - index
        ended = 0
        for index in range(len(actions)):
            here = world_of(worlds, index)
            here.record.steps += 1
            light = game.daylight[here.record.steps]
            outcome.reward[index] = _advance(here, actions[index], light, game.reach)
            _show(here, game, screens, index)
            dead = here.inventory[rules.HEALTH] <= 0
            over = here.record.steps >= game.length
            outcome.terminated[index] = dead
            outcome.truncated[index] = over and not dead
            ended += int(dead or over)
        return ended

    return step_worlds


def load_kernels(worlds: World, game: Game, outcome: StepResults, screens: Screens) -> None:
    """Compile both kernels for these types, or load them from the disk."""
    nothing = np.zeros(0, np.int64)
    reset_worlds(worlds, game, nothing, screens)
    step_worlds(worlds, game, nothing, outcome, screens)
