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

from fastrl.closing import Closing, closed_after
from fastrl.envs.batched_env import BatchedEnv
from fastrl.errors import WorkerError
from fastrl.learning.torch_threads import policy_threads, torch_threads
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
_POLL_S = 0.1
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


@dataclass(frozen=True)
class _Request:
    """What the process is asked for.

    Attributes:
        steps: Environment steps that the policy has learnt from; names the video.
        protocol: Other episodes than the plan's, of which there is no video; None for the plan's.
    """

    steps: int
    protocol: EvaluationProtocol | None = None


class Evaluator:
    """Evaluates one policy at a time in a process of its own, of the lowest priority.

    A process that fails, or makes no step for `STALL_S`, is replaced and asked again.

    Args:
        plan: What to play.
        state_dict: Any parameters of the policy; fixes their names and shapes.
    """

    def __init__(self, plan: EvaluationPlan, state_dict: Mapping[str, Tensor]) -> None:
        self._store = WeightStore(state_dict)
        self._progress = SharedBlock(16)
        self._made = self._progress.array(np.int64, (2,))
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
        self._request(state_dict, _Request(steps))

    def play(
        self,
        state_dict: Mapping[str, Tensor],
        protocol: EvaluationProtocol,
        watch: Callable[[int, int], None],
    ) -> EvaluationResult:
        """Evaluate these parameters in other episodes than the plan's, and wait for the result.

        Not while it is busy. The process may use the threads of a learner meanwhile.

        Args:
            state_dict: Parameters of the policy.
            protocol: What is played.
            watch: Called now and then with the number of episodes and of steps played.

        Raises:
            WorkerError: The process failed again and again.
        """
        self._request(state_dict, _Request(0, protocol))
        while (result := self.poll(timeout_s=_POLL_S)) is None:
            watch(int(self._made[1]), int(self._made[0]))
        return result

    def _request(self, state_dict: Mapping[str, Tensor], request: _Request) -> None:
        assert not self.busy
        self._store.publish(state_dict)
        self._asked, self.busy = request, True
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
        now_s, seen = time.monotonic(), int(self._made[0])
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
    """Evaluate what is asked for until the pipe is closed. Entry point of the process."""
    _yield_to_all()
    plan: EvaluationPlan = cloudpickle.loads(payload)
    model: Any = plan.build_model()
    made = progress.array(np.int64, (2,))

    def watch(episodes: int, steps: int) -> None:
        made[:] = steps, episodes

    players = _Players(plan)
    with closed_after(players), suppress(EOFError):
        # Before anything is asked for: what cannot be built is known when training begins.
        players.get(plan.protocol)
        while True:
            request: _Request = requests.recv()
            newest = store.read()
            assert newest is not None
            model.load_state_dict(newest[1])
            made[:] = 0
            if request.protocol is not None:
                player = players.get(request.protocol)
                with torch_threads(policy_threads(plan.env_spec)):
                    answers.send(player.play(model, request.protocol, watch))
                continue
            answers.send(players.get(plan.protocol).play(model, plan.protocol, watch))
            if plan.record is not None:
                plan.record(model, plan.videos / f"step_{request.steps:012d}{video_suffix()}")


class _Players(Closing):
    """The player of the last evaluation, kept for the next one with as many episodes."""

    def __init__(self, plan: EvaluationPlan) -> None:
        self._plan = plan
        self._episodes = 0
        self._player: EpisodePlayer | None = None

    def get(self, protocol: EvaluationProtocol) -> EpisodePlayer:
        """Return a player of as many episodes."""
        if self._player is None or self._episodes != protocol.episodes:
            self.close()
            plan, self._episodes = self._plan, protocol.episodes
            self._player = EpisodePlayer(plan.env_spec, plan.build_env, protocol.episodes)
        return self._player

    def close(self) -> None:
        """Close the environments."""
        if self._player is not None:
            self._player.close()
            self._player = None
