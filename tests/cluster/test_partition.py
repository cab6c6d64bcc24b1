"""Two machines with networks of their own, between which packets are lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None,
        reason="network namespaces need root and iproute2",
    ),
]

HOSTS = ("fastrl-a", "10.77.0.1"), ("fastrl-b", "10.77.0.2")
PORT = 6479
RAY = str(Path(sys.executable).with_name("ray"))
WITHIN_S = 120.0


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=WITHIN_S, capture_output=True)


def on(host: str, *command: str) -> list[str]:
    return ["ip", "netns", "exec", host, *command]


@pytest.fixture
def link() -> Iterator[list[str]]:
    """Two hosts with a raylet each; the words of ``ip`` that name their link."""
    for host, _ in HOSTS:
        ip("netns", "add", host)
    (a, address_a), (b, address_b) = HOSTS
    # Paths of sockets must be short.
    temporary = tempfile.mkdtemp(prefix="fastrl")
    common = ["--num-cpus=2", f"--object-store-memory={100 * 2**20}", "--disable-usage-stats"]
    try:
        ip("link", "add", "veth-a", "netns", a, "type", "veth", "peer", "veth-b", "netns", b)
        for host, address, device in ((a, address_a, "veth-a"), (b, address_b, "veth-b")):
            ip("-n", host, "addr", "add", f"{address}/24", "dev", device)
            ip("-n", host, "link", "set", device, "up")
            ip("-n", host, "link", "set", "lo", "up")
        start = [RAY, "start", *common]
        head = [*start, "--head", f"--port={PORT}", f"--node-ip-address={address_a}"]
        join = [*start, f"--address={address_a}:{PORT}", f"--node-ip-address={address_b}"]
        dashboard = "--include-dashboard=false"
        for command in (on(a, *head, f"--temp-dir={temporary}", dashboard), on(b, *join)):
            subprocess.run(command, check=True, timeout=WITHIN_S)
        yield ["-n", a, "link", "set", "veth-a"]
    finally:
        for host, _ in HOSTS:
            found = subprocess.run(
                ["ip", "netns", "pids", host], capture_output=True, text=True, check=False
            )
            for pid in found.stdout.split():
                subprocess.run(["kill", "-9", pid], check=False, capture_output=True)
            ip("netns", "del", host)
        shutil.rmtree(temporary, ignore_errors=True)


def test_machine_behind_a_broken_link_is_lost_and_used_again(link):
    (host, address), _ = HOSTS
    driver = subprocess.Popen(
        on(host, sys.executable, "-m", "tests.cluster.partitioned", f"{address}:{PORT}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert driver.stdout is not None
    try:
        assert driver.stdout.readline() == "both\n"
        ip(*link, "down")
        assert driver.stdout.readline() == "lost\n"
        ip(*link, "up")
        assert driver.stdout.readline() == "back\n"
        said, errors = driver.communicate(timeout=WITHIN_S)
        assert driver.returncode == 0, errors
        assert "did not answer within" in said
    finally:
        driver.kill()
        driver.communicate()
