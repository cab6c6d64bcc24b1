"""All gradient engines, and the compiled kernels in them, against plain autograd."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
import torch
from gymnasium import spaces

from fastrl.config import ModelConfig
from fastrl.learning import mlp_gradients, sharded_gradients
from fastrl.learning.batch import Batch
from fastrl.learning.gradients import AutogradEngine
from fastrl.learning.mlp_gradients import MLPEngine
from fastrl.learning.objective import ObjectiveSettings, objective
from fastrl.learning.parameters import FlatParameters
from fastrl.learning.sharded_gradients import ShardedEngine
from fastrl.models import ActorCritic
from fastrl.spec import EnvSpec
from tests.learning.synthetic import CONTINUOUS, DISCRETE, NESTED

PPO = ObjectiveSettings(0.2, None, 0.01, 0.5, normalize_advantage=True)
PPO_CLIPPED_VALUE = ObjectiveSettings(0.1, 0.3, 0.0, 1.0, normalize_advantage=False)
A2C = ObjectiveSettings(None, None, 0.02, 0.25, normalize_advantage=False)
ALL_SETTINGS = pytest.mark.parametrize(
    "settings", [PPO, PPO_CLIPPED_VALUE, A2C], ids=["ppo", "ppo clipped value", "a2c"]
)

TWO_LEAVES = EnvSpec(
    "two leaves",
    spaces.Dict({"a": spaces.Box(-1, 1, (3,)), "b": spaces.Box(-1, 1, (2, 2))}),
    spaces.Box(-1, 1, (2, 3)),
)
TWO_CHOICES = EnvSpec("two choices", spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([2, 3]))
BYTES = EnvSpec(
    "bytes",
    spaces.Dict(
        {
            "bits": spaces.Box(0, 1, (4,), np.uint8),
            "levels": spaces.Box(np.array([1, 2], np.uint8), np.array([9, 4], np.uint8)),
        }
    ),
    spaces.Discrete(3),
)
IMAGE = EnvSpec("image", spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.Discrete(2))
MODELS = {
    "discrete": (DISCRETE, {}),
    "continuous": (CONTINUOUS, {}),
    "shared body": (CONTINUOUS, {"shared_body": True}),
    "relu": (DISCRETE, {"activation": "relu", "hidden_sizes": (8, 16, 4)}),
    "no hidden layer": (DISCRETE, {"hidden_sizes": (), "shared_body": True}),
    "two leaves": (TWO_LEAVES, {"normalize_observations": True}),
    "bytes": (BYTES, {"normalize_observations": True}),
}
ROWS = 50


def model_of(spec: EnvSpec, seed: int = 0, **config) -> ActorCritic:
    torch.manual_seed(seed)
    model = ActorCritic(spec, ModelConfig(**{"shared_body": False, **config}))
    for parameter in model.parameters():
        # Heads start near 0, where many mistakes would not show.
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def batch_of(spec: EnvSpec, model: ActorCritic, seed: int = 0) -> Batch:
    """Random transitions whose probability ratios and values are on all sides of the bounds."""
    random = torch.Generator().manual_seed(seed)
    observation = {
        path: torch.randn(ROWS, *leaf.shape, generator=random)
        if leaf.dtype.is_floating_point
        else torch.randint(0, 4, (ROWS, *leaf.shape), generator=random, dtype=leaf.dtype)
        for path, leaf in spec.observation.items()
    }
    model.update_normalizers({k: 3 * v for k, v in observation.items()})
    with torch.no_grad():
        action, outputs = model.act(observation, model.draw_noise((ROWS,), random))[:2]
    noise = torch.randn(4, ROWS, generator=random)
    columns = [
        outputs["log_prob"] + 0.3 * noise[0],
        noise[1],
        noise[2],
        outputs["value"] + 0.3 * noise[3],
    ]
    return Batch(observation, action, torch.stack(columns, dim=1))


def by_autograd(
    model: ActorCritic, batch: Batch, index: torch.Tensor, settings: ObjectiveSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return metrics and gradient without any engine."""
    log_prob, entropy, value = model.evaluate(
        {k: v[index] for k, v in batch.observation.items()},
        {k: v[index] for k, v in batch.action.items()},
    )
    loss, metrics = objective(log_prob, entropy, value, batch.columns[index], settings)
    gradients = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    return metrics, torch.cat([g.flatten() for g in gradients])


