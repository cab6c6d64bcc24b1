"""Answers requests for actions in one compiled loop, for as long as nothing needs Python.

A model worker that shares a core with env workers wakes up to caches full of their environments.
Python's way from there to the answer takes about 90 µs, of which the policy is a third; this one
touches a fraction of the memory.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numba import types

from fastrl.compiled import cached_kernel
from fastrl.models.inference import lanes, mlp_kernel
from fastrl.models.inference.lanes import fence, jitted
from fastrl.shared import counters as counters_file
from fastrl.shared import table as table_file
from fastrl.shared.counters import Counter
from fastrl.shared.table import NUM_BANKS
from fastrl.workers import hand_over as hand_over_file
from fastrl.workers.context import WorkerContext
from fastrl.workers.hand_over import NOT_RUNG, REPEAT, SLICE_S
from fastrl.workers.policy_runner import PolicyRunner, Request

_LOGGER = logging.getLogger(__name__)

_sem_post: Any = types.ExternalFunction("sem_post", types.int32(types.intp))
_sem_trywait: Any = types.ExternalFunction("sem_trywait", types.int32(types.intp))
_sem_clockwait: Any = types.ExternalFunction(
    "sem_clockwait", types.int32(types.intp, types.int32, types.intp)
)
_clock_gettime: Any = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.intp))

_MONOTONIC = 1
_SECOND_NS = 1_000_000_000
_COUNT = REPEAT - 1
_NOTHING, _FOR_PYTHON = 0, -1
_SPIN_NS = 150
"""What one of a plan's ``spins`` takes in Python."""

_FILES = (lanes, mlp_kernel, counters_file, table_file, hand_over_file)
"""Modules whose functions or constants are compiled into the loop."""

_run = mlp_kernel.run
_HEARTBEAT, _FRAMES, _CALLS, _LATENCIES, _INFERENCE, _HAND_OVER, _WAITING = (
    int(counter)
    for counter in (
        Counter.HEARTBEAT_NS,
        Counter.INFERRED_FRAMES,
        Counter.INFERENCE_CALLS,
        Counter.LATENCIES,
        Counter.INFERENCE_NS,
        Counter.HAND_OVER_NS,
        Counter.WAITING_NS,
    )
)

Array = Any
"""A NumPy array, in jitted code."""


class CompiledAnswers:
    """The groups of one model worker, as compiled code sees them.

    Args:
        context: What the workers share.
        policy: Whose engine is compiled.
        model_worker: Index of the worker.
        groups: (env worker, group) of each position.
    """

    def __init__(
        self,
        context: WorkerContext,
        policy: PolicyRunner,
        model_worker: int,
        groups: Sequence[tuple[int, int]],
    ) -> None:
        plan, hand_over, banks = context.plan, context.hand_over, context.table.banks
        slots = [plan.topology.slots(worker, group) for worker, group in groups]
        signals = [hand_over.actions(worker, group) for worker, group in groups]
        worker = f"model-worker-{model_worker}"
        self._policy, self._length = policy, plan.rollout_length
        self._calls = np.zeros((NUM_BANKS, self._length, len(groups)), np.int64)
        self._program = 0
        self._fixed = (
            hand_over.lines,
            np.array([hand_over.row(worker, group) for worker, group in groups]),
            np.array([(s.start, s.stop) for s in slots]),
            tuple(bank.truncated.numpy() for bank in banks),
            tuple(bank.policy_version.numpy() for bank in banks),
            self._calls,
            np.array([signal.address for signal in signals]),
            hand_over.doorbell(model_worker).address,
            context.counters.row(worker),
            context.counters.latency_ring(worker),
            plan.spins * _SPIN_NS,
        )

    def learn(self, served: Sequence[tuple[int, Request]]) -> None:
        """Take note of how requests are answered that Python has answered for the first time."""
        for position, request in served:
            is_inner = 0 < request.t < self._length
            if is_inner and not self._calls[request.bank, request.t, position]:
                bound = self._policy.compiled_call(request)
                if bound is not None:
                    self._program, self._calls[request.bank, request.t, position] = bound

    def run(self) -> int:
        """Answer until a request needs Python, the sampler is paused, or `SLICE_S` without any.

        Returns:
            Monotonic time in ns up to which the worker's time has been charged.
        """
        return _answer(*self._fixed, self._program, self._policy.version)


