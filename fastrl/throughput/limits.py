"""The physical limit: bare environments on every core, and the policy at its best batch size.

The limit is ``cores / (t_step + t_policy)`` frames per second: ``t_step`` is the time per step of
the bare environment with every core busy, resets included; ``t_policy`` the policy's time per
frame at its best batch size on one core, 0 if a GPU runs it. A bare environment has only the
wrappers with which it is configured or built. fastrl's own environments are measured as a batch
of as many environments as a worker steps at once.

With training it is ``cores / (t_step + t_policy + t_learn)``; see `UpdateTimes` for ``t_learn``.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import cloudpickle
import numpy as np
import torch
from gymnasium import Env
from gymnasium.vector.utils import batch_space

from fastrl.closing import Closing, closing_on_error
from fastrl.envs.action_masks import observes_mask, uniform_numbers, valid_sample
from fastrl.envs.batched_env import BatchedEnv, StepViews
from fastrl.envs.env_factory import EnvFactory
from fastrl.envs.mujoco_clock import stop_timers
from fastrl.envs.wrappers import peel
from fastrl.errors import EnvError, WorkerError
from fastrl.models.inference import PolicyOutput, RandomEngine
from fastrl.shared.table import Table
from fastrl.spaces import flatten
from fastrl.spec import ACTION_MASK, EnvSpec, Topology
from fastrl.throughput.updates import UpdateTimes, mean_time
from fastrl.workers.plan import SamplingPlan
from fastrl.workers.policy_runner import PolicyRequest, PolicyRunner
from fastrl.workers.processes import Connection, pipe
from fastrl.workers.supervisor import Supervisor

_BATCH_SIZES = tuple(2**exponent for exponent in range(3, 13))
_MAX_POLICY_CALL_S = 0.25
_CHUNK = 16
"""Steps between two readings of the clock, if steps are short."""
_SHORT_S = 1e-3
_START_S = 20.0
"""Time by which a start of a process may take longer than an answer."""
_WARM_STEPS, _WARM_S = 64, 0.5
"""Steps or time before the first measurement."""
_POLICY = "bare-policy"

_Measure = Callable[[float], float]
"""A function that measures for some seconds, and returns seconds per step or per frame."""


@dataclass(frozen=True)
class Limit:
    """The physical limit at one moment; it is measured often, since the machine's speed drifts.

    Attributes:
        cores: Cores that step.
        t_step_s: Seconds per step of the bare environment on one busy core.
        t_policy_s: Seconds per frame of the policy on one core.
        learning: Times of an update on one core; None without training, or if another device
            learns.
    """

    cores: int
    t_step_s: float
    t_policy_s: float
    learning: UpdateTimes | None = None

    @property
    def fps(self) -> float:
        """Frames per second that no sampler on these cores can exceed, with or without training.

        With training these are steps that are sampled and learnt from, with updates as fast as
        those of this learner alone on a core.
        """
        t_learn_s = 0.0 if self.learning is None else self.learning.t_learn_s
        return self.cores / (self.t_step_s + self.t_policy_s + t_learn_s)

    @property
    def products_fps(self) -> float | None:
        """Frames per second with updates as fast as their matrix products; None if unknown.

        In this limit only the products, as torch computes them, take time in an update.
        """
        if self.learning is None or self.learning.t_products_s is None:
            return None
        return self.cores / (self.t_step_s + self.t_policy_s + self.learning.t_products_s)


class LimitProbe(Closing):
    """Processes that measure the limit on request, so that it can alternate with sampling.

    Args:
        plan: Builds the policy.
        factory: Builds the environments.
        cores: Number of cores to keep busy.
        timeout_s: Longest wait for an answer, beyond the requested time.

    Raises:
        WorkerError: A measuring process failed, or was not ready in time.
    """

    def __init__(
        self, plan: SamplingPlan, factory: EnvFactory, cores: int, timeout_s: float = 120.0
    ) -> None:
        self.cores = cores
        self._timeout_s = timeout_s
        self._supervisor = Supervisor(request_stop=lambda: None, grace_s=0.0)
        self._pipes: dict[str, Connection] = {}
        self._envs = [f"bare-env-{index}" for index in range(cores)]
        bare = factory.with_masks_of(plan.env_spec)
        self._has_policy = plan.build_model is not None and plan.device(0).type == "cpu"
        with closing_on_error(self):
            for name in self._envs:
                self._start(name, partial(_bare_env, bare, plan.topology.envs_per_group))
            if self._has_policy:
                self._start(_POLICY, partial(_bare_policy, plan))
            for name in self._pipes:
                self._answer(name, _START_S)

    def measure(self, seconds: float) -> Limit:
        """Measure for about ``seconds``, mostly the environment.

        Raises:
            WorkerError: A measuring process failed, or did not answer in time.
        """
        for name in self._envs:
            self._request(name, seconds)
        t_step_s = statistics.harmonic_mean([self._answer(name, seconds) for name in self._envs])
        t_policy_s = 0.0
        if self._has_policy:
            self._request(_POLICY, seconds / 4)
            t_policy_s = self._answer(_POLICY, seconds)
        return Limit(self.cores, t_step_s, t_policy_s)

    def pids(self) -> dict[str, int]:
        """Return the id of every process by name."""
        return self._supervisor.pids()

    def close(self) -> None:
        """End the processes."""
        self._supervisor.stop()

    def _start(self, name: str, build: Callable[[], _Measure]) -> None:
        self._pipes[name], end = pipe(duplex=True)
        self._supervisor.start(name, _serve, cloudpickle.dumps(build), end)
        end.close()

    def _request(self, name: str, seconds: float) -> None:
        with suppress(OSError):  # it has ended, which `_answer` reports
            self._pipes[name].send(seconds)

    def _answer(self, name: str, seconds: float) -> float:
        late = WorkerError(name, f"{name} did not answer in time")
        timeout_s = seconds + self._timeout_s
        return float(self._supervisor.receive(self._pipes[name], timeout_s, late))


def _serve(payload: bytes, requests: Connection) -> None:
    """Measure whenever requested; the first answer means ready. Entry point of a process."""
    measure = cloudpickle.loads(payload)()
    requests.send(0.0)
    while True:
        requests.send(measure(requests.recv()))


def _bare_env(factory: EnvFactory, num_envs: int) -> _Measure:
    """Return a timer of steps of one bare environment, or of a batch, with random actions."""
    single = None
    if not factory.is_native:
        with suppress(EnvError):  # there are only batches; other errors occur again below
            single = factory.single()
    if single is None:
        run, size = _bare_batch(factory.batched(num_envs)), num_envs
    else:
        run, size = _bare_loop(*peel(single)), 1
    stop_timers()
    chunk = _warm_up(run)
    return lambda seconds: mean_time(partial(run, chunk), seconds) / (chunk * size)


def _warm_up(run: Callable[[int], None]) -> int:
    """Step for a while; return the number of steps between two readings of the clock."""
    steps, passed_s, start = 0, 0.0, time.perf_counter()
    while steps < _WARM_STEPS and passed_s < _WARM_S:
        run(1)
        steps, passed_s = steps + 1, time.perf_counter() - start
    return _CHUNK if passed_s / steps < _SHORT_S else 1


def _bare_batch(env: BatchedEnv) -> Callable[[int], None]:
    """Return a function that steps a batch a given number of times, like an env worker."""
    space = batch_space(env.spec.action_space, env.num_envs)
    space.seed(0)
    views = StepViews.zeros(env.spec, env.num_envs)
    taken = [
        tuple(map(np.asarray, flatten(env.spec.action_space, space.sample()))) for _ in range(64)
    ]
    batches: Iterator[StepViews] = itertools.cycle(
        [replace(views, action=action) for action in taken]
    )
    env.reset(range(env.num_envs), views.observation)
    if env.spec.action_mask is not None:
        batches = _valid_batches(env.spec, views)

    def run(steps: int) -> None:
        for batch in itertools.islice(batches, steps):
            env.step(batch)

    return run


def _valid_batches(spec: EnvSpec, views: StepViews) -> Iterator[StepViews]:
    """Yield the views repeatedly, with actions that their latest observation allows."""
    engine, num_envs = RandomEngine(spec), len(views.reward)
    out = PolicyOutput.zeros(num_envs, spec.action, {})
    observed = dict(zip(spec.observation, map(torch.from_numpy, views.observation), strict=True))
    inputs, mask = spec.split_mask(observed)
    noise = engine.draw_noise((64, num_envs), torch.Generator().manual_seed(0))
    batch = replace(views, action=tuple(leaf.numpy() for leaf in out.action.values()))
    for draw in itertools.cycle([engine.bind(inputs, each, out, mask=mask) for each in noise]):
        draw()
        yield batch


def _bare_loop(env: Env[Any, Any], time_limit: int | None) -> Callable[[int], None]:
    """Return a function that makes a given number of steps of an environment."""
    step, reset, unended = env.step, env.reset, 0
    seen, _ = env.reset(seed=0)
    env.action_space.seed(0)

    def valid_actions() -> Iterator[Any]:
        uniform = uniform_numbers()
        while True:
            yield valid_sample(env.action_space, seen[ACTION_MASK], uniform)

    samples = itertools.cycle([env.action_space.sample() for _ in range(1024)])
    actions = valid_actions() if observes_mask(env) else samples

    def run(steps: int) -> None:
        nonlocal seen, unended
        ended = False
        for action in itertools.islice(actions, steps):
            seen, _, terminated, truncated, _ = step(action)
            if terminated or truncated:
                seen, _ = reset()
                ended = True
        unended = 0 if ended else unended + steps
        if time_limit and unended >= time_limit:
            seen, _ = reset()
            unended = 0

    return run


def _bare_policy(plan: SamplingPlan) -> _Measure:
    """Return a timer of frames of the policy alone, at its best batch size."""
    calls = _policy_calls(plan)
    return lambda seconds: min(mean_time(call, seconds / len(calls)) / size for size, call in calls)


def _policy_calls(plan: SamplingPlan) -> list[tuple[int, Callable[[], None]]]:
    """Return calls of the policy at growing batch sizes, while they are short."""
    calls: list[tuple[int, Callable[[], None]]] = []
    for size in _BATCH_SIZES:
        topology = Topology(envs_per_worker=size, num_env_workers=1)
        one_step = replace(
            plan,
            topology=topology,
            rollout_length=1,
            outputs=plan.schema.outputs,
            state_size=plan.schema.state_size,
            sequence_length=None,
        )
        table = Table(one_step.schema, 1, size)
        runner = PolicyRunner(one_step, table, None, 0)
        call = partial(runner.serve, [PolicyRequest(0, 0, 0, size)])
        call()
        calls.append((size, call))
        if mean_time(call, 0.0) > _MAX_POLICY_CALL_S:
            break
    return calls
