"""All gradient engines, and the compiled kernels in them, against plain autograd."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
import torch
from gymnasium import spaces

from fastrl.config import A2CConfig, BCConfig, ModelConfig, PPOConfig
from fastrl.errors import ConfigError
from fastrl.learning import build_learner
from fastrl.learning.a2c import A2C
from fastrl.learning.algorithm import Algorithm, Batch, Loss, Minibatch
from fastrl.learning.bc import BC
from fastrl.learning.gradients import AutogradEngine, FlatParameters
from fastrl.learning.mlp_gradients import MLPGradientEngine, why_not
from fastrl.learning.mlp_network import MLPNetworkEngine, why_not_network
from fastrl.learning.ppo import PPO
from fastrl.learning.shared_gradients import ShardedEngine, why_not_sharded
from fastrl.models import ActorCritic
from fastrl.spec import EnvSpec
from tests.learning.synthetic import CONTINUOUS, DISCRETE, NESTED, config_of

CLIPPED = PPO(PPOConfig(entropy_coef=0.01))
CLIPPED_VALUE = PPO(
    PPOConfig(clip_range=0.1, clip_value_range=0.3, value_coef=1.0, normalize_advantage=False)
)
PLAIN = A2C(A2CConfig(entropy_coef=0.02, value_coef=0.25))
ALL_LOSSES = pytest.mark.parametrize(
    "algorithm", [CLIPPED, CLIPPED_VALUE, PLAIN], ids=["ppo", "ppo clipped value", "a2c"]
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
CHOICES = EnvSpec(
    "choices",
    spaces.Dict(
        {
            "narrow": spaces.MultiDiscrete([4, 5]),
            "several": spaces.MultiDiscrete([70, 80]),
            "vector": spaces.Box(-1, 1, (3,)),
            "wide": spaces.Discrete(300),
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
    "choices": (CHOICES, {"normalize_observations": True}),
    "one wide choice": (EnvSpec("", spaces.Discrete(64), spaces.Discrete(3)), {}),
    "no hidden layer, narrow choice": (
        EnvSpec("", spaces.Discrete(4), spaces.Discrete(3)),
        {"hidden_sizes": ()},
    ),
    "bytes": (BYTES, {"normalize_observations": True}),
    "larger critic": (CONTINUOUS, {"hidden_sizes": (8,), "critic_hidden_sizes": (16, 4)}),
    "linear critic": (DISCRETE, {"critic_hidden_sizes": ()}),
    "bounded log_std": (CONTINUOUS, {"log_std_bounds": (-0.8, 0.5)}),
}
ROWS = 50


class Twice(PPO):
    """A custom loss that evaluates the policy twice: the second time on other observations."""

    def __init__(self) -> None:
        super().__init__(PPOConfig(entropy_coef=0.01))

    def loss(self, minibatch, policy):
        total, metrics = super().loss(minibatch, policy)
        shifted = {
            path: leaf + 0.1 if leaf.dtype.is_floating_point else leaf
            for path, leaf in minibatch.observation.items()
        }
        outputs, value = policy(shifted)
        return Loss(total + 0.1 * outputs.square().mean() + value.sin().mean(), metrics)


class Smooth(Algorithm[A2CConfig]):
    """Penalises the gradient of its loss by the parameters, and that of values by observations."""

    def loss(self, minibatch, policy):
        log_prob, _, value = minibatch.evaluate(policy)
        weight = policy.actor_head.weight
        (by_weight,) = torch.autograd.grad(log_prob.mean(), weight, create_graph=True)
        leaf = minibatch.observation[""].clone().requires_grad_()
        (by_leaf,) = torch.autograd.grad(policy({"": leaf})[1].sum(), leaf, create_graph=True)
        total = value.mean() + by_weight.square().sum() + by_leaf.square().mean()
        return Loss(total, {"slope": by_leaf.square().mean()})


class Branched(PPO):
    """Depends on a number in a way that no program of torch can have."""

    def __init__(self) -> None:
        super().__init__(PPOConfig())

    def loss(self, minibatch, policy):
        total, metrics = super().loss(minibatch, policy)
        return Loss(2 * total if float(metrics["entropy"]) > 0.5 else total, metrics)


class Decayed(PPO):
    """Reads parameters itself, and evaluates the policy for no rows at all."""

    def __init__(self) -> None:
        super().__init__(PPOConfig())

    def loss(self, minibatch, policy):
        total, metrics = super().loss(minibatch, policy)
        none = {path: leaf[:0] for path, leaf in minibatch.observation.items()}
        decay = policy.actor_head.weight.square().sum() + policy(none)[1].sum()
        return Loss(total + 0.1 * decay, metrics)


class InPlace(PPO):
    """Changes outputs of the policy in place, and evaluates it again."""

    def __init__(self) -> None:
        super().__init__(PPOConfig())

    def loss(self, minibatch, policy):
        outputs, value = policy(minibatch.observation)
        total = outputs.mul_(0.5).square().mean() + value.add_(1.0).sin().mean()
        further, metrics = super().loss(minibatch, policy)
        return Loss(total + further, metrics)


def model_of(spec: EnvSpec, bounds="clip", seed: int = 0, **config) -> ActorCritic:
    torch.manual_seed(seed)
    model = ActorCritic(spec, ModelConfig(**{"shared_body": False, **config}), bounds)
    for parameter in model.parameters():
        # Heads start near 0, where many mistakes would not show.
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def batch_of(spec: EnvSpec, model: ActorCritic, seed: int = 0, rows: int = ROWS) -> Batch:
    """Random transitions whose probability ratios and values are on all sides of the bounds."""
    random = torch.Generator().manual_seed(seed)
    observation = {
        path: torch.randn(rows, *leaf.shape, generator=random)
        if leaf.dtype.is_floating_point
        else torch.randint(0, 4, (rows, *leaf.shape), generator=random, dtype=leaf.dtype)
        for path, leaf in spec.observation.items()
    }
    model.update_normalizers({k: 3 * v for k, v in observation.items()})
    with torch.no_grad():
        action, outputs = model.act(observation, model.draw_noise((rows,), random))[:2]
    noise = torch.randn(4, rows, generator=random)
    fields = {
        "log_prob": outputs["log_prob"] + 0.3 * noise[0],
        "advantage": noise[1],
        "target": noise[2],
        "value": outputs["value"] + 0.3 * noise[3],
    }
    return Batch(observation, action, fields, torch.device("cpu"))


def scheduled(algorithm: Algorithm) -> dict[str, float]:
    return {name: getattr(algorithm.section, name) for name in algorithm.schedules}


def by_autograd(
    algorithm: Algorithm, model: ActorCritic, batch: Batch, index: torch.Tensor
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return metrics and gradient without any engine."""
    own = algorithm.whole(Minibatch(batch, index, scheduled(algorithm)))
    loss = algorithm.loss(Minibatch(batch, index, scheduled(algorithm), own), model)
    gradients = torch.autograd.grad(loss.total, list(model.parameters()), materialize_grads=True)
    metrics = {"loss": loss.total, **loss.metrics}
    flat = torch.cat([g.flatten() for g in gradients])
    return {name: metric.detach() for name, metric in metrics.items()}, flat


