"""Exports policies as TorchScript or ONNX, verified before they are written."""

from __future__ import annotations

import copy
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from fastrl.durable import make_directory, write_output, writing
from fastrl.envs.actions import ActionBounds
from fastrl.errors import ConfigError, raised_as
from fastrl.formats import check_policy_format
from fastrl.models.policy import PolicyModel
from fastrl.spaces import flatten, leaves, unflatten
from fastrl.spec import ACTION_MASK, only_given
from fastrl.training.trained_policy import TrainedPolicy

_INITIAL_STATE = "initial_state"
"""Name of the initial state in a file."""

_BATCHES = (1, 3, 28)
"""Batch sizes that are compared, to detect a file with a fixed size."""
_STEPS = 5
"""Steps that are compared for a policy with a memory, each with the state of the previous step."""
_TOLERANCE = 1e-4
"""Relative and absolute tolerance of continuous actions, as other kernels round differently."""
_LONGEST_ERROR = 200

Rows = Sequence[NDArray[Any]]
Run = Callable[[Rows], Rows]
"""A function from observation leaves to action leaves; both end with the state of a memory."""


def export(policy: TrainedPolicy, format: str, path: Path) -> None:
    """Write the most probable actions of a policy as a function of the observation.

    Inputs are the leaves of observations, ``[n, *shape]`` for any n, in the dtypes of
    `fastrl.EnvSpec.observation`, a mask of valid actions among them; outputs are the leaves of
    actions as the environment accepts them. A policy with a memory has one more input, ``state
    [n, S] float32``, and one more output, the next state. The state in which episodes begin is in
    the file: the attribute ``initial_state [S] float32`` in TorchScript, a list of numbers in JSON
    by that key of the metadata in ONNX.

    Args:
        policy: The policy.
        format: One of `fastrl.formats.POLICIES`.
        path: Of the file; its directory is made.

    Raises:
        ConfigError: A package is missing, the path is a directory, or the policy cannot be
            exported, or acts differently in the file.
        WriteError: The file cannot be written.
    """
    check_policy_format(format)
    if path.is_dir():
        raise ConfigError(f"'{path}' is a directory; name a file")
    traced, run_in = (_onnx, _run_onnx) if format == "onnx" else (_torchscript, _run_torchscript)
    problem = f"the policy cannot be exported as {format}"
    with raised_as(ConfigError, problem, _LONGEST_ERROR), warnings.catch_warnings():
        # Warnings of both exporters; the comparison finds what they warn of.
        warnings.simplefilter("ignore")
        content = traced(_Actor(policy).eval().requires_grad_(False), policy)
        difference = _difference(policy, run_in(content))
    if difference:
        raise ConfigError(f"{problem}: {difference}")
    with writing(path):
        make_directory(path.parent)
        write_output(path, content)


class _Actor(nn.Module):
    """Maps observation leaves to the leaves of the most probable actions.

    For a policy with a memory also maps its state to the next one. It copies the model, which
    may still learn.
    """

    def __init__(self, policy: TrainedPolicy) -> None:
        super().__init__()
        self.model: PolicyModel = copy.deepcopy(policy.model)
        self._spec, self._acted = policy.env_spec, policy.env_spec.action
        found = leaves(policy.env_spec.action_space).values()
        state = policy.initial_state(1)
        if state is not None:
            self.register_buffer(_INITIAL_STATE, torch.from_numpy(state[0]))
        self.converters = nn.ModuleList(_Converter(leaf, policy.action_bounds) for leaf in found)

    def forward(self, *inputs: Tensor) -> Any:
        paths = self._spec.observation
        leaves_found, state = inputs[: len(paths)], inputs[len(paths) :]
        observation, mask = self._spec.split_mask(dict(zip(paths, leaves_found, strict=True)))
        chosen = self.model.mode(
            observation, **only_given(state=state[0] if state else None, mask=mask)
        )
        pairs = zip(self.converters, self._acted, strict=True)
        outputs = tuple(convert(chosen.action[path]) for convert, path in pairs)
        if state and chosen.state is not None:
            outputs += (chosen.state,)
        return outputs if len(outputs) > 1 else outputs[0]


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
            # Operations on arrays without dimensions return scalars.
            self.register_buffer(name, torch.from_numpy(np.array(array)))

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
    import onnx

    examples, spec = _tensors(policy, 2), policy.env_spec
    state = policy.initial_state(1)
    has_memory = state is not None
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)  # it warns that torchvision is not installed
    try:
        program = torch.onnx.export(
            actor,
            examples,
            input_names=[
                ACTION_MASK if name == f"observation/{spec.action_mask}" else name
                for name in _names("observation", spec.observation)
            ]
            + ["state"] * has_memory,
            output_names=_names("action", spec.action) + ["next_state"] * has_memory,
            dynamic_shapes=(tuple({0: torch.export.Dim("n")} for _ in examples),),
            dynamo=True,
            verbose=False,
        )
    finally:
        logger.setLevel(before)
    assert program is not None
    model = program.model_proto
    if state is not None:
        onnx.helper.set_model_props(model, {_INITIAL_STATE: json.dumps(state[0].tolist())})
    content: bytes = model.SerializeToString()
    return content


