"""Faults at random moments on the nodes of a cluster, and their results.

python -m tests.chaos.storm.cluster --faults 50 --json results/cluster_chaos.json
"""

from __future__ import annotations

import json
import logging
import os
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

os.environ |= {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
}

from fastrl.config import ClusterConfig, Config, load_config
from fastrl.sampling import make_sampler
from fastrl.system import circumstances
from fastrl.training import train
from fastrl.training.callbacks import Callback
from scripts.command_line import Parser, duration, output, run, whole
from tests.cluster.ledger import Ledger
from tests.cluster.raylets import Raylets, actor, freeze, raylet, thaw

NODES, TIMEOUT_S, SHORT_FREEZE_S, SCORE = 3, 6.0, 5.0, 475.0
DEADLINE_S = TIMEOUT_S + 1.0
"""Deadline of an answer in seconds; a node sends a heartbeat every second."""
_GIVE_UP_S = 120.0


class Weather:
    """Injects faults into the nodes of a cluster.

    Args:
        raylets: The cluster.
        seed: Seed of the faults and their times.
    """

    def __init__(self, raylets: Raylets, seed: int) -> None:
        self._raylets, self._pick = raylets, random.Random(seed)
        self.nodes = [raylets.add() for _ in range(NODES)]
        self.lose: Callable[[], object] = lambda: None
        self.kinds: dict[str, Callable[[], None]] = {
            "actor killed": lambda: actor(self._node()).kill(),
            "raylet killed": lambda: self._kill(self._node()),
            "raylet frozen for 5 s": self._freeze_shortly,
            "raylet frozen for good": self._freeze,
            "node added": lambda: self._kill(self.nodes[0]),
            "worker killed": self._kill_worker,
            "object lost": lambda: self.lose() and None,
        }

    def hit(self, kind: str) -> None:
        """Inject a fault, unless its target is missing."""
        try:
            self.kinds[kind]()
        except (psutil.Error, IndexError):
            logging.getLogger(__name__).info("nothing to hit for: %s", kind)

    def _node(self) -> Any:
        return self._pick.choice(self.nodes)

    def mend(self) -> None:
        """Add missing nodes; in the main thread, since Ray sets signal handlers."""
        while len(self.nodes) < NODES:
            self.nodes.append(self._raylets.add())

    def _kill(self, node: Any) -> None:
        self.nodes.remove(node)
        self._raylets.remove(node)

    def _freeze(self) -> None:
        gone = self._node()
        freeze(raylet(gone))
        time.sleep(DEADLINE_S + 1)
        self._kill(gone)

    def _freeze_shortly(self) -> None:
        process = raylet(self._node())
        freeze(process)
        time.sleep(SHORT_FREEZE_S)
        thaw(process)

    def _kill_worker(self) -> None:
        servers = actor(self._node()).children()
        self._pick.choice([w for server in servers for w in server.children()]).kill()


def main() -> int:
    """Inject faults into a counting run and a training run; return 1 if a check failed."""
    parser = Parser(__doc__, prog="storm.cluster")
    parser.add_argument("--faults", type=whole, default=50, help="while counting")
    parser.add_argument("--while-learning", type=whole, default=10)
    parser.add_argument("--max-seconds", type=duration, default=3600.0)
    parser.add_argument("--seed", type=whole, default=0)
    parser.add_argument("--json", type=output)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    shared = set(os.listdir("/dev/shm"))
    with Raylets() as raylets:
        weather = Weather(raylets, args.seed)
        counted = count(raylets, weather, args.faults, args.max_seconds, args.seed)
        learnt = learn(raylets, weather, args.while_learning)
    # multiprocessing keeps its fork server and its tracker until this process ends.
    commands = [" ".join(each.cmdline()) for each in psutil.Process().children(recursive=True)]
    left = [command[:200] for command in commands if "from multiprocessing." not in command]
    # Semaphores of multiprocessing are those of other programs: fastrl's have no name.
    names = [name for name in set(os.listdir("/dev/shm")) - shared if "sem.mp-" not in name]
    as_promised = counted.pop("as_promised") and learnt["score"] >= SCORE
    report = {
        **counted, **learnt, "processes_left": left, "shared_memory_left": names,
        "as_promised": as_promised and not names and not left,
    }  # fmt: skip
    print(json.dumps(report, indent=2))
    if args.json is not None:
        args.json.write_text(json.dumps(report | circumstances(), indent=2) + "\n")
    return 0 if report["as_promised"] else 1


