"""Runs MLP policies on the CPU by one call into compiled code; see `mlp_kernel`."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastrl.errors import EnvError
from fastrl.models.distributions import (
    LOG_STD_RANGE,
    ActionPart,
    Bernoullis,
    Categoricals,
    Gaussians,
    SquashedGaussians,
)
from fastrl.models.inference import layers
from fastrl.models.inference import mlp_kernel as kernel
from fastrl.models.inference.engine import InferenceEngine, PolicyOutput
from fastrl.models.inference.lanes import LANE_BYTES, LANES
from fastrl.models.networks import (
    Body,
    OneHotEncoder,
    RunningNormalizer,
    VectorEncoder,
    columns_by_kind,
)
from fastrl.models.policy import ActorCritic, initial_state
from fastrl.models.recurrent import Core, RecurrentCore
from fastrl.spec import LOG_PROB_AND_VALUE, outputs_of

_ACTIVATIONS: Mapping[type[nn.Module], int] = {
    nn.Tanh: layers.TANH,
    nn.ReLU: layers.RELU,
    nn.ELU: layers.ELU,
    nn.SiLU: layers.SILU,
}
_KINDS: Mapping[type[ActionPart], int] = {
    Bernoullis: kernel.BERNOULLI,
    Gaussians: kernel.GAUSSIAN,
    SquashedGaussians: kernel.SQUASHED,
}
_LEAVES: Mapping[type[nn.Module], torch.dtype] = {
    VectorEncoder: torch.float32,
    OneHotEncoder: torch.int64,
}
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
View = tuple[int, int, int, int]
"""Values of a `kernel.VIEW` record."""


def why_not(model: object) -> str:
    """Return why a policy cannot be compiled; empty if it can.

    It must be an `ActorCritic`, not a subclass, with the outputs log_prob and value, float32
    parameters, any activation but GELU, observation leaves that are float32 vectors or int64
    choices, and if it has a memory, GRU or LSTM.
    """
    more = ", ".join(sorted(outputs_of(model).keys() - LOG_PROB_AND_VALUE.keys()))
    if type(model) is not ActorCritic:
        outputs = f" and puts out {more}" if more else ""
        return f"{type(model).__name__} is another class than ActorCritic{outputs}"
    if outputs_of(model) != LOG_PROB_AND_VALUE:
        return "the policy declares other outputs than log_prob and value"
    if any(type(core) is not RecurrentCore for core in model.cores):
        return "its memory is custom"
    dtypes = [spec.dtype for spec in model.observation_specs.values()]
    bodies = [body for body in (model.actor_body, model.critic_body) if body]
    modules = [module for body in bodies for module in body.mlp]
    wanted = [_LEAVES.get(type(encoder)) for encoder in model.actor_body.encoders]
    if dtypes != wanted:
        return "an observation is neither a vector of float32 nor a choice of int64"
    if any(encoder.is_wide and not body.gathers for body in bodies for encoder in body.encoders):
        return "a choice with many options is observed without hidden layers"
    if not all(type(module) in _ACTIVATIONS for module in modules[1::2]):
        return "its activation is not compiled"
    if not all(parameter.dtype == torch.float32 for parameter in model.parameters()):
        return "a parameter is not float32"
    return ""


def compile_kernel() -> None:
    """Compile the kernel, or load it from the cache, by a call without rows."""
    program, call = np.zeros(1, kernel.PROGRAM), np.zeros(1, kernel.CALL)
    kernel.run(address(program), address(call))


class _Call(functools.partial[int]):
    """A call of the kernel with addresses, which keeps the owners of their memory alive."""

    owners: tuple[object, ...]


def _checked(call: Callable[[], int]) -> None:
    """Make a call for a policy that observes choices.

    Raises:
        EnvError: A choice is outside of its space.
    """
    if call():
        raise EnvError("an observation is not in its space: a choice is outside of its range")


class MlpEngine(InferenceEngine):
    """A supported `ActorCritic` (see `why_not`), compiled for this machine's CPU.

    Actions, log_probs and values of a row have the same bits in every batch, and equal those of
    `ActorCritic.act` up to float32 rounding, about 1e-6. A discrete action can differ only if the
    noise is that close to the boundary between two categories.

    The first engine on a machine compiles for some seconds; later ones, in any process, find the
    result on disk.

    Args:
        model: Supported policy; copied.
    """

    name = "compiled"

    def __init__(self, model: ActorCritic) -> None:
        self._model = copy.deepcopy(model).cpu()
        for parameter in self._model.parameters():
            parameter.data = parameter.data.contiguous()
        self._program = Program(self._model)
        self._state = self._model.state_dict()
        compile_kernel()

    def load(self, state_dict: Mapping[str, Tensor]) -> None:
        """Copy parameters into the engine; bound calls use them from then on."""
        # Module.load_state_dict takes ten times as long.
        torch._foreach_copy_(list(self._state.values()), [state_dict[x] for x in self._state])
        self._program.pack()

    def draw_noise(
        self, shape: tuple[int, ...], generator: torch.Generator | None = None
    ) -> Tensor:
        """Return noise ``[*shape, noise_size] float32``."""
        return self._model.draw_noise(shape, generator)

    def initial_state(self, n: int) -> Tensor:
        """Return the states ``[n, S] float32`` in which episodes begin."""
        return initial_state(self._model, n).detach()

    def bind(
        self,
        observation: Mapping[str, Tensor],
        noise: Tensor,
        out: PolicyOutput,
        state: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Callable[[], None]:
        """Return a call that samples actions, and writes them and the policy's outputs."""
        rows = len(noise)
        noise_shape = (rows, self._model.distribution.noise_size)
        further: dict[str, list[View]] = {}
        if mask is not None:
            mask_shape = (rows, self._program.num_choices)
            further["mask"] = [_view("mask", mask, mask_shape, torch.bool)]
        return self._call(
            self._program.address,
            rows,
            noise=[_view("noise", noise, noise_shape)],
            log_prob=[_view("log_prob", out.outputs["log_prob"], (rows,))],
            value=[_view("value", out.outputs["value"], (rows,))],
            leaves=list(self._observation_views(observation, rows)),
            parts=list(self._action_views(out.action, rows)),
            state=self._state_view("state", state, rows),
            next_state=self._state_view("out.state", out.state, rows),
            owners=(observation, noise, out, state, mask),
            **further,
        )

    def bind_values(
        self, observation: Mapping[str, Tensor], out: Tensor, state: Tensor | None = None
    ) -> Callable[[], None]:
        """Return a call that writes the value of ``observation`` into ``out``."""
        return self._call(
            self._program.value_address,
            len(out),
            value=[_view("value", out, (len(out),))],
            leaves=list(self._observation_views(observation, len(out))),
            state=self._state_view("state", state, len(out)),
            next_state=[],
            owners=(observation, out, state),
        )

    def _call(
        self, program: int, rows: int, owners: tuple[object, ...], **views: list[View]
    ) -> Callable[[], Any]:
        """Return a call of the kernel for views, named as in `kernel.CALL`.

        Args:
            program: Address of a `kernel.PROGRAM`.
            rows: Size of the batch.
            owners: Owners of the views' memory.
            **views: Views, named as in `kernel.CALL`.
        """
        records = {name: record(kernel.VIEW, *found) for name, found in views.items()}
        call = record(kernel.CALL)
        call["rows"] = rows
        for name, views_record in records.items():
            call[name] = address(views_record)
        bound = _Call(kernel.run, program, address(call))
        bound.owners = (self, call, records, owners)
        return functools.partial(_checked, bound) if self._program.observes_choices else bound

    def _state_view(self, name: str, state: Tensor | None, rows: int) -> list[View]:
        """Return the view of a state; none without a memory."""
        size = self._program.state_size
        if state is None and size == 0:
            return []
        return [_view(name, torch.empty(0) if state is None else state, (rows, size))]

    def _observation_views(self, observation: Mapping[str, Tensor], rows: int) -> Iterator[View]:
        """Yield one view per vector, and after them one per choice."""
        choices: list[View] = []
        for path, spec in self._model.observation_specs.items():
            name, shape = f"observation '{path}'", (rows, *spec.shape)
            view = _view(name, observation[path], shape, spec.dtype)
            if spec.dtype == torch.float32:
                yield view
            else:
                choices += _elements(view)
        yield from choices

    def _action_views(self, action: Mapping[str, Tensor], rows: int) -> Iterator[View]:
        """Yield one view per action part: each categorical is one, other leaves are whole."""
        for path, part in self._model.distribution.parts.items():
            shape = (rows, *part.shape)
            view = _view(f"action '{path}'", action[path], shape, part.dtype)
            if isinstance(part, Categoricals):
                yield from _elements(view)
            else:
                yield view


