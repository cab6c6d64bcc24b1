"""User-defined classes: an algorithm, a policy, a sampler, an engine and a logger."""

from __future__ import annotations

import json

import torch
from pydantic import Field, model_validator

from fastrl import ActorCritic, ConfigError
from fastrl.config import LearnerConfig, ModelConfig, PPOConfig
from fastrl.config.fields import Fraction, ImportPath, Size
from fastrl.learning import Algorithm, Loss, Prepared
from fastrl.learning.ppo import PPO
from fastrl.learning.returns import discounted_returns, next_values
from fastrl.models import EagerEngine
from fastrl.sampling import SerialSampler


class VpgConfig(LearnerConfig):
    baseline: Fraction = Field(default=0.5, description="Weight of the baseline's loss.")
    shape: ImportPath | None = Field(default=None, description="A function of the user.")


class Vpg(Algorithm[VpgConfig]):
    section_type = VpgConfig

    def prepare(self, experience, policy):
        ended = experience["terminated"] | experience["truncated"]
        following = next_values(
            experience["value"], experience["final_value"],
            experience["terminated"], experience["truncated"],
        )  # fmt: skip
        returns = discounted_returns(experience["reward"], following, ended, self.section.gamma)
        return Prepared({"return": returns})

    def loss(self, minibatch, policy):
        log_prob, _, value = minibatch.evaluate(policy)
        error = minibatch["return"] - value
        surprise = error.square().mean()
        total = -(error.detach() * log_prob).mean() + self.section.baseline * surprise
        return Loss(total, {"surprise": surprise})


class Rewarded(Vpg):
    """Algorithm that reads a field added by a transform."""

    def loss(self, minibatch, policy):
        found = super().loss(minibatch, policy)
        return found._replace(metrics={**found.metrics, "bonus": minibatch["bonus"].mean()})


class NamedConfig(LearnerConfig):
    name: str = Field(default="mine", description="As it calls itself.")


class TamedConfig(PPOConfig):
    epochs: Size = Field(default=1, description="Passes over each rollout.")

    @model_validator(mode="after")
    def _check(self):
        if self.epochs == 13:
            raise ValueError("13 epochs are none")
        if self.epochs == 14:
            raise KeyError("epochs")
        return self


class Tamed(PPO):
    section_type = TamedConfig


class Named(Algorithm[NamedConfig]):
    section_type = NamedConfig

    def loss(self, minibatch, policy):
        raise NotImplementedError


class Sectionless(Algorithm):
    def loss(self, minibatch, policy):
        raise NotImplementedError


class Unlike:
    """Class with a configuration section that is not an algorithm."""

    section_type = VpgConfig

    def __init__(self, section):
        pass


class Small(ActorCritic):
    def __init__(self, env_spec, width=4):
        super().__init__(env_spec, ModelConfig(hidden_sizes=(width,)))


def serial(config, plan, weights, on_fault):
    return SerialSampler(plan, weights)


class Doubtful(EagerEngine):
    """Engine that runs PyTorch under another name."""


def doubtful(model, device):
    assert device == torch.device("cpu")
    return Doubtful(model)


class Tape:
    """Logger that writes rows into a file of the run, and fails on request."""

    def __init__(self, run, config, steps, file="tape", fail_at=None):
        self._file, self._fail_at = (run.path / file).open("a"), fail_at
        self._file.write(json.dumps([config.algorithm.name, steps]) + "\n")

    def write(self, kind, row):
        if self._fail_at is not None and row["steps"] >= self._fail_at:
            raise RuntimeError("the tape is torn")
        self._file.write(json.dumps([kind, row["steps"]]) + "\n")

    def close(self):
        self._file.close()


def nothing(*_, **__):
    return None


def refusing(*_, **__):
    raise ConfigError("not on a Sunday")
