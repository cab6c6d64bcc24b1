"""GAIL and AIRL: the discriminator, its reward, and what follows the end of an episode."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from fastrl.config import (
    AdversarialConfig,
    AIRLConfig,
    Config,
    DatasetConfig,
    EnvConfig,
    GAILConfig,
    ModelConfig,
    PPOConfig,
)
from fastrl.datasets import DatasetWriter, Episode
from fastrl.learning import Experience, Learner, build_learner
from fastrl.learning.adversarial import (
    Adversarial,
    Rows,
    Scorer,
    discriminator_loss,
    reward_of,
    sampled,
)
from fastrl.learning.ranks import Ranks
from fastrl.learning.returns import discounted_returns
from fastrl.spec import ACTION_MASK, EnvSpec
from tests.learning.synthetic import (
    CONTINUOUS,
    DISCRETE,
    NESTED,
    config_of,
    random_rollout,
    remembered_rollout,
)

BOTH = pytest.mark.parametrize("section", [GAILConfig, AIRLConfig], ids=["gail", "airl"])
POINTS = EnvSpec("points", spaces.Discrete(2), spaces.Discrete(2))
IMAGES = EnvSpec("images", spaces.Box(0, 255, (12, 12, 3), np.uint8), spaces.Discrete(3))
MASKED = EnvSpec(
    "masked",
    spaces.Dict({"place": spaces.Box(-5, 5, (2,)), ACTION_MASK: spaces.MultiBinary(3)}),
    spaces.Discrete(3),
)
RATE = {"discriminator_learning_rate": 1e-2}


def episode_of(spec: EnvSpec, length: int = 40, terminated: bool = False) -> Episode:
    """Return an episode of random numbers, all of whose actions are valid."""
    rng = np.random.default_rng(1)

    def rows(stored, count):
        if stored.dtype.is_floating_point:
            return rng.normal(size=(count, *stored.shape)).astype(stored.numpy_dtype)
        return rng.integers(0, 2, (count, *stored.shape)).astype(stored.numpy_dtype)

    observation = {path: rows(stored, length + 1) for path, stored in spec.observation.items()}
    if spec.action_mask is not None:
        observation[spec.action_mask][:] = True
    action = {path: rows(stored, length) for path, stored in spec.action.items()}
    return Episode(observation, action, np.zeros(length, np.float32), terminated)


def built(path, spec: EnvSpec, section: AdversarialConfig, *episodes: Episode, **model) -> Learner:
    """Return a learner with a dataset of these episodes, by default a random one."""
    if not path.exists():
        with DatasetWriter(path, spec) as writer:
            writer.add(episodes or [episode_of(spec)])
    config = Config(
        env=EnvConfig(id="none"),
        algorithm=section,
        model=ModelConfig(**model),
        dataset=DatasetConfig(path=str(path)),
    )
    return build_learner(config, spec)


def adversarial(learner: Learner) -> Adversarial:
    algorithm = learner._algorithm
    assert isinstance(algorithm, Adversarial)
    return algorithm


def experience_of(observation: Tensor, action: Tensor, terminated: Tensor) -> Experience:
    """Return a rollout of a space with one leaf, ``[T+1, B, *]``, ``[T, B, *]`` and ``[T, B]``."""
    fields = {
        "reward": torch.zeros(terminated.shape),
        "terminated": terminated,
        "truncated": torch.zeros_like(terminated),
        "final_observation": observation[1:],
    }
    return Experience({"": observation}, {"": action}, fields, torch.device("cpu"))


def with_finals(rollout):
    """Return a rollout with the final observations that AIRL asks for."""

    def shifted(nested):
        if isinstance(nested, dict):
            return {key: shifted(value) for key, value in nested.items()}
        return tuple(map(shifted, nested)) if isinstance(nested, tuple) else nested[1:] + 0

    return replace(rollout, final_observation=shifted(rollout.observation))


def parameters_of(learner: Learner) -> Tensor:
    return torch.cat([p.detach().flatten() for p in learner.model.parameters()])


def observed(rows: Rows) -> Tensor:
    return torch.cat([leaf.flatten(1).double() for leaf in rows.observation.values()], 1)


def test_each_rank_draws_its_own_rows_and_one_draws_as_before(tmp_path):
    algorithm = adversarial(built(tmp_path / "d", DISCRETE, GAILConfig()))
    steps, before = algorithm._demonstrations, algorithm._generator.get_state()
    drawn, after = [], []
    for ranks in (Ranks(0, 2), Ranks(1, 2), Ranks()):
        algorithm._ranks = ranks
        algorithm._generator.set_state(before)
        drawn.append(observed(algorithm._drawn(steps)))
        after.append(algorithm._generator.get_state())
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(after[0], after[1])
    algorithm._generator.set_state(before)
    shape = (algorithm.section.discriminator_batch_size,)
    alone = torch.randint(len(steps), shape, generator=algorithm._generator)
    assert torch.equal(drawn[2], observed(steps.rows(alone, torch.device("cpu"))))


@BOTH
def test_discriminator_of_two_points_is_the_ratio_of_their_probabilities(tmp_path, section):
    """The best one has D = p/(p + q) (Goodfellow et al. 2014, proposition 1).

    That of AIRL also tells next observations apart.
    """
    rng = np.random.default_rng(0)
    theirs, ours = ((rng.random(4001) < share).astype(np.int64) for share in (0.7, 0.4))
    action, flags = torch.zeros(4000, 1, dtype=torch.int64), torch.zeros(4000, 1, dtype=torch.bool)
    demonstrated = Episode({"": theirs}, {"": action[:, 0].numpy()}, np.zeros(4000), False)
    keys = {"discriminator_updates": 150, "discriminator_batch_size": 1024, "reward": "both"}
    learner = built(tmp_path / "d", POINTS, section(gradient_penalty=0.0, **keys), demonstrated)
    experience = experience_of(torch.from_numpy(ours)[:, None], action, flags)
    with torch.no_grad():
        for rate in (1e-2, 1e-3):
            scheduled = {"discriminator_learning_rate": rate}
            found = adversarial(learner).relabel(experience, learner.model, scheduled)
    outcomes = (theirs, ours)
    if section is AIRLConfig:
        outcomes = tuple(points + 2 * np.append(points[1:], 0) for points in outcomes)
    loss = right = 0.0
    for outcome in np.unique(outcomes[0]):
        p, q = (float((points[:-1] == outcome).mean()) for points in outcomes)
        rewards = found.fields["reward"][:, 0][torch.from_numpy(outcomes[1][:-1] == outcome)]
        torch.testing.assert_close(
            rewards, torch.full_like(rewards, math.log(p / q)), atol=0.15, rtol=0
        )
        loss += (p * math.log1p(q / p) + q * math.log1p(p / q)) / 2
        right += max(p, q) / 2
    assert float(found.metrics["discriminator_loss"]) == pytest.approx(loss, abs=0.02)
    assert float(found.metrics["discriminator_accuracy"]) == pytest.approx(right, abs=0.02)


@pytest.mark.parametrize("kind", ["positive", "negative", "both"])
def test_rewards_are_those_of_the_probability(kind):
    probability = torch.tensor([0.1, 0.5, 0.9])
    log_odds = (probability / (1 - probability)).log()
    positive, negative = -(1 - probability).log(), probability.log()
    expected = {"positive": positive, "negative": negative, "both": positive + negative}[kind]
    torch.testing.assert_close(reward_of(log_odds, kind), expected)


def test_loss_is_the_cross_entropy_of_both_halves():
    demonstrated, own = torch.tensor([2.0, -1.0]), torch.tensor([0.5, -3.0])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.cat([demonstrated, own]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    )
    torch.testing.assert_close(discriminator_loss(demonstrated, own), expected)


def undecided(learner: Learner) -> Adversarial:
    """Make the discriminator answer one half everywhere, for good."""
    algorithm = adversarial(learner)
    for parameter in algorithm.discriminator.parameters():
        parameter.data.zero_()
    return algorithm


@pytest.mark.parametrize(("ends", "is_same"), [("absorbing", True), ("ignored", False)])
def test_an_undecided_discriminator_gives_the_same_return_to_every_length(tmp_path, ends, is_same):
    """Each step has the reward log 2, so any return without end is log 2 / (1 - γ)."""
    section = GAILConfig(gamma=0.9, episode_ends=ends, discriminator_updates=1, gradient_penalty=0)
    algorithm = undecided(built(tmp_path / "data", POINTS, section))
    terminated = torch.zeros(12, 3, dtype=torch.bool)
    terminated[3, 0] = terminated[11, 0] = terminated[11, 1] = terminated[5, 2] = True
    terminated[11, 2] = True
    observation = torch.zeros(13, 3, dtype=torch.int64)
    experience = experience_of(observation, observation[1:], terminated)
    with torch.no_grad():
        rate = {"discriminator_learning_rate": 0.0}
        reward = algorithm.relabel(experience, build_model_of(POINTS), rate).fields["reward"]
    returns = discounted_returns(reward, torch.zeros(12, 3), terminated, 0.9)
    assert torch.allclose(returns, torch.tensor(math.log(2) / (1 - 0.9)), rtol=1e-5) == is_same
    assert float(returns.max()) <= math.log(2) / (1 - 0.9) + 1e-4


def build_model_of(spec: EnvSpec):
    return build_learner(config_of(PPOConfig()), spec).model


def test_absorbing_steps_are_told_apart_from_all_others(tmp_path):
    """Demonstrations never terminate and the policy does, so the absorbing state is its own."""
    section = GAILConfig(discriminator_updates=300, gradient_penalty=0.0, reward="both", gamma=0.5)
    learner = built(tmp_path / "data", POINTS, section)
    terminated = torch.zeros(16, 4, dtype=torch.bool)
    terminated[7] = True
    random = torch.Generator().manual_seed(0)
    observation = torch.randint(0, 2, (17, 4), generator=random)
    action = torch.randint(0, 2, (16, 4), generator=random)
    with torch.no_grad():
        experience = experience_of(observation, action, terminated)
        reward = adversarial(learner).relabel(experience, learner.model, RATE).fields["reward"]
    assert float(reward[7].max()) < float(reward[torch.arange(16) != 7].min()) - 1


@BOTH
@pytest.mark.parametrize(
    ("spec", "spectral_norm"),
    [(DISCRETE, False), (CONTINUOUS, True), (NESTED, False), (IMAGES, True)],
    ids=lambda value: getattr(value, "id", None),
)
def test_updates_of_every_space_are_finite_and_resume_exactly(
    tmp_path, section, spec, spectral_norm
):
    keys = {"discriminator_updates": 2, "discriminator_batch_size": 8, "epochs": 1}
    keys |= {"spectral_norm": spectral_norm, "normalize_rewards": True}
    learner, other = (built(tmp_path / "data", spec, section(**keys)) for _ in range(2))
    rollouts = [with_finals(random_rollout(spec, learner.model, seed=seed)) for seed in range(3)]
    metrics = learner.update(rollouts[0])
    assert all(map(math.isfinite, metrics.values()))
    assert {"discriminator_loss", "discriminator_accuracy", "discriminator_reward"} <= set(metrics)
    state = learner.state_dict()
    learner.update(rollouts[1])
    other.load_state_dict(state)
    other.update(rollouts[1])
    assert torch.equal(parameters_of(learner), parameters_of(other))
    theirs = adversarial(other).state_dict()["discriminator"]
    for name, tensor in adversarial(learner).state_dict()["discriminator"].items():
        assert torch.equal(tensor, theirs[name]), name
    assert not torch.equal(parameters_of(learner), state_vector(state))


def state_vector(state) -> Tensor:
    names = [name for name in state["model"] if "normalizers" not in name]
    return torch.cat([state["model"][name].flatten() for name in names])


@BOTH
def test_rewards_of_the_environment_are_not_learnt_from(tmp_path, section):
    learners = [built(tmp_path / "data", DISCRETE, section()) for _ in range(2)]
    rollout = with_finals(random_rollout(DISCRETE, learners[0].model))
    learners[0].update(rollout)
    learners[1].update(replace(rollout, reward=rollout.reward + 7))
    assert torch.equal(*map(parameters_of, learners))


def test_actions_beyond_their_bounds_are_scored_as_the_environment_gets_them(tmp_path):
    algorithm = adversarial(built(tmp_path / "data", CONTINUOUS, GAILConfig()))
    observation, model = torch.zeros(2, 1, 5), build_model_of(CONTINUOUS)
    rewards = []
    for size in (1.0, 3.0):
        action = torch.full((1, 1, 2), size)
        experience = experience_of(observation, action, torch.zeros(1, 1, dtype=torch.bool))
        steps = sampled(experience, absorbing=True, follows=False)
        (rows,) = steps.parts(9, torch.device("cpu"))
        rewards.append(algorithm.log_odds(rows, model))
    assert torch.equal(*rewards)


def test_airl_subtracts_what_the_policy_would_do_among_valid_actions(tmp_path):
    learner = built(tmp_path / "data", MASKED, AIRLConfig())
    algorithm = undecided(learner)
    place, mask = torch.randn(2, 1, 2), torch.tensor([[[True, False, True]]]).expand(2, 1, 3)
    fields = {
        "terminated": torch.zeros(1, 1, dtype=torch.bool),
        "truncated": torch.zeros(1, 1, dtype=torch.bool),
        "final_observation/place": place[1:],
        ACTION_MASK: mask,
    }
    action = {"": torch.tensor([[2]])}
    experience = Experience({"place": place}, action, fields, torch.device("cpu"))
    (rows,) = sampled(experience, absorbing=True, follows=True).parts(9, torch.device("cpu"))
    with torch.no_grad():
        found = algorithm.log_odds(rows, learner.model)
        expected = learner.model.evaluate({"place": place[0]}, {"": action[""][0]}, mask=mask[0])[0]
    torch.testing.assert_close(found, -expected)


def test_airl_finds_the_next_observation_of_every_step(tmp_path):
    observation = torch.arange(10.0).view(5, 2, 1)
    final = -observation[1:] - 1
    terminated, truncated = (torch.zeros(4, 2, dtype=torch.bool) for _ in range(2))
    terminated[1, 0] = truncated[2, 1] = True
    fields = {"terminated": terminated, "truncated": truncated, "final_observation": final}
    action = {"": torch.zeros(4, 2, 1)}
    experience = Experience({"": observation}, action, fields, torch.device("cpu"))
    steps = sampled(experience, absorbing=True, follows=True)
    expected = observation[1:].clone()
    expected[1, 0], expected[2, 1] = final[1, 0], final[2, 1]
    assert torch.equal(steps.following[""], expected.flatten(0, 1))
    rows = steps.rows(torch.tensor([2, 5, 8]), torch.device("cpu"))
    assert rows.ends.tolist() == [True, False, True]
    assert rows.is_absorbing.tolist() == [False, False, True]


def test_airl_subtracts_what_a_memory_would_do_after_the_steps_before(tmp_path):
    lengths, section = (5, 9, 3), AIRLConfig(minibatch_size=8, sequence_length=4)
    episodes = [episode_of(DISCRETE, length) for length in lengths]
    learner = built(tmp_path / "d", DISCRETE, section, *episodes, recurrent="gru")
    algorithm, model = undecided(learner), learner.model
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    rollout = with_finals(remembered_rollout(DISCRETE, model, 4))
    with torch.no_grad():
        own = algorithm.steps(learner._experience(rollout), model)
        shown = algorithm._demonstrations
        seen, taken = (leaves[""].split(lengths) for leaves in (shown.observation, shown.action))
        expected = [
            model.evaluate({"": x[:, None]}, {"": a[:, None]}, model.initial_state(1))[0][:, 0]
            for x, a in zip(seen, taken, strict=True)
        ]
        torch.testing.assert_close(own.log_prob, rollout.log_prob.flatten())
        torch.testing.assert_close(shown.log_prob, torch.cat(expected))
        (rows,) = shown.parts(99, torch.device("cpu"))
        torch.testing.assert_close(algorithm.log_odds(rows, model), -shown.log_prob)
    for _ in range(2):
        learner.update(rollout)
    assert not torch.equal(algorithm._demonstrations.log_prob, shown.log_prob)


def scorer_of(is_lipschitz: bool) -> Scorer:
    torch.manual_seed(0)
    config = ModelConfig(hidden_sizes=(32, 32))
    return Scorer(CONTINUOUS, config, "clip", is_lipschitz=is_lipschitz)


def test_spectral_norm_bounds_the_slope():
    def steepest(scorer: Scorer) -> float:
        for parameter in scorer.parameters():
            parameter.data.mul_(10)
        for _ in range(50):
            scorer(torch.zeros(1, scorer.num_features))
        inputs = torch.randn(500, scorer.num_features, requires_grad=True)
        (gradient,) = torch.autograd.grad(scorer(inputs).sum(), inputs)
        return float(gradient.norm(dim=-1).max())

    assert steepest(scorer_of(True)) <= 1.001
    assert steepest(scorer_of(False)) > 2


def test_gradient_penalty_pulls_the_slope_to_one(tmp_path):
    keys = {"discriminator_updates": 150, "gradient_penalty": 100.0}
    learner = built(tmp_path / "data", CONTINUOUS, GAILConfig(**keys))
    algorithm = adversarial(learner)
    rollout = random_rollout(CONTINUOUS, learner.model)
    experience = learner._experience(rollout)
    with torch.no_grad():
        algorithm.relabel(experience, learner.model, RATE)
        steps = sampled(experience, absorbing=True, follows=False)
        (rows,) = steps.parts(9999, torch.device("cpu"))
        features = algorithm.discriminator.features(
            rows.observation, rows.action, rows.is_absorbing
        )
    features.requires_grad_()
    (gradient,) = torch.autograd.grad(algorithm.discriminator(features).sum(), features)
    assert float(gradient.norm(dim=-1).mean()) == pytest.approx(1.0, abs=0.15)


def test_rewards_do_not_change_the_estimates_of_spectral_norms(tmp_path, monkeypatch):
    learner = built(tmp_path / "data", CONTINUOUS, GAILConfig(spectral_norm=True))
    algorithm, rewards = adversarial(learner), Adversarial._rewards

    def checked(self, *given):
        before = self.state_dict()["discriminator"]
        found = rewards(self, *given)
        for name, tensor in self.state_dict()["discriminator"].items():
            assert torch.equal(tensor, before[name]), name
        return found

    monkeypatch.setattr(Adversarial, "_rewards", checked)
    learner.update(random_rollout(CONTINUOUS, learner.model))
    assert algorithm.discriminator.training
