"""The spaces of an environment as plain JSON, so that policies act without building it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from fastrl.durable import read_bounded
from fastrl.errors import CheckpointError, FastrlError, cause
from fastrl.spec import EnvSpec
from fastrl.system import free_bytes

SPACES = "spaces.json"
"""Name of the file in a run's directory."""

_MOST_BYTES = 2**28
"""Largest size of the file; bounds that differ between elements take about 20 bytes each."""


def spec_to_json(spec: EnvSpec) -> str | None:
    """Return an `EnvSpec` as JSON; None if a key of a ``Dict`` is neither text nor a number."""
    try:
        tree = {
            "id": spec.id,
            "max_episode_steps": spec.max_episode_steps,
            "episode_info": list(spec.episode_info),
            "running_statistics": list(spec.running_statistics),
            "mask_source": spec.mask_source,
            "observation_space": _tree_of(spec.observation_space),
            "action_space": _tree_of(spec.action_space),
        }
    except TypeError:
        return None
    return json.dumps(tree, indent=2) + "\n"


def read_spec(file: Path) -> EnvSpec | None:
    """Return the `EnvSpec` in a file of `spec_to_json`; None if there is no file.

    Raises:
        CheckpointError: The file is damaged.
    """
    if not file.exists():
        return None
    try:
        tree = json.loads(read_bounded(file, _MOST_BYTES))
        spec = EnvSpec(
            id=str(tree["id"]),
            observation_space=_space_of(tree["observation_space"]),
            action_space=_space_of(tree["action_space"]),
            max_episode_steps=tree["max_episode_steps"],
            episode_info=tuple(tree["episode_info"]),
            running_statistics=tuple(tree["running_statistics"]),
            # Earlier versions passed a key of this name to the network.
            mask_source=tree.get("mask_source"),
        )
        _ = spec.observation, spec.action  # raises if these spaces are not supported
    except (FastrlError, OSError) as error:
        raise CheckpointError(f"'{file}' cannot be used: {error}") from None
    except Exception as error:  # the file may hold anything
        raise CheckpointError(f"'{file}' is damaged: {cause(error)}") from None
    return spec


def _tree_of(space: spaces.Space[Any]) -> dict[str, Any]:
    """Return a supported space as plain JSON types.

    Raises:
        TypeError: A key of a ``Dict`` is neither text nor a number.
    """
    if isinstance(space, spaces.Dict):
        if not all(isinstance(key, str | int) for key in space.spaces):
            raise TypeError("a key that JSON does not have")
        # As pairs, which keep the order and the type of keys.
        return {"kind": "Dict", "spaces": [[k, _tree_of(v)] for k, v in space.spaces.items()]}
    if isinstance(space, spaces.Tuple):
        return {"kind": "Tuple", "spaces": [_tree_of(each) for each in space.spaces]}
    if isinstance(space, spaces.MultiBinary):
        return {"kind": "MultiBinary", "n": space.n}
    found: dict[str, Any] = {"kind": "Discrete", "dtype": np.dtype(space.dtype).name}
    if isinstance(space, spaces.Discrete):
        return {**found, "n": int(space.n), "start": int(space.start)}
    found |= {"kind": "MultiDiscrete", "shape": list(space.shape or ())}
    if isinstance(space, spaces.MultiDiscrete):
        return {**found, "nvec": _numbers(space.nvec), "start": _numbers(space.start)}
    assert isinstance(space, spaces.Box)
    return {**found, "kind": "Box", "low": _numbers(space.low), "high": _numbers(space.high)}


def _space_of(tree: Any) -> spaces.Space[Any]:
    """Return the space of a tree; a wrong tree may raise anything."""
    kind = tree["kind"]
    if kind == "Dict":
        return spaces.Dict([(key, _space_of(child)) for key, child in tree["spaces"]])
    if kind == "Tuple":
        return spaces.Tuple([_space_of(child) for child in tree["spaces"]])
    if kind == "MultiBinary":
        return spaces.MultiBinary(tree["n"])
    dtype = np.dtype(tree["dtype"])
    if kind == "Discrete":
        return spaces.Discrete(tree["n"], start=tree["start"], dtype=dtype)
    shape = tuple(tree["shape"])
    if kind == "MultiDiscrete":
        nvec, start = (_array(tree[name], shape, dtype) for name in ("nvec", "start"))
        return spaces.MultiDiscrete(nvec, start=start, dtype=dtype)
    if kind != "Box":
        raise ValueError(f"no space is called '{kind}'")
    low, high = (_array(tree[name], shape, dtype) for name in ("low", "high"))
    return spaces.Box(low, high, shape, dtype)


def _numbers(array: NDArray[Any]) -> Any:
    """Return all values in order, or the single value of all; infinities as text."""
    numbers = [array.flat[0].item()] if (array == array.flat[0]).all() else array.ravel().tolist()
    found = [str(x) if isinstance(x, float) and math.isinf(x) else x for x in numbers]
    return found if len(found) > 1 else found[0]


def _array(tree: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the inverse of `_numbers`."""
    if math.prod(shape) * dtype.itemsize > free_bytes() // 4:
        raise ValueError(f"a space of shape {shape} does not fit here")
    if isinstance(tree, list):
        return np.array([_number(each) for each in tree], dtype).reshape(shape)
    return np.full(shape, _number(tree), dtype)


def _number(tree: Any) -> Any:
    return float(tree) if isinstance(tree, str) else tree
