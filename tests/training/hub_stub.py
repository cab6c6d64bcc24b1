"""A local server with the parts of the Hugging Face hub's API that push and pull need."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Stub(ThreadingHTTPServer):
    """Server that keeps repositories in memory.

    Attributes:
        repos: Content of each file by ``owner/name``.
        private: Repositories that were created as private ones.
        tokens: Tokens of the requests.
        token: The only token that may write.
    """

    daemon_threads = True

    def __init__(self, token: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.tokens: set[str | None] = set()
        self.commits = 0
        self.token = token

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def sha(self) -> str:
        return f"{self.commits:040x}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Stub

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self._answer_get()

    def do_GET(self):
        self._answer_get()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.server.tokens.add(token)
        path = self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            self._send({"errors": [], "warnings": []})
        elif token != self.server.token:
            self._send({"error": "Invalid username or password."}, 401)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.server.repos.setdefault(name, {})
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(name)
            self._send({"url": f"{self.server.url}/{name}"})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for each in json.loads(body)["files"]]  # fmt: skip
            self._send({"files": files})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self._commit(found[1], body)
        else:
            self._send({"error": f"no {path}"}, 404)

    def _commit(self, repo, body):
        files = self.server.repos[repo]
        for line in body.decode().splitlines():
            step = json.loads(line)
            if step["key"] == "file":
                assert step["value"]["encoding"] == "base64"
                files[step["value"]["path"]] = base64.b64decode(step["value"]["content"])
            elif step["key"] == "deletedFile":
                del files[step["value"]["path"]]
        self.server.commits += 1
        sha = self.server.sha()
        self._send({"commitUrl": f"{self.server.url}/{repo}/commit/{sha}", "commitOid": sha})

    def _answer_get(self):
        path = self.path.partition("?")[0]
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+?)(/revision/[^/]+|/tree/[^/]+)?", path)
        content = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        found = (about or content) and self.server.repos.get((about or content)[1])
        if found is None or (content and content[2] not in found):
            self._send({"error": "Repository not found"}, 404)
        elif content:
            self._send_bytes(found[content[2]])
        elif (about[2] or "").startswith("/tree/"):
            self._send([{"type": "file", "path": name, "size": len(text), "oid": "0" * 40}
                        for name, text in found.items()])  # fmt: skip
        else:
            siblings = [{"rfilename": name} for name in found]
            self._send({"id": about[1], "sha": self.server.sha(), "siblings": siblings,
                        "private": False, "downloads": 0, "likes": 0, "tags": []})  # fmt: skip

    def _send(self, tree, status=200):
        self._send_bytes(json.dumps(tree).encode(), status, "application/json")

    def _send_bytes(self, body, status=200, kind="application/octet-stream"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.server.sha())
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def hub_stub(token):
    """Serve until the end of the block."""
    with Stub(token) as stub:
        thread = threading.Thread(target=stub.serve_forever, daemon=True)
        thread.start()
        try:
            yield stub
        finally:
            stub.shutdown()
            thread.join(10)
