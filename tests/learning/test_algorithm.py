"""Algorithms from outside: any loss, its own metrics, optimisers and state, in every engine."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, ClassVar, Literal

import pytest
import torch

from fastrl import load_config, make_plan, make_sampler, once, registry
from fastrl.config import A2CConfig, ModelConfig, PPOConfig
from fastrl.config.algorithms import LearnerConfig
from fastrl.errors import ConfigError, FastrlError
from fastrl.learning import Algorithm, Group, Loss, Prepared, build_learner
from fastrl.learning.ppo import PPO
from fastrl.learning.returns import discounted_returns, next_values
from fastrl.models import ActorCritic
from fastrl.spaces import flatten, unflatten
from fastrl.spec import LOG_PROB_AND_VALUE
from fastrl.training.interrupts import Interrupts
from fastrl.training.trainer import Trainer
from tests.learning.synthetic import (
    CONTINUOUS,
    DISCRETE,
    NESTED,
    config_of,
    one_step_rollout,
    random_rollout,
)
from tests.learning.tasks import TASKS


class ReinforceConfig(LearnerConfig):
    name: Literal["reinforce"] = "reinforce"
    baseline_rate: float = 1e-2
    baseline_schedule: Literal["constant", "linear"] = "constant"


class Reinforce(Algorithm[ReinforceConfig]):
    """Williams 1992 with a learned baseline, which has an optimiser of its own."""

    schedules: ClassVar = {**Algorithm.schedules, "baseline_rate": "baseline_schedule"}
    is_mean_over_rows = True

    def prepare(self, experience, policy):
        ended = experience["terminated"] | experience["truncated"]
        following = next_values(
            experience["value"], experience["final_value"],
            experience["terminated"], experience["truncated"],
        )  # fmt: skip
        returns = discounted_returns(experience["reward"], following, ended, self.section.gamma)
        return Prepared({"return": returns}, {"return_mean": returns.mean()})

    def loss(self, minibatch, policy):
        log_prob, _, value = minibatch.evaluate(policy)
        advantage = minibatch["return"] - value
        policy_loss = -(advantage.detach() * log_prob).mean()
        surprise = advantage.square().mean()
        return Loss(policy_loss + surprise, {"surprise": surprise})

    def groups(self, policy):
        parts = {"critic": ("critic_body", "critic_head")}
        critic = [p for name in parts["critic"] for p in getattr(policy, name).parameters()]
        known = {id(p) for p in critic}
        actor = [p for p in policy.parameters() if id(p) not in known]
        return {"actor": Group(actor), "critic": Group(critic, "baseline_rate")}


def reinforce(**section: Any) -> Reinforce:
    return Reinforce(ReinforceConfig(learning_rate=1e-2, **section))


def vector_of(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([torch.zeros(0), *(p.detach().flatten() for p in module.parameters())])


def test_a_loss_from_outside_is_trained_with_end_to_end():
    config = load_config(
        None,
        ["env.id=CartPole-v1", "sampler.kind=serial", "sampler.rollout_length=16", "seed=1",
         "sampler.envs_per_worker=4", "sampler.num_env_workers=1"],
    )  # fmt: skip
    plan = make_plan(config)
    learner = build_learner(config, plan.env_spec, algorithm=reinforce(normalize_rewards=True))
    before, updates = vector_of(learner.model), []
    with make_sampler(config, plan) as sampler, Interrupts() as interrupts:
        trainer = Trainer(sampler, learner, 3 * 64, interrupts)
        assert trainer.run(lambda update: updates.append(update.metrics))
    assert len(updates) == 3
    assert updates[0].keys() == {
        "loss", "surprise", "return_mean", "gradient_norm", "gradient_steps",
        "learning_rate", "baseline_rate",
    }  # fmt: skip
    assert not torch.equal(vector_of(learner.model), before)


@pytest.mark.parametrize("sign", [1, -1], ids=["reward", "reward with its sign flipped"])
def test_a_loss_from_outside_learns_what_is_rewarded(sign):
    spec, reward_of = TASKS["match"]
    learner = build_learner(config_of(PPOConfig()), spec, algorithm=reinforce())

    def rollout(seed: int):
        return one_step_rollout(spec, learner.model, lambda o, a: sign * reward_of(o, a), seed)

    for seed in range(80):
        learner.update(rollout(seed))
    assert torch.stack([rollout(seed).reward.mean() for seed in range(80, 85)]).mean() > 0.9


@pytest.mark.parametrize("still", ["actor", "critic"])
def test_each_group_of_parameters_has_its_own_learning_rate(still):
    rates = {"learning_rate": 1e-2, "baseline_rate": 1e-2}
    section = ReinforceConfig(**rates)
    rate = {"actor": "learning_rate", "critic": "baseline_rate"}[still]
    algorithm = Reinforce(section.model_copy(update={rate: 0.0}))
    learner = build_learner(config_of(PPOConfig(), shared_body=False), DISCRETE, None, algorithm)
    before = {name: vector_of(module) for name, module in learner.model.named_children()}
    learner.update(random_rollout(DISCRETE, learner.model))
    for name, parameters in before.items():
        moved = not torch.equal(vector_of(getattr(learner.model, name)), parameters)
        if name in ("actor_head", "critic_head"):
            assert moved == (not name.startswith(still)), name


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("spec", [CONTINUOUS, NESTED], ids=lambda spec: spec.id)
def test_threads_that_share_a_loss_from_outside_find_what_one_finds(spec, threads):
    found = []
    for number in (1, threads):
        learner = build_learner(
            config_of(PPOConfig(), shared_body=False), spec, None, reinforce(torch_threads=number)
        )
        metrics = learner.update(random_rollout(spec, learner.model))
        found.append((metrics, vector_of(learner.model)))
    (metrics, one), (others, several) = found
    assert metrics == pytest.approx(others, rel=1e-5)
    torch.testing.assert_close(one, several, rtol=1e-4, atol=1e-6)


class Counting(Algorithm[A2CConfig]):
    """Its loss weighs each update less; it also counts them."""

    def __init__(self, section: A2CConfig) -> None:
        super().__init__(section)
        self.updates = 0

    def prepare(self, experience, policy):
        self.updates += 1
        weight = torch.full_like(experience["reward"], 1 / self.updates)
        return Prepared({"weight": weight})

    def loss(self, minibatch, policy):
        log_prob, _, value = minibatch.evaluate(policy)
        weighted = minibatch["weight"] * (value - minibatch["reward"]).square()
        return Loss(weighted.mean() - log_prob.mean(), {})

    def state_dict(self):
        return {"updates": self.updates}

    def load_state_dict(self, state):
        self.updates = state["updates"]


def test_the_state_of_an_algorithm_goes_on_exactly():
    config = config_of(PPOConfig())
    learner = build_learner(config, DISCRETE, None, Counting(A2CConfig()))
    other = build_learner(
        config.model_copy(update={"seed": 9}), DISCRETE, None, Counting(A2CConfig())
    )
    rollouts = [random_rollout(DISCRETE, learner.model, seed=seed) for seed in range(4)]
    for rollout in rollouts[:2]:
        learner.update(rollout)
    other.load_state_dict(learner.state_dict())
    for rollout in rollouts[2:]:
        assert learner.update(rollout) == other.update(rollout)
    assert torch.equal(vector_of(learner.model), vector_of(other.model))


def test_optimisers_of_several_groups_go_on_exactly():
    config = config_of(PPOConfig(), shared_body=False)
    learner = build_learner(config, DISCRETE, None, reinforce())
    other = build_learner(config, DISCRETE, None, reinforce())
    rollout = random_rollout(DISCRETE, learner.model)
    learner.update(rollout)
    other.load_state_dict(learner.state_dict())
    assert learner.update(rollout) == other.update(rollout)
    assert torch.equal(vector_of(learner.model), vector_of(other.model))


class Penalised(PPO):
    """PPO with another term, which depends on the minibatch as a whole."""

    def loss(self, minibatch, policy):
        total, metrics = super().loss(minibatch, policy)
        _, entropy, _ = minibatch.evaluate(policy)
        return Loss(total + entropy.std(), {**metrics, "spread": entropy.std()})


def test_a_subclass_with_another_loss_takes_no_way_that_knows_only_the_first(caplog, monkeypatch):
    monkeypatch.setattr(once, "is_first", lambda what: True)
    section = PPOConfig(torch_threads=2, epochs=1)
    learner = build_learner(config_of(PPOConfig()), DISCRETE, None, Penalised(section))
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "the loss is differentiated by autograd, only its network compiled: "
        "the loss of Penalised is custom",
    ]
    assert learner.update(random_rollout(DISCRETE, learner.model))["spread"] >= 0


@pytest.mark.parametrize(
    ("model", "warned"), [({}, 0), ({"activation": "gelu"}, 0)], ids=["tanh", "gelu"]
)
def test_nothing_is_warned_of_without_custom_code(model, warned, caplog, monkeypatch):
    monkeypatch.setattr(once, "is_first", lambda what: True)
    caplog.set_level(logging.INFO)
    build_learner(config_of(PPOConfig(), **model), DISCRETE)
    levels = [record.levelno for record in caplog.records]
    assert levels == ([logging.INFO] if model else [])


def test_what_no_engine_supports_is_named(caplog, monkeypatch):
    monkeypatch.setattr(once, "is_first", lambda what: True)
    section = PPOConfig(torch_threads=2, epochs=1)
    build_learner(config_of(PPOConfig(), activation="gelu"), DISCRETE, None, Penalised(section))
    assert [record.getMessage() for record in caplog.records] == [
        "gradients are computed by autograd, not by the compiled kernels: "
        "the activation is neither tanh nor relu",
        "minibatches are not shared among 2 threads: Penalised.is_mean_over_rows is not set",
    ]


class Custom(ActorCritic):
    def forward(self, observation):
        return super().forward(observation)


def test_a_custom_forward_pass_is_said_to_be_slower(caplog, monkeypatch):
    monkeypatch.setattr(once, "is_first", lambda what: True)
    config = config_of(PPOConfig())
    build_learner(config, DISCRETE, Custom(DISCRETE, config.model))
    assert [record.getMessage() for record in caplog.records] == [
        "gradients are computed by autograd, not by the compiled kernels: Custom.forward is custom"
    ]


class Broken(Algorithm[A2CConfig]):
    """Its loss is what it is given."""

    given: Any

    def loss(self, minibatch, policy):
        log_prob, _, _ = minibatch.evaluate(policy)
        return self.given(log_prob.mean(), minibatch)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda mean, _: mean, r"Broken\.loss must return Loss\(total, metrics\), got Tensor"),
        (lambda mean, _: Loss(mean.expand(2), {}), r"Broken\.loss: 'total' must be .* got \[2\]"),
        (lambda mean, _: Loss(mean, {"x": 1.0}), r"Broken\.loss: 'x' must be a tensor.*float"),
        (lambda mean, _: Loss(mean, {"loss": mean}), "cannot have the name 'loss'"),
        (lambda mean, _: Loss(mean.detach(), {}), "does not depend on any parameter"),
        (lambda mean, m: Loss(mean * m["logits"].mean(), {}), "has no field 'logits'; there are"),
    ],
    ids=["no Loss", "not a scalar", "a number", "taken name", "constant", "no field"],
)
def test_what_is_wrong_with_a_loss_is_one_line(given, message):
    algorithm = Broken(A2CConfig())
    algorithm.given = given
    learner = build_learner(config_of(PPOConfig()), DISCRETE, None, algorithm)
    with pytest.raises(ConfigError, match=message) as raised:
        learner.update(random_rollout(DISCRETE, learner.model))
    assert "\n" not in str(raised.value)


class Precise(PPO):
    """PPO whose constants are float64."""

    def prepare(self, experience, policy):
        prepared = super().prepare(experience, policy)
        return replace(prepared, fields={name: x.double() for name, x in prepared.fields.items()})


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=lambda spec: spec.id)
def test_constants_of_another_precision_are_learnt_from_alike(spec):
    found = []
    for kind in (PPO, Precise):
        learner = build_learner(config_of(PPOConfig()), spec, None, kind(PPOConfig()))
        learner.update(random_rollout(spec, learner.model))
        found.append(vector_of(learner.model))
    assert torch.equal(*found)


class Calling(Reinforce):
    """The same loss from the outputs of the network."""

    def loss(self, minibatch, policy):
        parameters, value = policy(minibatch.observation)
        assert parameters.dtype == value.dtype == torch.float32
        log_prob = policy.distribution.log_prob(parameters, minibatch.action)
        advantage = minibatch["return"] - value
        surprise = advantage.square().mean()
        return Loss(-(advantage.detach() * log_prob).mean() + surprise, {"surprise": surprise})


def test_a_loss_may_call_the_policy_in_bfloat16():
    found = []
    for kind in (Reinforce, Calling):
        section = ReinforceConfig(bf16=True)
        learner = build_learner(
            config_of(PPOConfig(), shared_body=False), DISCRETE, None, kind(section)
        )
        found.append(learner.update(random_rollout(DISCRETE, learner.model)))
    assert found[0] == pytest.approx(found[1], rel=0.02)


class Distilling(Algorithm[A2CConfig]):
    """Reads fields that fastrl itself does not know."""

    def prepare(self, experience, policy):
        final = experience.fields.get("final_observation")
        if final is None:
            final = experience["final_observation/index"]
        return Prepared({"final_index": final.clone()})

    def loss(self, minibatch, policy):
        log_prob, _, _ = minibatch.evaluate(policy)
        metrics = {name: minibatch[name].float().sum() for name in ("logits", "final_index")}
        return Loss(log_prob.mean(), metrics)


@pytest.mark.parametrize("spec", [DISCRETE, NESTED], ids=lambda spec: spec.id)
def test_every_field_of_a_rollout_reaches_the_loss(spec):
    learner = build_learner(config_of(PPOConfig()), spec, None, Distilling(A2CConfig()))
    rollout = random_rollout(spec, learner.model)
    before = unflatten(
        spec.observation_space,
        {name: leaf[:-1] for name, leaf in zip(spec.observation, flatten(
            spec.observation_space, rollout.observation), strict=True)},
    )  # fmt: skip
    logits = torch.arange(16 * 3 * 2.0).reshape(16, 3, 2)
    others = {"level": torch.zeros(3), "final_observation": before}
    metrics = learner.update(replace(rollout, logits=logits, **others))
    assert metrics["logits"] == logits.sum()
    index = before if spec is DISCRETE else before["index"]
    assert metrics["final_index"] == pytest.approx(float(index.sum()), rel=1e-4)


class Valueless(ActorCritic):
    def __init__(self, env_spec) -> None:
        super().__init__(env_spec, ModelConfig())
        self.outputs = {name: LOG_PROB_AND_VALUE[name] for name in ("log_prob",)}


@pytest.mark.parametrize("section", [PPOConfig(), A2CConfig()], ids=["ppo", "a2c"])
def test_a_policy_that_lacks_what_an_algorithm_needs_is_refused_at_once(section):
    message = (
        r"^(PPO|A2C) needs the policy's log_prob and value, but Valueless\.outputs lacks value; "
        r"it has log_prob$"
    )
    with pytest.raises(ConfigError, match=message):
        build_learner(config_of(section), DISCRETE, Valueless(DISCRETE))
    build_learner(config_of(section), DISCRETE, Valueless(DISCRETE), Counting(A2CConfig()))


def test_a_metric_that_is_not_finite_is_divergence():
    algorithm = Broken(A2CConfig())
    algorithm.given = lambda mean, _: Loss(mean, {"odd": mean.log()})
    learner = build_learner(config_of(PPOConfig()), DISCRETE, None, algorithm)
    with pytest.raises(FastrlError, match="diverged after 0 steps"):
        learner.update(random_rollout(DISCRETE, learner.model))


@pytest.mark.parametrize(
    ("method", "value", "message"),
    [
        ("minibatches", lambda batch, generator: iter(()), "minibatches must yield at least one"),
        ("minibatches", lambda batch, generator: [[0]], r"yield rows \[n\] int64, got \[0\]"),
        ("prepare", lambda experience, policy: {}, r"result of Broken\.prepare must be a Prepared"),
        ("bounds", lambda: {"kl": 1.0}, "'kl' is not a metric of the loss; there are loss"),
        ("groups", lambda policy: {"": Group(policy.parameters(), "rate")},
         "groups: learning rate 'rate' of '' must be one of schedules: learning_rate"),
        ("groups", lambda policy: dict.fromkeys("ab", Group([policy.actor_head.bias])),
         "groups: a parameter of 'b' is listed twice, or also belongs to another group"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_algorithm_is_one_line(method, value, message):
    algorithm = Broken(A2CConfig())
    algorithm.given = lambda mean, _: Loss(mean, {})
    setattr(algorithm, method, value)
    rollout = random_rollout(DISCRETE, ActorCritic(DISCRETE, config_of(PPOConfig()).model))
    with pytest.raises(ConfigError, match=message) as raised:
        build_learner(config_of(PPOConfig()), DISCRETE, None, algorithm).update(rollout)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: (*found[:2], found[2][:, None]), r"the value must have the shape \[\d+\]"),
        (lambda found: found[:2], "evaluate must return log_prob, entropy, value"),
    ],
)
def test_what_a_policy_evaluates_to_is_not_broadcast(change, message):
    def evaluate(self, *given):
        return change(ActorCritic.evaluate(self, *given))

    model = type("Mine", (ActorCritic,), {"evaluate": evaluate})(DISCRETE, ModelConfig())
    learner = build_learner(config_of(PPOConfig()), DISCRETE, model, reinforce())
    with pytest.raises(ConfigError, match=message):
        learner.update(random_rollout(DISCRETE, model))


def test_parameters_of_no_group_stay():
    algorithm = Reinforce(ReinforceConfig())
    algorithm.groups = lambda policy: {"": Group(policy.actor_head.parameters())}
    learner = build_learner(config_of(PPOConfig()), DISCRETE, None, algorithm)
    before = {name: vector_of(module) for name, module in learner.model.named_children()}
    learner.update(random_rollout(DISCRETE, learner.model))
    for name, module in learner.model.named_children():
        assert torch.equal(vector_of(module), before[name]) == (name != "actor_head"), name


def test_fields_of_other_axes_are_refused():
    algorithm = Broken(A2CConfig())
    algorithm.given = lambda mean, _: Loss(mean, {})
    algorithm.prepare = lambda experience, policy: Prepared({"x": experience["value"]})
    learner = build_learner(config_of(PPOConfig()), DISCRETE, None, algorithm)
    with pytest.raises(ConfigError, match=r"field 'x' must be \[T, B, …\] = \[16, 3, …\], got"):
        learner.update(random_rollout(DISCRETE, learner.model))


def test_an_algorithm_is_found_by_the_name_of_its_section(monkeypatch):
    monkeypatch.setitem(
        registry._entries,
        ("algorithm", "reinforce"),
        registry.Entry("algorithm", "reinforce", Reinforce, "test"),
    )
    config = config_of(PPOConfig()).model_copy(update={"algorithm": ReinforceConfig()})
    learner = build_learner(config, DISCRETE)
    assert learner.state_dict()["algorithm"] == "reinforce"
    monkeypatch.delitem(registry._entries, ("algorithm", "reinforce"))
    with pytest.raises(
        ConfigError,
        match=r"no algorithm 'reinforce'; there are a2c, .*, ppo$",
    ):
        build_learner(config, DISCRETE)