def compiled_answers(
    context: WorkerContext,
    policy: PolicyRunner,
    model_worker: int,
    groups: Sequence[tuple[int, int]],
) -> CompiledAnswers | None:
    """Return what answers for a model worker, or None where only Python can.

    That is where the policy is not compiled, in lock step, and where there are no POSIX semaphores
    that wait by the monotonic clock.
    """
    if not policy.is_compiled or context.plan.lock_step or not _has_semaphores():
        return None
    try:
        compile_answers()
        return CompiledAnswers(context, policy, model_worker, groups)
    except Exception as error:  # a compiler fails in many ways, and is never needed
        _LOGGER.warning("requests are answered by Python: %s", " ".join(str(error).split())[:200])
        return None


def compile_answers() -> None:
    """Compile the loop, or load what was compiled before, by a call that is asked to end."""
    if not _has_semaphores():
        return
    lines, numbers = np.ones((4, 8), np.int64), np.zeros(1, np.int64)
    flags = (np.zeros((1, 1), np.bool_),) * NUM_BANKS
    versions = (np.zeros((1, 1), np.int64),) * NUM_BANKS
    calls, pairs = np.zeros((NUM_BANKS, 1, 1), np.int64), np.zeros((1, 2), np.int64)
    _answer(lines, numbers, pairs, flags, versions, calls, numbers, 0, numbers, numbers, 0, 0, 0)


def _has_semaphores() -> bool:
    return sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "sem_clockwait")


@jitted
def _now(clock: Array) -> int:
    """Return the monotonic time in ns; ``clock [2] int64`` is scratch."""
    _clock_gettime(_MONOTONIC, clock.ctypes.data)
    return int(clock[0] * _SECOND_NS + clock[1])


@jitted
def _needs_python(
    asked: int, answered: int, period: int, calls: Array, truncated: Array, slots: Array
) -> bool:
    """Say whether a position's next request is more than one call of the kernel.

    That is one that begins or ends a rollout, follows a truncation, is a repeat, or is new.
    """
    if (asked - answered) & _COUNT == 0:
        return True
    rollout, t = divmod(answered & _COUNT, period)
    if t == 0 or t == period - 1:
        return True
    bank = rollout % NUM_BANKS
    if calls[bank, t] == 0:
        return True
    return bool(truncated[bank][t - 1, slots[0] : slots[1]].any())


@jitted
def _find_ready(
    lines: Array, rows: Array, slots: Array, truncated: Array, calls: Array, ready: Array
) -> int:
    """Fill ``ready`` with the positions that have asked; return how many, or `_FOR_PYTHON`."""
    groups, period, count = (len(lines) - 2) // 2, calls.shape[1] + 1, 0
    for position in range(len(rows)):
        row = rows[position]
        asked, answered = lines[row, 0], lines[groups + row, 0]
        if asked > answered:
            if _needs_python(
                asked, answered, period, calls[:, :, position], truncated, slots[position]
            ):
                return _FOR_PYTHON
            ready[count] = position
            count += 1
    fence()
    return count


@jitted
def _sleep(doorbell: int, spin_ns: int, clock: Array) -> bool:
    """Wait for a ring, at most `SLICE_S`; return whether there was one."""
    now_ns = _now(clock)
    blocks_ns, until = now_ns + spin_ns, now_ns + int(SLICE_S * _SECOND_NS)
    while now_ns < blocks_ns:
        if _sem_trywait(doorbell) == 0:
            return True
        now_ns = _now(clock)
    clock[0], clock[1] = divmod(until, _SECOND_NS)
    # A signal ends it early, which is no matter: Python looks what there is.
    return bool(_sem_clockwait(doorbell, _MONOTONIC, clock.ctypes.data) == 0)


