"""Storage of gymnasium spaces in the shared table: one tensor per leaf of a nested space.

The name of a leaf is its path: ``""`` for a space that is not nested, ``"camera"`` or ``"arm/0"``
in ``Dict`` and ``Tuple`` spaces, with keys converted by ``str``. Leaves have gymnasium's order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from fastrl.arguments import brief
from fastrl.errors import SpaceError

T = TypeVar("T")

_LEAF_TYPES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
_SUPPORTED = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of these"

# Learning uses float32. torch has few operations on wide unsigned integers, so they are stored in
# the next signed type that holds them.
_STORED_DTYPE = {
    "float64": torch.float32,
    "float32": torch.float32,
    "float16": torch.float16,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint16": torch.int32,
    "uint32": torch.int64,
    "uint64": torch.int64,
    "bool": torch.bool,
}


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of one leaf for a single environment (no T or B axis)."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The NumPy dtype with the same memory layout."""
        return np.dtype(str(self.dtype).removeprefix("torch."))


def leaves(space: spaces.Space[Any], path: str = "") -> dict[str, spaces.Space[Any]]:
    """Return the leaves of ``space`` by path, in gymnasium's order.

    Raises:
        SpaceError: A leaf cannot be stored in a tensor of fixed size or has no elements, or two
            leaves have the same path.
    """
    found: dict[str, spaces.Space[Any]] = {}
    for key, child in _children(space):
        own = leaves(child, _joined(path, key))
        for twice in found.keys() & own.keys():
            raise SpaceError(f"two parts of {space} are called '{twice}'; rename one of them")
        found.update(own)
    if found:
        return found
    where = at_path(path)
    if isinstance(space, spaces.Dict | spaces.Tuple) or 0 in (getattr(space, "shape", None) or ()):
        raise SpaceError(f"{space}{where} has no elements")
    if not isinstance(space, _LEAF_TYPES):
        shown = space if isinstance(space, spaces.Space) else brief(space)
        raise SpaceError(
            f"unsupported space {shown}{where}; supported are {_SUPPORTED}{_remedy(space)}"
        )
    return {path: space}


def _remedy(space: object) -> str:
    """Return a hint to the wrapper that drops MiniGrid's mission texts, or an empty text."""
    is_mission = type(space).__module__.partition(".")[0] == "minigrid"
    if not (is_mission or isinstance(space, spaces.Text)):
        return ""
    return (
        "; a wrapper that drops texts makes it one of these, for MiniGrid "
        "env.wrappers=[minigrid.wrappers:ImgObsWrapper]"
    )


def observation_specs(space: spaces.Space[Any]) -> dict[str, TensorSpec]:
    """Return the stored shape and dtype of each leaf of an observation space.

    Raises:
        SpaceError: A leaf, or its dtype, cannot be stored as a tensor.
    """
    return {path: _observation_spec(leaf, path) for path, leaf in leaves(space).items()}


def action_specs(space: spaces.Space[Any]) -> dict[str, TensorSpec]:
    """Return the stored shape and dtype of each leaf of an action space, as sampled by policies.

    Discrete actions are int64 indices from 0 (``start`` is added when the environment is
    stepped), ``MultiBinary`` is int8, and ``Box`` is float32 before clipping or squashing: the
    value of the policy's log-probability.

    Raises:
        SpaceError: A leaf is not supported as an action.
    """
    return {path: _action_spec(leaf, path) for path, leaf in leaves(space).items()}


def num_choices(space: spaces.Space[Any]) -> tuple[int, ...]:
    """Return the options of each ``Discrete`` and of each element of ``MultiDiscrete``, in order.

    Raises:
        SpaceError: See `leaves`.
    """
    sizes: list[int] = []
    for leaf in leaves(space).values():
        if isinstance(leaf, spaces.Discrete):
            sizes.append(int(leaf.n))
        elif isinstance(leaf, spaces.MultiDiscrete):
            sizes += map(int, leaf.nvec.flat)
    return tuple(sizes)


