import numpy as np
import pytest
import torch
from gymnasium import spaces

from fastrl.config import ModelConfig
from fastrl.errors import ConfigError
from fastrl.models import ActorCritic
from fastrl.spec import EnvSpec

VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)
OBSERVATIONS = {
    "vector": VECTOR,
    "index": spaces.Discrete(4),
    "image": spaces.Box(0, 255, (40, 40, 3), np.uint8),
    "nested": spaces.Dict({"camera": spaces.Box(0, 255, (1, 40, 40), np.uint8), "joints": VECTOR}),
}
ACTIONS = spaces.Tuple((spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float32)))
SMALL = ModelConfig(hidden_sizes=(8,), conv_features=8)


def model_for(observation_space=VECTOR, action_space=ACTIONS, config=SMALL, **kwargs):
    torch.manual_seed(0)
    return ActorCritic(EnvSpec("test", observation_space, action_space), config, **kwargs)


def observations(model, leading):
    leaves = {}
    for path, spec in model.observation_specs.items():
        raw = torch.randn((*leading, *spec.shape))
        whole = (raw.abs() * 10).remainder(4)
        leaves[path] = raw if spec.dtype == torch.float32 else whole.to(spec.dtype)
    return leaves


@pytest.mark.parametrize("name", OBSERVATIONS)
@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
@pytest.mark.parametrize("shared_body", [True, False])
def test_any_leading_axes_pass_through(name, leading, shared_body):
    config = SMALL.model_copy(update={"shared_body": shared_body})
    model = model_for(OBSERVATIONS[name], config=config)
    observation = observations(model, leading)
    parameters, value = model(observation)
    assert parameters.shape == (*leading, 5)
    noise = model.draw_noise(leading)
    action, outputs = model.act(observation, noise)[:2]
    log_prob, acted_value = outputs["log_prob"], outputs["value"]
    assert action["0"].shape == leading
    assert action["1"].shape == (*leading, 2)
    evaluated = model.evaluate(observation, action)
    assert all(tensor.shape == leading for tensor in (log_prob, *evaluated))
    torch.testing.assert_close(evaluated[0], log_prob)
    for found in (value, acted_value, evaluated[2]):
        torch.testing.assert_close(found, model.value(observation))
    assert model.mode(observation).action["1"].shape == (*leading, 2)


def test_a_rollout_gives_what_its_steps_give():
    model = model_for()
    observation = {"": torch.randn(4, 6, 3)}
    parameters, value = model(observation)
    for t in range(4):
        step_parameters, step_value = model({"": observation[""][t]})
        torch.testing.assert_close(step_parameters, parameters[t])
        torch.testing.assert_close(step_value, value[t])


def test_separate_bodies_share_no_parameters():
    model = model_for(config=SMALL.model_copy(update={"shared_body": False}))
    model.value({"": torch.randn(4, 3)}).sum().backward()
    touched = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert touched
    assert all(name.startswith("critic_") for name in touched)


@pytest.mark.parametrize(
    ("name", "shares"), [("vector", False), ("index", False), ("image", True), ("nested", True)]
)
def test_by_default_images_share_a_body_and_vectors_do_not(name, shares):
    assert (model_for(OBSERVATIONS[name]).critic_body is None) == shares


def test_a_body_may_be_shared_or_not_whatever_is_observed():
    for name in OBSERVATIONS:
        for shares in (True, False):
            config = SMALL.model_copy(update={"shared_body": shares})
            assert (model_for(OBSERVATIONS[name], config=config).critic_body is None) == shares


def test_a_new_policy_is_nearly_uniform_and_its_heads_have_the_usual_gains():
    model = model_for(config=ModelConfig())
    assert model.actor_head.weight.norm(dim=1).max().item() == pytest.approx(0.01, rel=1e-4)
    assert model.critic_head.weight.norm().item() == pytest.approx(1.0, rel=1e-4)
    parameters, _ = model({"": torch.randn(100, 3)})
    assert parameters.abs().max() < 0.1


def test_initialisation_and_log_std_follow_the_configuration():
    config = ModelConfig(orthogonal_init=False, log_std_init=-0.5)
    model = model_for(config=config)
    assert model.actor_head.bias.abs().sum() > 0
    assert model.distribution.log_std.tolist() == [-0.5, -0.5]


@pytest.mark.parametrize("orthogonal_init", [True, False])
@pytest.mark.parametrize("log_std_bounds", [None, (-2, 1)])
@pytest.mark.parametrize("log_std", ["constant", "state"])
def test_every_policy_begins_with_the_configured_log_std(log_std, log_std_bounds, orthogonal_init):
    config = ModelConfig(
        log_std=log_std,
        log_std_init=-0.5,
        log_std_bounds=log_std_bounds,
        orthogonal_init=orthogonal_init,
    )
    model = model_for(action_space=spaces.Box(-1, 1, (2,), np.float32), config=config)
    zeros = {"": torch.zeros(1, 3)}, {"": torch.zeros(1, 2)}
    entropy = model.evaluate(*zeros)[1].item()
    expected = 2 * (-0.5 + 0.5 * np.log(2 * np.pi * np.e))
    assert entropy == pytest.approx(expected, abs=1e-5 if orthogonal_init else 0.5)


