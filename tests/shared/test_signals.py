"""The wait/notify primitive."""

import sys
import threading
import time

import pytest

from fastrl.shared.memory import PORTABLE, SignalArray


@pytest.fixture(autouse=True, params=["this system's", "portable"])
def kind(request, monkeypatch):
    if request.param == "portable":
        monkeypatch.setenv(PORTABLE, "1")
    return request.param


def test_every_post_lets_exactly_one_wait_through():
    signal = SignalArray(1)[0]
    assert not signal.try_wait()
    for _ in range(3):
        signal.post()
    assert [signal.wait(0.01) for _ in range(4)] == [True, True, True, False]


def test_kind_is_the_chosen_one(kind):
    signal = SignalArray(1)[0]
    assert (type(signal).__name__ == "_PortableSignal") == (
        kind == "portable" or not sys.platform.startswith("linux")
    )


def test_signals_are_independent():
    signals = SignalArray(3)
    signals[1].post()
    assert [signals[index].try_wait() for index in range(3)] == [False, True, False]


def test_wait_blocks_until_posted_and_no_longer():
    signal = SignalArray(1)[0]
    poster = threading.Timer(0.1, signal.post)
    start = time.monotonic()
    poster.start()
    assert signal.wait(60.0)
    assert 0.05 < time.monotonic() - start < 60.0
    start = time.monotonic()
    assert not signal.wait(0.1, spins=100)
    assert time.monotonic() - start > 0.05
