"""The libraries that fastrl is compared with: one small class each."""

from __future__ import annotations

import importlib
import multiprocessing
import signal
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from comparison.method import Peer, Settings
from comparison.task import Task
from fastrl.config import EnvConfig
from fastrl.envs.env_factory import EnvFactory
from fastrl.envs.families import NAMESPACE
from fastrl.errors import EnvError
from fastrl.spaces import action_specs, observation_specs

_MOST_PROCESSES = 64
_PREPROCESSING = "gymnasium.wrappers:AtariPreprocessing"
_FRAMES = {"stack_num": 1, "frame_skip": 4, "noop_max": 30}


class SingleEnv(Peer):
    """One environment and the policy at batch 1, as in textbooks."""

    name, label = "single-env", "single env"

    @classmethod
    def to_try(cls, task: Task, sizes: tuple[int, ...]) -> list[Settings]:
        """Return the only possible settings."""
        return [Settings()]

    def _open(self) -> None:
        self._env = self.task.factory.single()
        self._observation, _ = self._env.reset(seed=self.task.config.seed)

    def _step(self) -> int:
        (action,) = self._to_list(self._policy.act(self._observation, single=True))
        self._observation, _, terminated, truncated, _ = self._env.step(action)
        if terminated or truncated:
            self._observation, _ = self._env.reset()
        return 1


class GymnasiumVector(Peer):
    """Any vector environment with gymnasium's interface."""

    def _open(self) -> None:
        self._env = self._build()
        self._resets_cost_a_step = (
            AutoresetMode(self._env.metadata["autoreset_mode"]) is AutoresetMode.NEXT_STEP
        )
        self._ended = np.zeros(self.chosen.num_envs, np.bool_)
        self._observation, _ = self._env.reset(seed=self.task.config.seed)

    @abstractmethod
    def _build(self) -> Any:
        """Build the vector environment."""

    def _step(self) -> int:
        actions = self._to_batch(self._policy.act(self._observation))
        self._observation, _, terminated, truncated, _ = self._env.step(actions)
        size = self.chosen.num_envs
        if not self._resets_cost_a_step:
            return size
        resets, self._ended = self._ended, terminated | truncated
        return size - int(np.count_nonzero(resets))


class GymnasiumSync(GymnasiumVector):
    """gymnasium's SyncVectorEnv, in this process.

    Observations are not copied once more, since they are used up before the next step. Its default
    mode of resetting is 4 % faster than SAME_STEP on CartPole.
    """

    name, label = "gymnasium-sync", "gymnasium SyncVectorEnv"

    def _build(self) -> SyncVectorEnv:
        return SyncVectorEnv(_builders(self), copy=False)


class GymnasiumAsync(GymnasiumVector):
    """gymnasium's AsyncVectorEnv: a process per environment, observations in shared memory.

    Resetting in the same step is 7 % faster than its default mode on CartPole.
    """

    name, label = "gymnasium-async", "gymnasium AsyncVectorEnv"

    @classmethod
    def sizes(cls, task: Task) -> tuple[int, ...]:
        """Return multiples of the cores: each environment is a process."""
        return _process_counts(task)

    def _build(self) -> AsyncVectorEnv:
        return AsyncVectorEnv(
            _builders(self),
            copy=False,
            context=_start_method(),
            autoreset_mode=AutoresetMode.SAME_STEP,
        )

    def _shut(self) -> None:
        self._env.close(terminate=True)


class GymnasiumNative(GymnasiumVector):
    """Batched environment that gymnasium has registered under the id, such as CartPole's."""

    name, label = "gymnasium-native", "gymnasium batched env"

    @classmethod
    def sizes(cls, task: Task) -> tuple[int, ...]:
        """Return large numbers: a step is a few array operations for any number."""
        return (64, 256, 1024, 4096, 16384)

    def _build(self) -> Any:
        env = self.task.config.env
        spec = gymnasium.registry.get(env.id)
        if spec is None or spec.vector_entry_point is None or self.task.factory.is_native:
            raise EnvError(f"gymnasium has no batched environment '{env.id}'")
        if env.wrappers or env.max_episode_steps:
            raise EnvError("a batched environment takes no wrappers and no other time limit")
        kwargs: dict[str, Any] = dict(env.kwargs)
        return gymnasium.make_vec(spec, self.chosen.num_envs, "vector_entry_point", **kwargs)


