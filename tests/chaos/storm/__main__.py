"""Faults at random moments and their results: the long form of ``tests/chaos``.

python -m tests.chaos.storm --faults 200 --kills 100 --fuzz 10000 --json results/chaos.json
python -m tests.chaos.storm --rank-kills 20 --json results/chaos.json
"""

from __future__ import annotations

import json
import logging
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from fastrl.config import load_config
from fastrl.system import circumstances
from fastrl.training import evaluate_run, train
from scripts.command_line import Parser, duration, output, whole
from tests.chaos.storm.fuzz import fuzz_configurations
from tests.chaos.storm.kills import kill_again_and_again
from tests.chaos.storm.witness import DEADLINE_S, SCORE, UNLIMITED, Witness


def main() -> int:
    """Run the chosen parts and write the JSON file; return 1 if a check failed."""
    parser = Parser(__doc__, prog="storm")
    parser.add_argument("--faults", type=whole, default=0, help="in one training run")
    parser.add_argument("--kills", type=whole, default=0, help="of a whole training run")
    parser.add_argument("--rank-kills", type=whole, default=0, help="of one of two ranks")
    parser.add_argument("--fuzz", type=whole, default=0, help="configurations")
    parser.add_argument("--max-seconds", type=duration, default=3600.0, help="for each part")
    parser.add_argument("--seed", type=whole, default=0)
    parser.add_argument("--json", type=output)
    args = parser.parse_args()
    logging.disable(logging.WARNING)

    parts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        if args.faults:
            parts["faults"] = storm(Path(directory), args.faults, args.max_seconds, args.seed)
        if args.kills:
            parts["kills"] = kills(Path(directory), args.kills, args.max_seconds, args.seed)
        if args.rank_kills:
            path = Path(directory) / "ranks"
            path.mkdir()
            parts["rank_kills"] = kills(path, args.rank_kills, args.max_seconds, args.seed, ranks=2)
        if args.fuzz:
            parts["fuzz"] = fuzz_configurations(args.fuzz, args.max_seconds, args.seed)
    print(json.dumps(parts, indent=2))
    if args.json is not None:
        # Parts may run one by one, so each records its machine, date and command.
        report = json.loads(args.json.read_text()) if args.json.exists() else {}
        report |= {name: {**part, **circumstances()} for name, part in parts.items()}
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if all(part["as_promised"] for part in parts.values()) else 1


def storm(directory: Path, faults: int, max_s: float, seed: int) -> dict[str, Any]:
    """Train CartPole under faults until there were enough of them, then until it is solved."""
    config = load_config(
        Path("configs/cartpole_ppo.yaml"),
        [
            f"run_dir={directory / 'storm'}",
            "env.id=tests.chaos.storm.stormy_cartpole:make",
            "env.max_episode_steps=500",
            f"env.step_timeout_s={DEADLINE_S}",
            f"env.reset_timeout_s={DEADLINE_S}",
            "sampler.num_env_workers=2",
            "sampler.num_model_workers=1",
            "sampler.groups=2",
            "sampler.envs_per_worker=4",
            f"faults.max_restarts={UNLIMITED}",
            "total_steps=1e8",
            "algorithm.learning_rate_schedule=constant",
            "algorithm.clip_schedule=constant",
            "evaluation.enabled=false",
            "evaluation.env_kwargs={calm: true}",
            "logging.tensorboard=false",
        ],
    )
    path, began_s = directory / "storm" / "faults.jsonl", time.monotonic()
    witness = Witness(faults, path, began_s + max_s, seed)
    with witness:
        done = train(config)
    logged = [json.loads(line) for line in path.read_text().splitlines()]
    # Evaluates the policy without faults.
    score = evaluate_run(done.path, episodes=100).result.return_mean
    found = witness.storm
    on_workers = sum(times for name, times in found.hits.items() if "throughput" not in name)
    return {
        "seconds": time.monotonic() - began_s,
        "steps": done.outcome.steps,
        "faults_logged": len(logged),
        "causes": dict(Counter(_kind(row["cause"]) for row in logged)),
        "hits_from_outside": dict(found.hits),
        "not_recovered": found.unrecovered,
        "recovery_mean_s": statistics.fmean(found.recovery_s),
        "recovery_max_s": max(found.recovery_s),
        "transitions_checked": witness.checked,
        "transitions_misplaced": witness.misplaced,
        "score": score,
        "as_promised": len(logged) >= max(faults, on_workers)
        and not found.unrecovered
        and witness.misplaced == 0
        and score >= SCORE
        and statistics.fmean(found.recovery_s) <= 1.0,
    }


def _kind(cause: str) -> str:
    worker, _, rest = cause.partition(" ")
    kind = worker.rpartition("-")[0]
    for sign in ("SIGKILL", "SIGABRT", "the pole broke", "within"):
        if sign in rest:
            return f"{kind}: {'deadline' if sign == 'within' else sign}"
    return f"{kind}: {rest}"


def kills(directory: Path, times: int, max_s: float, seed: int, ranks: int = 1) -> dict[str, Any]:
    """Kill a run, or one of its ranks, again and again, and resume it each time."""
    found = kill_again_and_again(directory, times, max_s, seed, ranks)
    return {
        "seconds": found.seconds,
        "killed": found.killed,
        "resumed": found.resumed,
        "interval_steps": found.interval_steps,
        "lost_steps_mean": statistics.fmean(found.lost_steps),
        "lost_steps_max": max(found.lost_steps),
        "ends_s_max": max(found.ends_s),
        "left_processes": found.left_processes,
        "left_files_in_dev_shm": found.left_files,
        "as_promised": found.resumed == found.killed - 1
        and max(found.lost_steps) <= found.interval_steps
        and found.left_processes == found.left_files == 0,
    }


if __name__ == "__main__":
    sys.exit(main())
