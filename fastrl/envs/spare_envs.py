"""Spare environments, which are reset in the background while the others are stepped."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.envs.actions import ActionBounds
from fastrl.envs.agreement import check_spaces
from fastrl.envs.batched_env import Rows, StepViews
from fastrl.envs.calls import EnvCall
from fastrl.envs.gym_loop import Env, GymLoop
from fastrl.envs.state import State, StateError, layers_state, load_layers_state
from fastrl.errors import USERS_FAILURES, cause
from fastrl.spaces import flatten, leaves, unflatten
from fastrl.spec import EnvSpec

_CLOSE_S = 2.0
"""Seconds for which `SpareLoop.close` waits for running resets."""


@dataclass
class _Spare:
    """A spare environment, and its reset in a thread.

    Attributes:
        env: The environment.
        limit: Its time limit in steps, or None.
        seed: Seed of the reset.
        outcome: Result or error of the reset; None before the first one.
    """

    env: Env
    limit: int | None
    seed: int | None = None
    outcome: Future[Any] | None = None

    def begin(self, seed: int | None) -> None:
        """Start a reset, after a running one."""
        self.failure()
        self.seed, self.outcome = seed, Future()
        # A separate thread, as the resets of several environments may all wait at once.
        reset = threading.Thread(
            target=_reset, args=(self.env, seed, self.outcome), name="fastrl-reset", daemon=True
        )
        reset.start()

    def failure(self) -> BaseException | None:
        """Wait for the reset, if there is one, and return its error, if any."""
        return None if self.outcome is None else self.outcome.exception()

    def begun(self, seed: int | None = None) -> Any:
        """Wait for the reset; return its result or raise its error, like ``env.reset``."""
        assert self.outcome is not None
        return self.outcome.result()


def _reset(env: Env, seed: int | None, outcome: Future[Any]) -> None:
    try:
        outcome.set_result(env.reset(seed=seed))
    except BaseException as error:  # raised in the step that uses the environment
        outcome.set_exception(error)


class SpareLoop(GymLoop):
    """A `GymLoop` whose environments are reset ahead of time.

    An environment whose episode ends is reset in a thread and becomes the last spare one. The first
    spare one takes its place, after a wait if its reset is not done. So the order depends only on
    the ends of episodes, not on the time of resets: the same seeds give the same data, and episodes
    that begin quickly are not favoured. Each environment continues its random streams from episode
    to episode, in any place.

    Calls (`make_call`) are also made in spare environments, whose episodes then begin again.

    Attributes:
        spec: Spaces and fields of each environment.
        num_envs: Number of environments that are stepped, n.
    """

    def __init__(
        self,
        envs: Sequence[Env],
        spec: EnvSpec,
        *,
        num_envs: int,
        time_limits: Sequence[int | None],
        action_bounds: ActionBounds = "clip",
        begun: NDArray[np.int64] | None = None,
    ) -> None:
        """Own ``envs``, which `close` closes.

        Args:
            envs: See `GymLoop`; those after the first ``num_envs`` are spare ones.
            spec: Spaces and fields of each of them.
            num_envs: Number of environments that are stepped.
            time_limits: Steps after which episodes of each are truncated; None for no limit.
            action_bounds: See `GymLoop`.
            begun: See `GymLoop`; spare environments are not counted.

        Raises:
            EnvError: An environment has other spaces, or is already in use; the error names it.
            SpaceError: A space is unsupported, or cannot be squashed.
        """
        self._limits = list(time_limits[:num_envs])
        self._ended: list[int] = []
        self._is_stale = False  # calls were made since the spare ones were reset
        super().__init__(
            envs[:num_envs],
            spec,
            time_limits=self._limits,
            action_bounds=action_bounds,
            begun=begun,
        )
        spares = zip(envs[num_envs:], time_limits[num_envs:], strict=True)
        self._spares = deque(_Spare(env, limit) for env, limit in spares)
        for number, spare in enumerate(self._spares):
            self._claim.add(spare.env, num_envs + number)
            check_spaces(spare.env, spec, self._name(number))

    def reset(self, seeds: Sequence[int], observation: Rows) -> None:
        """Start an episode in every environment; seeds of spare ones follow from ``seeds``."""
        own = np.random.SeedSequence([int(seed) for seed in seeds])
        for spare, seed in zip(self._spares, own.generate_state(len(self._spares)), strict=True):
            spare.begin(int(seed))
        self._is_stale = False
        super().reset(seeds, observation)

    def make_call(self, call: EnvCall) -> None:
        """Make a call in every environment, after running resets.

        Raises:
            EnvError: An environment has no such method or attribute, or raised; the error names it.
        """
        super().make_call(call)
        for number, spare in enumerate(self._spares):
            # An error of a reset is raised when its environment is used.
            if spare.failure() is None:
                call.make(spare.env, self._name(number))
                self._is_stale = spare.outcome is not None

    def get_state(self) -> State:
        """Return the states of all environments, spare ones with their first observations.

        Raises:
            StateError: An environment cannot be saved; the error names it.
        """
        self._renew()
        saved = []
        for number, spare in enumerate(self._spares):
            with self._naming(f"spare env {number}"):
                if (error := spare.failure()) is not None:
                    raise StateError(f"raised in reset(): {cause(error)}")
                first, _ = spare.begun()
                seen = [np.array(leaf) for leaf in flatten(self.spec.observation_space, first)]
                saved.append((layers_state(spare.env), seen, spare.limit))
        return {**super().get_state(), "spares": saved, "limits": list(self._limits)}

    def set_state(self, state: State) -> None:
        """Restore such a state, after a reset; with another number of spares, as many as exist.

        Raises:
            StateError: It does not belong to an environment; the error names it.
        """
        super().set_state(state)
        self._resetting[0] = 1
        space = self.spec.observation_space
        for number, (spare, saved) in enumerate(
            zip(self._spares, state.get("spares", ()), strict=False)
        ):
            env_state, seen, limit = saved
            if spare.failure() is None:
                with self._naming(f"spare env {number}"):
                    load_layers_state(spare.env, env_state)
                spare.seed, spare.limit, spare.outcome = None, limit, Future()
                first = unflatten(space, dict(zip(leaves(space), seen, strict=True)))
                spare.outcome.set_result((first, {}))
        self._resetting[0] = 0
        self._limits[:] = state.get("limits", self._limits)
        self._clock.limit(self._limits)

    def close(self) -> None:
        """Close all environments; safe to call twice.

        Environments that are being reset are closed at the end of their reset, also if that is
        after the end of this method, which waits for at most two seconds.
        """
        spares, self._spares = self._spares, deque()
        _, late = wait([each.outcome for each in spares if each.outcome], _CLOSE_S)
        for spare in spares:
            if spare.outcome is not None and spare.outcome in late:
                spare.outcome.add_done_callback(partial(_close, spare.env))
            else:
                self._envs.append(spare.env)
        super().close()

    def _name(self, number: int) -> str:
        return f"spare env {number} of '{self.spec.id}'"

    def _renew(self) -> None:
        """Begin new episodes in spare environments if calls were made since their resets."""
        if self._is_stale:
            self._is_stale = False
            for spare in self._spares:
                if spare.failure() is None:
                    spare.begin(None)

    def _step_all(self, actions: Sequence[Any], views: StepViews) -> list[Any]:
        self._renew()
        return super()._step_all(actions, views)

    def _write(self, observations: list[Any], views: StepViews) -> None:
        # Only after the resets of all ended environments have started, side by side.
        for index in self._ended:
            observations[index] = self._replace(index)
        self._ended.clear()
        super()._write(observations, views)

    def _reset_env(
        self, index: int, seed: int | None, reset: Callable[..., Any] | None = None
    ) -> Any:
        if seed is not None:
            return super()._reset_env(index, seed)
        spare = _Spare(self._envs[index], self._limits[index])
        spare.begin(None)
        self._spares.append(spare)
        self._ended.append(index)
        return None

    def _replace(self, index: int) -> Any:
        """Put the first spare environment into a place; return its first observation."""
        spare = self._spares.popleft()
        self._envs[index], self._steps[index] = spare.env, spare.env.step
        if spare.limit != self._limits[index]:
            self._limits[index] = spare.limit
            self._clock.limit(self._limits)
        return super()._reset_env(index, spare.seed, spare.begun)


def _close(env: Env, _: Future[Any]) -> None:
    with suppress(*USERS_FAILURES):  # the loop is closed
        env.close()
