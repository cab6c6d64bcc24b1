"""Policies as files for other programs: TorchScript and ONNX, compared before they are kept."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from fastrl.envs.actions import ActionBounds
from fastrl.errors import USERS_FAILURES, ConfigError, FastrlError, cause
from fastrl.extras import how_to_install
from fastrl.models.policy import PolicyModel
from fastrl.spaces import flatten, leaves, unflatten
from fastrl.training.durable import make_directory, write_durably, writing
from fastrl.training.policy import TrainedPolicy

SUFFIXES = {"torchscript": ".pt", "onnx": ".onnx"}
"""Of files, by the name of their format."""

_BATCHES = (1, 3, 28)
"""Numbers of observations that are compared: a fixed number in the file would show."""
_TOLERANCE = 1e-4
"""Of continuous actions, relative and absolute: other kernels round in another order."""
_MOST_LETTERS = 200
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

Rows = Sequence[NDArray[Any]]
Run = Callable[[Rows], Rows]
"""From the leaves of observations to the leaves of actions."""


def export(policy: TrainedPolicy, format: str, path: Path) -> None:
    """Write the likeliest actions of a policy as a function of the observation.

    Inputs are the leaves of observations, ``[n, *shape]`` for any n, in the dtypes of
    `fastrl.spaces.observation_specs`; outputs the leaves of actions as the environment accepts
    them.

    Args:
        policy: The policy.
        format: One of `SUFFIXES`.
        path: Of the file; its directory is made.

    Raises:
        ConfigError: A package is missing, the path is a directory, or the policy cannot be
            exported, or acts otherwise in the file.
        WriteError: The file cannot be written.
    """
    if path.is_dir():
        raise ConfigError(f"'{path}' is a directory; name a file")
    traced, run_in = (_onnx, _run_onnx) if format == "onnx" else (_torchscript, _run_torchscript)
    if format == "onnx" and not all(map(find_spec, _ONNX_PACKAGES)):
        packages = ", ".join(_ONNX_PACKAGES)
        raise ConfigError(f"--format onnx needs the packages {packages}: {how_to_install('onnx')}")
    try:
        with warnings.catch_warnings():
            # Of both exporters, about themselves and about what the comparison would find.
            warnings.simplefilter("ignore")
            content = traced(_Actor(policy).eval(), policy)
            difference = _difference(policy, run_in(content))
    except FastrlError:
        raise
    except USERS_FAILURES as error:
        told = cause(error)[:_MOST_LETTERS]
        raise ConfigError(f"the policy cannot be exported as {format}: {told}") from error
    if difference:
        raise ConfigError(f"the policy cannot be exported as {format}: {difference}")
    with writing(path):
        make_directory(path.parent)
        write_durably(path, content)


class _Actor(nn.Module):
    """From the leaves of observations to the leaves of the likeliest actions."""

    def __init__(self, policy: TrainedPolicy) -> None:
        super().__init__()
        self.model: PolicyModel = policy.model
        self._observed, self._acted = tuple(policy.env_spec.observation), policy.env_spec.action
        found = leaves(policy.env_spec.action_space).values()
        self.converters = nn.ModuleList(_Converter(leaf, policy.action_bounds) for leaf in found)

    def forward(self, *observation: Tensor) -> Any:  # noqa: ANN401
        chosen = self.model.mode(dict(zip(self._observed, observation, strict=True)))
        pairs = zip(self.converters, self._acted, strict=True)
        actions = tuple(convert(chosen[path]) for convert, path in pairs)
        return actions if len(actions) > 1 else actions[0]


class _Converter(nn.Module):
    """`fastrl.envs.actions.ActionConverter` for one leaf, in operations that can be exported."""

    start: Tensor
    low: Tensor
    high: Tensor
    half_width: Tensor

    def __init__(self, leaf: spaces.Space[Any], bounds: ActionBounds) -> None:
        super().__init__()
        self._dtype: torch.dtype = getattr(torch, np.dtype(leaf.dtype).name)
        self._is_box, self._squashes = isinstance(leaf, spaces.Box), bounds == "squash"
        numbers = {"start": np.asarray(getattr(leaf, "start", 0))}
        if isinstance(leaf, spaces.Box):
            half_width = (leaf.high.astype(np.float64) - leaf.low) / 2
            numbers = {"low": leaf.low, "high": leaf.high, "half_width": half_width}
        for name, array in numbers.items():
            self.register_buffer(name, torch.from_numpy(array.copy()))

    def forward(self, action: Tensor) -> Tensor:
        if not self._is_box:
            return (action + self.start).to(self._dtype)
        if self._squashes:
            action = torch.tanh(action) * self.half_width + (self.low + self.half_width)
        return torch.minimum(torch.maximum(action.to(self._dtype), self.low), self.high)


def _torchscript(actor: _Actor, policy: TrainedPolicy) -> bytes:
    buffer = io.BytesIO()
    traced = torch.jit.trace(actor, _tensors(policy, 2), check_trace=False)
    torch.jit.save(traced, buffer)
    return buffer.getvalue()


def _run_torchscript(content: bytes) -> Run:
    module = torch.jit.load(io.BytesIO(content))

    @torch.inference_mode()
    def run(rows: Rows) -> Rows:
        actions = module(*map(torch.from_numpy, rows))
        return [each.numpy() for each in (actions if isinstance(actions, tuple) else (actions,))]

    return run


def _onnx(actor: _Actor, policy: TrainedPolicy) -> bytes:
    examples, spec = _tensors(policy, 2), policy.env_spec
    program = torch.onnx.export(
        actor,
        examples,
        input_names=_names("observation", spec.observation),
        output_names=_names("action", spec.action),
        dynamic_shapes=(tuple({0: torch.export.Dim("n")} for _ in examples),),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


def _run_onnx(content: bytes) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda rows: session.run(None, dict(zip(names, rows, strict=True)))


def _names(kind: str, paths: Iterable[str]) -> list[str]:
    return [f"{kind}/{path}" if path else kind for path in paths]


def _difference(policy: TrainedPolicy, run: Run) -> str:
    """Return how the actions differ on random observations, in words; nothing where they agree."""
    spec = policy.env_spec
    for num_rows in _BATCHES:
        rows = _observations(policy, num_rows)
        observation = unflatten(
            spec.observation_space, dict(zip(spec.observation, rows, strict=True))
        )
        action, _ = policy.act(observation)
        wanted = flatten(spec.action_space, action)
        for path, ours, theirs in zip(spec.action, wanted, run(rows), strict=True):
            if not _agree(ours, theirs):
                where = f" '{path}'" if path else ""
                return f"for {num_rows} random observations its actions{where} differ in the file"
    return ""


def _agree(ours: NDArray[Any], theirs: NDArray[Any]) -> bool:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    if ours.dtype.kind != "f":
        return bool((ours == theirs).all())
    return np.allclose(ours, theirs, _TOLERANCE, _TOLERANCE)


def _observations(policy: TrainedPolicy, num_rows: int) -> list[NDArray[Any]]:
    """Return random leaves ``[num_rows, *shape]``, as the file takes them."""
    space = policy.env_spec.observation_space
    space.seed(0)
    columns = zip(*(flatten(space, space.sample()) for _ in range(num_rows)), strict=True)
    dtypes = [spec.numpy_dtype for spec in policy.env_spec.observation.values()]
    return [np.stack(column).astype(dtype) for column, dtype in zip(columns, dtypes, strict=True)]


def _tensors(policy: TrainedPolicy, num_rows: int) -> tuple[Tensor, ...]:
    return tuple(map(torch.from_numpy, _observations(policy, num_rows)))
