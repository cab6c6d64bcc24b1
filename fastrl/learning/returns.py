"""Returns and advantages as pure functions of ``[T, B]`` tensors.

They look ahead within one rollout and never past the end of an episode. At the end of an episode
(``ended = terminated | truncated``) and after the last step of the rollout they bootstrap from
``next_value``, which `next_values` makes 0 after a termination and V(final observation) after a
truncation.

All arguments and results are ``[T, B]``, flags (``ended``, ``terminated``, ``truncated``) bool and
the others float32, unless stated otherwise; others raise `ArgumentError`, a `ValueError`. γ is
``gamma``, the discount factor.

No gradient flows through the results. Each function is a recurrence
x[t] = a[t] + b[t] · x[t+1], which is compiled on the CPU: at T = 2048 and B = 1 it takes 10 µs,
where one torch operation per step takes 6 ms (AMD EPYC).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from fastrl.arguments import instance, same_shapes
from fastrl.errors import ArgumentError
from fastrl.jit import cached_njit

_FLAGS = frozenset({"ended", "terminated", "truncated"})


@torch.no_grad()
def next_values(
    value: Tensor, final_value: Tensor, terminated: Tensor, truncated: Tensor
) -> Tensor:
    """Return the value of the state after each step, from which returns bootstrap.

    Args:
        value: ``[T+1, B] float32``: V(observation).
        final_value: ``[T, B] float32``: V(final observation), read only where truncated.
        terminated: Flags of terminated episodes.
        truncated: Flags of truncated episodes; a step with both flags counts as terminated.

    Returns:
        ``[T, B] float32``: 0 where terminated, ``final_value`` where truncated, else
        ``value[t+1]``.
    """
    _check(final_value=final_value, terminated=terminated, truncated=truncated)
    same_shapes(value=value)
    steps, slots = final_value.shape
    if value.shape != (steps + 1, slots):
        raise ArgumentError(f"value must be [T+1, B] = [{steps + 1}, {slots}], got {_show(value)}")
    following = torch.where(truncated, final_value, value[1:])
    return following.masked_fill(terminated, 0.0)


@torch.no_grad()
def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    ended: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Return generalised advantage estimates; add ``value`` for the λ-return.

    A[t] = δ[t] + γλ · A[t+1] with δ[t] = r[t] + γ · V(s[t+1]) - V(s[t]), and A[t] = δ[t] where
    the episode ended (Schulman et al. 2016, https://arxiv.org/abs/1506.02438, equations 12, 16).
    A λ of 0 gives the one-step TD error, 1 the return minus the value.
    """
    _check(reward=reward, value=value, next_value=next_value, ended=ended)
    delta = torch.add(reward, next_value, alpha=gamma).sub_(value)
    return _scan(delta, _decay(ended, reward.dtype, gamma * gae_lambda))


@torch.no_grad()
def discounted_returns(reward: Tensor, next_value: Tensor, ended: Tensor, gamma: float) -> Tensor:
    """Return the discounted return to the end of the episode or of the rollout.

    G[t] = r[t] + γ · G[t+1], and r[t] + γ · V(s[t+1]) where the episode ended and at the last step
    (Sutton and Barto 2018, equation 3.9). With zeros for ``next_value`` it does not bootstrap.
    """
    _check(reward=reward, next_value=next_value, ended=ended)
    cut = _cut(ended)
    start = torch.add(reward, next_value.masked_fill(~cut, 0.0), alpha=gamma)
    return _scan(start, _decay(ended, reward.dtype, gamma))


@dataclass(frozen=True)
class VTraceSettings:
    """Parameters of `vtrace`, with the names of Espeholt et al. 2018.

    Attributes:
        gamma: Discount factor.
        trace_lambda: λ of remark 2: 1 weighs long traces fully.
        rho_clip: ρ̄, bounds the weight of each TD error, and determines whose values are learnt.
        c_clip: c̄, bounds the trace of a TD error to earlier steps, and determines the speed.
    """

    gamma: float
    trace_lambda: float = 1.0
    rho_clip: float = 1.0
    c_clip: float = 1.0


