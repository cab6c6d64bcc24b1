"""Random actions in place of a policy, to measure environments alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from fastrl.models.inference.engine import InferenceEngine, PolicyOutput
from fastrl.spaces import leaves
from fastrl.spec import EnvSpec

_WIDEST = 1e30
"""Span of a ``Box`` from which on it counts as unbounded."""


class RandomEngine(InferenceEngine):
    """Samples every action uniformly, in [-1, 1] where a ``Box`` is unbounded; observes nothing.

    The noise is the actions themselves, so that a call only copies. Outputs are written as 0.

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
        self, observation: Mapping[str, Tensor], noise: Tensor, out: PolicyOutput
    ) -> Callable[[], None]:
        """Return a call that copies the actions from ``noise``."""
        copies = [
            (target.numpy(), noise[:, self._columns[path]].view(target.shape).numpy())
            for path, target in out.action.items()
        ]
        outputs = [target.numpy() for target in out.outputs.values()]

        def call() -> None:
            for target, source in copies:
                np.copyto(target, source, casting="unsafe")
            for target in outputs:
                target.fill(0)

        return call

    def bind_values(self, observation: Mapping[str, Tensor], out: Tensor) -> Callable[[], None]:
        """Return a call that writes 0."""

        def call() -> None:
            out.zero_()

        return call


def _ranges(leaf: spaces.Space[Any]) -> NDArray[Any]:
    """Return the lowest value and the span of each element, ``[2, elements]``."""
    if not isinstance(leaf, spaces.Box):
        choices = getattr(leaf, "n" if isinstance(leaf, spaces.Discrete) else "nvec", 2)
        span = np.broadcast_to(choices, leaf.shape or ()).ravel()
        return np.stack([np.zeros_like(span), span])
    low, high = (bound.ravel().astype(np.float64) for bound in (leaf.low, leaf.high))
    bounded = high - low < _WIDEST
    return np.stack([np.where(bounded, low, -1.0), np.where(bounded, high - low, 2.0)])
