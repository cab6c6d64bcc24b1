"""The choice of ``backend="auto"``: times one environment, and backends if that is not enough.

No constant here depends on a particular machine.
"""

from __future__ import annotations

import itertools
import math
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from statistics import median
from typing import Any

from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import concatenate, create_empty_array

from fastrl.envs.action_masks import random_actions, uniform_numbers, valid_sample
from fastrl.envs.rows import reset_values, step_values
from fastrl.errors import USERS_FAILURES, EnvError, FastrlError
from fastrl.global_streams import seeded_streams
from fastrl.system import usable_cores
from fastrl.vector.failures import EnvTimeoutError, raised
from fastrl.vector.groups import close_probed, within_deadlines
from fastrl.vector.vector_env import FastVectorEnv
from fastrl.vector.vector_plan import Env, VectorPlan, why_not_sent

Start = Callable[[VectorPlan, str], FastVectorEnv]
"""Starts a plan on a backend."""

_SERIAL = ("serial", 1)
_BUDGET_S, _MAX_STEPS = 0.05, 500
_WAITS_S = 1e-3
_TRIAL_S, _TURN_S = 0.2, 5e-3
_CLEAR = 20
"""Ratio of gain to overhead that needs no trial."""
_WORTH = 0.97
"""Share of the time on one core above which processes are not used."""


@dataclass(frozen=True)
class StepCost:
    """The times of one environment.

    Attributes:
        step_s: Seconds of a step, without resets.
        busy_s: Seconds of the processor's time, with a step's share of resets.
        waits: Whether it waits, for instance for a network or another process.
        ends: Mean number of episodes that end in a step: 1 / their mean length.
        reset_s: Seconds of a reset.
        build_s: Seconds to build it.
    """

    step_s: float
    busy_s: float
    waits: bool = False
    ends: float = 0.0
    reset_s: float = 0.0
    build_s: float = 0.0

    def steps_s(self, num_envs: int, workers: int) -> float:
        """Return the seconds of a step of all environments, without the overhead of workers."""
        return num_envs / workers * self.step_s + self.resets_s(num_envs, workers)

    def resets_s(self, num_envs: int, workers: int) -> float:
        """Return the seconds of resets in a step, which lasts until the last worker is done.

        The number of episodes that end is Poisson distributed; for the maximum of several such
        numbers see Boucheron et al., *Concentration Inequalities* (2013), section 2.5.
        """
        mean = num_envs / workers * self.ends
        most = min(workers * mean, mean + math.sqrt(2 * mean * math.log(workers)))
        return most * self.reset_s


