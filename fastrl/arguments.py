"""What Python callers may get wrong, told in one line instead of by whatever breaks later."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from fastrl.errors import ConfigError

T = TypeVar("T")


def brief(value: object, width: int = 60) -> str:
    """Return a value on one line, cut where it is long, even if it cannot be printed."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # somebody else's __repr__
        text = f"a {type(value).__name__}"
    return text if len(text) <= width else f"{text[:width]}…"


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Return ``; did you mean '…'?`` with the known name most like ``name``, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean '{found[0]}'?" if found else ""


def nearest_or_all(name: str, known: Iterable[str]) -> str:
    """Return what `nearest` does, or where it finds nothing ``; there are …`` with all names."""
    names = list(known)
    return nearest(name, names) or f"; there are {', '.join(names)}"


def instance(name: str, value: T, kind: type[Any], remedy: str = "") -> T:
    """Return an argument that must be of a kind.

    Args:
        name: Of the argument.
        value: Of the argument.
        kind: What it must be.
        remedy: Where to get one.

    Raises:
        ConfigError: It is something else.
    """
    if isinstance(value, kind):
        return value
    hint = f"; {remedy}" if remedy else ""
    article = "an" if kind.__name__[0] in "AEIO" else "a"
    raise ConfigError(f"{name} must be {article} {kind.__name__}, got {brief(value)}{hint}")


def taken(by: str, value: T, kind: type[Any], remedy: str = "") -> T:
    """Return the first argument of a function, which must be of a kind; see `instance`.

    Raises:
        ConfigError: It is something else.
    """
    if isinstance(value, kind):
        return value
    hint = f"; {remedy}" if remedy else ""
    raise ConfigError(f"{by} takes a {kind.__name__}, got {brief(value)}{hint}")


def function(name: str, value: Any) -> Callable[..., Any]:  # noqa: ANN401
    """Return an argument that must be callable.

    Raises:
        ConfigError: It is not.
    """
    if not callable(value):
        raise ConfigError(f"{name} must be a function, got {brief(value)}")
    return value  # type: ignore[no-any-return]


def methods(name: str, value: object, wanted: Sequence[str]) -> None:
    """Refuse an argument without some methods.

    Raises:
        ConfigError: It lacks one.
    """
    lacking = [each for each in wanted if not callable(getattr(value, each, None))]
    if lacking:
        raise ConfigError(f"{name} must have {', '.join(lacking)}, got {brief(value)}")


def one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    """Refuse an argument that is none of some words.

    Raises:
        ConfigError: It is none of them.
    """
    if not isinstance(value, str) or value not in allowed:
        words = " or ".join(f"'{word}'" for word in allowed)
        raise ConfigError(f"{name} must be {words}, got {brief(value)}")


def whole(name: str, value: object, at_least: int = 1, at_most: int = 2**62) -> int:
    """Return an argument that must be a whole number.

    Raises:
        ConfigError: It is none, or too small or too large.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ConfigError(
            f"{name} must be a whole number of at least {at_least}, got {brief(value)}"
        )
    if value > at_most:
        raise ConfigError(f"{name} must be at most {at_most:,}, got {brief(value)}")
    return value


def whole_attributes(owner: object, names: Iterable[str], at_least: int = 1) -> None:
    """Refuse attributes of a dataclass that are not whole numbers of at least so much.

    Raises:
        ConfigError: Names the first one.
    """
    for name in names:
        whole(name, getattr(owner, name), at_least)


def seconds(name: str, value: object) -> float:
    """Return an argument that must be a time above 0.

    Raises:
        ConfigError: It is none.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
        return value
    raise ConfigError(f"{name} must be a number of seconds above 0, got {brief(value)}")
