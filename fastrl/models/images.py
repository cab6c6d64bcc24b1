"""Layouts of images: finds image observations and their axes of height, width and channels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from torch import Tensor

from fastrl.config import ModelConfig
from fastrl.errors import ConfigError
from fastrl.spaces import leaves

SMALLEST_SIDE = 7
"""Smallest side of an image in pixels, so that the usual convolutions fit."""
_SMALLEST_GREY_SIDE = 36
_PIXEL_RANGES = ((0, 255), (0, 65535))
_LETTERS = {(3, 0): "HWC", (3, 1): "CHW", (4, 0): "HWCS", (4, 1): "SHWC", (4, 2): "SCHW"}
"""Layouts by the number of axes and the first axis of the picture."""


@dataclass(frozen=True)
class ImageLayout:
    """The order of the axes of an image.

    Attributes:
        letters: A letter for each axis: H height, W width, C channels, S frames of a stack.
        shape: Shape of the image, in this order.
    """

    letters: str
    shape: tuple[int, ...]

    @property
    def channels(self) -> int:
        """Channels of all frames together."""
        return math.prod(self.shape) // (self.height * self.width)

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.shape[self.letters.index("H")]

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.shape[self.letters.index("W")]

    def arrange(self, images: Tensor) -> Tensor:
        """Return images ``[n, *shape]`` as ``[n, channels, height, width]``, a view if possible."""
        others = [axis for axis in "SC" if axis in self.letters]
        order = [1 + self.letters.index(letter) for letter in (*others, "H", "W")]
        arranged = images.permute(0, *order)
        if len(others) == 1:
            return arranged
        return arranged.unsqueeze(1) if not others else arranged.flatten(1, 2)

    def __str__(self) -> str:
        """Describe the layout."""
        return (
            f"images of {self.height} × {self.width} pixels with {self.channels} "
            f"channel{'s' if self.channels > 1 else ''} ({self.letters})"
        )


def image_layouts(space: spaces.Space[Any], config: ModelConfig) -> dict[str, ImageLayout | None]:
    """Return the layout of each leaf of an observation space, None for a leaf that is no image.

    ``model.image_layout`` sets it; otherwise it follows from the sizes. Boxes of three axes are
    images with one axis of channels, boxes of four axes also have the frames of a stack, and boxes
    of two axes are grey images if they have bytes, or the bounds of 8 or 16 bits, and at least
    36 × 36 pixels. Height and width are adjacent axes of at least 7 pixels each. Of several such
    pairs, the pair of equal sizes is used, or the one whose sides are at least twice as long as
    every other axis.

    Raises:
        ConfigError: The sizes leave several possibilities, or ``model.image_layout`` does not fit.
    """
    found = leaves(space)
    wanted = _wanted(found, config)
    return {
        path: _named(wanted[path], leaf, path) if path in wanted else _by_size(leaf, path)
        for path, leaf in found.items()
    }


def has_images(space: spaces.Space[Any], config: ModelConfig | None = None) -> bool:
    """Return whether any leaf of a space goes through a conv net."""
    try:
        return any(image_layouts(space, config or ModelConfig()).values())
    except ConfigError:
        # A custom model may accept the space; the built-in one rejects it when it is built.
        return True


def describe_images(space: spaces.Space[Any], config: ModelConfig) -> Iterator[str]:
    """Yield one line for each leaf that is an image, with the meaning of its axes."""
    for path, layout in image_layouts(space, config).items():
        if layout is not None:
            subject = f"observations '{path}'" if path else "observations"
            yield f"{subject} {layout.shape} are {layout}; model.image_layout can change this"


def _wanted(found: Mapping[str, spaces.Space[Any]], config: ModelConfig) -> Mapping[str, str]:
    """Return the layouts that ``model.image_layout`` gives, by leaf."""
    given = config.image_layout
    if isinstance(given, str):
        boxes = [path for path, leaf in found.items() if isinstance(leaf, spaces.Box)]
        if given == "auto":
            return {}
        if given == "flat":
            return dict.fromkeys(boxes, given)
        fitting = [path for path in boxes if len(found[path].shape or ()) == len(given)]
        if not fitting:
            shapes = ", ".join(str(found[path].shape) for path in boxes) or "none of a Box"
            raise ConfigError(
                f"model.image_layout: {given} is for observations of {len(given)} axes, got shapes "
                f"{shapes}"
            )
        return dict.fromkeys(fitting, given)
    for path in given:
        if path not in found:
            known = ", ".join(f"'{each}'" for each in found)
            raise ConfigError(f"model.image_layout: there is no observation '{path}' among {known}")
    return {path: letters for path, letters in given.items() if letters != "auto"}


def _named(letters: str, leaf: spaces.Space[Any], path: str) -> ImageLayout | None:
    if letters == "flat":
        return None
    shape = tuple(leaf.shape or ())
    if not isinstance(leaf, spaces.Box) or len(shape) != len(letters):
        raise ConfigError(
            f"model.image_layout: {letters} does not match {_named_leaf(path)} of {leaf}"
        )
    return ImageLayout(letters, shape)


def _by_size(leaf: spaces.Space[Any], path: str) -> ImageLayout | None:
    if not isinstance(leaf, spaces.Box):
        return None
    shape = tuple(leaf.shape)
    if len(shape) == 2:
        return ImageLayout("HW", shape) if _is_grey(leaf) else None
    if len(shape) not in (3, 4):
        return None
    # The possible images, by their first axis.
    firsts = [i for i in range(len(shape) - 1) if min(shape[i : i + 2]) >= SMALLEST_SIDE]
    square = [i for i in firsts if shape[i] == shape[i + 1]]
    large = [i for i in firsts if _stands_out(shape, i)]
    for clear in (firsts, square, large):
        if len(clear) == 1:
            return ImageLayout(_LETTERS[len(shape), clear[0]], shape)
    if not firsts:
        return None
    choices = ", ".join(_LETTERS[len(shape), first] for first in firsts)
    raise ConfigError(
        f"model.image_layout: {_named_leaf(path)} of shape {shape} fits several image layouts; "
        f"choose one ({choices}), or flat for no image"
    )


def _is_grey(box: spaces.Box) -> bool:
    is_pixels = box.dtype == np.uint8 or any(
        (box.low == low).all() and (box.high == high).all() for low, high in _PIXEL_RANGES
    )
    return is_pixels and min(box.shape) >= _SMALLEST_GREY_SIDE


def _stands_out(shape: tuple[int, ...], first: int) -> bool:
    sides, others = shape[first : first + 2], shape[:first] + shape[first + 2 :]
    return 2 * max(others) <= min(sides)


def _named_leaf(path: str) -> str:
    return f"the observation '{path}'" if path else "an observation"
