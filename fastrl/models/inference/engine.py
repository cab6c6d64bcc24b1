"""The base class of inference engines, and those that need no compiler: PyTorch and random."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from fastrl.arguments import instance, methods
from fastrl.errors import FastrlError
from fastrl.models.policy import Leaves, PolicyModel, initial_state, state_size
from fastrl.spaces import TensorSpec, leaves, num_choices
from fastrl.spec import LOG_PROB_AND_VALUE, EnvSpec, checked_step, only_given, outputs_of

_WIDEST = 1e30
"""A ``Box`` with this span or more counts as unbounded."""


@dataclass(frozen=True)
class PolicyOutput:
    """Views of the shared table into which an engine writes.

    Attributes:
        action: Per leaf ``[n, *shape]`` in the dtypes of `fastrl.spaces.action_specs`.
        outputs: Outputs of the policy (see `fastrl.spec.outputs_of`), by name ``[n, *shape]``.
        state: ``[n, S]`` float32: the next state of a policy with a memory, else None; never in the
            memory of the current state.
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
        """Return new tensors for n rows; see `EnvSpec.action`."""
        actions, others = (
            {name: torch.zeros(num_rows, *spec.shape, dtype=spec.dtype) for name, spec in x.items()}
            for x in (action, outputs)
        )
        state = torch.zeros(num_rows, state_size) if state_size else None
        return cls(actions, others, state)


class InferenceEngine(ABC):
    """Computes a policy for batches of n rows, which are CPU tensors with any strides.

    An engine has a copy of the parameters. `bind` prepares all that depends only on the
    tensors, since workers use the same views in every rollout. ``state`` is passed only for a
    policy with a memory, so an engine without memories needs neither the parameter nor
    `initial_state`.

    Attributes:
        name: Name in reports; by default the name of the class.
    """

    name = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Set ``name`` to the name of the class, unless it defines one."""
        super().__init_subclass__(**kwargs)
        cls.name = cls.__dict__.get("name", cls.__name__)

    @abstractmethod
    def load(self, state_dict: Mapping[str, Tensor]) -> None:
        """Copy parameters into the engine; bound calls use them from then on."""

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
            mask: ``[n, choices] bool``: valid actions, read by each call; passed only
                if the environment has masks.

        Raises:
            ValueError: A tensor has a wrong shape, dtype or device.
        """

    @abstractmethod
    def bind_values(
        self, observation: Mapping[str, Tensor], out: Tensor, state: Tensor | None = None
    ) -> Callable[[], None]:
        """Return a call that writes the value of ``observation`` into ``out [n] float32``.

        Raises:
            ValueError: A tensor has a wrong shape, dtype or device.
        """

    def act(
        self, observation: Mapping[str, Tensor], noise: Tensor, out: PolicyOutput, **given: Any
    ) -> None:
        """Bind and call once; ``given`` are further arguments of `bind`."""
        self.bind(observation, noise, out, **given)()

    def values(self, observation: Mapping[str, Tensor], out: Tensor, **given: Tensor) -> None:
        """Bind and call once; ``given`` are further arguments of `bind_values`."""
        self.bind_values(observation, out, **given)()


class EagerEngine(InferenceEngine):
    """Calls the policy's methods on the CPU, without autograd and in evaluation mode.

    Equal batches give equal bits, but the last bits of a row may depend on the size of the batch,
    because the order of sums in matrix products depends on it.

    Args:
        model: Any policy; copied.
    """

    name = "eager"

    def __init__(self, model: PolicyModel) -> None:
        methods("model", model, ("act", "draw_noise", "load_state_dict", "parameters", "to"))
        self._outputs, self._state_size = outputs_of(model), state_size(model)
        self._model = copy.deepcopy(model)
        self._model.to(torch.device("cpu"))
        for parameter in self._model.parameters():
            parameter.requires_grad_(False)
        if isinstance(self._model, nn.Module):
            # Training mode would add dropout, and statistics of batches of arbitrary rows.
            self._model.eval()

    def load(self, state_dict: Mapping[str, Tensor]) -> None:
        """Copy parameters into the engine; bound calls use them from then on."""
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
        targets |= {} if out.state is None else {"state": out.state}
        write = self._writer(targets)

        @torch.inference_mode()
        def call() -> None:
            acted = model.act(inputs(), drawn()[""], **further())
            step = checked_step(model, outputs, acted, len(noise), size)
            results = [step.action[path] for path in out.action]
            results += [step.outputs[name] for name in out.outputs]
            if step.state is not None and out.state is not None:
                results.append(step.state)
            write(_fitting(model, "act", targets, results))

        return call

    def bind_values(
        self, observation: Leaves, out: Tensor, state: Tensor | None = None
    ) -> Callable[[], None]:
        """Return a call that writes the value of ``observation`` into ``out``."""
        model = self._model
        targets = {"value": out}
        inputs, write = self._inputs("observation", observation), self._writer(targets)
        further = self._inputs("further", only_given(state=state))

        @torch.inference_mode()
        def call() -> None:
            write(_fitting(model, "value", targets, [model.value(inputs(), **further())]))

        return call

    def _inputs(self, kind: str, sources: Leaves) -> Callable[[], Leaves]:
        """Return a call that returns tensors on the model's device."""
        return lambda: sources

    def _writer(self, targets: Leaves) -> Callable[[Sequence[Tensor]], None]:
        """Return a call that writes results, one for each of ``targets``."""
        tensors = list(targets.values())

        def write(results: Sequence[Tensor]) -> None:
            for target, result in zip(tensors, results, strict=True):
                target.copy_(result)

        return write


