"""The only place that builds an environment from an id.

An id is one of

- an id of a family: those of fastrl are in `fastrl.envs.families`, others are registered by
  ``fastrl.register("environments", …)``; see `fastrl.envs.family`;
- a registered gymnasium id, ``CartPole-v1``, or ``module:Id`` if importing the module registers
  it;
- a factory ``package.module:function``, ``__main__:function`` of the script itself, or a callable.
  It is called with the keyword arguments, with ``num_envs`` and ``seeds`` if it has such
  parameters, and with ``max_episode_steps`` and ``randomize`` if it has them and they are
  configured. It returns a gymnasium or old gym environment, a `gymnasium.vector.VectorEnv`, a
  `BatchedEnv` or a `DeviceEnv`, for which it may take an argument ``device``. An attribute
  ``single``, if any, builds the single environments for recordings;
- a specification of gymnasium's, which need not be registered.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypeGuard, cast, get_args

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec as GymnasiumSpec
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from fastrl.arguments import at_least_one, brief, nearest, one_of, whole
from fastrl.closing import build_all, closing_on_error
from fastrl.envs.action_masks import (
    METHOD,
    find_source,
    has_method,
    masked,
    observes_mask,
    with_mask,
)
from fastrl.envs.actions import ActionBounds, ActionConverter
from fastrl.envs.agreement import spaces_of
from fastrl.envs.batched_env import BatchedEnv
from fastrl.envs.device_env import DeviceBatch, DeviceEnv
from fastrl.envs.family import Family, family_of, own_families
from fastrl.envs.gym_loop import GymLoop
from fastrl.envs.gym_vector import GymVector, check_wrapper
from fastrl.envs.legacy_gym import OLD_NUMPY, LegacyGymEnv, build_legacy, wrapped_by
from fastrl.envs.lookup import (
    callee,
    check_call,
    factory,
    of_script,
    registered_spec,
    takes_argument,
)
from fastrl.envs.previous_step import BatchWithPrevious, PreviousActionReward, spec_with_previous
from fastrl.envs.spare_envs import SpareLoop
from fastrl.envs.wrappers import peel, running_statistics, with_time_limit
from fastrl.errors import USERS_FAILURES, ArgumentError, EnvError, FastrlError, cause
from fastrl.global_streams import seeded_streams
from fastrl.imports import running_script
from fastrl.spec import ACTION_MASK, EnvSpec, MaskSource
from fastrl.system import draw_without_screen

if TYPE_CHECKING:
    from fastrl.config import EnvConfig

Env = gymnasium.Env[Any, Any]
Wrapper = str | Mapping[str, Any] | Callable[..., Any]

for _family in own_families():
    _family.register()


@dataclass(frozen=True)
class EnvFactory:
    """Builds environments of one id; sent to workers by cloudpickle.

    Attributes:
        id: Id of the environment; see this module's docstring.
        kwargs: Keyword arguments for the environment.
        wrappers: Wrappers ``package.module:callable``, mappings of such a ``path`` and of
            ``kwargs``, or callables, applied in this order, the last outermost.
        max_episode_steps: Time limit in steps, inside the wrappers; None keeps the id's own.
        action_bounds: ``clip`` or ``squash`` for bounded ``Box`` actions.
        randomize: For fastrl's own environments that have parameters, and for factories that take
            an argument of this name; rejected for other ids.
        episode_info: Names of values in the info of an episode's last step, besides those that
            the environment itself names in ``metadata["episode_info"]``; see `EnvSpec`.
        previous_action_reward: Add the previous action and reward to observations, outside of the
            wrappers; see `fastrl.envs.previous_step`.
        action_mask: Source of masks of valid actions, or ``off``. ``auto`` searches for them:
            in the key ``action_mask`` of observations, then of infos, which takes a reset, and in
            a method ``action_masks()``.
        spare_envs: Number of further single environments of `batched`, which are reset in the
            background; see `fastrl.envs.spare_envs`.
        must_be_on_device: Reject environments that are not a `DeviceEnv`.
        family: Family of the id; None if gymnasium or a factory builds it.
        registered: Registration of the id with gymnasium; None if there is none, or a
            module other than the script is imported for it.
    """

    id: str | GymnasiumSpec | Callable[..., Any]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    wrappers: Sequence[Wrapper] = ()
    max_episode_steps: int | None = None
    action_bounds: ActionBounds = "clip"
    randomize: Mapping[str, Any] = field(default_factory=dict)
    episode_info: Sequence[str] = ()
    previous_action_reward: bool = False
    action_mask: Literal["auto", "off"] | MaskSource = "auto"
    spare_envs: int = 0
    must_be_on_device: bool = False
    # Pickled with the factory, as workers lack the registrations of the script.
    family: Family | None = field(init=False, repr=False, compare=False)
    registered: GymnasiumSpec | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the arguments, and replace paths into the running script; see `of_script`.

        Raises:
            EnvError: An argument has a wrong type.
            ConfigError: The family of a plug-in cannot be imported, or is not a `Family`.
        """
        _check_arguments(self)
        object.__setattr__(self, "id", of_script(self.id))
        object.__setattr__(self, "family", family_of(self.id))
        object.__setattr__(self, "registered", _registered(self.id))
        object.__setattr__(self, "wrappers", tuple(of_script(each) for each in self.wrappers))

    @classmethod
    def from_config(cls, config: EnvConfig) -> EnvFactory:
        """Return the factory for the configuration's section ``env``."""
        names = (each.name for each in dataclasses.fields(cls) if hasattr(config, each.name))
        given = {name: getattr(config, name) for name in names}
        wrappers = (each if isinstance(each, str) else dict(each) for each in config.wrappers)
        return cls(**{**given, "wrappers": tuple(wrappers)})

    def with_masks_of(self, spec: EnvSpec) -> Self:
        """Return this factory with the masks of a probe, to avoid another search."""
        known = "off" if spec.action_mask is None else spec.mask_source
        return dataclasses.replace(self, action_mask=known or "off")

    @property
    def name(self) -> str:
        """The id, or the import path of the callable."""
        if isinstance(self.id, str):
            return self.id
        if isinstance(self.id, GymnasiumSpec):
            return self.id.id
        called: Any = self.id
        while isinstance(called, partial):
            called = called.func
        return f"{called.__module__}:{getattr(called, '__qualname__', type(called).__name__)}"

    @property
    def is_native(self) -> bool:
        """Whether its family steps n environments at a time."""
        return self.family is not None and self.family.batched

    @property
    def is_custom(self) -> bool:
        """Whether a plug-in's family or a factory builds it."""
        return self.family not in own_families() and self._function is not None

    def on_device(self, num_envs: int, device: torch.device) -> DeviceEnv:
        """Build ``num_envs`` environments on a device.

        Raises:
            EnvError: They cannot be built, or are not a `DeviceEnv`.
            SpaceError: A space is unsupported, or its actions cannot be squashed.
        """
        batch = self._build(num_envs, device=device)
        with closing_on_error(batch):
            batch.env.spec = self._spec(batch, self._source(batch))
        return cast("DeviceEnv", batch.env)

    def single(self, **kwargs: Any) -> Env:
        """Build one gymnasium environment, with its time limit, to evaluate or to record.

        Keyword arguments replace the factory's own, ``render_mode`` for instance.

        Raises:
            EnvError: It cannot be built, or is a vector environment.
        """
        other = copy.copy(self)
        object.__setattr__(other, "kwargs", {**self.kwargs, **kwargs})
        env = other._build(1, single=True)
        if _is_single(env):
            with closing_on_error(env):
                env = masked(env, self._source(env))
                return PreviousActionReward(env) if self.previous_action_reward else env
        env.close()
        raise EnvError(f"'{self.name}' is a vector environment; it has no single environments")

    def batched(self, num_envs: int, begun: NDArray[np.int64] | None = None) -> BatchedEnv:
        """Build ``num_envs`` environments that are stepped together.

        ``begun``, ``[1]`` int64, is increased by 1 for each single environment built or reset.

        Raises:
            EnvError: They cannot be built; the error says what would be right.
            SpaceError: A space is unsupported, or its actions cannot be squashed.
        """
        num_envs = at_least_one("num_envs", num_envs)
        env = self._build(num_envs)
        begun = np.zeros(1, np.int64) if begun is None else begun
        with closing_on_error(env):
            batch = self._batched(env, num_envs, begun)
            previous = self.previous_action_reward
            return BatchWithPrevious(batch, self.action_bounds) if previous else batch

    def _batched(
        self,
        env: Any,
        num_envs: int,
        begun: NDArray[np.int64],
    ) -> BatchedEnv:
        source = self._source(env)
        if _is_single(env):
            env = masked(env, source)
        spec = self._spec(env, source)
        if _is_single(env):
            begun += 1
            others = build_all(
                self._build_like_the_first(i, begun if i < num_envs else begun.copy(), source)
                for i in range(1, num_envs + self.spare_envs)
            )
            with closing_on_error(*others):
                return self._loop([env, *others], num_envs, spec, begun)
        if env.num_envs != num_envs:
            raise EnvError(
                f"'{self.name}' has {env.num_envs} environments, but {num_envs} were "
                "requested; let the factory take the argument num_envs"
            )
        if isinstance(env, VectorEnv):
            function = self._function
            seeded_when_built = function is not None and takes_argument(function, "seeds")
            rebuild = partial(self._build, num_envs) if seeded_when_built else None
            return GymVector(env, spec, action_bounds=self.action_bounds, rebuild=rebuild)
        return cast("BatchedEnv", env)

    def _build_like_the_first(
        self, index: int, begun: NDArray[np.int64], source: MaskSource | None
    ) -> Env:
        env = self._build(1)
        if _is_single(env):
            begun += 1
            with closing_on_error(env):
                return masked(env, source)
        env.close()
        raise EnvError(
            f"env {index} of '{self.name}' is a {type(env).__name__}, the first is a single "
            "environment; the factory must always return the same kind"
        )

    def _loop(
        self, envs: Sequence[Env], num_envs: int, spec: EnvSpec, begun: NDArray[np.int64]
    ) -> GymLoop:
        peeled = [peel(env) for env in envs]
        build = partial(SpareLoop, num_envs=num_envs) if self.spare_envs else GymLoop
        return build(
            [env for env, _ in peeled],
            spec,
            time_limits=[limit for _, limit in peeled],
            action_bounds=self.action_bounds,
            begun=begun,
        )

    def probe(self) -> EnvSpec:
        """Build one environment, return its spaces and time limit, and close it.

        Raises:
            EnvError: It cannot be built.
            SpaceError: A space is unsupported, or its actions cannot be squashed.
        """
        with self.probing() as spec:
            return spec

    @contextmanager
    def probing(self) -> Iterator[EnvSpec]:
        """Build one environment, yield the result of `probe`, and close it after the block."""
        env = self._build(1)
        try:
            if self.action_mask == "auto":
                found = "observation" if _is_batched(env) else find_source(env)
                object.__setattr__(self, "_found", found)
            source = self._source(env)
            spec = self._spec(masked(env, source) if _is_single(env) else env, source)
            yield spec_with_previous(spec) if self.previous_action_reward else spec
        finally:
            with suppress(*USERS_FAILURES):  # the result is already known
                env.close()

    def _source(self, env: Any) -> MaskSource | None:
        """Return the source of an environment's masks; probe another one if that needs a reset.

        Raises:
            EnvError: The configured source does not exist.
        """
        spaces_owner = env.spec if _is_batched(env) else env
        if self.action_mask == "observation" and not observes_mask(spaces_owner):
            raise EnvError(
                f"env.action_mask: observations of '{self.name}' have no key '{ACTION_MASK}' for "
                "discrete actions; other values are auto, info, method and off"
            )
        if self.action_mask == "method" and not (_is_batched(env) or has_method(env)):
            raise EnvError(f"env.action_mask: '{self.name}' has no method {METHOD}()")
        if self.action_mask != "auto":
            return None if self.action_mask == "off" else self.action_mask
        if _is_batched(env) or observes_mask(env) is not False:
            return "observation"
        if "_found" not in self.__dict__:
            with seeded_streams(0):  # the caller's streams do not change
                self.probe()
        return cast("MaskSource", self.__dict__["_found"])

    def _spec(self, env: Any, source: MaskSource | None) -> EnvSpec:
        if self.spare_envs and not _is_single(env):
            raise EnvError(
                f"sampler.spare_envs: must be 0 for '{self.name}', which is stepped in batches and "
                "begins its episodes itself"
            )
        if _is_batched(env):
            spec = dataclasses.replace(env.spec, mask_source=source)
        else:
            seen, action = spaces_of(env, self.name)
            names: tuple[str, ...] = ()
            if isinstance(env, VectorEnv):
                limit = _vector_time_limit(env)
                if source in ("info", "method"):
                    seen = with_mask(seen, action)
            else:
                limit = getattr(env.spec, "max_episode_steps", None) or peel(env)[1]
                if limit is None and isinstance(env.unwrapped, LegacyGymEnv):
                    limit = env.unwrapped.time_limit
                named = env.metadata.get("episode_info", ()) if env.metadata else ()
                names = tuple(dict.fromkeys([*named, *self.episode_info]))
            statistics = running_statistics(env)
            spec = EnvSpec(self.name, seen, action, limit, names, statistics, mask_source=source)
        for name in self.episode_info:
            if name not in spec.episode_info:
                raise EnvError(
                    f"env.episode_info: '{self.name}' does not report '{name}'"
                    f"{nearest(name, spec.episode_info)}"
                )
        _ = spec.observation  # raises if it cannot be stored
        ActionConverter(spec.action_space, self.action_bounds)
        return cast("EnvSpec", spec)

    def _build(
        self,
        num_envs: int,
        seeds: Sequence[int] | None = None,
        *,
        single: bool = False,
        device: torch.device | None = None,
    ) -> Any:
        """Build a gymnasium, vector or batched environment, with the user's wrappers."""
        if self.kwargs.get("render_mode") == "rgb_array":
            draw_without_screen()
        try:
            env = self._create_single() if single else self._create(num_envs, seeds, device)
            env = wrapped(env, self.wrappers, "env.wrappers", self.name)
        except FastrlError:
            raise
        except USERS_FAILURES as error:
            arguments = f" with {dict(self.kwargs)}" if self.kwargs else ""
            raise EnvError(f"'{self.name}' cannot be built{arguments}: {cause(error)}") from error
        if isinstance(env, DeviceEnv):
            return DeviceBatch(env, self.action_bounds)
        if device is not None or (self.must_be_on_device and not single):
            with closing_on_error(env):
                raise EnvError(
                    f"env.id: '{self.name}' returned a {type(env).__name__}; sampler.kind: device "
                    "needs a fastrl.envs.DeviceEnv or a tensor environment, such as CartPole-v1"
                )
        if not (isinstance(env, gymnasium.Env | VectorEnv) or _is_batched(env)):
            raise EnvError(
                f"'{self.name}' returned a {type(env).__name__}; expected a gymnasium or gym "
                "environment, a gymnasium.vector.VectorEnv, a BatchedEnv or a DeviceEnv"
            )
        return env

    def _create_single(self) -> Any:
        drawn = {"randomize": self.randomize} if self.randomize else {}
        kwargs = {**self.kwargs, **drawn}
        if self.max_episode_steps is not None:
            kwargs["max_episode_steps"] = self.max_episode_steps
        if self.family is not None and self.id in gymnasium.registry:
            return gymnasium.make(str(self.id), disable_env_checker=True, **kwargs)
        build = getattr(self._function, "single", None)
        return build(**kwargs) if callable(build) else self._create(1, None)

    def _create(
        self,
        num_envs: int,
        seeds: Sequence[int] | None,
        device: torch.device | None = None,
    ) -> Any:
        if self.is_native and self.wrappers:
            name = str(self.id)
            plain = name.removeprefix(self.family.prefix) if self.family else ""
            hint = f"; sample '{plain}'" if plain in gymnasium.registry else ""
            raise EnvError(
                f"env.wrappers: '{name}' is stepped in batches and takes no wrappers of single "
                f"environments{hint}"
            )
        function = self._function
        if function is not None:
            offered: dict[str, Any] = {"num_envs": num_envs, "seeds": seeds}
            return self._call(
                function, offered if device is None else {**offered, "device": device}
            )
        if self.randomize:
            raise EnvError(f"env.randomize: '{self.name}' has no parameters that can be randomised")
        spec = self.registered or registered_spec(_unaliased(str(self.id)))
        spec = dataclasses.replace(spec, order_enforce=False)
        return gymnasium.make(spec, self.max_episode_steps, disable_env_checker=True, **self.kwargs)

    @property
    def _function(self) -> Callable[..., Any] | None:
        """The factory that builds the environments; None if gymnasium builds them."""
        if self.family is not None:
            return self.family.factory(str(self.family.name_of(str(self.id))))
        if self.registered is not None or isinstance(self.id, GymnasiumSpec):
            return None
        if not isinstance(self.id, str):
            return self.id
        if not self.id.partition(":")[2] or _unaliased(self.id) != self.id:
            return None
        # An old environment's module may use such names while it is imported.
        with OLD_NUMPY:
            return factory(self.id, "env.id")

    def _call(self, function: Callable[..., Any], offered: dict[str, Any]) -> Any:
        if self.randomize and not takes_argument(function, "randomize"):
            raise EnvError(f"env.randomize: '{self.name}' takes no argument 'randomize'")
        # Arguments that are not configured keep the factory's defaults.
        if self.randomize:
            offered["randomize"] = self.randomize
        if self.max_episode_steps is not None:
            offered["max_episode_steps"] = self.max_episode_steps
        if self.action_bounds != "clip" and "action_bounds" not in self.kwargs:
            offered["action_bounds"] = self.action_bounds
        taken = {name: value for name, value in offered.items() if takes_argument(function, name)}
        limit = None if "max_episode_steps" in taken else self.max_episode_steps
        env = build_legacy(function, {**self.kwargs, **taken}, limit)
        if limit is None:
            return env
        if _is_single(env):
            return with_time_limit(env, limit)
        raise EnvError(
            f"env.max_episode_steps: '{self.name}' is a vector environment; let the factory take "
            "the argument max_episode_steps"
        )


