"""The evaluation process: plays with the weights it is given while training goes on."""

from __future__ import annotations

import logging
import os
import pickle
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
from torch import Tensor

from fastrl.closing import closed_after
from fastrl.envs.batched_env import BatchedEnv, StepViews
from fastrl.errors import WorkerError
from fastrl.models.policy import PolicyModel
from fastrl.shared.memory import SharedBlock
from fastrl.shared.weights import WeightStore
from fastrl.spec import EnvSpec
from fastrl.training.evaluation import EpisodePlayer, EvaluationProtocol, EvaluationResult
from fastrl.training.recording import video_suffix
from fastrl.workers.processes import Connection, pipe
from fastrl.workers.supervisor import Supervisor

_NICENESS = 19
"""Lowest priority, for systems without one for work that may wait."""

STALL_S = 300.0
"""How long the process may go without a step before it is replaced."""
_RESTARTS = 3
_NAME = "evaluator"
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationPlan:
    """What the evaluation process needs to know; travels by cloudpickle.

    Attributes:
        env_spec: What the environment observes and accepts.
        build_env: Builds a `BatchedEnv` of that many environments.
        build_model: Builds the policy.
        protocol: What is played.
        record: Records an episode of the policy into a file, or None for no videos.
        videos: Where these go.
    """

    env_spec: EnvSpec
    build_env: Callable[[int], BatchedEnv]
    build_model: Callable[[], PolicyModel]
    protocol: EvaluationProtocol
    record: Callable[[PolicyModel, Path], object] | None = None
    videos: Path = Path("videos")


class Evaluator:
    """Evaluates one policy at a time in a process of its own, of the lowest priority.

    A process that fails, or makes no step for `STALL_S`, is replaced and asked again.

    Args:
        plan: What to play.
        state_dict: Any parameters of the policy; fixes their names and shapes.
    """

    def __init__(self, plan: EvaluationPlan, state_dict: Mapping[str, Tensor]) -> None:
        self._store = WeightStore(state_dict)
        self._progress = SharedBlock(8)
        self._steps_made = self._progress.array(np.int64, (1,))
        self._payload = cloudpickle.dumps(plan)
        self._supervisor = Supervisor(request_stop=lambda: None, grace_s=0.0)
        self._restarts_left = _RESTARTS
        self.busy = False
        self._start()

    def request(self, state_dict: Mapping[str, Tensor], steps: int) -> None:
        """Start to evaluate these parameters, which are copied. Not while it is busy.

        Args:
            state_dict: Parameters of the policy.
            steps: Environment steps that they have learnt from; names the video.

        Raises:
            WorkerError: The process failed again and again.
        """
        assert not self.busy
        self._store.publish(state_dict)
        self._asked, self.busy = steps, True
        self._ask_for_it()

    def poll(self, timeout_s: float = 0.0) -> EvaluationResult | None:
        """Return the result if it is there within the time, else None.

        Raises:
            WorkerError: The process failed again and again.
        """
        if not self.busy:
            return None
        if not self._answers.poll(timeout_s):
            failures = self._supervisor.failures() or self._stalled()
            if failures:
                self._replace(failures[0])
            return None
        try:
            result: EvaluationResult = self._answers.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            self._replace(self._ended())
            return None
        self.busy = False
        return result

    def _start(self) -> None:
        requests, self._ask = pipe()
        self._answers, answers = pipe()
        self._supervisor.start(
            _NAME, run_evaluator, self._payload, self._store, self._progress, requests, answers
        )
        requests.close()
        answers.close()
        self._rest()

    def _ask_for_it(self) -> None:
        self._rest()
        try:
            self._ask.send(self._asked)
        except OSError:
            self._replace(self._ended())

    def _replace(self, error: WorkerError) -> None:
        if not self._restarts_left:
            raise error
        self._restarts_left -= 1
        _LOGGER.warning("%s; it is replaced", error.args[0])
        if _NAME in self._supervisor.pids():
            self._supervisor.kill(_NAME)
        self._ask.close()
        self._answers.close()
        self._start()
        if self.busy:
            self._ask_for_it()

    def _rest(self) -> None:
        self._silent_s, self._looked_s, self._seen = 0.0, time.monotonic(), -1

    def _stalled(self) -> list[WorkerError]:
        """Return an error if no step was made for too long; time in which nobody asks is left out.

        A process of the lowest priority may have to wait long for its turn.
        """
        now_s, seen = time.monotonic(), int(self._steps_made[0])
        self._silent_s += min(now_s - self._looked_s, 1.0)
        self._looked_s = now_s
        if seen != self._seen:
            self._seen, self._silent_s = seen, 0.0
        if self._silent_s < STALL_S:
            return []
        return [WorkerError(_NAME, f"the {_NAME} made no step within {STALL_S:g} s")]

    def _ended(self) -> WorkerError:
        """Return why there is nobody to talk to."""
        failures = self._supervisor.failures()
        return failures[0] if failures else WorkerError(_NAME, f"the {_NAME} is gone")

    def pids(self) -> dict[str, int]:
        """Return the process id by name."""
        return self._supervisor.pids()

    def close(self) -> None:
        """End the process, whatever it is doing; safe to call twice."""
        self._supervisor.stop()
        self._ask.close()
        self._answers.close()
        self._store.close()
        self._progress.close()


class _Counted:
    """A batched environment that counts its steps where others see it."""

    def __init__(self, env: BatchedEnv, steps_made: memoryview) -> None:
        self.spec, self.num_envs, self.reset, self.close = (
            env.spec,
            env.num_envs,
            env.reset,
            env.close,
        )
        self._step, self._steps_made = env.step, steps_made
        self.unwrapped = env

    def step(self, views: StepViews) -> None:
        self._step(views)
        self._steps_made[0] += 1


def _yield_to_all() -> None:
    """Take what others leave idle of the cores, and less than a hundredth of what they want.

    Whoever wakes up takes the core from an idle-class process at once. One that is only nice keeps
    it for some milliseconds, for which workers and learner then wait in turn.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError):
        os.nice(_NICENESS)


def run_evaluator(
    payload: bytes,
    store: WeightStore,
    progress: SharedBlock,
    requests: Connection,
    answers: Connection,
) -> None:
    """Evaluate what is asked for until nobody asks any more. Entry point of the process."""
    _yield_to_all()
    plan: EvaluationPlan = cloudpickle.loads(payload)
    model: Any = plan.build_model()
    steps_made = progress.array(np.int64, (1,)).data

    def build(num_envs: int) -> BatchedEnv:
        return _Counted(plan.build_env(num_envs), steps_made)

    player = EpisodePlayer(plan.env_spec, build, plan.protocol.episodes)
    with closed_after(player), suppress(EOFError):
        while True:
            steps = requests.recv()
            newest = store.read()
            assert newest is not None
            model.load_state_dict(newest[1])
            answers.send(player.play(model, plan.protocol))
            if plan.record is not None:
                plan.record(model, plan.videos / f"step_{steps:012d}{video_suffix()}")
