"""Any `gymnasium.vector.VectorEnv` of others behind `BatchedEnv`, in every autoreset mode.

`BatchedEnv` resets in the step in which an episode ends. A vector environment in mode SAME_STEP
does so itself. In mode DISABLED the sub-environments that are done are reset here, immediately, by
``reset(options={"reset_mask": mask})``. Mode NEXT_STEP would use the following step for the reset
and ignore its action, which is not a transition. Either the sub-environments that are done are
stepped alone, which EnvPool can do, or they are reset by mask, if ``reset`` documents the mask.
Otherwise all must end at once, and that step is made here and dropped. In each case a
sub-environment continues its own random stream, and its transitions are those of the single
environment.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import (
    AsyncVectorEnv,
    AutoresetMode,
    SyncVectorEnv,
    VectorEnv,
    VectorObservationWrapper,
    VectorWrapper,
)
from gymnasium.wrappers.vector import (
    DictInfoToList,
    NormalizeObservation,
    NormalizeReward,
    RecordEpisodeStatistics,
)
from numpy.typing import NDArray

from fastrl.envs.action_masks import InfoMasks, method_masks
from fastrl.envs.actions import ActionBounds, ActionConverter
from fastrl.envs.agreement import Claim
from fastrl.envs.batched_env import Rows, StepViews
from fastrl.envs.calls import EnvCall
from fastrl.envs.lookup import takes_argument
from fastrl.envs.rows import ObservationWriter, reset_values, step_values
from fastrl.envs.state import State, layers_state, load_layers_state
from fastrl.errors import EnvError, cause
from fastrl.spaces import flatten, nested
from fastrl.spec import ACTION_MASK, EnvSpec

_PER_ENV = ("rewards", "terminated", "truncated")

Rebuild = Callable[[Sequence[int]], "VectorEnv[Any, Any, Any]"]

_ALE = "AtariVectorEnv"


class GymVector:
    """Steps a vector environment.

    Attributes:
        spec: Spaces and fields of each sub-environment.
        num_envs: Number of sub-environments, n.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        spec: EnvSpec,
        *,
        action_bounds: ActionBounds = "clip",
        rebuild: Rebuild | None = None,
    ) -> None:
        """Own ``env``, which `close` closes.

        Args:
            env: The vector environment.
            spec: Spaces and fields of each of its sub-environments.
            action_bounds: ``clip`` or ``squash`` for bounded ``Box`` actions.
            rebuild: Builds the vector environment again from one seed per sub-environment, for
                those that can be seeded only at construction, such as EnvPool's.

        Raises:
            EnvError: ``env`` has no autoreset mode, flags lost lives in a mode that overwrites
                their last observations, or is already in use.
            SpaceError: A space is unsupported, or cannot be squashed.
        """
        self.spec = spec
        self.num_envs = int(env.num_envs)
        self._claim = Claim()
        self._claim.add(env, 0)
        self._env: VectorEnv[Any, Any, Any] | None = _stepped_on(env)
        self._rebuild = rebuild
        self._mode = _autoreset_mode(env, spec.id)
        # Mode DISABLED has no other way to reset.
        is_next_step = self._mode is AutoresetMode.NEXT_STEP
        self._resets_some = not is_next_step or _takes_reset_mask(self._env)
        self._games_go_on = _flags_lost_lives(env, self._mode, spec.id)
        self._batch_actions = ActionConverter(spec.action_space, action_bounds).batch
        self._masks = InfoMasks(spec.action_space, self.num_envs)
        self._adds_masks = spec.mask_source in ("info", "method")
        self._space = spec.observation_space
        if self._adds_masks:
            # The mask is the last leaf of the specification, which is not observed.
            self._space = env.single_observation_space
        self._everyone = np.ones(self.num_envs, np.bool_)
        self._writer = ObservationWriter(self._space)

    def reset(self, seeds: Sequence[int], observation: Rows) -> None:
        """Start an episode in every sub-environment; see `BatchedEnv.reset`.

        A vector environment that takes a single seed is given the first of ``seeds``.

        Raises:
            EnvError: The vector environment raised, or its observation is invalid.
        """
        first, infos = reset_values(self._named("reset", self._begin, seeds), f"'{self.spec.id}'")
        self._write(first, infos, observation, self._everyone)

    def step(self, views: StepViews) -> None:
        """Step every sub-environment once; see `BatchedEnv.step`.

        Raises:
            EnvError: The vector environment raised or broke its contract.
        """
        actions = self._batch_actions(views.action)
        observation, reward, terminated, truncated, infos = self._stepped(actions)
        for name, value in zip(_PER_ENV, (reward, terminated, truncated), strict=True):
            if np.shape(value) != (self.num_envs,):
                raise EnvError(
                    f"'{self.spec.id}' returned {name} of shape {np.shape(value)}; "
                    f"expected ({self.num_envs},)"
                )
        np.copyto(views.reward, reward, casting="unsafe")
        np.copyto(views.terminated, terminated, casting="unsafe")
        np.greater(truncated, views.terminated, out=views.truncated)
        ended = views.terminated | views.truncated
        goes_on = self._everyone if self._mode is AutoresetMode.SAME_STEP else ~ended
        self._write(observation, infos, views.observation, goes_on)
        if not ended.any():
            return
        if self._mode is AutoresetMode.SAME_STEP:
            self._write_final(infos, ended, views.final_observation)
            return
        for rows, final in zip(views.observation, views.final_observation, strict=True):
            final[ended] = rows[ended]
        if self._games_go_on:
            ended &= views.truncated | (infos["lives"] == 0)
        if not self._resets_some and ended.all():
            self._step_on(actions, views.observation)
        elif ended.any():
            self._restart(ended, views.observation)

    def get_state(self) -> State:
        """Return the state of the vector environment and of its wrappers.

        Raises:
            StateError: The state cannot be saved.
        """
        return layers_state(self._open())

    def set_state(self, state: State) -> None:
        """Restore such a state, after a reset.

        Raises:
            StateError: The state belongs to another environment.
        """
        load_layers_state(self._open(), state)

    def make_call(self, call: EnvCall) -> None:
        """Make a call in every sub-environment, or in an object with that name that steps all.

        Raises:
            EnvError: None of them has such a method or attribute, or one raised.
        """
        layer, who = self._open(), f"'{self.spec.id}'"
        while isinstance(layer, VectorWrapper) and not hasattr(layer, call.name):
            layer = layer.env
        if not isinstance(layer, SyncVectorEnv | AsyncVectorEnv):
            call.make(layer, who)
            return
        try:
            if not all(layer.call("has_wrapper_attr", call.name)):
                raise call.missing(who)
            if call.sets:
                layer.set_attr(call.name, [call.args[0]] * self.num_envs)
            else:
                layer.call(call.name, *call.args, **call.kwargs)
        except EnvError:
            raise
        except Exception as error:
            raise call.failed(who, error) from error

    def close(self) -> None:
        """Close the vector environment; safe to call twice."""
        env, self._env = self._env, None
        self._claim.release()
        if env is not None:
            env.close()

    def _open(self) -> VectorEnv[Any, Any, Any]:
        if self._env is None:
            raise EnvError(f"'{self.spec.id}' was stepped or reset after it was closed")
        return self._env

    def _step_on(self, actions: Any, rows: Rows) -> None:
        """Make the step in which all sub-environments reset and ignore their actions."""
        observation, _, _, _, infos = self._stepped(actions)
        self._write(observation, infos, rows, self._everyone)

    def _restart(self, ended: NDArray[np.bool_], rows: Rows) -> None:
        """Reset the ended sub-environments, and write only their observations."""
        env = self._open()
        if not self._resets_some:
            raise self._inseparable("its reset does not document options['reset_mask']")
        where = "reset(options={'reset_mask': …})"
        observation, infos = self._named(where, _reset_some, env, ended)
        rows = self._observed(rows, infos, ended)
        arrays = [np.asarray(value) for value in flatten(self._space, observation)]
        indices, everyone = np.flatnonzero(ended).tolist(), range(self.num_envs)
        for number, (array, found) in enumerate(zip(rows, arrays, strict=True)):
            if found.shape == array.shape:
                fitting = self._writer.fitting(number, found, array.dtype, everyone)
                untouched = fitting[~ended].astype(array.dtype, copy=False)
                if not np.array_equal(array[~ended], untouched, equal_nan=array.dtype.kind == "f"):
                    raise self._inseparable("its reset ignores options['reset_mask']")
                array[ended] = fitting[ended]
            elif found.shape == (len(indices), *array.shape[1:]):
                array[ended] = self._writer.fitting(number, found, array.dtype, indices)
            else:
                raise EnvError(
                    f"'{self.spec.id}' returned observations of shape {found.shape} from "
                    f"reset(options={{'reset_mask': …}}); expected {array.shape}"
                )

    def _inseparable(self, what: str) -> EnvError:
        return EnvError(
            f"'{self.spec.id}' is in autoreset mode {self._mode.value} and {what}, so its "
            "transitions cannot be told from its resets; build it with autoreset_mode SameStep, "
            "or use the single environment"
        )

    def _observed(self, rows: Rows, infos: Any, needed: NDArray[np.bool_]) -> Rows:
        """Write the masks of a step or reset, if there are any; return the other rows.

        Args:
            rows: Rows of the observation.
            infos: Infos of the step or the reset, in gymnasium's vector form.
            needed: ``[n]``: environments that must have a mask.

        Raises:
            EnvError: A mask is missing or does not match the actions.
        """
        if not self._adds_masks:
            return rows
        if self.spec.mask_source == "method":
            rows[-1][...] = method_masks(self._open(), self.spec.action_space)
            return rows[:-1]
        missing = needed & ~self._masks.note(infos if isinstance(infos, Mapping) else {})
        if missing.any():
            index = int(missing.argmax())
            raise EnvError(f"env {index} gave no infos['{ACTION_MASK}'], unlike in its first reset")
        rows[-1][...] = self._masks.rows
        return rows[:-1]

    def _write(self, observation: Any, infos: Any, rows: Rows, needed: NDArray[np.bool_]) -> None:
        rows = self._observed(rows, infos, needed)
        values = flatten(self._space, observation)
        for number, (array, value) in enumerate(zip(rows, values, strict=True)):
            found = np.asarray(value)
            if found.shape != array.shape:
                raise EnvError(
                    f"'{self.spec.id}' returned observations of shape {found.shape}; "
                    f"expected {array.shape}"
                )
            fitting = self._writer.fitting(number, found, array.dtype, range(self.num_envs))
            np.copyto(array, fitting, casting="unsafe")

    def _write_final(self, infos: Any, ended: NDArray[np.bool_], rows: Rows) -> None:
        if not isinstance(infos, dict):
            raise EnvError(
                f"'{self.spec.id}' returned infos as a {type(infos).__name__}; expected a dict, "
                "so leave out DictInfoToList"
            )
        rows = rows[:-1] if self._adds_masks else rows
        found = infos.get("final_obs")
        if found is None:
            raise EnvError(
                f"'{self.spec.id}' is in autoreset mode SameStep and returned no infos['final_obs']"
            )
        if isinstance(found, np.ndarray) and found.dtype == object:
            for index in np.flatnonzero(ended).tolist():
                self._writer.write_one(index, found[index], rows)
            return
        values = flatten(self._space, found)
        indices = np.flatnonzero(ended).tolist()
        for number, (array, value) in enumerate(zip(rows, values, strict=True)):
            part = np.asarray(value)[ended]
            array[ended] = self._writer.fitting(number, part, array.dtype, indices)

    def _begin(self, seeds: Sequence[int]) -> Any:
        env = self._open()
        if self._rebuild is None:
            return env.reset(seed=_seed_argument(env, seeds))  # type: ignore[arg-type]
        env.close()
        self._env = _stepped_on(self._rebuild(seeds))
        return self._env.reset()

    def _stepped(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        return step_values(self._named("step", self._open().step, actions), f"'{self.spec.id}'")

    def _named(self, where: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return a function's result; name the environment and the call in its error."""
        try:
            return function(*arguments)
        except Exception as error:
            raise EnvError(f"'{self.spec.id}' raised in {where}: {cause(error)}") from error


def _autoreset_mode(env: VectorEnv[Any, Any, Any], name: str) -> AutoresetMode:
    mode = (env.metadata or {}).get("autoreset_mode")
    try:
        return mode if isinstance(mode, AutoresetMode) else AutoresetMode(mode)
    except ValueError:
        allowed = ", ".join(repr(known.value) for known in AutoresetMode)
        raise EnvError(
            f"'{name}' has metadata['autoreset_mode'] = {mode!r}; it must be one of {allowed}"
        ) from None


class _SteppedOn(VectorWrapper[Any, Any, Any, Any, Any]):
    """EnvPool, where a masked reset makes one more step of the selected environments.

    EnvPool can step some of its environments alone. A step after the end of an episode continues
    the same game if only a life was lost; a reset would always begin a new game.
    """

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all environments."""
        result = self.env.step(actions)
        self._actions, self._observation = actions, result[0]
        return result

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all environments, or step those of ``options["reset_mask"]`` once."""
        if not options or "reset_mask" not in options:
            return super().reset(seed=seed, options=options)
        ids = np.flatnonzero(options["reset_mask"])
        step: Any = self.env.step
        part, _, _, _, infos = step(self._actions[ids], ids)
        space = self.single_observation_space
        rows = [leaf.copy() for leaf in flatten(space, self._observation)]
        for row, new in zip(rows, flatten(space, part), strict=True):
            row[infos.get("env_id", ids)] = new
        return nested(space, rows), {}


def _stepped_on(env: VectorEnv[Any, Any, Any]) -> VectorEnv[Any, Any, Any]:
    """Return the environment, with an EnvPool beneath its wrappers replaced by `_SteppedOn`."""
    if isinstance(env, VectorWrapper):
        if not isinstance(env, _SteppedOn):
            env.env = _stepped_on(env.env)
        return env
    return _SteppedOn(env) if takes_argument(env.step, "env_id") else env


def _takes_reset_mask(env: VectorEnv[Any, Any, Any]) -> bool:
    """Return whether ``reset`` names ``reset_mask`` in its docstring or in its code."""
    base = env
    while isinstance(base, VectorWrapper) and not isinstance(base, _SteppedOn):
        base = base.env
    if isinstance(base, CartPoleVectorEnv):
        return True
    own = [vars(cls).get("reset") for cls in type(base).__mro__ if cls is not VectorEnv]
    return any(_names_reset_mask(each) for each in own if each is not None)


def _names_reset_mask(reset: Any) -> bool:
    constants = getattr(getattr(reset, "__code__", None), "co_consts", ())
    return "reset_mask" in constants or "reset_mask" in (reset.__doc__ or "")


def _flags_lost_lives(env: VectorEnv[Any, Any, Any], mode: AutoresetMode, name: str) -> bool:
    """Return whether the loss of a life ends an episode, but the game continues without a reset.

    Raises:
        EnvError: It does, but the last observations of these episodes are overwritten.
    """
    kwargs = getattr(env.unwrapped.spec, "kwargs", None) or {}
    is_ale = type(env.unwrapped).__name__ == _ALE
    if not is_ale or not kwargs.get("life_loss_info") or kwargs.get("episodic_life"):
        return False
    if mode is not AutoresetMode.NEXT_STEP:
        raise EnvError(f"'{name}': life_loss_info needs autoreset_mode NextStep")
    return True


def _seed_argument(env: VectorEnv[Any, Any, Any], seeds: Sequence[int]) -> object:
    base = env.unwrapped
    numbers = [int(seed) for seed in seeds]
    if isinstance(base, SyncVectorEnv | AsyncVectorEnv):
        return numbers
    if type(base).__name__ == _ALE:
        return np.array([number % 2**31 for number in numbers])
    return numbers[0]


def _reset_some(
    env: VectorEnv[Any, Any, Any], ended: NDArray[np.bool_]
) -> tuple[Any, dict[str, Any]]:
    """Reset the sub-environments of ``ended``; return observations of these or of all, and infos.

    The infos are those inside of `known_wrapper`.
    """
    if isinstance(env, CartPoleVectorEnv):
        return _reset_some_cartpoles(env, ended), {}
    if isinstance(env, VectorWrapper) and (wrapped := known_wrapper(env)):
        observation, infos = _reset_some(env.env, ended)
        return wrapped(env, observation, ended), infos
    result = env.reset(options={"reset_mask": ended})
    observation, infos = reset_values(result, "the environment")
    ids = infos.get("env_id")
    if ids is not None and len(ids) != len(ended) and list(ids) != sorted(ids):
        raise EnvError(f"a partial reset returned environments out of order: {list(ids)}")
    return observation, infos


def _reset_some_cartpoles(env: CartPoleVectorEnv, ended: NDArray[np.bool_]) -> NDArray[np.float32]:
    # Gymnasium's vectorised CartPole has no mask; this is the reset of its next step.
    if env.state is None:
        raise EnvError("CartPoleVectorEnv was stepped before its first reset")
    size = (4, int(ended.sum()))
    env.state[:, ended] = env.np_random.uniform(env.low, env.high, size)
    env.steps[ended] = 0
    env.prev_done[ended] = False
    return env.state.T.astype(np.float32)


Wrapped = Callable[[Any, Any, NDArray[np.bool_]], Any]
"""``(wrapper, observation, ended)``: from the observation inside a wrapper to that of the wrapper.

Observations are of all environments, or only of those that ``ended``.
"""


def known_wrapper(env: VectorWrapper[Any, Any, Any, Any, Any]) -> Wrapped | None:
    """Return a wrapper's function for a reset of some environments; None to reset it itself.

    Some of gymnasium's wrappers reject such a reset or, like `NormalizeReward`, drop their values
    of all environments. So the environment inside is reset, and here each wrapper's
    transformation is applied to the new observations and its values of these environments are
    reset. Other wrappers that override ``reset`` are passed ``options["reset_mask"]``.
    """
    return _KNOWN.get(type(env).reset)


def check_wrapper(wrapper: Any, env: Any, name: str) -> None:
    """Check that a wrapper and an environment are both of single or both of vector environments.

    Args:
        wrapper: A wrapper class; anything else is accepted.
        env: The environment.
        name: Id of the environment.

    Raises:
        EnvError: One is for single environments, and the other for vector environments.
    """
    while isinstance(wrapper, functools.partial):
        wrapper = wrapper.func
    if not inspect.isclass(wrapper):
        return
    if issubclass(wrapper, gymnasium.Wrapper) and isinstance(env, VectorEnv):
        raise EnvError(
            f"env.wrappers: {wrapper.__name__} wraps single environments and '{name}' is a vector "
            "environment; use a wrapper of gymnasium.wrappers.vector, or single environments"
        )
    if issubclass(wrapper, VectorWrapper) and not isinstance(env, VectorEnv):
        raise EnvError(
            f"env.wrappers: {wrapper.__name__} wraps vector environments and '{name}' is not one; "
            "use a wrapper of gymnasium.wrappers, or a vector environment"
        )


def _unchanged(env: Any, observation: Any, ended: NDArray[np.bool_]) -> Any:
    return observation


def _forgetting_returns(env: Any, observation: Any, ended: NDArray[np.bool_]) -> Any:
    env.accumulated_reward[ended] = 0
    env._prev_dones[ended] = 0
    return observation


def _transformed(env: Any, observation: Any, ended: NDArray[np.bool_]) -> Any:
    if not isinstance(observation, np.ndarray) or len(observation) == len(ended):
        return env.observations(observation)
    # These wrappers need observations of all; any value will do for episodes that continue.
    places = np.zeros(len(ended), np.intp)
    places[ended] = np.arange(len(observation))
    return env.observations(observation[places])[ended]


def _normalized(env: Any, observation: Any, ended: NDArray[np.bool_]) -> Any:
    """Return normalised observations; only new ones change the statistics."""
    if len(observation) != len(ended):
        return env.observations(observation)
    updates, env.update_running_mean = env.update_running_mean, False
    whole = env.observations(observation)
    env.update_running_mean = updates
    whole[ended] = env.observations(observation[ended])
    return whole


_KNOWN: dict[Any, Wrapped] = {
    NormalizeObservation.reset: _normalized,
    NormalizeReward.reset: _forgetting_returns,
    RecordEpisodeStatistics.reset: _unchanged,
    DictInfoToList.reset: _unchanged,
    VectorObservationWrapper.reset: _transformed,
    VectorWrapper.reset: _unchanged,
}
