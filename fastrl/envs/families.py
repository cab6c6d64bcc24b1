"""fastrl's families of environments, registered by name in `fastrl.builtin`.

The ids ``fastrl/…`` are registered with gymnasium as soon as `fastrl.envs` is imported:
`gymnasium.make_vec` builds the batch, `gymnasium.make` an equivalent single environment.
This module is loaded with `fastrl.envs`, so the modules that implement the environments are
imported when the first environment is built.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar, cast

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from fastrl.arguments import nearest
from fastrl.envs.actions import ActionBounds
from fastrl.envs.atari import make_atari, options_of_batch
from fastrl.envs.batched_env import BatchedEnv, Columns
from fastrl.envs.family import Family, Vector, arrays
from fastrl.envs.lookup import registered_spec, takes_argument
from fastrl.errors import EnvError
from fastrl.registry import NAMESPACE

_NO_VELOCITY = "fastrl.envs.classic_control.no_velocity"
_MASKED = "fastrl.envs.masked_tasks"
_CRAFTER_MODULE = "fastrl.envs.crafter_native.worlds_by_id"
_CRAFTER, _CRAFTER_CLASS = "Crafter-v1", f"{_CRAFTER_MODULE}:CrafterEnv"


class NativeFamily(Family):
    """Environments of fastrl with a common implementation.

    Attributes:
        module: Module with ``build(name, num_envs, **kwargs)``, which returns a `BatchedEnv` and
            takes ``max_episode_steps``, ``randomize`` and ``action_bounds``; ``make_vec(name,
            num_envs, **kwargs)``, and ``make_single(name, **kwargs)``, whose time limit gymnasium
            keeps.
        ids: Ids without the namespace: those of gymnasium's equal environments.
    """

    prefix = NAMESPACE
    module: str
    ids: tuple[str, ...]

    def names(self) -> Sequence[str]:
        """Return the names; see `Family.names`."""
        return self.ids

    def name_of(self, env_id: str) -> str | None:
        """Return the id without the namespace; None for ids of other families."""
        name = super().name_of(env_id)
        return name if name in self.ids else None

    def batch_id(self, env_id: str) -> str | None:
        """Return the id of the batch, for gymnasium's id as well."""
        name = env_id.removeprefix(NAMESPACE)
        return NAMESPACE + name if name in self.ids else None

    def build(
        self,
        name: str,
        /,
        num_envs: int,
        *,
        max_episode_steps: int | None = None,
        randomize: Mapping[str, Any] | None = None,
        action_bounds: ActionBounds = "clip",
        **kwargs: Any,
    ) -> BatchedEnv:
        """Build n environments; see `Family.build`.

        Raises:
            EnvError: An argument is unknown or invalid.
        """
        if max_episode_steps is not None:
            kwargs["max_episode_steps"] = max_episode_steps
        if randomize:
            kwargs["randomize"] = randomize
        given = {"num_envs": num_envs, "action_bounds": action_bounds, **kwargs}
        return cast("BatchedEnv", self.call("build", name, **given))

    def vector(
        self,
        name: str,
        num_envs: int,
        each: Mapping[str, Sequence[Any]],
        /,
        **kwargs: Any,
    ) -> Vector:
        """Build a vector environment; see `Family.vector`."""
        given = {**kwargs, **arrays(each)}
        return cast("Vector", self.call("make_vec", name, num_envs=num_envs, **given))

    def call(self, function: str, name: str, /, **kwargs: Any) -> Any:
        """Call a function of the module.

        Raises:
            EnvError: An argument is unknown or invalid.
        """
        return getattr(importlib.import_module(self.module), function)(name, **kwargs)

    def register(self) -> None:
        """Register every id with gymnasium, unless it is already registered."""
        for name in self.ids:
            if NAMESPACE + name not in gymnasium.registry:
                original = gymnasium.spec(name)
                gymnasium.register(
                    NAMESPACE + name,
                    entry_point=partial(self.call, "make_single", name),
                    vector_entry_point=partial(self.call, "make_vec", name),
                    reward_threshold=original.reward_threshold,
                    max_episode_steps=original.max_episode_steps,
                )


class PythonTasks(Family):
    """``CartPoleNoVel-v1`` and others: environments in Python that gymnasium lacks.

    Gymnasium builds them, so the family has no ids of its own.
    """

    batched = False
    registered: ClassVar[Mapping[str, tuple[str, int, float | None]]] = {
        "CartPoleNoVel-v1": (f"{_NO_VELOCITY}:cartpole", 500, 475.0),
        "MountainCarContinuousNoVel-v0": (f"{_NO_VELOCITY}:mountain_car", 999, 90.0),
        "PendulumNoVel-v1": (f"{_NO_VELOCITY}:pendulum", 200, None),
        "MaskedBandit-v0": (f"{_MASKED}:MaskedBandit", 100, 90.0),
        "MaskedTMaze-v0": (f"{_MASKED}:MaskedTMaze", 200, 0.95),
    }
    """By id: entry point, time limit in steps, and the return that counts as solved."""

    def name_of(self, env_id: str) -> None:
        """Return None: gymnasium builds the ids that are registered with it."""

    def register(self) -> None:
        """Register the ids with gymnasium, unless they are."""
        for name, (entry_point, limit, solved) in self.registered.items():
            if name not in gymnasium.registry:
                gymnasium.register(name, entry_point, solved, max_episode_steps=limit)