def outside(leaf: spaces.Space[Any], rows: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which numbers are not among the options of a leaf, in the shape of ``rows``.

    Args:
        leaf: Any but a ``Box``.
        rows: ``[n, *shape]``, counted from the leaf's ``start``.
    """
    start = np.asarray(getattr(leaf, "start", 0))
    sizes = getattr(leaf, "nvec", getattr(leaf, "n", 0))
    if isinstance(leaf, spaces.MultiBinary):
        sizes = 2
    inside: NDArray[np.bool_] = (rows >= start) & (rows < start + sizes) & (rows == np.trunc(rows))
    return ~inside


def at_path(path: str) -> str:
    """Return ``at 'path'`` for messages about a leaf; empty for a single leaf."""
    return f" at '{path}'" if path else ""


def flatten(space: spaces.Space[Any], value: Any) -> Iterator[Any]:
    """Yield the leaf values of a nested observation or action, in the order of `leaves`."""
    if isinstance(space, spaces.Dict):
        for name, child in space.spaces.items():
            yield from flatten(child, value[name])
    elif isinstance(space, spaces.Tuple):
        for child, part in zip(space.spaces, value, strict=True):
            yield from flatten(child, part)
    else:
        yield value


def flattener(space: spaces.Space[Any]) -> Callable[[Any], Sequence[Any]]:
    """Return a faster `flatten` for one space; a ``Dict`` of leaves takes a tenth of the time."""
    # With one key an item getter returns no tuple. Paths of nested leaves are not keys.
    if (
        isinstance(space, spaces.Dict)
        and len(space) > 1
        and space.spaces.keys() == leaves(space).keys()
    ):
        return itemgetter(*space.spaces)
    return lambda value: tuple(flatten(space, value))


def unflatten(space: spaces.Space[Any], by_path: Mapping[str, T]) -> Any:
    """Rebuild the nested structure of ``space``, with its keys, from leaves by path."""
    return nested(space, [by_path[path] for path in leaves(space)])


def nested(space: spaces.Space[Any], values: Iterable[Any]) -> Any:
    """Rebuild the nested structure of ``space``, with its keys, from the values of `flatten`."""
    return _nested(space, iter(values))


def _nested(space: spaces.Space[Any], values: Iterator[Any]) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _nested(child, values) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple([_nested(child, values) for child in space.spaces])
    return next(values)


def _children(space: spaces.Space[Any]) -> Iterator[tuple[Any, spaces.Space[Any]]]:
    if isinstance(space, spaces.Dict):
        yield from space.spaces.items()
    elif isinstance(space, spaces.Tuple):
        yield from enumerate(space.spaces)


def _joined(path: str, key: object) -> str:
    return f"{path}/{key}" if path else str(key)


def _observation_spec(space: spaces.Space[Any], path: str) -> TensorSpec:
    if isinstance(space, spaces.Discrete):
        return TensorSpec((), torch.int64)
    dtype = _STORED_DTYPE.get(np.dtype(space.dtype).name)
    if dtype is None or space.shape is None:
        raise SpaceError(f"unsupported dtype {space.dtype} of {space}{at_path(path)}")
    return TensorSpec(tuple(space.shape), dtype)


def _action_spec(space: spaces.Space[Any], path: str) -> TensorSpec:
    shape = tuple(space.shape or ())
    if isinstance(space, spaces.MultiBinary):
        return TensorSpec(shape, torch.int8)
    if not isinstance(space, spaces.Box):
        return TensorSpec(shape, torch.int64)
    if np.issubdtype(space.dtype, np.floating):
        return TensorSpec(shape, torch.float32)
    raise SpaceError(
        f"unsupported action space {space}{at_path(path)}: a Box of actions must be floating "
        "point; use MultiDiscrete for integers"
    )
