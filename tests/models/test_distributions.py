import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from torch import distributions as td

from fastrl.errors import SpaceError
from fastrl.models import ActionDistribution
from fastrl.spaces import leaves
from fastrl.spec import EnvSpec

BOX = spaces.Box(-2.0, 3.0, (2, 3), np.float32)
NESTED = spaces.Dict(
    {
        "jump": spaces.Discrete(4, start=2),
        "arm": spaces.Tuple((BOX, spaces.MultiBinary(3))),
        "keys": spaces.MultiDiscrete([2, 5, 3]),
    }
)
SPACES = {
    "Discrete": spaces.Discrete(5),
    "MultiDiscrete": spaces.MultiDiscrete([2, 5, 3]),
    "equal MultiDiscrete": spaces.MultiDiscrete([[3, 3], [3, 3]]),
    "MultiBinary": spaces.MultiBinary((2, 2)),
    "Box": BOX,
    "scalar Box": spaces.Box(-1.0, 1.0, (), np.float32),
    "nested": NESTED,
}
seeds = st.integers(0, 2**31 - 1)
scales = st.sampled_from([0.01, 1.0, 5.0])
names = st.sampled_from(sorted(SPACES))
bounds = st.sampled_from(["clip", "squash"])


def spec_of(action_space):
    return EnvSpec("test", spaces.Box(-1, 1, (3,), np.float32), action_space)


def distribution_over(action_space, action_bounds="clip", log_std=None, **keys):
    distribution = ActionDistribution(spec_of(action_space), action_bounds, **keys)
    if log_std is not None:
        with torch.no_grad():
            distribution.log_std.copy_(torch.as_tensor(log_std))
    return distribution


def a_batch(space, action_bounds, seed, scale, leading=(7,)):
    """Return (distribution, parameters, noise) drawn from a seed."""
    generator = torch.Generator().manual_seed(seed)
    distribution = distribution_over(space, action_bounds)
    with torch.no_grad():
        distribution.log_std.normal_(0.0, 0.5, generator=generator)
    parameters = torch.randn(*leading, distribution.num_parameters, generator=generator) * scale
    return distribution, parameters, distribution.draw_noise(leading, generator)


def torch_distribution(leaf, parameters, log_std, squash):
    """Return the same distribution over one leaf, built by torch.distributions."""
    if isinstance(leaf, spaces.Discrete):
        return td.Categorical(logits=parameters)
    if isinstance(leaf, spaces.MultiBinary):
        logits = parameters.reshape(*parameters.shape[:-1], *leaf.shape)
        return td.Independent(td.Bernoulli(logits=logits), len(leaf.shape))
    mean = parameters.reshape(*parameters.shape[:-1], *leaf.shape).double()
    gaussian = td.Normal(mean, log_std.reshape(leaf.shape).exp().double())
    if squash:
        gaussian = td.TransformedDistribution(gaussian, td.TanhTransform(cache_size=1))
    return td.Independent(gaussian, len(leaf.shape))


@given(names, bounds, seeds, scales, st.sampled_from([(), (7,), (2, 3)]))
def test_samples_have_the_stored_shapes_and_dtypes(name, action_bounds, seed, scale, leading):
    distribution, parameters, noise = a_batch(SPACES[name], action_bounds, seed, scale, leading)
    action = distribution.sample(parameters, noise)
    specs = spec_of(SPACES[name]).action
    assert action.keys() == specs.keys()
    for path, spec in specs.items():
        assert action[path].shape == (*leading, *spec.shape)
        assert action[path].dtype == distribution.mode(parameters)[path].dtype == spec.dtype
    log_prob, entropy = distribution.evaluate(parameters, action)
    assert log_prob.shape == entropy.shape == leading
    assert torch.equal(distribution.log_prob(parameters, action), log_prob)
    assert torch.equal(distribution.entropy(parameters), entropy)


@given(seeds, scales)
def test_discrete_agrees_with_torch(seed, scale):
    distribution, parameters, noise = a_batch(spaces.Discrete(5), "clip", seed, scale)
    action = distribution.sample(parameters, noise)
    expected = td.Categorical(logits=parameters)
    torch.testing.assert_close(
        distribution.log_prob(parameters, action), expected.log_prob(action[""])
    )
    torch.testing.assert_close(distribution.entropy(parameters), expected.entropy())
    mode = distribution.mode(parameters)[""]
    torch.testing.assert_close(expected.log_prob(mode), expected.log_prob(expected.mode))


