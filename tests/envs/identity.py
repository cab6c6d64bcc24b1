"""Compare the native environments with the originals over many states, and write a report.

python -m tests.envs.identity mujoco   # 100 states x 1,000 steps of each robot, resets included
python -m tests.envs.identity crafter  # seven kinds of players, 30 seeds x 2,000 steps each
python -m tests.envs.identity classic_control  # at least 1,000 episodes of each kind of player

Both sides take the same actions from the same seeds. Of the robots every observation, reward, term
of the reward and end is compared, and 1,000 first observations of other seeds by the test of
Kolmogorov and Smirnov. Of Crafter every pixel, reward, item, achievement, position and end, and the
whole map every 100 steps. ``--policy RUN`` adds the player that a training run has made. Of classic
control, tensor programs and compiled loops, every step begins in gymnasium from the state that ours
was in, and observations and rewards are compared to float32 rounding, flags exactly; the players
act at random, solve the task, or were trained on our environments (`classic_control/train.py`).

Each finished part goes into results/identity_NAME.json at once; the next call goes on from there,
unless versions or sources have changed. Any difference ends the script with an error.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from fastrl.envs.mujoco import ENVIRONMENTS, build
from fastrl.system import machine, versions
from scripts.command_line import Parser, count, duration, output, run
from tests.envs.classic_control.gymnasium_twin import (
    NAMES,
    random_actions,
    skilled_actions,
    trained_actions,
)
from tests.envs.classic_control.players import BatchPlayer, TensorPlayer, play
from tests.envs.crafter_native.players import POLICIES
from tests.envs.crafter_native.reference import Comparison
from tests.envs.mujoco.reference import TOLERANCE, compare, originals

ROOT = Path(__file__).parents[2]
SOURCES = {"mujoco": "mujoco", "crafter": "crafter_native", "classic_control": "classic_control"}
LENGTH = {"mujoco": 1000, "crafter": 2000, "classic_control": 1000}
PLAYERS = {"tensor program": TensorPlayer, "compiled loops": BatchPlayer}
BEHAVIOURS = {"random": random_actions, "skilled": skilled_actions, "trained": trained_actions}
NUM_ENVS = 250
RESETS = 1000
SEEDS_AT_ONCE = 10

Part = tuple[str, Callable[[], dict[str, Any]]]


def main() -> None:
    """Run the missing parts one by one."""
    args = _options()
    path = args.json or ROOT / "results" / f"identity_{args.what}.json"
    parts = list(PARTS[args.what](args))
    deadline = time.monotonic() + args.minutes * 60
    for name, measure in reversed(parts) if args.reverse else parts:
        if name in _report(path, args)["parts"]:
            continue
        if time.monotonic() > deadline:
            print("out of time; call again to go on")
            return
        start = time.perf_counter()
        found = {**measure(), "wall_s": round(time.perf_counter() - start, 1)}
        # Read again: another process may have added parts.
        report = _report(path, args)
        report["parts"][name] = found
        report["date"] = datetime.now(UTC).isoformat(timespec="seconds")
        print(name, json.dumps(found), flush=True)
        _write(path, report)
    report = _report(path, args)
    report["parts"] = {name: report["parts"][name] for name, _ in parts}
    _write(path, report)
    print(f"all {len(parts)} parts are identical; {path} and {path.with_suffix('.md')}")


def _options() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("what", choices=list(SOURCES))
    parser.add_argument("--minutes", type=duration, default=60.0, help="begin no part after these")
    parser.add_argument("--states", type=count, default=100, help="of each robot")
    parser.add_argument("--seeds", type=count, default=30, help="of each kind of Crafter player")
    parser.add_argument(
        "--steps", type=count, help="default 1,000 for robots, 2,000 for Crafter; or 1,000 episodes"
    )
    parser.add_argument("--policy", type=Path, help="directory of a training run on Crafter")
    parser.add_argument("--reverse", action="store_true", help="for a second process")
    parser.add_argument("--json", type=output)
    args = parser.parse_args()
    args.steps = args.steps or LENGTH[args.what]
    return args


def _report(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return the report so far, or an empty one if it is of other versions."""
    asked = ["RUN" if each == str(args.policy) else each for each in sys.argv[1:]]
    command = shlex.join(["python", "-m", "tests.envs.identity", *asked])
    same = {
        "what": args.what,
        "steps": args.steps,
        "versions": {name: v for name, v in versions().items() if name != "fastrl"},
        "sources": _digest(SOURCES[args.what]),
    }
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        if all(old.get(key) == value for key, value in same.items()):
            return {**old, "command": command}
    return {**same, "command": command, "machine": machine(), "parts": {}}


def _write(path: Path, report: dict[str, Any]) -> None:
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(_markdown(report), encoding="utf-8")


