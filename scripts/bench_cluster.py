"""Measure the overhead and the scaling of a Ray cluster, with raylets on this machine.

    python scripts/bench_cluster.py --json results/cluster.json

``overhead``: Ray with only the learner's node, compared with a `ProcessSampler`, sampling and
training, in turns.
``a call``: the time that Ray adds to an actor's 2 ms of work, with nothing to send.
``scaling``: environments that sleep 5 ms per step, and so need no core, on several raylets.
``flatness``: growth of memory, file descriptors and object store over many rollouts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median

import psutil
from bench.results import Row, quantity, write
from bench.rounds import interleaved, rate, ratio
from command_line import Parser, count, duration, output, run

from fastrl.cluster.connection import Connection
from fastrl.config import ClusterConfig, Config, load_config
from fastrl.learning import build_learner
from fastrl.sampling import Sampler, make_plan, make_sampler
from fastrl.system import usable_cores

_CONFIGS = Path(__file__).resolve().parents[1] / "configs"
_SAMPLED = {
    "HalfCheetah-v5": ("halfcheetah_v5_throughput", "halfcheetah_v4_ppo_cleanrl"),
    "Crafter-v1": ("crafter_throughput", "crafter_ppo"),
    "CartPole-v1": ("cartpole_throughput", "cartpole_ppo"),
}
"""Configurations for sampling and for training."""
_SERVERS = ("raylet", "gcs_server", "ray::Dashboard", "ray::RuntimeEn")
"""Names of Ray's own processes."""
_WAITING = ["env.id=latency_envs:TimedEnv", "env.kwargs={step_s: 0.005}"]


def main() -> int:
    """Measure, print and write the JSON file."""
    parser = Parser(__doc__)
    parser.add_argument("--rounds", type=count, default=7)
    parser.add_argument("--seconds", type=duration, default=5.0, help="length of a window (5)")
    parser.add_argument("--raylets", type=count, nargs="+", default=[1, 2, 3, 6])
    parser.add_argument("--rollouts", type=count, default=500)
    parser.add_argument("--only", default="", help="measure only names that contain this")
    parser.add_argument("--json", type=output)
    args = parser.parse_args()
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    # The priority of workers without Ray; by default Ray's have a lower one.
    os.environ.setdefault("RAY_worker_niceness", "0")
    measured: dict[str, Callable[[], Row]] = {}
    for env_id, names in _SAMPLED.items():
        for learns, name in zip((False, True), names, strict=True):
            what = f"overhead of {'training' if learns else 'sampling'} {env_id}"
            overrides = [f"env.id={env_id}"] if learns else ["sampler.mode=async"]
            config = load_config(_CONFIGS / f"{name}.yaml", overrides).for_throughput()
            measured[what] = partial(_overhead, config, learns, args.rounds, args.seconds)
    measured["a call of Ray"] = partial(_call, args.rounds)
    waiting = load_config(_CONFIGS / "throughput.yaml", [*_WAITING, "sampler.mode=async"])
    for raylets in args.raylets:
        measured[f"scaling to {raylets}"] = partial(_scaling, waiting, raylets, args)
    crafter = load_config(_CONFIGS / "crafter_native_throughput.yaml")
    measured["flatness"] = partial(_flatness, crafter.for_throughput(), args.rollouts)
    rows: list[Row] = []
    for name, measure in measured.items():
        if args.only in name:
            rows.append({"measured": name, **measure()})
            print(rows[-1], flush=True)
            if args.json:
                write({"results": rows}, args.json)
    return 0


