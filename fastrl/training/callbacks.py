"""Callbacks and transforms: user code that observes and steers a run, or changes its rollouts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from fastrl import registry
from fastrl.arguments import brief, function, instance
from fastrl.config import Config
from fastrl.config.fields import Call
from fastrl.durable import make_directory, writing
from fastrl.envs.calls import EnvCall, latest, pack_calls, unpack_calls
from fastrl.envs.state import StateError, pack, unpack
from fastrl.errors import USERS_FAILURES, ConfigError, FastrlError, WorkerError, cause
from fastrl.learning import Learner
from fastrl.sampling import Sampler
from fastrl.shared.rollouts import Rollout
from fastrl.training.evaluation import EvaluationResult
from fastrl.training.window import Update, Window

_LOGGER = logging.getLogger(__name__)
_STEPPING = ("reset", "step", "close")
METRICS = "callback/"
"""Prefix of metrics that callbacks log."""

Transform = Callable[[Rollout], Rollout]


class CallbackError(FastrlError):
    """A callback or a transform failed; the run is saved."""

    kind = "callback"


class RunContext:
    """The state of a run for callbacks, and methods that change the run.

    Attributes:
        config: The run's configuration.

    Args:
        config: See the attribute.
        run: Directory of the run.
        learner: The learner, whose steps, updates and schedules callbacks see.
        window: Receives logged metrics.
        calls: Calls and attributes that environments were given; changed in place.
    """

    def __init__(
        self,
        config: Config,
        run: Path,
        learner: Learner,
        window: Window,
        calls: list[EnvCall],
    ) -> None:
        self.config = config
        self._run, self._learner, self._window = run, learner, window
        self._calls, self._stops = calls, False
        self._new_calls: list[EnvCall] = []
        self._sampler: Sampler | None = None

    @property
    def steps(self) -> int:
        """Number of environment steps that the run has learnt from."""
        return self._learner.steps

    @property
    def updates(self) -> int:
        """Number of rollouts that the run has learnt from."""
        return self._learner.updates

    @property
    def directory(self) -> Path:
        """The subdirectory ``callbacks`` of the run directory, for files of callbacks.

        Raises:
            WriteError: It cannot be made.
        """
        path = self._run / "callbacks"
        with writing(path):
            make_directory(path, parents=False)
        return path

    def log(self, name: str, value: float) -> None:
        """Add ``callback/NAME`` to the next row of metrics: the mean of its logged values.

        Raises:
            ConfigError: The name is not text, or the value is not a number.
        """
        if not isinstance(name, str) or not name:
            raise ConfigError(f"log: the name must be text, got {brief(name)}")
        try:
            self._window.log(f"{METRICS}{name}", float(value))
        except (TypeError, ValueError):
            raise ConfigError(f"log: '{name}' must be a number, got {brief(value)}") from None

    def stop(self) -> None:
        """End training after this update as if all steps were done; the run can be resumed."""
        self._stops = True

    @property
    def stops(self) -> bool:
        """Whether a callback has asked to end training."""
        return self._stops

    @property
    def schedules(self) -> dict[str, float]:
        """The scheduled values of the next update by name, such as ``learning_rate``."""
        schedules = self._learner.schedules
        return {name: schedules.at(name, self.steps) for name in schedules.names}

    def set_schedule(self, name: str, value: float | None) -> None:
        """Set a scheduled value from the next update on; None restores its schedule.

        Raises:
            ConfigError: There is no such schedule, or the value is negative or not finite.
        """
        self._learner.schedules.override(name, value)

    def call_envs(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Call a method in every environment of every worker, before the next rollout begins.

        If an environment is replaced, in this run or in a resumed one, the last call of each method
        is repeated before its first reset. So a call must set the whole state that it changes.

        Args:
            method: Name of the method.
            *args: Numbers, text, arrays, tensors, and lists, tuples and dicts of these.
            **kwargs: As ``args``.

        Raises:
            ConfigError: An argument is of another kind, or the method steps the environment.
            EnvError: An environment has no such method, or raised; the error names it.
        """
        self._call(EnvCall(method, args, kwargs))

    def set_env_attribute(self, name: str, value: Any) -> None:
        """Set an attribute in every environment of every worker; see `call_envs`.

        Args:
            name: An attribute that the environment or one of its wrappers has.
            value: As an argument of `call_envs`.

        Raises:
            ConfigError: The value is of another kind.
            EnvError: An environment has no such attribute, or raised; the error names it.
        """
        self._call(EnvCall(name, (value,), sets=True))

    def _call(self, call: EnvCall) -> None:
        by = "set_env_attribute" if call.sets else "call_envs"
        if not isinstance(call.name, str) or call.name in _STEPPING:
            raise ConfigError(
                f"{by}: the name must be text other than {', '.join(_STEPPING)}, which only the "
                f"sampler may call; got {brief(call.name)}"
            )
        try:
            pack_calls([call])
        except StateError as error:
            raise ConfigError(f"{by}('{call.name}') cannot be saved: {error}") from error
        if self._sampler is not None:
            self._sampler.call_envs([call])
        self._calls[:] = latest([*self._calls, call])
        self._new_calls.append(call)

    def news(self) -> bytes:
        """Return the new calls since the last time, for other ranks."""
        new, self._new_calls = self._new_calls, []
        return pack_calls(new)

    def repeat(self, news: bytes) -> None:
        """Repeat the calls of another rank."""
        for call in unpack_calls(news):
            self._call(call)
        self._new_calls = []

    def follow(self, sampler: Sampler | None) -> None:
        """Apply earlier and later calls to the environments of a sampler; None detaches it."""
        if sampler is not None:
            sampler.call_envs(self._calls)
        self._sampler = sampler


