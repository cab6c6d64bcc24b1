"""Prove that tensor programs and compiled loops are gymnasium's classic control; write it down.

    python scripts/verify_classic_control.py
    python scripts/verify_classic_control.py --episodes 200 --envs CartPole-v1

At least 1,000 episodes of each environment with random actions, as many with those of a controller
that solves the task, and as many with those of a policy that PPO trained on our environments
(`train_classic_control.py`). Every step begins in gymnasium from the state that ours was in, and
observation, reward, termination and truncation are compared: to float32 rounding, flags exactly.
Any other difference ends the script with an error. Each finished part goes into the JSON file at
once, and the next call goes on from there.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import torch
from command_line import Parser, count, duration, output

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from fastrl.machine import machine, versions  # noqa: E402
from tests.envs.classic_control.gymnasium_twin import (  # noqa: E402
    NAMES,
    random_actions,
    skilled_actions,
    trained_actions,
)
from tests.envs.classic_control.players import (  # noqa: E402
    TOLERANCE,
    BatchPlayer,
    TensorPlayer,
    play,
)

PLAYERS = {"tensor program": TensorPlayer, "compiled loops": BatchPlayer}
BEHAVIOURS = {"random": random_actions, "skilled": skilled_actions, "trained": trained_actions}
NUM_ENVS = 250


def main(arguments: Sequence[str] | None = None) -> int:
    """Play what has not been played; return the exit code."""
    args = _parser().parse_args(arguments)
    # Threads that wait for each other's little parts of a step, on cores that others want too.
    torch.set_num_threads(1)
    found = {
        "episodes_at_least": args.episodes,
        "tolerance": TOLERANCE,
        "parts": {},
        "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        "machine": machine(),
        "versions": versions(),
    }
    if args.json.exists():
        before = json.loads(args.json.read_text(encoding="utf-8"))
        same = all(before[key] == found[key] for key in ("episodes_at_least", "versions"))
        found["parts"] = before["parts"] if same else {}
    deadline = time.monotonic() + args.minutes * 60
    for env, behaviour, player in product(args.envs, BEHAVIOURS, PLAYERS):
        part = f"{env}, {behaviour} actions, {player}"
        if part in found["parts"]:
            continue
        if time.monotonic() > deadline:
            print("out of time; call again to go on")
            return 1
        playing = PLAYERS[player](env, NUM_ENVS, 7)
        result = play(playing, env, BEHAVIOURS[behaviour], NUM_ENVS, args.episodes)
        found["parts"][part] = result._asdict()
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{part}: {result}", flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    described, _, rest = (__doc__ or "").partition("\n\n")
    parser = Parser(
        description=described, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--envs", nargs="+", choices=NAMES, default=NAMES, metavar="ID")
    add("--episodes", type=count, default=1000, help="of each part (1000)")
    add("--minutes", type=duration, default=60.0, help="after which no part is begun (60)")
    add("--json", type=output, default=ROOT / "results" / "identity_classic_control.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
