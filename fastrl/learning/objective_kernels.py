"""Loss and gradient of a minibatch in one compiled call, for the CPU.

The loss is `fastrl.learning.ppo.objective`, with handwritten derivatives; tests
compare them with autograd. Sums are float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.jit import cached_njit
from fastrl.models.distributions import LOG_STD_RANGE
from fastrl.models.inference.lanes import jitted

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

METRICS = ("loss", "policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")
"""Metrics of each minibatch, in the order of the vector ``metrics``."""
COLUMNS = ("log_prob", "advantage", "target", "value")
"""Fields of the batch in ``columns [N, 4] float32``."""

NUM_SETTINGS = 5
"""Number of `ObjectiveSettings`."""

_EPSILON = 1e-8
"""Added to the deviation of advantages, as in `fastrl.learning.losses`."""
_LEAST_LOG_STD, _MOST_LOG_STD = LOG_STD_RANGE
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


@jitted
def moments(index: Ints, columns: Floats, settings: Floats) -> tuple[float, float]:
    """Return the mean of the advantages of a minibatch, and the inverse of their deviation.

    They are 0 and 1 if advantages are not normalised.
    """
    rows = len(index)
    if settings[4] == 0.0 or rows == 1:
        return 0.0, 1.0
    mean = 0.0
    for row in range(rows):
        mean += columns[index[row], 1]
    mean /= rows
    squares = 0.0
    for row in range(rows):
        squares += (columns[index[row], 1] - mean) ** 2
    return mean, 1 / (math.sqrt(squares / (rows - 1)) + _EPSILON)


@jitted
def value_terms(
    value: Floats,
    index: Ints,
    columns: Floats,
    settings: Floats,
    rows: int,
    value_gradient: Floats,
    metrics: Floats,
) -> None:
    """Compute the derivatives by values; add the losses of some rows of a minibatch.

    Args:
        value: ``[n]``.
        index: ``[n] int64``: rows of ``columns``.
        columns: ``[N, 4]``; see `COLUMNS`.
        settings: ``[5] float64``; the `ObjectiveSettings`, infinite for None.
        rows: Size of the minibatch.
        value_gradient: ``[n]``, written.
        metrics: ``[6] float64``, added to: sums over rows; see `METRICS` and `finish`.
    """
    bound, value_coef, losses = settings[1], settings[3], 0.0
    for row in range(len(index)):
        source = columns[index[row]]
        error, moved = float(value[row]) - source[2], float(value[row]) - source[3]
        squared, slope = error * error, 2 * error
        if abs(moved) > bound:
            bounded_error = source[3] + (bound if moved > 0 else -bound) - source[2]
            if bounded_error * bounded_error > squared:
                squared, slope = bounded_error * bounded_error, 0.0
        losses += squared
        value_gradient[row] = value_coef * slope / rows
    metrics[2] += losses


@jitted
def _policy_terms(
    log_prob: Floats,
    entropy: Floats,
    index: Ints,
    columns: Floats,
    settings: Floats,
    mean: float,
    scale: float,
    rows: int,
    log_prob_gradient: Floats,
    metrics: Floats,
) -> None:
    """Compute the derivatives by log-probabilities; that of each entropy is ``-coef / rows``."""
    clip = settings[0]
    plain = math.isinf(clip)
    policy_sum = entropy_sum = kl_sum = 0.0
    clipped = 0
    for row in range(len(index)):
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
            # The bound applies only if it makes the objective smaller.
            held = ratio > 1 + clip if advantage > 0 else ratio < 1 - clip
            kept = (1 + clip if advantage > 0 else 1 - clip) if held else ratio
            policy_sum -= advantage * kept
            log_prob_gradient[row] = 0.0 if held else -advantage * ratio / rows
    metrics[1] += policy_sum
    metrics[3] += entropy_sum
    metrics[4] += kl_sum
    metrics[5] += clipped


@jitted
def finish(metrics: Floats, rows: int, settings: Floats) -> None:
    """Turn the sums over the rows of a minibatch into means, and compute the loss."""
    for i in range(1, len(metrics)):
        metrics[i] /= rows
    metrics[0] = metrics[1] + settings[3] * metrics[2] - settings[2] * metrics[3]


@jitted
def categorical_terms(
    logits: Floats,
    action: Ints,
    index: Ints,
    columns: Floats,
    settings: Floats,
    mean: float,
    scale: float,
    rows: int,
    logits_gradient: Floats,
    metrics: Floats,
) -> None:
    """Compute the derivatives by logits; add the losses of some rows of a minibatch.

    Args:
        logits: ``[n, K]``.
        action: ``[N] int64``.
        index: ``[n] int64``: rows of ``action`` and ``columns``.
        columns: See `value_terms`.
        settings: See `value_terms`.
        mean: See `moments`.
        scale: See `moments`.
        rows: Size of the minibatch.
        logits_gradient: ``[n, K]``, written.
        metrics: ``[6] float64``, added to.
    """
    count, choices = logits.shape
    log_prob = np.empty(count, np.float64)
    entropy = np.empty(count, np.float64)
    slope = np.empty(count, np.float64)
    for row in range(count):
        largest = logits[row, 0]
        for choice in range(1, choices):
            largest = max(largest, logits[row, choice])
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
    _policy_terms(log_prob, entropy, index, columns, settings, mean, scale, rows, slope, metrics)
    entropy_slope = -settings[2] / rows
    for row in range(count):
        for choice in range(choices):
            log_p = logits_gradient[row, choice]
            inner = slope[row] + entropy_slope * (log_p + entropy[row])
            logits_gradient[row, choice] = -math.exp(log_p) * inner
        logits_gradient[row, action[index[row]]] += slope[row]


@jitted
def gaussian_terms(
    means: Floats,
    log_std: Floats,
    action: Floats,
    index: Ints,
    columns: Floats,
    settings: Floats,
    mean: float,
    scale: float,
    rows: int,
    means_gradient: Floats,
    log_std_gradient: Floats,
    metrics: Floats,
) -> None:
    """Compute the derivatives of a diagonal Gaussian; add the losses of some rows of a minibatch.

    Args:
        means: ``[n, K]``.
        log_std: ``[K]``; used within `LOG_STD_RANGE`, and without a gradient outside.
        action: ``[N, K]``.
        index: ``[n] int64``: rows of ``action`` and ``columns``.
        columns: See `value_terms`.
        settings: See `value_terms`.
        mean: See `moments`.
        scale: See `moments`.
        rows: Size of the minibatch.
        means_gradient: ``[n, K]``, written.
        log_std_gradient: ``[K]``, added to.
        metrics: ``[6] float64``, added to.
    """
    count, width = means.shape
    log_prob = np.empty(count, np.float64)
    slope = np.empty(count, np.float64)
    bounded = log_std.copy()
    for column in range(width):
        # NaN stays NaN.
        if bounded[column] < _LEAST_LOG_STD:
            bounded[column] = _LEAST_LOG_STD
        elif bounded[column] > _MOST_LOG_STD:
            bounded[column] = _MOST_LOG_STD
    inverse = np.exp(-bounded)
    constant = np.sum(bounded) + width * _LOG_SQRT_2PI
    for row in range(count):
        squares = 0.0
        for column in range(width):
            z = (action[index[row], column] - means[row, column]) * inverse[column]
            means_gradient[row, column] = z
            squares += z * z
        log_prob[row] = -0.5 * squares - constant
    entropy = np.full(count, constant + 0.5 * width)
    _policy_terms(log_prob, entropy, index, columns, settings, mean, scale, rows, slope, metrics)
    sums = np.full(width, -settings[2] * count / rows)
    for row in range(count):
        for column in range(width):
            z = means_gradient[row, column]
            means_gradient[row, column] = slope[row] * z * inverse[column]
            sums[column] += slope[row] * (z * z - 1)
    for column in range(width):
        if bounded[column] == log_std[column] or np.isnan(log_std[column]):
            log_std_gradient[column] += sums[column]


@cached_njit
def objective_gradient(
    outputs: Floats,
    log_std: Floats,
    value: Floats,
    action: NDArray[Any],
    index: Ints,
    columns: Floats,
    settings: Floats,
    outputs_gradient: Floats,
    log_std_gradient: Floats,
    value_gradient: Floats,
    metrics: Floats,
) -> None:
    """Compute the loss of a minibatch and its derivatives; the last four arguments are written.

    Args:
        outputs: ``[n, K]``: logits, or means of a Gaussian.
        log_std: See `gaussian_terms`; empty for logits.
        value: ``[n]``.
        action: ``[N] int64`` for logits, else ``[N, K]``.
        index: ``[n] int64``: rows of ``action`` and ``columns``.
        columns: See `value_terms`.
        settings: See `value_terms`.
        outputs_gradient: ``[n, K]``.
        log_std_gradient: ``[K]``; empty for logits.
        value_gradient: ``[n]``.
        metrics: ``[6] float64``.
    """
    rows = len(index)
    metrics[:] = 0.0
    log_std_gradient[:] = 0.0
    mean, scale = moments(index, columns, settings)
    # One branch is compiled for each number of axes.
    if action.ndim == 1:
        categorical_terms(
            outputs, action, index, columns, settings, mean, scale, rows, outputs_gradient, metrics
        )
    else:
        gaussian_terms(
            outputs,
            log_std,
            action,
            index,
            columns,
            settings,
            mean,
            scale,
            rows,
            outputs_gradient,
            log_std_gradient,
            metrics,
        )
    value_terms(value, index, columns, settings, rows, value_gradient, metrics)
    finish(metrics, rows, settings)
