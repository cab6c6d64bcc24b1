"""Distributions over valid actions only: exact, differentiable, and for any nested space."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from fastrl.models import ActionDistribution
from fastrl.models.inference import PolicyOutput, RandomEngine
from fastrl.spaces import leaves, num_choices
from fastrl.spec import EnvSpec

sizes = st.integers(1, 6)
leaf_spaces = st.one_of(
    st.builds(spaces.Discrete, sizes, start=st.integers(-2, 2)),
    st.lists(sizes, min_size=1, max_size=4).map(spaces.MultiDiscrete),
    st.just(spaces.MultiDiscrete([[3, 3], [3, 3]])),
    st.just(spaces.Box(-1, 1, (2,), np.float32)),
    st.just(spaces.MultiBinary(2)),
)
nested_spaces = st.recursive(
    leaf_spaces,
    lambda children: st.one_of(
        st.lists(children, min_size=1, max_size=3).map(spaces.Tuple),
        st.dictionaries(st.sampled_from("abc"), children, min_size=1).map(spaces.Dict),
    ),
    max_leaves=5,
).filter(lambda space: num_choices(space))


def a_mask(space, rows, generator):
    """Return ``[rows, choices]`` with at least one valid option for each choice."""
    parts = []
    for size in num_choices(space):
        part = torch.rand(rows, size, generator=generator) < 0.4
        part[torch.arange(rows), torch.randint(size, (rows,), generator=generator)] = True
        parts.append(part)
    return torch.cat(parts, 1)


def a_case(space, seed, scale=3.0, rows=5):
    generator = torch.Generator().manual_seed(seed)
    seen = spaces.Box(-1, 1, (2,), np.float32)
    distribution = ActionDistribution(EnvSpec("test", seen, space))
    parameters = scale * torch.randn(rows, distribution.num_parameters, generator=generator)
    noise = distribution.draw_noise((rows,), generator)
    return distribution, parameters, noise, a_mask(space, rows, generator)


def chosen_options(space, action):
    """Return ``[rows, choices]``: True where an option is the chosen one."""
    found = []
    for path, leaf in leaves(space).items():
        options = num_choices(leaf)
        rows = action[path].reshape(len(action[path]), -1)
        found += [torch.nn.functional.one_hot(rows[:, i], n) for i, n in enumerate(options)]
    return torch.cat(found, 1).bool()


@given(nested_spaces, st.integers(0, 2**31), st.sampled_from([0.1, 3.0, 60.0]))
def test_sampled_random_and_most_probable_actions_are_valid(space, seed, scale):
    distribution, parameters, noise, mask = a_case(space, seed, scale)
    noise[0], noise[1] = 0.0, 1 - 2**-24
    sampled = distribution.sample(parameters, noise, mask)
    best = distribution.mode(parameters, mask)
    spec = EnvSpec("", spaces.Dict(x=spaces.Discrete(2), action_mask=bits_of(space)), space)
    engine, out = RandomEngine(spec), PolicyOutput.zeros(len(mask), spec.action, {})
    engine.act({}, engine.draw_noise((len(mask),)), out, mask=mask)
    for action in (sampled, best, out.action):
        assert (chosen_options(space, action) <= mask).all()
    for log_prob in distribution.evaluate(parameters, sampled, mask):
        assert log_prob.isfinite().all()


def bits_of(space):
    return spaces.MultiBinary(sum(num_choices(space)))


@given(nested_spaces, st.integers(0, 2**31))
def test_log_prob_entropy_and_gradients_equal_those_of_the_valid_options_alone(space, seed):
    distribution, parameters, noise, mask = a_case(space, seed)
    distribution.requires_grad_(False)
    action = distribution.sample(parameters, noise, mask)
    parameters.requires_grad_()
    log_prob, entropy = distribution.evaluate(parameters, action, mask)
    (log_prob + 0.3 * entropy).sum().backward()
    got = parameters.grad.clone()
    assert torch.equal(distribution.log_prob(parameters, action, mask), log_prob)
    assert torch.equal(distribution.entropy(parameters, mask), entropy)
    # The same, each choice by itself, with the invalid options left out.
    parameters.grad = None
    kept = {p: a for p, a in action.items() if not num_choices(leaves(space)[p])}
    expected = []
    for row in range(len(mask)):
        terms, column, start = [], 0, 0
        for path, leaf in leaves(space).items():
            options = num_choices(leaf)
            part = distribution.parts[path]
            if not options:
                columns = parameters[row, column : column + part.num_parameters]
                std = distribution.log_std.float()[: part.num_log_std]
                flat = kept[path][row].reshape(-1)
                terms += [part.log_prob(columns, flat, std), 0.3 * part.entropy(columns, std)]
                column += part.num_parameters
            for index, size in enumerate(options):
                valid = mask[row, start : start + size]
                log_p = parameters[row, column : column + size][valid].double().log_softmax(0)
                nth = int(valid[: int(action[path][row].reshape(-1)[index])].sum())
                terms += [log_p[nth], -0.3 * (log_p.exp() * log_p).sum()]
                column, start = column + size, start + size
        expected.append(sum(terms))
    total = torch.stack([torch.as_tensor(each) for each in expected]).double()
    found = (log_prob + 0.3 * entropy).double()
    torch.testing.assert_close(found, total, atol=1e-5, rtol=1e-5)
    total.sum().backward()
    torch.testing.assert_close(got, parameters.grad, atol=1e-5, rtol=1e-4)
    assert got.isfinite().all()
    if len(distribution.parts) == 1:
        assert (got[~mask] == 0).all()


@given(st.lists(sizes, min_size=1, max_size=3), st.integers(0, 2**31))
def test_probabilities_of_all_valid_actions_sum_to_one(options, seed):
    space = spaces.MultiDiscrete(options)
    distribution, parameters, _, mask = a_case(space, seed, rows=1)
    every = torch.cartesian_prod(*[torch.arange(n) for n in options]).reshape(-1, len(options))
    log_prob = distribution.log_prob(
        parameters.expand(len(every), -1), {"": every}, mask.expand(len(every), -1)
    )
    is_valid = (chosen_options(space, {"": every}) <= mask).all(1)
    assert log_prob[is_valid].exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert (log_prob[~is_valid] == -math.inf).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ten_thousand_actions_of_which_few_are_valid(dtype):
    space = spaces.Discrete(10_000)
    distribution = ActionDistribution(EnvSpec("", spaces.Box(-1, 1, (2,)), space))
    parameters = torch.full((4, 10_000), 1e4, dtype=dtype)
    mask = torch.zeros(4, 10_000, dtype=torch.bool)
    valid = torch.tensor([17, 5000, 9999])
    mask[:, valid] = True
    parameters[:, valid] = -1e6  # far below the invalid ones
    parameters.requires_grad_()
    noise = torch.tensor([[0.0], [0.5], [1 - 2**-24], [0.99]])
    action = distribution.sample(parameters, noise, mask)
    assert action[""].tolist() == [17, 5000, 9999, 9999]
    log_prob, entropy = distribution.evaluate(parameters, action, mask)
    torch.testing.assert_close(log_prob, torch.full((4,), -math.log(3)))
    torch.testing.assert_close(entropy, torch.full((4,), math.log(3)))
    (log_prob + entropy).sum().backward()
    assert parameters.grad.isfinite().all()
    assert (parameters.grad[:, ~mask[0]] == 0).all()


def test_a_million_sampled_actions_are_valid():
    space = spaces.MultiDiscrete([18, 7])
    generator = torch.Generator().manual_seed(0)
    distribution = ActionDistribution(EnvSpec("", spaces.Box(-1, 1, (2,)), space))
    rows = 250_000
    for scale in (0.1, 30.0):
        mask = a_mask(space, rows, generator)
        parameters = scale * torch.randn(rows, 25, generator=generator)
        noise = distribution.draw_noise((rows,), generator)
        action = distribution.sample(parameters, noise, mask)
        assert (chosen_options(space, action) <= mask).all()
        spec = EnvSpec("", spaces.Dict(x=spaces.Discrete(2), action_mask=bits_of(space)), space)
        engine, out = RandomEngine(spec), PolicyOutput.zeros(rows, spec.action, {})
        engine.act({}, engine.draw_noise((rows,), generator), out, mask=mask)
        assert (chosen_options(space, out.action) <= mask).all()


def test_random_actions_are_uniform_among_the_valid_ones():
    space = spaces.Discrete(4)
    spec = EnvSpec("", spaces.Dict(x=spaces.Discrete(2), action_mask=bits_of(space)), space)
    engine, out = RandomEngine(spec), PolicyOutput.zeros(30_000, spec.action, {})
    mask = torch.tensor([False, True, True, True]).expand(30_000, 4)
    engine.act({}, engine.draw_noise((30_000,), torch.Generator().manual_seed(0)), out, mask=mask)
    counts = torch.bincount(out.action[""], minlength=4).tolist()
    assert counts[0] == 0
    assert all(abs(count - 10_000) < 400 for count in counts[1:])


def test_without_any_valid_action_the_log_prob_is_not_a_number():
    space = spaces.MultiDiscrete([2, 3])
    distribution, parameters, noise, mask = a_case(space, 0, rows=2)
    mask[1, :2] = False
    log_prob = distribution.log_prob(parameters, distribution.sample(parameters, noise, mask), mask)
    assert log_prob.isfinite().tolist() == [True, False]
