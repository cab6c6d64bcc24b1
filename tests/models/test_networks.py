import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from fastrl.config import ModelConfig
from fastrl.errors import ConfigError, EnvError
from fastrl.models.images import has_images, image_layouts
from fastrl.models.networks import Body, Scaling, is_bounded

CONFIG = ModelConfig(hidden_sizes=(24, 16), conv_features=32)


def image(shape, dtype=np.uint8):
    high = 255 if dtype == np.uint8 else 1
    return spaces.Box(0, high, shape, dtype)


def encode(space, *observation, config=CONFIG):
    torch.manual_seed(0)
    return Body(space, config)(observation)


@pytest.mark.parametrize(
    "shape",
    [
        (64, 64, 3),
        (3, 64, 64),
        (84, 84, 4),
        (4, 84, 84),
        (12, 84, 84),
        (210, 160, 3),
        (36, 36, 1),
        (84, 84),
        (32, 32, 3),
        (16, 16, 3),
        (10, 10, 4),
        (7, 7, 3),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_images_of_any_layout_and_size_are_encoded(shape, dtype):
    space = image(shape, dtype)
    observation = torch.from_numpy(np.stack([space.sample() for _ in range(2)]))
    features = encode(space, observation)
    width = CONFIG.conv_features if has_images(space) else CONFIG.hidden_sizes[-1]
    assert features.shape == (2, width)
    assert features.dtype == torch.float32
    assert features.abs().sum() > 0


def test_an_image_looks_the_same_with_its_channels_first_or_last():
    last = torch.randint(0, 255, (2, 48, 40, 3), dtype=torch.uint8)
    first = last.permute(0, 3, 1, 2).contiguous()
    features = [encode(image(x.shape[1:]), x) for x in (last, first)]
    torch.testing.assert_close(*features)


def test_bytes_are_scaled_to_one():
    pixels = torch.randint(0, 255, (2, 48, 48, 3), dtype=torch.uint8)
    scaled = encode(image((48, 48, 3), np.float32), pixels.float() / 255)
    torch.testing.assert_close(encode(image((48, 48, 3)), pixels), scaled)
    ram = torch.randint(0, 255, (2, 128), dtype=torch.uint8)
    scaled = encode(image((128,), np.float32), ram.float() / 255)
    torch.testing.assert_close(encode(image((128,)), ram), scaled)


@given(
    st.sampled_from([np.uint8, np.int8, np.uint16, np.int16, np.int32, np.float32, np.float64]),
    st.integers(-(2**15), 2**16 - 1),
    st.integers(1, 2**16 - 1),
    st.sampled_from([(8, 9, 3), (3, 8, 9), (2, 8, 9, 3), (5,)]),
)
def test_bounds_of_bytes_and_images_become_0_and_1(dtype, low, span, shape):
    high = low + span
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        low = max(limits.min, min(low, limits.max - 1))
        high = max(low + 1, min(high, limits.max))
    space = spaces.Box(low, high, shape, dtype)
    ((path, layout),) = image_layouts(space, ModelConfig()).items()
    assert path == ""
    assert is_bounded(space, layout) == (layout is not None or dtype == np.uint8)
    scaling = Scaling(space, layout)
    ends = [torch.from_numpy(np.full((2, *shape), end).astype(dtype)) for end in (low, high)]
    found = [scaling(end).unique().tolist() for end in ends]
    if is_bounded(space, layout) and (low < -1 or high > 1):
        assert found[0] == pytest.approx([0], abs=1e-6)
        assert found[1] == pytest.approx([1], abs=1e-6)
    else:
        assert found == [[low], [high]]
    assert (ends[0] == low).all()


def test_each_number_is_scaled_by_its_own_bounds():
    low, high = np.array([0, 10, 7], np.uint8), np.array([4, 20, 7], np.uint8)
    scaling = Scaling(spaces.Box(low, high, dtype=np.uint8))
    numbers = torch.tensor([[0, 10, 7], [4, 15, 7]], dtype=torch.uint8)
    assert scaling(numbers).tolist() == [[0, 0, 0], [1, 0.5, 0]]
    assert not scaling.state_dict()


def test_each_pixel_of_a_stack_is_scaled_by_its_own_bounds():
    high = np.arange(1, 1 + 2 * 7 * 8 * 3).reshape(2, 7, 8, 3)
    space = spaces.Box(np.zeros_like(high), high, dtype=np.int64)
    layout = image_layouts(space, ModelConfig())[""]
    scaled = Scaling(space, layout)(layout.arrange(torch.from_numpy(high)[None]))
    torch.testing.assert_close(scaled, torch.ones(1, 6, 7, 8))


def test_numbers_keep_their_scale():
    for space in (
        spaces.Box(0, 255, (5,), np.float32),
        spaces.Box(0, 9, (5,), np.int16),
        spaces.Box(-np.inf, np.inf, (9, 9, 3), np.float32),
        spaces.Box(-1, 1, (9, 9, 3), np.float32),
        spaces.Box(-1e30, 1e30, (9, 9, 3), np.float64),
    ):
        numbers = torch.rand(2, *space.shape)
        assert torch.equal(Scaling(space, image_layouts(space, CONFIG)[""])(numbers), numbers)


def test_a_single_image_goes_without_the_mlp():
    body = Body(image((64, 64, 3)), CONFIG)
    assert len(body.mlp) == 0
    assert body.num_features == 32


def test_indices_become_one_hot_vectors():
    config = ModelConfig(hidden_sizes=())
    features = encode(
        spaces.Tuple((spaces.Discrete(3, start=-1), spaces.MultiDiscrete([2, 3], start=[0, 5]))),
        torch.tensor([-1, 1]),
        torch.tensor([[0, 5], [1, 7]]),
        config=config,
    )
    assert features.tolist() == [[1, 0, 0, 1, 0, 1, 0, 0], [0, 0, 1, 0, 1, 0, 0, 1]]


def test_a_layer_behind_many_options_computes_what_a_product_does():
    space = spaces.Tuple(
        (
            spaces.Discrete(300, start=-1),
            spaces.Box(-1, 1, (3,), np.float32),
            spaces.MultiDiscrete([70, 80]),
            spaces.Discrete(5),
        )
    )
    body = Body(space, CONFIG)
    chosen = torch.arange(7)
    vector = torch.rand(7, 3)
    pair = torch.stack([chosen * 9, 79 - chosen], 1)
    one_hot = torch.nn.functional.one_hot
    vectors = (one_hot(chosen + 1, 300), vector, one_hot(pair[:, 0], 70), one_hot(pair[:, 1], 80))
    product = body.mlp(torch.cat([*vectors, one_hot(chosen % 5, 5)], 1))
    found = body([chosen, vector, pair, chosen % 5])
    torch.testing.assert_close(found, product, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("size", "wrong"), [(3, 3), (300, 300), (300, -1)])
def test_an_index_outside_its_space_is_refused(size, wrong):
    with pytest.raises(EnvError, match=rf"not in its space Discrete\({size}\): .*index.* out"):
        encode(spaces.Discrete(size), torch.tensor([wrong]))


def test_leaves_of_a_dict_are_joined_in_the_order_of_the_space():
    space = spaces.Dict(
        {
            "speed": spaces.Box(-1, 1, (), np.float32),
            "matrix": spaces.Box(-1, 1, (2, 2), np.float32),
            "flags": spaces.MultiBinary(2),
            "pixels": image((40, 40, 3)),
        }
    )
    leaves = {
        "flags": torch.tensor([[1, 0]], dtype=torch.int8),
        "matrix": torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]),
        "pixels": torch.zeros(1, 40, 40, 3, dtype=torch.uint8),
        "speed": torch.tensor([9.0]),
    }
    observation = [leaves[path] for path in space.spaces]
    features = encode(space, *observation, config=ModelConfig(hidden_sizes=(), conv_features=3))
    # An orthogonal layer without bias turns black pixels into zeros.
    expected = {"flags": [1, 0], "matrix": [1, 2, 3, 4], "pixels": [0, 0, 0], "speed": [9]}
    assert features[0].tolist() == [x for path in space.spaces for x in expected[path]]