class SB3Vector(Peer):
    """Any vector environment of Stable-Baselines3; it resets within the step."""

    requires = "stable_baselines3"

    def _open(self) -> None:
        vec_env = importlib.import_module("stable_baselines3.common.vec_env")
        self._env = self._build(vec_env)
        self._env.seed(self.task.config.seed)
        self._observation = self._env.reset()

    @abstractmethod
    def _build(self, vec_env: Any) -> Any:
        """Build the vector environment from a class of SB3's module ``vec_env``."""

    def _step(self) -> int:
        actions = self._to_batch(self._policy.act(self._observation))
        self._observation, _, _, _ = self._env.step(actions)
        return self.chosen.num_envs


class SB3Dummy(SB3Vector):
    """SB3's DummyVecEnv, in this process."""

    name, label = "sb3-dummy", "SB3 DummyVecEnv"

    def _build(self, vec_env: Any) -> Any:
        return vec_env.DummyVecEnv(_builders(self))


class SB3Subproc(SB3Vector):
    """SB3's SubprocVecEnv: a process per environment."""

    name, label = "sb3-subproc", "SB3 SubprocVecEnv"

    @classmethod
    def sizes(cls, task: Task) -> tuple[int, ...]:
        """Return multiples of the cores: each environment is a process."""
        return _process_counts(task)

    def _build(self, vec_env: Any) -> Any:
        return vec_env.SubprocVecEnv(_builders(self), start_method=_start_method())


class EnvPoolSync(Peer):
    """EnvPool's environment of the same name; every step returns all environments."""

    name, label, requires = "envpool-sync", "EnvPool, sync", "envpool"

    @classmethod
    def sizes(cls, task: Task) -> tuple[int, ...]:
        """Return more than the threads can step at once."""
        if task.is_slow:
            return tuple(task.cores * factor for factor in (1, 4, 16))
        return (16, 64, 256, 1024)

    def _open(self) -> None:
        envpool = importlib.import_module(self.requires)
        env, game = self.task.config.env, same_game(self.task.config.env)
        # EnvPool uses gymnasium's name, which fastrl's own ids end in.
        name = game[0] if game else self.task.factory.name.removeprefix(NAMESPACE)
        if name not in envpool.list_all_envs():
            raise EnvError(f"EnvPool has no environment '{name}'")
        if env.wrappers and not game:
            raise EnvError("EnvPool takes no wrappers")
        self._is_stacked = game is not None
        limit = {"max_episode_steps": env.max_episode_steps} if env.max_episode_steps else {}
        batch = {"batch_size": self.chosen.batch_size} if self.chosen.batch_size else {}
        with warnings.catch_warnings():
            # EnvPool's warnings about its own spaces, whose bounds lose precision.
            warnings.simplefilter("ignore")
            self._env = envpool.make_gymnasium(
                name,
                num_envs=self.chosen.num_envs,
                num_threads=self.task.cores,
                seed=self.task.config.seed % 2**31,
                **((game[1] if game else dict(env.kwargs)) | limit | batch),
            )
            self._check_spaces()
        self._begin()

    def _check_spaces(self) -> None:
        spec, pool = self.task.plan.env_spec, self._env
        observed = observation_specs(pool.observation_space)
        if self._is_stacked:
            observed = {
                path: replace(leaf, shape=leaf.shape[1:]) for path, leaf in observed.items()
            }
        if observed != spec.observation:
            raise EnvError(
                f"EnvPool's '{spec.id}' observes something else: {pool.observation_space}"
            )
        if action_specs(pool.action_space) != spec.action:
            raise EnvError(f"EnvPool's '{spec.id}' takes other actions: {pool.action_space}")

    def _act(self, observation: Any) -> Any:
        return self._to_batch(
            self._policy.act(observation[:, 0] if self._is_stacked else observation)
        )

    def _begin(self) -> None:
        self._observation, _ = self._env.reset()

    def _step(self) -> int:
        actions = self._act(self._observation)
        self._observation, _, _, _, info = self._env.step(actions)
        # After an episode's end it spends a step on the reset; its elapsed step is 0 then.
        return int(np.count_nonzero(info["elapsed_step"]))