def check(
    engine, flat: FlatParameters, model: ActorCritic, batch: Batch, settings, atol: float = 3e-6
) -> None:
    engine.load(batch, settings)
    for rows in (32, 18, 32, 1):
        index = torch.randperm(ROWS)[:rows]
        expected_metrics, expected = by_autograd(model, batch, index, settings)
        flat.gradient.fill_(7.0)
        metrics = engine.forward(index)
        engine.backward()
        torch.testing.assert_close(metrics.float(), expected_metrics, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(flat.gradient, expected, rtol=1e-4, atol=atol)


@ALL_SETTINGS
@pytest.mark.parametrize("name", MODELS)
def test_mlp_engine_equals_autograd(name, settings):
    spec, config = MODELS[name]
    model = model_of(spec, **config)
    batch = batch_of(spec, model)
    assert mlp_gradients.supports(model)
    flat = FlatParameters(model.parameters())
    check(MLPEngine(model), flat, model, batch, settings)


@ALL_SETTINGS
@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS, NESTED], ids=lambda spec: spec.id)
def test_autograd_engine_equals_autograd(spec, settings):
    model = model_of(spec)
    batch = batch_of(spec, model)
    flat = FlatParameters(model.parameters())
    check(AutogradEngine(model, flat, compiled=False, bf16=False), flat, model, batch, settings)


@ALL_SETTINGS
@pytest.mark.parametrize("num_threads", [2, 3, 2 * ROWS])
@pytest.mark.parametrize("spec", [IMAGE, CONTINUOUS, NESTED], ids=lambda spec: spec.id)
def test_sharded_engine_equals_autograd(spec, num_threads, settings):
    model = model_of(spec)
    batch = batch_of(spec, model)
    assert sharded_gradients.supports(model)
    flat = FlatParameters(model.parameters())
    engine = ShardedEngine(model, flat, num_threads, bf16=False)
    check(engine, flat, model, batch, settings, atol=1e-4)  # sums of a conv net have many terms


def test_the_same_threads_give_the_same_numbers():
    model = model_of(IMAGE)
    flat = FlatParameters(model.parameters())
    engine = ShardedEngine(model, flat, num_threads=3, bf16=True)
    engine.load(batch_of(IMAGE, model), PPO)
    gradients = set()
    for _ in range(20):
        engine.forward(torch.arange(ROWS))
        engine.backward()
        gradients.add(tuple(flat.gradient.tolist()))
    assert len(gradients) == 1


def test_models_of_ones_own_are_not_torn_apart():
    assert not sharded_gradients.supports(Subclass(IMAGE, ModelConfig()))


def test_mlp_engine_sees_parameters_that_are_loaded_later():
    model, other = model_of(DISCRETE), model_of(DISCRETE, seed=1)
    batch = batch_of(DISCRETE, model)
    flat = FlatParameters(model.parameters())
    engine = MLPEngine(model)
    model.load_state_dict(other.state_dict())
    check(engine, flat, model, batch, PPO)


def test_ratio_of_an_unchanged_policy_is_1():
    model = model_of(CONTINUOUS)
    batch = batch_of(CONTINUOUS, model)
    with torch.no_grad():
        batch.columns[:, 0] = model.evaluate(batch.observation, batch.action)[0]
    FlatParameters(model.parameters())
    engine = MLPEngine(model)
    engine.load(batch, PPO)
    *_, kl, clipped = engine.forward(torch.arange(ROWS)).tolist()
    assert kl == pytest.approx(0.0, abs=1e-9)
    assert clipped == 0.0


class Subclass(ActorCritic):
    """May compute anything."""


@pytest.mark.parametrize(
    "model",
    [
        Subclass(DISCRETE, ModelConfig()),
        ActorCritic(NESTED, ModelConfig()),
        ActorCritic(DISCRETE, ModelConfig(activation="gelu")),
        ActorCritic(CONTINUOUS, ModelConfig(), action_bounds="squash"),
        ActorCritic(DISCRETE, ModelConfig()).double(),
        ActorCritic(TWO_CHOICES, ModelConfig()),
        ActorCritic(IMAGE, ModelConfig()),
    ],
    ids=["subclass", "nested", "gelu", "squash", "float64", "two choices", "image"],
)
def test_mlp_engine_leaves_other_models_to_autograd(model):
    assert not mlp_gradients.supports(model)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("frozen", ["actor_head", "critic_head", "actor_body"])
def test_frozen_parameters_are_left_to_autograd_and_stay(frozen, num_threads):
    model = model_of(DISCRETE)
    for parameter in getattr(model, frozen).parameters():
        parameter.requires_grad_(False)
    assert not mlp_gradients.supports(model)
    flat = FlatParameters(model.parameters())
    engine = (
        AutogradEngine(model, flat, compiled=False, bf16=False)
        if num_threads == 1
        else ShardedEngine(model, flat, num_threads, bf16=False)
    )
    engine.load(batch_of(DISCRETE, model), PPO)
    engine.forward(torch.arange(8))
    engine.backward()
    assert flat.gradient.abs().sum() > 0
    assert all(parameter.grad is None for parameter in getattr(model, frozen).parameters())


