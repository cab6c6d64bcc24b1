from __future__ import annotations

import pytest
import torch

from fastrl.config import CheckpointConfig, Config, EnvConfig, EvaluationConfig
from fastrl.training.candidates import Candidates
from fastrl.training.checkpoint import Checkpoint, CheckpointStore
from fastrl.training.evaluation import EvaluationResult


class Player:
    """An evaluator that answers when it is told to."""

    def __init__(self):
        self.asked, self.answer, self.busy = [], None, False

    def request(self, state_dict, steps):
        assert not self.busy
        self.busy = True
        self.asked.append(steps)

    def poll(self, timeout_s=0.0):
        answer, self.answer = self.answer, None
        self.busy = self.busy and answer is None
        return answer


class Scene:
    def __init__(self, directory, **settings):
        self.config = Config(
            env=EnvConfig(id="A"),
            evaluation=EvaluationConfig(every_steps=100, **settings),
            checkpoint=CheckpointConfig(keep_last=1),
        )
        self.store, self.player = CheckpointStore(directory, 1), Player()
        self.steps, self.reported = 0, []
        self.candidates = Candidates(
            self.config, self.player, self.store, self.snapshot, self.report
        )

    def snapshot(self):
        return Checkpoint({"steps": torch.tensor(self.steps)}, {}, {"steps": self.steps})

    def report(self, result, steps):
        self.reported.append((steps, result.return_mean))

    def train_to(self, steps):
        self.steps = steps
        return self.candidates.after_update(steps)

    def answer(self, *returns):
        self.player.answer = EvaluationResult(returns, (1,) * len(returns))


@pytest.fixture
def scene(tmp_path, monkeypatch):
    monkeypatch.setattr("fastrl.training.candidates._POLL_S", 0.0)
    return lambda **settings: Scene(tmp_path, **settings)


def test_policy_is_evaluated_when_it_is_due(scene):
    scene = scene()
    for steps in range(40, 401, 40):
        scene.train_to(steps)
        scene.answer(1.0)
    assert scene.player.asked == [120, 200, 320, 400]


def test_evaluation_that_is_late_is_not_made_up_for(scene):
    scene = scene()
    for steps in range(50, 501, 50):
        scene.train_to(steps)
    assert scene.player.asked == [100]
    scene.answer(1.0)
    scene.train_to(550)
    assert scene.player.asked == [100, 550]
    assert scene.reported == [(100, 1.0)]


def test_session_that_goes_on_does_not_begin_with_an_evaluation(scene):
    scene = scene()
    scene.train_to(950)
    assert scene.player.asked == []
    scene.train_to(1000)
    assert scene.player.asked == [1000]


def test_policy_as_it_was_is_kept_if_it_was_the_best(scene):
    scene = scene()
    for steps, value in ((100, 5.0), (200, 9.0), (300, 7.0)):
        scene.train_to(steps)
        scene.answer(value, value)
        scene.train_to(steps + 50)
    best = scene.store.best()
    assert best == {
        "checkpoint": "step_000000000200",
        "steps": 200,
        "return_mean": 9.0,
        "return_std": 0.0,
        "episodes": 2,
    }
    assert scene.store.load("best").model["steps"] == 200


def test_best_of_an_earlier_session_is_not_replaced_by_a_worse_one(scene, tmp_path):
    first = scene()
    first.train_to(100)
    first.answer(9.0)
    first.train_to(150)
    second = scene()
    second.train_to(200)
    second.answer(3.0)
    second.train_to(250)
    assert second.store.best()["steps"] == 100


@pytest.mark.parametrize(("returns", "stops"), [((474.0, 475.0), False), ((474.0, 476.0), True)])
def test_training_stops_at_the_score(scene, returns, stops):
    scene = scene(stop_at=475.0)
    assert not scene.train_to(100)
    scene.answer(*returns)
    assert scene.train_to(150) is stops
    assert (scene.candidates.passed is not None) is stops
    if stops:
        assert scene.candidates.passed[0].steps == 100


def test_finish_waits_for_the_answer(scene):
    scene = scene()
    scene.train_to(100)
    scene.answer(2.0)
    scene.candidates.finish()
    assert scene.reported == [(100, 2.0)]
