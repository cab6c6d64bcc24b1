"""Schedules: their shapes, warm-up, and the learning rate that follows the KL divergence."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrl.config import A2CConfig, Config, EnvConfig, PPOConfig, SamplerConfig
from fastrl.learning import build_learner
from fastrl.learning.schedules import SCHEDULED, SHAPES, Schedules
from tests.learning.synthetic import CONTINUOUS, DISCRETE, config_of, random_rollout
from tests.learning.tasks import learnt_share

ROLLOUT = SamplerConfig(envs_per_worker=5, num_env_workers=2, rollout_length=10)
"""Of 100 steps."""


def schedules_of(total_steps: int = 1000, **algorithm) -> Schedules:
    config = Config(
        env=EnvConfig(id="none"),
        sampler=ROLLOUT,
        total_steps=total_steps,
        algorithm=PPOConfig(**algorithm),
    )
    return Schedules(config)


@pytest.mark.parametrize(
    ("shape", "shares"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25, 0]),
        ("cosine", [1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4, 0]),
    ],
)
@pytest.mark.parametrize("name", SCHEDULED)
def test_every_scheduled_number_may_have_every_shape(name, shape, shares):
    schedules = schedules_of(**{name: 0.5, SCHEDULED[name]: shape})
    found = [schedules.at(name, steps) for steps in (0, 250, 500, 750, 1000)]
    assert found == pytest.approx([0.5 * share for share in shares])
    assert schedules.at(name, 1300) == pytest.approx(0.5 * shares[-1])


@given(st.integers(0, 3000), st.integers(1, 2000), st.floats(1e-6, 1))
def test_linear_without_warmup_is_the_plain_formula_to_the_last_bit(steps, total, rate):
    schedules = schedules_of(total, learning_rate=rate, learning_rate_schedule="linear")
    assert schedules.at("learning_rate", steps) == rate * max(0.0, 1 - steps / total)


@pytest.mark.parametrize("warmup", [400, 0.4])
@pytest.mark.parametrize("shape", SHAPES)
def test_warmup_rises_by_the_ends_of_rollouts_and_the_schedule_takes_the_rest(shape, warmup):
    schedules = schedules_of(
        learning_rate=1.0, learning_rate_schedule=shape, learning_rate_warmup=warmup
    )
    rates = [schedules.at("learning_rate", steps) for steps in range(0, 500, 100)]
    assert rates == [0.25, 0.5, 0.75, 1, 1]
    for progress in (0.0, 0.3, 0.5, 1.0, 1.5):
        steps = round(400 + 600 * progress)
        assert schedules.at("learning_rate", steps) == pytest.approx(SHAPES[shape](progress))


def test_warmup_is_of_the_learning_rate_alone():
    schedules = schedules_of(learning_rate_warmup=0.5, entropy_coef=0.1)
    assert (schedules.at("entropy_coef", 0), schedules.at("clip_range", 0)) == (0.1, 0.2)


def test_warmup_shorter_than_a_rollout_changes_nothing():
    assert schedules_of(learning_rate_warmup=50).at("learning_rate", 0) == 3e-4


ADAPTIVE = {
    "learning_rate": 1e-3,
    "learning_rate_schedule": "kl_adaptive",
    "target_kl": 0.01,
    "learning_rate_bounds": (2e-4, 2e-3),
}


def report(kl: float, gradient_steps: int = 20) -> dict[str, float]:
    return {"approx_kl": kl, "gradient_steps": float(gradient_steps)}


@pytest.mark.parametrize(
    ("kl", "factor"), [(0.021, 1 / 1.5), (0.019, 1), (0.0051, 1), (0.0049, 1.5), (0.0, 1)]
)
def test_rate_changes_by_a_factor_outside_the_margin_of_the_target(kl, factor):
    schedules = schedules_of(**ADAPTIVE)
    schedules.observe(report(kl))
    assert schedules.at("learning_rate", 0) == pytest.approx(1e-3 * factor)


@given(st.lists(st.sampled_from([0.1, 0.01, 0.001]), max_size=30))
def test_rate_stays_within_its_bounds_and_leaves_them_at_once(divergences):
    schedules = schedules_of(**ADAPTIVE)
    for kl in divergences:
        before = schedules.at("learning_rate", 0)
        schedules.observe(report(kl))
        now = schedules.at("learning_rate", 0)
        assert 2e-4 <= now <= 2e-3
        assert (now < before) == (kl == 0.1 and before > 2e-4)
        assert (now > before) == (kl == 0.001 and before < 2e-3)


def test_divergence_of_a_single_gradient_step_says_nothing():
    schedules = schedules_of(**ADAPTIVE)
    schedules.observe(report(1e-9, gradient_steps=1))
    assert schedules.at("learning_rate", 0) == 1e-3


def test_adaptive_rate_goes_on_from_its_state_and_old_states_lack_it():
    schedules, other = schedules_of(**ADAPTIVE), schedules_of(**ADAPTIVE)
    schedules.observe(report(0.1))
    other.load_state_dict(schedules.state_dict())
    assert other.at("learning_rate", 0) == schedules.at("learning_rate", 0) != 1e-3
    other.load_state_dict({})
    assert other.at("learning_rate", 0) == 1e-3


def test_learner_with_an_adaptive_rate_goes_on_from_its_state():
    algorithm = PPOConfig(**ADAPTIVE, epochs=4, minibatch_size=16)
    learner = build_learner(config_of(algorithm), DISCRETE)
    rollouts = [random_rollout(DISCRETE, learner.model, seed=seed) for seed in range(4)]
    rates = [learner.update(rollout)["learning_rate"] for rollout in rollouts[:2]]
    assert rates[0] == 1e-3 != rates[1]
    other = build_learner(config_of(algorithm), DISCRETE)
    other.load_state_dict(learner.state_dict())
    for rollout in rollouts[2:]:
        assert learner.update(rollout) == other.update(rollout)


def test_target_of_an_adaptive_rate_stops_no_update():
    algorithm = PPOConfig(
        learning_rate=1e-2,
        learning_rate_schedule="kl_adaptive",
        target_kl=1e-4,
        epochs=10,
        minibatch_size=16,
    )
    learner = build_learner(config_of(algorithm), DISCRETE)
    metrics = learner.update(random_rollout(DISCRETE, learner.model))
    assert metrics["approx_kl"] > 1.5e-4
    assert metrics["gradient_steps"] == 30


@pytest.mark.parametrize("rate", [1e-5, 1e-2], ids=["too small", "too large"])
def test_ppo_learns_from_a_bad_first_rate_where_it_adapts(rate):
    algorithm = PPOConfig(
        learning_rate=rate,
        learning_rate_schedule="kl_adaptive",
        target_kl=0.02,
        minibatch_size=32,
        epochs=4,
    )
    assert learnt_share(algorithm, "push", 1, updates=60) > 0.9


@pytest.mark.parametrize("algorithm", [PPOConfig, A2CConfig])
def test_first_update_of_a_warmup_learns(algorithm):
    section = algorithm(learning_rate=1e-2, learning_rate_warmup=1000, weight_decay=0.1)
    config = config_of(section).model_copy(update={"sampler": ROLLOUT})
    learner = build_learner(config, CONTINUOUS)
    before = learner.model.actor_head.weight.detach().clone()
    metrics = learner.update(random_rollout(CONTINUOUS, learner.model))
    # The rollout has 48 steps, whatever the configuration of this rank says.
    assert metrics["learning_rate"] == pytest.approx(4.8e-4)
    assert not before.equal(learner.model.actor_head.weight)
