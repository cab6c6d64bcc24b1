"""Which observations are images, and which of their axes are what."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from fastrl.config import ModelConfig
from fastrl.errors import ConfigError
from fastrl.models.images import ImageLayout, describe_images, has_images, image_layouts
from fastrl.models.networks import Body


def image(shape, dtype=np.uint8, high=255):
    return spaces.Box(0, high, shape, dtype)


def layout_of(space, **model):
    (layout,) = image_layouts(space, ModelConfig(**model)).values()
    return layout


@pytest.mark.parametrize(
    ("shape", "letters", "channels"),
    [
        ((64, 64, 3), "HWC", 3),
        ((3, 64, 64), "CHW", 3),
        ((210, 160, 3), "HWC", 3),
        ((12, 84, 84), "CHW", 12),
        ((84, 84, 12), "HWC", 12),
        ((64, 64, 6), "HWC", 6),
        ((4, 84, 84), "CHW", 4),
        ((16, 210, 160), "CHW", 16),
        ((84, 84), "HW", 1),
        ((4, 84, 84, 3), "SHWC", 12),
        ((4, 3, 84, 84), "SCHW", 12),
        ((84, 84, 3, 4), "HWCS", 12),
        ((8, 210, 160, 3), "SHWC", 24),
        ((4, 84, 84, 1), "SHWC", 4),
        ((8, 8, 17), "HWC", 17),
        ((7, 7, 3), "HWC", 3),
        ((10, 10, 7), "HWC", 7),
    ],
)
def test_layouts_are_told_by_size(shape, letters, channels):
    layout = layout_of(image(shape))
    assert (layout.letters, layout.channels) == (letters, channels)
    config = ModelConfig(conv_layers=[[2, 7, 7]], conv_features=3)
    assert Body(image(shape), config)([torch.zeros(2, *shape, dtype=torch.uint8)]).shape == (2, 3)


@pytest.mark.parametrize(
    "space",
    [
        image((6, 7, 3)),
        image((3, 6, 7), np.float32),
        image((20, 20)),
        image((84, 84), np.float32, high=1),
        image((128,)),
        image((2, 6, 40, 3)),
        image((2, 2, 84, 84, 3)),
        spaces.MultiBinary((84, 84, 3)),
        spaces.Discrete(3),
    ],
    ids=str,
)
def test_other_observations_are_no_images(space):
    assert layout_of(space) is None
    assert not has_images(space)


@pytest.mark.parametrize(("dtype", "high"), [(np.float32, 255), (np.uint16, 65535)])
def test_grey_images_are_told_by_the_bounds_of_pixels_as_well(dtype, high):
    assert layout_of(image((84, 84), dtype, high)).letters == "HW"


@pytest.mark.parametrize("shape", [(84, 84, 84), (8, 9, 10), (20, 10, 20), (8, 8, 8, 3)])
def test_a_layout_that_sizes_leave_open_is_asked_for(shape):
    with pytest.raises(ConfigError) as caught:
        Body(image(shape), ModelConfig())
    assert str(caught.value).startswith("model.image_layout: an observation of shape (")
    assert "\n" not in str(caught.value)
    # A custom model may know.
    assert has_images(image(shape))
    assert layout_of(image(shape), image_layout="flat") is None
    letters = "HWC" if len(shape) == 3 else "SHWC"
    assert layout_of(image(shape), image_layout=letters).letters == letters


def test_the_key_decides_for_one_leaf_or_for_all_of_as_many_axes():
    space = spaces.Dict(
        {"left": image((64, 64, 3)), "right": image((64, 64, 32)), "speed": image((3,))}
    )
    found = image_layouts(space, ModelConfig(image_layout={"left": "flat"}))
    assert [each and each.letters for each in found.values()] == [None, "HWC", None]
    found = image_layouts(space, ModelConfig(image_layout="CHW"))
    assert [each and each.letters for each in found.values()] == ["CHW", "CHW", None]
    found = image_layouts(space, ModelConfig(image_layout="flat"))
    assert not any(found.values())


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("SHWC", r"SHWC is for observations of 4 axes, got shapes \(64, 64, 3\)"),
        ({"camera": "HWC"}, "there is no observation 'camera' among 'eye'"),
        ({"eye": "HW"}, r"HW does not match the observation 'eye' of Box\(0, 255, \(64, 64, 3\)"),
    ],
)
def test_a_key_that_does_not_fit_is_refused(wanted, message):
    space = spaces.Dict({"eye": image((64, 64, 3))})
    with pytest.raises(ConfigError, match=rf"^model\.image_layout: {message}"):
        Body(space, ModelConfig(image_layout=wanted))


def test_images_that_no_usual_convolution_fits_are_refused():
    with pytest.raises(ConfigError, match="too small for the default convolutions"):
        Body(image((5, 6, 3)), ModelConfig(image_layout="HWC"))
    config = ModelConfig(image_layout="HWC", conv_layers=[[4, 3, 1]])
    assert Body(image((5, 6, 3)), config).num_features == 512


@given(st.permutations("HWCS"), st.integers(0, 2), st.integers(7, 12), st.integers(7, 12))
def test_every_pixel_lands_in_its_place(letters, left_out, height, width):
    letters = "".join(letters)
    for letter in "SC"[:left_out]:
        letters = letters.replace(letter, "")
    if letters.index("W") < letters.index("H"):
        letters = letters[::-1]
    sizes = {"S": 2, "C": 3, "H": height, "W": width}
    shape = tuple(sizes[letter] for letter in letters)
    layout = ImageLayout(letters, shape)
    pixels = np.arange(2 * np.prod(shape)).reshape(2, *shape)
    arranged = layout.arrange(torch.from_numpy(pixels)).numpy()
    assert arranged.shape == (2, layout.channels, height, width)
    assert np.array_equal(np.sort(arranged.ravel()), pixels.ravel())
    moved = np.moveaxis(pixels, [1 + letters.index("H"), 1 + letters.index("W")], [-2, -1])
    # The order of the channels is of no importance, but each is a whole picture.
    pictures = {picture.tobytes() for picture in moved.reshape(-1, height, width)}
    assert {picture.tobytes() for picture in arranged.reshape(-1, height, width)} == pictures


def test_each_image_is_described_in_a_line():
    space = spaces.Dict({"eye": image((4, 64, 64, 3)), "speed": image((3,))})
    assert list(describe_images(space, ModelConfig())) == [
        "observations 'eye' (4, 64, 64, 3) are images of 64 × 64 pixels with 12 channels (SHWC); "
        "model.image_layout can change this"
    ]
