"""Observations scaled by running statistics, which travel with the parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_EPSILON = 1e-8


class RunningNormalizer(nn.Module):
    """Subtracts the mean and divides by the standard deviation of everything seen so far.

    The statistics change only in `update`, so sampling and evaluation do not move them. They are
    float64 buffers of the state dict: ``mean`` and ``var`` ``[*shape]`` and ``count`` ``[]``.
    Before the first update the input passes unscaled.

    Args:
        shape: Shape of one observation.
        clip: Bound of the absolute output, in standard deviations.
    """

    def __init__(self, shape: tuple[int, ...], clip: float = 10.0) -> None:
        super().__init__()
        self.clip = clip
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.mean: Tensor
        self.var: Tensor
        self.count: Tensor

    @torch.no_grad()
    def update(self, batch: Tensor) -> None:
        """Add observations ``[*, *shape]`` to the statistics."""
        rows = batch.reshape(-1, *self.mean.shape).double()
        if len(rows):
            self.join(rows.mean(0), rows.var(0, correction=0), len(rows))

    @torch.no_grad()
    def join(self, mean: Tensor, var: Tensor, count: int | Tensor) -> None:
        """Add ``count`` observations, at least 1, with this mean and variance ``[*shape]``.

        Joins the moments of both sets (Chan, Golub and LeVeque 1983, equations 2.1), which stays
        precise where sums of squares would cancel.
        """
        total = self.count + count
        difference = mean - self.mean
        squares = (
            self.var * self.count + var * count + difference.square() * self.count * count / total
        )
        self.mean += difference * count / total
        self.var.copy_(squares / total)
        self.count.copy_(total)

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return copies of ``mean``, ``var`` and ``count``."""
        return self.mean.clone(), self.var.clone(), self.count.clone()

    def set_moments(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Replace the statistics."""
        for own, new in zip((self.mean, self.var, self.count), (mean, var, count), strict=True):
            own.copy_(new)

    def scale(self) -> Tensor:
        """Return 1 / standard deviation, ``[*shape] float32``."""
        return (self.var + _EPSILON).rsqrt().float()

    def forward(self, observation: Tensor) -> Tensor:
        """Return ``observation`` ``[*, *shape]`` normalised and clipped, in float32."""
        normalised = (observation.float() - self.mean.float()) * self.scale()
        return normalised.clamp(-self.clip, self.clip)
