"""One update equals that of stable-baselines3, given the same rollout, weights and order."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import stable_baselines3 as sb3
import torch

from fastrl.config import A2CConfig, PPOConfig
from fastrl.learning import build_learner
from fastrl.models import ActorCritic
from fastrl.shared.rollouts import Rollout
from fastrl.spec import EnvSpec
from tests.learning.synthetic import CONTINUOUS, DISCRETE, config_of, random_rollout

# A minibatch that is smaller than the others is what one test is about.
pytestmark = pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")

STEPS, SLOTS = 24, 4
GAMMA, LAMBDA = 0.97, 0.9


class Nothing(gymnasium.Env):
    """Has the spaces, which is all that is asked for."""

    def __init__(self, spec: EnvSpec) -> None:
        self.observation_space, self.action_space = spec.observation_space, spec.action_space


def twin(algorithm, spec: EnvSpec, model: ActorCritic, **settings):
    """Return SB3's algorithm with the same weights."""
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.vec_env import DummyVecEnv

    network = {"net_arch": {"pi": [64, 64], "vf": [64, 64]}, **settings.pop("policy_kwargs", {})}
    environments = DummyVecEnv([lambda: Nothing(spec)] * SLOTS)
    other = algorithm(
        "MlpPolicy", environments, n_steps=STEPS, device="cpu", policy_kwargs=network,
        gamma=GAMMA, **settings,
    )  # fmt: skip
    other.set_logger(Logger(None, []))
    for mine, theirs in pairs(model, other.policy):
        assert mine.shape == theirs.shape
        theirs.data.copy_(mine)
    return other


def pairs(model: ActorCritic, policy):
    """Yield corresponding parameters."""
    theirs = policy.mlp_extractor
    layers = [
        (model.actor_head, policy.action_net),
        (model.critic_head, policy.value_net),
        *zip(model.actor_body.mlp[::2], theirs.policy_net[::2], strict=True),
        *zip(model.critic_body.mlp[::2], theirs.value_net[::2], strict=True),
    ]
    for mine, other in layers:
        yield mine.weight, other.weight
        yield mine.bias, other.bias
    if hasattr(policy, "log_std"):
        yield model.distribution.log_std, policy.log_std


def fill(buffer, rollout: Rollout) -> None:
    """Write what SB3 would have collected; it adds the value after a truncation to the reward."""
    ended = (rollout.terminated | rollout.truncated).numpy()
    buffer.reset()
    buffer.observations[:] = rollout.observation[:-1].numpy()
    buffer.actions[:] = rollout.action.numpy().reshape(buffer.actions.shape)
    buffer.rewards[:] = rollout.reward.numpy()
    buffer.rewards += GAMMA * rollout.final_value.numpy() * rollout.truncated.numpy()
    buffer.episode_starts[1:] = ended[:-1]
    buffer.values[:], buffer.log_probs[:] = rollout.value[:-1].numpy(), rollout.log_prob.numpy()
    buffer.pos, buffer.full = STEPS, True
    buffer.compute_returns_and_advantage(rollout.value[-1], ended[-1])


