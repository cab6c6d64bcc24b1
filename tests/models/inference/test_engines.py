"""Every engine against the model it runs."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrl.config import ModelConfig
from fastrl.errors import EnvError
from fastrl.models import (
    ActorCritic,
    EagerEngine,
    PolicyOutput,
    StagedEngine,
    build_engine,
)
from fastrl.spec import EnvSpec

MlpEngine = pytest.importorskip("fastrl.models.inference.mlp_engine").MlpEngine

VECTOR = spaces.Box(-np.inf, np.inf, (5,), np.float32)
SEVERAL = spaces.Dict(
    {
        "a": VECTOR,
        "b": spaces.Box(-1, 1, (), np.float32),
        "c": spaces.Box(-1, 1, (2, 3), np.float32),
    }
)
CHOICES = spaces.Dict(
    {
        "narrow": spaces.MultiDiscrete([[4, 5], [6, 7]]),
        "several": spaces.MultiDiscrete([70, 80]),
        "vector": VECTOR,
        "wide": spaces.Discrete(300, start=-2),
    }
)
BOX = spaces.Box(-1.0, 1.0, (2, 3), np.float32)
ACTIONS = {
    "Discrete": spaces.Discrete(4, start=3),
    "single Discrete": spaces.Discrete(1),
    "MultiDiscrete": spaces.MultiDiscrete([[2, 7], [3, 4]]),
    "MultiBinary": spaces.MultiBinary((3, 2)),
    "Box": BOX,
    "nested": spaces.Dict(
        {
            "turn": spaces.Discrete(3),
            "arm": spaces.Tuple((BOX, spaces.MultiBinary(3), BOX)),
            "keys": spaces.MultiDiscrete([2, 5]),
        }
    ),
}
ENGINES = {
    "eager": EagerEngine,
    "compiled": MlpEngine,
    "staged": lambda model: StagedEngine(model, torch.device("cpu")),
}


def model_for(action_space, observation_space=VECTOR, action_bounds="clip", seed=0, **config):
    """Return a policy whose outputs are far from uniform, as after some training."""
    torch.manual_seed(seed)
    spec = EnvSpec("test", observation_space, action_space)
    model = ActorCritic(spec, ModelConfig(**config), action_bounds)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


class Batch:
    """Inputs of n rows, and poisoned outputs."""

    def __init__(self, model, rows, seed=1):
        generator = torch.Generator().manual_seed(seed)
        self.observation = {
            path: torch.randn((rows, *spec.shape), generator=generator)
            if spec.dtype.is_floating_point
            else torch.randint(0, 4, (rows, *spec.shape), generator=generator)
            for path, spec in model.observation_specs.items()
        }
        self.noise = model.draw_noise((rows,), generator)
        size = model.initial_state(1).shape[1]
        self.given = {"state": torch.randn(rows, size, generator=generator)} if size else {}
        parts = model.distribution.parts.items()
        self.out = PolicyOutput(
            {path: torch.full((rows, *part.shape), 77, dtype=part.dtype) for path, part in parts},
            {name: torch.full((rows,), math.nan) for name in model.outputs},
            torch.full((rows, size), math.nan) if size else None,
        )

    def run(self, engine):
        engine.bind(self.observation, self.noise, self.out, **self.given)()
        return self


def assert_agrees(model, batch):
    """Compare outputs with the model's own, but for noise on the edge between two actions."""
    with torch.no_grad():
        action, outputs, state = model.act(batch.observation, batch.noise, **batch.given)
    if batch.given:
        torch.testing.assert_close(batch.out.state, state, atol=1e-5, rtol=1e-5)
    log_prob, value = outputs["log_prob"], outputs["value"]
    torch.testing.assert_close(batch.out.outputs["value"], value, atol=1e-5, rtol=1e-5)
    same = torch.ones(len(value), dtype=torch.bool)
    for path, part in model.distribution.parts.items():
        found, expected = batch.out.action[path], action[path]
        assert found.dtype == expected.dtype == part.dtype
        if part.normal_noise:
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        else:
            same &= (found == expected).flatten(1).all(1) if found.ndim > 1 else found == expected
    assert same.float().mean() > 0.99 or (~same).sum() <= 1
    torch.testing.assert_close(
        batch.out.outputs["log_prob"][same], log_prob[same], atol=2e-5, rtol=1e-5
    )


