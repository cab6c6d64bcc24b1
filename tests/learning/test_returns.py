"""Returns against slow oracles, identities and numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrl.learning import returns
from fastrl.learning.returns import (
    VTraceSettings,
    discounted_returns,
    discounted_sums_so_far,
    gae,
    next_values,
    vtrace,
)

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
many = settings(max_examples=100)


@dataclass
class Case:
    """Random steps; ``ended`` is mostly False."""

    reward: torch.Tensor
    value: torch.Tensor
    next_value: torch.Tensor
    ended: torch.Tensor
    log_ratio: torch.Tensor
    gamma: float
    trace_lambda: float

    def each_step(self):
        steps, slots = self.reward.shape
        yield from ((t, b) for t in range(steps) for b in range(slots))

    def last(self, t: int, b: int) -> int:
        """Return the step at which the episode of step t ends, or the rollout."""
        steps = len(self.reward)
        return next((k for k in range(t, steps) if self.ended[k, b]), steps - 1)


@st.composite
def cases(draw) -> Case:
    shape = (draw(st.integers(1, 8)), draw(st.integers(1, 3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tensors = [torch.from_numpy(rng.normal(size=shape).astype(np.float32)) for _ in range(4)]
    ended = torch.from_numpy(rng.random(shape) < draw(st.sampled_from([0.0, 0.2, 0.6])))
    fractions = st.sampled_from([0.0, 0.5, 0.95, 1.0])
    return Case(*tensors[:3], ended, tensors[3], draw(fractions), draw(fractions))


@pytest.fixture(params=["compiled", "stepwise"])
def _scan(request, monkeypatch):
    """The loop for the CPU, and the one for other devices."""
    if request.param == "stepwise":
        monkeypatch.setattr(returns, "_scan", returns._stepwise_scan)


def column(*numbers: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(numbers, dtype=dtype)[:, None]


GOES_ON = torch.zeros(3, 1, dtype=torch.bool)


@pytest.mark.usefixtures("_scan")
def test_gae_by_hand():
    value = column(0.5, 1.0, 1.5)
    next_value = column(1.0, 1.5, 2.0)
    found = gae(column(1, 2, 3), value, next_value, GOES_ON, 0.5, 0.5)
    assert found.flatten().tolist() == [1.59375, 2.375, 2.5]


@pytest.mark.usefixtures("_scan")
def test_discounted_returns_by_hand():
    found = discounted_returns(column(1, 2, 4), column(9, 9, 8), GOES_ON, 0.5)
    assert found.flatten().tolist() == [4, 6, 8]


def test_vtrace_by_hand():
    zeros, goes_on = torch.zeros(2, 1), GOES_ON[:2]
    log_ratio = column(2.0, 0.5).log()
    target, advantage = vtrace(
        log_ratio, torch.ones(2, 1), zeros, zeros, goes_on, VTraceSettings(0.5)
    )
    assert target.flatten().tolist() == [1.25, 0.5]
    assert advantage.flatten().tolist() == [1.25, 0.5]


def test_vtrace_bounds_are_taken_from_the_settings():
    zeros, goes_on = torch.zeros(2, 1), GOES_ON[:2]
    log_ratio = column(4.0, 4.0).log()
    settings = VTraceSettings(0.5, rho_clip=3.0, c_clip=2.0)
    target, advantage = vtrace(log_ratio, torch.ones(2, 1), zeros, zeros, goes_on, settings)
    assert target.flatten().tolist() == pytest.approx([3 + 0.5 * 2 * 3, 3])
    assert advantage.flatten().tolist() == pytest.approx([3 * (1 + 0.5 * 3), 3])


@many
@given(cases())
def test_gae_equals_slow_oracle(case):
    found = gae(case.reward, case.value, case.next_value, case.ended, case.gamma, case.trace_lambda)
    for t, b in case.each_step():
        expected = 0.0
        for k in range(t, case.last(t, b) + 1):
            error = case.reward[k, b] + case.gamma * case.next_value[k, b] - case.value[k, b]
            expected += (case.gamma * case.trace_lambda) ** (k - t) * float(error)
        assert math.isclose(found[t, b], expected, rel_tol=1e-4, abs_tol=1e-5)


@many
@given(cases())
def test_vtrace_targets_equal_slow_oracle(case):
    """Equation 1 as it stands there, with its sum and product."""
    settings = VTraceSettings(case.gamma, case.trace_lambda, rho_clip=1.5, c_clip=1.2)
    found, _ = vtrace(
        case.log_ratio, case.reward, case.value, case.next_value, case.ended, settings
    )
    ratio = case.log_ratio.double().exp()
    for s, b in case.each_step():
        expected = float(case.value[s, b])
        for t in range(s, case.last(s, b) + 1):
            traces = [case.trace_lambda * min(1.2, float(ratio[i, b])) for i in range(s, t)]
            error = case.reward[t, b] + case.gamma * case.next_value[t, b] - case.value[t, b]
            weight = min(1.5, float(ratio[t, b]))
            expected += case.gamma ** (t - s) * math.prod(traces) * weight * float(error)
        assert math.isclose(found[s, b], expected, rel_tol=1e-4, abs_tol=1e-5)


@many
@given(cases())
def test_gae_with_lambda_0_is_the_td_error(case):
    found = gae(case.reward, case.value, case.next_value, case.ended, case.gamma, 0.0)
    torch.testing.assert_close(
        found, case.reward + case.gamma * case.next_value - case.value, **CLOSE
    )


@many
@given(cases())
def test_gae_with_lambda_1_is_return_minus_value(case):
    # Along an episode the next value is the next step's.
    following = torch.where(case.ended, case.next_value, case.value.roll(-1, 0))
    following[-1] = case.next_value[-1]
    found = gae(case.reward, case.value, following, case.ended, case.gamma, 1.0)
    expected = discounted_returns(case.reward, following, case.ended, case.gamma) - case.value
    torch.testing.assert_close(found, expected, **CLOSE)


@many
@given(cases())
def test_vtrace_on_policy_is_the_discounted_return(case):
    following = torch.where(case.ended, case.next_value, case.value.roll(-1, 0))
    following[-1] = case.next_value[-1]
    target, advantage = vtrace(
        torch.zeros_like(case.reward),
        case.reward,
        case.value,
        following,
        case.ended,
        VTraceSettings(case.gamma),
    )
    expected = discounted_returns(case.reward, following, case.ended, case.gamma)
    torch.testing.assert_close(target, expected, **CLOSE)
    torch.testing.assert_close(
        advantage, gae(case.reward, case.value, following, case.ended, case.gamma, 1.0), **CLOSE
    )


@many
@given(cases())
def test_sums_so_far_equal_a_step_by_step_count_across_rollouts(case):
    cut = len(case.reward) // 2
    found, carried = [], torch.zeros(case.reward.shape[1])
    for part in (slice(0, cut), slice(cut, None)):
        if len(case.reward[part]):
            sums, carried = discounted_sums_so_far(
                case.reward[part], case.ended[part], carried, case.gamma
            )
            found.append(sums)
    running = np.zeros(case.reward.shape[1])
    for t, sums in enumerate(torch.cat(found)):
        running = running * case.gamma + case.reward[t].numpy()
        np.testing.assert_allclose(sums, running, rtol=1e-4, atol=1e-5)
        running[case.ended[t].numpy()] = 0.0
    np.testing.assert_allclose(carried, running, rtol=1e-4, atol=1e-5)


@many
@given(cases())
def test_stepwise_scan_equals_the_compiled_one(case):
    torch.testing.assert_close(
        returns._stepwise_scan(case.reward, case.value), returns._scan(case.reward, case.value)
    )


def test_next_values_tell_termination_from_truncation():
    found = next_values(
        value=column(1, 2, 3, 4, 5),
        final_value=column(10, 20, 30, 40),
        terminated=column(0, 1, 0, 1, dtype=torch.bool),
        truncated=column(0, 0, 1, 1, dtype=torch.bool),
    )
    assert found.flatten().tolist() == [2, 0, 30, 0]


def test_final_value_is_ignored_unless_truncated():
    found = next_values(
        column(1, 2), column(math.nan), GOES_ON[:1], torch.zeros(1, 1, dtype=torch.bool)
    )
    assert found.tolist() == [[2.0]]


@pytest.mark.parametrize(("truncates", "limit"), [(True, 100.0), (False, 21.79)])
def test_endless_task_is_worth_the_geometric_series_if_cut_by_truncation(truncates, limit):
    """A reward of 1 at every step, cut every 50 steps, evaluated until the value is steady."""
    gamma, steps = 0.99, 500
    end = (torch.arange(steps) % 50 == 49)[:, None]
    never = torch.zeros_like(end)
    flags = (never, end) if truncates else (end, never)
    value = 0.0
    for _ in range(100):
        values = torch.full((steps + 1, 1), value)
        following = next_values(values, values[:-1], *flags)
        advantage = gae(torch.ones(steps, 1), values[:-1], following, end, gamma, 1.0)
        value = float((advantage + values[:-1]).mean())
    assert value == pytest.approx(limit, rel=1e-3)


def test_results_are_constants():
    value = torch.ones(3, 1, requires_grad=True)
    assert not gae(value, value, value, GOES_ON, 0.9, 0.9).requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": torch.zeros(3)}, r"reward must be \[T, B\] and not empty, got \[3\]"),
        ({"reward": torch.zeros(0, 2)}, r"reward must be \[T, B\] and not empty"),
        (
            {"value": torch.zeros(4, 1)},
            r"value must have the shape of reward, \[3, 1\]; got \[4, 1\]",
        ),
        ({"ended": torch.zeros(3, 1)}, "ended must be bool, got torch.float32"),
    ],
)
def test_wrong_shapes_are_refused(change, message):
    zeros = torch.zeros(3, 1)
    arguments = {"reward": zeros, "value": zeros, "next_value": zeros, "ended": GOES_ON}
    with pytest.raises(ValueError, match=message):
        gae(**{**arguments, **change}, gamma=0.9, gae_lambda=0.9)


def test_values_without_the_last_one_are_refused():
    zeros = torch.zeros(3, 1)
    with pytest.raises(ValueError, match=r"value must be \[T\+1, B\] = \[4, 1\], got \[3, 1\]"):
        next_values(zeros, zeros, GOES_ON, GOES_ON)


@pytest.mark.gpu
@many
@given(cases())
def test_gpu_gives_what_the_cpu_gives(case):
    arguments = (case.reward, case.value, case.next_value, case.ended)
    found = gae(*(tensor.cuda() for tensor in arguments), 0.9, 0.8)
    torch.testing.assert_close(found.cpu(), gae(*arguments, 0.9, 0.8))
