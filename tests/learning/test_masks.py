"""Learning uses the masks that the policy acted with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from fastrl.config import (
    A2CConfig,
    Config,
    EnvConfig,
    ModelConfig,
    PPOConfig,
    SamplerConfig,
    load_config,
)
from fastrl.learning import build_learner
from fastrl.learning.a2c import A2C
from fastrl.learning.algorithm import Batch, Minibatch
from fastrl.learning.gradients import AutogradEngine, FlatParameters
from fastrl.learning.mlp_gradients import MLPGradientEngine, why_not
from fastrl.learning.shared_gradients import ShardedEngine
from fastrl.models import ActorCritic
from fastrl.sampling import make_plan, make_sampler
from fastrl.spec import EnvSpec
from fastrl.training import train
from tests.learning.test_gradients import ALL_LOSSES, CLIPPED, ROWS, check, model_of
from tests.models.test_masked_distributions import a_mask, bits_of

CONFIGS = Path(__file__).parents[2] / "configs"
SPACES = {"discrete": spaces.Discrete(6), "multi": spaces.MultiDiscrete([3, 4])}


def case_of(name) -> tuple[ActorCritic, Batch]:
    space = SPACES[name]
    seen = [("x", spaces.Box(-1, 1, (3,))), ("action_mask", bits_of(space))]
    model = model_of(EnvSpec("masked", spaces.Dict(seen), space))
    random = torch.Generator().manual_seed(0)
    observation = {"x": torch.randn(ROWS, 3, generator=random)}
    mask = a_mask(space, ROWS, random)
    with torch.no_grad():
        step = model.act(observation, model.draw_noise((ROWS,), random), mask=mask)
    noise = torch.randn(4, ROWS, generator=random)
    fields = {
        "log_prob": step.outputs["log_prob"] + 0.3 * noise[0],
        "advantage": noise[1],
        "target": noise[2],
        "value": step.outputs["value"] + 0.3 * noise[3],
        "action_mask": mask,
    }
    return model, Batch(observation, step.action, fields, torch.device("cpu"))


@ALL_LOSSES
def test_compiled_gradients_equal_autograd(algorithm):
    model, batch = case_of("discrete")
    assert why_not(algorithm, model) is None
    flat = FlatParameters(model.parameters())
    check(MLPGradientEngine(algorithm, model), algorithm, flat, model, batch, tolerance=2e-6)


@pytest.mark.parametrize("name", SPACES)
def test_shares_and_bfloat16_take_the_mask_of_their_rows(name):
    model, batch = case_of(name)
    flat = FlatParameters(model.parameters())
    engine = ShardedEngine(CLIPPED, model, flat, 3, bf16=False)
    check(engine, CLIPPED, flat, model, batch, tolerance=1e-5)
    engine = AutogradEngine(CLIPPED, model, flat, compiled=False, bf16=True)
    check(engine, CLIPPED, flat, model, batch, tolerance=0.05)


def test_logits_of_invalid_actions_get_no_gradient():
    model, batch = case_of("discrete")
    batch.fields["action_mask"][:, 2] = False
    batch.action[""][:] = batch.fields["action_mask"].int().argmax(-1)
    for compiled in (True, False):
        flat = FlatParameters(model.parameters())
        engine = (
            MLPGradientEngine(CLIPPED, model)
            if compiled
            else AutogradEngine(CLIPPED, model, flat, compiled=False, bf16=False)
        )
        engine.load(batch, {"learning_rate": 1.0, "clip_range": 0.2, "entropy_coef": 0.01})
        engine.forward(torch.arange(ROWS))
        engine.backward()
        assert model.actor_head.bias.grad[2] == 0
        assert model.actor_head.bias.grad.isfinite().all()
        assert model.actor_head.bias.grad.abs().sum() > 0


@pytest.mark.parametrize("actions", ["discrete", "nested"])
@pytest.mark.parametrize("algorithm", [PPOConfig(), A2CConfig(vtrace=True)])
def test_the_ratio_of_an_unchanged_policy_is_one(actions, algorithm):
    config = Config(
        env=EnvConfig(id="tests.masked_env:CheckingEnv", kwargs={"actions": actions}),
        sampler=SamplerConfig(kind="serial", num_envs=4, rollout_length=16),
        model=ModelConfig(hidden_sizes=(8,)),
        algorithm=algorithm,
    )
    plan = make_plan(config)
    learner = build_learner(config, plan.env_spec)
    with make_sampler(config, plan, learner.weights()) as sampler:
        rollout = sampler.collect()
        experience = learner._experience(rollout)
        prepared = learner._algorithm.prepare(experience, learner.model)
        batch = experience.batch(learner._transfer, prepared.fields)
        rows = Minibatch(batch, torch.arange(len(batch)), {})
        log_prob, entropy, _ = rows.evaluate(learner.model)
        torch.testing.assert_close(log_prob, rows["log_prob"], atol=1e-5, rtol=1e-5)
        assert "action_mask" not in rows.observation
        assert rows["action_mask"].shape == (64, sum(plan.env_spec.choices))
        assert entropy.isfinite().all()
        if isinstance(learner._algorithm, A2C):
            plain = A2C(A2CConfig()).prepare(experience, learner.model).fields
            for name, field in plain.items():
                torch.testing.assert_close(prepared.fields[name], field, atol=1e-4, rtol=1e-4)
        metrics = learner.update(rollout)
    assert all(np.isfinite(list(metrics.values())))


def learnt(masks: str, seed: int, path) -> float:
    config = load_config(
        CONFIGS / "bandit_masked_ppo.yaml",
        [
            f"seed={seed}",
            f"run_dir={path / f'{masks}-{seed}'}",
            f"env.action_mask={masks}",
            "sampler.kind=serial",
            "evaluation.final_episodes=10",
            "logging.tensorboard=false",
        ],
    )
    return train(config).outcome.evaluation.return_mean


def test_few_valid_actions_of_many_are_learnt_in_2048_steps(tmp_path):
    # A state comes 29 times on average, and a random valid action is right once in 15 times.
    assert np.mean([learnt("auto", seed, tmp_path) for seed in (1, 2)]) >= 90
    assert learnt("off", 1, tmp_path) <= 40