def count(
    raylets: Raylets, weather: Weather, faults: int, max_s: float, seed: int
) -> dict[str, Any]:
    """Sample counting environments, and check every transition."""
    config = Config(
        env={
            "id": "tests.counting_env:make",
            "kwargs": {"uneven": True, "ending": "alternate", "length": 20},
        },
        # Rollouts that are too large to travel within an answer.
        sampler={"envs_per_worker": 8, "num_env_workers": 2, "rollout_length": 800},
        cluster=ClusterConfig(address=raylets.address, node_timeout_s=TIMEOUT_S),
        faults={"max_restarts": 1_000_000},
    )
    ledger, logged, pick = Ledger(length=20), [], random.Random(seed)
    hits: Counter[str] = Counter()
    stalls: list[float] = []
    recoveries: list[float] = []
    transitions, began_s = 0, time.monotonic()
    with make_sampler(config, on_fault=logged.append) as sampler:
        full = NODES * sampler.topology.num_envs

        def collect() -> int:
            nonlocal transitions
            rollout = sampler.collect()
            ledger.check(rollout)
            transitions += rollout.num_steps
            return len(rollout.slots)

        weather.lose = lambda: _free(sampler)
        while collect() < full:
            pass
        while hits.total() < faults and time.monotonic() < began_s + max_s:
            kind = pick.choice(sorted(weather.kinds))
            if kind == "node added":
                # One more for a while.
                weather.nodes.append(raylets.add())
                while collect() <= full:
                    pass
            blow = threading.Thread(target=weather.hit, args=(kind,))
            start_s = time.monotonic()
            blow.start()
            allowed_s = DEADLINE_S if kind in _FROZEN else 0.0
            longest = 0.0
            found = 0
            while blow.is_alive() or found != full:
                if not blow.is_alive():
                    weather.mend()
                before_s = time.monotonic()
                found = collect()
                longest = max(longest, time.monotonic() - before_s)
                assert time.monotonic() < start_s + _GIVE_UP_S, f"no recovery from: {kind}"
            hits[kind] += 1
            stalls.append(max(0.0, longest - allowed_s))
            recoveries.append(time.monotonic() - start_s)
            print(f"{hits.total()}: {kind}, stalled for {longest:.1f} s", flush=True)
    return {
        "seconds": time.monotonic() - began_s,
        "hits": dict(hits),
        "faults_logged": len(logged),
        "transitions_checked": transitions,
        "transitions_misplaced": 0,
        "stall_beyond_deadline_mean_s": statistics.fmean(stalls),
        "stall_beyond_deadline_max_s": max(stalls),
        "all_nodes_again_mean_s": statistics.fmean(recoveries),
        "as_promised": hits.total() >= faults and statistics.fmean(stalls) <= 2.0,
    }


_FROZEN = ("raylet frozen for 5 s", "raylet frozen for good")


def _free(sampler: Any) -> bool:
    """Delete an answer in transit from the object stores."""
    from ray._private.internal_api import free

    free([member.reference for member in sampler._roster if member.asked][:1])
    return True


def learn(raylets: Raylets, weather: Weather, faults: int) -> dict[str, Any]:
    """Train CartPole to the end while nodes fail."""
    with tempfile.TemporaryDirectory() as directory:
        overrides = [
            f"run_dir={directory}/run",
            # As many updates as on one machine.
            f"total_steps={NODES * 100_000}",
            f"cluster.address={raylets.address}",
            f"cluster.node_timeout_s={TIMEOUT_S}",
            "faults.max_restarts=1000000",
            "evaluation.enabled=true",
            "logging.tensorboard=false",
        ]
        config = load_config(Path("configs/cartpole_ppo.yaml"), overrides)
        thrown = _Hits(weather, faults)
        done = train(config, callbacks=[thrown])
        return {
            "hits_while_learning": thrown.done,
            "score": done.outcome.evaluation.return_mean,
        }


class _Hits(Callback):
    """Callback that injects a fault at regular intervals."""

    def __init__(self, weather: Weather, faults: int) -> None:
        self._weather, self._faults, self.done = weather, faults, 0
        self._kinds = sorted(weather.kinds.keys() - {"object lost"})

    def on_update(self, context: Any, update: Any) -> None:
        """Inject a fault at regular steps of the run."""
        if (
            self.done < self._faults
            and update.steps > (self.done + 1) * NODES * 80_000 / self._faults
        ):
            self._weather.hit(self._kinds[self.done % len(self._kinds)])
            self._weather.mend()
            self.done += 1


if __name__ == "__main__":
    run(main)
