import logging
import sys

import numpy as np
import pytest
import torch
from gymnasium import spaces

from fastrl import once
from fastrl.config import ModelConfig
from fastrl.errors import ConfigError
from fastrl.models import ActorCritic, EagerEngine, build_engine
from fastrl.spaces import TensorSpec
from fastrl.spec import EnvSpec

mlp_engine = pytest.importorskip("fastrl.models.inference.mlp_engine")

VECTOR = spaces.Box(-1, 1, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (40, 40, 3), np.uint8)


def model_for(observation_space=VECTOR, model_class=ActorCritic, **config):
    spec = EnvSpec("test", observation_space, spaces.Discrete(2))
    return model_class(spec, ModelConfig(**{"hidden_sizes": (8,), "conv_features": 8, **config}))


class Mine(ActorCritic):
    """May compute anything."""


UNSUPPORTED = {
    "image": lambda: model_for(IMAGE),
    "index of another dtype": lambda: model_for(spaces.MultiDiscrete([4], np.int32)),
    "many options without hidden layers": lambda: model_for(
        spaces.Discrete(100), critic_hidden_sizes=()
    ),
    "bytes": lambda: model_for(spaces.Box(0, 255, (4,), np.uint8)),
    "gelu": lambda: model_for(activation="gelu"),
    "gelu of the value alone": lambda: model_for(
        activation="gelu", hidden_sizes=(), critic_hidden_sizes=(8,)
    ),
    "bfloat16": lambda: model_for().bfloat16(),
}


def test_auto_compiles_what_it_can(caplog):
    assert type(build_engine(model_for())) is mlp_engine.MlpEngine
    assert type(build_engine(model_for(), name="compiled")) is mlp_engine.MlpEngine
    assert type(build_engine(model_for(), name="eager")) is EagerEngine
    assert not caplog.records


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_cannot_be_compiled_runs_eagerly(name, caplog):
    model = UNSUPPORTED[name]()
    assert type(build_engine(model)) is EagerEngine
    assert not caplog.records
    assert type(build_engine(model, name="compiled")) is EagerEngine
    assert len(caplog.records) == 1
    assert "inference runs eagerly, not in compiled code" in caplog.text


def test_another_class_runs_eagerly_and_one_line_says_why(caplog, monkeypatch):
    # Other tests of the process may have logged the same line.
    monkeypatch.setattr(once, "_said", set())
    monkeypatch.setattr(once, "place", lambda: "")
    for _ in range(2):
        assert type(build_engine(model_for(model_class=Mine))) is EagerEngine
    (record,) = caplog.records
    assert "inference runs eagerly, not in compiled code: Mine" in record.getMessage()


def test_other_outputs_than_the_compiled_ones_run_eagerly(caplog):
    model = model_for()
    model.outputs = {**model.outputs, "logits": TensorSpec((2,), torch.float32)}
    assert type(build_engine(model, name="compiled")) is EagerEngine
    assert "other outputs than log_prob and value" in caplog.text


@pytest.mark.parametrize("name", ["auto", "compiled"])
def test_a_missing_compiler_costs_one_warning_line(name, caplog, monkeypatch):
    for module in list(sys.modules):
        if module.startswith(("numba", "fastrl.models.inference.mlp", "fastrl.models.inference.l")):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.delattr("fastrl.models.inference.mlp_engine")
    monkeypatch.setitem(sys.modules, "numba", None)
    with caplog.at_level(logging.WARNING):
        engine = build_engine(model_for(), name=name)
    assert type(engine) is EagerEngine
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "\n" not in caplog.records[0].getMessage()


@pytest.mark.parametrize(
    ("device", "name", "message"),
    [
        ("cpu", "slow", "no engine 'slow'; there are auto, bfloat16, compiled, eager"),
        ("cuda:99", "auto", "no device 'cuda:99'"),
    ],
)
def test_unknown_engines_and_devices_are_refused(device, name, message):
    with pytest.raises(ConfigError, match=message):
        build_engine(model_for(), torch.device(device), name)
