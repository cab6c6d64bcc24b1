"""Find each method's best settings, then measure all methods in turn."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median
from typing import Any

from bench.results import Found, quantity
from bench.rounds import interleaved, rate

from comparison.method import FastrlSampling, Method, Peer
from comparison.peers import PEERS
from comparison.report import FASTRL, best_vector_env, ratios, settings_text
from comparison.task import Task
from fastrl.errors import EnvError, FastrlError, cause, one_line
from fastrl.spec import Topology
from fastrl.throughput.limits import Limit, LimitProbe

_SINGLE = "fastrl-python"
LABELS = {name: peer.label for name, peer in PEERS.items()} | {
    _SINGLE: "fastrl, single environments",
    **dict(zip(FASTRL, ("fastrl, default", "fastrl, best"), strict=True)),
}
"""Labels of the methods in tables, by name."""

_SETTLE_S = 0.1
_LIMIT = "limit"


@dataclass(frozen=True)
class Options:
    """Options of a comparison.

    Attributes:
        methods: Names of the methods to measure.
        sizes: Numbers of environments to try for each peer; empty for the default ones.
        grid: Topologies to try for fastrl; empty for a small grid.
        seconds: Length of a window.
        repeats: Number of rounds.
        scan_s: Length of a window of the scan, and of the warm-up before each round.
        with_limit: Measure the physical limit in every round.
    """

    methods: Sequence[str] = tuple(LABELS)
    sizes: tuple[int, ...] = ()
    grid: Sequence[Topology] = ()
    seconds: float = 3.0
    repeats: int = 5
    scan_s: float = 1.0
    with_limit: bool = False


def compare(task: Task, options: Options) -> Found:
    """Find each method's best settings, then measure all methods in turn, round by round.

    Returns:
        The content of a file, without date and machine: ``results``, a row per method, ``ratios``
        to the others, ``limits`` of each round, empty if they were not measured, ``scan``, the
        quick windows, and ``skipped``, why a method is missing, by name.

    Raises:
        EnvError: None of the methods can be measured.
        WorkerError: A worker of fastrl failed.
    """
    chosen: list[Method] = []
    scan: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    for name in options.methods:
        try:
            chosen.append(best_settings(name, task, options, scan))
        except Exception as error:
            if name in FASTRL:
                raise
            known = isinstance(error, FastrlError | ImportError)
            skipped[name] = one_line(error, None) if known else cause(error)
            say(f"{name:18} left out: {skipped[name]}")
    if not chosen:
        raise EnvError(f"no method can sample '{task.config.env.id}' here")
    fps, limits = measure_rounds(chosen, task, options)
    env, limit_fps = task.config.env.id, [limit.fps for limit in limits]
    rows = [
        {
            "method": each.name,
            "label": each.label,
            "env": env,
            "settings": dict(each.settings),
            **quantity("fps", fps[each.name]),
        }
        for each in chosen
    ]
    protocol = {
        "seconds": options.seconds,
        "repeats": options.repeats,
        "scan_s": options.scan_s,
        "mode": task.config.sampler.mode,
    }
    return {
        "env": env,
        "policy": task.policy,
        "results": rows,
        "ratios": ratios(rows, limit_fps),
        "best_vector_env": best_vector_env(rows),
        "limit_fps": median(limit_fps) if limit_fps else None,
        "limits": [asdict(limit) | {"fps": limit.fps} for limit in limits],
        "scan": scan,
        "skipped": skipped,
        "protocol": protocol,
        "config": task.config.model_dump(mode="json", include={"seed", "env", "sampler", "model"}),
    }


def best_settings(name: str, task: Task, options: Options, scan: list[dict[str, Any]]) -> Method:
    """Return a method at the settings that were fastest in a quick window.

    The measurements are appended to ``scan``.

    Raises:
        ModuleNotFoundError: The method's package is not installed.
    """

    def quick(method: Method) -> float:
        with closing(method):
            method.start()
            method.run(options.scan_s / 2)
            fps = rate(partial(method.run, options.scan_s), options.scan_s)
        scan.append({"method": name, "settings": dict(method.settings), "fps": fps})
        say(f"{name:18} {fps:>12,.0f}   {settings_text(method.settings)}")
        return fps

    found = candidates(name, task, options)
    if len(found) == 1 and name in FASTRL:
        return found[0]
    speeds = {method: quick(method) for method in found}
    best = max(speeds, key=speeds.__getitem__)
    if isinstance(best, Peer) and task.cores > 1:
        threaded = type(best)(task, replace(best.chosen, torch_threads=task.cores))
        speeds[threaded] = quick(threaded)
        best = max(best, threaded, key=speeds.__getitem__)
    return best


def candidates(name: str, task: Task, options: Options) -> list[Method]:
    """Return a method for every setting that the scan tries, none of them started.

    Raises:
        ModuleNotFoundError: The method's package is not installed.
    """
    if name in (_SINGLE, *FASTRL):
        topologies = [task.config.topology]
        if name == _SINGLE:
            task = task.of_the_original()
        if name in (_SINGLE, "fastrl-best"):
            topologies = list(options.grid) or default_grid(task)
        return [FastrlSampling(name, LABELS[name], task, topology) for topology in topologies]
    peer = PEERS[name]
    if importlib.util.find_spec(peer.requires) is None:
        raise ModuleNotFoundError(f"{peer.requires} is not installed; see the extra 'compare'")
    tries: Any = peer  # each class takes the settings of its own `to_try`
    return [tries(task, settings) for settings in tries.to_try(task, options.sizes)]


def default_grid(task: Task) -> list[Topology]:
    """Return the topologies to try by default: one env worker per core."""
    cores = task.cores
    alone = (4, 8, 16) if task.is_slow else (8, 16, 32, 64, 128)
    served = (8,) if task.is_slow else (32, 128)
    grid = [Topology(size, cores, 0, 1) for size in alone]
    return grid + [Topology(size, cores, 1, 2) for size in served]


def measure_rounds(
    methods: Sequence[Method], task: Task, options: Options
) -> tuple[dict[str, list[float]], list[Limit]]:
    """Measure every method once per round, in a random order.

    All of them stay alive from the first round to the last; the others are
    blocked and cost no time.

    Returns:
        Frames per second by method, one per round, and the limits, one per round or none.
    """
    with ExitStack() as stack:
        for method in methods:
            stack.callback(method.close)
            method.start()
            method.run(options.scan_s)
            method.rest()
        turns: dict[str, Any] = {
            method.name: partial(_turn, method, options.seconds) for method in methods
        }
        if options.with_limit:
            probe = stack.enter_context(LimitProbe(task.plan, task.factory, task.cores))
            turns[_LIMIT] = partial(probe.measure, options.seconds)
        found = interleaved(
            turns,
            options.repeats,
            task.config.seed,
            lambda index: say(f"round {index + 1} is done"),
        )
    limits = found.pop(_LIMIT, [])
    return found, limits


def _turn(method: Method, seconds: float) -> float:
    fps = rate(partial(method.run, seconds), seconds)
    method.rest()
    time.sleep(_SETTLE_S)
    say(f"{method.name:18} {fps:>12,.0f}")
    return fps


def say(text: str) -> None:
    """Report progress; standard output is the table's."""
    print(text, file=sys.stderr, flush=True)
