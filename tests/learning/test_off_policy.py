"""APPO and IMPALA: V-trace for older policies, the bound on their age, and what they learn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastrl.config import A2CConfig, APPOConfig, ImpalaConfig, ModelConfig, PPOConfig
from fastrl.learning import Experience, build_learner
from fastrl.learning.mlp_gradients import why_not
from fastrl.learning.off_policy import APPO, Impala
from fastrl.learning.returns import VTraceSettings, next_values, vtrace
from fastrl.models import ActorCritic
from fastrl.models.policy import sampling_mode
from fastrl.shared.rollouts import Rollout
from tests.learning.synthetic import (
    CONTINUOUS,
    DISCRETE,
    NESTED,
    config_of,
    random_rollout,
    remembered_rollout,
)
from tests.learning.tasks import TASKS, learnt_share

ALGORITHMS = [APPOConfig(minibatch_size=16, epochs=2), ImpalaConfig()]
NAMES = ["appo", "impala"]
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


def of_older_policy(rollout: Rollout) -> Rollout:
    """Return a rollout whose policy had other probabilities and values."""
    random = torch.Generator().manual_seed(9)
    shape = rollout.log_prob.shape
    log_prob = rollout.log_prob + torch.randn(shape, generator=random)
    return replace(rollout, log_prob=log_prob, value=rollout.value + 5)


def learnt(algorithm, change=lambda rollout: rollout, spec=CONTINUOUS) -> torch.Tensor:
    """Return the parameters after one update on a rollout of the first policy."""
    learner = build_learner(config_of(algorithm), spec)
    learner.update(change(random_rollout(spec, learner.model)))
    return torch.cat([p.detach().flatten() for p in learner.model.parameters()])


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS, NESTED], ids=lambda spec: spec.id)
def test_appo_on_the_newest_policy_is_ppo(spec):
    keys = {"minibatch_size": 16, "epochs": 3, "clip_value_range": 0.1, "gae_lambda": 0.9}
    found = learnt(APPOConfig(**keys), spec=spec)
    torch.testing.assert_close(found, learnt(PPOConfig(**keys), spec=spec), **CLOSE)


def test_appo_with_a_memory_on_the_newest_policy_is_ppo():
    parameters = []
    for section in (APPOConfig, PPOConfig):
        algorithm = section(minibatch_size=16, epochs=2, sequence_length=4)
        learner = build_learner(config_of(algorithm, recurrent="gru"), CONTINUOUS)
        learner.update(remembered_rollout(CONTINUOUS, learner.model, 4))
        parameters.append(torch.cat([p.detach().flatten() for p in learner.model.parameters()]))
    torch.testing.assert_close(*parameters, **CLOSE)


def test_impala_is_a2c_with_vtrace():
    keys = {"gae_lambda": 0.9, "entropy_coef": 0.01, "optimizer": "rmsprop", "learning_rate": 1e-3}
    impala, a2c = ImpalaConfig(**keys), A2CConfig(vtrace=True, **keys)
    assert torch.equal(learnt(impala, of_older_policy), learnt(a2c, of_older_policy))


@pytest.mark.parametrize(
    ("kind", "section"),
    [(APPO, APPOConfig(rho_clip=2.0, minibatch_size=5)), (Impala, ImpalaConfig(rho_clip=2.0))],
    ids=NAMES,
)
def test_targets_and_advantages_are_those_of_vtrace(kind, section):
    model = ActorCritic(DISCRETE, ModelConfig())
    newest = random_rollout(DISCRETE, model)
    older = of_older_policy(newest)
    experience = Experience(
        {"": older.observation}, {"": older.action}, older.fields, torch.device("cpu")
    )
    fields = kind(section).prepare(experience, model).fields
    settings = VTraceSettings(section.gamma, section.gae_lambda, 2.0, 1.0)
    following = next_values(newest.value, newest.final_value, newest.terminated, newest.truncated)
    target, advantage = vtrace(
        newest.log_prob - older.log_prob,
        newest.reward,
        newest.value[:-1],
        following,
        newest.terminated | newest.truncated,
        settings,
    )
    if kind is APPO:
        advantage = target - newest.value[:-1]
        torch.testing.assert_close(fields["log_prob"], newest.log_prob, **CLOSE)
        torch.testing.assert_close(fields["value"], newest.value[:-1], **CLOSE)
    torch.testing.assert_close(fields["target"], target, **CLOSE)
    torch.testing.assert_close(fields["advantage"], advantage, **CLOSE)


def test_appo_clips_where_the_policy_of_the_update_has_moved_not_where_it_acted():
    def first_minibatch(algorithm) -> dict[str, float]:
        learner = build_learner(config_of(algorithm), CONTINUOUS)
        return learner.update(of_older_policy(random_rollout(CONTINUOUS, learner.model)))

    found, plain = (
        first_minibatch(section(minibatch_size=1000, epochs=1))
        for section in (APPOConfig, PPOConfig)
    )
    assert abs(found["approx_kl"]) < 1e-6
    assert found["clip_fraction"] == 0
    assert plain["clip_fraction"] > 0.5


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=NAMES)
def test_values_of_the_older_policy_are_not_used(algorithm):
    def with_other_values(rollout):
        return replace(rollout, value=rollout.value + 5)

    assert torch.equal(learnt(algorithm, with_other_values), learnt(algorithm))


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=NAMES)
@pytest.mark.parametrize("recurrent", [None, "gru"])
def test_steps_beyond_the_bound_are_not_learnt_from(algorithm, recurrent):
    """The first 8 of 16 steps of one slot are of a policy that is 5 updates old."""
    lag = torch.zeros(16, 3, dtype=torch.int64)
    lag[:8, 1] = 5

    def update(max_policy_lag: int, has_other_rewards: bool) -> torch.Tensor:
        changes = {"max_policy_lag": max_policy_lag, "normalize_advantage": False}
        changes |= {"sequence_length": 4} if recurrent else {}
        section = algorithm.model_copy(update=changes)
        learner = build_learner(config_of(section, recurrent=recurrent), CONTINUOUS)
        rollout = (
            remembered_rollout(CONTINUOUS, learner.model, 4, ends=0.0)
            if recurrent
            else random_rollout(CONTINUOUS, learner.model)
        )
        reward = rollout.reward + 9 * (lag > 0) if has_other_rewards else rollout.reward
        metrics = learner.update(replace(rollout, reward=reward, policy_lag=lag))
        assert metrics["stale_fraction"] == pytest.approx(8 / 48 if max_policy_lag == 4 else 0)
        return torch.cat([p.detach().flatten() for p in learner.model.parameters()])

    assert torch.equal(update(4, True), update(4, False))
    assert not torch.equal(update(5, True), update(5, False))


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=NAMES)
def test_of_a_rollout_beyond_the_bound_the_newest_steps_are_learnt_from(algorithm):
    lag = torch.full((16, 3), 9, dtype=torch.int64)
    lag[:8] = 12

    def with_lag(rollout, late_reward=0.0, early_reward=0.0):
        reward = rollout.reward + late_reward * (lag == 9) + early_reward * (lag == 12)
        return replace(rollout, reward=reward, policy_lag=lag)

    found = learnt(algorithm, with_lag)
    assert torch.equal(learnt(algorithm, lambda each: with_lag(each, early_reward=3.0)), found)
    assert not torch.equal(learnt(algorithm, lambda each: with_lag(each, late_reward=3.0)), found)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=NAMES)
def test_with_a_memory_the_segments_that_begin_newest_are_learnt_from(algorithm):
    algorithm = algorithm.model_copy(update={"sequence_length": 4})
    learner = build_learner(config_of(algorithm, recurrent="gru"), CONTINUOUS)
    lag = torch.full((16, 3), 12, dtype=torch.int64)
    lag[8:], lag[13:] = 9, 7  # a worker was replaced within the last segments
    rollout = remembered_rollout(CONTINUOUS, learner.model, 4)
    metrics = learner.update(replace(rollout, policy_lag=lag))
    assert metrics["stale_fraction"] == 0.5
    assert metrics["gradient_steps"] > 0


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=NAMES)
def test_compiled_kernels_are_used(algorithm):
    kind = APPO if isinstance(algorithm, APPOConfig) else Impala
    assert why_not(kind(algorithm), ActorCritic(DISCRETE, ModelConfig())) is None


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("algorithm", "sign", "updates"),
    [
        (APPOConfig(learning_rate=3e-3, minibatch_size=32, epochs=4), 1, 40),
        (ImpalaConfig(learning_rate=1e-2), -1, 100),
    ],
    ids=NAMES,
)
def test_what_is_rewarded_is_learnt(task, sign, algorithm, updates):
    assert learnt_share(algorithm, task, sign, updates=updates) > 0.9


class Forgetful(ActorCritic):
    """A policy with dropout, which is off where it acts."""

    def forward(self, observation):
        kept = {k: torch.dropout(x, 0.5, self.training) for k, x in observation.items()}
        return super().forward(kept)


def test_a_policy_with_dropout_is_evaluated_again_as_it_acted():
    config = config_of(APPOConfig())
    learner = build_learner(config, CONTINUOUS, Forgetful(CONTINUOUS, config.model))
    with sampling_mode(learner.model):
        rollout = random_rollout(CONTINUOUS, learner.model)
    prepare, prepared = learner._algorithm.prepare, []
    learner._algorithm.prepare = lambda *given: prepared.append(prepare(*given)) or prepared[0]
    learner.update(rollout)
    torch.testing.assert_close(prepared[0].fields["log_prob"], rollout.log_prob)
    assert all(module.training for module in learner.model.modules())