def _digest(folder: str) -> str:
    digest = hashlib.sha256()
    for path in sorted((ROOT / "fastrl" / "envs" / folder).glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _mujoco(args: argparse.Namespace) -> Iterator[Part]:
    for name in ENVIRONMENTS:
        yield name, lambda name=name: _robot(name, args.states, args.steps)


def _robot(name: str, states: int, steps: int) -> dict[str, Any]:
    found = compare(name, num_envs=states, steps=steps, seed=1000)
    worst = max(found.observation, found.reward, found.terms)
    if worst > TOLERANCE:
        raise SystemExit(f"{name}: differs by {worst}, more than {TOLERANCE}")
    p_value = _reset_p_value(name)
    if p_value < 0.001:
        raise SystemExit(f"{name}: first observations are distributed otherwise, p={p_value}")
    return {
        "states": states,
        "env_steps": states * steps,
        "episodes_ended": found.ended,
        "max_difference_observation": found.observation,
        "max_difference_reward": found.reward,
        "max_difference_reward_terms": found.terms,
        "reset_p_value": round(p_value, 4),
    }


def _reset_p_value(name: str) -> float:
    """Return the p-value of a difference between the resets of both sides, with different seeds."""
    env = build(name, RESETS)
    ours = np.zeros((RESETS, env.spec.observation_space.shape[0]))
    env.reset(range(10_000, 10_000 + RESETS), (ours,))
    (single,) = originals(name, 1, {})
    theirs = np.array([single.reset(seed=seed)[0] for seed in range(RESETS)])
    columns = np.flatnonzero(np.ptp(theirs, axis=0) > 0)
    smallest = min(_kolmogorov_smirnov(ours[:, each], theirs[:, each]) for each in columns)
    # Bonferroni's correction for as many tests.
    return min(1.0, smallest * len(columns))


def _kolmogorov_smirnov(first: np.ndarray, second: np.ndarray) -> float:
    """Return the asymptotic p-value of the two-sample test."""
    everything = np.sort(np.concatenate([first, second]))
    below = [np.searchsorted(np.sort(each), everything, side="right") for each in (first, second)]
    distance = np.abs(below[0] / len(first) - below[1] / len(second)).max()
    scaled = distance * np.sqrt(len(first) * len(second) / (len(first) + len(second)))
    terms = np.arange(1, 101)
    series = 2 * ((-1.0) ** (terms - 1) * np.exp(-2 * terms**2 * scaled**2)).sum()
    return float(np.clip(series, 0, 1)) if scaled > 0.3 else 1.0


def _crafter(args: argparse.Namespace) -> Iterator[Part]:
    players = dict(POLICIES)
    if args.policy:
        from tests.envs.crafter_native.trained import Trained

        player = Trained(args.policy)
        players[f"trained for {player.steps:,} steps"] = (player, {})
    for offset in range(0, args.seeds, SEEDS_AT_ONCE):
        for index, (name, (player, gifts)) in enumerate(players.items()):
            first = 1000 * index + offset
            seeds = range(first, first + min(SEEDS_AT_ONCE, args.seeds - offset))
            label = f"{name}, seeds {seeds[0]} to {seeds[-1]}"
            play = (seeds, player, gifts, args.steps)
            yield label, lambda play=play: _play(*play)


def _play(seeds: range, player: Any, gifts: dict[str, int], steps: int) -> dict[str, Any]:
    comparison = Comparison(seeds, player, gifts=gifts)
    for _ in range(steps // 100):
        comparison.run(100).same_worlds()
    return {
        "seeds": len(seeds),
        "env_steps": len(seeds) * (steps // 100) * 100,
        "deaths": comparison.deaths,
        "steps_at_night": int(comparison.nights),
        "steps_asleep": int(comparison.sleeping),
        "achievements": sorted(comparison.reached()),
    }


def _classic_control(args: argparse.Namespace) -> Iterator[Part]:
    for env, behaviour, player in product(NAMES, BEHAVIOURS, PLAYERS):
        played = (env, BEHAVIOURS[behaviour], PLAYERS[player], args.steps)
        yield f"{env}, {behaviour} actions, {player}", lambda played=played: _episodes(*played)


def _episodes(env: str, behaviour: Any, player: Any, episodes: int) -> dict[str, Any]:
    found = play(player(env, NUM_ENVS, 7), env, behaviour, NUM_ENVS, episodes)._asdict()
    return {"env_steps": found.pop("steps"), **found}


PARTS = {"mujoco": _mujoco, "crafter": _crafter, "classic_control": _classic_control}


def _markdown(report: dict[str, Any]) -> str:
    parts = report["parts"]
    steps = sum(part["env_steps"] for part in parts.values())
    lines = [f"# Identity of native {report['what']} environments with the originals", ""]
    if report["what"] == "mujoco":
        lines += ["| environment | steps | episodes | largest difference | p of resets |"]
        lines += ["|---|---|---|---|---|"]
        for name, part in parts.items():
            worst = max(value for key, value in part.items() if key.startswith("max_difference"))
            ended, p_value = part["episodes_ended"], part["reset_p_value"]
            lines.append(
                f"| {name} | {part['env_steps']:,} | {ended:,} | {worst:.1e} | {p_value} |"
            )
    elif report["what"] == "classic_control":
        lines += ["| part | steps | episodes | largest error |", "|---|---|---|---|"]
        for name, part in parts.items():
            steps_and_episodes = f"{part['env_steps']:,} | {part['episodes']:,}"
            lines.append(f"| {name} | {steps_and_episodes} | {part['largest_error']:.1e} |")
    else:
        kinds: dict[str, list[dict[str, Any]]] = {}
        for name, part in parts.items():
            kinds.setdefault(name.partition(", seeds")[0], []).append(part)
        lines += ["| player | seeds | steps | deaths | at night | asleep | achievements |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for name, found in kinds.items():
            keys = ("seeds", "env_steps", "deaths", "steps_at_night", "steps_asleep")
            totals = " | ".join(f"{sum(part[key] for part in found):,}" for key in keys)
            reached = {each for part in found for each in part["achievements"]}
            lines.append(f"| {name} | {totals} | {len(reached)} |")
    used = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines += ["", f"{steps:,} steps without a difference. `{report['command']}`, {report['date']}"]
    lines += [f"on {report['machine']['cpu']}, {report['machine']['cores']} cores; {used}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    gymnasium.logger.min_level = gymnasium.logger.ERROR
    run(main)