@pytest.mark.parametrize("name", ACTIONS)
@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_gives_what_the_model_gives(engine, name):
    for action_bounds in ("clip", "squash") if name in ("Box", "nested") else ("clip",):
        model = model_for(ACTIONS[name], action_bounds=action_bounds)
        running = ENGINES[engine](model)
        for rows in (1, 3, 17, 64, 100):
            assert_agrees(model, Batch(model, rows).run(running))


@pytest.mark.parametrize("name", ACTIONS)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_sharp_policy_samples_its_most_probable_actions(engine, name):
    model = model_for(ACTIONS[name])
    with torch.no_grad():
        expected = model.mode(Batch(model, 100).observation).action
    # Sizes of categoricals differ.
    is_possible = name not in ("MultiDiscrete", "nested")
    assert model.distribution.sharpen(model.actor_head) == is_possible
    if is_possible:
        found = Batch(model, 100).run(ENGINES[engine](model)).out.action
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@given(
    st.lists(st.integers(1, 70), max_size=4),
    st.sampled_from(["tanh", "relu", "elu", "silu"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([VECTOR, SEVERAL, CHOICES]),
    st.sampled_from(sorted(ACTIONS)),
    st.integers(1, 40),
    st.fixed_dictionaries(
        {
            "critic_hidden_sizes": st.none() | st.lists(st.integers(1, 20), max_size=3),
            "log_std": st.sampled_from(["constant", "state"]),
            "log_std_bounds": st.sampled_from([None, (-1.0, 0.5)]),
            "recurrent": st.sampled_from([None, "gru", "lstm"]),
            "recurrent_size": st.integers(1, 40),
            "recurrent_layers": st.integers(1, 3),
        }
    ),
    st.sampled_from(["clip", "squash"]),
)
def test_any_mlp_is_compiled_right(
    sizes, activation, shared, normalize, observation, name, rows, keys, action_bounds
):
    if shared:
        keys["critic_hidden_sizes"] = None
    if observation is CHOICES:
        # Without hidden layers it is not compiled.
        sizes, keys["critic_hidden_sizes"] = sizes or [3], keys["critic_hidden_sizes"] or None
    model = model_for(
        ACTIONS[name],
        observation,
        action_bounds,
        hidden_sizes=tuple(sizes),
        activation=activation,
        shared_body=shared,
        normalize_observations=normalize,
        **keys,
    )
    model.update_normalizers(
        {path: leaf * 3 + 1 for path, leaf in Batch(model, 50, seed=2).observation.items()}
    )
    batch = Batch(model, rows).run(MlpEngine(model))
    assert_agrees(model, batch)
    values = torch.full((rows,), math.nan)
    MlpEngine(model).bind_values(batch.observation, values, **batch.given)()
    assert torch.equal(values, batch.out.outputs["value"])


@pytest.mark.parametrize("space", [spaces.Discrete(300), spaces.MultiDiscrete([3, 4])])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_choice_that_is_no_option_is_an_error(engine, space):
    model = model_for(ACTIONS["Discrete"], space)
    running, batch = ENGINES[engine](model), Batch(model, 20)
    for wrong in (-1, 300):
        batch.observation[""][7] = wrong
        with pytest.raises(EnvError, match="an observation is not in its space"):
            batch.run(running)


@pytest.mark.parametrize("engine", ENGINES)
def test_values_alone_are_the_models(engine):
    model = model_for(ACTIONS["Discrete"], shared_body=False)
    batch, values = Batch(model, 21), torch.empty(21)
    ENGINES[engine](model).values(batch.observation, values)
    with torch.no_grad():
        torch.testing.assert_close(values, model.value(batch.observation), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_bound_calls_use_loaded_weights_and_rewritten_inputs(engine):
    config = {"normalize_observations": True}
    first = model_for(ACTIONS["nested"], seed=0, **config)
    second = model_for(ACTIONS["nested"], seed=5, **config)
    second.update_normalizers({"": torch.randn(50, 5) * 4})
    running, batch = ENGINES[engine](first), Batch(first, 30)
    call = running.bind(batch.observation, batch.noise, batch.out)
    call()
    running.load(second.state_dict())
    changed = Batch(second, 30, seed=8)
    # Some of it beyond ten standard deviations, where normalisation clips.
    batch.observation[""].copy_(changed.observation[""]).mul_(30)
    batch.noise.copy_(changed.noise)
    call()
    assert_agrees(second, batch)
    running.values(batch.observation, batch.out.outputs["value"].fill_(math.nan))
    assert_agrees(second, batch)


class Regularised(ActorCritic):
    """A user's model, which computes otherwise while it is trained."""

    def __init__(self, env_spec, config):
        super().__init__(env_spec, config)
        self.norm, self.dropout = torch.nn.BatchNorm1d(5), torch.nn.Dropout(0.5)

    def forward(self, observation):
        return super().forward({"": self.dropout(self.norm(observation[""]))})


@pytest.mark.parametrize("engine", ["eager", "staged"])
def test_engines_infer_and_do_not_train(engine):
    """Batch normalisation takes a single row then, and nothing but the noise is random."""
    model = Regularised(EnvSpec("test", VECTOR, ACTIONS["Box"]), ModelConfig())
    running = ENGINES[engine](model)
    first, again = (Batch(model, 1).run(running) for _ in range(2))
    assert torch.equal(first.out.outputs["value"], again.out.outputs["value"])
    assert torch.equal(first.out.action[""], again.out.action[""])
    assert model.training


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_has_its_own_copy_of_the_weights(engine):
    model = model_for(ACTIONS["Discrete"])
    running, before = ENGINES[engine](model), Batch(model, 9)
    before.run(running)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    after = Batch(model, 9).run(running)
    assert torch.equal(after.out.outputs["value"], before.out.outputs["value"])
    running.load(model_for(ACTIONS["Discrete"], seed=3).state_dict())
    assert all((parameter == 0).all() for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def spread(tensor, axis_length=3):
    """Return the same numbers with strides as in a larger table, whose other cells are 55."""
    wide = torch.full((len(tensor), axis_length, *tensor.shape[1:]), 55, dtype=tensor.dtype)
    wide[:, 1] = tensor
    return wide, wide[:, 1]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["nested", "MultiDiscrete"])
def test_rows_need_not_be_contiguous(engine, name):
    model = model_for(ACTIONS[name])
    dense, batch = Batch(model, 19), Batch(model, 19)
    tables = []
    batch.observation = {path: spread(leaf)[1] for path, leaf in batch.observation.items()}
    batch.noise = spread(batch.noise)[1]
    out = {}
    for path, leaf in batch.out.action.items():
        table, out[path] = spread(leaf)
        tables.append(table)
    log_prob_table, log_prob = spread(batch.out.outputs["log_prob"])
    value_table, value = spread(batch.out.outputs["value"])
    batch.out = PolicyOutput(out, {"log_prob": log_prob, "value": value})
    running = ENGINES[engine](model)
    batch.run(running)
    dense.run(running)
    torch.testing.assert_close(batch.out.outputs["log_prob"], dense.out.outputs["log_prob"])
    for path, leaf in batch.out.action.items():
        torch.testing.assert_close(leaf, dense.out.action[path])
    for table in (*tables, log_prob_table, value_table):
        assert (table[:, [0, 2]] == 55).all()


@settings(max_examples=15)
@given(st.integers(1, 60), st.integers(0, 59), st.integers(1, 60))
def test_a_compiled_row_does_not_depend_on_its_batch(rows, start, length):
    model = model_for(ACTIONS["nested"])
    whole = Batch(model, 60)
    part = slice(start, min(start + length, 60))
    engine = MlpEngine(model)
    whole.run(engine)
    alone = Batch(model, 60)
    outs = PolicyOutput(
        {path: leaf[part] for path, leaf in alone.out.action.items()},
        {name: rows[part] for name, rows in alone.out.outputs.items()},
    )
    engine.act({"": alone.observation[""][part]}, alone.noise[part], outs)
    assert torch.equal(outs.outputs["value"], whole.out.outputs["value"][part])
    assert torch.equal(outs.outputs["log_prob"], whole.out.outputs["log_prob"][part])
    for path, leaf in outs.action.items():
        assert torch.equal(leaf, whole.out.action[path][part])


def test_impossible_categories_are_never_sampled_by_compiled_code():
    model = model_for(spaces.Discrete(3), hidden_sizes=())
    with torch.no_grad():
        model.actor_head.weight.zero_()
        model.actor_head.bias.copy_(torch.tensor([-1e9, 0.0, -1e9]))
    batch = Batch(model, 4)
    batch.noise.copy_(torch.tensor([[0.0], [1e-45], [1 - 2**-24], [1.0]]))
    batch.run(MlpEngine(model))
    assert batch.out.action[""].tolist() == [1, 1, 1, 1]
    assert batch.out.outputs["log_prob"].tolist() == [0.0] * 4


def test_samples_of_compiled_code_follow_the_probabilities():
    model = model_for(spaces.Discrete(3), hidden_sizes=())
    with torch.no_grad():
        model.actor_head.weight.zero_()
        model.actor_head.bias.copy_(torch.tensor([0.2, 0.3, 0.5]).log())
    batch = Batch(model, 100_000).run(build_engine(model))
    found = torch.bincount(batch.out.action[""], minlength=3)
    expected = torch.tensor([20_000.0, 30_000.0, 50_000.0])
    # The 99.9 % quantile of chi-square for 2 degrees of freedom.
    assert ((found - expected) ** 2 / expected).sum() < 13.82


def test_a_diverged_policy_shows():
    model = model_for(ACTIONS["Discrete"])
    with torch.no_grad():
        for body in (model.actor_body, model.critic_body):
            body.mlp[0].weight.fill_(math.nan)
    batch = Batch(model, 5).run(MlpEngine(model))
    assert batch.out.outputs["value"].isnan().all()
    assert batch.out.outputs["log_prob"].isnan().all()
    assert ((batch.out.action[""] >= 0) & (batch.out.action[""] < 4)).all()


def test_staging_serves_batches_that_grow_and_shrink():
    model = model_for(ACTIONS["nested"])
    engine = StagedEngine(model, torch.device("cpu"))
    batches = [Batch(model, rows, seed=rows) for rows in (5, 40, 12)]
    calls = [engine.bind(b.observation, b.noise, b.out) for b in batches]
    for call in calls:
        call()
    for batch in batches:
        assert_agrees(model, batch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda b: b.observation.update({"": torch.zeros(6, 5)}),
            r"observation '' must be \[7, 5\]",
        ),
        (lambda b: b.observation.update({"": torch.zeros(7, 5).double()}), "float64"),
        (lambda b: b.out.action.update({"": torch.zeros(7)}), "action '' must be"),
        (lambda b: b.observation.update({"": torch.zeros(7, 0).expand(7, 0)}), "must be"),
    ],
)
def test_compiled_code_refuses_tensors_that_do_not_fit(change, message):
    model = model_for(ACTIONS["Discrete"])
    batch = Batch(model, 7)
    change(batch)
    with pytest.raises(ValueError, match=message):
        batch.run(MlpEngine(model))


@pytest.mark.parametrize("log_std", [-300.0, 300.0])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["constant", "state"])
def test_log_std_is_bounded_before_actions_overflow(engine, log_std, kind):
    model = model_for(BOX, log_std=kind)
    with torch.no_grad():
        model.distribution.log_std.fill_(log_std)
        if kind == "state":
            model.actor_head.bias[6:] = log_std
    batch = Batch(model, 9).run(ENGINES[engine](model))
    assert_agrees(model, batch)
    for numbers in (batch.out.action[""], batch.out.outputs["log_prob"]):
        assert numbers.isfinite().all()
