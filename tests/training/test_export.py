"""Policies as files for other programs."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from gymnasium import spaces

from fastrl import export_run, load_policy
from fastrl.cli import main
from fastrl.config import ModelConfig
from fastrl.errors import ConfigError
from fastrl.models import ActorCritic
from fastrl.spaces import flatten
from fastrl.spec import EnvSpec
from fastrl.training import export, train
from fastrl.training.trained_policy import TrainedPolicy
from tests.training.clockwork import small_run
from tests.training.spacious import KINDS
from tests.training.test_policy import leaves_of, samples, stacked


def inputs_and_actions(run, kind, count):
    """Return what a file takes for random observations, and the actions of the policy."""
    policy, (observation_space, action_space) = load_policy(run), KINDS[kind]
    batch = stacked(observation_space, samples(kind, count))
    dtypes = [spec.numpy_dtype for spec in policy.env_spec.observation.values()]
    rows = zip(flatten(observation_space, batch), dtypes, strict=True)
    return [row.astype(dtype) for row, dtype in rows], leaves_of(action_space, policy.act(batch)[0])


def assert_same(found, wanted):
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


# torch recommends torch.export in its place, which other languages cannot load.
@pytest.mark.filterwarnings("ignore:.*torch.jit.load.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_torchscript_acts_as_the_policy(spacious_run, tmp_path, kind):
    file = export_run(spacious_run(kind), "torchscript", tmp_path / "deep" / "policy.pt")
    module = torch.jit.load(file)
    for count in (1, 9):
        rows, wanted = inputs_and_actions(spacious_run(kind), kind, count)
        found = module(*map(torch.from_numpy, rows))
        found = found if isinstance(found, tuple) else (found,)
        assert_same([each.detach().numpy() for each in found], wanted)


@pytest.mark.filterwarnings("ignore:.*torch.jit.load.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("bounds", ["clip", "squash"])
def test_an_action_without_dimensions_is_exported(tmp_path, bounds):
    space = spaces.Box(-1, 1, ())
    spec = EnvSpec("Some-v0", spaces.Box(-1, 1, (2,)), space)
    policy = TrainedPolicy(ActorCritic(spec, ModelConfig(), bounds).eval(), spec, bounds)
    export.export(policy, "torchscript", tmp_path / "policy.pt")
    action, _ = policy.act(np.zeros(2, np.float32))
    assert space.contains(action)
    loaded = torch.jit.load(tmp_path / "policy.pt")
    np.testing.assert_allclose(loaded(torch.zeros(1, 2)).detach().numpy(), action[None], rtol=1e-5)


@pytest.mark.parametrize("kind", ["squashed", "nested", "multi_discrete"])
def test_onnx_acts_as_the_policy(spacious_run, tmp_path, kind, capfd):
    onnxruntime = pytest.importorskip("onnxruntime")
    run = spacious_run(kind)
    capfd.readouterr()
    file = export_run(run, "onnx", tmp_path / "policy.onnx")
    assert capfd.readouterr() == ("", "")
    session = onnxruntime.InferenceSession(file.read_bytes())
    names = [each.name for each in session.get_inputs()]
    if kind == "nested":
        assert names == ["observation/arm/0", "observation/arm/1", "observation/camera"]
        outputs = [each.name for each in session.get_outputs()]
        assert outputs == ["action/gripper", "action/joints/0", "action/joints/1"]
    else:
        assert names == ["observation"]
    for count in (1, 9):
        rows, wanted = inputs_and_actions(spacious_run(kind), kind, count)
        assert_same(session.run(None, dict(zip(names, rows, strict=True))), wanted)


def test_command_writes_into_the_run(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(trained), "--format", "torchscript", "-o", "mine.pt"]) == 0
    assert capsys.readouterr().out == "mine.pt\n"
    copy = shutil.copytree(trained, tmp_path / "copy")
    assert export_run(copy, "torchscript") == copy / "policy.pt"
    assert (copy / "policy.pt").is_file()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--format", "pickle"], "format must be 'torchscript' or 'onnx', got 'pickle'"),
        ([], "Missing option '--format'"),
        (["--format", "torchscript", "-o", "no/x.pt"], "there is no directory 'no'"),
        (["--format", "torchscript", "-o", "."], "'.' is a directory"),
        (["--format", "torchscript", "--checkpoint", "step_9"], "no checkpoint 'step_9'"),
    ],
)
def test_bad_input_is_one_line(trained, tmp_path, monkeypatch, capsys, arguments, problem):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(trained), *arguments]) == 2
    err = capsys.readouterr().err
    assert problem in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("fastrl.formats.find_spec", lambda name: None)
    told = r"^format onnx needs the packages onnx, onnxscript, onnxruntime: pip install "
    with pytest.raises(ConfigError, match=told):
        export_run(trained, "onnx", tmp_path / "x.onnx")


class Deciding(ActorCritic):
    """Decides by the numbers that it sees, which a trace does not hold."""

    def __init__(self, env_spec):
        super().__init__(env_spec, ModelConfig(hidden_sizes=(4,)))

    def forward(self, observation):
        parameters, value = super().forward(observation)
        turned = parameters.flip(-1) if float(observation[""].sum()) > 0 else parameters
        return turned, value


class Raising(Deciding):
    """Cannot be traced."""

    def forward(self, observation):
        if torch.jit.is_tracing():
            raise RuntimeError("not\nin a trace")
        return super().forward(observation)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Deciding", r"for \d+ random observations its actions differ in the file$"),
        ("Raising", r"RuntimeError: not in a trace$"),
    ],
)
def test_policy_that_cannot_be_exported_is_one_line_and_no_file(tmp_path, name, told):
    model = ModelConfig(class_path=f"tests.training.test_export:{name}")
    train(small_run(tmp_path / "run", total_steps=64, model=model))
    (tmp_path / "policy.pt").write_text("before")
    with pytest.raises(ConfigError, match=f"^the policy cannot be exported as torchscript: {told}"):
        export_run(tmp_path / "run", "torchscript", tmp_path / "policy.pt")
    assert (tmp_path / "policy.pt").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy.pt", "run"]
