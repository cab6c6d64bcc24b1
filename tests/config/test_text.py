from __future__ import annotations

import pytest

from fastrl.config.text import dump_yaml, parse_yaml
from fastrl.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("2.5E+4", 25000.0),
        (".5", 0.5),
        ("1_000_000", 1_000_000),
        ("0x10", 16),
        ("-3", -3),
        (".inf", float("inf")),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        # Text, where YAML 1.1 sees an octal number, a number to base 60, and a date.
        ("010", "010"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("1_", "1_"),
        ("'3'", "3"),
        ("cuda:0", "cuda:0"),
    ],
)
def test_scalars_are_what_they_look_like(text, value):
    parsed = parse_yaml(text, "test")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch hacked']",
        "!!python/name:os.system",
        "!!python/object/new:subprocess.Popen [[touch, hacked]]",
        "!!binary aGk=",
        "!!str 3",
        "!mine {a: 1}",
        "a: !!set {b, c}",
        "! 3",
    ],
)
def test_tags_are_refused_and_nothing_runs(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^test:1: tags are not supported"):
        parse_yaml(text, "test")
    assert not list(tmp_path.iterdir())


def test_anchors_are_refused_before_they_expand():
    bomb = "a: &a [x, x]\n" + "".join(
        f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    with pytest.raises(ConfigError, match=r"^test:1: anchors and aliases are not supported"):
        parse_yaml(bomb, "test")


def test_duplicate_key_names_its_line():
    with pytest.raises(ConfigError, match=r"^test:3: duplicate key 'a'$"):
        parse_yaml("a: 1\nb: 2\na: 3\n", "test")


@pytest.mark.parametrize("text", ["1: a", "on: a", "~: a", "[a]: b", "{a: b}: c"])
def test_keys_must_be_text(text):
    with pytest.raises(ConfigError, match=r"^test:1: keys must be text"):
        parse_yaml(text, "test")


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 5_000, "- " * 5_000 + "x"])
def test_deep_nesting_is_refused(text):
    with pytest.raises(ConfigError, match=r"^test:1: nested more than 32 levels deep$"):
        parse_yaml(text, "test")


@pytest.mark.parametrize("text", ["9" * 5000, "0x" + "f" * 5000, "18446744073709551616"])
def test_huge_integers_are_refused(text):
    with pytest.raises(ConfigError, match="does not fit into 64 bits"):
        parse_yaml(text, "test")


@pytest.mark.parametrize(
    "text", ["a: b: c", "[", "'", "\t- a", "a\x00b", "--- a\n--- b", "%YAML 9.9\n---\na"]
)
def test_what_is_no_single_document_is_one_line(text):
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "test")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text", ["1e5", "010", "yes", "null", "2020-01-01", "", " x", "a\nb", "=", "<<", "é\u2028"]
)
def test_text_that_looks_like_something_else_stays_text(text):
    assert parse_yaml(dump_yaml({"key": text, "list": [text]}), "test") == {
        "key": text,
        "list": [text],
    }


def test_shared_parts_are_written_out():
    shared = {"x": [1, 2]}
    assert parse_yaml(dump_yaml({"a": shared, "b": shared}), "test") == {"a": shared, "b": shared}
