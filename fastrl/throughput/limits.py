"""What the machine allows: bare environments on every core, and the policy at its best batch.

The limit is ``cores / (t_step + t_policy)`` frames per second: ``t_step`` is the time per step of
the bare environment with every core busy, resets included; ``t_policy`` the policy's time per
frame at its best batch size on one core, 0 where a GPU does it. Bare is an environment without
wrappers, but for those that it is configured or built with. One of fastrl's own environments is
bare as a batch, of as many as a worker steps at once.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import cloudpickle
import numpy as np
import torch
from gymnasium import Env
from gymnasium.vector.utils import batch_space

from fastrl.closing import Closing
from fastrl.envs.batched_env import BatchedEnv, Rows, StepViews
from fastrl.envs.make import EnvFactory
from fastrl.envs.mujoco_clock import stop_timers
from fastrl.envs.wrappers import peel
from fastrl.errors import WorkerError
from fastrl.models.inference import PolicyOutput, build_engine
from fastrl.spaces import flatten
from fastrl.spec import outputs_of
from fastrl.workers.plan import SamplingPlan
from fastrl.workers.processes import Connection, pipe
from fastrl.workers.supervisor import Supervisor

_BATCH_SIZES = tuple(2**exponent for exponent in range(3, 13))
_MAX_POLICY_CALL_S = 0.25
_CHUNK = 16
"""Steps between two looks at the clock, where steps are short."""
_SHORT_S = 1e-3
_START_S = 20.0
"""How much longer a process may take to start than to answer."""
_WARM_STEPS, _WARM_S = 64, 0.5
"""What is stepped before the first measurement: so many steps, or for so long."""


@dataclass(frozen=True)
class Limit:
    """The physical limit of one moment; the machine's speed drifts, so it is measured often.

    Attributes:
        cores: Cores that step.
        t_step_s: Seconds per step of the bare environment on one busy core.
        t_policy_s: Seconds per frame of the policy on one core.
    """

    cores: int
    t_step_s: float
    t_policy_s: float

    @property
    def fps(self) -> float:
        """Frames per second that no sampler on these cores can exceed."""
        return self.cores / (self.t_step_s + self.t_policy_s)


class LimitProbe(Closing):
    """Processes that stand by to measure the limit, so that it can be interleaved with sampling.

    Once it is made, all of them wait to be asked.

    Args:
        plan: Says the policy; its environments are built by ``factory``.
        factory: Builds the environments.
        cores: Number of cores to keep busy.
        timeout_s: Longest wait for an answer, beyond the time asked for.

    Raises:
        WorkerError: A measuring process failed, or was not ready in time.
    """

    def __init__(
        self, plan: SamplingPlan, factory: EnvFactory, cores: int, timeout_s: float = 120.0
    ) -> None:
        self.cores = cores
        self._timeout_s = timeout_s
        self._supervisor = Supervisor(request_stop=lambda: None, grace_s=0.0)
        bare = (factory, plan.topology.envs_per_group)
        self._envs = [self._start(f"bare-env-{i}", _step_bare, bare) for i in range(cores)]
        self._policy = None
        if plan.build_model is not None and plan.device(0).type == "cpu":
            self._policy = self._start("bare-policy", _time_policy, plan)
        try:
            for each in (*self._envs, *([self._policy] if self._policy else [])):
                self._answer(each, _START_S)
        except BaseException:
            self.close()
            raise

    def measure(self, seconds: float) -> Limit:
        """Measure for about ``seconds``, mostly the environment.

        Raises:
            WorkerError: A measuring process failed, or did not answer in time.
        """
        for env in self._envs:
            self._ask(env, seconds)
        t_step_s = statistics.harmonic_mean([self._answer(env, seconds) for env in self._envs])
        t_policy_s = 0.0
        if self._policy is not None:
            self._ask(self._policy, seconds / 4)
            t_policy_s = self._answer(self._policy, seconds)
        return Limit(self.cores, t_step_s, t_policy_s)

    def pids(self) -> dict[str, int]:
        """Return the id of every process by name."""
        return self._supervisor.pids()

    def close(self) -> None:
        """End the processes."""
        self._supervisor.stop()

    def _start(self, name: str, target: Callable[..., None], subject: Any) -> _Bare:  # noqa: ANN401
        (ask_out, ask_in), (tell_out, tell_in) = pipe(), pipe()
        self._supervisor.start(name, target, cloudpickle.dumps(subject), ask_out, tell_in)
        ask_out.close()
        tell_in.close()
        return _Bare(name, ask_in, tell_out)

    def _ask(self, bare: _Bare, seconds: float) -> None:
        with contextlib.suppress(OSError):  # it has ended: who waits for its answer finds out
            bare.ask.send(seconds)

    def _answer(self, bare: _Bare, seconds: float) -> float:
        late = WorkerError(bare.name, f"{bare.name} did not answer in time")
        return float(self._supervisor.receive(bare.answer, seconds + self._timeout_s, late))


@dataclass(frozen=True)
class _Bare:
    """A process that measures whenever it is asked."""

    name: str
    ask: Connection
    answer: Connection


def _step_bare(payload: bytes, asked: Connection, tell: Connection) -> None:
    """Step one bare environment, or one native batch, with random actions whenever asked.

    Entry point of a process; its first answer says that it is ready.
    """
    factory, num_envs = cloudpickle.loads(payload)
    if factory.is_native:
        run, size = _bare_batch(factory.batched(num_envs)), num_envs
    else:
        run, size = _bare_loop(*peel(factory.single())), 1
    stop_timers()
    chunk = _warm_up(run)
    tell.send(0.0)
    while True:
        seconds, done = asked.recv(), 0
        start = now = time.perf_counter()
        while now - start < seconds:
            run(chunk)
            done += chunk * size
            now = time.perf_counter()
        tell.send((now - start) / done)


def _warm_up(run: Callable[[int], None]) -> int:
    """Step for a while; return how many steps to make between two looks at the clock."""
    steps, passed_s, start = 0, 0.0, time.perf_counter()
    while steps < _WARM_STEPS and passed_s < _WARM_S:
        run(1)
        steps, passed_s = steps + 1, time.perf_counter() - start
    return _CHUNK if passed_s / steps < _SHORT_S else 1


def _bare_batch(env: BatchedEnv) -> Callable[[int], None]:
    """Return a function that steps a whole batch so many times, as an env worker does."""
    space = batch_space(env.spec.action_space, env.num_envs)
    space.seed(0)
    views = StepViews(
        action=(),
        observation=_rows(env),
        reward=np.zeros(env.num_envs, np.float32),
        terminated=np.zeros(env.num_envs, np.bool_),
        truncated=np.zeros(env.num_envs, np.bool_),
        final_observation=_rows(env),
    )
    taken = [
        tuple(map(np.asarray, flatten(env.spec.action_space, space.sample()))) for _ in range(64)
    ]
    batches = itertools.cycle([replace(views, action=action) for action in taken])
    env.reset(range(env.num_envs), views.observation)

    def run(steps: int) -> None:
        for batch in itertools.islice(batches, steps):
            env.step(batch)

    return run


def _rows(env: BatchedEnv) -> Rows:
    leaves = env.spec.observation.values()
    return tuple(np.zeros((env.num_envs, *leaf.shape), leaf.numpy_dtype) for leaf in leaves)


def _bare_loop(env: Env[Any, Any], time_limit: int | None) -> Callable[[int], None]:
    """Return a function that makes so many steps of an environment."""
    env.action_space.seed(0)
    actions = itertools.cycle([env.action_space.sample() for _ in range(1024)])
    step, reset, unended = env.step, env.reset, 0
    env.reset(seed=0)

    def run(steps: int) -> None:
        nonlocal unended
        ended = False
        for action in itertools.islice(actions, steps):
            _, _, terminated, truncated, _ = step(action)
            if terminated or truncated:
                reset()
                ended = True
        unended = 0 if ended else unended + steps
        if time_limit and unended >= time_limit:
            reset()
            unended = 0

    return run


def _time_policy(payload: bytes, asked: Connection, tell: Connection) -> None:
    """Time the policy alone, at its best batch size, whenever asked.

    Entry point of a process; its first answer says that it is ready.
    """
    calls = _policy_calls(cloudpickle.loads(payload))
    tell.send(0.0)
    while True:
        seconds, best = asked.recv(), float("inf")
        for size, call in calls:
            best = min(best, _mean_time(call, seconds / len(calls)) / size)
        tell.send(best)


def _policy_calls(plan: SamplingPlan) -> list[tuple[int, Callable[[], None]]]:
    """Return calls of the policy at growing batch sizes, as long as they stay short."""
    assert plan.build_model is not None
    model = plan.build_model()
    engine = build_engine(model, torch.device("cpu"), plan.engine)
    calls = []
    for size in _BATCH_SIZES:
        observation = {
            leaf: torch.zeros((size, *spec.shape), dtype=spec.dtype)
            for leaf, spec in plan.env_spec.observation.items()
        }
        out = PolicyOutput.zeros(size, plan.env_spec.action, outputs_of(model))
        noise = engine.draw_noise((size,), torch.Generator().manual_seed(0))
        call = engine.bind(observation, noise, out)
        call()
        calls.append((size, call))
        if _mean_time(call, 0.0) > _MAX_POLICY_CALL_S:
            break
    return calls


def _mean_time(call: Callable[[], None], seconds: float) -> float:
    """Return the mean time of the calls that fit into ``seconds``, and of three at least.

    The mean, as steps of the environment and frames per second are means, too: where the machine
    is now fast and now slow, the fastest call is a speed at which nothing runs for long.
    """
    start, calls = time.perf_counter(), 0
    while True:
        call()
        calls += 1
        passed = time.perf_counter() - start
        if calls >= 3 and passed > seconds:
            return passed / calls
