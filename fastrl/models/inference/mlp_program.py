"""Describes an MLP policy to `mlp_kernel`: which buffers, which layers, which action parts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastrl.models.action_parts import (
    LOG_STD_RANGE,
    ActionPart,
    Bernoullis,
    Categoricals,
    Gaussians,
    SquashedGaussians,
)
from fastrl.models.actor_critic import ActorCritic
from fastrl.models.inference import mlp_kernel as kernel
from fastrl.models.inference.lanes import LANE_BYTES, LANES
from fastrl.models.networks import Body, VectorEncoder
from fastrl.models.normalization import RunningNormalizer
from fastrl.spec import LOG_PROB_AND_VALUE, outputs_of

_ACTIVATIONS: Mapping[type[nn.Module], int] = {
    nn.Tanh: kernel.TANH,
    nn.ReLU: kernel.RELU,
    nn.ELU: kernel.ELU,
    nn.SiLU: kernel.SILU,
}
_KINDS: Mapping[type[ActionPart], int] = {
    Bernoullis: kernel.BERNOULLI,
    Gaussians: kernel.GAUSSIAN,
    SquashedGaussians: kernel.SQUASHED,
}
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


def why_not(model: object) -> str:
    """Return why a policy cannot be compiled; empty where it can.

    It must be an `ActorCritic` itself, as a subclass may compute anything, with the outputs
    log_prob and value, float32 parameters, observation leaves that are float32 vectors, and any
    activation but GELU.
    """
    more = ", ".join(sorted(outputs_of(model).keys() - LOG_PROB_AND_VALUE.keys()))
    if type(model) is not ActorCritic:
        told = f" and puts out {more}" if more else ""
        return f"{type(model).__name__} is another class than ActorCritic{told}"
    if outputs_of(model) != LOG_PROB_AND_VALUE:
        return "the policy declares other outputs than log_prob and value"
    specs = model.observation_specs.values()
    modules = [
        module for body in (model.actor_body, model.critic_body) if body for module in body.mlp
    ]
    is_mlp = all(type(encoder) is VectorEncoder for encoder in model.actor_body.encoders)
    if not (is_mlp and all(spec.dtype == torch.float32 for spec in specs)):
        return "an observation is not a vector of float32"
    if not all(type(module) in _ACTIVATIONS for module in modules[1::2]):
        return "its activation is not compiled"
    if not all(parameter.dtype == torch.float32 for parameter in model.parameters()):
        return "a parameter is not float32"
    return ""


def compile_kernel() -> None:
    """Compile the kernel, or load what was compiled before, by a call without rows."""
    program, call = np.zeros(1, kernel.PROGRAM), np.zeros(1, kernel.CALL)
    kernel.run(address(program), address(call))


def record(dtype: np.dtype[Any], *rows: tuple[int, ...]) -> NDArray[Any]:
    """Return records for the kernel, at least one so that they have an address."""
    return np.array(list(rows) or [(0,) * len(dtype.names or ())], dtype=dtype)


def address(array: NDArray[Any]) -> int:
    """Return the address of an array's first byte; valid while the array lives."""
    return int(array.__array_interface__["data"][0])


def _buffer(features: int) -> Tensor:
    # torch aligns to cache lines, which NumPy does not.
    return torch.zeros(max(1, features), LANES)


