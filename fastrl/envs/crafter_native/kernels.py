"""What the interpreter calls: n worlds reset or stepped at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrl.envs.crafter_native import rules
from fastrl.envs.crafter_native.compiled import compiled, compiling_alone, kernel
from fastrl.envs.crafter_native.dynamics import advance
from fastrl.envs.crafter_native.render import RenderScratch, draw, skip_picture
from fastrl.envs.crafter_native.state import World, world_of
from fastrl.envs.crafter_native.symbols import draw_map
from fastrl.envs.crafter_native.textures import Geometry, Pictures
from fastrl.envs.crafter_native.world import PLAYER_INDEX
from fastrl.envs.crafter_native.worldgen import WorldScratch, generate


class Game(NamedTuple):
    """What all worlds of a batch share.

    Attributes:
        reach: Objects fewer steps than this away from the player act.
        length: Steps after which an episode is cut off; a number never reached where there is no
            limit.
        daylight: ``[k] float64``: light at each step of an episode, for more steps than any world
            has taken.
        symbolic: Whether symbols are observed instead of pixels.
        layout: Where things are in the image.
        pictures: What they look like.
        render_scratch: Memory to draw with.
        world_scratch: Memory to make worlds with.
    """

    reach: int
    length: int
    daylight: NDArray[np.float64]
    symbolic: bool
    layout: Geometry
    pictures: Pictures
    render_scratch: RenderScratch
    world_scratch: WorldScratch


class Outcome(NamedTuple):
    """What a step of n worlds leaves behind.

    Attributes:
        reward: ``[n] float64``.
        terminated: ``[n] bool``: the player died.
        truncated: ``[n] bool``: the time was up, and the player alive.
        achievements: ``[n, achievements] int32``: counts of each world's last finished episode.
        inventory: ``[n, items] int32``: what its player had when it ended.
        player_pos: ``[n, 2] int32``: where it was.
    """

    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    achievements: NDArray[np.int32]
    inventory: NDArray[np.int32]
    player_pos: NDArray[np.int32]


class Screens(NamedTuple):
    """What n players observe: the first array, or else the others; the rest hold no rows.

    Attributes:
        image: ``[n, height, 3 * width] uint8``.
        map: ``[n, rows, columns, 2] uint8``: material and sprite of each cell in view.
        inventory: ``[n, items] uint8``.
        daylight: ``[n, 1] float32``.
    """

    image: NDArray[np.uint8]
    map: NDArray[np.uint8]
    inventory: NDArray[np.uint8]
    daylight: NDArray[np.float32]


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


@compiled
def _keep_episode(here: World, outcome: Outcome, index: int) -> None:
    """Copy what an episode ends with."""
    for achievement in range(rules.NUM_ACHIEVEMENTS):
        outcome.achievements[index, achievement] = here.achievements[achievement]
    for item in range(rules.NUM_ITEMS):
        outcome.inventory[index, item] = here.inventory[item]
    player = here.objects[PLAYER_INDEX]
    outcome.player_pos[index, 0] = player.x
    outcome.player_pos[index, 1] = player.y


@compiled
def _keep_last(game: Game, screens: Screens, final: Screens, index: int) -> None:
    """Copy what a player observed last."""
    if game.symbolic:
        for row in range(game.layout.grid[1]):
            _copy(screens.map[index, row], final.map[index, row])
        for item in range(rules.NUM_ITEMS):
            final.inventory[index, item] = screens.inventory[index, item]
        final.daylight[index, 0] = screens.daylight[index, 0]
    else:
        _copy(screens.image[index], final.image[index])


@compiled
def _copy(source: NDArray[np.uint8], target: NDArray[np.uint8]) -> None:
    height, width = source.shape
    for y in range(height):
        for x in range(width):
            target[y, x] = source[y, x]


@kernel
def reset_worlds(digest: int) -> Callable[..., None]:
    """Return the kernel that starts an episode in every world."""

    def reset_worlds(worlds: World, game: Game, seeds: NDArray[np.int64], screens: Screens) -> None:
        """Start an episode in every world.

        Args:
            worlds: Of n environments.
            game: What they share.
            seeds: ``[n] int64``: seeds of the worlds' random streams; a world goes on where it is
                negative.
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
    """Return the kernel that steps every world, and starts the next episode where one ends."""

    def step_worlds(
        worlds: World,
        game: Game,
        actions: NDArray[np.int64],
        next_seeds: NDArray[np.int64],
        outcome: Outcome,
        screens: Screens,
        final: Screens,
    ) -> int:
        """Step every world; return how many episodes ended.

        Args:
            worlds: Of n environments.
            game: What they share.
            actions: ``[n] int64``. Where one is none of the 17, nothing is stepped and the result
                is ``-1 - index``.
            next_seeds: ``[n] int64``: seeds of the worlds that follow.
            outcome: Written.
            screens: Written.
            final: Written where an episode ended.
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
            outcome.reward[index] = advance(here, actions[index], light, game.reach)
            _show(here, game, screens, index)
            dead = here.inventory[rules.HEALTH] <= 0
            over = here.record.steps >= game.length
            outcome.terminated[index] = dead
            outcome.truncated[index] = over and not dead
            if dead or over:
                ended += 1
                _keep_episode(here, outcome, index)
                _keep_last(game, screens, final, index)
                generate(here, next_seeds[index], game.world_scratch)
                _show(here, game, screens, index)
        return ended

    return step_worlds


def load_kernels(worlds: World, game: Game, outcome: Outcome, screens: Screens) -> None:
    """Compile both kernels for these types, or load them from the disk.

    Where nothing is on the disk yet, one process compiles and others wait for it.
    """
    nothing = np.zeros(0, np.int64)
    with compiling_alone(step_worlds):
        reset_worlds(worlds, game, nothing, screens)
        step_worlds(worlds, game, nothing, nothing, outcome, screens, screens)
