"""Behavioural cloning maximises the likelihood of demonstrations, and nothing else."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Categorical, Normal

from fastrl.config import (
    BCConfig,
    Config,
    DAggerConfig,
    DatasetConfig,
    EnvConfig,
    ModelConfig,
)
from fastrl.datasets import Demonstrations, load_demonstrations
from fastrl.datasets.experts import Mixture, MostProbable, label_names
from fastrl.datasets.streams import rollout_fields
from fastrl.learning import build_learner
from fastrl.models import ActorCritic
from fastrl.sampling.dataset_sampler import DatasetSampler
from fastrl.spec import EnvSpec, Topology
from fastrl.workers.plan import SamplingPlan
from tests.datasets.drawing import drawn, written

PLAIN = spaces.Box(-np.inf, np.inf, (3,), np.float32)
SPECS = {
    "discrete": EnvSpec("Some-v0", PLAIN, spaces.Discrete(4, start=1)),
    "box": EnvSpec("Some-v0", PLAIN, spaces.Box(-2, 2, (2,))),
    "binary": EnvSpec("Some-v0", PLAIN, spaces.MultiBinary(3)),
    "many": EnvSpec(
        "Some-v0",
        spaces.Dict(image=spaces.Box(0, 255, (12, 12, 3), np.uint8), plain=PLAIN),
        spaces.Dict(move=spaces.MultiDiscrete([2, 3]), force=spaces.Box(-1, 1, (1,))),
    ),
    "masked": EnvSpec(
        "Some-v0",
        spaces.Dict(observation=PLAIN, action_mask=spaces.MultiBinary(4)),
        spaces.Discrete(4),
    ),
}

HELD_OUT_EPISODE = 0
"""Of four episodes, if a quarter is held out."""


def config_of(section, **model):
    model = {"conv_layers": ((4, 3, 2),), "conv_features": 8, "hidden_sizes": (8,), **model}
    return Config(
        env=EnvConfig(id="none"),
        algorithm=section,
        dataset=DatasetConfig(path="unused"),
        model=ModelConfig(**model),
    )


def sampler_of(demonstrations, held_out=0.0, seed=0, sequence_length=None):
    plan = SamplingPlan(
        env_spec=demonstrations.env_spec,
        topology=Topology(1, 1),
        rollout_length=8,
        seed=seed,
        build_env=lambda *_: None,
        build_model=lambda: torch.nn.Linear(1, 1),
        outputs={},
    )
    return DatasetSampler(plan, demonstrations, held_out, sequence_length)


@pytest.fixture
def demonstrated(tmp_path):
    def demonstrated(spec, lengths=(5, 3, 6)):
        episodes = [drawn(spec, length, seed) for seed, length in enumerate(lengths)]
        return load_demonstrations(written(tmp_path / "set", spec, episodes), spec)

    return demonstrated


@pytest.mark.parametrize("kind", SPECS)
def test_the_gradient_is_that_of_a_written_out_likelihood(kind, demonstrated):
    spec, entropy_coef = SPECS[kind], 0.03
    found = demonstrated(spec)
    section = BCConfig(
        minibatch_size=1000, entropy_coef=entropy_coef, validation_fraction=0.0, learning_rate=1e-9
    )
    learner = build_learner(config_of(section), spec)
    model = learner.model
    with sampler_of(found) as sampler:
        metrics = learner.update(sampler.collect())
    gradient = [parameter.grad.clone() for parameter in model.parameters()]

    observation, mask = spec.split_mask(found.observation)
    head = {}
    hook = model.actor_head.register_forward_hook(lambda _, __, out: head.update(out=out))
    model.evaluate(observation, found.action, **({} if mask is None else {"mask": mask}))
    hook.remove()
    log_prob, entropy = written_out(kind, head["out"], model, found.action, mask)
    loss = -log_prob.mean() - entropy_coef * entropy.mean()
    expected = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    for ours, theirs in zip(gradient, expected, strict=True):
        # The value is not learnt.
        assert torch.allclose(ours, torch.zeros_like(ours) if theirs is None else theirs, atol=1e-6)
    assert torch.cat([each.flatten() for each in gradient]).abs().max() > 1e-3
    assert math.isclose(metrics["log_likelihood"], float(log_prob.detach().mean()), rel_tol=1e-5)


def written_out(kind, head, model, action, mask):
    """Return log-probability and entropy by torch's distributions, from the head's output."""

    def normal(mean, value):
        normal = Normal(mean, model.distribution.log_std.exp())
        return normal.log_prob(value).sum(-1), normal.entropy().sum(-1)

    def categorical(logits, value):
        part = Categorical(logits=logits)
        return part.log_prob(value), part.entropy()

    if kind == "discrete":
        return categorical(head, action[""])
    if kind == "masked":
        # A very low logit has the probability 0, and its entropy is 0.
        return categorical(head.where(mask, torch.tensor(-1e9)), action[""])
    if kind == "box":
        return normal(head, action[""])
    if kind == "binary":
        coins = Bernoulli(logits=head)
        return coins.log_prob(action[""].float()).sum(-1), coins.entropy().sum(-1)
    parts = [
        categorical(head[:, :2], action["move"][:, 0]),
        categorical(head[:, 2:5], action["move"][:, 1]),
        normal(head[:, 5:], action["force"]),
    ]
    return tuple(sum(each) for each in zip(*parts, strict=True))


@pytest.mark.parametrize("recurrent", ["gru", "lstm"])
@pytest.mark.parametrize("kind", ["box", "masked", "many"])
@pytest.mark.parametrize("length", [32, 2])
def test_a_memory_learns_the_likelihood_of_whole_episodes(length, kind, recurrent, demonstrated):
    """In a sequence of 32 steps several episodes begin; those of 2 begin within episodes."""
    spec, lengths = SPECS[kind], (5, 3, 6, 4)
    found = demonstrated(spec, lengths)
    section = BCConfig(
        minibatch_size=1000 * length,
        sequence_length=length,
        entropy_coef=0.03,
        learning_rate=1e-9,
        optimizer_eps=1.0,
    )
    learner = build_learner(config_of(section, recurrent=recurrent, recurrent_size=8), spec)
    model = learner.model
    for parameter in model.parameters():
        # Heads start near 0, where a wrong state would not show.
        parameter.data += 0.2 * torch.randn(parameter.shape)
    with sampler_of(found, 0.25, sequence_length=length) as sampler:
        rollout = sampler.collect()
        metrics = learner.update(rollout)
    gradient = [parameter.grad.clone() for parameter in model.parameters()]

    held = found.lengths[HELD_OUT_EPISODE].item()
    assert rollout.num_steps == sum(lengths) - held == rollout.counted_steps
    observation, mask = spec.split_mask(found.observation)
    _, inputs = model._inputs(observation)
    outputs = [model.actor_core.layers(each)[0] for each in model.actor_body(inputs).split(lengths)]
    head = model.actor_head(torch.cat(outputs))
    log_prob, entropy = written_out(kind, head, model, found.action, mask)
    rows = -log_prob - 0.03 * entropy
    is_held = found.episode == HELD_OUT_EPISODE
    loss = rows[~is_held].mean()
    assert math.isclose(metrics["loss"], float(loss.detach()), rel_tol=1e-5)
    expected = float(rows[is_held].mean().detach())
    assert math.isclose(metrics["validation_loss"], expected, rel_tol=1e-5)
    if length < max(lengths):
        return  # Gradients end at the beginning of a sequence.
    expected = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    for ours, theirs in zip(gradient, expected, strict=True):
        # The value is not learnt.
        theirs = torch.zeros_like(ours) if theirs is None else theirs
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    sequence_length=st.integers(1, 32),
)
def test_streams_hold_every_step_once_and_whole_episodes(lengths, sequence_length):
    steps = torch.arange(sum(lengths))
    episode = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    ended = torch.zeros(len(steps), dtype=torch.bool)
    ended[torch.tensor(lengths).cumsum(0) - 1] = True
    found = Demonstrations(
        env_spec=SPECS["discrete"],
        observation={"": steps[:, None].float().expand(-1, 3)},
        action={"": steps},
        reward=torch.zeros(len(steps)),
        terminated=ended,
        final_observation={"": -torch.ones(len(lengths), 3)},
        lengths=torch.tensor(lengths),
        fields={"episode": episode},
    )
    fields = rollout_fields(found, sequence_length)
    padding = fields["padding"]
    assert len(padding) % sequence_length == 0
    assert fields["action"][~padding].sort().values.equal(steps)
    for column in range(padding.shape[1]):
        kept = int((~padding[:, column]).sum())
        rows, over = fields["action"][:kept, column], fields["terminated"][:kept, column]
        assert not padding[:kept, column].any()
        assert over[-1]
        follows = rows[1:] == rows[:-1] + 1
        assert (follows | over[:-1]).all()
        assert (
            over[:-1] | (fields["episode"][1:kept, column] == fields["episode"][: kept - 1, column])
        ).all()


def test_held_out_episodes_are_evaluated_and_not_learnt_from(demonstrated):
    spec = SPECS["discrete"]
    found = demonstrated(spec, (5, 3, 6, 4))
    learner = build_learner(config_of(BCConfig(minibatch_size=4)), spec)
    with sampler_of(found, held_out=0.25) as sampler:
        rollout = sampler.collect()
        held = rollout.fields["held_out"][:, 0]
        [episode] = found.episode[held].unique().tolist()
        assert held.sum() == found.lengths[episode]
        assert rollout.num_steps == len(found) - held.sum()
        observation = {"": found.observation[""][held]}
        with torch.no_grad():
            log_prob, entropy, _ = learner.model.evaluate(observation, {"": found.action[""][held]})
        metrics = learner.update(rollout)
        expected = float(-log_prob.mean() - 1e-3 * entropy.mean())
        assert math.isclose(metrics["validation_loss"], expected, rel_tol=1e-5)
        assert metrics["gradient_steps"] == math.ceil(rollout.num_steps / 4)

    # Other numbers in the held-out rows change nothing that is learnt, statistics included.
    changed = replace(
        found,
        action={"": found.action[""].where(~held, 0)},
        observation={"": found.observation[""].where(~held[:, None], 9.0)},
    )
    learnt = []
    for demonstrations in (found, changed):
        section = BCConfig(minibatch_size=4)
        learner = build_learner(config_of(section, normalize_observations=True), spec)
        with sampler_of(demonstrations, held_out=0.25) as sampler:
            learner.update(sampler.collect())
        learnt.append(learner.weights())
    assert learnt[0].keys() >= {"normalizers.0.mean"}
    assert all(torch.equal(learnt[0][name], learnt[1][name]) for name in learnt[0])


@pytest.mark.parametrize(
    "section",
    [
        BCConfig(minibatch_size=1000, learning_rate=1e-9, validation_fraction=0.0),
        DAggerConfig(minibatch_size=1000, learning_rate=1e-9, epochs=1, expert_policy="a:b"),
    ],
    ids=["bc", "dagger"],
)
def test_observations_are_normalised_from_the_first_epoch_on(section, demonstrated):
    found = demonstrated(SPECS["box"])
    found = replace(found, observation={"": 5 + 3 * found.observation[""]})
    learner = build_learner(config_of(section, normalize_observations=True), SPECS["box"])
    with sampler_of(found) as sampler:
        metrics = learner.update(sampler.collect())
    with torch.no_grad():
        log_prob, _, _ = learner.model.evaluate(found.observation, found.action)
    assert metrics["log_likelihood"] == pytest.approx(float(log_prob.mean()), rel=1e-5)


def test_every_row_is_learnt_from_once_in_an_epoch(demonstrated):
    found = demonstrated(SPECS["box"])
    learner = build_learner(config_of(BCConfig(validation_fraction=0.0)), SPECS["box"])
    rows = []
    with sampler_of(found) as sampler:
        rollout = sampler.collect()
    experience, algorithm = learner._experience(rollout), learner._algorithm
    batch = experience.batch(list, algorithm.prepare(experience, learner.model).fields)
    for _ in range(2):
        rows.append(torch.cat(list(algorithm.minibatches(batch, learner._generator))))
        assert rows[-1].sort().values.tolist() == list(range(len(found)))
    assert rows[0].tolist() != rows[1].tolist()


@pytest.mark.parametrize(
    ("episodes", "share", "held"), [(1, 0.5, 0), (2, 0.01, 1), (10, 0.3, 3), (3, 0.9, 2), (4, 0, 0)]
)
def test_a_share_of_the_episodes_is_held_out(episodes, share, held, demonstrated):
    found = demonstrated(SPECS["discrete"], range(1, episodes + 1))
    with sampler_of(found, share) as sampler:
        marked = sampler.collect().fields["held_out"][:, 0]
    assert len(found.episode[marked].unique()) == held
    with sampler_of(found, share, seed=1) as sampler:
        other = sampler.collect().fields["held_out"][:, 0]
    assert episodes < 10 or not torch.equal(marked, other)


def test_patience_ends_training_and_is_resumed(demonstrated):
    spec = SPECS["discrete"]
    found = demonstrated(spec, [20] * 4)
    section = BCConfig(minibatch_size=8, learning_rate=0.05, patience=3, entropy_coef=0.0)
    learner = build_learner(config_of(section, hidden_sizes=(64,)), spec)
    losses = []
    with sampler_of(found, 0.25) as sampler:
        # The actions are random: what is learnt of them makes others less likely.
        while not learner.is_finished:
            losses.append(learner.update(sampler.collect())["validation_loss"])
            assert len(losses) < 100
        best = losses.index(min(losses))
        assert len(losses) == best + 1 + 3

        resumed = build_learner(config_of(section, hidden_sizes=(64,)), spec)
        resumed.load_state_dict(learner.state_dict())
        assert resumed.is_finished
        for one in (learner, resumed):
            one.update(sampler.collect())
    for ours, theirs in zip(learner.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


class Backwards(ActorCritic):
    """A policy that returns the leaves of its actions in another order than the space."""

    def act(self, *given, **others):
        step = super().act(*given, **others)
        return step._replace(action=dict(reversed(step.action.items())))


def test_an_experts_actions_are_stored_by_leaf_whatever_the_order_of_the_policy():
    spec = EnvSpec("Some-v0", PLAIN, spaces.Dict(a=spaces.Discrete(3), b=spaces.Discrete(3)))
    expert = MostProbable(ActorCritic(spec, ModelConfig()))
    expert.model.actor_head.bias.data[:] = torch.tensor([0.0, 0, 9, 9, 0, 0])
    mixture = Mixture(spec, Backwards(spec, ModelConfig()), expert, share=0.0)
    labels = mixture.act({"": torch.zeros(4, 3)}, mixture.draw_noise((4,))).outputs
    assert [labels[name].tolist() for name in label_names(spec)] == [[2] * 4, [0] * 4]
