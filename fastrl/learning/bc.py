"""Behavioural cloning of given actions, and of those of an expert in the loop (DAgger)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from fastrl.config import BCConfig, Config, DAggerConfig
from fastrl.config.algorithms import CloningConfig
from fastrl.datasets import HELD_OUT, PADDING
from fastrl.learning.algorithm import (
    LEARNT,
    Algorithm,
    Batch,
    Experience,
    Loss,
    Minibatch,
    Prepared,
    Scheduled,
)
from fastrl.learning.ranks import Ranks
from fastrl.models.networks import RunningNormalizer
from fastrl.models.policy import PolicyModel, state_size
from fastrl.spec import EnvSpec

_WEIGHT = "weight"
"""Field ``[n] float32`` of mean 1: weight of each row, 0 for rows that the loss ignores."""
_ROWS = 4096
"""Number of held-out rows that are evaluated at once."""
SectionT = TypeVar("SectionT", bound=CloningConfig)


class Cloning(Algorithm[SectionT]):
    """Maximises the likelihood of given actions, with an entropy bonus.

    A policy with a memory learns from sequences of whole episodes. Demonstrations hold no policy
    states, so the policy computes them from the beginnings of episodes, before each epoch.
    """

    is_mean_over_rows = True
    uses_value = False

    def begin(self, config: Config, env_spec: EnvSpec, device: torch.device, ranks: Ranks) -> None:
        """Store the length of sequences; see `Algorithm.begin`."""
        self._sequence_length = config.sequence_length

    def relabel(
        self, experience: Experience, policy: PolicyModel, scheduled: Scheduled
    ) -> Prepared:
        """Normalise observations from the first epoch on, and return the states of a memory.

        See `Algorithm.relabel`. Otherwise the policy would lose what it learns from the first
        rollout as soon as there are statistics.
        """
        # Not part of PolicyModel: models without statistics may lack this method.
        update = getattr(policy, "update_normalizers", None)
        modules = cast(nn.Module, policy).modules()
        statistics = [each for each in modules if isinstance(each, RunningNormalizer)]
        if update is not None and statistics and not any(each.count for each in statistics):
            learnt = _learnt(experience)
            update({path: leaf[:-1][learnt] for path, leaf in experience.observation.items()})
        if not state_size(policy):
            return Prepared()
        return Prepared({"policy_state": experience.states(policy, self._sequence_length)})

    def prepare(self, experience: Experience, policy: PolicyModel) -> Prepared:
        """Return the field that marks the rows of the loss."""
        return Prepared({LEARNT: _learnt(experience)})

    def minibatches(self, batch: Batch, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield every row of the loss once, shuffled; with a memory whole segments."""
        segments = batch.segments_with(batch.fields[LEARNT])
        return batch.shuffled(self.section.minibatch_size, generator, segments)

    def whole(self, minibatch: Minibatch) -> Mapping[str, Tensor]:
        """Return weights that turn a mean over segments into a mean over the rows of the loss."""
        if minibatch.sequence_length == 1:
            return {}
        return {_WEIGHT: _of_mean_1(minibatch[LEARNT])}

    def loss(self, minibatch: Minibatch, policy: PolicyModel) -> Loss:
        """Return -log π(a|s) - ``entropy_coef`` · H(π(·|s)), the mean over the rows."""
        log_prob, entropy, _ = minibatch.evaluate(policy)
        if minibatch.sequence_length > 1:
            log_prob, entropy = log_prob * minibatch[_WEIGHT], entropy * minibatch[_WEIGHT]
        likelihood, mean_entropy = log_prob.mean(), entropy.mean()
        metrics = {"log_likelihood": likelihood.detach(), "entropy": mean_entropy.detach()}
        return Loss(-likelihood - self.section.entropy_coef * mean_entropy, metrics)


class BC(Cloning[BCConfig]):
    """Behavioural cloning (Pomerleau, 1991): supervised learning of demonstrated actions.

    A rollout contains all demonstrations; an update is an epoch over those that are not held
    out. The loss of the held-out ones, ``validation_loss``, is computed before each epoch.
    """

    section_type = BCConfig

    def __init__(self, section: BCConfig) -> None:
        super().__init__(section)
        self._best, self._worse = math.inf, 0

    def prepare(self, experience: Experience, policy: PolicyModel) -> Prepared:
        """Return the loss of the held-out rows as a metric, if there are any."""
        prepared = super().prepare(experience, policy)
        batch = experience.batch(list, {})
        held = batch.fields[HELD_OUT]
        segments = batch.segments_with(held)
        if not len(segments):
            return prepared
        total = torch.zeros((), dtype=torch.float64)
        for some in segments.split(max(1, _ROWS // batch.sequence_length)):
            part = batch.part(some, experience.device)
            marked = part.fields[HELD_OUT]
            minibatch = Minibatch(part, part.all_rows(), {}, {_WEIGHT: _of_mean_1(marked)})
            loss = self.loss(minibatch, policy).total
            total += loss.double().cpu() * int(marked.sum()) / int(held.sum())
        is_better = float(total) < self._best
        self._best = min(self._best, float(total))
        self._worse = 0 if is_better else self._worse + 1
        return replace(prepared, metrics={"validation_loss": total})

    @property
    def is_finished(self) -> bool:
        """Whether the validation loss has not fallen for ``patience`` epochs."""
        return self.section.patience is not None and self._worse >= self.section.patience

    def state_dict(self) -> dict[str, Any]:
        """Return the lowest validation loss, and the number of epochs since then."""
        return {"best": self._best, "worse": self._worse}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from such a state."""
        self._best, self._worse = float(state["best"]), int(state["worse"])


def _learnt(experience: Experience) -> Tensor:
    """Return ``[T, B] bool``: rows that are neither held out nor padding."""
    learnt = torch.ones_like(experience["terminated"])
    for name in (HELD_OUT, PADDING):
        if name in experience.fields:
            learnt &= ~experience[name]
    return learnt


def _of_mean_1(marked: Tensor) -> Tensor:
    """Return weights ``[n] float32`` of mean 1 that are 0 where ``marked [n] bool`` is False."""
    weight = marked.float()
    return weight / weight.mean()


class DAgger(Cloning[DAggerConfig]):
    """Behavioural cloning of an expert's actions in the states that the policy visits.

    Ross et al. 2011 (https://arxiv.org/abs/1011.0686), algorithm 3.1. A rollout contains all steps
    of the run so far, with the expert's actions; see `fastrl.training.dagger_sampler`.
    """

    section_type = DAggerConfig

    @property
    def epochs(self) -> int:
        """Number of passes over all steps after each rollout."""
        return self.section.epochs

    def prepare(self, experience: Experience, policy: PolicyModel) -> Prepared:
        """Return the number of steps with an expert's action as a metric."""
        prepared = super().prepare(experience, policy)
        learnt = prepared.fields[LEARNT].sum().float()
        return replace(prepared, metrics={"demonstrations": learnt})