@given(seeds, scales)
def test_multi_discrete_agrees_with_torch(seed, scale):
    sizes = [2, 5, 3]
    distribution, parameters, noise = a_batch(spaces.MultiDiscrete(sizes), "clip", seed, scale)
    action = distribution.sample(parameters, noise)
    parts = [td.Categorical(logits=logits) for logits in parameters.split(sizes, -1)]
    log_prob = sum(part.log_prob(action[""][:, i]) for i, part in enumerate(parts))
    torch.testing.assert_close(distribution.log_prob(parameters, action), log_prob)
    entropy = sum(part.entropy() for part in parts)
    torch.testing.assert_close(distribution.entropy(parameters), entropy)
    for i, part in enumerate(parts):
        chosen = part.log_prob(distribution.mode(parameters)[""][:, i])
        torch.testing.assert_close(chosen, part.log_prob(part.mode))


@given(seeds, scales)
def test_multi_binary_agrees_with_torch(seed, scale):
    space = spaces.MultiBinary((2, 2))
    distribution, parameters, noise = a_batch(space, "clip", seed, scale)
    action = distribution.sample(parameters, noise)
    expected = torch_distribution(space, parameters, None, False)
    log_prob = expected.log_prob(action[""].float())
    torch.testing.assert_close(distribution.log_prob(parameters, action), log_prob)
    torch.testing.assert_close(
        distribution.entropy(parameters), expected.entropy(), atol=1e-5, rtol=1e-4
    )


@given(seeds, scales)
def test_box_agrees_with_torch(seed, scale):
    distribution, parameters, noise = a_batch(BOX, "clip", seed, scale)
    action = distribution.sample(parameters, noise)
    expected = torch_distribution(BOX, parameters, distribution.log_std, False)
    log_prob = expected.log_prob(action[""].double()).float()
    torch.testing.assert_close(
        distribution.log_prob(parameters, action), log_prob, atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(distribution.entropy(parameters), expected.entropy().float())


@given(seeds, st.sampled_from([0.01, 1.0]))
def test_squashed_box_agrees_with_torch(seed, scale):
    distribution, parameters, noise = a_batch(BOX, "squash", seed, scale)
    u = distribution.sample(parameters, noise)
    expected = torch_distribution(BOX, parameters, distribution.log_std, True)
    log_prob = expected.log_prob(u[""].double().tanh()).float()
    torch.testing.assert_close(distribution.log_prob(parameters, u), log_prob, atol=2e-3, rtol=1e-3)


def test_squashed_log_prob_is_finite_where_the_tanh_saturates():
    distribution = distribution_over(spaces.Box(-1.0, 1.0, (1,), np.float32), "squash")
    u = torch.tensor([[20.0], [-20.0]])
    # N(u; u, 1) has the log-density -0.919; log(1 - tanh(20)²) is log(4) - 40.
    log_prob = distribution.log_prob(u, {"": u})
    torch.testing.assert_close(log_prob, torch.full((2,), -0.91894 - math.log(4) + 40))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.1), (0.0, 2.0), (1.5, 0.5), (-3.0, 1.0)])
def test_squashed_entropy_is_the_mean_of_minus_log_prob(mean, std):
    space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    distribution = distribution_over(space, "squash", [math.log(std)])
    # Midpoints of equally probable intervals: an integral, without the noise of sampling.
    quantiles = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    noise = td.Normal(0.0, 1.0).icdf(quantiles).float()[:, None]
    parameters = torch.full((200_000, 1), mean)
    minus_log_prob = -distribution.log_prob(parameters, distribution.sample(parameters, noise))
    expected = minus_log_prob.double().mean().item()
    assert distribution.entropy(parameters[:1]).item() == pytest.approx(expected, abs=1e-3)


def test_gradients_reach_the_log_std_through_log_prob_and_entropy():
    for action_bounds in ("clip", "squash"):
        distribution, parameters, noise = a_batch(BOX, action_bounds, 0, 1.0)
        action = distribution.sample(parameters, noise)
        for term in (distribution.log_prob(parameters, action), distribution.entropy(parameters)):
            (gradient,) = torch.autograd.grad(term.sum(), distribution.log_std)
            assert (gradient != 0).all()


@given(seeds, bounds)
def test_leaves_of_a_nested_space_are_independent(seed, action_bounds):
    distribution, parameters, noise = a_batch(NESTED, action_bounds, seed, 1.0)
    action = distribution.sample(parameters, noise)
    log_prob, entropy, first = torch.zeros(7), torch.zeros(7), 0
    for path, leaf in leaves(NESTED).items():
        log_std = distribution.log_std.detach() if isinstance(leaf, spaces.Box) else None
        alone = distribution_over(leaf, action_bounds, log_std)
        columns = parameters[:, first : first + alone.num_parameters]
        first += alone.num_parameters
        log_prob += alone.log_prob(columns, {"": action[path]}).detach()
        entropy += alone.entropy(columns).detach()
    assert first == distribution.num_parameters
    torch.testing.assert_close(distribution.log_prob(parameters, action).detach(), log_prob)
    torch.testing.assert_close(distribution.entropy(parameters).detach(), entropy)


