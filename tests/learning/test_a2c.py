"""A2C: one step per rollout, V-trace for older policies, and the right direction."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastrl.config import A2CConfig
from fastrl.learning import build_learner
from tests.learning.synthetic import CONTINUOUS, DISCRETE, config_of, random_rollout
from tests.learning.tasks import TASKS, learnt_share


def learnt(algorithm: A2CConfig, change=lambda rollout: rollout, spec=CONTINUOUS) -> torch.Tensor:
    """Return the parameters after one update on a rollout of the first policy."""
    learner = build_learner(config_of(algorithm), spec)
    learner.update(change(random_rollout(spec, learner.model)))
    return torch.cat([p.detach().flatten() for p in learner.model.parameters()])


def test_takes_one_gradient_step_per_rollout():
    learner = build_learner(config_of(A2CConfig()), DISCRETE)
    assert learner.update(random_rollout(DISCRETE, learner.model))["gradient_steps"] == 1


def test_gradient_is_clipped():
    """RMSprop's first step is the gradient over the root of 0.99, times the learning rate."""
    learner = build_learner(config_of(A2CConfig(learning_rate=1.0, max_grad_norm=0.01)), DISCRETE)
    before = torch.cat([p.detach().flatten() for p in learner.model.parameters()])
    metrics = learner.update(random_rollout(DISCRETE, learner.model))
    after = torch.cat([p.detach().flatten() for p in learner.model.parameters()])
    assert metrics["gradient_norm"] > 0.1
    assert float((after - before).norm()) == pytest.approx(0.01 / 0.99**0.5, rel=1e-3)


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=lambda spec: spec.id)
def test_vtrace_changes_nothing_on_policy(spec):
    plain, corrected = A2CConfig(), A2CConfig(vtrace=True)
    torch.testing.assert_close(
        learnt(corrected, spec=spec), learnt(plain, spec=spec), rtol=1e-4, atol=1e-6
    )


def test_vtrace_ignores_the_values_of_the_older_policy():
    def with_other_values(rollout):
        return replace(rollout, value=rollout.value + 5)

    corrected = A2CConfig(vtrace=True)
    assert torch.equal(learnt(corrected, with_other_values), learnt(corrected))
    assert not torch.equal(learnt(A2CConfig(), with_other_values), learnt(A2CConfig()))


def test_vtrace_learns_little_from_what_the_policy_would_not_do():
    """Where the older policy was 1000 times as likely to act so, hardly a trace is left."""

    def from_another_policy(rollout):
        return replace(rollout, log_prob=rollout.log_prob + 7)

    def update_size(algorithm: A2CConfig) -> float:
        learner = build_learner(config_of(algorithm), CONTINUOUS)
        rollout = random_rollout(CONTINUOUS, learner.model)
        before = learner.model.actor_head.weight.detach().clone()
        learner.update(from_another_policy(rollout))
        return float((learner.model.actor_head.weight.detach() - before).norm())

    corrected, plain = (
        A2CConfig(vtrace=vtrace, value_coef=0.0, max_grad_norm=None) for vtrace in (True, False)
    )
    assert update_size(corrected) < 0.01 * update_size(plain)


def test_normalised_advantages_do_not_depend_on_the_unit_of_rewards():
    """Up to the value loss, which is left out here."""

    def in_cents(rollout):
        return replace(
            rollout,
            reward=100 * rollout.reward,
            value=100 * rollout.value,
            final_value=100 * rollout.final_value,
        )

    algorithm = A2CConfig(normalize_advantage=True, value_coef=0.0)
    torch.testing.assert_close(learnt(algorithm, in_cents), learnt(algorithm))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("sign", "vtrace"), [(1, False), (-1, True)], ids=["plain", "vtrace"])
def test_a2c_learns_what_is_rewarded(task, sign, vtrace):
    algorithm = A2CConfig(learning_rate=1e-2, optimizer="adam", vtrace=vtrace)
    assert learnt_share(algorithm, task, sign, updates=100) > 0.9
