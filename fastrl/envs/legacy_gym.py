"""Adapts environments written for gym up to 0.26, the predecessor of gymnasium.

Old environments are recognised by their attributes, so gym need not be installed: it is any
object with ``reset``, ``step`` and the two spaces, and gym's classes are recognised by name.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec as GymnasiumSpec
from gymnasium.utils import seeding
from gymnasium.wrappers import TimeLimit

from fastrl.envs.lookup import takes_argument
from fastrl.errors import USERS_FAILURES, EnvError, SpaceError

_WATCHING = frozenset({"TimeLimit", "OrderEnforcing", "PassiveEnvChecker"})


class LegacyGymEnv(gymnasium.Env[Any, Any]):
    """Presents an old environment as a gymnasium environment.

    Both protocols are understood, also mixed: ``reset`` returning an observation (gym 0.21) or
    a pair with ``info`` (0.26), ``step`` returning four values or five. Of four, ``done`` is a
    truncation if ``info["TimeLimit.truncated"]`` is set, and a termination otherwise.

    Attributes of the old environment and of its wrappers, private ones as well, can be read here
    from this adapter; `set_wrapper_attr` sets them on the object that has them.
    """

    def __init__(self, env: Any, render_mode: str | None = None) -> None:
        """Wrap ``env`` and convert its spaces.

        ``render_mode`` is for environments with ``render(mode)``.

        Raises:
            SpaceError: A space is of a kind that gymnasium does not have.
        """
        self.env = env
        self._layers = tuple(_layers(env))
        base = self._layers[-1]
        with OLD_NUMPY:
            self.observation_space = convert_space(env.observation_space)
            self.action_space = convert_space(env.action_space)
            self.metadata = _metadata(getattr(env, "metadata", None) or {})
            own_mode = getattr(env, "render_mode", None)
            old: Any = getattr(env, "spec", None)
        self.render_mode = own_mode or render_mode
        render: Any = getattr(base, "render", None)
        self._draws_by_mode = own_mode is None and takes_argument(render, "mode")
        if isinstance(getattr(old, "id", None), str):
            limit = getattr(old, "max_episode_steps", None) or self.time_limit
            self.spec = GymnasiumSpec(old.id, max_episode_steps=limit)
        # The outermost layer that passes a seed to the environment itself.
        self._seeded: Any = next(
            (each for each in self._layers if _all_take(_layers(each), "seed")), None
        )
        self._names_seed = takes_argument(base.reset, "seed")

    @property
    def time_limit(self) -> int | None:
        """The shortest time limit among the old environment's wrappers, in steps."""
        limits = [getattr(each, "_max_episode_steps", None) for each in self._time_limits()]
        return min((limit for limit in limits if limit is not None), default=None)

    def limit_time(self, steps: int) -> None:
        """Set this time limit in all of the old environment's wrappers that have one."""
        for each in self._time_limits():
            each._max_episode_steps = steps
        if self.spec is not None:
            self.spec.max_episode_steps = steps

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode; an environment that cannot be seeded ignores ``seed``.

        Raises:
            EnvError: The environment takes no ``options``.
        """
        arguments: dict[str, Any] = {}
        if options:
            if not _all_take(self._layers, "options"):
                raise EnvError(f"reset of {self.env} takes no options, got {options}")
            arguments["options"] = options
        with OLD_NUMPY:
            result = (
                self.env.reset(**arguments) if seed is None else self._reset(int(seed), arguments)
            )
        return result if self._is_pair(result) else (result, {})

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step once; any result but one of four values is returned unchanged."""
        with OLD_NUMPY:
            result = self.env.step(action)
        if not (isinstance(result, tuple | list) and len(result) == 4):
            return result  # type: ignore[no-any-return]
        observation, reward, done, info = result
        truncated = bool(done) and bool(info.get("TimeLimit.truncated", False))
        return observation, reward, bool(done) and not truncated, truncated, info

    def render(self) -> Any:
        """Return the picture of the old environment."""
        with OLD_NUMPY:
            if self._draws_by_mode and self.render_mode is not None:
                return self.env.render(mode=self.render_mode)
            return self.env.render()

    def close(self) -> None:
        """Close the old environment, if it can be closed."""
        with OLD_NUMPY:
            if callable(getattr(self.env, "close", None)):
                self.env.close()

    @property
    def unwrapped(self) -> gymnasium.Env[Any, Any]:
        """This adapter, as no object inside is a gymnasium environment."""
        return self

    @property
    def np_random(self) -> Any:
        """The random stream of the old environment, or a new one if it has none."""
        found = getattr(self.env, "np_random", None)
        return super().np_random if found is None else found

    @np_random.setter
    def np_random(self, value: Any) -> None:
        self.env.np_random = value

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the old environment, or of the wrapper that has it.

        Raises:
            AttributeError: None has it.
        """
        if not name.startswith("__"):
            for layer in self.__dict__.get("_layers", ()):
                if _has(layer, name):
                    return getattr(layer, name)
            if not name.startswith("_") and "env" in self.__dict__:
                return getattr(self.env, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def set_wrapper_attr(self, name: str, value: Any, *, force: bool = True) -> bool:
        """Set an attribute of the old environment, or of the wrapper that has it."""
        if name in self.__dict__ or hasattr(type(self), name):
            setattr(self, name, value)
            return True
        layer = next((each for each in self._layers if _has(each, name)), None)
        if layer is None and not (force or hasattr(self, name)):
            return False
        setattr(self._layers[-1] if layer is None else layer, name, value)
        return True

    def _reset(self, seed: int, arguments: dict[str, Any]) -> Any:
        """Reset with a seed, by the environment's way of seeding."""
        old_way = callable(getattr(self.env, "seed", None))
        if old_way and not self._names_seed:
            self.env.seed(seed)
        if self._seeded is self.env:
            try:
                return self.env.reset(seed=seed, **arguments)
            except TypeError as error:
                # A function that accepts any keyword may pass this one to another that does not.
                if self._names_seed or "seed" not in str(error):
                    raise
                self._seeded = None
        if self._seeded is not None:
            self._seeded.reset(seed=seed)
        elif not old_way and isinstance(
            getattr(type(self._layers[-1]), "np_random", None), property
        ):
            self._layers[-1].np_random = seeding.np_random(seed)[0]
        return self.env.reset(**arguments)

    def _time_limits(self) -> list[Any]:
        return [each for each in self._layers if _is_class_of(type(each), "TimeLimit")]

    def _is_pair(self, result: Any) -> bool:
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
            return False
        # An observation may have the same form.
        space = self.observation_space
        return not (isinstance(space, spaces.Tuple) and space.contains(result))


