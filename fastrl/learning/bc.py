"""Behavioural cloning."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from fastrl.config import BCConfig
from fastrl.config.algorithms import CloningConfig
from fastrl.datasets import HELD_OUT
from fastrl.learning.algorithm import (
    Algorithm,
    Batch,
    Experience,
    Loss,
    Minibatch,
    Prepared,
    Scheduled,
)
from fastrl.models.networks import RunningNormalizer
from fastrl.models.policy import PolicyModel
from fastrl.spec import ACTION_MASK

_ROWS = 4096
"""Held-out rows that are evaluated at once."""
SectionT = TypeVar("SectionT", bound=CloningConfig)


class Cloning(Algorithm[SectionT]):
    """Maximises the likelihood of given actions, with an entropy bonus."""

    is_mean_over_rows = True
    uses_value = False

    def loss(self, minibatch: Minibatch, policy: PolicyModel) -> Loss:
        """Return -log π(a|s) - ``entropy_coef`` · H(π(·|s)), the mean over the rows."""
        log_prob, entropy, _ = minibatch.evaluate(policy)
        likelihood, mean_entropy = log_prob.mean(), entropy.mean()
        metrics = {"log_likelihood": likelihood.detach(), "entropy": mean_entropy.detach()}
        return Loss(-likelihood - self.section.entropy_coef * mean_entropy, metrics)


class BC(Cloning[BCConfig]):
    """Behavioural cloning (Pomerleau, 1991): supervised learning of demonstrated actions.

    A rollout is all demonstrations, and an update an epoch over those that are not held out. The
    loss of the others, ``validation_loss``, is computed before each epoch.
    """

    section_type = BCConfig

    def __init__(self, section: BCConfig) -> None:
        super().__init__(section)
        self._best, self._worse = math.inf, 0

    def minibatches(self, batch: Batch, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield every row once that is not held out, shuffled."""
        rows = (~batch.fields[HELD_OUT]).nonzero().flatten()
        order = torch.randperm(len(rows), generator=generator).to(rows.device)
        yield from rows[order].split(self.section.minibatch_size)

    def relabel(
        self, experience: Experience, policy: PolicyModel, scheduled: Scheduled
    ) -> Prepared:
        """Normalise observations from the first epoch on, since all are known; see `Algorithm`."""
        # Not part of PolicyModel: models without statistics may lack this method.
        update = getattr(policy, "update_normalizers", None)
        modules = cast(nn.Module, policy).modules()
        statistics = [each for each in modules if isinstance(each, RunningNormalizer)]
        if update is not None and statistics and not any(each.count for each in statistics):
            update({path: leaf[:-1] for path, leaf in experience.observation.items()})
        return Prepared()

    def prepare(self, experience: Experience, policy: PolicyModel) -> Prepared:
        """Return the loss of the held-out rows as a metric, where there are some."""
        rows = experience[HELD_OUT].flatten().nonzero().flatten()
        if not len(rows):
            return Prepared()
        total = torch.zeros((), dtype=torch.float64)
        for part in rows.split(_ROWS):
            loss = self.loss(_rows_of(experience, part), policy).total
            total += loss.double().cpu() * len(part) / len(rows)
        is_better = float(total) < self._best
        self._best = min(self._best, float(total))
        self._worse = 0 if is_better else self._worse + 1
        return Prepared(metrics={"validation_loss": total})

    @property
    def is_finished(self) -> bool:
        """Whether the loss of validation has not fallen for ``patience`` epochs."""
        return self.section.patience is not None and self._worse >= self.section.patience

    def state_dict(self) -> dict[str, Any]:
        """Return the lowest loss of validation, and for how many epochs it was not lower."""
        return {"best": self._best, "worse": self._worse}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from such a state."""
        self._best, self._worse = float(state["best"]), int(state["worse"])


def _rows_of(experience: Experience, rows: Tensor) -> Minibatch:
    """Return rows ``[n] int64`` of a rollout, on the device that learns."""
    length = len(experience["reward"])
    fields = {
        name: experience[name] for name in (HELD_OUT, ACTION_MASK) if name in experience.fields
    }
    observation, action, fields = (
        {
            name: leaf[:length].flatten(0, 1)[rows].to(experience.device)
            for name, leaf in group.items()
        }
        for group in (experience.observation, experience.action, fields)
    )
    batch = Batch(observation, action, fields, experience.device)
    return Minibatch(batch, batch.all_rows(), {})
