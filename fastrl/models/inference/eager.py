"""Runs any policy with PyTorch as it stands: on the CPU in place, elsewhere through staging."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fastrl.models.inference.engine import InferenceEngine, PolicyOutput
from fastrl.models.policy import PolicyModel
from fastrl.spec import checked_step, outputs_of

Leaves = Mapping[str, Tensor]


class EagerEngine(InferenceEngine):
    """Calls the policy's own methods on the CPU, without autograd and in evaluation mode.

    Same inputs give the same bits, but the last bits of a row may depend on the batch's size,
    with which matrix products choose how they add up.

    Args:
        model: Any policy; copied.
    """

    name = "eager"

    def __init__(self, model: PolicyModel) -> None:
        self._device = torch.device("cpu")
        self._outputs = outputs_of(model)
        self._model = copy.deepcopy(model)
        self._model.to(self._device)
        for parameter in self._model.parameters():
            parameter.requires_grad_(False)
        if isinstance(self._model, nn.Module):
            # Dropout would be noise that nobody has drawn, and a batch is whoever happens to wait.
            self._model.eval()

    def load(self, state_dict: Mapping[str, Tensor]) -> None:
        """Copy parameters in; calls that are already bound use them from then on."""
        self._model.load_state_dict(state_dict)

    def draw_noise(
        self, shape: tuple[int, ...], generator: torch.Generator | None = None
    ) -> Tensor:
        """Return noise ``[*shape, noise_size] float32``."""
        return self._model.draw_noise(shape, generator)

    def bind(self, observation: Leaves, noise: Tensor, out: PolicyOutput) -> Callable[[], None]:
        """Return a call that samples actions, and writes them and the policy's outputs."""
        model, outputs = self._model, self._outputs

        @torch.inference_mode()
        def call() -> None:
            step = checked_step(model, outputs, model.act(observation, noise), len(noise))
            for path, target in out.action.items():
                target.copy_(step.action[path])
            for name, target in out.outputs.items():
                target.copy_(step.outputs[name])

        return call

    def bind_values(self, observation: Leaves, out: Tensor) -> Callable[[], None]:
        """Return a call that writes the value of ``observation`` into ``out``."""
        model = self._model

        @torch.inference_mode()
        def call() -> None:
            out.copy_(model.value(observation))

        return call


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

    def bind(self, observation: Leaves, noise: Tensor, out: PolicyOutput) -> Callable[[], None]:
        """Return a call that samples actions, and writes them and the policy's outputs."""
        inputs = {f"observation/{path}": leaf for path, leaf in observation.items()}
        results = {f"action/{path}": leaf for path, leaf in out.action.items()}
        results |= {f"output/{name}": rows for name, rows in out.outputs.items()}
        send, receive = self._sender(inputs | {"noise": noise}), self._receiver(results)
        model, outputs = self._model, self._outputs

        @torch.inference_mode()
        def call() -> None:
            on_device = send()
            there = {path: on_device[f"observation/{path}"] for path in observation}
            step = checked_step(model, outputs, model.act(there, on_device["noise"]), len(noise))
            found = {f"action/{path}": step.action[path] for path in out.action}
            receive(found | {f"output/{name}": step.outputs[name] for name in out.outputs})

        return call

    def bind_values(self, observation: Leaves, out: Tensor) -> Callable[[], None]:
        """Return a call that writes the value of ``observation`` into ``out``."""
        inputs = {f"observation/{path}": leaf for path, leaf in observation.items()}
        send, receive = self._sender(inputs), self._receiver({"value": out})
        model = self._model

        @torch.inference_mode()
        def call() -> None:
            on_device = send()
            there = {path: on_device[f"observation/{path}"] for path in observation}
            receive({"value": model.value(there)})

        return call

    def _sender(self, sources: Leaves) -> Callable[[], Leaves]:
        """Return a call that starts copying to the device and returns the copies."""
        staged = {name: self._stage(name, source) for name, source in sources.items()}

        def send() -> Leaves:
            for name, source in sources.items():
                locked, there = staged[name]
                locked.copy_(source)
                there.copy_(locked, non_blocking=True)
            return {name: there for name, (_, there) in staged.items()}

        return send

    def _receiver(self, targets: Leaves) -> Callable[[Leaves], None]:
        """Return a call that copies results back and waits for them."""
        locked = {name: self._stage(name, target)[0] for name, target in targets.items()}

        def receive(results: Leaves) -> None:
            for name, result in results.items():
                locked[name].copy_(result, non_blocking=True)
            if self._device.type == "cuda":
                torch.cuda.current_stream(self._device).synchronize()
            for name, target in targets.items():
                target.copy_(locked[name])

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
