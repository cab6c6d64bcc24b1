"""Base classes of the servers of local web pages: access checks and responses."""

from __future__ import annotations

import gzip
import hmac
import ipaddress
import json
import secrets
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from fastrl.errors import ConfigError

LOOPBACK = "127.0.0.1"

_COMPRESSED = 1024
"""Least bytes of an answer that is compressed."""
_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
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


class PageServer(ThreadingHTTPServer):
    """Serves a page and its files to authorised clients.

    An address other than the loopback one needs a token: in the query of the first request, and in
    a cookie from then on.

    Attributes:
        host: The address.
        token: Token of each request; empty on the loopback address.

    Args:
        request: Class that answers requests.
        host: The address.
        port: Port of the server; 0 for a free one.

    Raises:
        ConfigError: The address cannot be used.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, request: type[PageRequest], host: str = LOOPBACK, port: int = 0) -> None:
        self.host = host
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            self.address_family, address = found[0][0], found[0][4]
            super().__init__((str(address[0]), int(address[1])), request)
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            where = f"--host {host}" + (f" --port {port}" if port else "")
            raise ConfigError(f"{where} cannot be used: {reason}") from None
        is_loopback = ipaddress.ip_address(self.server_name).is_loopback
        self.token = "" if is_loopback else secrets.token_urlsafe(24)
        self._names = {"localhost", host.lower()}
        if self.token:
            self._names.add(socket.gethostname().lower())

    @property
    def url(self) -> str:
        """The address of the page, with the token if one is needed."""
        is_any = ipaddress.ip_address(self.server_name).is_unspecified
        name = socket.gethostname() if is_any else self.host
        host = f"[{name}]" if ":" in name else name
        query = f"?token={self.token}" if self.token else ""
        return f"http://{host}:{self.server_address[1]}/{query}"

    def server_bind(self) -> None:
        """Bind the socket; unlike the base class, without a query to a name server."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that a browser has closed, and raise all other errors."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def knows(self, host: str) -> bool:
        """Return whether a request with this ``Host`` is meant for this server.

        It is not if the page of another site resolves its own name to this address.
        """
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        with suppress(ValueError):
            address = ipaddress.ip_address(name)
            return bool(self.token) or address.is_loopback
        return name in self._names


class PageRequest(BaseHTTPRequestHandler):
    """Answers GET and HEAD; a subclass defines the answers."""

    server: PageServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "fastrl", ""
    timeout = 30.0  # seconds of a connection without requests

    def answer(self, path: str, given: Mapping[str, str]) -> None:
        """Answer an allowed request.

        Args:
            path: Path without the query.
            given: The parameters of the query.

        Raises:
            KeyError: There is nothing at this path.
            ValueError: A parameter is wrong.
        """
        raise KeyError(path)

    def do_GET(self) -> None:
        """Check and answer a request."""
        try:
            url = urlsplit(self.path)
            given = {key: values[-1] for key, values in parse_qs(url.query).items()}
            path = unquote(url.path, errors="strict")
        except ValueError:
            self.fail(HTTPStatus.BAD_REQUEST)
            return
        if not self.may_ask(given):
            return
        if "token" in given and path == "/":
            self._remember()
            return
        try:
            self.answer(path, given)
        except KeyError:
            self.fail(HTTPStatus.NOT_FOUND)
        except ValueError:
            self.fail(HTTPStatus.BAD_REQUEST)

    do_HEAD = do_GET  # noqa: N815 - the base class names it

    def log_message(self, format: str, *args: Any) -> None:
        """Write no log."""

    def may_ask(self, given: Mapping[str, str]) -> bool:
        """Return whether a request is allowed; answer with an error if not."""
        if not self.server.knows(self.headers.get("Host", "")):
            self.fail(HTTPStatus.MISDIRECTED_REQUEST, "this server has another name")
        elif not self._has_token(given):
            self.fail(HTTPStatus.FORBIDDEN, "open the address that fastrl has printed")
        else:
            return True
        return False

    def send(self, body: bytes, kind: str, more: Mapping[str, str] | None = None) -> None:
        """Send an answer of a content type, with optional further headers."""
        headers = {"Content-Type": kind, "Cache-Control": "no-store", **(more or {})}
        is_compact = kind.startswith("image/")
        if (
            len(body) >= _COMPRESSED
            and not is_compact
            and "gzip" in self.headers.get("Accept-Encoding", "")
        ):
            body, headers["Content-Encoding"] = gzip.compress(body, 1), "gzip"
        self.begin(HTTPStatus.OK, {**headers, "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_file(self, package: str, *parts: str) -> None:
        """Send a file of the page, which is part of a package."""
        body = files(package).joinpath("page", *parts).read_bytes()
        self.send(body, _TYPES[parts[-1].rpartition(".")[2]])

    def send_json(self, found: Any) -> None:
        """Send plain data."""
        self.send(json.dumps(found).encode(), "application/json")

    def fail(self, status: HTTPStatus, reason: str = "") -> None:
        """Send an error."""
        body = json.dumps({"error": reason or status.phrase}).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        self.begin(status, headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def begin(self, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        """Send the head of an answer."""
        self.send_response(status)
        for name, value in {**_HEADERS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _has_token(self, given: Mapping[str, str]) -> bool:
        if not self.server.token:
            return True
        cookie = SimpleCookie()
        with suppress(CookieError):
            cookie.load(self.headers.get("Cookie", ""))
        name = self._cookie_name()
        kept = cookie[name].value if name in cookie else ""
        wanted = self.server.token.encode()
        return any(
            hmac.compare_digest(token.encode(), wanted) for token in (given.get("token", ""), kept)
        )

    def _cookie_name(self) -> str:
        """Return a name of this server's own, since browsers send cookies to all ports."""
        return f"fastrl-{self.server.server_address[1]}"

    def _remember(self) -> None:
        """Put the token into a cookie, so that it leaves the address and the history."""
        cookie = f"{self._cookie_name()}={self.server.token}; Path=/; HttpOnly; SameSite=Strict"
        headers = {"Location": "/", "Set-Cookie": cookie, "Content-Length": "0"}
        self.begin(HTTPStatus.SEE_OTHER, headers)
