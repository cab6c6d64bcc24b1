"""Pictures in a GIF: how long each is shown, and which."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence

from fastrl.envs.animation import animation
from fastrl.errors import ConfigError


def written(path, fps, count):
    """Write pictures of different shades; return the shade and time in ms of each that is shown."""
    with animation(path, fps) as append:
        for shade in range(count):
            append(np.full((4, 4, 3), shade, np.uint8))
    with Image.open(path) as image:
        return [
            (frame.convert("RGB").getpixel((0, 0))[0], frame.info["duration"])
            for frame in ImageSequence.Iterator(image)
        ]


@settings(derandomize=True)
@given(
    fps=st.one_of(st.sampled_from([15, 30, 50, 60, 67, 125, 167, 500]), st.floats(0.5, 1000.0)),
    count=st.integers(1, 60),
)
def test_animation_is_as_long_as_its_pictures_at_their_speed(tmp_path_factory, fps, count):
    shown = written(tmp_path_factory.mktemp("gif") / "a.gif", fps, count)

    now = 0
    for shade, duration in shown:
        assert duration >= 20
        # The picture of this moment, to half of the unit of time.
        assert abs(now - shade * 1000 / fps) <= 5.001
        now += duration
    assert now == pytest.approx(max(count * 1000 / fps, 20), abs=5.001)
    if fps <= 50:
        assert len(shown) == count


def test_file_that_cannot_be_written_is_one_line(tmp_path):
    with (
        pytest.raises(ConfigError, match=r"a\.gif' cannot be written: No such file"),
        animation(tmp_path / "nowhere" / "a.gif", 10),
    ):
        pass