def _elements(view: View) -> Iterator[View]:
    """Yield a view of each column."""
    start, row, column, width = view
    return ((start + i * column, row, 0, 1) for i in range(width))


def _view(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> View:
    """Return a tensor as rows of elements.

    Raises:
        ValueError: Its shape or dtype is wrong, or its inner axes have no common stride.
    """
    if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device.type != "cpu":
        raise ValueError(
            f"{name} must be {list(shape)} {dtype} on the CPU, "
            f"got {list(tensor.shape)} {tensor.dtype} on {tensor.device}"
        )
    width = tensor[:1].numel() if len(tensor) else 0
    try:
        rows = tensor.view(len(tensor), width)
    except RuntimeError as error:
        raise ValueError(f"{name} has strides {tensor.stride()}; axes must be mergeable") from error
    size = tensor.element_size()
    return tensor.data_ptr(), rows.stride(0) * size, rows.stride(1) * size, width


def record(dtype: np.dtype[Any], *rows: tuple[int, ...]) -> NDArray[Any]:
    """Return records for the kernel; at least one, so that they have an address."""
    return np.array(list(rows) or [(0,) * len(dtype.names or ())], dtype=dtype)


def address(array: NDArray[Any]) -> int:
    """Return the address of an array's first byte; valid while the array lives."""
    return int(array.__array_interface__["data"][0])


def _buffer(features: int) -> Tensor:
    # torch aligns to cache lines, which NumPy does not.
    return torch.zeros(max(1, features), LANES)


class _KernelLayer:
    """One layer of the network, which reads the model's parameters in place where it can.

    Args:
        source: Buffer of the inputs.
        weights: ``[outputs, all inputs]`` of layers that are computed side by side.
        biases: Their biases ``[outputs]``.
        activation: Activation, as the kernel numbers it.
        columns: For a first layer: columns of the inputs in ``source``, and of wide choices.

    Attributes:
        target: Buffer of the outputs.
    """

    def __init__(
        self,
        source: Tensor,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        activation: int = layers.IDENTITY,
        columns: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self._source, self._activation = source, activation
        self._joined = [(tuple(parts), _joined(parts)) for parts in (weights, biases)]
        (_, self._all), (_, self._bias) = self._joined
        outputs, inputs = self._all.shape
        self._weight, self._options, self._cell = self._all, torch.empty(0), np.zeros(0)
        if columns is not None and not columns[0].equal(torch.arange(inputs)):
            self._columns = columns
            self._weight = self._all[:, columns[0]]
            self._options = torch.empty(len(columns[1]), outputs)
        self.target = _buffer(outputs)

    def pack(self) -> None:
        """Copy the parameters that are not read in place."""
        for parts, joined in self._joined:
            if len(parts) > 1:
                torch.cat(parts, out=joined)
        if self._weight is not self._all:
            inputs, wide = self._columns
            torch.index_select(self._all, 1, inputs, out=self._weight)
            # Gathering contiguous rows takes less time.
            torch.index_select(self._all.t().contiguous(), 0, wide, out=self._options)

    def record(self) -> tuple[int, ...]:
        """Return the `kernel.LAYER`."""
        outputs, num_inputs = self._weight.shape
        weight, bias, options, source, target = (
            tensor.data_ptr()
            for tensor in (self._weight, self._bias, self._options, self._source, self.target)
        )
        sizes = num_inputs, outputs, self._activation
        cell = address(self._cell) if len(self._cell) else 0
        return weight, bias, *sizes, options, 4 * outputs, 4, source, target, cell


class _KernelRecurrentLayer(_KernelLayer):
    """A layer of GRU or LSTM.

    Args:
        source: Buffer of the inputs.
        parameters: Weights and biases, as PyTorch orders them.
        places: See `kernel.CELL`: addresses of output and memory in the state.
        columns: See `_KernelLayer`.
    """

    def __init__(
        self,
        source: Tensor,
        parameters: Sequence[Tensor],
        places: Sequence[int],
        columns: tuple[Tensor, Tensor] | None,
    ) -> None:
        weight, recurrent, *self._biases = parameters
        super().__init__(source, [weight], [self._biases[0]], columns=columns)
        self._size = recurrent.shape[1]
        self._bias, self.target = torch.empty(4 * self._size), _buffer(4 * self._size)
        self._cell = record(kernel.CELL, (self._size, recurrent.data_ptr(), *places))

    def pack(self) -> None:
        """Copy the parameters that are not read in place, and add both biases."""
        super().pack()
        bias, recurrent_bias = self._biases
        if len(bias) == len(self._bias):
            torch.add(bias, recurrent_bias, out=self._bias)
            return
        joined = 2 * self._size
        both = bias[:joined] + recurrent_bias[:joined]
        torch.cat([both, bias[joined:], recurrent_bias[joined:]], out=self._bias)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))


