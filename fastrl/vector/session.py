"""Calls into all environments, one at a time, and what becomes of them when one fails."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from functools import partial
from typing import Any, NoReturn

from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError
from gymnasium.vector import VectorEnv

from fastrl.closing import Closing
from fastrl.vector.driver import Driver, Refusal, Request
from fastrl.vector.failures import NOT_FINITE, ArgumentError, EnvFailure, brief, is_finite_action
from fastrl.vector.instance import is_lifecycle
from fastrl.vector.seeds import checked_seeds
from fastrl.vector.spec import VectorPlan


class Pending(Enum):
    """The one call that may be under way."""

    NOTHING = "nothing"
    STEP = "step"
    RESET = "reset"
    CALL = "call"
    SEND = "send"


_NOTHING = Pending.NOTHING
"""Members of an enumeration are slow to look up, for what is done in every step."""


class Session(VectorEnv[Any, Any, Any], Closing):
    """The part of a vector environment that asks environments for anything but steps.

    Attributes:
        plan: Who steps which environments.
        closed: Whether it was closed, or ended by a failure.
    """

    def __init__(self, plan: VectorPlan, driver: Driver) -> None:
        self.plan, self.num_envs = plan, plan.num_envs
        self._driver = driver
        self._finalizer = weakref.finalize(self, driver.close)
        self._pending = Pending.NOTHING
        self._seeds: list[int | None] = [None] * self.num_envs
        self._next_seeds: list[int | None] | None = None
        self._why_closed = ""

    def seed(self, seeds: int | Sequence[int | None]) -> None:
        """Use these seeds in the next `reset` that is not given any."""
        self._next_seeds = checked_seeds(seeds, self.num_envs)

    def render(self) -> tuple[Any, ...]:
        """Return the picture of every environment."""
        return self.call("render")

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:  # noqa: ANN401
        """Call a method of every environment, or read an attribute.

        Raises:
            AttributeError: The environments have none of this name.
            EnvFailure: An environment died or overran the deadline.
        """
        self.call_async(name, *args, **kwargs)
        return self.call_wait()

    def call_async(self, name: str, /, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Begin a `call`, to be finished by `call_wait`."""
        self._begin_call(name, [True] * self.num_envs, args, kwargs)

    def call_wait(self, timeout: float | None = None) -> tuple[Any, ...]:
        """Finish a `call`."""
        return self._results("call_wait", timeout)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return an attribute of every environment."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:  # noqa: ANN401
        """Set an attribute of every environment.

        Args:
            name: Its name.
            values: A list or tuple holds one value per environment, anything else is for all.

        Raises:
            ArgumentError: There is not one value per environment.
        """
        self.set_some(name, self._spread(values, "values"), [True] * self.num_envs)

    def set_some(self, name: str, values: Sequence[Any], mask: Sequence[bool]) -> None:
        """Set an attribute of those environments that ``mask`` names; values for all are given."""
        self._ask("set_attr", Request("set_attr", (name,), (values, mask)), name)
        self._results("set_attr", None)

    def call_some(
        self,
        name: str,
        mask: Sequence[bool],
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> tuple[Any, ...]:
        """Call a method, or read an attribute, of those environments that ``mask`` names."""
        self._begin_call(name, mask, args, kwargs)
        return self._results("call_wait", None)

    def parallel(
        self,
        function: Callable[[Any, Any], Any],
        arguments: Any = None,  # noqa: ANN401
    ) -> tuple[Any, ...]:
        """Return ``function(env, argument)`` for every environment, evaluated where it lives.

        Args:
            function: Travels to worker processes by value.
            arguments: A list or tuple holds one per environment, anything else is for all.

        Raises:
            ArgumentError: There is not one argument per environment.
        """
        given = self._spread(arguments, "arguments")
        everyone = [True] * self.num_envs
        self._ask("parallel", Request("apply", (function,), (given, everyone)), "parallel")
        return self._results("parallel", None)

    def pids(self) -> dict[str, int]:
        """Return the process id of every worker by name; empty where there are no processes."""
        return self._driver.pids()

    def close_extras(self, **kwargs: Any) -> None:  # noqa: ANN401
        """Close the environments; never hangs."""
        self._finalizer()

    @property
    def np_random_seed(self) -> Any:  # noqa: ANN401
        """The seed of every environment."""
        return self.get_attr("np_random_seed")

    @property  # type: ignore[misc]
    def np_random(self) -> Any:  # noqa: ANN401
        """The random generator of every environment; a copy of it where that is a process."""
        return self.get_attr("np_random")

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """Fan an unknown attribute out over all environments: a value of each, or a method."""
        if name.startswith("_") or "_driver" not in self.__dict__ or self.closed:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        found = self.parallel(_look_up, name)
        if all(isinstance(each, str) and each == _METHOD for each in found):
            return partial(self.call, name)
        return found

    def _deadline(self, timeout: float | None) -> float:
        return self.plan.timeout_s if timeout is None else timeout

    def _begin(self, name: str, pending: Pending) -> None:
        if self.closed:
            why = f" after {self._why_closed}" if self._why_closed else ""
            raise ClosedEnvironmentError(f"`{name}`: the vector environment was closed{why}")
        if self._pending is not _NOTHING:
            raise AlreadyPendingCallError(
                f"`{name}`: a call to `{self._pending.value}` is pending", self._pending.value
            )
        self._pending = pending

    def _expect(self, name: str, pending: Pending) -> None:
        if self.closed:
            self._begin(name, pending)
        if self._pending is not pending:
            raise NoAsyncCallError(f"`{name}`: nothing was begun that it could finish", name)

    def _begin_call(
        self, name: str, mask: Sequence[bool], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        if is_lifecycle(name):
            raise ArgumentError(
                f"call('{name}') is refused; use {name}() of the vector environment"
            )
        self._ask("call_async", Request("call", (name, args, kwargs), (mask,)), name)

    def _ask(self, name: str, request: Request, what: str) -> None:
        self._begin(name, Pending.CALL)
        with self._explaining(f"call to '{what}'"):
            self._driver.begin_request(request)

    def _results(self, name: str, timeout: float | None) -> tuple[Any, ...]:
        self._expect(name, Pending.CALL)
        with self._explaining("call"):
            parts = self._driver.end_request(self._deadline(timeout))
        self._pending = Pending.NOTHING
        for part in parts:
            if isinstance(part, Refusal):
                note = f"raised by env {part.env_index} of '{self.plan.name}'"
                part.error.add_note(f"{note}\n\n{part.remote_traceback}".rstrip())
                raise part.error
        return tuple(result for part in parts for result in part)

    def _spread(self, values: Any, name: str) -> list[Any]:  # noqa: ANN401
        if not isinstance(values, list | tuple):
            return [values] * self.num_envs
        if len(values) != self.num_envs:
            raise ArgumentError(
                f"{name}: got {len(values)} for {self.num_envs} environments; a list or tuple "
                "must hold one for each"
            )
        return list(values)

    @contextlib.contextmanager
    def _explaining(self, doing: str) -> Iterator[None]:
        """Add action and seed to a failure, and end what cannot go on."""
        try:
            yield
        except BaseException as error:
            self._end(error, doing)

    def _end(self, error: BaseException, doing: str) -> NoReturn:
        """Close, and raise the error: a failure with action and seed, anything else as it is.

        What was refused has changed nothing, so nothing is closed then.
        """
        if isinstance(error, ArgumentError):
            self._pending = Pending.NOTHING
            raise error
        if not isinstance(error, EnvFailure):
            # An interrupted call leaves answers behind that the next one would take for its own.
            self._why_closed = f"an interrupted {doing}"
            self._give_up()
            raise error
        self._pending = Pending.NOTHING
        explained = self._explained(error, doing)
        self._why_closed = brief(explained.args[0], 200)
        self._give_up()
        raise explained from error.__cause__

    def _give_up(self) -> None:
        """Close; what ended it goes before what closing raises."""
        with contextlib.suppress(Exception):
            self.close()
        self.closed = True

    def _action_of(self, env_index: int) -> Any:  # noqa: ANN401
        """Return the latest action of an environment."""
        return None

    def _doing(self, env_index: int, doing: str) -> str:
        """Return what an environment did in a call that did ``doing``."""
        return doing

    def _explained(self, failure: EnvFailure, doing: str) -> EnvFailure:
        index = failure.env_index
        assert index is not None
        doing = self._doing(index, doing)
        action = self._action_of(index) if doing == "step" else None
        seed = self._seeds[index]
        given = f"(action={brief(action)})" if doing == "step" else ""
        told = f"last seed {seed}" if seed is not None else "never seeded"
        message = (
            f"env {index} of '{self.plan.name}' ({failure.worker}, {told}) "
            f"{failure.args[0]}, in {doing}{given}"
        )
        if action is not None and not is_finite_action(action):
            message += NOT_FINITE
        return type(failure)(
            message,
            worker=failure.worker,
            env_index=index,
            action=action,
            seed=seed,
            remote_traceback=failure.remote_traceback,
        )


_METHOD = "fastrl: a method"


def _look_up(env: Any, name: str) -> Any:  # noqa: ANN401
    found = env.get_wrapper_attr(name)
    return _METHOD if callable(found) else found