class EnvPoolAsync(EnvPoolSync):
    """EnvPool in asynchronous mode: a step returns the environments that are ready first."""

    name, label = "envpool-async", "EnvPool, async"

    @classmethod
    def to_try(cls, task: Task, sizes: tuple[int, ...]) -> list[Settings]:
        """Return numbers of environments with batches of a half and of a quarter of them."""
        return [
            Settings(size, batch_size=_divisor(size, size // part))
            for size in sizes or cls.sizes(task)
            for part in (2, 4)
            if size >= part
        ]

    def _begin(self) -> None:
        self._held: list[tuple[Any, Any]] = []
        self._env.async_reset()

    def run(self, seconds: float) -> int:
        """Step for ``seconds``; steps that were started before this call do not count."""
        end = time.perf_counter() + seconds
        if not self._held:
            for _ in range(self._batches):
                self._step()
        for observation, env_ids in self._held:
            self._env.send(self._act(observation), env_ids)
        self._held.clear()
        return super().run(end - time.perf_counter())

    def rest(self) -> None:
        """Wait for all started steps; the next `run` receives them."""
        while len(self._held) < self._batches:
            observation, _, _, _, info = self._env.recv()
            self._held.append((observation, info["env_id"]))

    @property
    def _batches(self) -> int:
        assert self.chosen.batch_size is not None
        return self.chosen.num_envs // self.chosen.batch_size

    def _step(self) -> int:
        observation, _, _, _, info = self._env.recv()
        env_ids = info["env_id"]
        self._env.send(self._act(observation), env_ids)
        return int(np.count_nonzero(info["elapsed_step"]))


def same_game(env: EnvConfig) -> tuple[str, dict[str, Any]] | None:
    """Return EnvPool's name and arguments for the Atari game that a configuration preprocesses.

    Only for gymnasium's preprocessing at its defaults; else None. EnvPool's observations are
    ``[1, 84, 84]`` where gymnasium's are ``[84, 84]``.
    """
    space, _, game = env.id.partition("/")
    kwargs = dict(env.kwargs)
    sticky = kwargs.pop("repeat_action_probability", 0.25)
    if space != "ALE" or env.wrappers != (_PREPROCESSING,) or kwargs != {"frameskip": 1}:
        return None
    return game, _FRAMES | {"repeat_action_probability": sticky, "use_fire_reset": False}


@dataclass(frozen=True)
class _BuildEnv:
    """Builds one environment for a peer, in this process or in a worker of the peer."""

    factory: EnvFactory

    def __call__(self) -> gymnasium.Env[Any, Any]:
        if multiprocessing.parent_process() is not None:
            # Ctrl-C reaches all processes of a terminal; only the one that ends the others acts.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            torch.set_num_threads(1)
        return self.factory.single()


def _builders(peer: Peer) -> list[Callable[[], gymnasium.Env[Any, Any]]]:
    return [_BuildEnv(peer.task.factory)] * peer.chosen.num_envs


def _divisor(size: int, most: int) -> int:
    """Return the largest divisor of ``size`` that is at most ``most``."""
    return next(d for d in range(most, 0, -1) if size % d == 0)


def _process_counts(task: Task) -> tuple[int, ...]:
    counts = [task.cores * factor for factor in ((1, 2, 4) if task.is_slow else (1, 2, 4, 8))]
    return tuple(count for count in counts if count <= max(_MOST_PROCESSES, task.cores))


def _start_method() -> str:
    """Return the start method for which torch is imported once; a fork of its threads may hang."""
    methods = multiprocessing.get_all_start_methods()
    return "forkserver" if "forkserver" in methods else "spawn"


PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (
        SingleEnv,
        GymnasiumSync,
        GymnasiumAsync,
        GymnasiumNative,
        SB3Dummy,
        SB3Subproc,
        EnvPoolSync,
        EnvPoolAsync,
    )
}
"""All compared libraries by name."""