def check(
    engine, algorithm: Algorithm, flat: FlatParameters, model, batch: Batch, tolerance: float = 1e-6
) -> None:
    """Tolerances are relative: of a metric to itself, of the gradient to its length."""
    engine.load(batch, scheduled(algorithm))
    for rows in (32, len(batch), 65, 18, 1):
        index = torch.randperm(len(batch))[:rows]
        expected_metrics, expected = by_autograd(algorithm, model, batch, index)
        flat.gradient.fill_(7.0)
        numbers = engine.forward(index).tolist()
        metrics = dict(zip(engine.metrics, numbers, strict=True))
        engine.backward()
        for name, metric in expected_metrics.items():
            close = pytest.approx(float(metric), rel=10 * tolerance, abs=10 * tolerance)
            assert metrics[name] == close, name
        # The error of a single value may be a small difference of large numbers.
        bound = tolerance * (10 if rows == 1 else 1)
        assert (flat.gradient - expected).norm() <= bound * expected.norm()


@ALL_LOSSES
@pytest.mark.parametrize("name", MODELS)
def test_mlp_engine_equals_autograd(name, algorithm):
    spec, config = MODELS[name]
    model = model_of(spec, **config)
    batch = batch_of(spec, model, rows=130)  # several tiles
    assert why_not(algorithm, model) is None
    flat = FlatParameters(model.parameters())
    # Rounding to float32 moves either of them by up to 1e-6 from the gradient in float64.
    check(MLPGradientEngine(algorithm, model), algorithm, flat, model, batch, tolerance=2e-6)


