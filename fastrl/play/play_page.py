"""A web page on this machine that shows a game and sends pressed keys."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from PIL import Image

from fastrl.envs.animation import Frame
from fastrl.watch.page_server import LOOPBACK, PageRequest, PageServer

PORT = 8766
"""Default port of the page, if it is free."""

_UNSEEN_S = 3.0
"""Seconds after which a page that requests no picture counts as closed."""
_LONGEST_WAIT_S = 1.0
"""Timeout of a request for the next picture."""
_POLL_S = 0.1
_MOST_BYTES = 1000
_QUALITY = 90
_PAGE = {"/": "play.html", "/play.js": "play.js", "/play.css": "play.css"}


class PlayPage(PageServer):
    """Serves the page in a thread; the game waits while no browser shows it.

    Args:
        title: Title of the page.
        keys: Keys that the page offers as buttons, for screens without a keyboard.
        host: The address; see `PageServer`.
        port: Its port; 0 for a free one.

    Raises:
        ConfigError: The address cannot be used.
    """

    def __init__(
        self, title: str, keys: Sequence[str], host: str = LOOPBACK, port: int = 0
    ) -> None:
        super().__init__(_PlayRequest, host, port)
        self.title, self.offered = title, tuple(keys)
        self.number, self.text, self.picture = 0, "", b""
        self.changed = threading.Condition()
        self._pressed: frozenset[str] = frozenset()
        self._seen_s = float("-inf")
        self._thread = threading.Thread(target=self.serve_forever, args=(_POLL_S,), daemon=True)
        self._thread.start()

    def show(self, frame: Frame, text: str) -> None:
        """See `Display`."""
        written = io.BytesIO()
        Image.fromarray(frame).save(written, "JPEG", quality=_QUALITY)
        with self.changed:
            self.number, self.text, self.picture = self.number + 1, text, written.getvalue()
            self.changed.notify_all()

    def pressed(self) -> frozenset[str]:
        """See `Display`."""
        return self._pressed if self._is_seen() else frozenset()

    def wait(self, seconds: float) -> bool:
        """See `Display`."""
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0 or not self._is_seen():
            time.sleep(min(_POLL_S, left_s) if left_s > 0 else _POLL_S)
        return True

    def press(self, keys: frozenset[str]) -> None:
        """Store the currently pressed keys."""
        self._pressed = keys

    def next_picture(self, after: int) -> tuple[int, str, bytes]:
        """Return number, text and JPEG of a picture newer than ``after``, or of the latest."""
        self._seen_s = time.monotonic()
        with self.changed:
            self.changed.wait_for(lambda: self.number > after, _LONGEST_WAIT_S)
            return self.number, self.text, self.picture

    def close(self) -> None:
        """End the server."""
        self.shutdown()
        self._thread.join()
        self.server_close()

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _is_seen(self) -> bool:
        return time.monotonic() - self._seen_s < _UNSEEN_S


class _PlayRequest(PageRequest):
    """Answers GET and HEAD, and receives keys."""

    server: PlayPage

    def answer(self, path: str, given: Mapping[str, str]) -> None:
        """See `PageRequest`."""
        if path in _PAGE:
            self.send_file("fastrl.play", _PAGE[path])
        elif path == "/icon.svg":
            self.send_file("fastrl.watch", "icon.svg")
        elif path == "/api/game":
            self.send_json({"title": self.server.title, "keys": self.server.offered})
        elif path == "/api/picture":
            number, text, picture = self.server.next_picture(int(given.get("after", -1)))
            headers = {"X-Number": str(number), "X-Text": json.dumps(text)}
            self.send(picture, "image/jpeg", headers)
        else:
            raise KeyError(path)

    def do_POST(self) -> None:  # noqa: N802 - http.server names it
        """Receive the pressed keys, as a list of their names."""
        # Pages of other sites cannot send this header without permission.
        if self.path != "/api/keys" or self.headers.get("X-Fastrl") != "keys":
            self.close_connection = True
            self.fail(HTTPStatus.NOT_FOUND)
        elif self.may_ask({}):
            try:
                length = int(self.headers.get("Content-Length", ""))
                found = json.loads(self.rfile.read(length)) if 0 <= length <= _MOST_BYTES else None
                if not isinstance(found, list) or not all(isinstance(key, str) for key in found):
                    raise ValueError("a list of names is needed")
            except (ValueError, RecursionError):
                self.close_connection = True
                self.fail(HTTPStatus.BAD_REQUEST)
                return
            self.server.press(frozenset(found))
            self.send_json({})
