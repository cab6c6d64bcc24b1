import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from fastrl.config import ModelConfig
from fastrl.errors import ConfigError, EnvError
from fastrl.models.networks import Body, is_image

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
    width = CONFIG.conv_features if is_image(space) else CONFIG.hidden_sizes[-1]
    assert features.shape == (2, width)
    assert features.dtype == torch.float32
    assert features.abs().sum() > 0


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((7, 7, 3), np.uint8, True),
        ((6, 7, 3), np.uint8, False),
        ((3, 6, 7), np.float32, False),
        ((84, 84), np.uint8, True),
        ((84, 84), np.float32, False),
        ((20, 20), np.uint8, False),
        ((128,), np.uint8, False),
    ],
)
def test_images_are_told_from_other_boxes(shape, dtype, expected):
    assert is_image(image(shape, dtype)) == expected


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


def test_an_index_outside_its_space_is_refused():
    with pytest.raises(EnvError, match=r"not in its space Discrete\(3\): .*index 3 is out"):
        encode(spaces.Discrete(3), torch.tensor([3]))


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
    with pytest.raises(ConfigError, match=rf"^model\.{key}: a layer of .* MiB does not fit here$"):
        Body(space, ModelConfig(**changes))
