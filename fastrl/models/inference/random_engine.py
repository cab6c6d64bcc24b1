"""Random actions in place of a policy, to measure environments only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from fastrl.models.inference.engine import InferenceEngine, PolicyOutput
from fastrl.spaces import leaves, num_choices
from fastrl.spec import EnvSpec

_WIDEST = 1e30
"""A ``Box`` with this span or more counts as unbounded."""


class RandomEngine(InferenceEngine):
    """Samples actions uniformly, in [-1, 1] where a ``Box`` is unbounded; reads no observation.

    The noise is the actions, so that a call only copies them. Outputs are written as 0. Where the
    environment has masks, the noise of discrete actions remains uniform in [0, 1), and each call
    chooses among the valid ones.

    Args:
        env_spec: Gives the action space.
    """

    name = "random"

    def __init__(self, env_spec: EnvSpec) -> None:
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
    """Write the index of a valid option, all with equal probability; 0 where none is valid.

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
    """Return the lowest value and the span of each element, ``[2, elements]``."""
    if not isinstance(leaf, spaces.Box):
        choices = getattr(leaf, "n" if isinstance(leaf, spaces.Discrete) else "nvec", 2)
        span = np.broadcast_to(choices, leaf.shape or ()).ravel()
        return np.stack([np.zeros_like(span), span])
    low, high = (bound.ravel().astype(np.float64) for bound in (leaf.low, leaf.high))
    bounded = high - low < _WIDEST
    return np.stack([np.where(bounded, low, -1.0), np.where(bounded, high - low, 2.0)])
