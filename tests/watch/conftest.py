from __future__ import annotations

import http.client
import json
import threading
from contextlib import ExitStack
from urllib.parse import urlencode

import pytest

from fastrl.watch import run_index
from fastrl.watch.run_index import RunIndex
from fastrl.watch.server import WatchServer


class Client:
    """Client that sends requests unchanged, without correcting their paths."""

    def __init__(self, server):
        self.server = server

    def request(self, path, method="GET", **headers):
        """Return status, headers and body of an answer."""
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.server.server_address[1], timeout=20
        )
        try:
            connection.putrequest(method, path, skip_host="Host" in headers)
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def ask(self, name, **parameters):
        """Return the JSON content of ``/api/name``."""
        status, _, body = self.request(f"/api/{name}?{urlencode(parameters)}")
        assert status == 200, body
        return json.loads(body)


@pytest.fixture
def serve(monkeypatch):
    """Return a function that serves directories and returns a `Client`."""
    monkeypatch.setattr(run_index, "_EVERY_S", 0.0)
    monkeypatch.setattr(run_index, "_SELDOM_S", 0.0)
    monkeypatch.setattr(run_index, "_FIND_S", 0.0)
    with ExitStack() as stack:

        def serve(*places, host="127.0.0.1"):
            server = stack.enter_context(WatchServer(RunIndex(places), host))
            thread = threading.Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return Client(server)

        yield serve
