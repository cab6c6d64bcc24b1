"""What both algorithms have in common: state, schedules, statistics, refusals."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces

from fastrl.config import A2CConfig, PPOConfig
from fastrl.errors import ConfigError, FastrlError
from fastrl.learning import Learner, build_learner
from fastrl.models import ActorCritic, build_model
from fastrl.shared.rollouts import Rollout
from fastrl.spaces import flatten
from fastrl.spec import EnvSpec
from tests.learning.synthetic import CONTINUOUS, DISCRETE, NESTED, config_of, random_rollout

IMAGE = EnvSpec("image", spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.Discrete(2))
ALGORITHMS = {
    "ppo": PPOConfig(epochs=2, minibatch_size=20, entropy_coef=0.01),
    "a2c": A2CConfig(entropy_coef=0.01),
    "a2c vtrace": A2CConfig(vtrace=True, optimizer="adam"),
}
BOTH = pytest.mark.parametrize("algorithm", [PPOConfig(epochs=1), A2CConfig()], ids=["ppo", "a2c"])
EACH = pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)


def vector_of(learner: Learner) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learner.model.parameters()])


def tensors_of(rollout: Rollout, spec: EnvSpec) -> list[torch.Tensor]:
    scalars = [getattr(rollout, n) for n in ("reward", "log_prob", "value", "final_value")]
    observation = flatten(spec.observation_space, rollout.observation)
    return [*scalars, *observation, *flatten(spec.action_space, rollout.action)]


@EACH
@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS, NESTED], ids=lambda spec: spec.id)
def test_update_changes_parameters_and_leaves_the_rollout_alone(spec, algorithm):
    learner = build_learner(config_of(algorithm, normalize_observations=True), spec)
    rollout = random_rollout(spec, learner.model)
    before = vector_of(learner)
    kept = [tensor.clone() for tensor in tensors_of(rollout, spec)]
    learner.update(rollout)
    assert not torch.equal(vector_of(learner), before)
    for tensor, copy in zip(tensors_of(rollout, spec), kept, strict=True):
        assert torch.equal(tensor, copy)


@EACH
@pytest.mark.parametrize(
    ("spec", "model"),
    [(DISCRETE, {}), (DISCRETE, {"activation": "gelu"}), (IMAGE, {})],
    ids=["mlp engine", "autograd engine", "sharded engine"],
)
def test_no_view_of_a_rollout_is_kept(spec, model, algorithm):
    """Its memory is the sampler's, and on a GPU it would be missing while the next one is made."""
    algorithm = algorithm.model_copy(update={"torch_threads": 2})
    learner = build_learner(config_of(algorithm, **model), spec)
    rollout = random_rollout(spec, learner.model)
    memory = {
        name: getattr(rollout, name).numpy().copy()
        for name in ("observation", "action", "reward", "value", "log_prob")
    }
    kept = {name: weakref.ref(array) for name, array in memory.items()}
    rollout = replace(rollout, **{n: torch.from_numpy(array) for n, array in memory.items()})
    learner.update(rollout)
    del rollout, memory
    gc.collect()
    assert [name for name, array in kept.items() if array() is not None] == []


@EACH
def test_metrics_are_finite_numbers_with_known_names(algorithm):
    learner = build_learner(config_of(algorithm), DISCRETE)
    metrics = learner.update(random_rollout(DISCRETE, learner.model))
    assert all(type(value) is float for value in metrics.values())
    assert metrics.keys() >= {
        "loss", "policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction",
        "explained_variance", "gradient_norm", "gradient_steps", "learning_rate", "entropy_coef",
    }  # fmt: skip
    assert (learner.steps, learner.updates) == (48, 1)


@EACH
@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=lambda spec: spec.id)
def test_learner_goes_on_from_its_state_with_identical_updates(spec, algorithm, tmp_path):
    algorithm = algorithm.model_copy(
        update={"normalize_rewards": True, "learning_rate_schedule": "linear"}
    )
    config = config_of(algorithm, normalize_observations=True).model_copy(
        update={"total_steps": 200}
    )
    learner = build_learner(config, spec)
    rollouts = [random_rollout(spec, learner.model, seed=seed) for seed in range(4)]
    for rollout in rollouts[:2]:
        learner.update(rollout)
    torch.save(learner.state_dict(), tmp_path / "state.pt")
    other = build_learner(config.model_copy(update={"seed": 9}), spec)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for rollout in rollouts[2:]:
        assert learner.update(rollout) == other.update(rollout)
    for name, tensor in learner.weights().items():
        assert torch.equal(tensor, other.weights()[name]), name
    assert (other.steps, other.updates) == (learner.steps, learner.updates) == (192, 4)


