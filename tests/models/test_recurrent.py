"""Policies with a memory: their states, and the equality of steps and sequences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastrl.config import ModelConfig
from fastrl.errors import ConfigError, FastrlError
from fastrl.models import ActorCritic, Core
from tests.learning.synthetic import CONTINUOUS, DISCRETE, NESTED
from tests.test_docs import sections_with_python

KINDS = pytest.mark.parametrize("kind", ["gru", "lstm"])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks are tiny here: on a busy machine threads wait for each other, 100 times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def policy_of(kind: str, spec=DISCRETE, seed: int = 0, **config) -> ActorCritic:
    torch.manual_seed(seed)
    sizes = {"hidden_sizes": (7,), "recurrent_size": 16}
    model = ActorCritic(spec, ModelConfig(recurrent=kind, **{**sizes, **config}))
    for parameter in model.parameters():
        # Heads start near 0, where many mistakes would not show.
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def observations(spec, *leading: int) -> dict[str, torch.Tensor]:
    return {
        path: torch.randn(*leading, *leaf.shape)
        if leaf.dtype.is_floating_point
        else torch.randint(0, 4, (*leading, *leaf.shape), dtype=leaf.dtype)
        for path, leaf in spec.observation.items()
    }


def at(leaves: dict[str, torch.Tensor], time: int) -> dict[str, torch.Tensor]:
    return {path: leaf[time] for path, leaf in leaves.items()}


@KINDS
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_state_holds_every_core_and_layer(kind, shared, layers):
    model = policy_of(kind, shared_body=shared, recurrent_layers=layers)
    size = 16 * layers * (2 if kind == "lstm" else 1) * (1 if shared else 2)
    assert model.initial_state(3).shape == (3, size)
    assert not model.initial_state(3).any()
    step = model.act(observations(DISCRETE, 3), model.draw_noise((3,)), model.initial_state(3))
    assert step.state is not None
    assert step.state.shape == (3, size)
    assert step.state.abs().sum(0).all()


@given(
    kind=st.sampled_from(["gru", "lstm"]),
    spec=st.sampled_from([DISCRETE, CONTINUOUS, NESTED]),
    length=st.integers(1, 9),
    slots=st.integers(1, 20),
    size=st.sampled_from([5, 16, 48]),
    layers=st.integers(1, 2),
    shared=st.booleans(),
    ends=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_sequences_give_what_steps_give(
    kind, spec, length, slots, size, layers, shared, ends, seed
):
    config = {"recurrent_size": size, "recurrent_layers": layers, "shared_body": shared}
    model = policy_of(kind, spec, seed, **config)
    observation = observations(spec, length, slots)
    keep = torch.rand(length, slots) >= ends
    first = torch.randn(slots, model.initial_state(1).shape[1])
    state, steps, values, modes = first, [], [], []
    for time in range(length):
        state = torch.where(keep[time, :, None], state, model.initial_state(slots))
        values.append(model.value(at(observation, time), state))
        modes.append(model.mode(at(observation, time), state).state)
        noise = model.draw_noise((slots,))
        steps.append(model.act(at(observation, time), noise, state))
        assert torch.equal(steps[-1].state, modes[-1])
        state = steps[-1].state
    action = {path: torch.stack([s.action[path] for s in steps]) for path in steps[0].action}
    log_prob, entropy, value = model.evaluate(observation, action, first, keep)
    assert log_prob.shape == entropy.shape == value.shape == (length, slots)
    close = {"rtol": 1e-5, "atol": 1e-5}
    acted = torch.stack([step.outputs["log_prob"] for step in steps])
    torch.testing.assert_close(log_prob, acted, **close)
    torch.testing.assert_close(value, torch.stack(values), **close)
    torch.testing.assert_close(model.state_after(observation, first, keep), state, **close)


@KINDS
def test_a_policy_with_a_memory_needs_a_state(kind):
    model = policy_of(kind)
    observation, action = observations(DISCRETE, 4, 2), {"": torch.zeros(4, 2, dtype=torch.int64)}
    for call in (
        lambda: model.evaluate(observation, action),
        lambda: model.act(at(observation, 0), model.draw_noise((2,))),
        lambda: model.mode(at(observation, 0)),
        lambda: model.value(at(observation, 0)),
    ):
        with pytest.raises(FastrlError, match="ActorCritic has a memory and needs the state of"):
            call()


@KINDS
def test_matrices_of_gates_begin_orthogonal_and_biases_zero(kind):
    core = ActorCritic(DISCRETE, ModelConfig(recurrent=kind, recurrent_size=16)).actor_core
    assert core is not None
    for name, parameter in core.named_parameters():
        if "bias" in name:
            assert not parameter.any()
            continue
        for gate in parameter.split(16):
            torch.testing.assert_close(gate @ gate.T, torch.eye(16), rtol=0, atol=1e-5)


class Summing(Core):
    """Adds up its inputs, from -1 on, and shows the sum; defines only what it must."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.state_size = self.num_features = inputs

    def initial_state(self, n: int) -> torch.Tensor:
        return torch.full((n, self.state_size), -1.0)

    def step(self, features, state):
        return features + state, features + state