@pytest.mark.parametrize(
    ("spec", "bounds", "config", "tolerance"),
    [
        *((spec, "clip", config, 2e-6) for spec, config in MODELS.values()),
        (CONTINUOUS, "squash", {}, 2e-6),
        # Differences of the outputs are multiplied by the square of exp(-log_std).
        (CONTINUOUS, "clip", {"log_std": "state"}, 2e-5),
        (TWO_CHOICES, "clip", {"shared_body": True}, 2e-6),
        (NESTED, "clip", {"activation": "relu"}, 2e-6),
    ],
    ids=[*MODELS, "squash", "state", "two choices", "nested"],
)
def test_compiled_network_of_any_loss_equals_autograd(spec, bounds, config, tolerance):
    model = model_of(spec, bounds, **config)
    batch = batch_of(spec, model, rows=130)
    assert why_not_network(model) is None
    flat = FlatParameters(model.parameters())
    check(MLPNetworkEngine(Twice(), model, flat), Twice(), flat, model, batch, tolerance)


# torch's compiler imports a module of torch that torch has deprecated.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("algorithm", "why"),
    [
        (Twice(), "it reads parameters, or evaluates the policy for other observations"),
        (Decayed(), "it reads parameters, or evaluates the policy for other observations"),
        (Smooth(A2CConfig()), "it differentiates the network"),
        pytest.param(Branched(), "", marks=pytest.mark.slow),
    ],
    ids=lambda each: type(each).__name__,
)
def test_losses_that_torch_cannot_compile_are_learnt_by_autograd(algorithm, why, caplog):
    model = model_of(CONTINUOUS)
    batch = batch_of(CONTINUOUS, model)
    flat = FlatParameters(model.parameters())
    check(MLPNetworkEngine(algorithm, model, flat, True), algorithm, flat, model, batch, 1e-5)
    told = f"torch cannot compile {type(algorithm).__name__}.loss, which runs uncompiled: {why}"
    (message,) = filter(None, caplog.messages)  # those that torch traces are empty
    assert message.startswith(told)


def test_kernels_learn_the_losses_that_they_know_where_others_are_compiled_by_torch():
    learner = build_learner(config_of(PPOConfig(compile=True)), DISCRETE)
    assert isinstance(learner._engine, MLPGradientEngine)


# torch's compiler imports a module of torch that torch has deprecated.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        *((name, CLIPPED_VALUE) for name in ("discrete", "bounded log_std", "choices")),
        ("discrete", PLAIN),
    ],
)
def test_a_loss_that_torch_compiles_equals_autograd(name, algorithm):
    spec, config = MODELS[name]
    model = model_of(spec, **config)
    batch = batch_of(spec, model, rows=130)
    flat = FlatParameters(model.parameters())
    engine = MLPNetworkEngine(algorithm, model, flat, compiled=True)
    check(engine, algorithm, flat, model, batch, 2e-6)
    assert engine._compiled
    assert engine._program is not None


def test_losses_may_differentiate_the_network_twice_or_by_observations():
    model = model_of(CONTINUOUS)
    batch = batch_of(CONTINUOUS, model)
    flat = FlatParameters(model.parameters())
    algorithm = Smooth(A2CConfig())
    check(MLPNetworkEngine(algorithm, model, flat), algorithm, flat, model, batch, 1e-5)


def test_a_loss_may_change_outputs_in_place():
    model = model_of(CONTINUOUS)
    batch = batch_of(CONTINUOUS, model)
    flat = FlatParameters(model.parameters())
    check(MLPNetworkEngine(InPlace(), model, flat), InPlace(), flat, model, batch, 2e-6)


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_loss_without_the_value_leaves_that_without_gradient(is_shared):
    model = model_of(CONTINUOUS, shared_body=is_shared)
    batch = batch_of(CONTINUOUS, model, rows=130)
    flat = FlatParameters(model.parameters())
    algorithm = BC(BCConfig())
    check(MLPNetworkEngine(algorithm, model, flat), algorithm, flat, model, batch, 2e-6)


