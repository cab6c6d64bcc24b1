"""The server sends runs and nothing else, to those who may see them, and changes nothing."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

import pytest

from fastrl.errors import ConfigError
from fastrl.watch.run_index import RunIndex
from fastrl.watch.server import WatchServer
from tests.watch.made_runs import make_run

SECRET = b"a secret of this machine"


@pytest.fixture
def runs(tmp_path):
    """A directory of runs with a run ``a`` that has a video; secrets are beside it."""
    run = make_run(tmp_path / "runs" / "a")
    (run / "videos").mkdir()
    (run / "videos" / "step_1.gif").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "secret.gif").write_bytes(SECRET)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.gif").write_bytes(SECRET)
    return tmp_path / "runs"


def video(run="a", name="step_1.gif"):
    return f"/api/video?{urlencode({'run': run, 'name': name})}"


def test_the_page_and_all_it_loads_come_from_the_package(serve, runs):
    client = serve(runs)
    _, headers, page = client.request("/")
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    linked = re.findall(r'(?:src|href)="([^"#]+)"', page.decode())
    assert len(linked) == 5
    for path in linked:
        assert path.startswith("/")
        status, _, body = client.request(path)
        assert status == 200
        assert body
    licence = Path(__file__).parents[2] / "fastrl" / "watch" / "page" / "uplot" / "LICENSE"
    assert "MIT" in licence.read_text()


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.gif",
        "/%2e%2e/secret.gif",
        "/..%2fsecret.gif",
        "//secret.gif",
        "/a/config.yaml",
        "/page/index.html",
        "/etc/passwd",
        "/api/../secret.gif",
        "/api/video",
        "/api/run?run=../elsewhere",
        "/api/run?run=",
        "/api/nothing",
        "/%ff",
        "/\0",
        video("a", "../config.yaml"),
        video("a", "../../../secret.gif"),
        video("a", "step_1.gif/../../config.yaml"),
        video("..", "secret.gif"),
        video("a", ""),
        video("a", "\0"),
    ],
)
def test_paths_that_lead_elsewhere_are_not_found(serve, runs, path):
    status, _, body = serve(runs).request(quote(path, safe="/%?=&:[]"))
    assert status in (400, 404)
    assert SECRET not in body
    assert b"Clockwork" not in body


def test_an_absolute_path_is_not_found(serve, runs):
    secret = runs.parent / "secret.gif"
    client = serve(runs)
    for path in (video("a", str(secret)), video(str(secret.parent), "secret.gif"), str(secret)):
        status, _, body = client.request(path)
        assert (status, SECRET in body) == (404, False)


def test_links_are_not_followed(serve, runs):
    outside = runs.parent / "elsewhere"
    (runs / "a" / "videos" / "linked.gif").symlink_to(outside / "secret.gif")
    (runs / "a" / "faults.jsonl").unlink()
    (runs / "a" / "faults.jsonl").symlink_to(outside / "secret.gif")
    make_run(outside / "linked_run")
    (runs / "linked_run").symlink_to(outside / "linked_run")
    other = make_run(runs / "b")
    (other / "videos").symlink_to(outside)
    client = serve(runs)
    found = {run["name"]: run["videos"] for run in client.ask("overview")["runs"]}
    assert found == {"a": ["step_1.gif"], "b": []}
    for path in (video("a", "linked.gif"), video("b", "secret.gif")):
        assert client.request(path)[0] == 404
    assert client.ask("faults")["total"] == 0


def test_a_video_that_becomes_a_link_later_is_not_sent(serve, runs):
    client = serve(runs)
    assert client.request(video())[0] == 200
    index = client.server.index
    opened, _ = index.open_video("a", "step_1.gif")
    (runs / "a" / "videos" / "step_1.gif").unlink()
    (runs / "a" / "videos" / "step_1.gif").symlink_to(runs.parent / "secret.gif")
    with pytest.raises(OSError, match="symbolic links"), opened:
        pass
    status, _, body = client.request(video())
    assert (status, SECRET in body) == (404, False)


def test_videos_can_be_played_from_any_place(serve, runs):
    client = serve(runs)
    content = (runs / "a" / "videos" / "step_1.gif").read_bytes()
    status, headers, body = client.request(video())
    assert (status, body, headers["Content-Type"]) == (200, content, "image/gif")
    for wanted, part in {
        "bytes=100-199": content[100:200],
        "bytes=10000-": content[10000:],
        "bytes=-10": content[-10:],
        "bytes=10000-99999999": content[10000:],
    }.items():
        status, headers, body = client.request(video(), Range=wanted)
        assert (status, body) == (206, part)
        assert headers["Content-Range"].endswith(f"/{len(content)}")
    for nonsense in ("bytes=5-1", "bytes=99999999-", "bytes=-", "lines=1-2", "bytes=1-2,4-5"):
        assert client.request(video(), Range=nonsense)[2] == content
    assert client.request(video(), "HEAD")[2] == b""


def test_requests_in_the_name_of_another_host_are_refused(serve, runs):
    client = serve(runs)
    for host in (
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "",
        "10.0.0.1",
        "a@b",
        "[::1",
    ):
        status, _, body = client.request("/api/overview", Host=host)
        assert status == 421, host
        assert b"runs" not in body
    for host in ("127.0.0.1", "localhost:9999", "[::1]:80", "LOCALHOST"):
        assert client.request("/api/overview", Host=host)[0] == 200, host


def test_another_address_than_the_loopback_one_needs_the_token(serve, runs):
    client = serve(runs, host="0.0.0.0")
    token = client.server.token
    assert client.server.url.endswith(f"/?token={token}")
    assert len(token) >= 32
    for path in ("/", "/page.js", "/api/overview", video(), "/?token=", f"/?token={token[:-1]}"):
        assert client.request(path)[0] == 403, path
    assert client.request("/", Cookie=f"fastrl-{client.server.server_address[1]}=wrong")[0] == 403
    assert client.request("/", Cookie="=;;\x01")[0] == 403
    status, headers, _ = client.request(f"/?token={token}")
    assert (status, headers["Location"]) == (303, "/")
    assert "HttpOnly" in headers["Set-Cookie"]
    assert "SameSite=Strict" in headers["Set-Cookie"]
    cookie = headers["Set-Cookie"].partition(";")[0]
    for path in ("/", "/api/overview", video()):
        assert client.request(path, Cookie=cookie)[0] == 200
    assert client.request("/", Cookie=cookie, Host="evil.example")[0] == 421
    assert client.request("/", Cookie=cookie, Host="10.0.0.1:8765")[0] == 200


def test_the_loopback_address_needs_no_token(serve, runs):
    client = serve(runs)
    assert client.server.token == ""
    assert urlsplit(client.server.url).hostname == "127.0.0.1"


def test_nothing_is_written_whatever_is_requested(serve, runs):
    def tree():
        files = sorted(path for path in runs.rglob("*") if path.is_file())
        return {f: (f.stat().st_mtime_ns, hashlib.sha256(f.read_bytes()).digest()) for f in files}

    before, client = tree(), serve(runs)
    for name in ("overview", "faults", "differences"):
        client.ask(name)
    client.ask("run", run="a")
    client.ask("curves", metric="return_mean")
    client.request(video())
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert client.request("/api/overview", method)[0] == 501
    assert tree() == before


def test_every_answer_forbids_what_the_page_does_not_need(serve, runs):
    client = serve(runs)
    for path in ("/", "/page.js", "/api/overview", video(), "/nothing"):
        headers = client.request(path)[1]
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_a_run_that_is_removed_is_gone(serve, runs):
    client = serve(runs)
    client.ask("overview")
    shutil.rmtree(runs / "a")
    assert client.ask("overview")["runs"] == []
    assert client.request("/api/run?run=a")[0] == 404


@pytest.mark.parametrize("host", ["no.such.host.invalid", "8.8.8.8"])
def test_an_address_of_another_machine_is_one_line(runs, host):
    with pytest.raises(ConfigError, match=f"--host {host} cannot be used: "):
        WatchServer(RunIndex([runs]), host)


def test_a_port_that_is_taken_is_one_line(serve, runs):
    port = serve(runs).server.server_address[1]
    with pytest.raises(ConfigError, match=f"--port {port} cannot be used: Address already in use"):
        WatchServer(RunIndex([runs]), "127.0.0.1", port)
