"""Packed conv nets equal PyTorch's, follow new parameters, and are left where they cannot run."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from fastrl.config import ModelConfig
from fastrl.models import ActorCritic, EagerEngine, build_engine
from fastrl.models.inference import engines, packed
from fastrl.spec import EnvSpec

ROOT = Path(__file__).parents[3]
VECTOR = spaces.Box(-1, 1, (3,), np.float32)
CASES = {
    "channels last": (spaces.Box(0, 255, (40, 36, 3), np.uint8), {}),
    "channels first": (spaces.Box(0, 255, (4, 84, 84), np.uint8), {}),
    "grey": (spaces.Box(0, 255, (36, 40), np.uint8), {}),
    "stack": (spaces.Box(0, 255, (2, 20, 20, 3), np.uint8), {}),
    "floats": (spaces.Box(0, 1, (3, 16, 16), np.float32), {}),
    "small": (spaces.Box(0, 255, (8, 8, 1), np.uint8), {"conv_layers": ((5, 3, 2), (7, 2, 1))}),
    "two images": (
        spaces.Dict(
            {
                "a": spaces.Box(0, 255, (36, 36, 3), np.uint8),
                "b": spaces.Box(0, 255, (20, 20, 1), np.uint8),
                "vector": VECTOR,
            }
        ),
        {},
    ),
}
ROWS = 5


def model_for(case, seed=0, shared=False, **config):
    space, own = CASES[case]
    torch.manual_seed(seed)
    config = ModelConfig(hidden_sizes=(8,), conv_features=9, shared_body=shared, **own, **config)
    return ActorCritic(EnvSpec("test", space, spaces.Discrete(4)), config)


def images(model, rows=ROWS):
    generator = torch.Generator().manual_seed(1)
    return {
        path: torch.randint(0, 255, (rows, *leaf.shape), generator=generator, dtype=leaf.dtype)
        if not leaf.dtype.is_floating_point
        else torch.rand(rows, *leaf.shape, generator=generator)
        for path, leaf in model.observation_specs.items()
    }


def values(engine, observation):
    found = torch.zeros(len(next(iter(observation.values()))))
    engine.values(observation, found)
    return found


def require_equal(engine, model, rows=ROWS):
    observation = images(model, rows)
    torch.testing.assert_close(
        values(engine, observation), values(EagerEngine(model), observation), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("case", CASES)
def test_packed_equals_pytorch_for_batches_of_any_size(case):
    model = model_for(case)
    engine = build_engine(model)
    assert engine.name == "packed"
    for rows in (ROWS, 1, 64, ROWS):
        require_equal(engine, model, rows)


def test_parameters_that_are_loaded_later_are_used():
    engine, newer = build_engine(model_for("grey")), model_for("grey", seed=5)
    before = values(engine, images(newer))
    engine.load(newer.state_dict())
    require_equal(engine, newer)
    assert not torch.allclose(values(engine, images(newer)), before)


def test_the_model_and_the_global_random_stream_stay_as_they_are():
    model = model_for("grey")
    before = torch.get_rng_state()
    build_engine(model)
    assert type(model.actor_body.encoders[0].layers) is torch.nn.Sequential
    assert torch.equal(torch.get_rng_state(), before)


def test_a_subclass_is_packed_too():
    class Mine(ActorCritic):
        """Puts out the same."""

    model = model_for("grey")
    model.__class__ = Mine
    engine = build_engine(model)
    assert engine.name == "packed"
    require_equal(engine, model)


@pytest.mark.parametrize("reason", ["no oneDNN", "no operation", "other numbers"])
def test_where_it_cannot_run_pytorch_does(reason, monkeypatch):
    if reason == "no oneDNN":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    elif reason == "no operation":
        monkeypatch.setattr(packed, "_convolve", None)
    else:
        monkeypatch.setattr(packed, "_multiply", lambda *given: torch.zeros(2, 9))
    model = model_for("grey")
    engine = build_engine(model)
    assert engine.name == "eager"
    require_equal(engine, model)


@pytest.mark.parametrize(("name", "calls"), [("auto", 1), ("bfloat16", 1), ("eager", 0)])
def test_all_engines_but_the_eager_one_pack(name, calls, monkeypatch):
    monkeypatch.setattr(engines, "why_not_bfloat16", lambda model, device: "")
    model, seen, forward = model_for("grey"), [], packed.PackedLayers.forward
    engine = build_engine(model, name=name)
    monkeypatch.setattr(
        packed.PackedLayers, "forward", lambda self, x: seen.append(x.dtype) or forward(self, x)
    )
    values(engine, images(model))
    assert seen == [torch.bfloat16 if name == "bfloat16" else torch.float32] * calls


def test_packing_does_not_import_the_test_tools_of_torch():
    # They bring sympy: 38 MiB and half a second in every worker.
    program = (
        "import sys; from tests.models.inference.test_packed import model_for; "
        "from fastrl.models import build_engine; "
        "assert build_engine(model_for('small')).name == 'packed'; "
        "assert 'sympy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)
