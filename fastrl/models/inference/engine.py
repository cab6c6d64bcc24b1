"""The interface of inference engines, and the ones that run any policy with PyTorch."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastrl.models.policy import Leaves, PolicyModel, initial_state, state_size
from fastrl.spaces import TensorSpec
from fastrl.spec import LOG_PROB_AND_VALUE, checked_step, only_given, outputs_of


@dataclass(frozen=True)
class PolicyOutput:
    """Views of the shared table that an engine writes into.

    Attributes:
        action: Per leaf ``[n, *shape]`` in the dtypes of `fastrl.spaces.action_specs`.
        outputs: Those of the policy (see `fastrl.spec.outputs_of`), by name ``[n, *shape]``.
        state: ``[n, S]`` float32: the next state of a policy with a memory, else None; never the
            memory of the state before.
    """

    action: dict[str, Tensor]
    outputs: dict[str, Tensor]
    state: Tensor | None = None

    @classmethod
    def zeros(
        cls,
        num_rows: int,
        action: Mapping[str, TensorSpec],
        outputs: Mapping[str, TensorSpec] = LOG_PROB_AND_VALUE,
        state_size: int = 0,
    ) -> PolicyOutput:
        """Return new tensors for n rows of an action space, see `EnvSpec.action`."""
        actions, others = (
            {name: torch.zeros(num_rows, *spec.shape, dtype=spec.dtype) for name, spec in x.items()}
            for x in (action, outputs)
        )
        state = torch.zeros(num_rows, state_size) if state_size else None
        return cls(actions, others, state)


class InferenceEngine(ABC):
    """Computes a policy for batches of n rows in CPU tensors, which may be views of any strides.

    An engine has a copy of the parameters. `bind` prepares everything that depends only on the
    tensors, since workers use the same views in every rollout. ``state`` is passed only for a
    policy with a memory: an engine that runs no such policies needs neither the parameter nor
    `initial_state`.

    Attributes:
        name: For reports; by default that of the class.
    """

    name = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Name a class without ``name`` after itself."""
        super().__init_subclass__(**kwargs)
        cls.name = cls.__dict__.get("name", cls.__name__)

    @abstractmethod
    def load(self, state_dict: Mapping[str, Tensor]) -> None:
        """Copy parameters in; calls that are already bound use them from then on."""

    @abstractmethod
    def draw_noise(
        self, shape: tuple[int, ...], generator: torch.Generator | None = None
    ) -> Tensor:
        """Return noise ``[*shape, noise_size] float32`` on the CPU, as `bind` consumes it."""

    def initial_state(self, n: int) -> Tensor:
        """Return the states ``[n, S] float32`` in which episodes begin, on the CPU."""
        return torch.zeros(n, 0)

    @abstractmethod
    def bind(
        self,
        observation: Mapping[str, Tensor],
        noise: Tensor,
        out: PolicyOutput,
        state: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Callable[[], None]:
        """Return a call that samples actions, and writes them and the policy's outputs.

        Args:
            observation: Per leaf ``[n, *shape]``, read by each call.
            noise: ``[n, noise_size] float32``, read by each call.
            out: Written by each call.
            state: ``[n, S] float32``, read by each call.
            mask: ``[n, choices] bool``: which actions are valid, read by each call; passed only
                where the environment has masks.

        Raises:
            ValueError: A tensor's shape, dtype or device is not the one expected.
        """

    @abstractmethod
    def bind_values(
        self, observation: Mapping[str, Tensor], out: Tensor, state: Tensor | None = None
    ) -> Callable[[], None]:
        """Return a call that writes the value of ``observation`` into ``out [n] float32``.

        Raises:
            ValueError: A tensor's shape, dtype or device is not the one expected.
        """

    def act(
        self, observation: Mapping[str, Tensor], noise: Tensor, out: PolicyOutput, **given: Any
    ) -> None:
        """Bind and call once; ``given`` are further arguments of `bind`."""
        self.bind(observation, noise, out, **given)()

    def values(self, observation: Mapping[str, Tensor], out: Tensor, **given: Tensor) -> None:
        """Bind and call once."""
        self.bind_values(observation, out, **given)()


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
