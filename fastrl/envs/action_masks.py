"""Masks of valid actions: finds their source, and adds them to the observation.

A mask has one number for each option of `fastrl.spec.EnvSpec.choices`, 0 if it is invalid. It
is a leaf of the observation, so it is stored and reset like one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from fastrl.arguments import brief
from fastrl.envs.rows import reset_values, step_values
from fastrl.envs.wrappers import watchers
from fastrl.errors import USERS_FAILURES, EnvError, SpaceError
from fastrl.global_streams import seeded_streams
from fastrl.spaces import leaves, num_choices, unflatten
from fastrl.spec import ACTION_MASK, MaskSource

Env = gymnasium.Env[Any, Any]
METHOD = "action_masks"
PLAIN = "observation"
"""Key of an observation that is no ``Dict``, next to its mask."""

SOURCES: Mapping[MaskSource, str] = {
    "observation": f"the key '{ACTION_MASK}' of observations",
    "info": f"info['{ACTION_MASK}']",
    "method": f"the method {METHOD}()",
}
"""Sources of masks, in words."""

_MISFITS = (TypeError, ValueError, KeyError, IndexError, AttributeError)


def flat_mask(space: spaces.Space[Any], mask: Any) -> NDArray[Any]:
    """Return a mask as one array.

    Args:
        space: Action space.
        mask: One array ``[*, choices]``, or nested like the space, as gymnasium's ``sample`` takes
            it: an array for each ``Discrete`` and for each element of ``MultiDiscrete``, None
            if everything is valid.

    Returns:
        ``[*, choices]`` of whole numbers or bool.

    Raises:
        EnvError: It does not match the space.
    """
    total = sum(num_choices(space))
    flat = None if isinstance(mask, Mapping) else _array(mask)
    if flat is None or flat.shape[-1:] != (total,):
        try:
            flat = np.concatenate(list(_parts(space, mask)), axis=-1)
        except _MISFITS:
            flat = None
    if flat is not None and flat.dtype.kind == "f" and np.isin(flat, (0, 1)).all():
        flat = flat != 0
    if flat is None or flat.shape[-1:] != (total,) or flat.dtype.kind not in "biu":
        raise EnvError(
            f"{ACTION_MASK} is {brief(mask, 80)}; expected an array ({total},) of 0 and 1, one for "
            f"each action of {brief(space, 80)}, or env.action_mask=off"
        )
    return flat


def _array(mask: Any) -> NDArray[Any] | None:
    try:
        found = np.asarray(mask)
    except ValueError:
        return None
    return found if found.ndim and found.dtype.kind in "biuf" else None


def _parts(space: spaces.Space[Any], mask: Any) -> Iterator[NDArray[Any]]:
    """Yield the mask of every leaf, or of every element; raises one of `_MISFITS` for others."""
    size = sum(num_choices(space))
    if size and mask is None:
        yield np.ones(size, np.bool_)
    elif isinstance(space, spaces.Dict):
        for key, child in space.spaces.items():
            yield from _parts(child, mask.get(key))
    elif isinstance(space, spaces.Tuple):
        for child, part in zip(space.spaces, mask, strict=True):
            yield from _parts(child, part)
    elif size:
        flat = _array(mask)
        if flat is not None and flat.shape[-1] == size:
            yield flat
            return
        if not isinstance(space, spaces.MultiDiscrete):
            raise ValueError
        elements = list(_elements(mask, space.nvec.ndim))
        if [len(each) for each in elements] != space.nvec.ravel().tolist():
            raise ValueError
        yield from elements


def _elements(mask: Any, depth: int) -> Iterator[NDArray[Any]]:
    for part in mask:
        if depth > 1:
            yield from _elements(part, depth - 1)
        else:
            yield np.asarray(part)


def valid_sample(space: spaces.Space[Any], mask: NDArray[Any], uniform: Iterator[float]) -> Any:
    """Return a random action, each valid option equally probable.

    Args:
        space: Action space; its leaves without options are sampled.
        mask: ``[choices]``; if nothing is valid, the first option is used.
        uniform: Random numbers in [0, 1), one for each choice.
    """
    start = 0

    def option(size: int) -> int:
        nonlocal start
        valid = mask[start : start + size].nonzero()[0]
        start += size
        return int(valid[int(next(uniform) * len(valid))]) if len(valid) else 0

    def drawn(part: spaces.Space[Any]) -> Any:
        if isinstance(part, spaces.Discrete):
            return part.start + option(int(part.n))
        if isinstance(part, spaces.MultiDiscrete):
            options = [option(int(size)) for size in part.nvec.flat]
            return part.start + np.array(options, part.dtype).reshape(part.shape)
        if isinstance(part, spaces.Dict):
            return {key: drawn(child) for key, child in part.spaces.items()}
        return tuple(map(drawn, part.spaces)) if isinstance(part, spaces.Tuple) else part.sample()

    return drawn(space)


def uniform_numbers() -> Iterator[float]:
    """Yield 1,024 random numbers in [0, 1) repeatedly, the same in every call."""
    return itertools.cycle(np.random.default_rng(0).random(1024).tolist())


def random_actions(env: Env, info: Mapping[str, Any]) -> Callable[[Any, Mapping[str, Any]], Any]:
    """Return a function from the last observation and info to a random action, valid if masked.

    Args:
        env: Environment after a reset.
        info: Info of the reset.
    """
    env.action_space.seed(0)
    samples = itertools.cycle([env.action_space.sample() for _ in range(50)])
    uniform, space = uniform_numbers(), env.action_space
    source = None
    with suppress(EnvError):  # something else has this name
        source = source_of(env, info)
    if source is None:
        return lambda observation, info: next(samples)
    masks = env.get_wrapper_attr(METHOD) if source == "method" else None

    def draw(observation: Any, info: Mapping[str, Any]) -> Any:
        if masks is not None:
            mask = masks()
        else:
            mask = (observation if source == "observation" else info)[ACTION_MASK]
        return valid_sample(space, flat_mask(space, mask), uniform)

    return draw


def with_mask(observation: spaces.Space[Any], action: spaces.Space[Any]) -> spaces.Dict:
    """Return an observation space with a mask of the actions as its last leaf."""
    mask = (ACTION_MASK, spaces.MultiBinary(sum(num_choices(action))))
    if isinstance(observation, spaces.Dict):
        return spaces.Dict([*observation.spaces.items(), mask])
    # Pairs keep their order; a mapping would be sorted.
    return spaces.Dict([(PLAIN, observation), mask])


def observes_mask(env: Any) -> bool | None:
    """Return whether an environment observes a mask; None if its actions cannot have one.

    It may be a single or a vector environment.
    """
    try:
        kind = "single_" if isinstance(env, VectorEnv) else ""
        seen, action = (getattr(env, f"{kind}{x}_space") for x in ("observation", "action"))
        if not num_choices(action):
            return None
    except (AttributeError, SpaceError):  # reported when the spaces are needed
        return None
    return isinstance(seen, spaces.Dict) and ACTION_MASK in seen.spaces


def find_source(env: Any) -> MaskSource:
    """Return the source of an environment's masks; reset it, unless it observes them.

    It is ``observation`` also without masks. It may be a single or a vector environment.

    Raises:
        EnvError: A mask does not match the actions.
    """
    if observes_mask(env) is not False:
        return "observation"
    try:
        with seeded_streams(0):
            _, info = env.reset(seed=0)
    except USERS_FAILURES:  # its first reset reports the failure
        info = {}
    return source_of(env, info) or "observation"


def source_of(env: Any, info: Any) -> MaskSource | None:
    """Return the source of the masks of a single or vector environment; None without masks.

    Args:
        env: The environment.
        info: Info of a reset.

    Raises:
        EnvError: A mask does not match the actions.
    """
    observes = observes_mask(env)
    if observes is not False:
        return "observation" if observes else None
    if isinstance(info, Mapping) and ACTION_MASK in info:
        if not isinstance(env, VectorEnv):
            flat_mask(env.action_space, info[ACTION_MASK])
        return "info"
    return "method" if has_method(env) else None


def has_method(env: Any) -> bool:
    """Return whether a single or vector environment has the method `METHOD`."""
    if not isinstance(env, VectorEnv):
        return env.has_wrapper_attr(METHOD) and callable(env.get_wrapper_attr(METHOD))
    base = env.unwrapped
    if isinstance(base, SyncVectorEnv | AsyncVectorEnv):
        return all(base.call("has_wrapper_attr", METHOD))
    return callable(getattr(base, METHOD, None))


def masked(env: Env, source: MaskSource | None) -> Env:
    """Return an environment that observes its masks as one array, inside its time limit."""
    if source is None or (source == "observation" and (not observes_mask(env) or _is_flat(env))):
        return env
    outer = watchers(env)
    if not outer:
        return MaskInObservation(env, source)
    outer[-1].env = MaskInObservation(outer[-1].env, source)
    return env


def _is_flat(env: Env) -> bool:
    mask: Any = env.observation_space.spaces[ACTION_MASK]  # type: ignore[attr-defined]
    size = sum(num_choices(env.action_space))
    return bool(mask.shape == (size,) and mask.dtype.kind in "biu")


class MaskInObservation(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Adds the mask of valid actions to the observation, as one array of bits.

    Args:
        env: The environment.
        source: Source of its masks.
    """

    def __init__(self, env: Env, source: MaskSource) -> None:
        super().__init__(env)
        self._source = source
        self._shape = (sum(num_choices(env.action_space)),)
        seen = env.observation_space
        self._is_dict = isinstance(seen, spaces.Dict)
        if source == "observation":
            assert isinstance(seen, spaces.Dict)
            mask = seen.spaces[ACTION_MASK]
            zeros = {path: np.zeros(leaf.shape or ()) for path, leaf in leaves(mask).items()}
            flat_mask(env.action_space, unflatten(mask, zeros))  # raises if it does not match
            flat = spaces.MultiBinary(self._shape[0])
            self.observation_space = spaces.Dict(
                [(key, flat if key == ACTION_MASK else each) for key, each in seen.spaces.items()]
            )
        else:
            self.observation_space = with_mask(seen, env.action_space)
        if source == "method":
            self._masks: Callable[[], Any] = env.get_wrapper_attr(METHOD)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        given = {} if options is None else {"options": options}
        observation, info = reset_values(self.env.reset(seed=seed, **given), "the environment")
        return self._joined(observation, info, False), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step once."""
        result = step_values(self.env.step(action), "the environment")
        observation, reward, terminated, truncated, info = result
        is_over = bool(terminated or truncated)
        return self._joined(observation, info, is_over), reward, terminated, truncated, info

    def _joined(self, observation: Any, info: dict[str, Any], is_over: bool) -> dict[str, Any]:
        mask: Any
        if self._source == "method":
            mask = self._masks()
        elif self._source == "info":
            mask = info.get(ACTION_MASK)
            if mask is None:
                if not is_over:
                    raise EnvError(
                        f"its info has no '{ACTION_MASK}', unlike that of its first reset"
                    )
                mask = np.zeros(self._shape, np.bool_)
        else:
            mask = observation[ACTION_MASK]
        is_flat = type(mask) is np.ndarray and mask.shape == self._shape
        if not is_flat or mask.dtype.kind == "f":
            mask = flat_mask(self.env.action_space, mask)
        if self._is_dict:
            return {**observation, ACTION_MASK: mask}
        return {PLAIN: observation, ACTION_MASK: mask}


class InfoMasks:
    """The latest masks in infos of n environments, in gymnasium's vector form.

    Attributes:
        problem: Error of the latest masks; None if they are valid.

    Args:
        space: Action space of one environment.
        num_envs: n.
    """

    def __init__(self, space: spaces.Space[Any], num_envs: int) -> None:
        self._space, self._num_envs = space, num_envs
        self._rows: NDArray[np.bool_] | None = None
        self.problem: EnvError | None = None

    @property
    def rows(self) -> NDArray[np.bool_] | None:
        """``[n, choices] bool``; None if infos had none.

        Raises:
            EnvError: They do not match the actions.
        """
        if self.problem is not None:
            raise self.problem
        return self._rows

    def note(
        self, infos: Mapping[str, Any], ids: NDArray[np.int64] | None = None
    ) -> NDArray[np.bool_]:
        """Store the masks of a step or a reset; return flags of the environments that had one.

        Args:
            infos: Infos of the step or the reset.
            ids: ``[k]``: environments of the k rows in ``infos``; by default all.
        """
        ids = np.arange(self._num_envs) if ids is None else ids
        found = infos.get(ACTION_MASK)
        if found is None:
            return np.zeros(len(ids), np.bool_)
        has = np.asarray(infos.get(f"_{ACTION_MASK}", np.ones(len(ids), np.bool_)))
        try:
            size = sum(num_choices(self._space))
            if self._rows is None:
                self._rows = np.ones((self._num_envs, size), np.bool_)
            if isinstance(found, np.ndarray) and found.shape == (len(ids), size):
                self._rows[ids[has]] = found[has] != 0
            else:
                for index in np.flatnonzero(has).tolist():
                    self._rows[ids[index]] = flat_mask(self._space, found[index]) != 0
        except (EnvError, SpaceError) as error:
            self.problem = EnvError(str(error))
        return has


def method_masks(env: Any, space: spaces.Space[Any]) -> NDArray[np.bool_]:
    """Return the masks of a vector environment with the method `METHOD`, ``[n, choices] bool``.

    Args:
        env: The vector environment, whose environments or which itself has the method.
        space: Action space of one environment.

    Raises:
        EnvError: A mask does not match the actions.
    """
    base = env.unwrapped
    is_of_each = isinstance(base, SyncVectorEnv | AsyncVectorEnv)
    masks = base.call(METHOD) if is_of_each else getattr(base, METHOD)()
    return np.stack([flat_mask(space, mask) != 0 for mask in masks])