def same_order(learner, epochs: int, monkeypatch) -> None:
    """Let SB3 draw the learner's minibatches; its rows are sorted by slot, then time."""
    generator = torch.Generator()
    generator.set_state(learner.state_dict()["generator"])
    orders = []
    for _ in range(epochs):
        flat = torch.randperm(STEPS * SLOTS, generator=generator)
        orders.append((flat % SLOTS * STEPS + flat // SLOTS).numpy())
    remaining = iter(orders)
    monkeypatch.setattr(np.random, "permutation", lambda _: next(remaining))


@torch.no_grad()
def largest_difference(model: ActorCritic, policy) -> float:
    return max(float((mine - theirs).abs().max()) for mine, theirs in pairs(model, policy))


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=lambda spec: spec.id)
@pytest.mark.parametrize("minibatch_size", [32, 36], ids=["even", "with a remainder"])
def test_ppo_update_equals_that_of_sb3(spec, minibatch_size, monkeypatch):
    algorithm = PPOConfig(
        epochs=4, minibatch_size=minibatch_size, gamma=GAMMA, gae_lambda=LAMBDA,
        entropy_coef=0.01, clip_range=0.1, learning_rate=1e-3,
    )  # fmt: skip
    learner = build_learner(config_of(algorithm, shared_body=False), spec)
    rollout = random_rollout(spec, learner.model, STEPS, SLOTS)
    other = twin(
        sb3.PPO, spec, learner.model, batch_size=minibatch_size, n_epochs=4, gae_lambda=LAMBDA,
        ent_coef=0.01, clip_range=0.1, learning_rate=1e-3,
    )  # fmt: skip
    fill(other.rollout_buffer, rollout)
    same_order(learner, 4, monkeypatch)
    before = learner.model.actor_head.weight.detach().clone()
    metrics = learner.update(rollout)
    other.train()
    assert (learner.model.actor_head.weight - before).abs().max() > 1e-3
    assert largest_difference(learner.model, other.policy) < 1e-5
    theirs = other.logger.name_to_value
    assert metrics["policy_loss"] == pytest.approx(theirs["train/policy_gradient_loss"], abs=1e-5)
    assert metrics["value_loss"] == pytest.approx(theirs["train/value_loss"], rel=1e-5)
    assert metrics["entropy"] == pytest.approx(-theirs["train/entropy_loss"], rel=1e-5)
    assert metrics["approx_kl"] == pytest.approx(theirs["train/approx_kl"], rel=1e-3)
    assert metrics["explained_variance"] == pytest.approx(
        theirs["train/explained_variance"], rel=1e-5
    )


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=lambda spec: spec.id)
def test_ppo_stops_at_the_same_minibatch_as_sb3(spec, monkeypatch):
    algorithm = PPOConfig(
        epochs=10, minibatch_size=32, gamma=GAMMA, gae_lambda=LAMBDA, learning_rate=3e-3,
        target_kl=0.02,
    )  # fmt: skip
    learner = build_learner(config_of(algorithm, shared_body=False), spec)
    rollout = random_rollout(spec, learner.model, STEPS, SLOTS)
    other = twin(
        sb3.PPO, spec, learner.model, batch_size=32, n_epochs=10, gae_lambda=LAMBDA,
        learning_rate=3e-3, target_kl=0.02,
    )  # fmt: skip
    fill(other.rollout_buffer, rollout)
    same_order(learner, 10, monkeypatch)
    steps = learner.update(rollout)["gradient_steps"]
    other.train()
    assert 0 < steps < 30
    assert largest_difference(learner.model, other.policy) < 1e-5


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=lambda spec: spec.id)
@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
@pytest.mark.parametrize("normalize", [False, True], ids=["raw", "normalised"])
def test_a2c_update_equals_that_of_sb3(spec, optimizer, normalize):
    from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

    algorithm = A2CConfig(
        gamma=GAMMA, entropy_coef=0.01, learning_rate=1e-3, optimizer=optimizer,
        normalize_advantage=normalize,
    )  # fmt: skip
    learner = build_learner(config_of(algorithm, shared_body=False), spec)
    theirs = {"rmsprop": RMSpropTFLike, "adam": torch.optim.Adam}[optimizer]
    other = twin(
        sb3.A2C, spec, learner.model, ent_coef=0.01, learning_rate=1e-3, use_rms_prop=False,
        normalize_advantage=normalize,
        policy_kwargs={"optimizer_class": theirs, "optimizer_kwargs": {"eps": 1e-5}},
    )  # fmt: skip
    for seed in range(3):
        rollout = random_rollout(spec, learner.model, STEPS, SLOTS, seed)
        fill(other.rollout_buffer, rollout)
        learner.update(rollout)
        other.train()
    assert largest_difference(learner.model, other.policy) < 1e-5