class Callback:
    """Base class of callbacks: override the methods that you need.

    Methods run in the learner's process between updates, and training waits for them.
    """

    def on_start(self, context: RunContext) -> None:
        """The run begins or resumes; environments are not built yet."""

    def on_rollout(self, context: RunContext, rollout: Rollout) -> None:
        """A rollout was collected and transformed; the update comes next.

        Its tensors are valid during this call; clone those that you keep.
        """

    def on_update(self, context: RunContext, update: Update) -> None:
        """An update is done; ``update`` has its metrics and the episodes that ended."""

    def on_evaluation(self, context: RunContext, result: EvaluationResult, steps: int) -> None:
        """The policy after ``steps`` steps was evaluated; called for the final evaluation, too."""

    def on_checkpoint(self, context: RunContext, path: Path) -> None:
        """A checkpoint was written; ``path`` is its directory."""

    def on_end(self, context: RunContext) -> None:
        """The run has ended, was stopped, or has failed."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run restores.

        Numbers, text, arrays, tensors, generators of random numbers, and lists, tuples and dicts
        of these.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned; called before `on_start`."""


class RunExtensions:
    """The callbacks and transforms of a run, and the calls that were made in its environments.

    Each is named by the path of its class or function; the second one of a path ends in ``#2``,
    and so on.

    Attributes:
        env_calls: The last call of each method and the last value of each attribute, oldest
            first.

    Args:
        config: Names the callbacks and transforms, which are imported and built at once.
        callbacks: Further callbacks.

    Raises:
        ConfigError: A callback or transform cannot be imported or has the wrong type.
        CallbackError: A callback or transform cannot be built.
    """

    def __init__(self, config: Config, callbacks: Sequence[Callback] = ()) -> None:
        instance("callbacks", callbacks, Sequence, "a list of them")
        built = [*_build("callback", config.callbacks), *callbacks]
        for callback in built:
            remedy = "subclass fastrl.Callback, and call the class"
            instance("a callback", callback, Callback, remedy)
        transforms = _build("transform", config.transforms)
        for transform in transforms:
            function("a transform", transform)
        self._callbacks: dict[str, Callback] = _by_name(built)
        self._transforms: dict[str, Transform] = _by_name(transforms)
        self._started: list[str] = []
        self._has_failed = False
        self.env_calls: list[EnvCall] = []

    def call(self, context: RunContext, hook: str, *args: object) -> None:
        """Call a method of each callback in their order, such as ``on_update``.

        After a failure only ``on_end`` is called, for all callbacks that have started.

        Raises:
            CallbackError: A callback raised; the error names it.
        """
        for name, callback in self._callbacks.items():
            if self._has_failed:
                return
            if hook == "on_start":
                self._started.append(name)
            try:
                with _naming("callback", name, hook):
                    getattr(callback, hook)(context, *args)
            except BaseException:
                self._has_failed = True
                raise

    def end(self, context: RunContext, *, run_has_failed: bool) -> None:
        """Call ``on_end`` of all callbacks that have started.

        Raises:
            CallbackError: A callback raised (the first of them); logged if the run has failed.
        """
        failures = []
        for name in self._started:
            try:
                with _naming("callback", name, "on_end"):
                    self._callbacks[name].on_end(context)
            except FastrlError as error:
                failures.append(error)
        if failures and not run_has_failed:
            raise failures[0]
        for failure in failures:
            _LOGGER.warning("%s", failure)

    def transformed(self, rollout: Rollout) -> Rollout:
        """Return a rollout after all transforms, in their order.

        Raises:
            CallbackError: A transform raised, or returned an invalid rollout.
        """
        for name, transform in self._transforms.items():
            with _naming("transform", name, "its call"):
                found = transform(rollout)
            _check(name, rollout, found)
            rollout = found
        return rollout

    def state_dict(self) -> dict[str, Any]:
        """Return the states of callbacks and transforms: dicts and bytes that cannot run code.

        Raises:
            CallbackError: A state cannot be saved; the error names its owner.
        """
        return {
            "callbacks": _states("callback", self._callbacks),
            "transforms": _states("transform", self._transforms),
            "env_calls": pack_calls(self.env_calls),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state; an empty one is the initial state. States without an owner are logged.

        Raises:
            CallbackError: A callback or a transform rejects its state; the error names it.
        """
        _load_states("callback", self._callbacks, state.get("callbacks", {}))
        _load_states("transform", self._transforms, state.get("transforms", {}))
        if "env_calls" in state:
            self.env_calls[:] = unpack_calls(state["env_calls"])


@contextmanager
def _naming(kind: str, name: str, where: str) -> Iterator[None]:
    """Turn an exception of a callback or a transform into one line that names its method.

    Raises:
        CallbackError: The callback or transform raised.
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


def check_extensions(config: Config) -> None:
    """Check the callbacks and transforms that a configuration names, without building any.

    Raises:
        ConfigError: A callback or transform cannot be imported, or does not take its arguments.
    """
    for kind, entries in (("callback", config.callbacks), ("transform", config.transforms)):
        for _ in _imported(kind, entries):
            pass


def _imported(
    kind: str, entries: Sequence[str | Call]
) -> Iterator[tuple[str, Any, Mapping[str, Any], bool]]:
    """Yield path, object and keyword arguments of each entry, and whether a call builds it.

    A class is called with its keyword arguments, and so is a function that returns a callback. A
    function that is a transform receives them with every rollout.
    """
    for entry in entries:
        path, kwargs = (entry.path, entry.kwargs) if isinstance(entry, Call) else (entry, {})
        thing = registry.chosen(kind, path, f"{kind}s")
        is_built = isinstance(thing, type) or (kind == "callback" and callable(thing))
        taken = () if is_built or kind == "callback" else ("rollout",)
        if callable(thing) or kwargs:
            what = "a rollout and its kwargs" if taken else "its kwargs"
            problem = f"{kind}s: '{path}' does not take {what}"
            registry.check_arguments(thing, problem, *taken, **kwargs)
        yield path, thing, kwargs, is_built


def _build(kind: str, entries: Sequence[str | Call]) -> list[Any]:
    """Return the callbacks or transforms that a configuration names."""
    found = []
    for path, thing, kwargs, is_built in _imported(kind, entries):
        if is_built:
            with _naming(kind, path, "its constructor"):
                found.append(thing(**kwargs))
        else:
            found.append(partial(thing, **kwargs) if kwargs else thing)
    return found


def _by_name(things: Sequence[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for thing in things:
        of = thing.func if isinstance(thing, partial) else thing
        of = of if hasattr(of, "__qualname__") else type(of)
        name = path = f"{of.__module__}:{of.__qualname__}"
        number = 2
        while name in found:
            name, number = f"{path}#{number}", number + 1
        found[name] = thing
    return found


def _states(kind: str, things: Mapping[str, Any]) -> dict[str, bytes]:
    found = {}
    for name, thing in things.items():
        if hasattr(thing, "state_dict"):
            with _naming(kind, name, "state_dict"):
                state = thing.state_dict()
                if state:
                    found[name] = pack(state)
    return found


def _load_states(kind: str, things: Mapping[str, Any], states: Mapping[str, bytes]) -> None:
    for name, state in states.items():
        if name not in things:
            _LOGGER.warning(
                "the checkpoint has a state of the %s '%s', which this run lacks", kind, name
            )
            continue
        with _naming(kind, name, "load_state_dict"):
            things[name].load_state_dict(unpack(state))


def _check(name: str, before: Rollout, after: Any) -> None:
    """Reject the result of a transform unless it is a rollout of the same size.

    Raises:
        CallbackError: The result is invalid; the error names the transform and the field.
    """
    if not isinstance(after, Rollout):
        raise CallbackError(
            f"transform '{name}' must return a Rollout, got a {type(after).__name__}; "
            "dataclasses.replace(rollout, reward=…) returns a changed one"
        )
    lost = [field for field in before.fields if field not in after.fields]
    if lost:
        raise CallbackError(f"transform '{name}' leaves out the field '{lost[0]}'")
    length, slots = before.reward.shape
    for field, value in after.fields.items():
        if field in before.fields:
            wanted, got = _described(before.fields[field]), _described(value)
            if wanted != got:
                raise CallbackError(f"transform '{name}': '{field}' must be {wanted}, got {got}")
        elif not isinstance(value, Tensor) or value.shape[:2] not in (
            (length, slots), (length + 1, slots)
        ):  # fmt: skip
            raise CallbackError(
                f"transform '{name}': the new field '{field}' must be a tensor [T, B, …] = "
                f"[{length}, {slots}, …] or [T + 1, B, …], got {_described(value)}"
            )


def _described(value: Any) -> str:
    """Return the dtypes and shapes of a field."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_described(each)}' for key, each in value.items())}}}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_described, value))})"
    return f"a {type(value).__name__}"