@dataclass
class _Layer:
    """One layer of the network: linear modules side by side, applied to the same source."""

    linears: tuple[nn.Linear, ...]
    activation: int
    source: Tensor
    target: Tensor
    weights: Tensor

    @classmethod
    def over(cls, source: Tensor, linears: tuple[nn.Linear, ...], activation: int) -> _Layer:
        tiles = -(-sum(linear.out_features for linear in linears) // kernel.TILE)
        weights = torch.zeros(tiles, 1 + linears[0].in_features, kernel.TILE)
        return cls(linears, activation, source, _buffer(tiles * kernel.TILE), weights)

    def pack(self) -> None:
        """Copy the modules' parameters; outputs that fill up the last tile stay 0."""
        tiles, columns, width = self.weights.shape
        rows = [torch.cat([x.bias[:, None], x.weight], dim=1) for x in self.linears]
        padded = torch.zeros(tiles * width, columns)
        padded[: sum(len(part) for part in rows)] = torch.cat(rows).detach()
        self.weights.copy_(padded.view(tiles, width, columns).transpose(1, 2))

    def record(self) -> tuple[int, ...]:
        """Return a `kernel.LAYER`."""
        addresses = (self.source.data_ptr(), self.target.data_ptr(), self.weights.data_ptr())
        tiles, columns, _ = self.weights.shape
        return (*addresses, columns - 1, tiles, self.activation)


class Program:
    """Buffers, packed parameters and records for one policy, or for its value alone.

    Args:
        model: Supported policy, whose parameters `pack` reads.
        values_only: Leave the policy out.

    Attributes:
        address: Of the `kernel.PROGRAM` record.
    """

    def __init__(self, model: ActorCritic, values_only: bool = False) -> None:
        self._model = model
        widths = [math.prod(spec.shape) for spec in model.observation_specs.values()]
        self._inputs = _buffer(sum(widths))
        self._noise = _buffer(model.distribution.noise_size)
        self._layers: list[_Layer] = []
        outputs, value = self._network(values_only)
        self._constants: list[tuple[Tensor, int]] = []
        self._bounds: list[Tensor] = []
        parts = [] if values_only else list(self._parts(outputs))
        self._scratch = _buffer(1 + max((part[3] for part in parts), default=0))
        self._statistics = torch.zeros(sum(widths), 2)
        self._normalised = any(isinstance(n, RunningNormalizer) for n in model.normalizers)
        self._layer_records = record(kernel.LAYER, *(layer.record() for layer in self._layers))
        self._part_records = record(kernel.PART, *parts)
        self._record = np.zeros(1, kernel.PROGRAM)
        self._record["inputs"] = self._inputs.data_ptr()
        self._record["num_inputs"] = sum(widths)
        self._record["statistics"] = self._statistics.data_ptr() if self._normalised else 0
        self._record["num_leaves"] = len(widths)
        self._record["layers"] = address(self._layer_records)
        self._record["num_layers"] = len(self._layers)
        self._record["parts"] = address(self._part_records)
        self._record["num_parts"] = len(parts)
        self._record["noise"] = self._noise.data_ptr()
        self._record["scratch"] = self._scratch.data_ptr()
        self._record["value"] = value
        self.address = address(self._record)
        self.pack()

    @torch.no_grad()
    def pack(self) -> None:
        """Copy the model's parameters and running statistics to where the kernel reads them."""
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

    def _network(self, values_only: bool) -> tuple[int, int]:
        """Add all layers; return where they leave the actor's outputs and the value."""
        model = self._model
        critic_body = model.critic_body or model.actor_body
        if values_only:
            return 0, self._chain(critic_body, model.critic_head)
        if model.critic_body is None:
            outputs = self._chain(model.actor_body, model.actor_head, model.critic_head)
            return outputs, outputs + model.distribution.num_parameters * LANE_BYTES
        outputs = self._chain(model.actor_body, model.actor_head)
        return outputs, self._chain(critic_body, model.critic_head)

    def _chain(self, body: Body, *heads: nn.Linear) -> int:
        """Add the layers of a body and its heads; return the address of the heads' outputs."""
        source, modules = self._inputs, list(body.mlp)
        for linear, activation in zip(modules[::2], modules[1::2], strict=True):
            assert isinstance(linear, nn.Linear)
            self._layers.append(_Layer.over(source, (linear,), _ACTIVATIONS[type(activation)]))
            source = self._layers[-1].target
        self._layers.append(_Layer.over(source, heads, kernel.IDENTITY))
        return self._layers[-1].target.data_ptr()

    def _parts(self, outputs: int) -> Iterator[tuple[int, ...]]:
        """Yield a `kernel.PART` for each categorical and for each other leaf."""
        noise, log_std = self._noise.data_ptr(), 0
        for part in self._model.distribution.parts.values():
            if isinstance(part, Categoricals):
                for size in part.sizes:
                    yield kernel.CATEGORICAL, outputs, noise, size, 0, 0
                    outputs += size * LANE_BYTES
                    noise += LANE_BYTES
                continue
            if part.state_std:
                constants = self._state_constants(part)
            else:
                constants = torch.zeros(1 + 2 * part.num_log_std)
                self._constants.append((constants, log_std))
            kind, size = _KINDS[type(part)], part.num_noise
            yield kind, outputs, noise, size, constants.data_ptr(), int(part.state_std)
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
