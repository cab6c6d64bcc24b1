"""What a user adds to a run by callbacks and transforms: how it is built, named and saved."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from fastrl import registry
from fastrl.config.fields import Call
from fastrl.envs.calls import EnvCall, pack_calls, unpack_calls
from fastrl.envs.state import pack, unpack
from fastrl.errors import USERS_FAILURES, FastrlError, WorkerError, cause

_LOGGER = logging.getLogger(__name__)

T = TypeVar("T")


class CallbackError(FastrlError):
    """A callback or a transform failed; the run is saved."""


@contextmanager
def naming(kind: str, name: str, where: str) -> Iterator[None]:
    """Turn what a callback or a transform raises into one line that names it.

    Args:
        kind: ``callback`` or ``transform``.
        name: What it is called.
        where: The method that is called.

    Raises:
        CallbackError: It raised.
        WorkerError: A worker failed too often when its environments were called.
    """
    try:
        yield
    except WorkerError:
        raise
    except FastrlError as error:
        raise CallbackError(f"{kind} '{name}' failed in {where}: {error}") from error
    except USERS_FAILURES as error:
        raise CallbackError(f"{kind} '{name}' raised in {where}: {cause(error)}") from error


def build(kind: str, entries: Sequence[str | Call]) -> list[Any]:
    """Return the callbacks or transforms that a configuration names; imports them.

    A class is called with its keyword arguments, and so is a function that returns a callback. A
    function that is a transform gets them with every rollout.

    Args:
        kind: ``callback`` or ``transform``.
        entries: Import paths or registered names, with keyword arguments or without.

    Raises:
        ConfigError: One cannot be imported.
        CallbackError: One cannot be built.
    """
    key, found = f"{kind}s", []
    for entry in entries:
        path, kwargs = (entry.path, entry.kwargs) if isinstance(entry, Call) else (entry, {})
        thing = registry.chosen(kind, path, key)
        if isinstance(thing, type) or (kind == "callback" and callable(thing)):
            with naming(kind, path, "its constructor"):
                thing = thing(**kwargs)
        elif kwargs:
            thing = partial(thing, **kwargs)
        found.append(thing)
    return found


class Extensions(Generic[T]):
    """Callbacks or transforms of a run, in their order.

    Attributes:
        kind: ``callback`` or ``transform``.
        by_name: Each under the path of its class or function; the second of a path has ``#2``
            behind it, and so on.

    Args:
        kind: See the attribute.
        things: All of them.
    """

    def __init__(self, kind: str, things: Sequence[T]) -> None:
        self.kind = kind
        self.by_name: dict[str, T] = {}
        for thing in things:
            path, number = _path(thing), 2
            name = path
            while name in self.by_name:
                name, number = f"{path}#{number}", number + 1
            self.by_name[name] = thing

    def state_dict(self) -> dict[str, bytes]:
        """Return the states of those that have one, as bytes that cannot run code.

        Raises:
            CallbackError: A state cannot be saved; names its owner.
        """
        found = {}
        for name, thing in self.by_name.items():
            get_state: Any = getattr(thing, "state_dict", None)
            if get_state is not None:
                with naming(self.kind, name, "state_dict"):
                    state = get_state()
                    if state:
                        found[name] = pack(state)
        return found

    def load_state_dict(self, states: Mapping[str, bytes]) -> None:
        """Let each go on from its state; log states without an owner.

        Raises:
            CallbackError: One does not take its state; names it.
        """
        for name, thing in self.by_name.items():
            if name in states:
                with naming(self.kind, name, "load_state_dict"):
                    owner: Any = thing
                    owner.load_state_dict(unpack(states[name]))
        for name in states:
            if name not in self.by_name:
                _LOGGER.warning(
                    "the checkpoint has a state of the %s '%s', which is not there any more",
                    self.kind,
                    name,
                )


@dataclass
class RunExtensions:
    """What is added to a run, and what a checkpoint holds of it.

    Attributes:
        callbacks: See `fastrl.training.callbacks`.
        transforms: See `fastrl.training.transforms`.
        env_calls: The last call of each method and the last value of each attribute that
            environments were given, oldest first.
    """

    callbacks: Extensions[Any]
    transforms: Extensions[Any]
    env_calls: list[EnvCall] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Return what further steps depend on: dicts and bytes that cannot run code.

        Raises:
            CallbackError: A state cannot be saved; names its owner.
        """
        return {
            "callbacks": self.callbacks.state_dict(),
            "transforms": self.transforms.state_dict(),
            "env_calls": pack_calls(self.env_calls),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; an empty one is that of the beginning.

        Raises:
            CallbackError: A callback or a transform does not take its state; names it.
        """
        self.callbacks.load_state_dict(state.get("callbacks", {}))
        self.transforms.load_state_dict(state.get("transforms", {}))
        if "env_calls" in state:
            self.env_calls[:] = unpack_calls(state["env_calls"])


def _path(thing: object) -> str:
    of: Any = thing.func if isinstance(thing, partial) else thing
    of = of if hasattr(of, "__qualname__") else type(of)
    return f"{of.__module__}:{of.__qualname__}"