def _run_onnx(content: bytes) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda rows: session.run(None, dict(zip(names, rows, strict=True)))


def _names(kind: str, paths: Iterable[str]) -> list[str]:
    return [f"{kind}/{path}" if path else kind for path in paths]


def _difference(policy: TrainedPolicy, run: Run) -> str:
    """Describe how actions differ on random observations; empty if they agree."""
    names = [f"actions '{path}'" if path else "actions" for path in policy.env_spec.action]
    names += ["states"] * (policy.initial_state(1) is not None)
    for num_rows in _BATCHES:
        ours = theirs = policy.initial_state(num_rows)
        for step in range(1 if ours is None else _STEPS):
            rows = _observations(policy, num_rows, step)
            wanted, ours = _acted(policy, rows, ours)
            found = run(rows if theirs is None else [*rows, theirs])
            if ours is not None:
                wanted, theirs = [*wanted, ours], found[-1]
            for name, one, other in zip(names, wanted, found, strict=True):
                if not _agree(one, other):
                    return f"for {num_rows} random observations its {name} differ in the file"
    return ""


def _acted(policy: TrainedPolicy, rows: Rows, state: Any) -> tuple[Rows, Any]:
    """Return the leaves of the policy's actions, and its next state."""
    spec = policy.env_spec
    leaves_of = dict(zip(spec.observation, rows, strict=True))
    action, state = policy.act(unflatten(spec.observation_space, leaves_of), state)
    return list(flatten(spec.action_space, action)), state


def _agree(ours: NDArray[Any], theirs: NDArray[Any]) -> bool:
    tolerance = _TOLERANCE if ours.dtype.kind == "f" else 0
    is_alike = ours.shape == theirs.shape and ours.dtype == theirs.dtype
    return is_alike and np.allclose(ours, theirs, tolerance, tolerance)


def _observations(policy: TrainedPolicy, num_rows: int, seed: int = 0) -> list[NDArray[Any]]:
    """Return random leaves ``[num_rows, *shape]``, as the file takes them."""
    space = policy.env_spec.observation_space
    space.seed(seed)
    columns = zip(*(flatten(space, space.sample()) for _ in range(num_rows)), strict=True)
    specs = policy.env_spec.observation
    rows = {
        path: np.stack(column).astype(spec.numpy_dtype)
        for (path, spec), column in zip(specs.items(), columns, strict=True)
    }
    if (mask := policy.env_spec.action_mask) is not None:
        # At least one option of each choice is valid.
        firsts = np.cumsum([0, *policy.env_spec.choices[:-1]])
        rows[mask][:, firsts] = True
    return list(rows.values())


def _tensors(policy: TrainedPolicy, num_rows: int) -> tuple[Tensor, ...]:
    state = policy.initial_state(num_rows)
    rows = _observations(policy, num_rows)
    return tuple(map(torch.from_numpy, rows if state is None else [*rows, state]))
