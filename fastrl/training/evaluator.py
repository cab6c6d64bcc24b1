"""The evaluation process: plays with the weights it is given while training goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
from torch import Tensor

from fastrl.envs.batched_env import BatchedEnv
from fastrl.errors import WorkerError
from fastrl.models.policy import PolicyModel
from fastrl.shared.weights import WeightStore
from fastrl.spec import EnvSpec
from fastrl.training.evaluation import EpisodePlayer, EvaluationProtocol, EvaluationResult
from fastrl.workers.supervisor import Connection, Supervisor, pipe

_NICENESS = 19
"""Lowest priority: where cores are scarce it gets what training leaves idle, and some 2 % more."""


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

    Args:
        plan: What to play.
        state_dict: Any parameters of the policy; fixes their names and shapes.
    """

    def __init__(self, plan: EvaluationPlan, state_dict: Mapping[str, Tensor]) -> None:
        self._store = WeightStore(state_dict)
        requests, self._ask = pipe()
        self._answers, answers = pipe()
        self._supervisor = Supervisor(request_stop=lambda: None, grace_s=0.0)
        payload = cloudpickle.dumps(plan)
        self._supervisor.start("evaluator", run_evaluator, payload, self._store, requests, answers)
        requests.close()
        answers.close()
        self.busy = False

    def request(self, state_dict: Mapping[str, Tensor], steps: int) -> None:
        """Start to evaluate these parameters, which are copied. Not while it is busy.

        Args:
            state_dict: Parameters of the policy.
            steps: Environment steps that they have learnt from; names the video.

        Raises:
            WorkerError: The process raised or died.
        """
        assert not self.busy
        self._store.publish(state_dict)
        try:
            self._ask.send(steps)
        except OSError:
            raise self._ended() from None
        self.busy = True

    def poll(self, timeout_s: float = 0.0) -> EvaluationResult | None:
        """Return the result if it is there within the time, else None.

        Raises:
            WorkerError: The process raised or died.
        """
        if not self.busy:
            return None
        if not self._answers.poll(timeout_s):
            self._supervisor.check()
            return None
        try:
            result: EvaluationResult = self._answers.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        self.busy = False
        return result

    def _ended(self) -> WorkerError:
        """Return why there is nobody to talk to."""
        failures = self._supervisor.failures()
        return failures[0] if failures else WorkerError("evaluator", "the evaluator is gone")

    def pids(self) -> dict[str, int]:
        """Return the process id by name."""
        return self._supervisor.pids()

    def close(self) -> None:
        """End the process, whatever it is doing; safe to call twice."""
        self._supervisor.stop()
        self._ask.close()
        self._answers.close()
        self._store.close()


def run_evaluator(
    payload: bytes, store: WeightStore, requests: Connection, answers: Connection
) -> None:
    """Evaluate what is asked for until nobody asks any more. Entry point of the process."""
    os.nice(_NICENESS)
    plan: EvaluationPlan = cloudpickle.loads(payload)
    model: Any = plan.build_model()
    player = EpisodePlayer(plan.env_spec, plan.build_env, plan.protocol.episodes)
    try:
        while True:
            steps = requests.recv()
            newest = store.read()
            assert newest is not None
            model.load_state_dict(newest[1])
            answers.send(player.play(model, plan.protocol))
            if plan.record is not None:
                plan.record(model, plan.videos / f"step_{steps:012d}.mp4")
    except EOFError:
        return
    finally:
        player.close()
