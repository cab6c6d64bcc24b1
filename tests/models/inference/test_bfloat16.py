"""Policies in bfloat16 agree with float32 within their precision, or run in float32."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from fastrl.config import ModelConfig
from fastrl.models import ActorCritic, EagerEngine, PolicyOutput, build_engine
from fastrl.models.inference import engines
from fastrl.spec import EnvSpec

IMAGE = spaces.Box(0, 255, (40, 40, 3), np.uint8)
SPACES = {
    "image": IMAGE,
    "vector": spaces.Box(-1, 1, (3,), np.float32),
    "both": spaces.Dict({"image": IMAGE, "vector": spaces.Box(-1, 1, (3,), np.float32)}),
}
ROWS = 16


@pytest.fixture
def able(monkeypatch):
    # PyTorch computes in it everywhere, if slowly.
    monkeypatch.setattr(engines, "why_not_bfloat16", lambda model, device: "")


def model_for(name, shared=True, seed=0):
    torch.manual_seed(seed)
    spec = EnvSpec("test", SPACES[name], spaces.Discrete(4))
    return ActorCritic(spec, ModelConfig(hidden_sizes=(16,), conv_features=16, shared_body=shared))


def run(engine, model):
    generator = torch.Generator().manual_seed(1)
    observation = {
        path: (torch.rand(ROWS, *leaf.shape, generator=generator) * 200 / 255).to(leaf.dtype)
        if leaf.dtype.is_floating_point
        else torch.randint(0, 255, (ROWS, *leaf.shape), generator=generator, dtype=leaf.dtype)
        for path, leaf in model.observation_specs.items()
    }
    action = {
        path: torch.zeros((ROWS, *part.shape), dtype=part.dtype)
        for path, part in model.distribution.parts.items()
    }
    out = PolicyOutput(action, {name: torch.zeros(ROWS) for name in model.outputs})
    engine.act(observation, model.draw_noise((ROWS,), torch.Generator().manual_seed(2)), out)
    values = torch.zeros(ROWS)
    engine.values(observation, values)
    return action, out, values


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", SPACES)
def test_it_agrees_with_float32_within_its_precision(able, name, shared, caplog):
    model = model_for(name, shared)
    engine = build_engine(model, name="bfloat16")
    assert not caplog.records
    action, out, values = run(engine, model)
    expected_action, expected, expected_values = run(EagerEngine(model), model)
    assert out.outputs["log_prob"].dtype == out.outputs["value"].dtype == torch.float32
    # bfloat16 has 8 bits: 0.4 % of each product, of which many are added up.
    torch.testing.assert_close(
        out.outputs["log_prob"], expected.outputs["log_prob"], rtol=0.02, atol=0.02
    )
    torch.testing.assert_close(
        out.outputs["value"], expected.outputs["value"], rtol=0.02, atol=0.02
    )
    torch.testing.assert_close(values, expected_values, rtol=0.02, atol=0.02)
    same = sum(int((action[k] == expected_action[k]).sum()) for k in action)
    assert same >= 0.9 * ROWS
    assert not torch.equal(values, expected_values), "nothing was rounded"


def test_the_model_itself_stays_as_it_is_and_new_weights_arrive(able):
    model, newer = model_for("image"), model_for("image", seed=5)
    engine = build_engine(model, name="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    engine.load(newer.state_dict())
    _, out, _ = run(engine, model)
    _, expected, _ = run(EagerEngine(newer), model)
    torch.testing.assert_close(
        out.outputs["value"], expected.outputs["value"], rtol=0.02, atol=0.02
    )


class Mine(ActorCritic):
    """May compute anything."""


@pytest.mark.parametrize("case", ["cpu", "own class"])
def test_where_it_is_not_possible_one_line_says_so(case, monkeypatch, caplog):
    model = model_for("vector")
    if case == "cpu":
        monkeypatch.setattr(engines, "_BFLOAT16_FLAGS", {"no such flag"})
    else:
        model = Mine(EnvSpec("test", SPACES["vector"], spaces.Discrete(2)), ModelConfig())
    engine = build_engine(model, name="bfloat16")
    assert type(engine) is EagerEngine
    assert len(caplog.records) == 1
    assert "in float32, not in bfloat16" in caplog.text
    _, out, _ = run(engine, model)
    _, expected, _ = run(EagerEngine(model), model)
    assert torch.equal(out.outputs["value"], expected.outputs["value"])


def test_a_machine_without_cpuinfo_has_no_flags(tmp_path):
    model = model_for("vector")
    assert engines.why_not_bfloat16(model, torch.device("cpu"), tmp_path / "missing")
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor: 0\nflags\t\t: fpu avx512_bf16 sse\n")
    assert engines.why_not_bfloat16(model, torch.device("cpu"), cpuinfo) == ""