@jitted
def _record_latencies(
    latencies: Array, counters: Array, lines: Array, rows: Array, woken_ns: int
) -> None:
    for row in rows:
        if lines[row, 1] != NOT_RUNG:
            count = counters[_LATENCIES]
            latencies[count % len(latencies)] = woken_ns - lines[row, 1]
            counters[_LATENCIES] = count + 1


@jitted
def _reply(
    lines: Array, row: int, slots: Array, calls: Array, versions: Array, program: int, version: int
) -> int:
    """Answer a position's next request; return its answer's count, not told to anybody yet."""
    answered = lines[(len(lines) - 2) // 2 + row, 0]
    rollout, t = divmod(answered & _COUNT, calls.shape[1] + 1)
    bank = rollout % NUM_BANKS
    _run(program, calls[bank, t])
    versions[bank][t, slots[0] : slots[1]] = version
    return int(answered + 1)


@cached_kernel([Path(__file__), *(Path(str(each.__file__)) for each in _FILES)], nogil=True)
def _answer(digest: int) -> Callable[..., int]:
    """Return the loop."""

    def answer(
        lines: Array,
        rows: Array,
        slots: Array,
        truncated: Array,
        versions: Array,
        calls: Array,
        signals: Array,
        doorbell: int,
        counters: Array,
        latencies: Array,
        spin_ns: int,
        program: int,
        version: int,
    ) -> int:
        """Answer until a request needs Python, the sampler is paused, or `SLICE_S` without any.

        Args:
            lines: `HandOver.lines`.
            rows: ``[P] int64``: row of each position.
            slots: ``[P, 2] int64``: first slot of each position, and the one after its last.
            truncated: ``[T, B] bool`` of each bank.
            versions: ``[T, B] int64`` of each bank, ``policy_version``.
            calls: ``[banks, T, P] int64``: address of a `mlp_kernel.CALL`, 0 where none is known.
            signals: ``[P] int64``: address of the semaphore that tells a position's answer.
            doorbell: Address of the model worker's own semaphore.
            counters: Row of the worker, by `Counter`.
            latencies: Ring of its hand-over latencies.
            spin_ns: How long it looks for a ring before it blocks.
            program: Address of the `mlp_kernel.PROGRAM`.
            version: Of the weights.

        Returns:
            Monotonic time in ns up to which the worker's time has been charged.
        """
        _ = digest
        groups, clock = (len(lines) - 2) // 2, np.empty(2, np.int64)
        ready, woken_ns, last_ns = np.empty(len(rows), np.int64), 0, _now(clock)
        while lines[len(lines) - 1, 0] == 0:
            # Under load nobody waits for rings, and they would pile up.
            while _sem_trywait(doorbell) == 0:
                pass
            count = _find_ready(lines, rows, slots, truncated, calls, ready)
            now_ns = _now(clock)
            counters[_HAND_OVER] += now_ns - last_ns
            last_ns = now_ns
            if count == _FOR_PYTHON:
                break
            if count == _NOTHING and lines[len(lines) - 1, 2] != 0:
                break  # to rest: `HandOver.models_paused`
            if count == _NOTHING:
                is_woken = _sleep(doorbell, spin_ns, clock)
                woken_ns = _now(clock)
                counters[_WAITING] += woken_ns - last_ns
                last_ns = woken_ns
                if not is_woken:
                    break
                continue
            if woken_ns:
                _record_latencies(latencies, counters, lines, rows[ready[:count]], woken_ns)
                woken_ns = 0
            for position in ready[:count]:
                row, mine = rows[position], slots[position]
                reply = _reply(lines, row, mine, calls[:, :, position], versions, program, version)
                now_ns = _now(clock)
                counters[_INFERENCE] += now_ns - last_ns
                last_ns = counters[_HEARTBEAT] = lines[groups + row, 1] = now_ns
                counters[_FRAMES] += mine[1] - mine[0]
                counters[_CALLS] += 1
                fence()
                lines[groups + row, 0] = reply
                _sem_post(signals[position])
        return last_ns

    return answer
