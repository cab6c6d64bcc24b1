"""Saves the states of environments as bytes that cannot run code, and restores them.

An environment, a wrapper or a batch saves itself by two methods::

    def get_state(self):            # all that reset and step depend on, as plain data
    def set_state(self, state):     # called after reset, on an environment that was built alike

Plain data are None, numbers, text, bytes, arrays of NumPy, tensors, generators of random numbers
(``numpy.random.Generator`` and ``RandomState``, ``random.Random``, ``torch.Generator``), and lists,
tuples, dicts and deques of these. A wrapper's methods save only the wrapper: fastrl saves each
layer, and ``np_random``. Wrappers without the methods are saved by their attributes if that is
safe: gymnasium's own, and others that keep only numbers and text. Gymnasium's environments of
classic control and toy text need no methods.
"""

from __future__ import annotations

import copy
import inspect
import json
import random
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from functools import cache
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import gymnasium
import numpy as np
import safetensors.numpy
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec as GymnasiumSpec
from gymnasium.vector import VectorWrapper
from numpy.typing import NDArray

from fastrl.errors import USERS_FAILURES, EnvError, cause

State = Any
"""Plain data; see this module's docstring."""

_TREE = "tree"
_DEEPEST = 100
_SAVED_KINDS = "biuf"
_BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")
_UNKEPT = ("env", "_cached_spec", "_metadata", "_saved_kwargs", "spec")
"""Attributes of wrappers that are rebuilt, or saved as a separate layer."""
_CONSTANT = (
    spaces.Space,
    GymnasiumSpec,
    ModuleType,
    FunctionType,
    BuiltinFunctionType,
    MethodType,
    Enum,
    type,
    np.ufunc,
    np.dtype,
)
_CLOCKS = ("episode_start_time",)
"""Attributes of gymnasium's wrappers that are times of `time.perf_counter`."""
_GYMNASIUM = "gymnasium."
_KNOWN: dict[str, tuple[str, ...]] = {
    "classic_control.acrobot:AcrobotEnv": ("state",),
    "classic_control.cartpole:CartPoleEnv": ("state", "steps_beyond_terminated"),
    "classic_control.cartpole:CartPoleVectorEnv": ("state", "steps", "prev_done"),
    "classic_control.continuous_mountain_car:Continuous_MountainCarEnv": ("state",),
    "classic_control.mountain_car:MountainCarEnv": ("state",),
    "classic_control.pendulum:PendulumEnv": ("state", "last_u"),
    "toy_text.blackjack:BlackjackEnv": ("player", "dealer"),
    "toy_text.cliffwalking:CliffWalkingEnv": ("s", "lastaction"),
    "toy_text.frozen_lake:FrozenLakeEnv": ("s", "lastaction"),
    "toy_text.taxi:TaxiEnv": ("s", "lastaction", "fickle_step"),
}
"""Attributes with the episodes of gymnasium's environments, without pictures."""


class StateError(EnvError):
    """The state of an environment cannot be saved, or belongs to another environment."""


def pack(state: State) -> bytes:
    """Return a state as bytes, in the format of safetensors.

    Raises:
        StateError: It contains something that is not plain data; the error says where.
    """
    arrays: dict[str, NDArray[Any]] = {}
    tree = _described(state, "", 0, arrays)
    try:
        text = json.dumps(tree, separators=(",", ":"))
    except ValueError as error:  # integers of thousands of digits
        raise StateError(f"the state cannot be saved: {error}") from None
    arrays[_TREE] = np.frombuffer(text.encode(), np.uint8)
    return safetensors.numpy.save(arrays)


def unpack(content: bytes) -> State:
    """Return the state in the bytes of `pack`; arrays are new and writable.

    Raises:
        StateError: The bytes are not from `pack`.
    """
    try:
        arrays = safetensors.numpy.load(content)
        tree = json.loads(arrays[_TREE].tobytes())
        return _read(tree, arrays)
    except Exception as error:  # readers of foreign bytes may raise anything
        raise StateError(f"the state is damaged: {cause(error)}") from None


