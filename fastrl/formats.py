"""Formats of files that users name, and the packages that they need; checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from fastrl.arguments import one_of
from fastrl.errors import ArgumentError, ConfigError
from fastrl.imports import how_to_install

PICTURES = (".png", ".pdf", ".svg")
"""Endings of the files that a picture can be written to."""
ANIMATIONS = (".mp4", ".gif")
"""Endings of the files that a video can be written to."""
POLICIES = {"torchscript": ".pt", "onnx": ".onnx"}
"""Endings of the files that a policy can be exported to, by format."""

_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_ending(path: Path, endings: Sequence[str] = PICTURES) -> None:
    """Raise an `ArgumentError` for a file whose name has none of some endings."""
    if path.suffix.lower() not in endings:
        raise ArgumentError(f"'{path}' must end in {' or '.join(endings)}")


def default_ending() -> str:
    """Return the default format of animations: MP4, or GIF without its encoder."""
    return ".mp4" if find_spec("imageio_ffmpeg") is not None else ".gif"


def check_animation(path: Path) -> None:
    """Reject a file that cannot become an animation, before anything is drawn.

    Raises:
        ConfigError: The format is unknown, its encoder is missing, or it is a directory.
    """
    check_ending(path, ANIMATIONS)
    if path.suffix.lower() not in (".gif", default_ending()):
        raise ConfigError(
            f"'{path}': MP4 needs the package 'imageio-ffmpeg': {how_to_install('video')}; "
            "GIF needs nothing"
        )
    if path.is_dir():
        raise ConfigError(f"'{path}' is a directory; name a file")


def check_policy_format(format: str, name: str = "format") -> None:
    """Reject a format to which no policy can be exported here.

    Args:
        format: One of `POLICIES`.
        name: Name of the argument or option, for errors.

    Raises:
        ConfigError: The format is unknown, or its packages are missing.
    """
    one_of(name, format, tuple(POLICIES))
    if format == "onnx" and not all(map(find_spec, _ONNX_PACKAGES)):
        packages = ", ".join(_ONNX_PACKAGES)
        raise ConfigError(f"{name} onnx needs the packages {packages}: {how_to_install('onnx')}")