def choose_backend(plan: VectorPlan, wanted: int | None, start: Start) -> tuple[str, int]:
    """Return the fastest backend for single environments, and its number of workers.

    One environment is timed for a twentieth of a second with random actions. Threads are for
    environments that wait. If the gain of processes is not clear, they are tried.

    Args:
        plan: Plan of the environments.
        wanted: Number of workers that the caller asks for, or None.
        start: Starts a trial.

    Raises:
        EnvFailure: The environment raised, or a call overran its deadline.
    """
    num_envs, cores = plan.num_envs, usable_cores()
    if num_envs == 1:
        return _SERIAL
    # The caller's global random streams do not change.
    with seeded_streams(0):
        try:
            env, cost = _timed(plan)
        except EnvTimeoutError:
            raise
        except FastrlError as error:
            # Signal handlers and windows need the main thread.
            if "main thread" in str(error):
                return _SERIAL
            raise
        # Drawing all windows in turn takes until the next frame of the first.
        if getattr(env, "render_mode", None) == "human":
            return _SERIAL
        processes = ("processes", min(wanted or cores, num_envs))
        if cost.waits:
            threads = ("threads", min(wanted or num_envs, num_envs))
            threads_s = cost.step_s + num_envs * cost.busy_s
            shared_s = cost.steps_s(num_envs, processes[1])
            return threads if threads_s <= shared_s or why_not_sent(plan) else processes
        alone_s = cost.steps_s(num_envs, 1)
        shared_s = cost.steps_s(num_envs, min(processes[1], cores))
        gain_s, overhead_s = alone_s - shared_s, wake_s()
        if gain_s < overhead_s or why_not_sent(plan):
            return _SERIAL
        if gain_s > _CLEAR * overhead_s and shared_s < 0.6 * alone_s:
            return processes
        fewer = ("processes", max(2, processes[1] // 4))
        shared = [processes] if wanted or fewer[1] == processes[1] else [processes, fewer]
        return _tried(plan, cost, shared, start)


def _tried(
    plan: VectorPlan, cost: StepCost, shared: Sequence[tuple[str, int]], start: Start
) -> tuple[str, int]:
    """Return the fastest choice, measured with as many environments as can be built quickly."""
    num_envs, most = plan.num_envs, max(workers for _, workers in shared)
    few = min(num_envs, max(2 * most, int(_TRIAL_S / max(cost.build_s, 1e-9))))
    # Trials reset automatically, also if the caller will reset.
    plan = replace(plan, num_envs=few, autoreset=AutoresetMode.SAME_STEP, stream=0)
    choices = [_SERIAL, *shared]
    contestants = [(replace(plan, num_workers=workers), name) for name, workers in choices]
    try:
        times = trial(contestants, start)
    except FastrlError:  # some environments cannot exist twice at a time
        return _SERIAL
    took = {}
    for choice, step_s in zip(choices, times, strict=True):
        overhead_s = 0.0 if choice == _SERIAL else min(step_s, wake_s())
        took[choice] = overhead_s + (step_s - overhead_s) * num_envs / few
        if num_envs * cost.ends < 1:  # the quartile has no reset
            took[choice] += cost.resets_s(num_envs, choice[1])
    best = min(shared, key=took.__getitem__)
    return best if took[best] < _WORTH * took[_SERIAL] else _SERIAL


def choose_shares(alone: VectorPlan, shared: VectorPlan, start: Start) -> VectorPlan:
    """Return the faster plan of a batch: one thread or process, or several."""
    with seeded_streams(0):
        both = [(replace(plan, stream=0), "native") for plan in (alone, shared)]
        if trial(both[:1], start, _TURN_S)[0] < wake_s():
            return alone
        alone_s, shared_s = trial(both, start)
    return shared if shared_s < _WORTH * alone_s else alone


def trial(
    contestants: Sequence[tuple[VectorPlan, str]], start: Start, seconds: float = _TRIAL_S
) -> list[float]:
    """Return the seconds of a step of each candidate, which step in turns.

    It is the lower quartile, which other programs disturb less than the median.
    """
    with ExitStack() as stack:
        running = [stack.enter_context(closing(start(*each))) for each in contestants]
        times: list[list[float]] = [[] for _ in running]
        actions = []
        for envs in running:
            envs.reset(seed=0)
            actions.append(_random_actions(envs))
        until = time.perf_counter() + seconds
        while time.perf_counter() < until or len(times[0]) < 3:
            for envs, draw, taken in zip(running, actions, times, strict=True):
                turn, began = time.perf_counter() + _TURN_S, 0.0
                while began < turn:
                    given = draw()
                    began = time.perf_counter()
                    envs.step(given)
                    taken.append(time.perf_counter() - began)
        return [sorted(taken)[len(taken) // 4] for taken in times]


def _random_actions(envs: FastVectorEnv) -> Callable[[], Any]:
    """Return a function that draws actions of all environments, valid ones if they have masks.

    Args:
        envs: Environments after a reset.
    """
    envs.action_space.seed(0)
    samples = itertools.cycle([envs.action_space.sample() for _ in range(5)])
    has_masks = False
    with suppress(EnvError):  # something else has this name
        has_masks = envs.has_action_masks
    if not has_masks:
        return lambda: next(samples)
    space, uniform = envs.single_action_space, uniform_numbers()
    empty: Any = create_empty_array(space, envs.num_envs)

    def draw() -> Any:
        each = [valid_sample(space, mask, uniform) for mask in envs.action_masks()]
        return concatenate(space, each, empty)

    return draw


@cache
def wake_s() -> float:
    """Return the seconds to wake a thread and get its answer: the least overhead of a worker."""
    times = []
    with ThreadPoolExecutor(1) as pool:
        for _ in range(20):
            began = time.perf_counter()
            pool.submit(int).result()
            times.append(time.perf_counter() - began)
    return median(times)


def _timed(plan: VectorPlan) -> tuple[Env, StepCost]:
    @contextmanager
    def look(begin: Callable[[str], None]) -> Iterator[tuple[Env, StepCost]]:
        began = time.perf_counter()
        env = plan.build(0)
        build_s = time.perf_counter() - began
        try:
            yield env, replace(step_cost(env, begin), build_s=build_s)
        except USERS_FAILURES as error:
            raise raised(error, "serial", 0).explain(plan.name, "while it was timed") from error
        finally:
            begin("close()")
            close_probed(env, plan.name)

    try:
        return within_deadlines(plan, look)
    except EnvTimeoutError as error:
        raise error.explain(plan.name, "while it was timed") from None


def step_cost(env: Env, begin: Callable[[str], None] = lambda _: None) -> StepCost:
    """Time an environment.

    Args:
        env: Environment to time.
        begin: Called before each kind of call with its name.
    """
    begin("reset()")
    seen, info = reset_values(env.reset(seed=0), 0)
    draw = random_actions(env, info)
    begin("step()")
    step_values(env.step(draw(seen, info)), 0)
    begin("reset()")
    seen, info = env.reset()
    begin("step()")
    sleeps = _sleeps()
    steps, ends, resets_s, resets_busy_s = 0, 0, 0.0, 0.0
    start, busy = time.perf_counter(), time.thread_time()
    while not steps or (steps < _MAX_STEPS and time.perf_counter() - start < _BUDGET_S):
        seen, _, terminated, truncated, info = env.step(draw(seen, info))
        steps += 1
        if terminated or truncated:
            ended, ended_busy = time.perf_counter(), time.thread_time()
            begin("reset()")
            seen, info = env.reset()
            begin("step()")
            ends, resets_s = ends + 1, resets_s + time.perf_counter() - ended
            resets_busy_s += time.thread_time() - ended_busy
    mean_s = (time.perf_counter() - start) / steps
    busy_s = (time.thread_time() - busy) / steps
    asleep = _sleeps() - sleeps >= steps / 2
    # If an environment never sleeps, other programs took the rest of the time.
    step_s = mean_s - resets_s / steps if asleep else busy_s - resets_busy_s / steps
    return StepCost(
        step_s=step_s,
        busy_s=busy_s,
        waits=asleep and mean_s - busy_s > max(_WAITS_S, mean_s / 2),
        ends=ends / steps,
        reset_s=resets_s / max(1, ends),
    )


def _sleeps() -> float:
    """Return how many times this thread has slept; NaN if the system does not count it."""
    thread = getattr(resource, "RUSAGE_THREAD", None)
    return math.nan if thread is None else resource.getrusage(thread).ru_nvcsw