def test_frozen_parameters_of_a_compiled_network_stay():
    model = model_of(DISCRETE)
    for parameter in model.critic_body.parameters():
        parameter.requires_grad_(False)
    flat = FlatParameters(p for p in model.parameters() if p.requires_grad)
    engine = MLPNetworkEngine(PLAIN, model, flat)
    engine.load(batch_of(DISCRETE, model), scheduled(PLAIN))
    engine.forward(torch.arange(8))
    engine.backward()
    assert flat.gradient.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.critic_body.parameters())


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"activation": "gelu"}, "the activation is neither tanh nor relu"),
        ({"recurrent": "gru", "recurrent_size": 64}, "the policy has a memory"),
    ],
)
def test_other_networks_are_not_compiled_for_custom_losses(config, why):
    assert why_not_network(ActorCritic(DISCRETE, ModelConfig(**config))) == why


@ALL_LOSSES
@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS, NESTED], ids=lambda spec: spec.id)
def test_autograd_engine_equals_autograd(spec, algorithm):
    model = model_of(spec)
    batch = batch_of(spec, model)
    flat = FlatParameters(model.parameters())
    engine = AutogradEngine(algorithm, model, flat, compiled=False, bf16=False)
    check(engine, algorithm, flat, model, batch)


@ALL_LOSSES
@pytest.mark.parametrize("num_threads", [2, 3, 2 * ROWS])
@pytest.mark.parametrize("spec", [IMAGE, CONTINUOUS, NESTED], ids=lambda spec: spec.id)
def test_sharded_engine_equals_autograd(spec, num_threads, algorithm):
    model = model_of(spec)
    batch = batch_of(spec, model)
    assert why_not_sharded(algorithm, model) is None
    flat = FlatParameters(model.parameters())
    engine = ShardedEngine(algorithm, model, flat, num_threads, bf16=False)
    # Sums of a conv net have many terms.
    check(engine, algorithm, flat, model, batch, tolerance=1e-5)


def test_the_same_threads_give_the_same_numbers():
    model = model_of(IMAGE)
    flat = FlatParameters(model.parameters())
    engine = ShardedEngine(CLIPPED, model, flat, num_threads=3, bf16=True)
    engine.load(batch_of(IMAGE, model), scheduled(CLIPPED))
    gradients = set()
    for _ in range(20):
        engine.forward(torch.arange(ROWS))
        engine.backward()
        gradients.add(tuple(flat.gradient.tolist()))
    assert len(gradients) == 1


@pytest.mark.parametrize("spec", [IMAGE, DISCRETE], ids=lambda spec: spec.id)
def test_custom_forward_passes_see_a_minibatch_as_a_whole(spec):
    model = Doubled(spec, ModelConfig())
    for reason in (why_not_sharded, why_not):
        assert reason(CLIPPED, model) == "Doubled.forward is custom"
    model = ActorCritic(spec, ModelConfig())
    model.actor_body.mlp = torch.nn.Sequential(torch.nn.BatchNorm1d(4))
    for reason in (why_not_sharded, why_not):
        assert reason(CLIPPED, model) == "ActorCritic.actor_body has a BatchNorm1d"


def test_a_subclass_that_computes_the_same_is_as_fast():
    assert why_not(CLIPPED, Renamed(DISCRETE, ModelConfig())) is None
    assert why_not_sharded(CLIPPED, Renamed(IMAGE, ModelConfig())) is None


def test_mlp_engine_sees_parameters_that_are_loaded_later():
    model, other = model_of(DISCRETE), model_of(DISCRETE, seed=1)
    batch = batch_of(DISCRETE, model)
    flat = FlatParameters(model.parameters())
    engine = MLPGradientEngine(CLIPPED, model)
    model.load_state_dict(other.state_dict())
    check(engine, CLIPPED, flat, model, batch)


@pytest.mark.parametrize("name", ["discrete", "larger critic", "shared body"])
def test_second_thread_changes_no_number(name):
    spec, config = MODELS[name]
    model = model_of(spec, **config)
    batch = batch_of(spec, model, rows=130)
    flat = FlatParameters(model.parameters())
    found = []
    for threads in (1, 2):
        engine = MLPGradientEngine(CLIPPED, model, threads)
        random = torch.Generator().manual_seed(2)
        for _ in range(3):
            engine.load(batch, scheduled(CLIPPED))
            for index in torch.randint(130, (100, 70), generator=random):
                flat.gradient.fill_(7.0)
                found.append(torch.cat([engine.forward(index), flat.gradient.double()]))
            engine.release()
    alone, together = torch.stack(found).chunk(2)
    assert torch.equal(alone, together)


