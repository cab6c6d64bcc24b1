"""Engines act as the policy does where some actions are invalid."""

import pytest
import torch
from gymnasium import spaces

from fastrl.config import ModelConfig
from fastrl.models import ActorCritic, build_engine
from fastrl.models.inference import PolicyOutput
from fastrl.spec import EnvSpec
from tests.models.test_masked_distributions import a_mask, bits_of, chosen_options

SPACES = {
    "discrete": spaces.Discrete(18),
    "multi": spaces.MultiDiscrete([2, 5, 3]),
    "nested": spaces.Dict(
        [
            ("a", spaces.Discrete(4)),
            ("box", spaces.Box(-1, 1, (2,))),
            ("b", spaces.MultiDiscrete([3, 2])),
        ]
    ),
}


def case_of(name, rows, seed=0):
    """Return policy, observation, noise and mask; actions are decided, not near ties."""
    space = SPACES[name]
    seen = [("x", spaces.Box(-1, 1, (3,))), ("action_mask", bits_of(space))]
    spec = EnvSpec("masked", spaces.Dict(seen), space)
    torch.manual_seed(seed)
    model = ActorCritic(spec, ModelConfig(hidden_sizes=(16,)))
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.7)
    generator = torch.Generator().manual_seed(seed)
    observation = {"x": torch.randn(rows, 3, generator=generator)}
    mask = a_mask(space, rows, generator)
    return spec, model, observation, model.draw_noise((rows,), generator), mask


@pytest.mark.parametrize("engine", ["compiled", "eager"])
@pytest.mark.parametrize("name", SPACES)
def test_engines_equal_the_policy(name, engine):
    rows = 203  # several blocks, the last not full
    spec, model, observation, noise, mask = case_of(name, rows)
    found = build_engine(model, name=engine)
    assert found.name == engine
    out = PolicyOutput.zeros(rows, spec.action)
    call = found.bind(observation, noise, out, mask=mask)
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        mask.copy_(a_mask(SPACES[name], rows, generator))  # read at the time of the call
        call()
        with torch.no_grad():
            wanted = model.act(observation, noise, mask=mask)
        for path, action in wanted.action.items():
            torch.testing.assert_close(out.action[path], action, atol=1e-5, rtol=1e-5)
        for output, values in wanted.outputs.items():
            torch.testing.assert_close(out.outputs[output], values, atol=2e-5, rtol=1e-5)
        assert (chosen_options(SPACES[name], out.action) <= mask).all()


def test_the_compiled_engine_reads_masks_of_any_strides():
    spec, model, observation, noise, mask = case_of("discrete", 40)
    engine = build_engine(model, name="compiled")
    expected, found = (PolicyOutput.zeros(40, spec.action) for _ in range(2))
    engine.act(observation, noise, expected, mask=mask)
    wide = torch.ones(40, 2 * 18, dtype=torch.bool)
    wide[:, ::2] = mask
    engine.act(observation, noise, found, mask=wide[:, ::2])
    assert torch.equal(expected.action[""], found.action[""])
    assert torch.equal(expected.outputs["log_prob"], found.outputs["log_prob"])


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_million_actions_of_the_compiled_engine_are_valid(rounds):
    rows = 250_000
    spec, model, _, _, _ = case_of("multi", 1)
    engine, out = build_engine(model, name="compiled"), PolicyOutput.zeros(rows, spec.action)
    generator = torch.Generator().manual_seed(3)
    for scale in rounds * (0.0, 1.0, 10.0, 100.0):
        observation = {"x": scale * torch.randn(rows, 3, generator=generator)}
        mask = a_mask(SPACES["multi"], rows, generator)
        noise = engine.draw_noise((rows,), generator)
        noise[:100], noise[100:200] = 0.0, 1 - 2**-24
        engine.act(observation, noise, out, mask=mask)
        assert (chosen_options(SPACES["multi"], out.action) <= mask).all()


def test_a_row_without_valid_action_gives_no_number():
    spec, model, observation, noise, mask = case_of("discrete", 20)
    mask[7] = False
    for name in ("compiled", "eager"):
        out = PolicyOutput.zeros(20, spec.action)
        build_engine(model, name=name).act(observation, noise, out, mask=mask)
        assert out.outputs["log_prob"].isfinite().logical_not().nonzero().tolist() == [[7]]
        assert 0 <= out.action[""].min() <= out.action[""].max() < 18