def test_hidden_layers_are_orthogonal_with_a_gain_of_root_two():
    body = Body(spaces.Box(-1, 1, (64,), np.float32), ModelConfig(hidden_sizes=(64,)))
    weight = body.mlp[0].weight
    torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(64), atol=1e-5, rtol=0)
    assert body.mlp[0].bias.abs().sum() == 0


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu", "gelu", "silu"])
def test_the_activation_follows_each_hidden_layer(activation):
    config = ModelConfig(hidden_sizes=(8, 8), activation=activation)
    body = Body(spaces.Box(-1, 1, (4,), np.float32), config)
    names = [type(module).__name__.lower() for module in body.mlp]
    assert names == ["linear", activation, "linear", activation]


def test_crafter_sized_images_fit_the_usual_conv_net():
    body = Body(gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8), ModelConfig())
    convolutions = [m for m in body.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size[0], c.stride[0]) for c in convolutions] == [
        (32, 8, 4),
        (64, 4, 2),
        (64, 3, 1),
    ]
    assert body.num_features == 512


def test_the_convolutions_are_those_of_the_configuration():
    config = ModelConfig(conv_layers=[[16, 7, 7], [8, 3, 1]], conv_features=32)
    body = Body(image((64, 64, 3)), config)
    convolutions = [m for m in body.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size[0], c.stride[0]) for c in convolutions] == [
        (16, 7, 7),
        (8, 3, 1),
    ]
    assert body([torch.zeros(2, 64, 64, 3, dtype=torch.uint8)]).shape == (2, 32)


def test_a_convolution_that_nothing_is_left_for_is_refused():
    config = ModelConfig(conv_layers=[[16, 32, 32], [8, 3, 1]])
    with pytest.raises(ConfigError, match="kernel of 3 does not fit into the 2 × 3 pixels"):
        Body(image((64, 96, 3)), config)


@pytest.mark.parametrize(
    ("space", "changes", "key"),
    [
        (spaces.Box(-1, 1, (4,)), {"hidden_sizes": [2**31 - 1, 2**31 - 1]}, "hidden_sizes"),
        (image((64, 64, 3)), {"conv_layers": [[2**31 - 1, 60, 1]]}, "conv_layers"),
        (image((64, 64, 3)), {"conv_features": 2**31 - 1}, "conv_features"),
    ],
)
def test_a_layer_that_does_not_fit_into_memory_is_refused(monkeypatch, space, changes, key):
    monkeypatch.setattr("fastrl.models.networks.free_bytes", lambda: 2**30)
    with pytest.raises(ConfigError, match=rf"^model\.{key}: a layer of .* MiB does not fit"):
        Body(space, ModelConfig(**changes))