@pytest.mark.parametrize("rows", [[], [ROWS], [3, -1]], ids=str)
def test_rows_outside_the_batch_are_one_line(rows):
    model = model_of(DISCRETE)
    FlatParameters(model.parameters())
    engine = MLPGradientEngine(CLIPPED, model)
    engine.load(batch_of(DISCRETE, model), scheduled(CLIPPED))
    with pytest.raises(ConfigError, match=r"must be rows of the batch.* from 0 to 49"):
        engine.forward(torch.tensor(rows, dtype=torch.int64))


def test_rows_may_be_any_integers_in_any_layout():
    model = model_of(DISCRETE)
    flat = FlatParameters(model.parameters())
    engine = MLPGradientEngine(CLIPPED, model)
    engine.load(batch_of(DISCRETE, model), scheduled(CLIPPED))
    found = []
    for index in (torch.arange(0, ROWS, 2), torch.arange(ROWS, dtype=torch.int32)[::2]):
        engine.forward(index)
        found.append(flat.gradient.clone())
    assert torch.equal(*found)


def test_ratio_of_an_unchanged_policy_is_1():
    model = model_of(CONTINUOUS)
    batch = batch_of(CONTINUOUS, model)
    with torch.no_grad():
        batch.fields["log_prob"][:] = model.evaluate(batch.observation, batch.action)[0]
    FlatParameters(model.parameters())
    engine = MLPGradientEngine(CLIPPED, model)
    engine.load(batch, scheduled(CLIPPED))
    metrics = dict(zip(engine.metrics, engine.forward(torch.arange(ROWS)).tolist(), strict=True))
    assert metrics["approx_kl"] == pytest.approx(0.0, abs=1e-9)
    assert metrics["clip_fraction"] == 0.0


class Doubled(ActorCritic):
    """Computes something else."""

    def forward(self, observation):
        parameters, value = super().forward(observation)
        return 2 * parameters, value


class Renamed(ActorCritic):
    """Computes the same, and has a method of its own."""

    def value_of_nothing(self) -> float:
        return 0.0


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: Doubled(DISCRETE, ModelConfig()), id="subclass"),
        pytest.param(lambda: ActorCritic(NESTED, ModelConfig()), id="nested"),
        pytest.param(lambda: ActorCritic(DISCRETE, ModelConfig(activation="gelu")), id="gelu"),
        pytest.param(
            lambda: ActorCritic(CONTINUOUS, ModelConfig(), action_bounds="squash"), id="squash"
        ),
        pytest.param(lambda: ActorCritic(DISCRETE, ModelConfig()).double(), id="float64"),
        pytest.param(lambda: ActorCritic(TWO_CHOICES, ModelConfig()), id="two choices"),
        pytest.param(lambda: ActorCritic(IMAGE, ModelConfig()), id="image"),
    ],
)
def test_mlp_engine_leaves_other_models_to_autograd(build):
    assert why_not(CLIPPED, build()) is not None


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("frozen", ["actor_head", "critic_head", "actor_body"])
def test_frozen_parameters_are_left_to_autograd_and_stay(frozen, num_threads):
    model = model_of(DISCRETE)
    for parameter in getattr(model, frozen).parameters():
        parameter.requires_grad_(False)
    assert why_not(CLIPPED, model) == "some parameters are frozen"
    flat = FlatParameters(model.parameters())
    engine = (
        AutogradEngine(CLIPPED, model, flat, compiled=False, bf16=False)
        if num_threads == 1
        else ShardedEngine(CLIPPED, model, flat, num_threads, bf16=False)
    )
    engine.load(batch_of(DISCRETE, model), scheduled(CLIPPED))
    engine.forward(torch.arange(8))
    engine.backward()
    assert flat.gradient.abs().sum() > 0
    assert all(parameter.grad is None for parameter in getattr(model, frozen).parameters())


def test_what_fails_in_a_thread_is_raised_and_the_next_minibatch_is_right(monkeypatch):
    model = model_of(IMAGE)
    batch = batch_of(IMAGE, model)
    flat = FlatParameters(model.parameters())
    engine = ShardedEngine(CLIPPED, model, flat, num_threads=3, bf16=False)
    engine.load(batch, scheduled(CLIPPED))
    evaluate = model.evaluate

    def failing(observation, action):
        if len(action[""]) == 16:  # the last of the shards of 50
            raise MemoryError("on purpose")
        return evaluate(observation, action)

    with monkeypatch.context() as patched:
        patched.setattr(model, "evaluate", failing)
        with pytest.raises(MemoryError, match="on purpose"):
            engine.forward(torch.arange(50))
    check(engine, CLIPPED, flat, model, batch, tolerance=1e-5)