def _described(value: State, where: str, depth: int, arrays: dict[str, NDArray[Any]]) -> Any:
    """Return plain data as JSON; arrays are set aside, and replaced by their numbers."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if depth > _DEEPEST:
        raise StateError(f"the state cannot be saved: {where} is nested too deeply")

    def inside(each: State, place: str) -> Any:
        return _described(each, place, depth + 1, arrays)

    if kind is dict:
        pairs = value.items()
        return {"dict": [[inside(k, where), inside(v, f"{where}[{k!r}]")] for k, v in pairs]}
    if kind in (list, tuple, deque):
        found = [inside(each, f"{where}[{index}]") for index, each in enumerate(value)]
        if kind is deque:
            return {"deque": found, "maxlen": value.maxlen}
        return found if kind is list else {"tuple": found}
    for name, (cls, state_of, _) in _GENERATORS.items():
        if kind is cls:
            return {name: inside(state_of(value), where)}
    return _set_aside(value, where, arrays)


def _set_aside(value: State, where: str, arrays: dict[str, NDArray[Any]]) -> dict[str, int]:
    if type(value) is bytes:
        kind, array = "bytes", np.frombuffer(value, np.uint8)
    elif isinstance(value, np.ndarray):
        kind, array = "array", value
    elif isinstance(value, np.generic):
        kind, array = "scalar", np.asarray(value)
    elif isinstance(value, torch.Tensor) and value.dtype != torch.bfloat16:
        kind, array = "tensor", value.detach().cpu().numpy()
    else:
        is_tensor = isinstance(value, torch.Tensor)
        what = f"a tensor of {value.dtype}" if is_tensor else f"an object of type {_name(value)}"
        raise _unsaved(what, where)
    if array.dtype.kind not in _SAVED_KINDS or array.dtype.itemsize > 8:
        raise _unsaved(f"an array of dtype {array.dtype}", where)
    native = np.array(array, array.dtype.newbyteorder("="), order="C")
    arrays[str(len(arrays))] = native
    return {kind: len(arrays) - 1}


def _unsaved(what: str, where: str) -> StateError:
    place = f" at {where}" if where else ""
    return StateError(
        f"the state has {what}{place}; expected numbers, text, arrays, generators of random "
        "numbers, and lists, tuples and dicts of these"
    )


def _read(tree: Any, arrays: Mapping[str, NDArray[Any]]) -> State:
    if isinstance(tree, list):
        return [_read(each, arrays) for each in tree]
    if not isinstance(tree, dict):
        return tree
    kind, value = next(iter(tree.items()))
    if kind in ("bytes", "array", "scalar", "tensor"):
        return _read_array(kind, arrays[str(value)])
    if kind == "dict":
        return {_read(key, arrays): _read(each, arrays) for key, each in value}
    if kind == "deque":
        return deque(_read(value, arrays), tree["maxlen"])
    if kind == "tuple":
        return tuple(_read(value, arrays))
    return _GENERATORS[kind][2](_read(value, arrays))


def _read_array(kind: str, array: NDArray[Any]) -> State:
    if kind == "bytes":
        return array.tobytes()
    if kind == "scalar":
        return array[()]
    return torch.from_numpy(array.copy()) if kind == "tensor" else array.copy()


def _generator(state: Mapping[str, Any]) -> np.random.Generator:
    if state["bit_generator"] not in _BIT_GENERATORS:
        raise ValueError(f"unknown bit generator {state['bit_generator']}")
    bits = getattr(np.random, state["bit_generator"])()
    bits.state = state
    return np.random.Generator(bits)


def _random_state(state: Mapping[str, Any]) -> np.random.RandomState:
    stream = np.random.RandomState()
    stream.set_state(dict(state))
    return stream


def _python_random(state: Any) -> random.Random:
    stream = random.Random()
    stream.setstate(state)
    return stream


def _torch_generator(state: torch.Tensor) -> torch.Generator:
    stream = torch.Generator()
    stream.set_state(state)
    return stream


_GENERATORS: dict[str, tuple[type, Callable[[Any], State], Callable[[Any], Any]]] = {
    "generator": (np.random.Generator, lambda one: one.bit_generator.state, _generator),
    "random_state": (np.random.RandomState, lambda one: one.get_state(legacy=False), _random_state),
    "random": (random.Random, random.Random.getstate, _python_random),
    "torch": (torch.Generator, torch.Generator.get_state, _torch_generator),
}
"""By name: the type, a function to its state, and a function from its state."""


def saves(env: object) -> bool:
    """Return whether an environment, a wrapper or a batch has ``get_state`` and ``set_state``.

    Methods of these names that take other arguments do not count.
    """
    cls: Any = type(env)
    return _type_saves(cls)


@cache
def _type_saves(cls: Hashable) -> bool:
    get_state, set_state = getattr(cls, "get_state", None), getattr(cls, "set_state", None)
    return _needs(get_state, 1) and _needs(set_state, 2)


def _needs(method: Any, count: int) -> bool:
    """Return whether a method can be called with ``count`` arguments, and not with fewer."""

    def takes(number: int) -> bool:
        try:
            inspect.signature(method).bind(*range(number))
        except (TypeError, ValueError):
            return False
        return True

    return takes(count) and not takes(count - 1)


def state_of(env: Any) -> State:
    """Return the state of an environment, a wrapper or a batch that has the two methods.

    Raises:
        StateError: It lacks them, or its ``get_state`` raised.
    """
    with _blaming(env, "get_state"):
        return env.get_state()


def load_state(env: Any, state: State) -> None:
    """Restore the state of an environment, a wrapper or a batch that has the two methods.

    Raises:
        StateError: It lacks them, or its ``set_state`` raised.
    """
    with _blaming(env, "set_state"):
        env.set_state(state)


@contextmanager
def _blaming(env: Any, method: str) -> Iterator[None]:
    if not saves(env):
        raise StateError(f"{_name(env)} has no get_state() and set_state(state)")
    try:
        yield
    except EnvError:
        raise
    except USERS_FAILURES as error:
        raise StateError(f"{_name(env)} raised in {method}(): {cause(error)}") from error


def layers_state(env: Any) -> State:
    """Return the state of a single or vector environment of gymnasium and of all its wrappers.

    Raises:
        StateError: A layer cannot be saved; the error names it.
    """
    layers = list(_layers(env))
    return {
        "layers": [[_name(layer), _packed(layer)] for layer in layers],
        "np_random": unpack(pack(layers[-1]._np_random)),
        "np_random_seed": layers[-1]._np_random_seed,
    }


def load_layers_state(env: Any, state: State) -> None:
    """Restore a state in an equal environment and its wrappers, after a reset.

    Raises:
        StateError: The state belongs to another environment, or a ``set_state`` raised.
    """
    layers = list(_layers(env))
    names, found = [_name(layer) for layer in layers], [name for name, _ in state["layers"]]
    if names != found:
        raise StateError(f"the state belongs to {' of '.join(found)}, this is {' of '.join(names)}")
    base, saved = layers[-1], state["np_random"]
    if isinstance(saved, np.random.Generator) and isinstance(base._np_random, np.random.Generator):
        # In place, as the environment may have shared it.
        base._np_random.bit_generator.state = saved.bit_generator.state
    else:
        base._np_random = copy.deepcopy(saved)
    base._np_random_seed = state["np_random_seed"]
    for layer, (_, own) in zip(layers, state["layers"], strict=True):
        if saves(layer):
            load_state(layer, unpack(own))
        else:
            _set_attributes(layer, unpack(own))


def fitting(state: Mapping[str, Any], name: str, like: NDArray[Any]) -> NDArray[Any]:
    """Return the array ``name`` of a state, which must have the shape and dtype of ``like``.

    Raises:
        StateError: It is missing, or has another shape or dtype.
    """
    found = state.get(name) if isinstance(state, Mapping) else None
    if not isinstance(found, np.ndarray) or (found.shape, found.dtype) != (like.shape, like.dtype):
        got = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else "none"
        raise StateError(f"the state's array '{name}' must be {like.dtype} {like.shape}, got {got}")
    return found


def fitting_list(state: Mapping[str, Any], name: str, kind: type[Any], count: int) -> list[Any]:
    """Return a copy of the list ``name`` of a state, which must have ``count`` objects of a class.

    Raises:
        StateError: It is missing, or another.
    """
    found = state.get(name) if isinstance(state, Mapping) else None
    if not isinstance(found, list) or [type(each) for each in found] != [kind] * count:
        raise StateError(f"the state's list '{name}' must have {count} of {kind.__name__}")
    return copy.deepcopy(found)


def _layers(env: Any) -> Iterator[Any]:
    """Yield the wrappers, the outermost first, and the environment itself."""
    yield env
    while isinstance(env, gymnasium.Wrapper | VectorWrapper):
        env = env.env
        yield env


def _name(layer: Any) -> str:
    return type(layer).__name__


def _packed(layer: Any) -> bytes:
    state = _layer_state(layer)
    try:
        return pack(state)
    except StateError as error:
        raise StateError(f"{_name(layer)}: {error}") from None


def _layer_state(layer: Any) -> State:
    if saves(layer):
        return state_of(layer)
    module, name = type(layer).__module__, type(layer).__qualname__
    known = _KNOWN.get(f"{module.removeprefix(_GYMNASIUM + 'envs.')}:{name}")
    if known is not None:
        return {name: getattr(layer, name) for name in known if hasattr(layer, name)}
    if isinstance(layer, gymnasium.Wrapper | VectorWrapper):
        return _attributes(layer)
    raise StateError(f"{name} has no get_state() and set_state(state)")


def _is_known(part: Any) -> bool:
    return type(part).__module__.startswith((_GYMNASIUM, "fastrl."))


def _attributes(layer: Any) -> dict[str, State]:
    """Return the attributes of a wrapper, or of an object in it, that may have changed.

    For unknown wrappers only numbers and text are safe, as objects may share an array or a list.
    """
    found: dict[str, State] = {}
    is_known = _is_known(layer)
    for name, value in vars(layer).items():
        if name in _UNKEPT or isinstance(value, _CONSTANT):
            continue
        if name in _CLOCKS and is_known:
            found[name] = time.perf_counter() - value
        elif is_known and type(value).__module__.startswith(_GYMNASIUM):
            found[name] = _attributes(value)
        elif is_known or _is_immutable(value):
            found[name] = value
        else:
            raise StateError(
                f"the wrapper {_name(layer)} keeps '{name}', an object of type "
                f"{type(value).__name__}, and has no get_state() and set_state(state)"
            )
    return found


def _is_immutable(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_immutable, value))
    return value is None or isinstance(value, bool | int | float | str | np.generic)


def _set_attributes(layer: Any, state: Mapping[str, State]) -> None:
    for name, value in state.items():
        before = vars(layer).get(name)
        if name in _CLOCKS and _is_known(layer):
            setattr(layer, name, time.perf_counter() - value)
        elif _is_known(layer) and type(before).__module__.startswith(_GYMNASIUM):
            _set_attributes(before, value)
        else:
            setattr(layer, name, value)
