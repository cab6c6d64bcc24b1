"""Calls of methods and values of attributes that a run applies to all its environments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import gymnasium

from fastrl.arguments import brief
from fastrl.envs.batched_env import BatchedEnv
from fastrl.envs.state import pack, unpack
from fastrl.errors import USERS_FAILURES, EnvError, cause


class EnvCall(NamedTuple):
    """A method that is called, or an attribute that is set, in every environment.

    Attributes:
        name: Name of the method or the attribute.
        args: Positional arguments; the value of an attribute. Plain data, see `fastrl.envs.state`.
        kwargs: Keyword arguments.
        sets: Whether an attribute is set.
    """

    name: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}
    sets: bool = False

    def make(self, owner: Any, who: str) -> None:
        """Call the method of an object, or set its attribute; ``who`` is its name in errors.

        The method of a gymnasium environment may be that of a wrapper or of an inner environment.

        Raises:
            EnvError: The object has no such method or attribute, or the method raised.
        """
        has, get, put = _access(owner)
        try:
            is_there = has(self.name) and (self.sets or callable(get(self.name)))
            if is_there and self.sets:
                put(self.name, self.args[0])
            elif is_there:
                get(self.name)(*self.args, **self.kwargs)
        except USERS_FAILURES as error:
            raise self.failed(who, error) from error
        if not is_there:
            raise self.missing(who)

    def missing(self, who: str) -> EnvError:
        """Return the error for a missing method or attribute."""
        kind = "attribute" if self.sets else "method"
        return EnvError(f"{who} has no {kind} '{self.name}'")

    def failed(self, who: str, error: BaseException) -> EnvError:
        """Return the error for a failed call."""
        what = f"when its '{self.name}' was set" if self.sets else f"in {self.name}()"
        return EnvError(f"{who} raised {what}: {cause(error)}")


def _access(owner: Any) -> tuple[Callable[..., Any], ...]:
    """Return the functions that find, read and set attributes of an object."""
    if isinstance(owner, gymnasium.Env):
        return owner.has_wrapper_attr, owner.get_wrapper_attr, owner.set_wrapper_attr
    return partial(hasattr, owner), partial(getattr, owner), partial(setattr, owner)


def make_call(env: BatchedEnv, call: EnvCall) -> None:
    """Make a call in n environments.

    Batches of separate environments have a method ``make_call``; other batches are
    called directly.

    Raises:
        EnvError: An environment has no such method or attribute, or raised; the error names it.
    """
    own = getattr(env, "make_call", None)
    if own is not None:
        own(call)
    else:
        call.make(env, f"'{env.spec.id}'")


def checked_calls(calls: Iterable[object]) -> list[EnvCall]:
    """Return calls as a list.

    Raises:
        TypeError: One is not an `EnvCall`.
    """
    found = list(calls)
    for each in found:
        if not isinstance(each, EnvCall):
            raise TypeError(f"call_envs takes a list of EnvCall, got {brief(each)} in it")
    return cast("list[EnvCall]", found)


def latest(calls: Iterable[EnvCall]) -> list[EnvCall]:
    """Return the last call of each method and the last value of each attribute, oldest first.

    Raises:
        TypeError: See `checked_calls`.
    """
    kept: dict[tuple[str, bool], EnvCall] = {}
    for call in checked_calls(calls):
        kept.pop((call.name, call.sets), None)
        kept[call.name, call.sets] = call
    return list(kept.values())


def pack_calls(calls: Iterable[EnvCall]) -> bytes:
    """Return calls as bytes that cannot run code.

    Raises:
        StateError: An argument is not plain data.
        TypeError: See `checked_calls`.
    """
    plain = checked_calls(calls)
    return pack([(each.name, tuple(each.args), dict(each.kwargs), each.sets) for each in plain])


def unpack_calls(content: bytes) -> list[EnvCall]:
    """Return the calls in the bytes of `pack_calls`; arguments are new objects.

    Raises:
        StateError: The bytes are not from `pack_calls`.
    """
    return [EnvCall(*each) for each in unpack(content)]
