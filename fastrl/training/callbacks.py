"""Callbacks: user code that is called at fixed points of a run and can change its course."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastrl.arguments import brief, instance
from fastrl.config import Config
from fastrl.envs.calls import EnvCall, latest, pack_calls
from fastrl.envs.state import StateError
from fastrl.errors import ConfigError, FastrlError
from fastrl.learning import Learner
from fastrl.sampling import Sampler
from fastrl.shared.rollout_buffer import Rollout
from fastrl.training.durable import make_directory, writing
from fastrl.training.evaluation import EvaluationResult
from fastrl.training.extensions import Extensions, build, naming
from fastrl.training.window import Update, Window

_LOGGER = logging.getLogger(__name__)
_STEPPING = ("reset", "step", "close")
_DIRECTORY = "callbacks"
METRICS = "callback/"
"""Begins the names of metrics of callbacks, which so are never those of others."""


class RunContext:
    """What callbacks read of a run, and how they change its course.

    Attributes:
        config: The run's configuration.

    Args:
        config: See the attribute.
        run: The run's directory.
        learner: Counts steps and updates, and has the schedules.
        window: Takes metrics.
        calls: What was called and set in the environments; changed in place.
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
        self._sampler: Sampler | None = None

    @property
    def steps(self) -> int:
        """Environment steps that the run has learnt from."""
        return self._learner.steps

    @property
    def updates(self) -> int:
        """Rollouts that the run has learnt from."""
        return self._learner.updates

    @property
    def directory(self) -> Path:
        """The directory ``callbacks`` of the run's directory, for files of callbacks.

        Raises:
            WriteError: It cannot be made.
        """
        path = self._run / _DIRECTORY
        with writing(path):
            make_directory(path)
        return path

    def log(self, name: str, value: float) -> None:
        """Add ``callback/NAME`` to the next row of metrics; of several numbers the mean.

        Raises:
            ConfigError: The name is no text, or the value is no number.
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
        """The scheduled numbers of the next update by name, such as ``learning_rate``."""
        schedules = self._learner.schedules
        return {name: schedules.at(name, self.steps) for name in schedules.names}

    def set_schedule(self, name: str, value: float | None) -> None:
        """Let a scheduled number have a value from the next update on; None gives it back.

        Raises:
            ConfigError: There is no such number, or the value is negative or not finite.
        """
        self._learner.schedules.override(name, value)

    def call_envs(self, method: str, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Call a method in every environment of every worker, before the next rollout begins.

        An environment that takes another one's place, in this run or in a resumed one, gets the
        last call of each method before its first reset. So calls must not add up.

        Args:
            method: Its name.
            *args: Numbers, text, arrays, tensors, and lists, tuples and dicts of these.
            **kwargs: The same.

        Raises:
            ConfigError: An argument is of another kind, or the method steps the environment.
            EnvError: An environment has no such method, or raised; names it.
        """
        self._call(EnvCall(method, args, kwargs))

    def set_env_attribute(self, name: str, value: Any) -> None:  # noqa: ANN401
        """Set an attribute in every environment of every worker; see `call_envs`.

        Args:
            name: An attribute that the environment or one of its wrappers has.
            value: As an argument of `call_envs`.

        Raises:
            ConfigError: The value is of another kind.
            EnvError: An environment has no such attribute, or raised; names it.
        """
        self._call(EnvCall(name, (value,), sets=True))

    def _call(self, call: EnvCall) -> None:
        by = "set_env_attribute" if call.sets else "call_envs"
        if not isinstance(call.name, str) or call.name in _STEPPING:
            raise ConfigError(
                f"{by}: the name must be text, and none of {', '.join(_STEPPING)}, which the "
                f"sampler calls; got {brief(call.name)}"
            )
        try:
            pack_calls([call])
        except StateError as error:
            raise ConfigError(f"{by}('{call.name}') cannot be saved: {error}") from error
        if self._sampler is not None:
            self._sampler.call_envs([call])
        self._calls[:] = latest([*self._calls, call])

    def follow(self, sampler: Sampler | None) -> None:
        """Make what was called before, and all further calls, in the environments of a sampler."""
        if sampler is not None:
            sampler.call_envs(self._calls)
        self._sampler = sampler


