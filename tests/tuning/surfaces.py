"""Simulated machines: the speed of each candidate and its noise.

`machine` draws one from a model of what sampling costs: stepping, inference with its fixed part,
handoff, caches and cores that are shared. Others are made to mislead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from fastrl.tuning import Candidate, Sample, Space, TrialError

Speed = Callable[[Candidate], float]


@dataclass(frozen=True)
class Surface:
    """A simulated machine.

    Attributes:
        name: Description of the machine.
        space: Its candidates.
        default: Candidate that a user would start with.
        speed: True frames per second of a candidate; 0 where it fails.
        noise: Standard deviation of the log of a window of 0.4 s.
        drift: Standard deviation of the log of the machine's drifting speed.
        start_s: Seconds to start a candidate, before its first window.
    """

    name: str
    space: Space
    default: Candidate
    speed: Speed
    noise: float = 0.03
    drift: float = 0.1
    start_s: float = 0.5

    def best_fps(self) -> float:
        """Return the speed of the fastest candidate."""
        return max(self.speed(candidate) for candidate in self.space.all())

    def regret(self, candidate: Candidate) -> float:
        """Return the regret of a choice as a share of the best speed."""
        return 1 - self.speed(candidate) / self.best_fps()


@dataclass
class Trials:
    """Measures on a surface, in simulated time.

    Attributes:
        now_s: The simulated time.
        seed: Seed of noise and drift.
        measured: Number of measurements of each candidate.
        measured_s: Length of all windows together.
    """

    surface: Surface
    seed: int = 0
    now_s: float = 0.0
    measured: dict[Candidate, int] = field(default_factory=dict)
    measured_s: float = 0.0

    def __post_init__(self) -> None:
        """Draw the drift of the machine's speed: a sum of slow waves."""
        self._rng = np.random.default_rng((self.seed, 1))
        self._warm: list[Candidate] = []
        periods = self._rng.uniform(20, 300, 4)
        self._waves = np.stack([2 * np.pi / periods, self._rng.uniform(0, 2 * np.pi, 4)])

    def clock(self) -> float:
        """Return the time."""
        return self.now_s

    def __call__(self, candidate: Candidate, seconds: float) -> Sample:
        """Return a noisy window, as `fastrl.tuning.Measure` says."""
        self.measured[candidate] = self.measured.get(candidate, 0) + 1
        self.measured_s += seconds
        surface = self.surface
        # The most recently used candidates keep running, as many as are compared.
        if candidate not in self._warm:
            self.now_s += surface.start_s
        self._warm = [*[c for c in self._warm if c != candidate][-1:], candidate]
        speed = surface.speed(candidate)
        if speed <= 0:
            self.now_s += 1.0
            self._warm.remove(candidate)
            raise TrialError("out of memory", exhausted=True)
        self.now_s += seconds + 0.05
        wave = np.sin(self._waves[0] * self.now_s + self._waves[1]).sum() / math.sqrt(2)
        error = self._rng.normal() * surface.noise * math.sqrt(0.4 / seconds)
        return Sample(speed * math.exp(surface.drift * wave + error))


@dataclass(frozen=True)
class Costs:
    """Costs of sampling on a simulated machine, in seconds.

    Attributes:
        step: Step of one environment.
        call: Fixed part of inferring a batch.
        frame: Cost of inferring one more frame.
        handoff: Transfer from one worker to another.
        round: Cost of every batch of a worker.
        cache: Environments that fit into a core's cache; more make steps slower.
        gpu_call: As ``call``, on a GPU.
        gpu_frame: As ``frame``, on a GPU.
        most_envs: Environments that fit into the memory.
    """

    step: float
    call: float
    frame: float
    handoff: float = 30e-6
    round: float = 10e-6
    cache: float = 1e9
    gpu_call: float = 150e-6
    gpu_frame: float = 0.3e-6
    most_envs: float = 1e9


