"""Evaluation during training: in a separate process, with the choice of the best policy."""

from __future__ import annotations

import logging
import math
import os
import pickle
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
from torch import Tensor

from fastrl.closing import closed_after
from fastrl.config import Config
from fastrl.envs.batched_env import BatchedEnv
from fastrl.errors import CheckpointError, WorkerError
from fastrl.formats import default_ending
from fastrl.learning.learner import policy_threads
from fastrl.models.policy import PolicyModel
from fastrl.shared.memory import SharedBlock
from fastrl.shared.weights import WeightStore
from fastrl.spec import EnvSpec
from fastrl.system import torch_threads
from fastrl.training.checkpoint import Checkpoint, CheckpointStore
from fastrl.training.evaluation import EpisodePlayer, EvaluationProtocol, EvaluationResult
from fastrl.training.recording import unfinished
from fastrl.workers.processes import Connection, pipe
from fastrl.workers.supervisor import Supervisor

_NICENESS = 19
"""Lowest priority, for systems without the scheduling class SCHED_IDLE."""

STALL_S = 300.0
"""Seconds without a step after which the process is replaced."""
_RESTARTS = 3
_POLL_S = 0.1
_CHECK_S = 0.02
"""Seconds between polls for a result; each costs some microseconds."""
_NAME = "evaluator"
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationPlan:
    """The plan of the evaluation process; sent to it by cloudpickle.

    Attributes:
        env_spec: The spaces.
        build_env: Builds a `BatchedEnv` of a given number of environments.
        build_model: Builds the policy.
        protocol: Episodes, seeds and limits.
        record: Records an episode of the policy into a file, or None for no videos.
        videos: Directory of videos.
    """

    env_spec: EnvSpec
    build_env: Callable[[int], BatchedEnv]
    build_model: Callable[[], PolicyModel]
    protocol: EvaluationProtocol
    record: Callable[[PolicyModel, Path], object] | None = None
    videos: Path = Path("videos")


class Evaluator:
    """Evaluates one policy at a time in a separate process.

    The process has the lowest priority during training, and the usual one for `play`,
    since a process of the lowest priority gets almost no time on a busy machine.

    If the process fails, or makes no step for `STALL_S`, it is replaced and the request repeated.
    If it fails repeatedly, methods raise `WorkerError`.

    Args:
        plan: Environments, policy and episodes.
        state_dict: Any parameters of the policy; they define names and shapes.
    """

    def __init__(self, plan: EvaluationPlan, state_dict: Mapping[str, Tensor]) -> None:
        self._store = WeightStore(state_dict)
        self._progress = SharedBlock(24)
        self._played = self._progress.array(np.int64, (3,))  # steps, episodes, records a video
        self._payload = cloudpickle.dumps(plan)
        self._videos: Path | None = plan.videos
        self._supervisor = Supervisor(request_stop=lambda: None, grace_s=0.0)
        self._restarts_left = _RESTARTS
        self.busy = False
        self._final: EvaluationProtocol | None = None
        self._start()

    def request(self, state_dict: Mapping[str, Tensor], steps: int) -> None:
        """Start to evaluate a copy of these parameters; ``steps`` names the video.

        It must not be called during another evaluation.
        """
        assert not self.busy
        self._store.publish(state_dict)
        self._steps, self.busy = steps, True
        self._send_request()

    def play(
        self,
        state_dict: Mapping[str, Tensor],
        protocol: EvaluationProtocol,
        watch: Callable[[int, int], None],
    ) -> EvaluationResult:
        """Evaluate parameters in other episodes than the plan's, and wait for the result.

        It must not be called during another evaluation. Training is over, so the process has the
        usual priority and uses the threads of a learner.

        Args:
            state_dict: Parameters of the policy.
            protocol: Episodes, seeds and limits.
            watch: Called repeatedly with the number of episodes and of steps played.
        """
        if self._final != protocol:
            # Only privileged users may raise a process's priority, so a new process plays.
            self._await_video()
            self._final = protocol
            self._restart()
        self.request(state_dict, 0)
        while (result := self.poll(timeout_s=_POLL_S)) is None:
            watch(int(self._played[1]), int(self._played[0]))
        return result

    def _await_video(self) -> None:
        """Wait for the last evaluation's video, until its process dies or times out."""
        until_s = time.monotonic() + STALL_S
        while self._played[2] and time.monotonic() < until_s and not self._supervisor.failures():
            time.sleep(_POLL_S)

    def poll(self, timeout_s: float = 0.0) -> EvaluationResult | None:
        """Return the result if it arrives within the time, else None."""
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
            self._replace(self._failure())
            return None
        self.busy = False
        return result

    def _start(self) -> None:
        requests, self._requests = pipe()
        self._answers, answers = pipe()
        self._supervisor.start(
            *(_NAME, run_evaluator, self._payload, self._store, self._progress),
            *(requests, answers, self._final),
        )
        requests.close()
        answers.close()
        self._silent_s, self._checked_s, self._seen = 0.0, time.monotonic(), -1

    def _send_request(self) -> None:
        self._silent_s, self._checked_s, self._seen = 0.0, time.monotonic(), -1
        try:
            self._requests.send(self._steps)
        except OSError:
            self._replace(self._failure())

    def _replace(self, error: WorkerError) -> None:
        if not self._restarts_left:
            raise error
        self._restarts_left -= 1
        _LOGGER.warning("%s; it is replaced", error.args[0])
        self._restart()
        if self.busy:
            self._send_request()

    def _restart(self) -> None:
        if _NAME in self._supervisor.pids():
            self._supervisor.kill(_NAME)
        self._requests.close()
        self._answers.close()
        self._start()

    def _stalled(self) -> list[WorkerError]:
        """Return an error if the process has made no step for too long.

        A process of the lowest priority may wait long for a core.
        """
        now_s, seen = time.monotonic(), int(self._played[0])
        self._silent_s += min(now_s - self._checked_s, 1.0)
        self._checked_s = now_s
        if seen != self._seen:
            self._seen, self._silent_s = seen, 0.0
        if self._silent_s < STALL_S:
            return []
        return [WorkerError(_NAME, f"the {_NAME} made no step within {STALL_S:g} s")]

    def _failure(self) -> WorkerError:
        """Return the error of a process that cannot be reached."""
        failures = self._supervisor.failures()
        return failures[0] if failures else WorkerError(_NAME, f"the {_NAME} has ended")

    def pids(self) -> dict[str, int]:
        """Return the process id by name."""
        return self._supervisor.pids()

    def close(self) -> None:
        """End the process at once, with the video that it records; safe to call twice."""
        self._supervisor.stop()
        videos, self._videos = self._videos, None
        if videos is not None and self._played[2]:
            for file in unfinished(videos):
                with suppress(OSError):
                    file.unlink()
        self._requests.close()
        self._answers.close()
        self._store.close()
        self._progress.close()


