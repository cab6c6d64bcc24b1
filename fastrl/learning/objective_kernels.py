"""Loss and gradient of a minibatch in one compiled call, for the CPU.

The loss is `fastrl.learning.objective.objective`, whose derivatives are written out by hand; tests
compare them with autograd. Sums are float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.jit import cached_njit
from fastrl.models.distributions import LOG_STD_RANGE

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

METRICS = ("loss", "policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")
"""Metrics of each minibatch, in the order of the vector ``metrics``."""
COLUMNS = ("log_prob", "advantage", "target", "value")
"""Fields of the batch in ``columns [N, 4] float32``."""

_EPSILON = 1e-8
"""Added to the deviation of advantages, as in `fastrl.learning.losses`."""
_LEAST_LOG_STD, _MOST_LOG_STD = LOG_STD_RANGE
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


@cached_njit
def _moments(index: Ints, columns: Floats) -> tuple[float, float]:
    """Return the mean of advantages, and the inverse of their deviation."""
    rows = len(index)
    mean = 0.0
    for row in range(rows):
        mean += columns[index[row], 1]
    mean /= rows
    squares = 0.0
    for row in range(rows):
        squares += (columns[index[row], 1] - mean) ** 2
    return mean, 1 / (math.sqrt(squares / (rows - 1)) + _EPSILON)


@cached_njit
def _value_terms(value: float, old: float, target: float, bound: float) -> tuple[float, float]:
    """Return the value loss of one transition and its derivative."""
    error, moved = value - target, value - old
    if abs(moved) > bound:
        bounded_error = old + (bound if moved > 0 else -bound) - target
        if bounded_error * bounded_error > error * error:
            return bounded_error * bounded_error, 0.0
    return error * error, 2 * error


@cached_njit
def objective_gradient(
    log_prob: Floats,
    entropy: Floats,
    value: Floats,
    index: Ints,
    columns: Floats,
    settings: Floats,
    log_prob_gradient: Floats,
    value_gradient: Floats,
    metrics: Floats,
) -> None:
    """Compute the loss and its derivatives; that by each entropy is ``-entropy_coef / n``.

    Args:
        log_prob: ``[n]`` under the policy that learns.
        entropy: ``[n]``.
        value: ``[n]``.
        index: ``[n] int64``: rows of ``columns``.
        columns: ``[N, 4]``; see `COLUMNS`.
        settings: ``[5] float64``; the `ObjectiveSettings`, infinite for None.
        log_prob_gradient: ``[n]``, written.
        value_gradient: ``[n]``, written.
        metrics: ``[6] float64``, written; see `METRICS`.
    """
    rows = len(index)
    clip, clip_value, entropy_coef, value_coef = settings[0], settings[1], settings[2], settings[3]
    plain = math.isinf(clip)
    mean, scale = 0.0, 1.0
    if settings[4] != 0.0 and rows > 1:
        mean, scale = _moments(index, columns)
    policy_sum = value_sum = entropy_sum = kl_sum = 0.0
    clipped = 0
    for row in range(rows):
        source = columns[index[row]]
        advantage = (source[1] - mean) * scale
        log_ratio = float(log_prob[row]) - source[0]
        ratio = math.exp(log_ratio)
        kl_sum += ratio - 1 - log_ratio
        entropy_sum += entropy[row]
        if plain:
            policy_sum -= advantage * log_prob[row]
            log_prob_gradient[row] = -advantage / rows
        else:
            clipped += abs(ratio - 1) > clip
            # The bound holds only where it makes the objective smaller.
            held = ratio > 1 + clip if advantage > 0 else ratio < 1 - clip
            kept = (1 + clip if advantage > 0 else 1 - clip) if held else ratio
            policy_sum -= advantage * kept
            log_prob_gradient[row] = 0.0 if held else -advantage * ratio / rows
        squared, slope = _value_terms(value[row], source[3], source[2], clip_value)
        value_sum += squared
        value_gradient[row] = value_coef * slope / rows
    metrics[1] = policy_sum / rows
    metrics[2] = value_sum / rows
    metrics[3] = entropy_sum / rows
    metrics[4] = kl_sum / rows
    metrics[5] = clipped / rows
    metrics[0] = metrics[1] + value_coef * metrics[2] - entropy_coef * metrics[3]


@cached_njit
def categorical_gradient(
    logits: Floats,
    value: Floats,
    action: Ints,
    index: Ints,
    columns: Floats,
    settings: Floats,
    logits_gradient: Floats,
    value_gradient: Floats,
    metrics: Floats,
) -> None:
    """Compute the loss of a categorical policy and its derivatives by logits and values.

    Args:
        logits: ``[n, K]``.
        value: ``[n]``.
        action: ``[N] int64``.
        index: ``[n] int64``: rows of ``action`` and ``columns``.
        columns: See `objective_gradient`, as the rest.
        settings: See there.
        logits_gradient: ``[n, K]``, written.
        value_gradient: ``[n]``, written.
        metrics: ``[6] float64``, written.
    """
    rows, choices = logits.shape
    log_prob = np.empty(rows, np.float64)
    entropy = np.empty(rows, np.float64)
    slope = np.empty(rows, np.float64)
    for row in range(rows):
        largest = logits[row].max()
        total = 0.0
        for choice in range(choices):
            total += math.exp(logits[row, choice] - largest)
        shift = largest + math.log(total)
        mixed = 0.0
        for choice in range(choices):
            log_p = logits[row, choice] - shift
            logits_gradient[row, choice] = log_p
            mixed -= math.exp(log_p) * log_p
        entropy[row] = mixed
        log_prob[row] = logits[row, action[index[row]]] - shift
    objective_gradient(
        log_prob, entropy, value, index, columns, settings, slope, value_gradient, metrics
    )
    entropy_slope = -settings[2] / rows
    for row in range(rows):
        for choice in range(choices):
            log_p = logits_gradient[row, choice]
            inner = slope[row] + entropy_slope * (log_p + entropy[row])
            logits_gradient[row, choice] = -math.exp(log_p) * inner
        logits_gradient[row, action[index[row]]] += slope[row]


@cached_njit
def gaussian_gradient(
    mean: Floats,
    log_std: Floats,
    value: Floats,
    action: Floats,
    index: Ints,
    columns: Floats,
    settings: Floats,
    mean_gradient: Floats,
    log_std_gradient: Floats,
    value_gradient: Floats,
    metrics: Floats,
) -> None:
    """Compute the loss of a diagonal Gaussian policy and its derivatives.

    Args:
        mean: ``[n, K]``.
        log_std: ``[K]``; used within `LOG_STD_RANGE`, and without a gradient outside.
        value: ``[n]``.
        action: ``[N, K]``.
        index: ``[n] int64``: rows of ``action`` and ``columns``.
        columns: See `objective_gradient`, as the rest.
        settings: See there.
        mean_gradient: ``[n, K]``, written.
        log_std_gradient: ``[K]``, written.
        value_gradient: ``[n]``, written.
        metrics: ``[6] float64``, written.
    """
    rows, width = mean.shape
    log_prob = np.empty(rows, np.float64)
    slope = np.empty(rows, np.float64)
    bounded = log_std.copy()
    for column in range(width):
        # NaN stays what it is.
        if bounded[column] < _LEAST_LOG_STD:
            bounded[column] = _LEAST_LOG_STD
        elif bounded[column] > _MOST_LOG_STD:
            bounded[column] = _MOST_LOG_STD
    inverse = np.exp(-bounded)
    constant = np.sum(bounded) + width * _LOG_SQRT_2PI
    for row in range(rows):
        squares = 0.0
        for column in range(width):
            z = (action[index[row], column] - mean[row, column]) * inverse[column]
            mean_gradient[row, column] = z
            squares += z * z
        log_prob[row] = -0.5 * squares - constant
    entropy = np.full(rows, constant + 0.5 * width)
    objective_gradient(
        log_prob, entropy, value, index, columns, settings, slope, value_gradient, metrics
    )
    sums = np.full(width, -settings[2])
    for row in range(rows):
        for column in range(width):
            z = mean_gradient[row, column]
            mean_gradient[row, column] = slope[row] * z * inverse[column]
            sums[column] += slope[row] * (z * z - 1)
    for column in range(width):
        is_free = bounded[column] == log_std[column] or np.isnan(log_std[column])
        log_std_gradient[column] = sums[column] if is_free else 0.0
