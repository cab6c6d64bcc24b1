"""Which backend pays: one environment is timed, and the cost of handing over set against it."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from fastrl.cores import usable_cores
from fastrl.errors import USERS_FAILURES, FastrlError
from fastrl.global_streams import seeded_streams
from fastrl.vector.failures import EnvFailure, EnvTimeoutError, summary
from fastrl.vector.probing import Doing, close_probed, in_time
from fastrl.vector.spec import Env, VectorPlan, why_not_sent

HAND_OVER_S = 150e-6
"""What a step of worker processes costs besides the environments, on a 2-core AMD EPYC."""

SLOWDOWN = 1.4
"""How much slower environments step while every core is busy, on the same machine: its virtual
cores share what they have. Where cores are whole, `auto` is somewhat too slow to leave one process.
"""

ROOM_S = 150e-6
"""What it costs to make room for workers where torch has an idle thread; see `TorchThreads`."""

THREAD_S = 100e-6
"""What handing a step to one of many threads costs, on the same machine."""

_BUDGET_S = 0.05
_MAX_STEPS = 500
_WAITS_S = 1e-3


@dataclass(frozen=True)
class StepCost:
    """What a step of one environment takes.

    Attributes:
        step_s: Seconds, without resets.
        busy_s: Seconds of the processor's time, with a step's share of resets.
        waits: Whether it waits for something else than the processor: a network, another process,
            a window's next frame.
        ends: Episodes that end in a step: 1 / their mean length.
        reset_s: Seconds of a reset.
    """

    step_s: float
    busy_s: float
    waits: bool = False
    ends: float = 0.0
    reset_s: float = 0.0


def choose_backend(plan: VectorPlan) -> str:
    """Return the backend that steps a plan soonest: ``serial``, ``processes`` or ``threads``.

    One environment is built here, timed for a twentieth of a second with random actions, and
    closed. Threads are for environments that wait; processes only for what can be sent to them.

    Raises:
        EnvFailure: The environment raised, or a call overran its deadline.
    """
    if plan.num_envs == 1:
        return "serial"
    # However many steps it is timed for, what the caller draws next stays the same.
    try:
        with seeded_streams(0):
            env, cost = _timed(plan)
    except EnvTimeoutError:
        raise
    except FastrlError as error:
        if "main thread" in str(error):  # signal handlers, windows: such environments step there
            return "serial"
        raise
    if getattr(env, "render_mode", None) == "human":
        # One window waits for its next frame; by the time all are drawn, that has come.
        cost = StepCost(cost.busy_s, cost.busy_s)
    idle_threads = torch.get_num_threads() - 1
    found = cheapest(cost, plan.num_envs, usable_cores(), idle_threads)
    if found == "processes" and why_not_sent(plan):
        return cheapest(cost, plan.num_envs, 1, idle_threads)
    return found


def _timed(plan: VectorPlan) -> tuple[Env, StepCost]:
    @contextmanager
    def look(doing: Doing) -> Iterator[tuple[Env, StepCost]]:
        env = plan.instance(0).build()
        try:
            yield env, _cost(plan, env, doing)
        finally:
            doing.begin("close()")
            close_probed(env, plan.name)

    try:
        return in_time(plan, look)
    except EnvTimeoutError as error:
        raise EnvTimeoutError(
            f"env 0 of '{plan.name}' {error.args[0]}, while it was timed",
            worker="probe",
            env_index=0,
        ) from None


def _cost(plan: VectorPlan, env: Env, doing: Doing) -> StepCost:
    try:
        return step_cost(env, doing.begin)
    except USERS_FAILURES as error:
        raise EnvFailure(
            f"env 0 of '{plan.name}' (serial) raised {summary(error)}, while it was timed",
            worker="serial",
            env_index=0,
        ) from error


def cheapest(cost: StepCost, num_envs: int, cores: int, idle_threads: int = 0) -> str:
    """Return the backend with which a step of all environments takes the least time.

    Every step lasts until the last worker is done. So rare resets, which meet one worker at a time,
    take as long as in turn; only where several come in every step do they share the cores.

    Args:
        cost: Of one environment.
        num_envs: How many there are.
        cores: How many may be used.
        idle_threads: Threads that torch has besides the caller's.
    """
    took = {"serial": num_envs * (cost.step_s + cost.ends * cost.reset_s)}
    workers = min(cores, num_envs)
    if workers > 1:
        each = num_envs / workers
        resets = _most_of(workers, each * cost.ends)
        busy_s = each * cost.step_s + resets * cost.reset_s
        crowded = workers + idle_threads > cores
        took["processes"] = SLOWDOWN * busy_s + HAND_OVER_S + crowded * idle_threads * ROOM_S
    if cost.waits:
        took["threads"] = cost.step_s + num_envs * (cost.busy_s + THREAD_S)
    return min(took, key=lambda backend: took[backend])


def step_cost(env: Env, begin: Callable[[str], None] = lambda _: None) -> StepCost:
    """Time an environment.

    Args:
        env: What to time.
        begin: Called with the name of each kind of call before it is made.
    """
    begin("reset()")
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(50)]
    begin("step()")
    env.step(actions[0])
    begin("reset()")
    env.reset()
    begin("step()")
    sleeps = _sleeps()
    steps, ends, resets_s = 0, 0, 0.0
    start, busy = time.perf_counter(), time.thread_time()
    while steps < _MAX_STEPS and time.perf_counter() - start < _BUDGET_S:
        _, _, terminated, truncated, _ = env.step(actions[steps % len(actions)])
        steps += 1
        if terminated or truncated:
            ended = time.perf_counter()
            begin("reset()")
            env.reset()
            begin("step()")
            ends, resets_s = ends + 1, resets_s + time.perf_counter() - ended
    mean_s = (time.perf_counter() - start) / steps
    busy_s = (time.thread_time() - busy) / steps
    # Time that others had the core looks like waiting, but nobody went to sleep for it.
    asleep = _sleeps() - sleeps >= steps / 2
    return StepCost(
        step_s=mean_s - resets_s / steps,
        busy_s=busy_s,
        waits=asleep and mean_s - busy_s > max(_WAITS_S, mean_s / 2),
        ends=ends / steps,
        reset_s=resets_s / max(1, ends),
    )


def _most_of(workers: int, mean: float) -> float:
    """Return about how many episodes end in a step at the worker where most do.

    Their numbers are Poisson's; see Boucheron et al., *Concentration Inequalities* (2013),
    section 2.5, for the greatest of several whose variance is the mean.
    """
    return min(workers * mean, mean + math.sqrt(2 * mean * math.log(workers)))


def _sleeps() -> float:
    """Return how often this thread has waited of its own accord; never, where nobody counts it."""
    thread = getattr(resource, "RUSAGE_THREAD", None)
    return math.nan if thread is None else resource.getrusage(thread).ru_nvcsw