def _fitting(
    model: PolicyModel, method: str, targets: Leaves, results: Sequence[Tensor]
) -> Sequence[Tensor]:
    """Return the policy's results after a check; a copy would broadcast shapes that are too small.

    Raises:
        FastrlError: A result has another shape than its target; the error names it.
    """
    for (name, target), result in zip(targets.items(), results, strict=True):
        if result.shape != target.shape:
            raise FastrlError(
                f"{type(model).__name__}.{method}: '{name.rstrip('/')}' must have the shape "
                f"{list(target.shape)}, got {list(result.shape)}"
            )
    return results


class StagedEngine(EagerEngine):
    """An `EagerEngine` on another device: copies in and out overlap, and one wait ends each call.

    All calls share one page-locked buffer per tensor, as the shared table itself is not
    page-locked and a transfer from it could not be asynchronous. Calls must not run concurrently.

    Args:
        model: Any policy; copied.
        device: Device of the policy.
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


class RandomEngine(InferenceEngine):
    """Samples actions uniformly, in [-1, 1] for an unbounded ``Box``; reads no observation.

    The noise contains the actions, so a call only copies them. Outputs are written as 0. If the
    environment has masks, the noise of discrete actions remains uniform in [0, 1), and each call
    chooses among the valid ones.

    Args:
        env_spec: Gives the action space.
    """

    name = "random"

    def __init__(self, env_spec: EnvSpec) -> None:
        instance("env_spec", env_spec, EnvSpec)
        found = leaves(env_spec.action_space)
        widths = [math.prod(env_spec.action[path].shape) for path in found]
        ends = np.cumsum(widths)
        self._columns = {
            path: slice(int(end) - width, int(end))
            for path, end, width in zip(found, ends, widths, strict=True)
        }
        ranges = np.concatenate([_ranges(leaf) for leaf in found.values()], axis=1)
        self._low, self._span = torch.from_numpy(ranges.astype(np.float32))
        whole = [not isinstance(leaf, spaces.Box) for leaf in found.values()]
        self._whole = torch.from_numpy(np.repeat(whole, widths))
        self._sizes: dict[str, list[int]] = {}
        if env_spec.action_mask is not None:
            self._sizes = {path: list(num_choices(leaf)) for path, leaf in found.items()}
            chosen = np.repeat([bool(sizes) for sizes in self._sizes.values()], widths)
            self._whole &= torch.from_numpy(~chosen)
            self._span[chosen], self._low[chosen] = 1.0, 0.0

    def load(self, state_dict: Mapping[str, Tensor]) -> None:
        """Do nothing: there are no parameters."""

    def draw_noise(
        self, shape: tuple[int, ...], generator: torch.Generator | None = None
    ) -> Tensor:
        """Return actions ``[*shape, noise_size] float32``, of all leaves side by side."""
        noise = torch.rand(*shape, len(self._span), generator=generator)
        actions = noise * self._span + self._low
        # Just below 1 the product may round up to the number of choices.
        whole = actions.floor().minimum(self._span - 1)
        return torch.where(self._whole, whole, actions)

    def bind(
        self,
        observation: Mapping[str, Tensor],
        noise: Tensor,
        out: PolicyOutput,
        state: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Callable[[], None]:
        """Return a call that copies the actions from ``noise``, or chooses valid ones by it."""
        choose = self._choosing(noise, out, mask)
        copies = [
            (target.numpy(), noise[:, self._columns[path]].view(target.shape).numpy())
            for path, target in out.action.items()
            if not choose or not self._sizes[path]
        ]
        outputs = [target.numpy() for target in out.outputs.values()]

        def call() -> None:
            for target, source in copies:
                np.copyto(target, source, casting="unsafe")
            for each in choose:
                each()
            for target in outputs:
                target.fill(0)

        return call

    def _choosing(
        self, noise: Tensor, out: PolicyOutput, mask: Tensor | None
    ) -> list[Callable[[], None]]:
        """Return a call for each discrete element, empty without a mask."""
        if mask is None:
            return []
        calls: list[Callable[[], None]] = []
        start, uniform, valid = 0, noise.numpy(), mask.numpy()
        for path, sizes in self._sizes.items():
            target = out.action[path].view(len(noise), -1).numpy()
            for number, size in enumerate(sizes):
                column = uniform[:, self._columns[path].start + number]
                options = valid[:, start : start + size]
                calls.append(partial(_choose, target[:, number], column, options))
                start += size
        return calls

    def bind_values(
        self, observation: Mapping[str, Tensor], out: Tensor, state: Tensor | None = None
    ) -> Callable[[], None]:
        """Return a call that writes 0."""

        def call() -> None:
            out.zero_()

        return call


def _choose(target: NDArray[Any], uniform: NDArray[Any], valid: NDArray[np.bool_]) -> None:
    """Write the index of a valid option, all with equal probability; 0 if none is valid.

    Args:
        target: ``[n]``, written.
        uniform: ``[n]`` in [0, 1).
        valid: ``[n, options]``.
    """
    until = valid.cumsum(1)
    count = until[:, -1:]
    # Just below 1 the product may round up to the count.
    nth = np.minimum(np.floor(uniform[:, None] * count), count - 1)
    target[:] = (until > nth).argmax(1)


def _ranges(leaf: spaces.Space[Any]) -> NDArray[Any]:
    """Return the lowest value and the width of the range of each element, ``[2, elements]``."""
    if not isinstance(leaf, spaces.Box):
        choices = getattr(leaf, "n" if isinstance(leaf, spaces.Discrete) else "nvec", 2)
        span = np.broadcast_to(choices, leaf.shape or ()).ravel()
        return np.stack([np.zeros_like(span), span])
    low, high = (bound.ravel().astype(np.float64) for bound in (leaf.low, leaf.high))
    bounded = high - low < _WIDEST
    return np.stack([np.where(bounded, low, -1.0), np.where(bounded, high - low, 2.0)])
