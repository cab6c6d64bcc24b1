"""Ways to step many environments, each behind the same four calls."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

import fastrl
from fastrl.errors import FastrlError
from fastrl.extras import how_to_install
from vector_bench.one_env import make_one

MPI = "MPI"
_MPI_S = 120.0
"""How long a measurement with MPI may take: its ranks start one after the other."""
SAME_STEP = AutoresetMode.SAME_STEP


class Stepper(Protocol):
    """n environments that can be reset and stepped."""

    def reset(self) -> Any:  # noqa: ANN401
        """Start an episode in every environment."""
        ...

    def step(self, actions: Any) -> Any:  # noqa: ANN401
        """Step every environment."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class Sequential:
    """The loop that everybody writes first."""

    def __init__(self, env_id: str, num_envs: int) -> None:
        self._envs = [make_one(env_id) for _ in range(num_envs)]

    def reset(self) -> Any:  # noqa: ANN401
        """Start an episode in every environment."""
        return np.stack([env.reset(seed=index)[0] for index, env in enumerate(self._envs)])

    def step(self, actions: Any) -> Any:  # noqa: ANN401
        """Step one after the other."""
        seen, rewards, ends = [], [], []
        for env, action in zip(self._envs, actions, strict=True):
            observation, reward, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                observation, _ = env.reset()
            seen.append(observation)
            rewards.append(reward)
            ends.append((terminated, truncated))
        return np.stack(seen), np.array(rewards), np.array(ends)

    def close(self) -> None:
        """Close them."""
        for env in self._envs:
            env.close()


class Vector:
    """Any vector environment of gymnasium."""

    def __init__(self, envs: Any) -> None:  # noqa: ANN401
        self._envs = envs
        self.step, self.close = envs.step, envs.close

    def reset(self) -> Any:  # noqa: ANN401
        """Start an episode in every environment."""
        return self._envs.reset(seed=0)


class Sb3:
    """A `VecEnv` of Stable-Baselines3."""

    def __init__(self, envs: Any) -> None:  # noqa: ANN401
        self._envs = envs
        self.step, self.close = envs.step, envs.close

    def reset(self) -> Any:  # noqa: ANN401
        """Start an episode in every environment."""
        self._envs.seed(0)
        return self._envs.reset()


class Mpi:
    """One MPI rank per environment; the measuring happens in rank 0 of another program.

    Raises:
        FastrlError: MPI is not installed, or the program failed or took too long.
    """

    def __init__(self, env_id: str, num_envs: int, seconds: float) -> None:
        beside = Path(sys.executable).with_name("mpiexec")
        mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
        if mpiexec is None or find_spec("mpi4py") is None:
            raise FastrlError(f"MPI is not installed: {how_to_install('mpi')}")
        program = [sys.executable, "-m", "vector_bench.mpi_program", env_id, str(seconds)]
        try:
            done = subprocess.run(
                [mpiexec, "-n", str(num_envs + 1), *program],
                capture_output=True,
                text=True,
                cwd=Path(__file__).parents[1],
                timeout=_MPI_S,
                check=True,
            )
        except subprocess.TimeoutExpired:
            raise FastrlError(f"MPI: not done within {_MPI_S:g} s") from None
        except subprocess.CalledProcessError as error:
            raise FastrlError(f"MPI: {error.stderr.strip()[-300:]}") from None
        self.reset_s, self.step_s = (float(each) for each in done.stdout.split()[-2:])


def _sb3(kind: str, env_id: str, num_envs: int) -> Sb3:
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    factories = [partial(make_one, env_id) for _ in range(num_envs)]
    if kind == "dummy":
        return Sb3(DummyVecEnv(factories))
    return Sb3(SubprocVecEnv(factories, start_method="fork"))


def _fastrl(backend: str, env_id: str, num_envs: int) -> Vector:
    return Vector(
        fastrl.make_vec(env_id, num_envs, backend=backend, autoreset=SAME_STEP, timeout_s=60)
    )


def _gymnasium(kind: Any, env_id: str, num_envs: int) -> Vector:  # noqa: ANN401
    factories = [partial(make_one, env_id) for _ in range(num_envs)]
    return Vector(kind(factories, autoreset_mode=SAME_STEP))


METHODS: dict[str, Callable[[str, int], Stepper]] = {
    "sequential": Sequential,
    "gymnasium sync": partial(_gymnasium, SyncVectorEnv),
    "gymnasium async": partial(_gymnasium, AsyncVectorEnv),
    "SB3 dummy": partial(_sb3, "dummy"),
    "SB3 subproc": partial(_sb3, "subproc"),
    "fastrl serial": partial(_fastrl, "serial"),
    "fastrl threads": partial(_fastrl, "threads"),
    "fastrl processes": partial(_fastrl, "processes"),
    "fastrl native": partial(_fastrl, "native"),
    "fastrl auto": partial(_fastrl, "auto"),
}
"""By name; ``MPI`` is measured apart, by `Mpi`."""