class ClassicControl(NativeFamily):
    """Gymnasium's classic control and tasks without velocities, in compiled loops."""

    module = "fastrl.envs.classic_control.control_batch"
    tensors: ClassVar = {
        "Acrobot-v1": "fastrl.envs.classic_control.acrobot:Acrobot",
        "CartPole-v1": "fastrl.envs.classic_control.cartpole:CartPole",
        "MountainCar-v0": "fastrl.envs.classic_control.mountain_car:MountainCar",
        "MountainCarContinuous-v0": (
            "fastrl.envs.classic_control.mountain_car:MountainCarContinuous"
        ),
        "Pendulum-v1": "fastrl.envs.classic_control.pendulum:Pendulum",
        "CartPoleNoVel-v1": f"{_NO_VELOCITY}:CartPoleNoVel",
        "MountainCarContinuousNoVel-v0": f"{_NO_VELOCITY}:MountainCarContinuousNoVel",
        "PendulumNoVel-v1": f"{_NO_VELOCITY}:PendulumNoVel",
    }
    ids = tuple(tensors)
    compiled = "fastrl.envs.classic_control.compiled_env:CompiledEnv"
    autoreset_modes = (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP)
    shares_threads, sharing_pays = True, False


class Crafter(NativeFamily):
    """``fastrl/Crafter-v1``, and single worlds, ``Crafter-v1`` by some names."""

    module = _CRAFTER_MODULE
    ids = (_CRAFTER,)
    sharing_pays = False
    aliases: ClassVar = {"crafter.Env": _CRAFTER, "crafter:Env": _CRAFTER, "Crafter": _CRAFTER}
    single_options = frozenset({"area", "view", "size", "reward", "length", "render_mode"})
    """Arguments with the same meaning for a single world and for the batch."""

    def register(self) -> None:
        """Register the single worlds and the batch with gymnasium."""
        if _CRAFTER not in gymnasium.registry:
            gymnasium.register(
                _CRAFTER,
                entry_point=_CRAFTER_CLASS,
                max_episode_steps=10_000,
                kwargs={"length": None},
            )
        super().register()

    def stands_for(self, env_id: str, kwargs: Mapping[str, Any], mode: AutoresetMode) -> bool:
        """Return whether worlds, their random streams and their infos are the same.

        The first states of robots and of classic control come from other streams.
        """
        spec = gymnasium.registry.get(_CRAFTER)
        return (
            env_id == _CRAFTER
            and spec is not None
            and spec.entry_point == _CRAFTER_CLASS
            and not spec.additional_wrappers
            and kwargs.keys() <= self.single_options
            and mode is AutoresetMode.SAME_STEP
        )

    def infos_of_single(
        self, vector: Vector, terminated: NDArray[np.bool_], ended: NDArray[np.bool_], start: int
    ) -> Columns:
        """See `Family.infos_of_single`."""
        from fastrl.envs.crafter_native.worlds_by_id import infos_of_single

        return infos_of_single(vector, terminated, ended, start)


