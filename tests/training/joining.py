"""Callbacks and transforms for runs of tests."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import time

import numpy as np
import torch

from fastrl import Callback
from fastrl.errors import FastrlError
from tests.sampling.levels import Levels


class Climbing(Levels):
    """Environment that rewards the second action, in proportion to its level."""

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, float(action) * (1 + self.level), *rest


class Heard(Callback):
    """Callback that records every call, with the steps of the run."""

    def __init__(self, name="heard"):
        self.name, self.heard = name, []

    def hear(self, hook, context, *what):
        self.heard.append((hook, context.steps, *what))

    def on_start(self, context):
        self.hear("start", context)

    def on_rollout(self, context, rollout):
        self.hear("rollout", context, rollout.num_steps)

    def on_update(self, context, update):
        self.hear("update", context, update.updates)

    def on_evaluation(self, context, result, steps):
        self.hear("evaluation", context, steps)

    def on_checkpoint(self, context, path):
        assert (path / "meta.json").exists()
        self.hear("checkpoint", context, path.name)

    def on_end(self, context):
        self.hear("end", context)


class Curriculum(Callback):
    """Callback that raises level, learning rate and size by metrics and random numbers."""

    def __init__(self, every=1):
        self.every, self.level, self.seen = every, 0, torch.zeros(3)
        self.generator = np.random.default_rng(7)

    def on_start(self, context):
        if context.updates == 0:
            context.call_envs("set_level", 1)

    def on_rollout(self, context, rollout):
        self.seen = 0.5 * self.seen + rollout.observation[1:].mean((0, 1))[:3]

    def on_update(self, context, update):
        if context.updates % self.every == 0:
            self.level += int(self.generator.integers(1, 4))
            context.call_envs("set_level", self.level, noisy=True)
            context.set_env_attribute("size", int(self.seen.sum()) % 5)
            rate = context.schedules["learning_rate"]
            context.set_schedule("learning_rate", 0.7 * rate if self.level % 3 else None)
        context.log("level", self.level)

    def state_dict(self):
        return {"level": self.level, "seen": self.seen, "generator": self.generator}

    def load_state_dict(self, state):
        self.level, self.seen, self.generator = state["level"], state["seen"], state["generator"]


class Failing(Callback):
    """Callback that fails in one of its methods, in the third update or later."""

    def __init__(self, where, how="raise"):
        self.where, self.how = where, how

    def _maybe(self, context, where, after=2):
        if where == self.where and context.updates >= after:
            self.fail()

    def fail(self):
        if self.how == "raise":
            raise ValueError("no such thing")
        if self.how == "exit":
            raise SystemExit(3)
        if self.how == "own":
            raise FastrlError("this cannot go on")
        signal.raise_signal(signal.SIGINT)

    def on_start(self, context):
        self._maybe(context, "on_start", 0)

    def on_rollout(self, context, rollout):
        self._maybe(context, "on_rollout")

    def on_update(self, context, update):
        self._maybe(context, "on_update")

    def on_evaluation(self, context, result, steps):
        self._maybe(context, "on_evaluation")

    def on_checkpoint(self, context, path):
        self._maybe(context, "on_checkpoint")

    def on_end(self, context):
        self._maybe(context, "on_end")

    def state_dict(self):
        return {"where": object()} if self.where == "state_dict" else {}


def stopping(after):
    """Return a callback: a function in place of a class."""
    return Stopping(after)


class Stopping(Callback):
    """Callback that stops the run after some updates."""

    def __init__(self, after):
        self.after = after

    def on_update(self, context, update):
        if context.updates == self.after:
            context.stop()


class Slow(Callback):
    """Callback that receives SIGTERM during a long update."""

    def on_update(self, context, update):
        if context.updates == 2:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(60)


class Killing(Callback):
    """Callback that ends an env worker after an update."""

    def on_update(self, context, update):
        if context.updates == 3:
            pids = context._sampler.pids()
            os.kill(pids["env-worker-1"], signal.SIGKILL)


def doubled(rollout, factor=2.0):
    """Return a rollout with larger rewards, and a bonus."""
    bonus = torch.full_like(rollout.reward, factor)
    return dataclasses.replace(rollout, reward=factor * rollout.reward, bonus=bonus)


class Shaping:
    """Transform with a state that subtracts a running mean from the rewards, with noise."""

    def __init__(self, rate=0.1):
        self.rate, self.mean, self.random = rate, 0.0, random.Random(3)

    def __call__(self, rollout):
        self.mean += self.rate * (float(rollout.reward.mean()) - self.mean)
        noise = self.random.random()
        return dataclasses.replace(rollout, reward=rollout.reward - self.mean + noise)

    def state_dict(self):
        return {"mean": self.mean, "random": self.random}

    def load_state_dict(self, state):
        self.mean, self.random = state["mean"], state["random"]


class Wrong:
    """Transform that returns an invalid rollout."""

    def __init__(self, how):
        self.how = how

    def __call__(self, rollout):
        reward, replace = rollout.reward, dataclasses.replace
        return {
            "nothing": lambda: None,
            "shape": lambda: replace(rollout, reward=reward.mean(1)),
            "dtype": lambda: replace(rollout, reward=reward.double()),
            "bonus": lambda: replace(rollout, bonus=reward.mean(1)),
            "number": lambda: replace(rollout, bonus=1.0),
            "error": lambda: reward.nothing,
        }[self.how]()