@torch.no_grad()
def vtrace(
    log_ratio: Tensor,
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    ended: Tensor,
    settings: VTraceSettings,
) -> tuple[Tensor, Tensor]:
    """Return value targets and advantages for steps that an older policy took.

    Espeholt et al. 2018 (https://arxiv.org/abs/1802.01561), equation 1, as the recurrence of
    remark 1: v[t] = V(s[t]) + δ[t] + γ c[t] (v[t+1] - V(s[t+1])) with
    δ[t] = ρ[t] (r[t] + γ V(s[t+1]) - V(s[t])), ρ[t] = min(ρ̄, π/μ), c[t] = λ min(c̄, π/μ); and the
    advantage of section 4.2, ρ[t] (r[t] + γ v[t+1] - V(s[t])). Where an episode ended, and at the
    last step, v[t+1] is ``next_value``. With π = μ and λ = 1 both are those of GAE(1).
    ``log_ratio`` is log π(a|s) - log μ(a|s), of the policy that learns and the one that acted.
    """
    _check(log_ratio=log_ratio, reward=reward, value=value, next_value=next_value, ended=ended)
    instance("settings", settings, VTraceSettings)
    ratio = log_ratio.exp()
    rho = ratio.clamp(max=settings.rho_clip)
    trace = ratio.clamp(max=settings.c_clip)
    decay = _decay(ended, reward.dtype, settings.gamma * settings.trace_lambda).mul_(trace)
    delta = torch.add(reward, next_value, alpha=settings.gamma).sub_(value).mul_(rho)
    target = value + _scan(delta, decay)
    next_target = torch.where(_cut(ended), next_value, target.roll(-1, 0))
    advantage = torch.add(reward, next_target, alpha=settings.gamma).sub_(value).mul_(rho)
    return target, advantage


@torch.no_grad()
def discounted_sums_so_far(
    reward: Tensor, ended: Tensor, start: Tensor, gamma: float
) -> tuple[Tensor, Tensor]:
    """Return S[t] = γ · S[t-1] + r[t], which starts again at 0 after an episode ended.

    It looks backwards, unlike a return; running statistics of it scale rewards (Engstrom et al.
    2020, https://arxiv.org/abs/2005.12729, appendix A.1). The second value, ``[B]``, is the
    ``start`` of the next rollout; that of the first one is 0.
    """
    _check(reward=reward, ended=ended)
    same_shapes(start=start)
    if start.shape != reward.shape[1:]:
        raise ArgumentError(f"start must be [B] = [{reward.shape[1]}], got {_show(start)}")
    goes_on = _decay(ended, reward.dtype, gamma)
    first = torch.add(reward[:1], start, alpha=gamma)
    backwards = torch.cat([first, reward[1:]]).flip(0)
    decay = torch.cat([torch.zeros_like(goes_on[:1]), goes_on[:-1]]).flip(0)
    sums = _scan(backwards, decay).flip(0)
    return sums, sums[-1].masked_fill(ended[-1], 0.0)


def _scan(start: Tensor, decay: Tensor) -> Tensor:
    """Return x with x[t] = start[t] + decay[t] · x[t+1], and x[T-1] = start[T-1]."""
    if start.device.type != "cpu":
        return _stepwise_scan(start, decay)
    result = torch.empty_like(start, memory_format=torch.contiguous_format)
    _compiled_scan(start.contiguous().numpy(), decay.contiguous().numpy(), result.numpy())
    return result


def _stepwise_scan(start: Tensor, decay: Tensor) -> Tensor:
    result = torch.empty_like(start)
    following = torch.zeros_like(start[0])
    for step in range(len(start) - 1, -1, -1):
        following = torch.addcmul(start[step], decay[step], following, out=result[step])
    return result


@cached_njit
def _compiled_scan(start: NDArray[Any], decay: NDArray[Any], result: NDArray[Any]) -> None:
    steps, slots = start.shape
    result[steps - 1] = start[steps - 1]
    for step in range(steps - 2, -1, -1):
        for slot in range(slots):
            result[step, slot] = start[step, slot] + decay[step, slot] * result[step + 1, slot]


def _decay(ended: Tensor, dtype: torch.dtype, factor: float) -> Tensor:
    """Return ``factor`` where the episode continues and 0 where it ended."""
    return (~ended).to(dtype).mul_(factor)


def _cut(ended: Tensor) -> Tensor:
    """Return flags of the steps that bootstrap: ends of episodes and the last step."""
    cut = ended.clone()
    cut[-1] = True
    return cut


def _check(**tensors: Tensor) -> None:
    """Check that all are ``[T, B]``, and that flags are bool."""
    (first, reference), *_ = tensors.items()
    same_shapes(**{first: reference})
    if reference.ndim != 2 or not reference.numel():
        raise ArgumentError(f"{first} must be [T, B] and not empty, got {_show(reference)}")
    same_shapes(**tensors)
    for name, tensor in tensors.items():
        if name in _FLAGS and tensor.dtype != torch.bool:
            raise ArgumentError(f"{name} must be bool, got {tensor.dtype}")


def _show(tensor: Tensor) -> str:
    return str(list(tensor.shape))
