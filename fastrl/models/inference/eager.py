"""Runs any policy with PyTorch: on the CPU in place, elsewhere through page-locked buffers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fastrl.models.inference.engine import InferenceEngine, PolicyOutput
from fastrl.models.policy import Leaves, PolicyModel, initial_state, state_size
from fastrl.spec import checked_step, only_given, outputs_of


class EagerEngine(InferenceEngine):
    """Calls the policy's methods on the CPU, without autograd and in evaluation mode.

    Same inputs give the same bits, but the last bits of a row may depend on the batch's size,
    with which matrix products choose how they add up.

    Args:
        model: Any policy; copied.
    """

    name = "eager"

    def __init__(self, model: PolicyModel) -> None:
        self._outputs, self._state_size = outputs_of(model), state_size(model)
        self._model = copy.deepcopy(model)
        self._model.to(torch.device("cpu"))
        for parameter in self._model.parameters():
            parameter.requires_grad_(False)
        if isinstance(self._model, nn.Module):
            # Dropout would be noise that is not drawn, and a batch is any set of waiting rows.
            self._model.eval()

    def load(self, state_dict: Mapping[str, Tensor]) -> None:
        """Copy parameters in; calls that are already bound use them from then on."""
        self._model.load_state_dict(state_dict)

    def draw_noise(
        self, shape: tuple[int, ...], generator: torch.Generator | None = None
    ) -> Tensor:
        """Return noise ``[*shape, noise_size] float32``."""
        return self._model.draw_noise(shape, generator)

    @torch.inference_mode()
    def initial_state(self, n: int) -> Tensor:
        """Return the states ``[n, S] float32`` in which episodes begin."""
        return initial_state(self._model, n).cpu()

    def bind(
        self,
        observation: Leaves,
        noise: Tensor,
        out: PolicyOutput,
        state: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Callable[[], None]:
        """Return a call that samples actions, and writes them and the policy's outputs."""
        model, outputs, size = self._model, self._outputs, self._state_size
        inputs = self._inputs("observation", observation)
        drawn = self._inputs("noise", {"": noise})
        further = self._inputs("further", only_given(state=state, mask=mask))
        targets = {f"action/{path}": leaf for path, leaf in out.action.items()}
        targets |= {f"output/{name}": x for name, x in out.outputs.items()}
        write = self._writer(targets if out.state is None else targets | {"state": out.state})

        @torch.inference_mode()
        def call() -> None:
            acted = model.act(inputs(), drawn()[""], **further())
            step = checked_step(model, outputs, acted, len(noise), size)
            results = [step.action[path] for path in out.action]
            results += [step.outputs[name] for name in out.outputs]
            if step.state is not None and out.state is not None:
                results.append(step.state)
            write(results)

        return call

    def bind_values(
        self, observation: Leaves, out: Tensor, state: Tensor | None = None
    ) -> Callable[[], None]:
        """Return a call that writes the value of ``observation`` into ``out``."""
        model = self._model
        inputs, write = self._inputs("observation", observation), self._writer({"value": out})
        further = self._inputs("further", only_given(state=state))

        @torch.inference_mode()
        def call() -> None:
            write([model.value(inputs(), **further())])

        return call

    def _inputs(self, kind: str, sources: Leaves) -> Callable[[], Leaves]:
        """Return a call that returns tensors where the model is."""
        return lambda: sources

    def _writer(self, targets: Leaves) -> Callable[[Sequence[Tensor]], None]:
        """Return a call that writes results, one for each of ``targets``."""
        tensors = list(targets.values())

        def write(results: Sequence[Tensor]) -> None:
            for target, result in zip(tensors, results, strict=True):
                target.copy_(result)

        return write


class StagedEngine(EagerEngine):
    """An `EagerEngine` on another device: copies in and out overlap, and one wait ends each call.

    All calls share one page-locked buffer per tensor, as the shared table itself is not
    page-locked and a transfer from it could not be asynchronous. Calls must not run at once.

    Args:
        model: Any policy; copied.
        device: Where it runs.
    """

    name = "eager"

    def __init__(self, model: PolicyModel, device: torch.device) -> None:
        super().__init__(model)
        self._device = device
        self._model.to(device)
        self._buffers: dict[str, tuple[Tensor, Tensor]] = {}

    def _inputs(self, kind: str, sources: Leaves) -> Callable[[], Leaves]:
        """Return a call that starts copying to the device and returns the copies."""
        staged = [(x, *self._stage(f"{kind}/{path}", x)) for path, x in sources.items()]
        there = {path: copied for path, (*_, copied) in zip(sources, staged, strict=True)}

        def send() -> Leaves:
            for source, locked, copied in staged:
                locked.copy_(source)
                copied.copy_(locked, non_blocking=True)
            return there

        return send

    def _writer(self, targets: Leaves) -> Callable[[Sequence[Tensor]], None]:
        """Return a call that copies results back and waits for them."""
        staged = [(target, self._stage(name, target)[0]) for name, target in targets.items()]

        def receive(results: Sequence[Tensor]) -> None:
            for (_, locked), result in zip(staged, results, strict=True):
                locked.copy_(result, non_blocking=True)
            if self._device.type == "cuda":
                torch.cuda.current_stream(self._device).synchronize()
            for target, locked in staged:
                target.copy_(locked)

        return receive

    def _stage(self, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return (page-locked, on the device) buffers for the rows of ``like``."""
        rows = len(like)
        if name not in self._buffers or len(self._buffers[name][0]) < rows:
            locked = torch.empty(
                like.shape, dtype=like.dtype, pin_memory=self._device.type == "cuda"
            )
            self._buffers[name] = (locked, torch.empty_like(locked, device=self._device))
        locked, there = self._buffers[name]
        return locked[:rows], there[:rows]
