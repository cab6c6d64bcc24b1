"""Dataset aggregation (DAgger)."""

from __future__ import annotations

from dataclasses import replace

from fastrl.config import DAggerConfig
from fastrl.learning.algorithm import Experience, Prepared
from fastrl.learning.bc import LEARNT, Cloning
from fastrl.models.policy import PolicyModel


class DAgger(Cloning[DAggerConfig]):
    """Behavioural cloning of what an expert would do in the states that the policy visits.

    Ross et al. 2011 (https://arxiv.org/abs/1011.0686), algorithm 3.1. A rollout holds all steps of
    the run so far, with the expert's actions; see `fastrl.training.dagger_sampler`.
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