_WANTED: Mapping[str, tuple[type, str]] = {
    "kwargs": (Mapping, "keyword arguments by name"),
    "wrappers": (Sequence, "a list of wrappers"),
    "randomize": (Mapping, "distributions by name"),
    "episode_info": (Sequence, "a list of names"),
}


def _check_arguments(factory: EnvFactory) -> None:
    """Reject arguments of a wrong type before anything is built."""
    if not isinstance(factory.id, str | GymnasiumSpec) and not callable(factory.id):
        raise EnvError(
            "an environment must be an id such as 'CartPole-v1' or a factory, got "
            + brief(factory.id)
        )
    for name, (kind, wanted) in _WANTED.items():
        value = getattr(factory, name)
        if not isinstance(value, kind) or isinstance(value, str | bytes):
            raise EnvError(f"env.{name} must be {wanted}, got {brief(value)}")
    for wrapper in factory.wrappers:
        if isinstance(wrapper, Mapping):
            check_call(wrapper, "env.wrappers")
        elif not isinstance(wrapper, str) and not callable(wrapper):
            raise EnvError(f"env.wrappers: a wrapper must be callable, got {brief(wrapper)}")
    if not all(isinstance(name, str) for name in (*factory.kwargs, *factory.episode_info)):
        raise EnvError("env.kwargs and env.episode_info: names must be text")
    if factory.max_episode_steps is not None:
        steps = whole("env.max_episode_steps", factory.max_episode_steps, at_most=2**31 - 1)
        object.__setattr__(factory, "max_episode_steps", steps)
    whole("spare_envs", factory.spare_envs, at_least=0)
    one_of("env.action_bounds", factory.action_bounds, get_args(ActionBounds))
    one_of("env.action_mask", factory.action_mask, ("auto", "off", *get_args(MaskSource)))