def is_legacy_env(env: object) -> bool:
    """Return whether ``env`` looks like one environment, but not one of gymnasium's.

    Some of gym's wrappers have a ``num_envs`` around a single environment.
    """
    if isinstance(env, gymnasium.Env | gymnasium.vector.VectorEnv):
        return False
    names = ("reset", "step", "observation_space", "action_space")
    if not all(hasattr(env, name) for name in names):
        return False
    return not _has(list(_layers(env))[-1], "num_envs")


def build_legacy(
    create: Callable[..., Any], kwargs: Mapping[str, Any], max_episode_steps: int | None = None
) -> Any:
    """Build an environment; adapt an old one, and return any other unchanged.

    Gym's own outer time limit, order enforcer and checker are removed: the time limit
    becomes gymnasium's, which ``max_episode_steps`` changes, and nothing is checked in every step.
    An old environment that does not take ``render_mode`` is built without it, and drawn by
    ``render(mode)``.
    """
    with OLD_NUMPY:
        env = _built_with_or_without_mode(create, kwargs)
        if not is_legacy_env(env):
            return env
        return _adapted(env, kwargs.get("render_mode"), max_episode_steps)


def _adapted(env: Any, render_mode: str | None, limit: int | None) -> gymnasium.Env[Any, Any]:
    """Return an old environment as one of gymnasium's; see `build_legacy`."""
    own = []
    while type(env).__name__ in _WATCHING and type(env).__module__.startswith("gym."):
        if (steps := vars(env).get("_max_episode_steps")) is not None:
            own.append(steps)
        env = env.env
    adapter = LegacyGymEnv(env, render_mode)
    if limit is None:
        limit = min(own, default=None)
    else:
        adapter.limit_time(limit)
    return adapter if limit is None else TimeLimit(adapter, limit)


def wrapped_by(wrap: Callable[[Any], Any], env: Any) -> Any:
    """Apply a wrapper to an environment; old gym's wrappers wrap the old environment itself.

    A function is called with the adapted environment, and if it raises, as old gym's wrappers do
    for gymnasium's spaces, with the old one.
    """
    limit = env._max_episode_steps if type(env) is TimeLimit else None
    adapter = env if limit is None else env.env
    with OLD_NUMPY:
        if not isinstance(adapter, LegacyGymEnv):
            return _adapted_if_old(wrap(env))
        if not _is_old_wrapper(wrap):
            try:
                return _adapted_if_old(wrap(env))
            except USERS_FAILURES:
                if isinstance(wrap, type):
                    raise
        wrapped = LegacyGymEnv(wrap(adapter.env), adapter.render_mode)
    if limit is None:
        return wrapped
    return TimeLimit(wrapped, min(limit, wrapped.time_limit or limit))


