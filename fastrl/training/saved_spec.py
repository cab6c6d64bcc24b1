"""What an environment observes and accepts, as plain JSON: policies act without building it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from fastrl.errors import FastrlError, cause
from fastrl.free_memory import free_bytes
from fastrl.spec import EnvSpec
from fastrl.training.checkpoint import CheckpointError, read_bounded

SPACES = "spaces.json"
"""Name of the file in a run's directory."""

_MOST_BYTES = 2**28
"""Of the file: bounds that differ from element to element take about 20 bytes each."""


def spec_to_json(spec: EnvSpec) -> str | None:
    """Return an `EnvSpec` as JSON, which `read_spec` reads back as equal.

    Returns:
        None where a key of a ``Dict`` space is not text or a number.
    """
    tree: dict[str, Any] = {
        "id": spec.id,
        "max_episode_steps": spec.max_episode_steps,
        "episode_info": list(spec.episode_info),
        "running_statistics": list(spec.running_statistics),
    }
    try:
        tree |= {
            "observation_space": _tree_of(spec.observation_space),
            "action_space": _tree_of(spec.action_space),
        }
    except TypeError:
        return None
    return json.dumps(tree, indent=2) + "\n"


def read_spec(file: Path) -> EnvSpec | None:
    """Return the `EnvSpec` in a file that `spec_to_json` made; None where there is no such file.

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
        )
        _ = spec.observation, spec.action  # whether these spaces are supported
    except (FastrlError, OSError) as error:
        raise CheckpointError(f"'{file}' cannot be used: {error}") from None
    except Exception as error:  # what the file holds may be anything
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


def _space_of(tree: Any) -> spaces.Space[Any]:  # noqa: ANN401
    """Return the space of a tree; fails in any way there is where it is none."""
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


def _numbers(array: NDArray[Any]) -> Any:  # noqa: ANN401
    """Return numbers in order, or the one number that all are; infinities as text."""
    numbers = [array.flat[0].item()] if (array == array.flat[0]).all() else array.ravel().tolist()
    told = [str(x) if isinstance(x, float) and math.isinf(x) else x for x in numbers]
    return told if len(told) > 1 else told[0]


def _array(told: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:  # noqa: ANN401
    """Return what `_numbers` was given."""
    if math.prod(shape) * dtype.itemsize > free_bytes() // 4:
        raise ValueError(f"a space of shape {shape} does not fit here")
    if isinstance(told, list):
        return np.array([_number(each) for each in told], dtype).reshape(shape)
    return np.full(shape, _number(told), dtype)


def _number(told: Any) -> Any:  # noqa: ANN401
    return float(told) if isinstance(told, str) else told
