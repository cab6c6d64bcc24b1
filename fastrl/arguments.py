"""Checks of arguments, in Python calls and in environments: each returns the value or raises."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from fastrl.errors import ArgumentError, one_line

T = TypeVar("T")

MOST_THINGS = 2**24
"""Largest number of environments, workers or rows, far beyond the memory of any machine."""


def brief(value: object, width: int = 60) -> str:
    """Return a value as code on one line, shortened if it is long."""
    return one_line(value, width, repr)


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return ``; did you mean '…'?`` with the known name most like ``name``, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean '{found[0]}'?" if found else ""


def nearest_or_all(name: str, known: Iterable[str]) -> str:
    """Return the result of `nearest`; if it is empty, ``; there are …`` with all names."""
    names = list(known)
    return nearest(name, names) or f"; there are {', '.join(names) or 'none'}"


def instance(name: str, value: T, kind: type[Any], remedy: str = "") -> T:
    """Return a value of the class ``kind``, or raise an `ArgumentError` that ends with a remedy."""
    article = "an" if kind.__name__[0] in "AEIO" else "a"
    return _instance(f"{name} must be {article}", value, kind, remedy)


def taken(by: str, value: T, kind: type[Any], remedy: str = "") -> T:
    """Return the first argument of the function ``by``; see `instance`."""
    return _instance(f"{by} takes a", value, kind, remedy)


def _instance(rule: str, value: T, kind: type[Any], remedy: str) -> T:
    if isinstance(value, kind):
        return value
    hint = f"; {remedy}" if remedy else ""
    raise ArgumentError(f"{rule} {kind.__name__}, got {brief(value)}{hint}")


def function(name: str, value: Any) -> Callable[..., Any]:
    """Return an argument that must be callable; raise an `ArgumentError` if it is not."""
    if not callable(value):
        raise ArgumentError(f"{name} must be a function, got {brief(value)}")
    return value  # type: ignore[no-any-return]


def file_path(name: str, value: object, remedy: str = "") -> Path:
    """Return a path that is given as text or as a `Path`; raise an `ArgumentError` for others.

    Empty text is rejected, as `Path` would return the current directory.
    """
    if isinstance(value, str | Path) and str(value) and "\0" not in str(value):
        return Path(value)
    hint = f"; {remedy}" if remedy else ""
    raise ArgumentError(f"{name} must be a path, got {brief(value)}{hint}")


def methods(name: str, value: object, wanted: Sequence[str]) -> None:
    """Raise an `ArgumentError` if an argument lacks one of some methods."""
    lacking = [each for each in wanted if not callable(getattr(value, each, None))]
    if lacking:
        raise ArgumentError(f"{name} must have {', '.join(lacking)}, got {brief(value)}")


def one_of(name: str, value: T, allowed: Sequence[str | None]) -> T:
    """Return one of some words, which may include None; raise an `ArgumentError` for others."""
    if (value is None or isinstance(value, str)) and value in allowed:
        return value
    words = " or ".join("None" if word is None else f"'{word}'" for word in allowed)
    hint = nearest(str(value), filter(None, allowed)) if isinstance(value, str) else ""
    raise ArgumentError(f"{name} must be {words}, got {brief(value)}{hint}")


def is_whole(value: object) -> TypeGuard[int]:
    """Return whether a value is a whole number, of Python or of NumPy."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def whole(
    name: str, value: object, at_least: int = 1, at_most: float = 2**62, hint: str = ""
) -> int:
    """Return a whole number of Python or NumPy as Python's, or raise an `ArgumentError`."""
    if not is_whole(value) or value < at_least:
        raise ArgumentError(
            f"{name} must be a whole number of at least {at_least}{hint}, got {brief(value)}"
        )
    if value > at_most:
        raise ArgumentError(f"{name} must be at most {at_most:,}, got {brief(value)}")
    return int(value)


def at_least_one(name: str, value: object) -> int:
    """Return a number of environments or workers, from 1 to `MOST_THINGS`; see `whole`."""
    return whole(name, value, at_most=MOST_THINGS)


def whole_attributes(owner: object, names: Iterable[str], at_least: int = 1) -> None:
    """Make attributes of a dataclass Python's whole numbers, or raise an `ArgumentError`."""
    for name in names:
        object.__setattr__(owner, name, whole(name, getattr(owner, name), at_least))


def _is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a real number, of Python or of NumPy."""
    return isinstance(value, Real) and not isinstance(value, bool)


def finite_number(
    name: str, value: object, at_least: float = -math.inf, above: float = -math.inf
) -> float:
    """Return a finite number, at least or above a bound, or raise an `ArgumentError`."""
    if _is_number(value) and value >= at_least and above < value < math.inf:
        return value
    bound = f" of at least {at_least:g}" if at_least > above else ""
    bound = f" above {above:g}" if above > at_least else bound
    raise ArgumentError(f"{name} must be a finite number{bound}, got {brief(value)}")


def seconds(name: str, value: object) -> float:
    """Return a duration above 0, which may be infinite, or raise an `ArgumentError`."""
    if _is_number(value) and value > 0:
        return value
    raise ArgumentError(f"{name} must be a number of seconds above 0, got {brief(value)}")


def same_shapes(**tensors: Any) -> None:
    """Raise an `ArgumentError` for the first that is not a tensor of the shape of the first one."""
    import torch  # here, as all other checks work without it

    (first, reference), *_ = tensors.items()
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            instance(name, tensor, torch.Tensor)
        if tensor.shape != reference.shape:
            raise ArgumentError(
                f"{name} must have the shape of {first}, {list(reference.shape)}; "
                f"got {list(tensor.shape)}"
            )