@contextmanager
def _cluster(raylets: int = 0, head_cores: int = 0) -> Iterator[ClusterConfig]:
    """Start a head, the node of this process, and raylets with one core each."""
    from ray.cluster_utils import Cluster

    sizes = {"include_dashboard": False, "object_store_memory": 500 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": head_cores, **sizes})
    try:
        for _ in range(raylets):
            cluster.add_node(num_cpus=1, **sizes)
        yield ClusterConfig(address=cluster.address)
    finally:
        cluster.shutdown()


def _overhead(config: Config, learns: bool, rounds: int, seconds: float) -> Row:
    with ExitStack() as stack:
        cluster = stack.enter_context(_cluster(head_cores=usable_cores()))
        turns = {}
        for name, section in {"process": None, "cluster": cluster}.items():
            own = config.model_copy(update={"cluster": section, "total_steps": 2**60})
            plan = make_plan(own)
            sampler = stack.enter_context(make_sampler(own, plan))
            learner = build_learner(own, plan.env_spec) if learns else None
            turns[name] = partial(_window, sampler, learner, seconds)
        interleaved(turns, 1)  # the first rollouts prepare everything
        rates = interleaved(turns, rounds)
    return {
        "ratio": ratio(rates["cluster"], rates["process"]),
        **quantity("process_per_s", rates["process"]),
        **quantity("cluster_per_s", rates["cluster"]),
    }


def _window(sampler: Sampler, learner: object, seconds: float) -> float:
    def steps() -> int:
        rollout = sampler.collect()
        if learner is not None:
            learner.update(rollout)
            sampler.publish(learner.weights())
        return rollout.num_steps

    steps()
    found = rate(steps, seconds)
    sampler.pause()
    return found


class _Works:
    """Computes for some time, as an environment does."""

    def work(self, seconds: float) -> None:
        until_s = time.perf_counter() + seconds
        while time.perf_counter() < until_s:
            pass


def _call(rounds: int, work_s: float = 0.002, calls: int = 100) -> Row:
    """Return the overhead of calls whose caller works between them."""
    found = []
    head = _cluster(head_cores=usable_cores())
    with head as cluster, Connection(cluster.address) as connection:
        actor = connection.start(connection.nodes()[0], _Works, 1)
        for _ in range(rounds + 1):
            spent_s = []
            for _ in range(calls):
                _Works().work(work_s)
                began_s = time.perf_counter()
                connection.get(actor.work.remote(work_s), 60.0)
                spent_s.append(time.perf_counter() - began_s - work_s)
            found.append(1e3 * median(spent_s))
        connection.kill(actor)
    return quantity("overhead_ms", found[1:])


def _scaling(config: Config, raylets: int, args: object) -> Row:
    sizes = {"num_env_workers": 1, "envs_per_worker": 2, "rollout_length": 64}
    sampler = config.sampler.model_copy(update=sizes)
    with _cluster(raylets) as cluster:
        own = config.model_copy(update={"cluster": cluster, "sampler": sampler})
        with make_sampler(own) as made:
            found = [_window(made, None, args.seconds) for _ in range(args.rounds)]
    limit = raylets / 0.005  # the two environments of a worker wait one after the other
    return {"raylets": raylets, **quantity("per_s", found), "of_limit": median(found) / limit}


def _flatness(config: Config, rollouts: int) -> Row:
    """Compare the maxima over the last two fifths of the rollouts."""
    seen: list[dict[str, float]] = []
    fifth = max(1, rollouts // 5)
    with _cluster(2) as cluster:
        own = config.model_copy(update={"cluster": cluster})
        with make_sampler(own) as sampler:
            for index in range(rollouts):
                sampler.collect()
                if index >= rollouts - 2 * fifth:
                    seen.append(_held())
    before, after = seen[:fifth], seen[fifth:]
    return {
        f"{key}_{when}": max(each[key] for each in part)
        for key in seen[0]
        for when, part in {"before": before, "after": after}.items()
    }


def _held() -> dict[str, float]:
    """Return the memory and descriptors of this process, its children and its raylets."""
    import ray

    own = psutil.Process()
    processes = [own, *own.children(recursive=True)]
    store = ray.cluster_resources().get("object_store_memory", 0.0)
    # Memory of one process alone: all processes share the pages of the object store.
    unique = {each: each.memory_full_info().uss / 2**20 for each in processes}
    rays = sum(mib for each, mib in unique.items() if each.name().startswith(_SERVERS))
    return {
        "unique_mib": sum(unique.values()) - rays,
        "rays_unique_mib": rays,
        "descriptors": float(sum(each.num_fds() for each in processes)),
        "processes": float(len(processes)),
        "store_mib": (store - ray.available_resources().get("object_store_memory", 0.0)) / 2**20,
    }


if __name__ == "__main__":
    run(main)
