"""Guesses how fast candidates are that were not measured, from those that were."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastrl.tuning.candidate import Candidate

Array = NDArray[np.float64]

_LENGTHS = {"n": 2.0, "N": 0.8, "M": 1.0, "groups": 1.5, "threads": 1.5, "kind": 1.5}
"""Distances, in the units of `_features`, over which speeds are much alike."""
_PRIOR_SPREAD = 0.35
"""Standard deviation of log speed between very different candidates, before any is measured."""


_SCALES = (0.7, 1.0, 1.5, 2.2)
"""Multiples of `_LENGTHS` among which the measurements choose, once there are `_ENOUGH`."""
_ENOUGH = 6
_SLOW = 1.2
"""Log speed below the best from which on candidates are equally hopeless."""


@dataclass(frozen=True)
class Guess:
    """Log speed that is expected of candidates, and how sure that is, one element for each."""

    mean: Array
    std: Array

    def improvement(self, best: float) -> Array:
        """Return the expected improvement over ``best`` in log speed; Jones et al. 1998, eq. 15.

        https://doi.org/10.1023/A:1008306431147
        """
        std = np.maximum(self.std, 1e-9)
        z = (self.mean - best) / std
        density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
        below = 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
        improvement: Array = std * (z * below + density)
        return improvement


class Surrogate:
    """A Gaussian process over the logarithms of what candidates count.

    Args:
        scores: Log speed of each measured candidate.
        variances: Variance of each.
    """

    def __init__(
        self, scores: Mapping[Candidate, float], variances: Mapping[Candidate, float]
    ) -> None:
        self._points = _features(scores)
        values = np.array(list(scores.values()))
        # How slow the slow ones are does not matter, and would make all others look alike.
        values = np.maximum(values, values.max() - _SLOW)
        self._mean = float(np.median(values))
        spread = max(_PRIOR_SPREAD, float(np.std(values)))
        self._variance = spread**2
        noise = np.array([variances[c] for c in scores]) + 1e-4
        residuals = values - self._mean
        self._likelihood = -math.inf
        for scale in _SCALES if len(values) >= _ENOUGH else (1.0,):
            self._fit(scale, noise, residuals)

    def _fit(self, scale: float, noise: Array, residuals: Array) -> None:
        """Take a length scale if it explains the scores better than the ones before."""
        covariance = self._kernel(self._points / scale, self._points / scale) + np.diag(noise)
        inverse: Array = np.linalg.inv(covariance).astype(np.float64)
        weights = _product("ij,j->i", inverse, residuals)
        log_volume = float(np.linalg.slogdet(covariance)[1])
        likelihood = -0.5 * (float(_product("i,i->", residuals, weights)) + log_volume)
        if likelihood > self._likelihood:
            self._likelihood, self._scale = likelihood, scale
            self._inverse, self._weights = inverse, weights

    def guess(self, candidates: Sequence[Candidate]) -> Guess:
        """Return what to expect of candidates, at least one."""
        points = _features(candidates) / self._scale
        cross = self._kernel(points, self._points / self._scale)
        explained = _product("ij,ij->i", _product("ij,jk->ik", cross, self._inverse), cross)
        std = np.sqrt(np.maximum(self._variance - explained, 1e-12))
        return Guess(self._mean + _product("ij,j->i", cross, self._weights), std)

    def _kernel(self, a: Array, b: Array) -> Array:
        square = np.sum((a[:, None, :] - b[None, :, :]) ** 2, axis=-1)
        distance = math.sqrt(5) * np.sqrt(square)
        # Matérn 5/2: as smooth as speeds are, which have kinks where a core is full.
        kernel: Array = self._variance * (1 + distance + 5 * square / 3) * np.exp(-distance)
        return kernel


def _product(subscripts: str, *arrays: Array) -> Array:
    """Return an Einstein sum without BLAS, whose threads would spin on cores that are busy."""
    product: Array = np.einsum(subscripts, *arrays, optimize=False)
    return product


def _features(candidates: Iterable[Candidate]) -> Array:
    rows = []
    for c in candidates:
        gpu = float(c.device != "cpu")
        rows.append(
            (
                math.log2(c.envs_per_worker) / _LENGTHS["n"],
                math.log2(c.num_env_workers) / _LENGTHS["N"],
                # From none to one is a larger step than from one to two.
                (1.0 + math.log2(c.num_model_workers)) / _LENGTHS["M"]
                if c.num_model_workers
                else 0.0,
                math.log2(c.groups) / _LENGTHS["groups"],
                math.log2(c.torch_threads) / _LENGTHS["threads"],
                gpu / _LENGTHS["kind"],
                (c.device.count(",") + gpu) / 4,
                float(c.engine == "eager") / _LENGTHS["kind"],
                float(c.engine == "bfloat16") / _LENGTHS["kind"],
            )
        )
    return np.array(rows)