def wrapped(env: Any, wrappers: Sequence[Wrapper], key: str, name: str) -> Any:
    """Return an environment in its wrappers; it is closed if one of them fails.

    Args:
        env: The environment.
        wrappers: See `EnvFactory`.
        key: Key of the wrappers, for messages.
        name: Name of the environment, for messages.

    Raises:
        ArgumentError: A wrapper returned no environment.
        EnvError: A wrapper raised, cannot be imported, or is for another kind of environments.
    """
    for wrapper in wrappers:
        with closing_on_error(env):
            wrap = callee(wrapper, key)
            check_wrapper(wrap, env, name)
            called = wrap.func if isinstance(wrap, partial) else wrap
            called = getattr(called, "__qualname__", brief(called))
            try:
                found = wrapped_by(wrap, env)
            except FastrlError:
                raise
            except USERS_FAILURES as error:
                raise EnvError(f"{key}: {called} raised {cause(error)}") from error
            if not callable(getattr(found, "step", None)):
                kind = type(found).__name__
                raise ArgumentError(f"{key}: {called} returned a {kind}, not an environment")
        env = found
    return env


def _registered(env_id: object) -> GymnasiumSpec | None:
    """Return a specification of gymnasium's, or that of its registry, as workers can use it."""
    spec: object = env_id
    if isinstance(env_id, str):
        module, _, name = env_id.rpartition(":")
        # The script has registered it, and is not imported by workers.
        of_program = module and running_script(module) is not None
        spec = gymnasium.registry.get(name if of_program else _unaliased(env_id))
    if not isinstance(spec, GymnasiumSpec):
        return None
    return dataclasses.replace(spec, entry_point=of_script(spec.entry_point))


def _unaliased(env_id: str) -> str:
    return next((f.aliases[env_id] for f in own_families() if env_id in f.aliases), env_id)


def _is_single(env: object) -> TypeGuard[Env]:
    # EnvPool's environments are instances of both.
    return isinstance(env, gymnasium.Env) and not isinstance(env, VectorEnv)


def _is_batched(env: object) -> bool:
    # Old vector environments have the same methods.
    return isinstance(env, BatchedEnv) and isinstance(env.spec, EnvSpec)


def _vector_time_limit(env: VectorEnv[Any, Any, Any]) -> int | None:
    # EnvPool has the limit in its configuration.
    config = getattr(env, "config", None)
    limit = config.get("max_episode_steps") if isinstance(config, dict) else None
    return limit or getattr(env.spec, "max_episode_steps", None)