class Mujoco(NativeFamily):
    """``fastrl/HalfCheetah-v5`` and gymnasium's other robots, n simulations at a time."""

    module = "fastrl.envs.mujoco.robots_by_id"
    ids = (
        *(
            f"{robot}-{version}"
            for robot in (
                *("Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "Reacher"),
                *("InvertedDoublePendulum", "InvertedPendulum", "Swimmer", "Walker2d"),
            )
            for version in ("v4", "v5")
        ),
        "Pusher-v5",
    )
    shares_threads = True

    def vector(
        self,
        name: str,
        num_envs: int,
        each: Mapping[str, Sequence[Any]],
        /,
        **kwargs: Any,
    ) -> Vector:
        """Build a vector environment whose simulations differ in fields of the model."""
        vector = super().vector(name, num_envs, {}, **kwargs)
        if each:
            physics = vector.batched.physics  # type: ignore[attr-defined]
            for field, values in each.items():
                physics.assign(field, values)
            physics.derive(np.ones(num_envs, np.bool_))
        return vector


class Atari(Family):
    """``ALE/Breakout-v5`` and others: gymnasium builds single games, ALE batches of them.

    `make_vec` builds both with the standard preprocessing.
    """

    prefix = "ALE/"
    package, extra = "ale_py", "atari"
    factories: ClassVar = {"fastrl.envs.atari:sb3_atari": "name"}
    autoreset_modes = tuple(AutoresetMode)
    shares_threads = True
    singles_take_more = True

    def name_of(self, env_id: str) -> None:
        """Return None: gymnasium builds the ids that it has registered."""

    def batch_id(self, env_id: str) -> str | None:
        """Return ALE's ids, and None for others."""
        return env_id if env_id.startswith(self.prefix) else None

    def import_ids(self, env_id: str) -> None:
        """Register ALE's ids with gymnasium, if ALE is installed or the id is one of them."""
        if env_id.startswith(self.prefix):
            gymnasium.register_envs(self.imported(env_id))
        elif importlib.util.find_spec(self.package) is not None:
            # The names from before the namespace, such as BreakoutNoFrameskip-v4.
            gymnasium.register_envs(importlib.import_module(self.package))

    def vector(
        self,
        name: str,
        num_envs: int,
        each: Mapping[str, Sequence[Any]],
        /,
        **kwargs: Any,
    ) -> Vector:
        """Build ALE's vector environment; see `Family.vector`.

        Raises:
            EnvError: There is no such game, or a time limit is given.
        """
        if "max_episode_steps" in kwargs:
            raise EnvError("max_episode_steps: ALE's batch takes max_num_frames_per_episode")
        spec = registered_spec(self.prefix + name)
        create: Any = load_env_creator(cast("str", spec.vector_entry_point))
        given = {**spec.kwargs, **options_of_batch(kwargs), **arrays(each)}
        return cast("Vector", create(num_envs=num_envs, **given))

    def seeds(self, seeds: list[int]) -> Any:
        """Return an array of seeds below 2**31, as ALE takes them."""
        return np.array([seed % 2**31 for seed in seeds])

    def single_like_batch(
        self, env_id: str, kwargs: Mapping[str, Any]
    ) -> tuple[str | Callable[..., Any], Mapping[str, Any]]:
        """Return a function that builds one game with the preprocessing among ``kwargs``."""
        return partial(make_atari, env_id, **kwargs), {}


class OldGym(Family):
    """Environments that old gym has registered, as ``gym:Id``; adapted when they are built."""

    prefix, batched = "gym:", False
    package, extra = "gym", "gym"

    def register(self) -> None:
        """Suppress the notice that gym prints in every process, also if Crafter imports it."""
        with suppress(ImportError):
            importlib.import_module("gym_notices.notices").notices.clear()

    def build(self, name: str, /, **kwargs: Any) -> Any:
        """Build a single environment."""
        gym = self.imported(self.prefix + name)
        if takes_argument(gym.make, "disable_env_checker"):
            kwargs.setdefault("disable_env_checker", True)
        return gym.make(name, **kwargs)


class VectorEnvs(Family):
    """The vector environment that gymnasium has registered under an id, as ``vector:Id``."""

    prefix, batched = "vector:", False

    def build(
        self,
        name: str,
        /,
        num_envs: int,
        max_episode_steps: int | None = None,
        **kwargs: Any,
    ) -> Vector:
        """Build a vector environment.

        Raises:
            EnvError: The id has no vector environment.
        """
        spec = registered_spec(name)
        if spec.vector_entry_point is None:
            raise EnvError(f"'{name}' has no vector environment of its own; write the id '{name}'")
        if max_episode_steps is not None:
            spec = dataclasses.replace(spec, max_episode_steps=max_episode_steps)
        if name.startswith(Atari.prefix):
            # By default each worker would start a thread per core.
            kwargs.setdefault("num_threads", 1)
        return gymnasium.make_vec(spec, num_envs, "vector_entry_point", **kwargs)


class EnvPool(Family):
    """EnvPool's vector environments, as ``envpool:Id``; they are seeded when they are built."""

    prefix, batched = "envpool:", False
    package, extra = "envpool", "compare"

    def build(
        self,
        name: str,
        /,
        num_envs: int,
        seeds: Sequence[int] | None = None,
        max_episode_steps: int | None = None,
        **kwargs: Any,
    ) -> Vector:
        """Build a vector environment.

        Raises:
            EnvError: EnvPool is not installed, or has no such environment.
        """
        envpool = self.imported(self.prefix + name)
        known = envpool.list_all_envs()
        if name not in known:
            raise EnvError(f"EnvPool has no environment '{name}'{nearest(name, known)}")
        if max_episode_steps is not None:
            kwargs["max_episode_steps"] = max_episode_steps
        if seeds is not None:
            # EnvPool keeps seeds as int32.
            kwargs["seed"] = [int(seed) % 2**31 for seed in seeds]
        given = {"num_threads": 1, **kwargs, "num_envs": num_envs}
        return cast("Vector", envpool.make_gymnasium(name, **given))


TASKS, CLASSIC_CONTROL, CRAFTER = PythonTasks(), ClassicControl(), Crafter()
MUJOCO, ATARI = Mujoco(), Atari()
OLD_GYM, VECTOR_ENVS, ENVPOOL = OldGym(), VectorEnvs(), EnvPool()
