"""A scripted player that builds, mines, fights, farms and sleeps; it reads the original's state."""

from __future__ import annotations

from collections import deque

import crafter
import numpy as np
from crafter import objects

ACTIONS = list(crafter.constants.actions)
MOVES = {"move_left": (-1, 0), "move_right": (1, 0), "move_up": (0, -1), "move_down": (0, 1)}
NAMES = [None, *crafter.constants.materials]
TOOLS = [f"{name}_{tool}" for name in ("wood", "stone", "iron") for tool in ("pickaxe", "sword")]
WALKABLE = [NAMES.index(name) for name in crafter.constants.walkable]


class Settler:
    """Player that makes crafter's tools, stays alive, and sometimes acts at random."""

    def __init__(self, mistakes: float = 0.05, brave: bool = True) -> None:
        self.mistakes = mistakes
        self.brave = brave

    def __call__(self, env, rng: np.random.Generator) -> int:
        if rng.random() < self.mistakes:
            return int(rng.integers(len(ACTIONS)))
        return ACTIONS.index(self.plan(env, rng))

    def plan(self, env, rng) -> str:
        player, world = env._player, env._world
        has = player.inventory
        facing = (player.pos[0] + player.facing[0], player.pos[1] + player.facing[1])
        material, thing = world[facing]
        if isinstance(thing, objects.Zombie | objects.Skeleton):
            return "do"
        enemies = [o for o in world.objects if isinstance(o, objects.Zombie)]
        if any(player.distance(enemy) < 5 for enemy in enemies) and not player.sleeping:
            return self.go(env, (), objects.Zombie) or "noop"
        if has["energy"] < 3 or (player.sleeping and has["energy"] < 9):
            return "sleep"
        if has["drink"] < 5 and (step := self.go(env, {"water"})):
            return step
        if has["food"] < 5 and (step := self.go(env, (), objects.Cow)):
            return step
        if has["sapling"] and material == "grass" and thing is None:
            return "place_plant"
        ripe = [o for o in world.objects if isinstance(o, objects.Plant) and o.ripe]
        if ripe and (step := self.go(env, (), objects.Plant)):
            return step
        if not has["sapling"] and player.achievements["place_plant"] < 3:
            return self.go(env, {"grass"}) or self.explore(env, rng)
        return self.craft(env, has, material, thing) or self.explore(env, rng)

    def craft(self, env, has, material, thing) -> str | None:
        """Return the next action towards the next tool: gather, put down what it needs, make it."""
        tool = next((name for name in TOOLS if not has[name]), None)
        if tool is None:
            return self.go(env, {"diamond"}) or self.go(env, (), objects.Skeleton)
        rule = crafter.constants.make[tool]
        # A table and a furnace may have to be built on the way.
        wanted = {**rule["uses"], "wood": 6}
        if "furnace" in rule["nearby"]:
            wanted["stone"] = 5
        nearby, _ = env._world.nearby(env._player.pos, 1)
        if any(has[name] < amount for name, amount in rule["uses"].items()) or not all(
            name in nearby for name in rule["nearby"]
        ):
            for name, amount in wanted.items():
                if has[name] < amount:
                    return self.go(env, {"tree" if name == "wood" else name})
        for name in rule["nearby"]:
            if name not in nearby:
                free = material in ("grass", "sand", "path") and thing is None
                return f"place_{name}" if free else None
        return f"make_{tool}"

    def go(self, env, materials, kind=None) -> str | None:
        """Return the next action to approach the nearest wanted material or object, and use it."""
        world, player = env._world, env._player
        wanted = {NAMES.index(name) for name in materials}
        mats, objs = world._mat_map, world._obj_map
        digs = [NAMES.index("path")]
        if player.inventory["wood_pickaxe"] and self.brave:
            digs += [NAMES.index("stone")]
        start = tuple(int(c) for c in player.pos)
        queue, first = deque([start]), {start: None}
        while queue:
            here = queue.popleft()
            for name, (dx, dy) in MOVES.items():
                there = (here[0] + dx, here[1] + dy)
                if not (0 <= there[0] < mats.shape[0] and 0 <= there[1] < mats.shape[1]):
                    continue
                if there in first:
                    continue
                step = first[here] or name
                thing = world._objects[objs[there]] if objs[there] else None
                hit = mats[there] in wanted and thing is None
                if hit or (kind is not None and isinstance(thing, kind)):
                    if here != start:
                        return self.walk(env, first[here])
                    return "do" if player.facing == (dx, dy) else name
                if thing is None and (mats[there] in WALKABLE or mats[there] in digs):
                    first[there] = step
                    queue.append(there)
        return None

    def walk(self, env, name) -> str:
        """Take a step, or first dig through an obstacle."""
        player = env._player
        dx, dy = MOVES[name]
        material, _ = env._world[(player.pos[0] + dx, player.pos[1] + dy)]
        if material not in crafter.constants.walkable and player.facing == (dx, dy):
            return "do"
        return name

    def explore(self, env, rng) -> str:
        if rng.random() < 0.3:
            return "do"
        moves = list(MOVES)
        rng.shuffle(moves)
        x, y = env._player.pos
        safe = [m for m in moves if env._world[(x + MOVES[m][0], y + MOVES[m][1])][0] != "lava"]
        return safe[0] if safe else "noop"


def sleeper(env, rng) -> int:
    """Player that sleeps whenever it can, in darkness and hunger."""
    return ACTIONS.index("sleep") if rng.random() < 0.9 else int(rng.integers(len(ACTIONS)))


def fighter(env, rng) -> int:
    """Player that approaches everything that moves."""
    settler = Settler(mistakes=0.0)
    kinds = (objects.Zombie, objects.Skeleton, objects.Cow)
    if rng.random() < 0.9 and (step := settler.go(env, (), kinds)):
        return ACTIONS.index(step)
    return int(rng.integers(len(ACTIONS)))


def farmer(env, rng) -> int:
    """Player that plants given saplings, waits until they are ripe, and eats them."""
    player = env._player
    material, thing = env._world[
        (player.pos[0] + player.facing[0], player.pos[1] + player.facing[1])
    ]
    if isinstance(thing, objects.Plant):
        action = "do" if thing.ripe or rng.random() < 0.02 else "noop"
    elif thing is not None:
        action = "do"
    elif material == "grass":
        action = "place_plant"
    else:
        action = list(MOVES)[int(rng.integers(4))]
    return ACTIONS.index(action)