def _lower_priority() -> None:
    """Run this process only on idle cores.

    A waking process preempts one of the class SCHED_IDLE at once. A process that is only nice keeps
    its core for some milliseconds, for which workers and learner then wait in turn.
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
    final: EvaluationProtocol | None,
) -> None:
    """Evaluate on request until the pipe is closed. Entry point of the process.

    Args:
        payload: The `EvaluationPlan`, pickled.
        store: Weights of the policy to evaluate.
        progress: Numbers of steps and episodes played, and whether a video is recorded.
        requests: Receives the policy's steps, which name the video.
        answers: Sends each `EvaluationResult`.
        final: Protocol of evaluations after training, without videos; None for those of the plan,
            which give way to training.
    """
    if final is None:
        _lower_priority()
    plan: EvaluationPlan = cloudpickle.loads(payload)
    model: Any = plan.build_model()
    played, protocol = progress.array(np.int64, (3,)), final or plan.protocol

    def watch(episodes: int, steps: int) -> None:
        played[:2] = steps, episodes

    # Before the first request, so that environments that cannot be built fail at once.
    player = EpisodePlayer(plan.env_spec, plan.build_env, protocol.episodes)
    threads = torch_threads(policy_threads(plan.env_spec)) if final else nullcontext()
    with closed_after(player), threads, suppress(EOFError):
        while True:
            steps: int = requests.recv()
            newest = store.read()
            assert newest is not None
            model.load_state_dict(newest[1])
            played[:] = 0
            result = player.play(model, protocol, watch)
            record = None if final else plan.record
            # Not into a run that was removed meanwhile: its directory would be made again.
            played[2] = record is not None and plan.videos.is_dir()
            answers.send(result)
            if record is not None and played[2]:
                record(model, plan.videos / f"step_{steps:012d}{default_ending()}")
                played[2] = 0


class Candidates:
    """Requests evaluations when they are due, keeps the best policy, and decides when to stop.

    A policy that is due during an evaluation waits for its end; of several, only the newest is
    evaluated. Evaluations may be late or skipped, but they never delay training.

    All policies play the same episodes. The best policy has the highest score, by default the mean
    return (``evaluation.metric``); of equal scores the later one counts. A score that is not finite
    is lower than every other. A resumed session evaluates the best policy so far again, since the
    episodes may have changed.

    Attributes:
        passed: The first policy whose evaluation reached ``evaluation.stop_at``, and the result.

    Args:
        config: Sets the interval and the end of training.
        evaluator: Evaluates policies.
        store: Stores the best checkpoint.
        snapshot: Returns a checkpoint of the current state.
        report: Called with each result and the policy's steps.
    """

    def __init__(
        self,
        config: Config,
        evaluator: Evaluator,
        store: CheckpointStore,
        snapshot: Callable[[], Checkpoint],
        report: Callable[[EvaluationResult, int], None],
    ) -> None:
        self._settings, self._keep_best = config.evaluation, config.checkpoint.keep_best
        self._evaluator, self._store = evaluator, store
        self._snapshot, self._report = snapshot, report
        self._due_at: int | None = None
        self._played: Checkpoint | None = None
        self._pending: Checkpoint | None = None
        self._earlier = self._best()
        self._best_score = self._polled_s = -math.inf
        self.passed: tuple[Checkpoint, EvaluationResult] | None = None

    def after_update(self, steps: int, *, is_last: bool = False) -> bool:
        """Start due evaluations and take their results; return whether training ends.

        Args:
            steps: Environment steps so far.
            is_last: Whether training ends anyway. The last policy plays the final evaluation, so
                it is not evaluated here, unless a video is due.
        """
        if self._due_at is None:
            # In the first call of a session: skip evaluations that were due before it.
            self._due_at = self._next_after(steps - 1)
        if self._played is not None and time.monotonic() - self._polled_s >= _CHECK_S:
            self._polled_s = time.monotonic()
            self._take(self._evaluator.poll())
        if self.passed is None and steps >= self._due_at:
            self._due_at = self._next_after(steps)
            plays = self._settings.video or not is_last
            self._pending = self._snapshot() if plays else None
        self._play_next()
        return self.passed is not None

    def finish(self) -> None:
        """Wait for the running evaluation and for a pending one."""
        while self._played is not None:
            self._take(self._evaluator.poll(timeout_s=0.1))
            self._play_next()

    def judge(
        self,
        final: Checkpoint,
        result: EvaluationResult,
        play: Callable[[Checkpoint], EvaluationResult],
    ) -> None:
        """Store the final policy as the best one, unless the best so far has a higher score.

        Both play the same episodes, which differ from the candidates' and are more: the
        highest of many means over few episodes overestimates its policy.

        Args:
            final: The last policy of the run.
            result: Its evaluation.
            play: Evaluates another policy in the same episodes.
        """
        best = self._best()
        if best is not None and best.steps != final.steps:
            other = play(best)
            if self._score(other) > self._score(result):
                self._keep(best, other)
                return
        self._keep(final, result)

    def _best(self) -> Checkpoint | None:
        """Return the best checkpoint so far; None if none can be read."""
        if self._keep_best and self._store.best() is not None:
            with suppress(CheckpointError):
                return self._store.load("best")
        return None

    def _keep(self, checkpoint: Checkpoint, result: EvaluationResult) -> None:
        if not self._keep_best or self._score(result) == -math.inf:
            return
        about = {
            "steps": checkpoint.steps,
            "return_mean": result.return_mean,
            "return_std": result.return_std,
            "episodes": len(result.returns),
            **result.info_row(),
        }
        self._store.save_best(checkpoint, about)

    def _score(self, result: EvaluationResult) -> float:
        score = result.score(self._settings.metric)
        return score if math.isfinite(score) else -math.inf

    def _next_after(self, steps: int) -> int:
        return (steps // self._settings.every_steps + 1) * self._settings.every_steps

    def _play_next(self) -> None:
        """Start the next evaluation if there is one and none is running."""
        if self._played is not None or self._pending is None or self.passed is not None:
            return
        if self._earlier is not None:
            self._played = self._earlier
        else:
            self._played, self._pending = self._pending, None
        self._evaluator.request(self._played.model, self._played.steps)

    def _take(self, result: EvaluationResult | None) -> None:
        if result is None or self._played is None:
            return
        played, self._played = self._played, None
        score = self._score(result)
        if played is self._earlier:
            self._earlier, self._best_score = None, score
            return
        self._report(result, played.steps)
        if score >= self._best_score:
            self._best_score = score
            self._keep(played, result)
        stop_at = self._settings.stop_at
        if stop_at is not None and score >= stop_at and self.passed is None:
            self.passed = (played, result)
