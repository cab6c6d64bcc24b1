"""The HTTP server of `fastrl watch`: it answers requests to read, and writes nothing."""

from __future__ import annotations

import gzip
import hmac
import ipaddress
import json
import re
import secrets
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from fastrl.errors import ConfigError
from fastrl.watch.run_index import RunIndex

LOOPBACK = "127.0.0.1"
PORT = 8765
"""Where the page is by default, if it is free."""

_COOKIE = "fastrl_watch"
_CHUNK = 2**16
_COMPRESSED = 1024
"""Bytes from which an answer is compressed."""
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_PAGE = {
    "/": ("index.html",),
    "/page.js": ("page.js",),
    "/page.css": ("page.css",),
    "/icon.svg": ("icon.svg",),
    "/uplot.js": ("uplot", "uPlot.iife.min.js"),
    "/uplot.css": ("uplot", "uPlot.min.css"),
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
Answer = Callable[[Mapping[str, str]], Any]
"""Maps the parameters of a request to what is sent as JSON."""


class WatchServer(ThreadingHTTPServer):
    """Serves the page, the data of an index of runs, and their videos.

    An address other than the loopback one needs a token: in the query of the first request, and in
    a cookie from then on.

    Attributes:
        index: The runs.
        token: What each request needs; empty on the loopback address.

    Args:
        index: See above.
        host: The address.
        port: Its port; 0 for a free one.

    Raises:
        ConfigError: The address cannot be used.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, index: RunIndex, host: str = LOOPBACK, port: int = 0) -> None:
        self.index, self.host = index, host
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            self.address_family, address = found[0][0], found[0][4]
            super().__init__((str(address[0]), int(address[1])), _Request)
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"--host {host} --port {port} cannot be used: {reason}") from None
        is_loopback = ipaddress.ip_address(self.server_name).is_loopback
        self.token = "" if is_loopback else secrets.token_urlsafe(24)
        self._names = {"localhost", host.lower()}
        if self.token:
            self._names.add(socket.gethostname().lower())

    @property
    def url(self) -> str:
        """Where the page is, with the token if one is needed."""
        is_any = ipaddress.ip_address(self.server_name).is_unspecified
        name = socket.gethostname() if is_any else self.host
        host = f"[{name}]" if ":" in name else name
        query = f"?token={self.token}" if self.token else ""
        return f"http://{host}:{self.server_address[1]}/{query}"

    def server_bind(self) -> None:
        """Bind the socket; unlike the base, without asking a name server for our name."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that a browser has closed, and raise all other errors."""
        import sys

        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def knows(self, host: str) -> bool:
        """Return whether a request with this ``Host`` is meant for this server.

        A page from elsewhere whose name was made to resolve to this address sends its own name.
        """
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        with suppress(ValueError):
            address = ipaddress.ip_address(name)
            return bool(self.token) or address.is_loopback
        return name in self._names


class _Request(BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    server: WatchServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "fastrl", ""
    timeout = 30.0  # of connections on which nothing is requested

    def do_GET(self) -> None:
        """Answer."""
        try:
            url = urlsplit(self.path)
            given = {key: values[-1] for key, values in parse_qs(url.query).items()}
            path = unquote(url.path, errors="strict")
        except ValueError:
            self._fail(HTTPStatus.BAD_REQUEST)
            return
        if not self.server.knows(self.headers.get("Host", "")):
            self._fail(HTTPStatus.MISDIRECTED_REQUEST, "this server has another name")
        elif not self._is_allowed(given):
            self._fail(HTTPStatus.FORBIDDEN, "open the address that fastrl watch has printed")
        elif "token" in given and path == "/":
            self._remember()
        else:
            self._answer(path, given)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Write no log."""

    def _answer(self, path: str, given: Mapping[str, str]) -> None:
        if path in _PAGE:
            self._send(
                _file_of_page(*_PAGE[path]), _TYPES[f".{_PAGE[path][-1].rpartition('.')[2]}"]
            )
            return
        answers = self._answers()
        try:
            if path in answers:
                self._send(json.dumps(answers[path](given)).encode(), "application/json")
            elif path == "/api/video":
                self._send_video(given["run"], given["name"])
            else:
                self._fail(HTTPStatus.NOT_FOUND)
        except KeyError:
            self._fail(HTTPStatus.NOT_FOUND)
        except ValueError:
            self._fail(HTTPStatus.BAD_REQUEST)

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

    def _is_allowed(self, given: Mapping[str, str]) -> bool:
        if not self.server.token:
            return True
        cookie = SimpleCookie()
        with suppress(CookieError):
            cookie.load(self.headers.get("Cookie", ""))
        kept = cookie[_COOKIE].value if _COOKIE in cookie else ""
        wanted = self.server.token.encode()
        return any(
            hmac.compare_digest(token.encode(), wanted) for token in (given.get("token", ""), kept)
        )

    def _remember(self) -> None:
        """Put the token into a cookie, so that it leaves the address and the history."""
        cookie = f"{_COOKIE}={self.server.token}; Path=/; HttpOnly; SameSite=Strict"
        self._begin(HTTPStatus.SEE_OTHER, {"Location": "/", "Set-Cookie": cookie}, 0)

    def _send(self, body: bytes, kind: str) -> None:
        headers = {"Content-Type": kind, "Cache-Control": "no-store"}
        if len(body) >= _COMPRESSED and "gzip" in self.headers.get("Accept-Encoding", ""):
            body, headers["Content-Encoding"] = gzip.compress(body, 1), "gzip"
        self._begin(HTTPStatus.OK, headers, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_video(self, run: str, name: str) -> None:
        """Send a video, or the part of it that is asked for, as players do."""
        opened, kind = self.server.index.open_video(run, name)
        try:
            with opened as file:
                size = file.seek(0, 2)
                first, last = _part(self.headers.get("Range", ""), size)
                headers = {
                    "Content-Type": kind,
                    "Accept-Ranges": "bytes",
                    "Cache-Control": "no-cache",
                }
                status = HTTPStatus.OK
                if (first, last) != (0, size - 1):
                    status = HTTPStatus.PARTIAL_CONTENT
                    headers["Content-Range"] = f"bytes {first}-{last}/{size}"
                self._begin(status, headers, last + 1 - first)
                file.seek(first)
                left = last + 1 - first if self.command != "HEAD" else 0
                while left and (chunk := file.read(min(_CHUNK, left))):
                    self.wfile.write(chunk)
                    left -= len(chunk)
                self.close_connection |= left > 0
        except FileNotFoundError:
            self._fail(HTTPStatus.NOT_FOUND)

    def _fail(self, status: HTTPStatus, reason: str = "") -> None:
        body = json.dumps({"error": reason or status.phrase}).encode()
        self._begin(status, {"Content-Type": "application/json"}, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _begin(self, status: HTTPStatus, headers: Mapping[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, **headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()


def _file_of_page(*parts: str) -> bytes:
    return files("fastrl.watch").joinpath("page", *parts).read_bytes()


def _groups(text: str | None) -> set[int] | None:
    return None if text is None else {int(part) for part in text.split(",") if part}


def _part(wanted: str, size: int) -> tuple[int, int]:
    """Return the first and the last byte that a ``Range`` asks for; all where it is none."""
    found = _RANGE.fullmatch(wanted)
    if found is None or found[0] == "bytes=-" or not size:
        return 0, size - 1
    if not found[1]:
        return max(0, size - int(found[2])), size - 1
    first, last = int(found[1]), int(found[2] or size)
    return (first, min(last, size - 1)) if first <= last and first < size else (0, size - 1)