@pytest.mark.parametrize(
    "probabilities", [[0.5, 0.5], [0.1, 0.2, 0.3, 0.4], [0.97, 0.01, 0.01, 0.01]]
)
def test_discrete_frequencies_follow_the_probabilities(probabilities):
    count, size = 100_000, len(probabilities)
    distribution = distribution_over(spaces.Discrete(size))
    noise = distribution.draw_noise((count,), torch.Generator().manual_seed(3))
    parameters = torch.tensor(probabilities).log().expand(count, -1)
    found = torch.bincount(distribution.sample(parameters, noise)[""], minlength=size)
    expected = torch.tensor(probabilities) * count
    chi_square = ((found - expected) ** 2 / expected).sum().item()
    # The 99.9 % quantile for 3 degrees of freedom, generous for 1.
    assert chi_square < 16.27


def test_multi_binary_frequencies_follow_the_probabilities():
    distribution = distribution_over(spaces.MultiBinary(2))
    noise = distribution.draw_noise((100_000,), torch.Generator().manual_seed(4))
    # The logits of 0.25 and 0.9.
    parameters = torch.tensor([-1.0986123, 2.1972246]).expand(100_000, -1)
    frequencies = distribution.sample(parameters, noise)[""].float().mean(0)
    torch.testing.assert_close(frequencies, torch.tensor([0.25, 0.9]), atol=5e-3, rtol=0)


def test_box_samples_have_the_mean_and_the_standard_deviation():
    space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    distribution = distribution_over(space, "clip", [math.log(0.5), math.log(2.0)])
    noise = distribution.draw_noise((200_000,), torch.Generator().manual_seed(5))
    sample = distribution.sample(torch.tensor([3.0, -1.0]).expand(200_000, -1), noise)[""]
    torch.testing.assert_close(sample.mean(0), torch.tensor([3.0, -1.0]), atol=2e-2, rtol=0)
    torch.testing.assert_close(sample.std(0), torch.tensor([0.5, 2.0]), atol=2e-2, rtol=0)


@pytest.mark.parametrize("uniform", [0.0, 1e-45, 0.5, 1 - 2**-24, 1.0])
@pytest.mark.parametrize(
    "logits",
    [
        [-math.inf, 0.0, -math.inf],
        [-200.0, 0.0, -200.0],
        [-math.inf, -math.inf, 3.0],
        [3.0, -math.inf, -math.inf],
        [0.0, -math.inf, 0.0],
        [1e30, -1e30, 1e30],
    ],
)
def test_impossible_categories_are_never_sampled(uniform, logits):
    distribution = distribution_over(spaces.Discrete(3))
    parameters = torch.tensor([logits])
    index = distribution.sample(parameters, torch.tensor([[uniform]]))[""].item()
    assert parameters.softmax(-1)[0, index] > 0


@given(seeds, st.integers(1, 300), st.floats(0, 1, width=32))
def test_the_sampled_index_is_in_range(seed, size, uniform):
    generator = torch.Generator().manual_seed(seed)
    parameters = torch.randn(1, size, generator=generator) * 30
    index = distribution_over(spaces.Discrete(size)).sample(parameters, torch.tensor([[uniform]]))
    assert 0 <= index[""].item() < size


def test_noise_is_reproducible_and_uniform_or_normal_by_leaf():
    distribution = distribution_over(NESTED)
    noise, again = (
        distribution.draw_noise((500, 40), torch.Generator().manual_seed(1)) for _ in range(2)
    )
    assert torch.equal(noise, again)
    assert noise.shape == (500, 40, 1 + 6 + 3 + 3)
    paths = list(leaves(NESTED))
    widths = {"jump": 1, "arm/0": 6, "arm/1": 3, "keys": 3}
    columns = dict(zip(paths, noise.split([widths[p] for p in paths], -1), strict=True))
    for path, column in columns.items():
        uniform = path != "arm/0"
        assert (column.min() >= 0) == uniform
        assert column.mean().item() == pytest.approx(0.5 if uniform else 0.0, abs=0.01)


def test_half_precision_parameters_are_computed_in_float32():
    distribution = distribution_over(spaces.Discrete(4))
    parameters = torch.randn(3, 4).bfloat16()
    assert distribution.entropy(parameters).dtype == torch.float32