class Remembering(ActorCritic):
    def __init__(self, env_spec) -> None:
        super().__init__(env_spec, ModelConfig(hidden_sizes=(3,)))

    def build_core(self, num_features, config):
        return Summing(num_features)


def test_a_subclass_may_have_another_core():
    """Its initial state counts wherever an episode begins."""
    model = Remembering(DISCRETE)
    assert torch.equal(model.initial_state(2), torch.full((2, 6), -1.0))
    observation = observations(DISCRETE, 4, 2)
    keep = torch.tensor([[True, True], [True, False], [True, True], [False, True]])
    first = torch.randn(2, 6)
    features = model.actor_body([observation[""].flatten(0, 1)]).view(4, 2, 3)
    expected = torch.stack(
        [
            features[3, 0] - 1,
            features[1:, 1].sum(0) - 1,
        ]
    )
    after = model.state_after(observation, first, keep)
    torch.testing.assert_close(after[:, :3], expected)
    action = {"": torch.zeros(4, 2, dtype=torch.int64)}
    value = model.evaluate(observation, action, first, keep)[2]
    state = torch.where(keep[0, :, None], first, model.initial_state(2))
    torch.testing.assert_close(value[0], model.value(at(observation, 0), state))


def test_a_memory_that_does_not_fit_is_reported():
    with pytest.raises(ConfigError, match=r"model\.recurrent_size: a layer of .* does not fit"):
        policy_of("lstm", recurrent_size=2**20)


def test_the_linear_scan_of_the_guide_computes_its_steps():
    page = Path(__file__).parents[2] / "docs" / "guide" / "policies.md"
    (code,) = (code for code in sections_with_python(page) if "MinGRU" in code)
    names: dict = {"__name__": "guide"}
    exec(compile(code, page.name, "exec"), names)
    core = names["MinGRU"](5, 7)
    for length in (1, 2, 7, 16):
        features, state = torch.randn(length, 3, 5), torch.randn(3, 7)
        for keep in (None, torch.rand(length, 3) > 0.3):
            for found, expected in zip(
                core.sequence(features, state, keep),
                Core.sequence(core, features, state, keep),
                strict=True,
            ):
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@KINDS
def test_cudnn_computes_in_float32_under_autocast(kind):
    """On the CPU, where torch has the same layers."""
    core, features = policy_of(kind).actor_core, torch.randn(5, 3, 7).bfloat16()
    expected = core._by_cudnn(features.float(), core.initial_state(3), None)
    with torch.autocast("cpu", torch.bfloat16):
        found = core._by_cudnn(features, core.initial_state(3), None)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