class Callback:
    """Base class of callbacks: override what is of interest.

    Methods run in the process that learns, between its other work, and training waits for them.
    """

    def on_start(self, context: RunContext) -> None:
        """A run begins, or goes on; environments are not built yet."""

    def on_rollout(self, context: RunContext, rollout: Rollout) -> None:
        """A rollout is there, after all transforms, and will be learnt from.

        Its tensors are valid for this call; clone what must live longer.
        """

    def on_update(self, context: RunContext, update: Update) -> None:
        """A rollout was learnt from; ``update`` has its metrics and the episodes that ended."""

    def on_evaluation(self, context: RunContext, result: EvaluationResult, steps: int) -> None:
        """The policy as it was after ``steps`` was evaluated, the final evaluation included."""

    def on_checkpoint(self, context: RunContext, path: Path) -> None:
        """A checkpoint was written; ``path`` is its directory."""

    def on_end(self, context: RunContext) -> None:
        """The run ends, or is stopped, or has failed."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the callback goes on from when the run is resumed.

        Numbers, text, arrays, tensors, generators of random numbers, and lists, tuples and dicts
        of these.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, before `on_start`."""


class Callbacks:
    """Calls the callbacks of a run, in their order; after a failure only their `Callback.on_end`.

    Args:
        callbacks: All of them.
        context: Given to each of them.
    """

    def __init__(self, callbacks: Extensions[Callback], context: RunContext) -> None:
        self._callbacks, self.context = callbacks.by_name, context
        self._started: list[str] = []
        self._failed = False

    def on_start(self) -> None:
        """See `Callback`, as for all of these; failures of a callback are raised with its name."""
        for name, callback in self._callbacks.items():
            self._started.append(name)
            with self._noting(), naming("callback", name, "on_start"):
                callback.on_start(self.context)

    def on_rollout(self, rollout: Rollout) -> None:
        """See `Callback`."""
        self._each("on_rollout", rollout)

    def on_update(self, update: Update) -> None:
        """See `Callback`."""
        self._each("on_update", update)

    def on_evaluation(self, result: EvaluationResult, steps: int) -> None:
        """See `Callback`."""
        self._each("on_evaluation", result, steps)

    def on_checkpoint(self, path: Path) -> None:
        """See `Callback`."""
        self._each("on_checkpoint", path)

    def __enter__(self) -> Callbacks:
        """Do nothing yet; `on_start` comes when the environments are about to be built."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Call `Callback.on_end` of all that have started; raise the first failure of these.

        Where the run has failed already, they are logged.
        """
        failures = []
        for name in self._started:
            try:
                with naming("callback", name, "on_end"):
                    self._callbacks[name].on_end(self.context)
            except FastrlError as error:
                failures.append(error)
        if failures and kind is None:
            raise failures[0]
        for failure in failures:
            _LOGGER.warning("%s", failure)

    def _each(self, hook: str, *args: object) -> None:
        for name, callback in self._callbacks.items():
            if self._failed:
                return
            with self._noting(), naming("callback", name, hook):
                getattr(callback, hook)(self.context, *args)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._failed = True
            raise


def build_callbacks(config: Config, given: Sequence[Callback]) -> Extensions[Callback]:
    """Return the callbacks that a configuration names, which are built now, and given ones.

    Raises:
        ConfigError: One cannot be imported, or is no callback.
        CallbackError: One cannot be built.
    """
    instance("callbacks", given, Sequence, "a list of them")
    callbacks = [*build("callback", config.callbacks), *given]
    for callback in callbacks:
        instance("a callback", callback, Callback, "subclass fastrl.Callback, and call the class")
    return Extensions("callback", callbacks)
