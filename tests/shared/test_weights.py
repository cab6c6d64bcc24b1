"""Published weights arrive whole, and only when they are newer."""

import threading

import pytest
import torch

from fastrl.errors import FastrlError
from fastrl.shared.weights import WeightStore

STATE = {"layer.weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(7)}
STATE["half"] = torch.ones(3, dtype=torch.bfloat16)


def test_reader_gets_what_was_published_and_nothing_twice():
    store = WeightStore(STATE)
    assert store.read() is None
    assert store.publish(STATE) == 1
    version, read = store.read()
    assert version == 1
    assert all(torch.equal(read[name], STATE[name]) for name in STATE)
    assert store.read(newer_than=1) is None


def test_newer_weights_do_not_change_those_already_read():
    store = WeightStore(STATE)
    for value in (1.0, 2.0, 3.0):
        store.publish({**STATE, "layer.weight": torch.full((2, 3), value)})
        if value == 1.0:
            _, first = store.read()
    version, newest = store.read(newer_than=1)
    assert (version, first["layer.weight"][0, 0], newest["layer.weight"][0, 0]) == (3, 1.0, 3.0)


def test_weights_of_another_model_are_refused():
    store = WeightStore(STATE)
    with pytest.raises(FastrlError, match="'extra'"):
        store.publish({**STATE, "extra": torch.zeros(1)})
    with pytest.raises(FastrlError, match=r"'layer.weight' has shape \(3, 3\), expected \(2, 3\)"):
        store.publish({**STATE, "layer.weight": torch.zeros(3, 3)})


def test_reader_never_sees_weights_that_are_being_overwritten(monkeypatch):
    """The learner publishes twice while a reader copies, and is not done with the second time."""
    store = WeightStore(STATE)
    store.publish(STATE)
    halfway, go_on = threading.Event(), threading.Event()

    class Slow(torch.Tensor):
        def detach(self):
            halfway.set()
            assert go_on.wait(60)
            return super().detach()

    count = torch.tensor(3).as_subclass(Slow)
    newest = {**STATE, "layer.weight": torch.full((2, 3), 3.0), "count": count}
    publisher = threading.Thread(target=store.publish, args=(newest,))
    clone, cloned = torch.Tensor.clone, []

    def interrupted_clone(tensor):
        cloned.append(tensor)
        if len(cloned) == 1:
            store.publish({**STATE, "layer.weight": torch.full((2, 3), 2.0)})
            publisher.start()
            assert halfway.wait(60)
        return clone(tensor)

    monkeypatch.setattr(torch.Tensor, "clone", interrupted_clone)
    version, read = store.read()
    go_on.set()
    publisher.join()
    assert version == 2
    assert (read["layer.weight"] == 2.0).all()
    assert read["count"] == 7


def test_versions_may_be_given_and_skipped():
    store = WeightStore(STATE)
    for version in (1, 4, 6):
        store.publish({**STATE, "count": torch.tensor(version)}, version)
        found, read = store.read(newer_than=version - 1)
        assert found == read["count"] == version
