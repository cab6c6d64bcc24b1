from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastrl.config import CheckpointConfig, Config, EnvConfig, EvaluationConfig
from fastrl.training.checkpoint import Checkpoint, CheckpointStore
from fastrl.training.evaluation import EvaluationResult
from fastrl.training.evaluator import Candidates


class Player:
    """An evaluator that answers when it is told to."""

    def __init__(self):
        self.asked, self.answer, self.busy = [], None, False
        self.answers_at_once = False

    def request(self, state_dict, steps):
        assert not self.busy
        self.busy = True
        self.asked.append(steps)

    def poll(self, timeout_s=0.0):
        if self.answers_at_once:
            self.answer = EvaluationResult((0.0,), (1,))
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

    def train_to(self, steps, **how):
        self.steps = steps
        return self.candidates.after_update(steps, **how)

    def answer(self, *returns):
        self.player.answer = EvaluationResult(returns, (1,) * len(returns))


@pytest.fixture
def scene(tmp_path, monkeypatch):
    monkeypatch.setattr("fastrl.training.evaluator._CHECK_S", 0.0)
    return lambda **settings: Scene(tmp_path, **settings)


def test_policy_is_evaluated_when_it_is_due(scene):
    scene = scene()
    for steps in range(40, 401, 40):
        scene.train_to(steps)
        scene.answer(1.0)
    assert scene.player.asked == [120, 200, 320, 400]


def test_newest_policy_that_fell_due_meanwhile_is_evaluated_next(scene):
    scene = scene()
    for steps in range(50, 501, 50):
        scene.train_to(steps)
    assert scene.player.asked == [100]
    scene.answer(1.0)
    scene.train_to(550)
    assert scene.player.asked == [100, 500]
    scene.answer(2.0)
    scene.train_to(580)
    assert scene.player.asked == [100, 500]
    assert scene.reported == [(100, 1.0), (500, 2.0)]


@given(st.lists(st.booleans(), min_size=3, max_size=30))
def test_last_policy_that_fell_due_is_always_evaluated(answered):
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastrl.training.evaluator._CHECK_S", 0.0)
        scene = Scene(Path(directory))
        for index, is_answered in enumerate(answered):
            scene.train_to(50 * (index + 1))
            if is_answered:
                scene.answer(float(index))
        scene.player.answers_at_once = True
        scene.candidates.finish()
    due = range(100, 50 * len(answered) + 1, 100)
    asked = scene.player.asked
    assert asked == sorted(set(asked))
    assert asked[0] == 100
    assert asked[-1] == due[-1]
    assert set(asked) <= set(due)
    assert [steps for steps, _ in scene.reported] == asked


@pytest.mark.parametrize("video", [False, True])
def test_last_policy_is_left_to_the_final_evaluation_unless_for_a_video(scene, video):
    scene = scene(video=video)
    for steps in (100, 200):
        scene.train_to(steps)
    scene.train_to(300, is_last=True)
    scene.player.answers_at_once = True
    scene.candidates.finish()
    assert scene.player.asked == ([100, 300] if video else [100])


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


def test_of_equally_good_policies_the_later_one_is_kept(scene):
    scene = scene()
    for steps in (100, 200):
        scene.train_to(steps)
        scene.answer(5.0)
        scene.train_to(steps + 50)
    assert scene.store.best()["steps"] == 200


def session_after_a_best_of_100_steps(scene, mean):
    first = scene()
    first.train_to(100)
    first.answer(mean)
    first.train_to(150)
    second = scene()
    second.train_to(200)
    return second


@pytest.mark.parametrize(("again", "value", "best"), [(9.0, 3.0, 100), (2.0, 3.0, 200)])
def test_best_of_an_earlier_session_plays_the_episodes_of_this_one(scene, again, value, best):
    second = session_after_a_best_of_100_steps(scene, 9.0)
    assert second.player.asked == [100]
    second.answer(again)
    second.train_to(250)
    assert second.player.asked == [100, 200]
    second.answer(value)
    second.train_to(290)
    assert second.store.best()["steps"] == best
    assert second.reported == [(200, value)]


def test_damaged_best_of_an_earlier_session_is_replaced(scene, tmp_path):
    first = scene()
    first.train_to(100)
    first.answer(9.0)
    first.train_to(150)
    (tmp_path / "step_000000000100" / "model.safetensors").write_bytes(b"")
    second = scene()
    second.train_to(200)
    assert second.player.asked == [200]
    second.answer(1.0)
    second.train_to(250)
    assert second.store.best()["steps"] == 200


@pytest.mark.parametrize(("value", "best"), [(6.0, 100), (7.0, 300), (8.0, 300)])
def test_final_policy_and_the_best_so_far_play_the_same_episodes(scene, value, best):
    scene = scene()
    scene.train_to(100)
    scene.answer(500.0)
    scene.train_to(150)
    scene.steps, played = 300, []

    def play(checkpoint):
        played.append(checkpoint.steps)
        return EvaluationResult((7.0, 7.0, 7.0), (1, 1, 1))

    scene.candidates.judge(scene.snapshot(), EvaluationResult((value,) * 3, (1,) * 3), play)
    assert played == [100]
    found = scene.store.best()
    assert (found["steps"], found["return_mean"]) == (best, max(value, 7.0))
    assert found["episodes"] == 3
    assert scene.store.load("best").model["steps"] == best


def test_final_policy_that_is_the_best_so_far_is_not_played_twice(scene):
    scene = scene()
    scene.train_to(100)
    scene.answer(500.0)
    scene.train_to(150)
    scene.steps = 100
    scene.candidates.judge(scene.snapshot(), EvaluationResult((7.0,), (1,)), pytest.fail)
    assert scene.store.best()["return_mean"] == 7.0


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
