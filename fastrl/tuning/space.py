"""The candidates of a tuning, within the bounds of the machine and the user."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from fastrl.arguments import brief, whole, whole_attributes
from fastrl.config import Config
from fastrl.errors import ConfigError

_SIZES, _SIZES_ON_GPU = (64, 16, 256), (256, 64, 1024)
"""Numbers of environments per worker that are usually fast, the most likely first."""


@dataclass(frozen=True)
class Candidate:
    """One set of the parameters that determine the speed of sampling.

    The attributes are keys of the section ``sampler``; several devices are joined by commas.
    """

    envs_per_worker: int
    num_env_workers: int
    num_model_workers: int = 0
    groups: int = 1
    device: str = "cpu"
    engine: str = "auto"
    torch_threads: int = 1

    def __post_init__(self) -> None:
        """Check the numbers; raise a `ConfigError` if one is not an integer or too small."""
        whole_attributes(self, ("num_model_workers",), at_least=0)
        whole_attributes(self, ("envs_per_worker", "num_env_workers", "groups", "torch_threads"))

    @property
    def num_envs(self) -> int:
        """Number of environments of all workers, B = N · n."""
        return self.envs_per_worker * self.num_env_workers

    @property
    def label(self) -> str:
        """The candidate on one line; usual values are left out."""
        parts = [f"n={self.envs_per_worker} N={self.num_env_workers} M={self.num_model_workers}"]
        parts += [f"groups={self.groups}"] * (self.groups != 1)
        parts += [name for name in (self.device, self.engine) if name not in ("cpu", "auto")]
        parts += [f"threads={self.torch_threads}"] * (self.torch_threads != 1)
        return " ".join(parts)

    def but(self, **changes: Any) -> Self:
        """Return a copy with some attributes changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes, whose names are keys of the section ``sampler``."""
        return asdict(self)


def candidate_of(config: Config) -> Candidate:
    """Return the candidate of a configuration, with ``auto`` resolved on this machine."""
    sampler, topology = config.sampler, config.topology
    return Candidate(
        topology.envs_per_worker,
        topology.num_env_workers,
        topology.num_model_workers,
        topology.groups,
        ",".join(sampler.devices),
        sampler.engine,
        sampler.torch_threads,
    )


def with_candidate(config: Config, candidate: Candidate) -> Config:
    """Return a copy of a configuration that samples with a candidate's settings."""
    sampler = config.sampler.model_copy(update=sampler_keys(candidate))
    return config.model_copy(update={"sampler": sampler})


def sampler_keys(candidate: Candidate) -> dict[str, Any]:
    """Return a candidate as keys of the section ``sampler``."""
    first, *others = candidate.device.split(",")
    device = (first, *others) if others else first
    return {"num_envs": candidate.num_envs, **candidate.to_dict(), "device": device}