@pytest.mark.parametrize(
    ("space", "action_bounds", "message"),
    [
        (spaces.Box(-np.inf, np.inf, (2,), np.float32), "squash", "finite bounds"),
        (spaces.Dict({"x": spaces.Box(0, 255, (2,), np.uint8)}), "clip", "at 'x'"),
    ],
)
def test_unsupported_spaces_are_refused_by_name(space, action_bounds, message):
    with pytest.raises(SpaceError, match=message):
        ActionDistribution(spec_of(space), action_bounds)


@pytest.mark.parametrize("action_bounds", ["clip", "squash"])
def test_log_std_is_used_within_bounds_and_as_it_is_there(action_bounds):
    inside = torch.linspace(-19.0, 19.0, 100)
    distribution = distribution_over(spaces.Box(-1, 1, (100,)), action_bounds, inside)
    assert torch.equal(distribution.bounded_log_std(), inside)
    for log_std in (-1e4, 1e4):
        distribution, parameters, noise = a_batch(BOX, action_bounds, 0, 1.0)
        with torch.no_grad():
            distribution.log_std.fill_(log_std)
        action = distribution.sample(parameters, noise)
        log_prob, entropy = (
            distribution.log_prob(parameters, action),
            distribution.entropy(parameters),
        )
        assert all(x.isfinite().all() for x in (action[""], log_prob, entropy))
        (gradient,) = torch.autograd.grad((log_prob + entropy).sum(), distribution.log_std)
        assert (gradient == 0).all()


@given(st.floats(-20, 19), st.floats(0.1, 20), st.floats(0.01, 0.99), bounds)
def test_bounds_are_approached_and_the_first_value_is_exact(low, width, share, action_bounds):
    high = min(low + width, 20.0)
    init = low + share * (high - low)
    distribution = distribution_over(
        BOX, action_bounds, log_std_init=init, log_std_bounds=(low, high)
    )
    assert distribution.bounded_log_std().tolist() == pytest.approx([init] * 6, abs=1e-4)
    far = torch.tensor([-1e4, -1.0, 0.0, 1.0, 1e4, 7.0])
    found = distribution.bounded(far)
    assert (found >= low - 1e-5).all()
    assert (found <= high + 1e-5).all()
    assert found[[0, 4]].tolist() == pytest.approx([low, high], abs=1e-5)


def test_bounded_log_std_has_slope_1_in_the_middle_and_comes_back_from_its_bounds():
    distribution = distribution_over(BOX, log_std_bounds=(-3.0, 1.0))
    raw = torch.tensor([-5.0, -1.0, 3.0], requires_grad=True)
    (slope,) = torch.autograd.grad(distribution.bounded(raw).sum(), raw)
    assert slope[1] == 1
    assert (slope > 0.01).all()


@given(seeds, scales, bounds, st.booleans())
def test_state_dependent_gaussians_are_those_with_their_own_log_std(
    seed, scale, action_bounds, is_bounded
):
    log_std_bounds = (-1.0, 1.0) if is_bounded else None
    keys = {"state_std": True, "log_std_bounds": log_std_bounds}
    distribution = distribution_over(BOX, action_bounds, **keys)
    assert (distribution.num_parameters, distribution.log_std.numel()) == (12, 0)
    generator = torch.Generator().manual_seed(seed)
    parameters = torch.randn(4, 12, generator=generator) * scale
    noise = distribution.draw_noise((4,), generator)
    action = distribution.sample(parameters, noise)
    for row in range(4):
        raw = parameters[row, 6:]
        alone = distribution_over(BOX, action_bounds, raw, log_std_bounds=log_std_bounds)
        mean = parameters[row, :6]
        mine = {path: leaf[row] for path, leaf in action.items()}
        sample = alone.sample(mean, noise[row])
        torch.testing.assert_close(sample[""].detach(), mine[""])
        for method in (lambda d, p, a: d.log_prob(p, a), lambda d, p, a: d.entropy(p)):
            found = method(distribution, parameters[row], mine)
            torch.testing.assert_close(found, method(alone, mean, mine).detach())
        torch.testing.assert_close(distribution.mode(parameters[row])[""], mean.reshape(2, 3))


def test_state_dependent_leaves_stand_beside_discrete_ones():
    distribution = distribution_over(NESTED, state_std=True)
    assert distribution.num_parameters == 4 + 12 + 3 + 10
    parameters = torch.randn(5, distribution.num_parameters)
    action = distribution.sample(parameters, distribution.draw_noise((5,)))
    assert action["arm/0"].shape == (5, 2, 3)
    assert distribution.log_prob(parameters, action).isfinite().all()