def test_threads_end_with_their_engine():
    before = set(threading.enumerate())
    model = model_of(IMAGE)
    flat = FlatParameters(model.parameters())
    engine = ShardedEngine(CLIPPED, model, flat, num_threads=3, bf16=False)
    engine.load(batch_of(IMAGE, model), scheduled(CLIPPED))
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
    _, exact = by_autograd(PLAIN, model, batch, index)
    flat = FlatParameters(model.parameters())
    engine = (
        AutogradEngine(PLAIN, model, flat, compiled=False, bf16=True)
        if num_threads == 1
        else ShardedEngine(PLAIN, model, flat, num_threads, bf16=True)
    )
    engine.load(batch, scheduled(PLAIN))
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
    for algorithm in (CLIPPED, CLIPPED_VALUE):
        engine = AutogradEngine(algorithm, model, flat, compiled=True, bf16=False)
        check(engine, algorithm, flat, model, batch, tolerance=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS, NESTED], ids=lambda spec: spec.id)
def test_gpu_gives_the_gradient_that_the_cpu_gives(spec):
    model = model_of(spec)
    batch = batch_of(spec, model)
    metrics, expected = by_autograd(CLIPPED, model, batch, torch.arange(ROWS))
    flat = FlatParameters(model.cuda().parameters())
    engine = AutogradEngine(CLIPPED, model, flat, compiled=False, bf16=False)
    there = (
        {k: v.cuda() for k, v in tensors.items()}
        for tensors in (batch.observation, batch.action, batch.fields)
    )
    engine.load(Batch(*there, torch.device("cuda")), scheduled(CLIPPED))
    found = engine.forward(torch.arange(ROWS, device="cuda"))
    engine.backward()
    expected_metrics = torch.stack([metrics[name].float() for name in engine.metrics])
    torch.testing.assert_close(found.cpu(), expected_metrics, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(flat.gradient.cpu(), expected, rtol=1e-3, atol=1e-4)


@ALL_LOSSES
@pytest.mark.parametrize("bounds", [None, (-0.8, 0.5)])
def test_autograd_serves_standard_deviations_that_depend_on_the_state(bounds, algorithm):
    model = model_of(CONTINUOUS, log_std="state", log_std_bounds=bounds)
    told = "standard deviations depend on the state, as model.log_std says"
    assert why_not(algorithm, model) == told
    batch = batch_of(CONTINUOUS, model)
    flat = FlatParameters(model.parameters())
    engine = AutogradEngine(algorithm, model, flat, compiled=False, bf16=False)
    check(engine, algorithm, flat, model, batch)


def model_with(log_std) -> ActorCritic:
    model = model_of(CONTINUOUS)
    model.distribution.log_std.data = torch.tensor(log_std)
    return model


@pytest.mark.parametrize("log_std", [[0.1, 300.0], [20.0, 25.0]], ids=str)
def test_mlp_engine_equals_autograd_beyond_the_bounds_of_log_std(log_std):
    model = model_with(log_std)
    batch = batch_of(CONTINUOUS, model)
    flat = FlatParameters(model.parameters())
    check(MLPGradientEngine(PLAIN, model), PLAIN, flat, model, batch)


@pytest.mark.parametrize(("low", "is_free"), [(-20.0, True), (-20.5, False), (-300.0, False)])
def test_log_std_has_no_gradient_beyond_its_bounds(low, is_free):
    # The two ways to compute it differ here: a sample that is so near to the mean is rounded.
    model = model_with([low, 0.1])
    batch, index = batch_of(CONTINUOUS, model), torch.arange(ROWS)
    flat = FlatParameters(model.parameters())
    engine = MLPGradientEngine(PLAIN, model)
    engine.load(batch, scheduled(PLAIN))
    flat.gradient.fill_(7.0)
    engine.forward(index)
    engine.backward()
    found = model.distribution.log_std.grad
    assert found is not None
    assert flat.gradient.isfinite().all()
    loss = PLAIN.loss(Minibatch(batch, index, scheduled(PLAIN)), model)
    (expected,) = torch.autograd.grad(loss.total, model.distribution.log_std)
    for gradient in (found, expected):
        assert (gradient != 0).tolist() == [is_free, True]