@dataclass(frozen=True)
class Space:
    """The candidates that are searched.

    Attributes:
        cores: Cores that may be used.
        max_env_workers: Largest N; 0 means two per core.
        max_envs_per_worker: Largest n.
        batch: Smallest and largest B = N · n, both included; None for any.
        groups: Numbers of groups to try with model workers.
        devices: Devices of the policy, the first of which is tried first.
        engines: Engines to try.
        max_torch_threads: Most torch threads of a process.
        fits: Returns whether the memory is enough for a candidate.
    """

    cores: int
    max_env_workers: int = 0
    max_envs_per_worker: int = 4096
    batch: tuple[int, int] | None = None
    groups: tuple[int, ...] = (1, 2)
    devices: tuple[str, ...] = ("cpu",)
    engines: tuple[str, ...] = ("auto",)
    max_torch_threads: int = 1
    fits: Callable[[Candidate], bool] = lambda _: True

    def __post_init__(self) -> None:
        """Check the bounds; raise a `ConfigError` if there is no choice."""
        whole_attributes(self, ("cores", "max_envs_per_worker", "max_torch_threads"))
        whole_attributes(self, ("max_env_workers",), at_least=0)
        if not (self.groups and self.devices and self.engines):
            raise ConfigError("groups, devices and engines need at least one entry each")
        if self.batch is not None:
            is_pair = isinstance(self.batch, tuple) and len(self.batch) == 2
            if not (is_pair and whole("batch", self.batch[0]) <= whole("batch", self.batch[1])):
                got = brief(self.batch)
                raise ConfigError(f"batch must be the smallest and the largest B, got {got}")

    @property
    def most_env_workers(self) -> int:
        """Largest N."""
        return self.max_env_workers or 2 * self.cores

    def contains(self, c: Candidate) -> bool:
        """Return whether a candidate is allowed, and differs from every simpler one."""
        low, high = self.batch or (1, c.num_envs)
        cores = self.cores // (c.num_model_workers or c.num_env_workers)
        return (
            c.num_env_workers <= self.most_env_workers
            and c.envs_per_worker <= self.max_envs_per_worker
            and low <= c.num_envs <= high
            and self._model_workers_are_sound(c)
            and c.device in self.devices
            and c.engine in self.engines
            and c.torch_threads <= max(1, min(self.max_torch_threads, cores))
            and self.fits(c)
        )

    def all(self) -> Iterator[Candidate]:
        """Yield the candidates with n a power of two, or any divisor if B is limited.

        Large N and M are those of `_counts`, or 192 cores and 8 GPUs would have 10⁸ candidates;
        if B is nearly fixed, N is any number, since few divide B.
        """
        most = self.most_env_workers
        low, high = self.batch or (1, 2**63)
        all_workers = _counts(most, self.cores) if high - low >= most else range(1, most + 1)
        threads = [2**k for k in range(self.max_torch_threads.bit_length())]
        for workers in all_workers:
            models = (0, *_counts(workers, workers))
            choices = (self._sizes(workers), models, self.groups, self.devices, self.engines)
            for n, *choice in itertools.product(*choices, threads):
                candidate = Candidate(n, workers, *choice)
                if self.contains(candidate):
                    yield candidate

    def neighbours(self, c: Candidate) -> list[Candidate]:
        """Return the candidates one step away, without repetition."""
        steps = (self._other_sizes, self._other_env_workers, self._other_policies)
        found = itertools.chain.from_iterable(step(c) for step in steps)
        return [x for x in dict.fromkeys(found) if x != c and self.contains(x)]

    def seeds(self, default: Candidate) -> list[Candidate]:
        """Return candidates that are often fast on some kind of machine, the likeliest first."""
        cores, few = self.cores, max(1, self.cores // 4)
        kinds = [(cores, 0, "cpu")]
        # A GPU needs large batches, and model workers sleep while it computes.
        kinds += [
            (cores, models, device)
            for device in self.devices
            if device != "cpu"
            for models in dict.fromkeys((max(1, few // 2), device.count(",") + 1))
        ]
        kinds += [(cores, 1, "cpu"), (max(1, cores - few), few, "cpu"), (cores, few, "cpu")]
        # One size of each kind first, the other sizes of all kinds after.
        found = [
            self._with_size(
                default.but(
                    envs_per_worker=size if device == "cpu" else size_on_gpu,
                    num_env_workers=workers,
                    num_model_workers=models,
                    groups=2 if models else 1,
                    device=device,
                    torch_threads=1,
                )
            )
            for size, size_on_gpu in zip(_SIZES, _SIZES_ON_GPU, strict=True)
            for workers, models, device in kinds
        ]
        return [c for c in dict.fromkeys(found) if c != default and self.contains(c)]

    def nearest(self, c: Candidate) -> Candidate:
        """Return the allowed candidate nearest to ``c``; ``c`` if none is allowed."""
        plain = c if c.num_model_workers else c.but(groups=1)
        if self.contains(plain):
            return plain

        def distance(x: Candidate) -> tuple[float, ...]:
            counts = ("num_env_workers", "num_model_workers", "groups", "torch_threads")
            apart = [abs(getattr(x, k) - getattr(c, k)) for k in (*counts, "envs_per_worker")]
            return (x.device != c.device, x.engine != c.engine, *apart)

        return min(self.all(), key=distance, default=c)

    def _model_workers_are_sound(self, c: Candidate) -> bool:
        if c.num_model_workers == 0:
            # A single process gains nothing from taking its environments in turn, and a CUDA
            # context for every env worker would fill the device's memory.
            return c.groups == 1 and c.device == "cpu"
        return (
            c.num_model_workers <= c.num_env_workers
            and c.groups in self.groups
            and c.envs_per_worker % c.groups == 0
        )

    def _sizes(self, workers: int) -> list[int]:
        if self.batch is None:
            return [2**k for k in range(self.max_envs_per_worker.bit_length())]
        low, high = self.batch
        span = range(-(-low // workers), high // workers + 1)
        if len(span) <= 16:
            return list(span)
        powers = [2**k for k in range(high.bit_length()) if 2**k in span]
        return sorted({span[0], *powers, span[-1]})

    def _with_size(self, c: Candidate) -> Candidate:
        """Return ``c`` with the nearest n that the batch allows."""
        if self.batch is None:
            return c
        workers, (low, high) = c.num_env_workers, self.batch
        n = min(max(c.envs_per_worker, low // workers, 1), max(high // workers, 1))
        if low // workers * workers < low and high < n * workers:
            n = max(low // workers, 1)
        return c.but(envs_per_worker=n)

    def _other_sizes(self, c: Candidate) -> Iterator[Candidate]:
        n = c.envs_per_worker
        sizes = [2 * n, n // 2, 4 * n, n // 4]
        if self.batch is not None:
            allowed = self._sizes(c.num_env_workers)
            sizes += [s for s in allowed if s < n][-1:] + [s for s in allowed if s > n][:1]
        yield from (c.but(envs_per_worker=max(1, size)) for size in sizes)

    def _other_env_workers(self, c: Candidate) -> Iterator[Candidate]:
        workers, most = c.num_env_workers, self.most_env_workers
        counts = [workers + 1, workers - 1, 2 * workers, workers // 2, self.cores, self.cores - 1]
        if self.batch is not None:
            counts += range(1, most + 1)
        for count in dict.fromkeys(k for k in counts if 1 <= k <= most and k != workers):
            models = min(c.num_model_workers, count)
            other = c.but(num_env_workers=count, num_model_workers=models)
            yield other
            if count in (2 * workers, workers // 2) or self.batch is not None:
                yield other.but(envs_per_worker=max(1, c.num_envs // count))

    def _other_policies(self, c: Candidate) -> Iterator[Candidate]:
        """Yield other M, groups and devices, engines and threads."""
        models, threads = c.num_model_workers, c.torch_threads
        if models:
            yield c.but(num_model_workers=0, groups=1, device="cpu")
            counts = (models + 1, models - 1, 2 * models, models // 2)
            yield from (c.but(num_model_workers=count) for count in counts if count)
            yield from (c.but(groups=groups) for groups in self.groups)
            yield from (c.but(device=device) for device in self.devices)
        else:
            for groups, device in itertools.product(self.groups[::-1], self.devices):
                yield c.but(num_model_workers=1, groups=groups, device=device)
        yield from (c.but(engine=name) for name in self.engines)
        yield from (c.but(torch_threads=k) for k in (2 * threads, max(1, threads // 2)))


def _counts(most: int, cores: int) -> list[int]:
    """Return all numbers up to 16; above, 2ᵏ, 3 · 2ᵏ, those around ``cores``, and ``most``."""
    large = {factor << k for factor in (2, 3) for k in range(3, most.bit_length())}
    return sorted(k for k in {*range(1, 17), *large, cores - 1, cores, most} if 1 <= k <= most)
