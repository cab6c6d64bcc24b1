"""Runs MLP policies on the CPU by one call into compiled code; see `mlp_kernel`."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from fastrl.models.action_parts import Categoricals
from fastrl.models.actor_critic import ActorCritic
from fastrl.models.inference import mlp_kernel as kernel
from fastrl.models.inference.engine import InferenceEngine, PolicyOutput
from fastrl.models.inference.mlp_program import Program, address, compile_kernel, record

View = tuple[int, int, int, int]
"""Values of a `kernel.VIEW` record."""


class _Call(functools.partial[None]):
    """A call of the kernel, which knows only addresses, with what keeps them valid."""

    owners: tuple[object, ...]


class MlpEngine(InferenceEngine):
    """A supported `ActorCritic` (see `mlp_program.why_not`), compiled for this machine's CPU.

    Actions, log_probs and values of a row have the same bits whatever else is in the batch, and
    agree with `ActorCritic.act` to float32 rounding, about 1e-6. A discrete action can differ only
    where the noise falls that close to the boundary between two categories.

    The first engine on a machine compiles for some seconds; later ones, in any process, find the
    result on disk.

    Args:
        model: Supported policy; copied.
    """

    name = "compiled"

    def __init__(self, model: ActorCritic) -> None:
        self._model = copy.deepcopy(model).cpu()
        self._act = Program(self._model)
        self._values = Program(self._model, values_only=True)
        compile_kernel()

    def load(self, state_dict: Mapping[str, Tensor]) -> None:
        """Copy parameters in; calls that are already bound use them from then on."""
        self._model.load_state_dict(state_dict)
        self._act.pack()
        self._values.pack()

    def draw_noise(
        self, shape: tuple[int, ...], generator: torch.Generator | None = None
    ) -> Tensor:
        """Return noise ``[*shape, noise_size] float32``."""
        return self._model.draw_noise(shape, generator)

    def bind(
        self, observation: Mapping[str, Tensor], noise: Tensor, out: PolicyOutput
    ) -> Callable[[], None]:
        """Return a call that samples actions, and writes them and the policy's outputs."""
        rows = len(noise)
        noise_shape = (rows, self._model.distribution.noise_size)
        return self._call(
            self._act,
            rows,
            noise=[_view("noise", noise, noise_shape)],
            log_prob=[_view("log_prob", out.outputs["log_prob"], (rows,))],
            value=[_view("value", out.outputs["value"], (rows,))],
            leaves=list(self._observation_views(observation, rows)),
            parts=list(self._action_views(out.action, rows)),
            owners=(observation, noise, out),
        )

    def bind_values(self, observation: Mapping[str, Tensor], out: Tensor) -> Callable[[], None]:
        """Return a call that writes the value of ``observation`` into ``out``."""
        return self._call(
            self._values,
            len(out),
            value=[_view("value", out, (len(out),))],
            leaves=list(self._observation_views(observation, len(out))),
            owners=(observation, out),
        )

    def _call(
        self, program: Program, rows: int, owners: tuple[object, ...], **views: list[View]
    ) -> Callable[[], None]:
        """Return a call of the kernel for views by the names of `kernel.CALL`."""
        records = {name: record(kernel.VIEW, *found) for name, found in views.items()}
        call = record(kernel.CALL, (rows, 0, 0, 0, 0, 0))
        for name, views_record in records.items():
            call[name] = address(views_record)
        bound = _Call(kernel.run, program.address, address(call))
        bound.owners = (self, call, records, owners)
        return bound

    def _observation_views(self, observation: Mapping[str, Tensor], rows: int) -> Iterator[View]:
        for path, spec in self._model.observation_specs.items():
            yield _view(f"observation '{path}'", observation[path], (rows, *spec.shape))

    def _action_views(self, action: Mapping[str, Tensor], rows: int) -> Iterator[View]:
        """Yield one view per action part: each categorical is one, other leaves are whole."""
        for path, part in self._model.distribution.parts.items():
            shape = (rows, *part.shape)
            start, row, column, width = _view(f"action '{path}'", action[path], shape, part.dtype)
            if isinstance(part, Categoricals):
                yield from ((start + i * column, row, 0, 1) for i in range(width))
            else:
                yield start, row, column, width


def _view(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> View:
    """Return a tensor as rows of elements.

    Raises:
        ValueError: It is not what is expected, or its inner axes have no common stride.
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