def speed_on(costs: Costs, cores: int) -> Speed:
    """Return the speed of candidates on a simulated machine."""

    def speed(c: Candidate) -> float:
        if c.num_envs > costs.most_envs:
            return 0.0
        crowd = max(1.0, c.envs_per_worker / costs.cache) ** 0.25
        stepping = c.envs_per_worker * costs.step * crowd + costs.round * c.groups
        call, frame = costs.call, costs.frame
        if c.engine == "eager":
            call, frame = 3 * call, 1.5 * frame
        if c.num_model_workers == 0:
            cycle = stepping + call + frame * c.envs_per_worker
            busy = c.num_env_workers * cycle
        else:
            cycle, busy = _served_cycle(costs, c, stepping, call, frame)
        crowded = max(0, c.num_env_workers + c.num_model_workers - cores)
        cycle = max(cycle, busy / cores) * (1 + 0.04 * crowded)
        return c.num_envs / cycle

    return speed


def _served_cycle(
    costs: Costs, c: Candidate, stepping: float, call: float, frame: float
) -> tuple[float, float]:
    """Return (seconds of a step of all environments, seconds of cores that it keeps busy)."""
    frames = c.num_envs / c.num_model_workers
    on_gpu = c.device != "cpu"
    if on_gpu:
        call, frame = costs.gpu_call, costs.gpu_frame
    inference = c.groups * call + frame * frames
    waiting = 2 * c.groups * costs.handoff
    if c.groups == 1:
        cycle = stepping + inference + waiting
    else:
        cycle = max(stepping, inference) + waiting / 2 + min(stepping, inference) / c.groups
    working = c.groups * call if on_gpu else inference
    handing = (c.num_env_workers + c.num_model_workers) * waiting / 3
    return cycle, c.num_env_workers * stepping + c.num_model_workers * working + handing


def machine(seed: int) -> Surface:
    """Return one of many plausible machines and tasks."""
    rng = np.random.default_rng((seed, 2))
    cores = int(rng.choice([2, 2, 4, 8, 16]))
    gpu = bool(rng.random() < 0.4)
    costs = Costs(
        step=10 ** rng.uniform(-6.3, -3),
        call=10 ** rng.uniform(-5, -3.3),
        frame=10 ** rng.uniform(-6.3, -4),
        handoff=10 ** rng.uniform(-5, -4),
        round=10 ** rng.uniform(-5.3, -4.3),
        cache=10 ** rng.uniform(1.5, 3),
        most_envs=10 ** rng.uniform(3.2, 4.5),
    )
    space = Space(
        cores,
        max_envs_per_worker=2048,
        devices=("cpu", "cuda:0") if gpu else ("cpu",),
        engines=("auto", "eager"),
    )
    return Surface(
        f"{cores} cores{', GPU' if gpu else ''}, #{seed}",
        space,
        Candidate(16, cores),
        speed_on(costs, cores),
        noise=float(rng.uniform(0.01, 0.06)),
        drift=float(rng.uniform(0.0, 0.2)),
        start_s=float(rng.uniform(0.2, 1.0)),
    )


def plateau() -> Surface:
    """Return a surface on which nearly all candidates are equally fast."""
    return Surface("plateau", Space(2), Candidate(16, 2), lambda c: 1000.0)


def cliff() -> Surface:
    """Return a surface that is fastest just below the memory limit."""

    def speed(c: Candidate) -> float:
        return 0.0 if c.num_envs > 600 else 1000 * c.num_envs**0.3

    return Surface("cliff", Space(2), Candidate(16, 2), speed)


def two_hills() -> Surface:
    """Return a surface with a second, higher top far from the usual choices."""

    def speed(c: Candidate) -> float:
        n, models = math.log2(c.envs_per_worker), c.num_model_workers
        near = math.exp(-(((n - 4) / 2) ** 2)) if models == 0 else 0.0
        far = 1.6 * math.exp(-(((n - 9) / 2) ** 2)) if models >= 2 else 0.0
        return 1000 * (0.2 + near + far)

    return Surface("two hills", Space(4), Candidate(16, 4), speed)


def from_table(
    name: str, cores: int, speeds: Mapping[Candidate, float], default: Candidate
) -> Surface:
    """Return the surface of a recorded grid, on which nothing else can be chosen."""
    groups = tuple(sorted({c.groups for c in speeds}))
    space = Space(
        cores,
        max_env_workers=max(c.num_env_workers for c in speeds),
        max_envs_per_worker=max(c.envs_per_worker for c in speeds),
        groups=groups,
        engines=tuple(sorted({c.engine for c in speeds})),
        fits=lambda c: c in speeds,
    )
    return Surface(name, space, default, lambda c: speeds.get(c, 0.0))
