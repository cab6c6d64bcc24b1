"""PPO: epochs, minibatches, the KL stop, and whether it learns in the right direction."""

from __future__ import annotations

import pytest
import torch

from fastrl.config import PPOConfig
from fastrl.learning import build_learner
from tests.learning.synthetic import (
    CONTINUOUS,
    DISCRETE,
    config_of,
    one_step_rollout,
    random_rollout,
)
from tests.learning.tasks import TASKS, learnt_share


@pytest.mark.parametrize(
    ("minibatch_size", "epochs", "steps"), [(16, 3, 9), (20, 2, 6), (48, 4, 4), (1000, 4, 4)]
)
def test_number_of_gradient_steps(minibatch_size, epochs, steps):
    algorithm = PPOConfig(minibatch_size=minibatch_size, epochs=epochs)
    learner = build_learner(config_of(algorithm), DISCRETE)
    metrics = learner.update(random_rollout(DISCRETE, learner.model, steps=16, slots=3))
    assert metrics["gradient_steps"] == steps


def test_order_of_transitions_is_irrelevant_in_one_minibatch():
    """Everything is used, once: shuffling changes nothing but the order of the sums."""
    learnt = []
    for seed in (0, 1):
        algorithm = PPOConfig(minibatch_size=48, epochs=1)
        learner = build_learner(config_of(algorithm), CONTINUOUS)
        state = learner.state_dict()
        state["generator"] = torch.Generator().manual_seed(seed).get_state()
        learner.load_state_dict(state)
        learner.update(random_rollout(CONTINUOUS, learner.model))
        learnt.append(torch.cat([p.detach().flatten() for p in learner.model.parameters()]))
    torch.testing.assert_close(*learnt, rtol=1e-4, atol=1e-6)


def test_large_steps_are_stopped_by_the_kl_divergence():
    def update(target_kl: float | None) -> dict[str, float]:
        algorithm = PPOConfig(learning_rate=0.03, minibatch_size=16, epochs=10, target_kl=target_kl)
        learner = build_learner(config_of(algorithm), DISCRETE)
        return learner.update(random_rollout(DISCRETE, learner.model))

    free = update(None)
    assert free["gradient_steps"] == 30
    assert update(10 * free["approx_kl"])["gradient_steps"] == 30
    assert 1 <= update(free["approx_kl"] / 50)["gradient_steps"] < 30


def test_values_are_bounded_by_what_they_were_when_the_policy_acted():
    """In the first minibatch none has moved yet, so a bound changes nothing; later it does."""

    def learnt(clip_value_range: float | None, epochs: int) -> torch.Tensor:
        algorithm = PPOConfig(clip_value_range=clip_value_range, epochs=epochs, minibatch_size=48)
        learner = build_learner(config_of(algorithm), CONTINUOUS)
        learner.update(random_rollout(CONTINUOUS, learner.model))
        return learner.model.critic_head.weight.detach()

    torch.testing.assert_close(learnt(1e-3, epochs=1), learnt(None, epochs=1))
    assert not torch.allclose(learnt(1e-3, epochs=5), learnt(None, epochs=5))


def test_first_minibatch_never_stops():
    """The policy has not moved yet, so its divergence is 0."""
    algorithm = PPOConfig(learning_rate=1.0, minibatch_size=16, epochs=1, target_kl=1e-6)
    learner = build_learner(config_of(algorithm), DISCRETE)
    assert learner.update(random_rollout(DISCRETE, learner.model))["gradient_steps"] == 1


def test_smaller_clip_range_keeps_the_policy_closer():
    def divergence(clip_range: float) -> float:
        algorithm = PPOConfig(learning_rate=3e-3, epochs=20, clip_range=clip_range)
        learner = build_learner(config_of(algorithm), DISCRETE)
        return learner.update(random_rollout(DISCRETE, learner.model))["approx_kl"]

    assert divergence(0.02) < 0.5 * divergence(0.5)


def test_clip_schedule_is_linear():
    algorithm = PPOConfig(clip_range=0.4, clip_schedule="linear", epochs=1)
    config = config_of(algorithm).model_copy(update={"total_steps": 96})
    learner = build_learner(config, DISCRETE)
    rollout = random_rollout(DISCRETE, learner.model)
    ranges = [learner.update(rollout)["clip_range"] for _ in range(2)]
    assert ranges == pytest.approx([0.4, 0.2])


@pytest.mark.parametrize(
    ("algorithm", "model"),
    [
        ({"learning_rate_schedule": "cosine", "learning_rate_warmup": 0.1}, {}),
        ({"weight_decay": 0.1, "adam_betas": [0.8, 0.99]}, {}),
        ({}, {"hidden_sizes": [16], "critic_hidden_sizes": [32, 32]}),
        ({}, {"log_std": "state"}),
        ({}, {"log_std_bounds": [-2, 0.5]}),
    ],
    ids=lambda keys: ", ".join(keys),
)
def test_ppo_learns_with_other_schedules_optimisers_and_networks(algorithm, model):
    section = PPOConfig(learning_rate=3e-3, minibatch_size=32, epochs=4, **algorithm)
    assert learnt_share(section, "push", 1, updates=40, **model) > 0.9


def test_standard_deviation_is_learnt_for_each_state():
    """Where the observation is positive exactness pays, where it is negative spread does."""
    algorithm = PPOConfig(learning_rate=1e-2, minibatch_size=32, epochs=4)
    learner = build_learner(config_of(algorithm, log_std="state"), CONTINUOUS)

    def reward_of(sign, action):
        return -sign * action.abs().clamp(max=2).sum(-1)

    for seed in range(30):
        learner.update(one_step_rollout(CONTINUOUS, learner.model, reward_of, seed))
    observation = torch.tensor([[1.0] * 5, [-1.0] * 5])
    _, entropy, _ = learner.model.evaluate({"": observation}, {"": torch.zeros(2, 2)})
    # In nats, of two actions together: standard deviations differ by more than e.
    assert entropy[1] - entropy[0] > 2


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("sign", [1, -1], ids=["reward", "reward with its sign flipped"])
def test_ppo_learns_what_is_rewarded(task, sign):
    algorithm = PPOConfig(learning_rate=3e-3, minibatch_size=32, epochs=4)
    assert learnt_share(algorithm, task, sign, updates=40) > 0.9