def test_state_does_not_change_with_further_updates():
    learner = build_learner(config_of(PPOConfig(normalize_rewards=True)), DISCRETE)
    rollout = random_rollout(DISCRETE, learner.model)
    learner.update(rollout)
    state = learner.state_dict()
    kept = {
        part: {name: tensor.clone() for name, tensor in state[part].items()}
        for part in ("model", "optimizer", "reward_scaler")
    }
    learner.update(rollout)
    for part, tensors in kept.items():
        for name, tensor in tensors.items():
            assert torch.equal(state[part][name], tensor), (part, name)


def test_state_of_another_algorithm_or_model_is_refused():
    ppo = build_learner(config_of(PPOConfig()), DISCRETE)
    with pytest.raises(FastrlError, match="algorithm 'a2c', expected 'ppo'"):
        ppo.load_state_dict(build_learner(config_of(A2CConfig()), DISCRETE).state_dict())
    wide = build_learner(config_of(PPOConfig(), hidden_sizes=(64, 8)), DISCRETE)
    with pytest.raises(FastrlError, match=r"the state belongs to another model: actor_b.*, not \("):
        ppo.load_state_dict(wide.state_dict())


def test_same_seed_gives_the_same_learner_and_another_one_another():
    def learnt(seed: int) -> torch.Tensor:
        config = config_of(PPOConfig(minibatch_size=16)).model_copy(update={"seed": seed})
        learner = build_learner(config, DISCRETE)
        learner.update(random_rollout(DISCRETE, learner.model))
        return vector_of(learner)

    assert torch.equal(learnt(1), learnt(1))
    assert not torch.equal(learnt(1), learnt(2))


def test_first_parameters_are_those_that_the_sampler_starts_with():
    """It builds the model under torch's generator with the run's seed."""
    config = config_of(PPOConfig()).model_copy(update={"seed": 5})
    learner = build_learner(config, DISCRETE)
    torch.manual_seed(5)
    for name, tensor in build_model(DISCRETE, config.model).state_dict().items():
        assert torch.equal(tensor, learner.weights()[name]), name


def test_building_a_learner_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build_learner(config_of(PPOConfig()), DISCRETE)
    assert torch.equal(torch.rand(3), expected)


@BOTH
def test_linear_schedules_start_in_full_and_end_just_above_0(algorithm):
    algorithm = algorithm.model_copy(
        update={
            "learning_rate": 1e-3,
            "learning_rate_schedule": "linear",
            "entropy_coef": 0.1,
            "entropy_schedule": "linear",
        }
    )
    config = config_of(algorithm).model_copy(update={"total_steps": 4 * 48})
    learner = build_learner(config, DISCRETE)
    rollout = random_rollout(DISCRETE, learner.model)
    metrics = [learner.update(rollout) for _ in range(5)]
    rates = [m["learning_rate"] for m in metrics]
    assert rates == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4, 0.0])
    assert [m["entropy_coef"] for m in metrics] == pytest.approx([0.1, 0.075, 0.05, 0.025, 0.0])


def test_learning_rate_of_0_changes_nothing():
    config = config_of(PPOConfig(learning_rate_schedule="linear", normalize_rewards=True))
    learner = build_learner(config.model_copy(update={"total_steps": 48}), DISCRETE)
    rollout = random_rollout(DISCRETE, learner.model)
    learner.update(rollout)
    before = vector_of(learner)
    learner.update(rollout)
    assert torch.equal(vector_of(learner), before)


@EACH
def test_observation_statistics_move_after_the_gradient_steps(algorithm):
    """The first update sees observations as the policy did when it acted, which is unscaled."""
    results = {}
    for normalize in (False, True):
        config = config_of(algorithm, normalize_observations=normalize)
        learner = build_learner(config, CONTINUOUS)
        rollout = random_rollout(CONTINUOUS, learner.model)
        learner.update(rollout)
        results[normalize] = vector_of(learner)
    torch.testing.assert_close(results[True], results[False])
    mean = learner.weights()["normalizers.0.mean"].float()
    torch.testing.assert_close(mean, rollout.observation[:-1].flatten(0, 1).mean(0))


