"""The checks of `fastrl doctor`: what is slow or fails on this machine, with remedies."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from fastrl.errors import cause
from fastrl.imports import how_to_install
from fastrl.system import free_bytes, usable_cores, versions

Level = Literal["ok", "missing", "slow", "fails"]

_EXTRAS = {
    "atari": "ale_py",
    "box2d": "Box2D",
    "dm-control": "shimmy",
    "gym": "gym",
    "hub": "huggingface_hub",
    "minari": "minari",
    "minigrid": "minigrid",
    "mujoco-batch": "mjbatch",
    "onnx": "onnxruntime",
    "popgym": "popgym",
    "ray": "ray",
    "sweep": "optuna",
    "video": "imageio_ffmpeg",
    "wandb": "wandb",
}
"""Extras for users of fastrl, and a module that each installs."""
_GIB = 2**30
_LITTLE_MEMORY, _LITTLE_DISK = 1 * _GIB, 2**28
_FEW_DESCRIPTORS = 512
_BUSY = 0.25
"""Share of the cores that other programs may use without a warning."""
_WAITS = {"workers": "checking workers; the first time this compiles …"}


@dataclass(frozen=True)
class Diagnosis:
    """The result of a check.

    Attributes:
        level: ``ok``; ``missing``: an optional package; ``slow``; or ``fails``.
        about: Subject of the check.
        found: Finding.
        remedy: Remedy; empty if none is needed.
    """

    level: Level
    about: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.level:<8}{self.about:<17}{self.found}" + (
            f"; {self.remedy}" if self.remedy else ""
        )


def diagnoses(
    waiting: Callable[[str], AbstractContextManager[object]],
) -> Iterator[Diagnosis]:
    """Yield the diagnoses of all checks; a check that raises counts as failed.

    Args:
        waiting: Returns a context that shows the text of a waiting activity.
    """
    for check in _CHECKS:
        about = check.__name__.removeprefix("_").replace("_", " ")
        found: list[Diagnosis] = []
        with waiting(_WAITS.get(about, f"checking {about} …")):
            try:
                found += check(about)
            except Exception as error:  # failures of the machine may have any type
                found.append(Diagnosis("fails", about, cause(error)))
        yield from found


def _versions(about: str) -> Iterator[Diagnosis]:
    found = {"Python": sys.version.partition(" ")[0], **versions()}
    yield Diagnosis("ok", about, ", ".join(f"{name} {number}" for name, number in found.items()))


def busy_share() -> float:
    """Return the share of the cores that other programs use; 0 if it is negligible."""
    import psutil

    busy = psutil.cpu_percent(interval=0.2) / 100
    return busy if busy > _BUSY else 0.0


def _cores(about: str) -> Iterator[Diagnosis]:
    usable, present = usable_cores(), os.cpu_count() or 1
    found = f"{usable} of {present} usable by this process and its cgroup"
    if usable == 1:
        yield Diagnosis("slow", about, found, "more cores sample in parallel: raise the CPU quota")
    else:
        yield Diagnosis("ok", about, found)
    if busy := busy_share():
        yield Diagnosis("slow", about, f"{busy:.0%} are busy with other programs", "end those")


def _memory(about: str) -> Iterator[Diagnosis]:
    free = free_bytes()
    found = f"{free / _GIB:,.1f} GiB free"
    if free < _LITTLE_MEMORY:
        yield Diagnosis("slow", about, found, "lower sampler.num_envs, or raise the memory limit")
    else:
        yield Diagnosis("ok", about, found)


def _shared_memory(about: str) -> Iterator[Diagnosis]:
    from fastrl.shared.memory import SharedBlock

    with closing(SharedBlock(2**20)):
        yield Diagnosis("ok", about, "works; the size of /dev/shm does not matter")


def _open_files(about: str) -> Iterator[Diagnosis]:
    import resource

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if 0 <= most < _FEW_DESCRIPTORS:
        yield Diagnosis("fails", about, f"{most} at most", f"ulimit -n {_FEW_DESCRIPTORS * 8}")
    else:
        yield Diagnosis("ok", about, f"{most:,} at most")


def _temporary_files(about: str) -> Iterator[Diagnosis]:
    import psutil

    place = tempfile.gettempdir()
    with tempfile.TemporaryFile(dir=place):
        free = psutil.disk_usage(place).free
    found = f"{place} has {free / _GIB:,.1f} GiB free"
    remedy = "free some, or set TMPDIR" if free < _LITTLE_DISK else ""
    yield Diagnosis("slow" if remedy else "ok", about, found, remedy)


def _compiled_code(about: str) -> Iterator[Diagnosis]:
    from fastrl.jit import cache_directory

    if (place := cache_directory()) is not None:
        yield Diagnosis("ok", about, f"kept in {place}")
    else:
        found = "kept nowhere, so every process compiles for itself"
        yield Diagnosis("slow", about, found, "set NUMBA_CACHE_DIR to a directory to write to")


def _gpu(about: str) -> Iterator[Diagnosis]:
    import torch

    build = torch.version.cuda or torch.version.hip
    if torch.cuda.is_available():
        names = (torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        yield Diagnosis("ok", about, f"{', '.join(names)} (torch for {build})")
    elif not Path("/dev/nvidia0").exists():
        yield Diagnosis("ok", about, f"none; torch for {build or 'CPUs'}")
    elif build:
        yield Diagnosis("slow", about, f"not found by torch for {build}", "update the GPU's driver")
    else:
        remedy = "install torch for CUDA, see https://pytorch.org/get-started"
        yield Diagnosis("slow", about, "present, and torch is built for CPUs", remedy)


def _opengl(about: str) -> Iterator[Diagnosis]:
    from fastrl.envs.env_factory import EnvFactory
    from fastrl.system import draw_without_screen

    draw_without_screen()
    try:
        with closing(EnvFactory("HalfCheetah-v5").single(render_mode="rgb_array")) as env:
            env.reset(seed=0)
            env.render()
        yield Diagnosis("ok", about, "draws MuJoCo's robots")
    except Exception as error:  # OpenGL's bindings raise errors of any type
        found = f"videos of MuJoCo's robots fail: {cause(error)}"
        yield Diagnosis("missing", about, found, "on Debian: apt install libegl1")


def _workers(about: str) -> Iterator[Diagnosis]:
    from fastrl.config import load_config
    from fastrl.sampling import make_sampler

    keys = ("env.id=CartPole-v1", "sampler.num_envs=4", "sampler.rollout_length=16")
    began_s = time.perf_counter()
    with make_sampler(load_config(overrides=[*keys, "sampler.num_env_workers=1"])) as sampler:
        sampler.collect()
    yield Diagnosis("ok", about, f"sampled a rollout in {time.perf_counter() - began_s:.1f} s")


def _plug_ins(about: str) -> Iterator[Diagnosis]:
    from fastrl import registry

    for plugin in registry.broken():
        remedy = f"update or remove {plugin.source}"
        yield Diagnosis("fails", about, f"{plugin.name} cannot be loaded: {plugin.reason}", remedy)


def _extras(about: str) -> Iterator[Diagnosis]:
    installed = [extra for extra, module in _EXTRAS.items() if find_spec(module) is not None]
    yield Diagnosis("ok", about, f"installed: {', '.join(installed) or 'none'}")
    for extra in _EXTRAS:
        if extra not in installed:
            yield Diagnosis("missing", about, extra, how_to_install(extra))


_CHECKS: tuple[Callable[[str], Iterator[Diagnosis]], ...] = (
    *(_versions, _cores, _memory, _shared_memory, _open_files, _temporary_files),
    *(_compiled_code, _gpu, _opengl, _workers, _plug_ins, _extras),
)
