"""The server of `fastrl watch`: the page, the data of runs, and videos; it writes no files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from http import HTTPStatus
from typing import Any, BinaryIO

from fastrl.watch.page_server import LOOPBACK, PageRequest, PageServer
from fastrl.watch.run_index import RunIndex

PORT = 8765
"""Default port of the page, if it is free."""

_CHUNK = 2**16
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")
_PAGE = {
    "/": ("index.html",),
    "/page.js": ("page.js",),
    "/page.css": ("page.css",),
    "/icon.svg": ("icon.svg",),
    "/uplot.js": ("uplot", "uPlot.iife.min.js"),
    "/uplot.css": ("uplot", "uPlot.min.css"),
}
Answer = Callable[[Mapping[str, str]], Any]
"""A function from the parameters of a request to the JSON answer."""


class WatchServer(PageServer):
    """Serves the page, the data of an index of runs, and their videos.

    Attributes:
        index: The runs.

    Args:
        index: The runs.
        host: The address.
        port: Port of the server; 0 for a free one.

    Raises:
        ConfigError: The address cannot be used.
    """

    def __init__(self, index: RunIndex, host: str = LOOPBACK, port: int = 0) -> None:
        self.index = index
        super().__init__(_WatchRequest, host, port)


class _WatchRequest(PageRequest):
    """Answers GET and HEAD."""

    server: WatchServer

    def answer(self, path: str, given: Mapping[str, str]) -> None:
        """See `PageRequest`."""
        if path in _PAGE:
            self.send_file("fastrl.watch", *_PAGE[path])
        elif path == "/api/video":
            self._send_video(given["run"], given["name"])
        else:
            self.send_json(self._answers()[path](given))

    def _answers(self) -> dict[str, Answer]:
        index = self.server.index
        return {
            "/api/overview": lambda given: index.overview(),
            "/api/run": lambda given: index.details(given["run"]),
            "/api/faults": lambda given: index.faults(),
            "/api/differences": lambda given: index.differences(),
            "/api/curves": lambda given: index.curves(
                given["metric"],
                given.get("kind", "training"),
                given.get("over", "steps"),
                _groups(given.get("groups")),
            ),
        }

    def _send_video(self, run: str, name: str) -> None:
        """Send a video, or the requested part of it."""
        opened, kind = self.server.index.open_video(run, name)
        with ExitStack() as stack:
            try:
                file = stack.enter_context(opened)
            except OSError as error:
                raise KeyError(name) from error
            self._send_part(file, kind)

    def _send_part(self, file: BinaryIO, kind: str) -> None:
        """Send all of a file, or the part that the request names."""
        size = file.seek(0, 2)
        first, last = _part(self.headers.get("Range", ""), size)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(last + 1 - first),
            "Accept-Ranges": "bytes",
            "Cache-Control": "no-cache",
        }
        status = HTTPStatus.OK
        if (first, last) != (0, size - 1):
            status = HTTPStatus.PARTIAL_CONTENT
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        self.begin(status, headers)
        file.seek(first)
        left = last + 1 - first if self.command != "HEAD" else 0
        while left and (chunk := file.read(min(_CHUNK, left))):
            self.wfile.write(chunk)
            left -= len(chunk)
        self.close_connection |= left > 0


def _groups(text: str | None) -> set[int] | None:
    return None if text is None else {int(part) for part in text.split(",") if part}


def _part(wanted: str, size: int) -> tuple[int, int]:
    """Return the first and the last byte of a ``Range`` header; of the whole file without one."""
    found = _RANGE.fullmatch(wanted)
    if found is None or found[0] == "bytes=-" or not size:
        return 0, size - 1
    if not found[1]:
        return max(0, size - int(found[2])), size - 1
    first, last = int(found[1]), int(found[2] or size)
    return (first, min(last, size - 1)) if first <= last and first < size else (0, size - 1)