def test_critic_may_have_sizes_of_its_own():
    config = SMALL.model_copy(update={"critic_hidden_sizes": (16, 4)})
    model = model_for(config=config)
    shapes = [tuple(p.shape) for n, p in model.named_parameters() if n.endswith("weight")]
    assert shapes == [(8, 3), (16, 3), (4, 16), (5, 8), (1, 4)]
    observation = {"": torch.randn(7, 3)}
    torch.testing.assert_close(model.value(observation), model(observation)[1])


def test_critic_without_a_body_cannot_have_sizes_of_its_own():
    config = SMALL.model_copy(update={"critic_hidden_sizes": (16,)})
    with pytest.raises(ConfigError, match=r"^model\.critic_hidden_sizes: .* an observation is an"):
        model_for(OBSERVATIONS["nested"], config=config)
    separate = config.model_copy(update={"shared_body": False})
    assert model_for(OBSERVATIONS["nested"], config=separate).critic_head.in_features == 16


def test_observations_are_normalised_only_where_they_are_numbers():
    config = SMALL.model_copy(update={"normalize_observations": True})
    model = model_for(OBSERVATIONS["nested"], config=config)
    names = [name for name in model.state_dict() if "normalizers" in name]
    # The second leaf, 'joints', and not the camera.
    assert names == ["normalizers.1.mean", "normalizers.1.var", "normalizers.1.count"]


@pytest.mark.parametrize(
    ("space", "normalised"),
    [
        (spaces.Box(0, 1, (8,), np.uint8), False),
        (spaces.Box(0, 9, (8,), np.int16), True),
        (spaces.Box(0, 255, (9, 9, 3), np.float32), False),
        (spaces.Box(0, 65535, (40, 40), np.uint16), False),
        (spaces.Box(-np.inf, np.inf, (9, 9, 3), np.float32), True),
    ],
    ids=str,
)
def test_what_is_not_scaled_is_normalised(space, normalised):
    config = SMALL.model_copy(update={"normalize_observations": True})
    names = [name for name in model_for(space, config=config).state_dict() if "normal" in name]
    assert bool(names) == normalised


def test_normalisation_changes_only_by_update():
    config = SMALL.model_copy(update={"normalize_observations": True})
    model = model_for(config=config)
    observation = {"": torch.randn(5, 6, 3) * 100}
    before = model.value(observation)
    torch.testing.assert_close(model.value(observation), before)
    model.update_normalizers(observation)
    assert model.normalizers[0].count == 30
    # A policy that has seen nothing but these numbers sees them with mean 0 and variance 1.
    scaled = (observation[""] - observation[""].mean((0, 1))) / observation[""].std(
        (0, 1), correction=0
    )
    fresh = model_for()
    torch.testing.assert_close(
        model.value(observation), fresh.value({"": scaled}), atol=1e-4, rtol=1e-4
    )


def test_the_state_dict_holds_no_tensor_twice():
    pointers = [tensor.data_ptr() for tensor in model_for().state_dict().values()]
    assert len(set(pointers)) == len(pointers)


def test_squashed_bounds_reach_the_distribution():
    box = spaces.Box(-1, 1, (1,), np.float32)
    observation, action = {"": torch.zeros(1, 3)}, {"": torch.tensor([[3.0]])}
    clipped = model_for(action_space=box).evaluate(observation, action)[0]
    squashed = model_for(action_space=box, action_bounds="squash").evaluate(observation, action)[0]
    # tanh is flat at 3, so the density after it is higher: by 1 / (1 - tanh(3)²) = 101.4.
    assert (squashed - clipped).exp().item() == pytest.approx(101.36, rel=1e-3)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(2**36),
        spaces.MultiDiscrete([2**36, 3]),
        spaces.MultiDiscrete([2, 2**36]),
    ],
    ids=str,
)
def test_actions_of_more_kinds_than_fit_into_memory_are_refused(space):
    with pytest.raises(ConfigError, match=r"^action space .*: a layer .* into memory"):
        model_for(action_space=space)


def test_observations_of_more_kinds_than_fit_into_memory_are_refused():
    with pytest.raises(ConfigError, match=r"^model\.hidden_sizes: a layer of .* into memory"):
        model_for(spaces.Discrete(2**36))


def test_critic_that_does_not_fit_into_memory_is_refused_by_its_own_key():
    config = SMALL.model_copy(update={"critic_hidden_sizes": (2**31 - 1, 2**31 - 1)})
    with pytest.raises(ConfigError, match=r"^model\.critic_hidden_sizes: a layer of .* not fit"):
        model_for(config=config)
