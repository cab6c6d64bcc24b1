"""What the functions of a robot of one's own return, looked at once, with errors that name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastrl.errors import EnvError


def check_observation(name: str, parts: Any, num_envs: int) -> None:  # noqa: ANN401
    """Refuse what are no parts ``[n, k]``.

    Raises:
        EnvError: Says what is expected, and what came.
    """
    expected = f"'{name}'.observation must return a sequence of arrays ({num_envs}, k)"
    if not isinstance(parts, Sequence):
        raise EnvError(f"{expected}, got {_told(parts)}")
    for part in parts:
        if not isinstance(part, np.ndarray) or part.ndim != 2 or len(part) != num_envs:
            raise EnvError(f"{expected}, got one of {_told(part)}")


def check_terms(name: str, terms: Any, num_envs: int) -> None:  # noqa: ANN401
    """Refuse what are no terms of rewards by name.

    Raises:
        EnvError: Says what is expected, and what came.
    """
    expected = f"'{name}'.reward must return terms by name, each ({num_envs},) or a number"
    if not isinstance(terms, Mapping) or not terms:
        raise EnvError(f"{expected}, got {_told(terms)}")
    for key, term in terms.items():
        if np.shape(term) not in ((), (num_envs,)) or np.asarray(term).dtype.kind not in "fiub":
            raise EnvError(f"{expected}, got for '{key}' {_told(term)}")


def check_flags(name: str, flags: Any, num_envs: int) -> None:  # noqa: ANN401
    """Refuse what are neither flags nor None.

    Raises:
        EnvError: Says what is expected, and what came.
    """
    if flags is None:
        return
    if np.shape(flags) not in ((), (num_envs,)) or np.asarray(flags).dtype != np.bool_:
        raise EnvError(
            f"'{name}'.terminated must return None or ({num_envs},) bool, got {_told(flags)}"
        )


def check_initial(name: str, drawn: Any, nq: int, nv: int) -> None:  # noqa: ANN401
    """Refuse what is no pair of positions and velocities.

    Raises:
        EnvError: Says what is expected, and what came.
    """
    expected = f"'{name}'.initial must return qpos ({nq},) and qvel ({nv},)"
    if not isinstance(drawn, Sequence) or len(drawn) != 2:
        raise EnvError(f"{expected}, got {_told(drawn)}")
    if (np.shape(drawn[0]), np.shape(drawn[1])) != ((nq,), (nv,)):
        raise EnvError(f"{expected}, got {_told(drawn[0])} and {_told(drawn[1])}")


def _told(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, np.ndarray):
        return f"{value.shape} {value.dtype}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}…"