def test_what_fails_in_a_thread_is_raised_and_the_next_minibatch_is_right(monkeypatch):
    model = model_of(IMAGE)
    batch = batch_of(IMAGE, model)
    flat = FlatParameters(model.parameters())
    engine = ShardedEngine(model, flat, num_threads=3, bf16=False)
    engine.load(batch, PPO)
    evaluate = model.evaluate

    def failing(observation, action):
        if len(action[""]) == 16:  # the last of the shards of 50
            raise MemoryError("on purpose")
        return evaluate(observation, action)

    with monkeypatch.context() as patched:
        patched.setattr(model, "evaluate", failing)
        with pytest.raises(MemoryError, match="on purpose"):
            engine.forward(torch.arange(ROWS))
    check(engine, flat, model, batch, PPO, atol=1e-4)


def test_threads_end_with_their_engine():
    before = set(threading.enumerate())
    model = model_of(IMAGE)
    engine = ShardedEngine(model, FlatParameters(model.parameters()), num_threads=3, bf16=False)
    engine.load(batch_of(IMAGE, model), PPO)
    engine.forward(torch.arange(ROWS))
    started = set(threading.enumerate()) - before
    assert started
    del engine
    gc.collect()
    for thread in started:
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.parametrize("num_threads", [1, 2])
def test_bf16_gradient_points_the_same_way(num_threads):
    model = model_of(DISCRETE)
    batch = batch_of(DISCRETE, model)
    index = torch.arange(ROWS)
    _, exact = by_autograd(model, batch, index, A2C)
    flat = FlatParameters(model.parameters())
    engine = (
        AutogradEngine(model, flat, compiled=False, bf16=True)
        if num_threads == 1
        else ShardedEngine(model, flat, num_threads, bf16=True)
    )
    engine.load(batch, A2C)
    engine.forward(index)
    engine.backward()
    assert torch.cosine_similarity(flat.gradient, exact, dim=0) > 0.999
    assert not torch.equal(flat.gradient, exact)


# torch's compiler imports a module of torch that torch has deprecated.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.slow
def test_compiled_engine_equals_autograd():
    model = model_of(CONTINUOUS)
    batch = batch_of(CONTINUOUS, model)
    flat = FlatParameters(model.parameters())
    engine = AutogradEngine(model, flat, compiled=True, bf16=False)
    for settings in (PPO, PPO_CLIPPED_VALUE):
        check(engine, flat, model, batch, settings)


@pytest.mark.gpu
@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS, NESTED], ids=lambda spec: spec.id)
def test_gpu_gives_the_gradient_that_the_cpu_gives(spec):
    model = model_of(spec)
    batch = batch_of(spec, model)
    metrics, expected = by_autograd(model, batch, torch.arange(ROWS), PPO)
    flat = FlatParameters(model.cuda().parameters())
    engine = AutogradEngine(model, flat, compiled=False, bf16=False)
    there = Batch(
        {k: v.cuda() for k, v in batch.observation.items()},
        {k: v.cuda() for k, v in batch.action.items()},
        batch.columns.cuda(),
    )
    engine.load(there, PPO)
    found = engine.forward(torch.arange(ROWS, device="cuda"))
    engine.backward()
    torch.testing.assert_close(found.cpu(), metrics, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(flat.gradient.cpu(), expected, rtol=1e-3, atol=1e-4)


def model_with(log_std) -> ActorCritic:
    model = model_of(CONTINUOUS)
    model.distribution.log_std.data = torch.tensor(log_std)
    return model


@pytest.mark.parametrize("log_std", [[0.1, 300.0], [20.0, 25.0]], ids=str)
def test_mlp_engine_equals_autograd_beyond_the_bounds_of_log_std(log_std):
    model = model_with(log_std)
    batch = batch_of(CONTINUOUS, model)
    flat = FlatParameters(model.parameters())
    check(MLPEngine(model), flat, model, batch, A2C)


@pytest.mark.parametrize(("low", "is_free"), [(-20.0, True), (-20.5, False), (-300.0, False)])
def test_log_std_has_no_gradient_beyond_its_bounds(low, is_free):
    # The two ways to compute it differ here: a sample that is so near to the mean is rounded.
    model = model_with([low, 0.1])
    batch, index = batch_of(CONTINUOUS, model), torch.arange(ROWS)
    flat = FlatParameters(model.parameters())
    engine = MLPEngine(model)
    engine.load(batch, A2C)
    flat.gradient.fill_(7.0)
    engine.forward(index)
    engine.backward()
    found = model.distribution.log_std.grad
    assert found is not None
    assert flat.gradient.isfinite().all()
    (expected,) = torch.autograd.grad(
        objective(*model.evaluate(batch.observation, batch.action), batch.columns[index], A2C)[0],
        model.distribution.log_std,
    )
    for gradient in (found, expected):
        assert (gradient != 0).tolist() == [is_free, True]