def convert_space(space: Any) -> spaces.Space[Any]:
    """Return the gymnasium space that equals an old space, found by the names of its classes.

    Raises:
        SpaceError: No class of ``space`` has the name of a known space.
    """
    if isinstance(space, spaces.Space):
        return space
    for cls in type(space).__mro__:
        # Crafter names its stand-ins BoxSpace and DiscreteSpace.
        convert = _CONVERTERS.get(cls.__name__.removesuffix("Space"))
        if convert is not None:
            return convert(space)
    raise SpaceError(f"unsupported space {space!r}; supported are {', '.join(_CONVERTERS)}")


def _adapted_if_old(env: Any) -> Any:
    awaited = inspect.iscoroutinefunction(getattr(env, "step", None))
    return LegacyGymEnv(env) if is_legacy_env(env) and not awaited else env


def _built_with_or_without_mode(create: Callable[..., Any], kwargs: Mapping[str, Any]) -> Any:
    try:
        return create(**kwargs)
    except TypeError as error:
        if "render_mode" not in kwargs or "render_mode" not in str(error):
            raise
        rest = {name: value for name, value in kwargs.items() if name != "render_mode"}
        env = create(**rest)
        if is_legacy_env(env):
            return env
        env.close()
        raise


def _layers(env: Any) -> Iterator[Any]:
    """Yield an old environment with its layers, the outermost first."""
    yield env
    while _is_class_of(type(env), "Wrapper"):
        env = env.env
        yield env


def _is_old_wrapper(wrap: Any) -> bool:
    while isinstance(wrap, partial):
        wrap = wrap.func
    return (
        isinstance(wrap, type)
        and not issubclass(wrap, gymnasium.Env)
        and _is_class_of(wrap, "Wrapper")
    )


def _is_class_of(cls: type, name: str) -> bool:
    """Return whether a class or one of its bases has a name."""
    return any(each.__name__ == name for each in cls.__mro__)


def _has(layer: Any, name: str) -> bool:
    """Return whether an object itself has an attribute, not only through ``__getattr__``."""
    return name in getattr(layer, "__dict__", ()) or hasattr(type(layer), name)


def _all_take(layers: Iterable[Any], name: str) -> bool:
    """Return whether ``reset`` of every layer takes a keyword argument."""
    return all(takes_argument(each.reset, name, by_any_name=True) for each in layers)


def _metadata(old: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata with gymnasium's names added."""
    names = {"render.modes": "render_modes", "video.frames_per_second": "render_fps"}
    return {names[name]: value for name, value in old.items() if name in names} | dict(old)


def _box(space: Any) -> spaces.Space[Any]:
    dtype = np.dtype(space.dtype)
    low, high = (
        np.broadcast_to(bound, space.shape).astype(dtype) for bound in (space.low, space.high)
    )
    return spaces.Box(low, high, tuple(space.shape), dtype=dtype.type)


_CONVERTERS: dict[str, Callable[[Any], spaces.Space[Any]]] = {
    "Box": _box,
    "Discrete": lambda space: spaces.Discrete(int(space.n), start=int(getattr(space, "start", 0))),
    "MultiDiscrete": lambda space: spaces.MultiDiscrete(np.asarray(space.nvec)),
    "MultiBinary": lambda space: spaces.MultiBinary(space.n),
    "Dict": lambda space: spaces.Dict(
        [(name, convert_space(child)) for name, child in space.spaces.items()]
    ),
    "Tuple": lambda space: spaces.Tuple([convert_space(child) for child in space.spaces]),
}


_REMOVED: Mapping[str, Any] = {
    "bool8": np.bool_,
    "int": int,
    "float": float,
    "complex": complex,
    "object": object,
    "str": str,
    "int0": np.intp,
    "uint0": np.uintp,
    "float_": np.float64,
    "complex_": np.complex128,
    "string_": np.bytes_,
    "unicode_": np.str_,
    "Inf": np.inf,
    "Infinity": np.inf,
    "infty": np.inf,
    "PINF": np.inf,
    "NINF": -np.inf,
    "NaN": np.nan,
    "NAN": np.nan,
    "alltrue": np.all,
    "sometrue": np.any,
    "product": np.prod,
    "cumproduct": np.cumprod,
    "round_": np.round,
}


class _OldNumpy(threading.local):
    """Provides the names that NumPy 2 removed to the thread inside of the context.

    Gym 0.26 itself uses ``np.bool8`` in its checker and ``np.float_`` in its Acrobot. The context
    may be nested.
    """

    depth = 0

    def __enter__(self) -> None:
        _extend_numpy()
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1


OLD_NUMPY = _OldNumpy()


@cache
def _extend_numpy() -> None:
    """Add the removed names to NumPy's lookup of missing attributes; other errors stay."""
    missing = vars(np)["__getattr__"]

    def look_up(name: str) -> Any:
        return _REMOVED[name] if OLD_NUMPY.depth and name in _REMOVED else missing(name)

    vars(np)["__getattr__"] = look_up