class Program:
    """Buffers, packed parameters and records for one policy.

    Args:
        model: Supported policy, whose parameters must not be moved in memory.

    Attributes:
        address: Address of the `kernel.PROGRAM` record.
        value_address: Address of the record that computes only the value.
        state_size: Size of the model's state.
        num_choices: Columns of a mask.
        observes_choices: Whether a leaf of the observation is a choice.
    """

    def __init__(self, model: ActorCritic) -> None:
        self._model = model
        vectors, narrow, wide = columns_by_kind(model.actor_body.encoders)
        self._columns, specs = (
            (torch.cat([vectors, narrow]), wide),
            model.observation_specs.values(),
        )
        self._inputs = _buffer(len(vectors) + len(narrow))
        one_hot: list[OneHotEncoder] = [
            each for each in model.actor_body.encoders if isinstance(each, OneHotEncoder)
        ]
        num_wide = sum(len(each.choices) for each in one_hot if each.is_wide)
        self._chosen = torch.zeros(LANES, max(1, num_wide), dtype=torch.int64)
        choices = list(self._choices(self._inputs[len(vectors) :].data_ptr()))
        self.observes_choices = bool(choices)
        self._noise = _buffer(model.distribution.noise_size)
        self._layers: list[_KernelLayer] = []
        self.state_size = sum(core.state_size for core in model.cores)
        self._states = _buffer(self.state_size), _buffer(self.state_size)
        with torch.no_grad():
            outputs, value, num_skipped = self._network()
        self._constants: list[tuple[Tensor, int]] = []
        self._bounds: list[Tensor] = []
        self.num_choices = 0
        parts = list(self._parts(outputs))
        self._scratch = _buffer(1 + max((part[3] for part in parts), default=0))
        self._statistics = torch.zeros(len(vectors), 2)
        self._normalised = any(isinstance(n, RunningNormalizer) for n in model.normalizers)
        self._layer_records = record(kernel.LAYER, *(layer.record() for layer in self._layers))
        self._part_records = record(kernel.PART, *parts)
        self._record = np.zeros(1, kernel.PROGRAM)
        self._record["inputs"] = self._inputs.data_ptr()
        self._record["num_inputs"] = len(vectors)
        self._record["statistics"] = self._statistics.data_ptr() if self._normalised else 0
        self._record["num_leaves"] = sum(spec.dtype == torch.float32 for spec in specs)
        self._choice_records = record(kernel.CHOICE, *choices)
        self._record["choices"] = address(self._choice_records)
        self._record["num_choices"] = len(choices)
        self._record["chosen"], self._record["num_wide"] = self._chosen.data_ptr(), num_wide
        self._record["layers"] = address(self._layer_records)
        self._record["num_layers"] = len(self._layers)
        self._record["parts"] = address(self._part_records)
        self._record["num_parts"] = len(parts)
        self._record["noise"] = self._noise.data_ptr()
        self._record["scratch"] = self._scratch.data_ptr()
        self._record["value"] = value
        self._record["state"], self._record["next_state"] = (x.data_ptr() for x in self._states)
        self.address = address(self._record)
        self._value_record = self._record.copy()
        self._value_record["layers"] = address(self._layer_records[num_skipped:])
        self._value_record["num_layers"] = len(self._layers) - num_skipped
        self._value_record["num_parts"] = 0
        self.value_address = address(self._value_record)
        self.pack()

    @torch.no_grad()
    def pack(self) -> None:
        """Copy the model's parameters and running statistics into the kernel's memory."""
        for layer in self._layers:
            layer.pack()
        bounded = self._model.distribution.bounded_log_std()
        for constants, first in self._constants:
            log_std = bounded[first : first + len(constants) // 2]
            constants[0] = -(log_std + _LOG_SQRT_2PI).sum()
            constants[1::2] = log_std.exp()
            constants[2::2] = (-log_std).exp()
        if self._normalised:
            normalizers = [n for n in self._model.normalizers if isinstance(n, RunningNormalizer)]
            self._statistics[:, 0] = torch.cat([n.mean.flatten() for n in normalizers])
            self._statistics[:, 1] = torch.cat([n.scale().flatten() for n in normalizers])

    def _network(self) -> tuple[int, int, int]:
        """Add all layers.

        Returns the addresses of the actor's outputs and of the value, and the number of the first
        layer that the value needs.
        """
        model = self._model
        if model.critic_body is None:
            heads = model.actor_head, model.critic_head
            outputs = self._chain(model.actor_body, model.actor_core, *heads)
            return outputs, outputs + model.distribution.num_parameters * LANE_BYTES, 0
        outputs = self._chain(model.actor_body, model.actor_core, model.actor_head)
        first = len(self._layers)
        value = self._chain(model.critic_body, model.critic_core, model.critic_head, is_critic=True)
        return outputs, value, first

    def _chain(
        self, body: Body, core: Core | None, *heads: nn.Linear, is_critic: bool = False
    ) -> int:
        """Add the layers of a body, its memory and heads; return the address of their outputs."""
        source, modules = self._inputs, list(body.mlp)
        for linear, activation in zip(modules[::2], modules[1::2], strict=True):
            assert isinstance(linear, nn.Linear)
            source = self._add(source, linear, activation=_ACTIVATIONS[type(activation)])
        if isinstance(core, RecurrentCore):
            source = self._recurrent(source, core, is_critic)
        return self._add(source, *heads).data_ptr()

    def _add(
        self, source: Tensor, *linears: nn.Linear, activation: int = layers.IDENTITY
    ) -> Tensor:
        """Add a layer; return the buffer of its outputs."""
        weights, biases = [each.weight for each in linears], [each.bias for each in linears]
        columns = self._columns if source is self._inputs else None
        self._layers.append(_KernelLayer(source, weights, biases, activation, columns))
        return self._layers[-1].target

    def _choices(self, vectors: int) -> Iterator[tuple[int, ...]]:
        """Yield a `kernel.CHOICE` for each observed choice; narrow ones begin at an address."""
        chosen, row, first = self._chosen.data_ptr(), 8 * self._chosen.stride(0), 0
        for encoder in self._model.actor_body.encoders:
            for start, size in encoder.choices if isinstance(encoder, OneHotEncoder) else ():
                if encoder.is_wide:
                    yield start, size, chosen, row, first
                    first, chosen = first + size, chosen + 8
                else:
                    yield start, size, vectors, 0, 0
                    vectors += size * LANE_BYTES

    def _recurrent(self, source: Tensor, core: RecurrentCore, is_critic: bool) -> Tensor:
        """Add a memory; return the buffer of its output."""
        module, size = core.layers, core.layers.hidden_size
        first = self._states[0].shape[0] - core.state_size if is_critic else 0
        for number in range(module.num_layers):
            before, after = (state[first + number * size :] for state in self._states)
            places = [before.data_ptr(), after.data_ptr(), 0, 0]
            if isinstance(module, nn.LSTM):
                distance = module.num_layers * size
                places[2:] = before[distance:].data_ptr(), after[distance:].data_ptr()
            columns = self._columns if source is self._inputs else None
            parameters = module.all_weights[number]
            self._layers.append(_KernelRecurrentLayer(source, parameters, places, columns))
            source = after
        return source

    def _parts(self, outputs: int) -> Iterator[tuple[int, ...]]:
        """Yield a `kernel.PART` for each categorical and for each other leaf."""
        noise, log_std = self._noise.data_ptr(), 0
        for part in self._model.distribution.parts.values():
            if isinstance(part, Categoricals):
                for size in part.sizes:
                    yield kernel.CATEGORICAL, outputs, noise, size, 0, 0, self.num_choices
                    self.num_choices += size
                    outputs += size * LANE_BYTES
                    noise += LANE_BYTES
                continue
            if part.state_std:
                constants = self._state_constants(part)
            else:
                constants = torch.zeros(1 + 2 * part.num_log_std)
                self._constants.append((constants, log_std))
            kind, size = _KINDS[type(part)], part.num_noise
            yield kind, outputs, noise, size, constants.data_ptr(), int(part.state_std), 0
            outputs += part.num_parameters * LANE_BYTES
            noise += part.num_noise * LANE_BYTES
            log_std += part.num_log_std

    def _state_constants(self, part: ActionPart) -> Tensor:
        """Return the constants of a part whose standard deviation depends on the state."""
        bounds = (*LOG_STD_RANGE, 0.0)
        if self._model.distribution.middle_and_half is not None:
            middle, half = self._model.distribution.middle_and_half
            bounds = (middle, half, 1 / half)
        self._bounds.append(torch.tensor([-_LOG_SQRT_2PI * part.num_noise, *bounds]))
        return self._bounds[-1]
