"""A model's parameters as one vector, so that one operation clips or steps all of them."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy

import torch
from torch import Tensor, nn

from fastrl.errors import ConfigError


class FlatParameters:
    """Moves parameters and their gradients into two vectors, of which they become views.

    The model must not be moved to another device or dtype afterwards; loading a state dict into
    it is fine, since that copies.

    Args:
        parameters: Those that need no gradient are left alone.

    Attributes:
        value: ``[P] float32``.
        gradient: ``[P] float32``.
        parameters: The parameters, in the order of the vectors.

    Raises:
        ConfigError: There is none, or they differ in dtype or device.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        kinds = {f"{p.dtype} on {p.device}" for p in self.parameters}
        if len(kinds) != 1:
            found = ", ".join(sorted(kinds)) or "none"
            raise ConfigError(
                f"the model needs parameters to learn, all of one dtype and device; found {found}"
            )
        self.value = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        self.gradient = torch.zeros_like(self.value)
        sizes = [p.numel() for p in self.parameters]
        pieces = zip(self.value.split(sizes), self.gradient.split(sizes), strict=True)
        for parameter, (value, gradient) in zip(self.parameters, pieces, strict=True):
            parameter.data = value.view(parameter.shape)
            parameter.grad = gradient.view(parameter.shape)

    def part(self, start: int, stop: int) -> FlatParameters:
        """Return some of the parameters, from ``start`` to ``stop``, as views of these."""
        sizes = [p.numel() for p in self.parameters]
        first, last = sum(sizes[:start]), sum(sizes[:stop])
        part = copy(self)
        part.parameters = self.parameters[start:stop]
        part.value, part.gradient = self.value[first:last], self.gradient[first:last]
        return part

    def clip_gradient(self, max_norm: float | None) -> Tensor:
        """Scale the gradient down to a Euclidean norm of ``max_norm``; return the norm it had."""
        norm: Tensor = torch.linalg.vector_norm(self.gradient)
        if max_norm is not None:
            # As torch.nn.utils.clip_grad_norm_ does, without waiting for the device.
            self.gradient.mul_((max_norm / (norm + 1e-6)).clamp_(max=1.0))
        return norm
