"""Writes pictures as animations: GIF at the right speed, MP4 by imageio."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastrl.arguments import check_ending
from fastrl.errors import ConfigError
from fastrl.imports import how_to_install

Frame = NDArray[np.uint8]

_CENTISECOND = 10
"""Milliseconds per unit of the duration of a picture in a GIF."""
_SHORTEST = 2
"""Least centiseconds of a picture: browsers show shorter ones for ten."""


class FrameWriter(Protocol):
    """Writes the pictures of an animation in order."""

    def append_data(self, frame: Frame) -> None:
        """Add ``[height, width, 3] uint8``."""

    def close(self) -> None:
        """Finish the file."""


class GifWriter:
    """Writes a GIF whose total duration is exact to a centisecond.

    Delays are whole centiseconds, so they may differ by one. Above 50
    pictures per second some are left out.
    """

    def __init__(self, path: Path, fps: float) -> None:
        """Open the file, for ``fps`` pictures per second.

        Raises:
            OSError: It cannot be written.
        """
        self._file = path.open("wb")
        self._fps = fps
        self._count = 0
        self._images: list[Any] = []
        # Start of each shown picture in centiseconds.
        self._starts: list[int] = []

    def append_data(self, frame: Frame) -> None:
        """Add ``[height, width, 3] uint8``."""
        from PIL import Image

        start = self._time(self._count)
        self._count += 1
        if not self._starts or start - self._starts[-1] >= _SHORTEST:
            self._starts.append(start)
            self._images.append(Image.fromarray(np.asarray(frame, np.uint8)))

    def close(self) -> None:
        """Write the file; safe to call twice."""
        images, self._images = self._images, []
        with self._file:
            if images:
                self._write(images)

    def _write(self, images: list[Any]) -> None:
        end = self._time(self._count)
        if len(images) > 1 and end - self._starts[-1] < _SHORTEST:
            images.pop()
            self._starts.pop()
        end = max(end, self._starts[-1] + _SHORTEST)
        ends = [*self._starts[1:], end]
        durations = [
            (end - start) * _CENTISECOND for start, end in zip(self._starts, ends, strict=True)
        ]
        images[0].save(
            self._file,
            format="GIF",
            save_all=True,
            append_images=images[1:],
            duration=durations,
            loop=0,
        )

    def _time(self, count: int) -> int:
        """Return the start of picture ``count`` in centiseconds."""
        return round(count * 100 / self._fps)


def default_ending() -> str:
    """Return the default format of animations: MP4, or GIF without its encoder."""
    return ".mp4" if find_spec("imageio_ffmpeg") is not None else ".gif"


def check_animation(path: Path) -> None:
    """Reject an unsupported animation file, before anything is drawn.

    Raises:
        ConfigError: The format is unknown, or its encoder is missing.
    """
    check_ending(path, (".mp4", ".gif"))
    if path.suffix.lower() not in (".gif", default_ending()):
        raise ConfigError(
            f"'{path}': MP4 needs the package 'imageio-ffmpeg': {how_to_install('video')}; "
            "GIF needs no package"
        )


def open_animation(path: Path, fps: float) -> FrameWriter:
    """Return a writer of a GIF if the path ends in .gif, else of an MP4.

    Raises:
        OSError: The file cannot be written.
    """
    if path.suffix.lower() == ".gif":
        return GifWriter(path, fps)
    import imageio.v2 as imageio

    writer: FrameWriter = imageio.get_writer(path, format="FFMPEG", fps=fps, macro_block_size=2)
    return writer
