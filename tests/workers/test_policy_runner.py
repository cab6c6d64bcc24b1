"""A policy runner serves what it is asked for, with the memory that there is."""

import pytest
import torch

from fastrl.errors import FastrlError
from fastrl.shared.table import Table
from fastrl.spec import Topology
from fastrl.workers.policy_runner import PolicyRequest, PolicyRunner
from tests.sampling.counting import CountingPolicy, make_plan


class Greedy(CountingPolicy):
    """Needs the memory of a device for five rows."""

    def value(self, observation):
        rows = observation[self._leaf]
        if len(rows) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().value(observation)


@pytest.mark.parametrize(("limit", "told"), [(5, "4 fit"), (0, "not even one fits")])
def test_too_little_memory_names_a_size_that_fits(limit, told):
    def build():
        policy = Greedy()
        policy.limit = limit
        return policy

    plan = make_plan(Topology(16, 1), 3, build_model=build)
    table = Table(plan.schema, 3, 16)
    runner = PolicyRunner(plan, table, None, 0)
    with pytest.raises(FastrlError, match=f"infer 16 environments at once, {told}; lower sampler"):
        runner.serve([PolicyRequest(0, 0, 0, 16)])


def test_number_of_calls_that_are_kept_changes_nothing(monkeypatch):
    def served(kept):
        monkeypatch.setattr("fastrl.workers.policy_runner._CACHED_BYTES", kept << 13)
        plan = make_plan(Topology(4, 2, 1, 2), 3)
        table = Table(plan.schema, 3, 8)
        runner = PolicyRunner(plan, table, None, 0)
        for rollout in range(3):
            runner.begin(rollout)
            for t in range(4):
                for start, stop in ((0, 4), (4, 6), (6, 8)):
                    runner.serve([PolicyRequest(rollout % 2, t, start, stop)])
        bank = table.banks[0]
        return [bank.action[""], bank.log_prob, bank.value]

    for few, all_of_them in zip(served(1), served(100), strict=True):
        assert torch.equal(few, all_of_them)