def test_unchanged_policy_has_a_ratio_of_1_also_after_statistics_moved():
    algorithm = PPOConfig(epochs=1, minibatch_size=1000)
    learner = build_learner(config_of(algorithm, normalize_observations=True), CONTINUOUS)
    for seed in range(3):
        metrics = learner.update(random_rollout(CONTINUOUS, learner.model, seed=seed))
        assert metrics["approx_kl"] == pytest.approx(0.0, abs=1e-9)


@BOTH
def test_reward_scale_multiplies_rewards(algorithm):
    results = []
    for factor, scale in ((1.0, 0.25), (0.25, 1.0)):
        scaled = algorithm.model_copy(update={"reward_scale": scale})
        learner = build_learner(config_of(scaled), DISCRETE)
        rollout = random_rollout(DISCRETE, learner.model)
        learner.update(replace(rollout, reward=factor * rollout.reward))
        results.append(vector_of(learner))
    assert torch.equal(*results)


@BOTH
def test_normalised_rewards_make_their_unit_irrelevant(algorithm):
    results = []
    for factor in (1.0, 1000.0):
        normalised = algorithm.model_copy(update={"normalize_rewards": True})
        learner = build_learner(config_of(normalised), DISCRETE)
        rollout = random_rollout(DISCRETE, learner.model)
        learner.update(replace(rollout, reward=factor * rollout.reward))
        results.append(vector_of(learner))
    torch.testing.assert_close(*results)


@BOTH
def test_truncation_is_learnt_from_otherwise_than_termination(algorithm):
    learnt = []
    for swapped in (False, True):
        learner = build_learner(config_of(algorithm), DISCRETE)
        rollout = random_rollout(DISCRETE, learner.model)
        if swapped:
            rollout = replace(rollout, terminated=rollout.truncated, truncated=rollout.terminated)
        learner.update(rollout)
        learnt.append(vector_of(learner))
    assert not torch.equal(*learnt)


@EACH
@pytest.mark.parametrize("field", ["reward", "observation"])
def test_numbers_that_are_not_finite_are_refused_in_one_line(algorithm, field):
    learner = build_learner(config_of(algorithm), DISCRETE)
    rollout = random_rollout(DISCRETE, learner.model)
    getattr(rollout, field)[3, 1] = float("nan")
    with pytest.raises(FastrlError, match=r"^learning diverged after 0 steps: [^\n]*$"):
        learner.update(rollout)


def test_missing_device_is_refused():
    config = config_of(PPOConfig(device="cuda:99"))
    with pytest.raises(ConfigError, match=r"algorithm\.device: no device 'cuda:99'"):
        build_learner(config, DISCRETE)


class Foreign(torch.nn.Module):
    """A user's model: only what `PolicyModel` asks for, and no statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ActorCritic(DISCRETE, config_of(PPOConfig()).model)
        for name in ("draw_noise", "act", "evaluate", "value", "mode"):
            setattr(self, name, getattr(self.inner, name))


@EACH
def test_own_models_are_learnt_like_the_built_in_one(algorithm):
    torch.manual_seed(0)
    learner = build_learner(config_of(algorithm), DISCRETE, Foreign())
    torch.manual_seed(0)
    other = build_learner(config_of(algorithm), DISCRETE, Foreign().inner)
    rollout = random_rollout(DISCRETE, learner.model)
    learner.update(rollout)
    other.update(rollout)
    torch.testing.assert_close(vector_of(learner), vector_of(other), rtol=1e-4, atol=1e-5)


@EACH
def test_published_weights_are_the_models_own(algorithm):
    learner = build_learner(config_of(algorithm), DISCRETE)
    assert isinstance(learner, Learner)
    fresh = ActorCritic(DISCRETE, config_of(algorithm).model)
    fresh.load_state_dict(learner.weights())
    observation = {"": torch.randn(5, 4)}
    torch.testing.assert_close(fresh(observation), learner.model(observation))


@pytest.mark.gpu
@EACH
@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS, NESTED], ids=lambda spec: spec.id)
def test_gpu_learns_what_the_cpu_learns(spec, algorithm):
    learner = build_learner(config_of(algorithm), spec)
    there = build_learner(config_of(algorithm.model_copy(update={"device": "cuda"})), spec)
    rollouts = [random_rollout(spec, learner.model, seed=seed) for seed in range(2)]
    for rollout in rollouts:
        learner.update(rollout)
        there.update(rollout)
    torch.testing.assert_close(vector_of(there).cpu(), vector_of(learner), rtol=1e-3, atol=1e-4)
