"""Writes pictures as animations: GIF at the right speed, MP4 by imageio."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastrl.durable import appearing, writing
from fastrl.errors import ConfigError
from fastrl.formats import check_animation

Frame = NDArray[np.uint8]
T = TypeVar("T")

_CENTISECOND = 10
"""Milliseconds per unit of the duration of a picture in a GIF."""
_SHORTEST = 2
"""Least centiseconds of a picture: browsers show shorter ones for ten."""


class _Writer(Protocol):
    """Writer of an animation, picture by picture."""

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

    def forget(self) -> None:
        """Discard all pictures so far."""
        self._images.clear()
        self._starts.clear()

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


@contextmanager
def animation(path: Path, fps: float) -> Iterator[Callable[[Frame], None]]:
    """Yield a function that adds a picture ``[height, width, 3] uint8`` to a new animation.

    The file appears once it is complete; until then it has a hidden name, and nothing is left of it
    if the block is ended before, such as by an error or SIGTERM.

    Args:
        path: Ends in .gif or .mp4.
        fps: Pictures per second.

    Raises:
        ConfigError: The format is unknown, its encoder is missing, or the file cannot be written.
    """
    check_animation(path)

    def checked(do: Callable[..., T], *arguments: Any) -> T:
        with writing(path, ConfigError):
            return do(*arguments)

    # With the process id, as another process may record into the same file.
    with appearing(path, path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")) as hidden:
        writer = checked(_opened, hidden, fps)
        try:
            yield partial(checked, writer.append_data)
        except BaseException:
            with suppress(Exception):
                _cancel(writer)
            raise
        checked(writer.close)


def _opened(path: Path, fps: float) -> _Writer:
    if path.suffix.lower() == ".gif":
        return GifWriter(path, fps)
    import imageio.v2 as imageio

    writer: _Writer = imageio.get_writer(path, format="FFMPEG", fps=fps, macro_block_size=2)
    return writer


def _cancel(writer: _Writer) -> None:
    """Close a file that is not wanted any more."""
    if isinstance(writer, GifWriter):
        writer.forget()  # else it would encode all pictures first
    writer.close()
