import pickle
import re
from pathlib import Path

import pytest

from fastrl.cluster.connection import NodeLostError
from fastrl.errors import (
    ArgumentError,
    ConfigError,
    EnvError,
    FastrlError,
    WorkerError,
    cause,
    one_line,
)
from fastrl.training import CallbackError, CheckpointError
from fastrl.vector import EnvTimeoutError


@pytest.mark.parametrize(
    "kind", [FastrlError, ConfigError, EnvError, CheckpointError, ArgumentError]
)
def test_message_is_one_line_whatever_it_quotes(kind):
    message = str(kind("no 'a\r\nb\x0c\x1bc\u2028d'\n  here; there are  x,  y"))
    assert message == "no 'a b \\x1bc d' here; there are x, y"
    assert str(kind("as it  is")) == "as it  is"


def test_every_kind_of_error_has_a_section():
    text = (Path(__file__).parents[1] / "docs" / "errors.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (.*)", text, re.MULTILINE)
    # Of the command line and of the operating system.
    kinds, classes = {"usage", "system", NodeLostError.kind, CallbackError.kind}, [FastrlError]
    for each in classes:
        kinds.add(each.kind)
        classes += each.__subclasses__()
    assert set(re.findall(r"<!-- messages of (.*) -->", text)) == kinds - {"usage", "system"}
    assert sorted(sections) == sorted(kinds)


def test_worker_keeps_its_traceback_apart():
    error = WorkerError("env-worker-0", "it\nbroke", "Traceback:\n  here")
    assert error.args == ("it broke",)
    assert str(error) == "it broke\n\nTraceback:\n  here"


@pytest.mark.parametrize("error", [EnvError("a\nb"), ArgumentError("a\nb")])
def test_errors_travel(error):
    assert str(pickle.loads(pickle.dumps(error))) == "a b"


def test_timeout_of_an_environment_is_one_line_too_and_travels_between_processes():
    error = EnvTimeoutError("serial", "env 0\nhangs", env_index=3)
    assert isinstance(error, TimeoutError)
    assert str(error) == "env 0 hangs"
    error.explain("CartPole-v1", "in step")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == "env 3 of 'CartPole-v1' (serial) env 0 hangs, in step"
    assert vars(again) == vars(error)


def test_cause_without_a_text_shows_its_place():
    with pytest.raises(AssertionError) as raised:
        raise AssertionError
    assert re.fullmatch(r"AssertionError at \S+test_errors\.py:\d+.*", cause(raised.value))
    assert cause(AssertionError("a text")) == "AssertionError: a text"
    assert cause(AssertionError()) == "AssertionError"


def test_text_fits_a_line_whatever_it_is():
    class MuteError(Exception):
        def __str__(self):
            raise ValueError

    assert one_line("a\n  b") == "a b"
    assert one_line("a" * 90) == "a" * 80 + "…"
    assert one_line("a" * 90, None) == "a" * 90
    assert one_line("a b", 10, repr) == "'a b'"
    assert cause(MuteError()) == "MuteError: a MuteError whose text cannot be printed"
