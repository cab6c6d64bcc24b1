"""n single gymnasium environments behind `BatchedEnv`: the loop that makes any environment run.

Python spends its time per environment here, so the loop holds only what each environment needs:
actions, observations, rewards and flags cross in whole batches, and time limits are deadlines
that one comparison per batch watches.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import gymnasium
import numpy as np
from numpy.typing import NDArray

from fastrl.arguments import brief
from fastrl.closing import close_all
from fastrl.envs.actions import ActionBounds, ActionConverter
from fastrl.envs.agreement import Claim, check_spaces
from fastrl.envs.batched_env import Rows, StepViews
from fastrl.envs.calls import EnvCall
from fastrl.envs.episode_clock import EpisodeClock
from fastrl.envs.rows import ObservationWriter, number_of
from fastrl.envs.state import State, StateError, layers_state, load_layers_state
from fastrl.errors import USERS_FAILURES, EnvError, cause
from fastrl.spec import EnvSpec

_LOGGER = logging.getLogger(__name__)


class GymLoop:
    """Steps gymnasium environments one after the other, in this thread.

    Attributes:
        spec: What each environment observes and accepts.
        num_envs: Number of environments, n.
    """

    def __init__(
        self,
        envs: Sequence[gymnasium.Env[Any, Any]],
        spec: EnvSpec,
        *,
        time_limits: Sequence[int | None] = (),
        action_bounds: ActionBounds = "clip",
        begun: NDArray[np.int64] | None = None,
    ) -> None:
        """Take over ``envs``, which are closed by `close`.

        Args:
            envs: Environments with the spaces of ``spec``, none of them stepped by anything else.
            spec: What each of them observes and accepts.
            time_limits: Steps after which this loop truncates an episode of each environment; None
                leaves its time limit to the environment. By default all are left to them.
            action_bounds: How actions are kept inside a bounded ``Box``.
            begun: ``[1]`` int64, where each environment is counted when `reset` has reset it.

        Raises:
            EnvError: An environment has other spaces, or is in use already; names it by index.
            SpaceError: A space is unsupported, or cannot be squashed.
        """
        self.spec = spec
        self.num_envs = len(envs)
        self._envs = list(envs)
        self._steps = [env.step for env in envs]
        self._split = ActionConverter(spec.action_space, action_bounds).split
        self._writer = ObservationWriter(spec.observation_space)
        self._claim = Claim()
        for index, env in enumerate(envs):
            self._claim.add(env, index)
            check_spaces(env, spec, f"env {index} of '{spec.id}'")
        self._clock = EpisodeClock(time_limits or [None] * self.num_envs)
        self._resetting = np.zeros(1, np.int64)
        self._begun = np.zeros(1, np.int64) if begun is None else begun

    def tell_resets(self, resetting: NDArray[np.int64]) -> None:
        """Set ``resetting[0]`` to 1 during every reset from now on, and to 0 after it.

        `close` adds 1 before it closes an environment.
        """
        self._resetting = resetting

    def reset(self, seeds: Sequence[int], observation: Rows) -> None:
        """Start an episode in every environment; see `BatchedEnv.reset`.

        Raises:
            EnvError: An environment raised, or its observation does not fit; names it by index.
        """
        for index, seed in enumerate(seeds):
            self._writer.write_one(index, self._reset_env(index, int(seed)), observation)
            self._clock.restart(index)
            self._begun += 1

    def step(self, views: StepViews) -> None:
        """Step every environment once; see `BatchedEnv.step`.

        Raises:
            EnvError: An environment raised or broke its contract; names it by index.
        """
        actions = self._split(views.action)
        clock = self._clock
        observations: list[Any] = []
        rewards: list[Any] = []
        ended: list[tuple[int, bool]] = []
        infos: list[Any] | None = None if views.episode_info is None else []
        add_observation, add_reward = observations.append, rewards.append
        try:
            for step, action in zip(self._steps, actions, strict=True):
                observation, reward, terminated, truncated, info = step(action)
                # Before the rewards, whose number says who raised: flags may be no flags.
                if terminated or truncated:
                    ended.append((len(rewards), bool(terminated)))
                if infos is not None:
                    infos.append(info)
                add_observation(observation)
                add_reward(reward)
        except USERS_FAILURES as error:
            self._blame_step(len(rewards), actions, error)

        views.terminated.fill(False)
        views.truncated.fill(False)
        clock.now += 1
        if clock.now >= clock.next_due:
            already = {index for index, _ in ended}
            ended.extend((index, False) for index in clock.due() if index not in already)
        if infos is not None and views.episode_info is not None:
            for index, _ in ended:
                self._note_figures(index, infos[index], views.episode_info[index])
        if ended:
            self._restart(ended, observations, views)
        self._writer.write_all(observations, views.observation)
        _write_rewards(rewards, views.reward)

    def get_state(self) -> State:
        """Return the states of all environments, their wrappers and their time limits.

        Raises:
            StateError: One cannot be saved; names it by index.
        """
        saved = []
        for index, env in enumerate(self._envs):
            with self._naming(index):
                saved.append(layers_state(env))
        elapsed = [self._clock.elapsed(index) for index in range(self.num_envs)]
        return {"envs": saved, "elapsed": elapsed}

    def set_state(self, state: State) -> None:
        """Go on from such a state, after a reset.

        Raises:
            StateError: It does not fit an environment; names it by index.
        """
        for index, (env, saved) in enumerate(zip(self._envs, state["envs"], strict=True)):
            with self._naming(index):
                load_layers_state(env, saved)
        self._clock.resume(state["elapsed"])

    def make_call(self, call: EnvCall) -> None:
        """Make a call in every environment.

        Raises:
            EnvError: One has no such method or attribute, or raised; names it by index.
        """
        for index, env in enumerate(self._envs):
            call.make(env, f"env {index} of '{self.spec.id}'")

    def close(self) -> None:
        """Close all environments; safe to call twice.

        What they raise is only told: they are not needed any more, and what they were needed for is
        not to be lost for it.
        """
        envs, self._envs, self._steps = self._envs, [], []
        self._claim.release()
        try:
            close_all(envs, self._count_close)
        except USERS_FAILURES as error:
            _LOGGER.warning("'%s' raised in close(): %s", self.spec.id, cause(error))

    def _count_close(self) -> None:
        self._resetting[0] += 1

    @contextmanager
    def _naming(self, index: int) -> Iterator[None]:
        """Let errors of states name the environment."""
        try:
            yield
        except StateError as error:
            raise StateError(f"env {index} of '{self.spec.id}': {error}") from error

    def _note_figures(self, index: int, info: dict[str, Any], row: NDArray[np.float32]) -> None:
        """Write the figures that the specification names; NaN where this episode has none."""
        for column, name in enumerate(self.spec.episode_info):
            found: Any = info
            for part in name.split("/"):
                found = found.get(part, np.nan) if isinstance(found, dict) else np.nan
            try:
                row[column] = found
            except (TypeError, ValueError, OverflowError):
                raise EnvError(
                    f"env {index} of '{self.spec.id}': info '{name}' is {brief(found)}; "
                    "expected a number"
                ) from None

    def _restart(
        self, ended: list[tuple[int, bool]], observations: list[Any], views: StepViews
    ) -> None:
        """Store the last observation of each ended episode, and start the next one."""
        for index, terminated in ended:
            # Written before the reset: the environment may reuse the array it returned.
            self._writer.write_one(index, observations[index], views.final_observation)
            (views.terminated if terminated else views.truncated)[index] = True
            observations[index] = self._reset_env(index, None)
            self._clock.restart(index)

    def _reset_env(self, index: int, seed: int | None) -> Any:  # noqa: ANN401
        self._resetting[0] = 1
        try:
            observation, _ = self._envs[index].reset(seed=seed)
        except USERS_FAILURES as error:
            raise EnvError(
                f"env {index} of '{self.spec.id}' raised in reset(seed={seed}): {cause(error)}"
            ) from error
        self._resetting[0] = 0
        return observation

    def _blame_step(self, index: int, actions: list[Any], error: BaseException) -> NoReturn:
        action = " ".join(str(actions[index]).split())
        raise EnvError(
            f"env {index} of '{self.spec.id}' raised in step({action}): {cause(error)}"
        ) from error


def _write_rewards(rewards: list[Any], row: NDArray[np.float32]) -> None:
    try:
        row[:] = rewards
        # The cheapest look for a NaN, which is also what NumPy makes of None.
        if row.dot(row) >= 0:
            return
    except (TypeError, ValueError, OverflowError):
        # Arrays of one number, perhaps.
        pass
    # NaN itself is stored: what becomes of it is up to the sampler's finite check.
    for index, reward in enumerate(rewards):
        row[index] = number_of(reward, index)
