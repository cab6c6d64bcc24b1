"""The loop, with a sampler and a learner that note what is asked of them."""

from __future__ import annotations

import signal
import time

import numpy as np
import pytest
import torch

from fastrl.shared.rollouts import Episodes, Rollout
from fastrl.training import interrupts
from fastrl.training.interrupts import Interrupts, StopSignal
from fastrl.training.trainer import Trainer

STEPS = 48


class Stage:
    """Sampler and learner in one."""

    def __init__(self, versions_behind=0):
        self.calls, self.steps, self.updates, self.version = [], 0, 0, 0
        self._behind = versions_behind
        self.while_collecting = self.while_learning = lambda: None

    def collect(self):
        self.calls.append(f"collect with {self.version}")
        self.while_collecting()
        return Rollout(
            reward=torch.zeros(6, 8),
            policy_version=torch.full((6, 8), self.version - self._behind),
            episodes=Episodes(np.zeros(0), np.zeros(0, int), np.zeros(0, int), np.zeros(0, int)),
            index=self.updates,
        )

    def update(self, rollout):
        self.calls.append("update")
        self.lag = getattr(rollout, "policy_lag", None)
        self.while_learning()
        self.steps += rollout.num_steps
        self.updates += 1
        return {"loss": 1.0}

    def weights(self):
        return {"weight": torch.tensor(float(self.updates))}

    def publish(self, weights):
        self.version += 1
        self.calls.append(f"publish {float(weights['weight'])}")
        return self.version


def run(stage, total_steps, after_update=lambda update: False):
    seen = []

    def note(update):
        seen.append(update)
        return after_update(update)

    with Interrupts() as interrupts:
        finished = Trainer(stage, stage, total_steps, interrupts).run(note)
    return finished, seen


def test_new_weights_are_published_before_the_next_rollout():
    stage = Stage()
    run(stage, 2 * STEPS)
    assert stage.calls == [
        "publish 0.0",
        "collect with 1",
        "update",
        "publish 1.0",
        "collect with 2",
        "update",
        "publish 2.0",
    ]


@pytest.mark.parametrize(
    ("total_steps", "expected"), [(1, 48), (48, 48), (49, 96), (480, 480), (481, 528)]
)
def test_last_rollout_is_whole_and_every_step_is_counted(total_steps, expected):
    stage = Stage()
    finished, seen = run(stage, total_steps)
    assert finished
    assert stage.steps == expected
    assert [update.steps for update in seen] == list(range(STEPS, expected + 1, STEPS))
    assert [update.updates for update in seen] == list(range(1, len(seen) + 1))
    assert all(update.num_steps == STEPS for update in seen)


def test_nothing_is_done_where_all_steps_are_done():
    stage = Stage()
    stage.steps = 100
    assert run(stage, 100) == (True, [])


@pytest.mark.parametrize("behind", [0, 1])
def test_policy_lag_is_told(behind):
    stage = Stage(behind)
    _, seen = run(stage, 3 * STEPS)
    assert [update.policy_lag for update in seen] == [behind] * 3
    assert stage.lag is None if not behind else bool((stage.lag == behind).all())


def test_training_stops_when_it_is_told_to():
    finished, seen = run(Stage(), 1000, lambda update: update.updates == 2)
    assert finished
    assert len(seen) == 2


def test_signal_while_learning_lets_the_update_finish():
    stage = Stage()
    stage.while_learning = lambda: signal.raise_signal(signal.SIGTERM)
    finished, seen = run(stage, 1000)
    assert not finished
    assert len(seen) == 1
    assert stage.calls[-1] == "publish 1.0"


def interrupted_while_collecting(after_updates, then=lambda: None):
    stage = Stage()

    def collecting():
        if stage.updates == after_updates:
            signal.raise_signal(signal.SIGINT)
            then()

    stage.while_collecting = collecting
    return stage


def test_signal_while_waiting_lets_a_rollout_finish_that_comes_soon():
    stage = interrupted_while_collecting(after_updates=1)
    finished, _ = run(stage, 1000)
    assert not finished
    assert (stage.updates, stage.steps) == (2, 2 * STEPS)
    assert stage.calls[-1] == "publish 2.0"


@pytest.mark.parametrize(
    ("after_updates", "usually_takes_long"), [(0, False), (1, True)], ids=["first", "long"]
)
def test_signal_while_waiting_breaks_a_rollout_off_that_may_take_long(
    monkeypatch, after_updates, usually_takes_long
):
    if usually_takes_long:
        monkeypatch.setattr(interrupts, "HURRY_S", 0.0)
    stage = interrupted_while_collecting(after_updates)
    with pytest.raises(StopSignal):
        run(stage, 1000)
    assert (stage.updates, stage.steps) == (after_updates, after_updates * STEPS)


def test_rollout_that_takes_longer_than_usual_is_broken_off_after_a_signal(monkeypatch):
    monkeypatch.setattr(interrupts, "HURRY_S", 0.2)
    stage = interrupted_while_collecting(after_updates=1, then=lambda: time.sleep(60))
    began_s = time.monotonic()
    with pytest.raises(StopSignal):
        run(stage, 1000)
    assert time.monotonic() - began_s < 30
    assert stage.updates == 1


def test_second_signal_ends_at_once():
    stage = Stage()

    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    stage.while_learning = twice
    with pytest.raises(KeyboardInterrupt):
        run(stage, 1000)
    assert stage.updates == 0


def test_signals_are_given_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run(Stage(), STEPS)
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_stop_signal_passes_what_catches_exceptions():
    def guarded():
        try:
            signal.raise_signal(signal.SIGINT)
        except Exception:
            pytest.fail("the signal was taken for an error")

    stage = Stage()
    stage.while_collecting = guarded
    with pytest.raises(StopSignal):
        run(stage, 1000)
