"""One step of a world, without its picture."""

from __future__ import annotations

from fastrl.envs.crafter_native import rules, world
from fastrl.envs.crafter_native.balance import balance
from fastrl.envs.crafter_native.compiled import compiled, int64
from fastrl.envs.crafter_native.creatures import update_creature
from fastrl.envs.crafter_native.player import update_player
from fastrl.envs.crafter_native.state import REMOVED_BEFORE_COMPACTION, World

_BALANCE_EVERY = 10


@compiled
def advance(here: World, action: int, daylight: float, reach: int) -> float:
    """Let everything near the player act, and return the reward.

    Args:
        here: The world; its ``steps`` already count this step.
        action: What the player does, ``0 <= action < 17``.
        daylight: Between 0 and 1.
        reach: Objects fewer steps than this away from the player act.
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
    """Return a tenth of the health gained, and 1 where something was achieved the first time."""
    record, health = here.record, here.inventory[rules.HEALTH]
    reward: float = (health - record.reward_health) / 10
    record.reward_health = health
    unlocked = False
    for achievement in range(rules.NUM_ACHIEVEMENTS):
        if here.achievements[achievement] > 0 and not here.unlocked[achievement]:
            here.unlocked[achievement] = True
            unlocked = True
    return reward + 1.0 if unlocked else reward
