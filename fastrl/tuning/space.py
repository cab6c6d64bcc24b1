"""Which candidates a machine and a user allow, and which of them lie next to each other."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fastrl.arguments import brief, whole, whole_attributes
from fastrl.errors import ConfigError
from fastrl.tuning.candidate import Candidate

_SIZES = (64, 16, 256)
_SIZES_OF_GPU = (256, 64, 1024)
"""Environments of each worker that usually do well, the likeliest first."""


def _always(candidate: Candidate) -> bool:
    return True


@dataclass(frozen=True)
class Space:
    """The candidates among which is searched.

    Attributes:
        cores: Cores that may be used.
        max_env_workers: Largest N; by default two per core.
        max_envs_per_worker: Largest n.
        batch: Smallest and largest B = N · n, both included; None for any.
        groups: Numbers of groups to try where there are model workers.
        devices: Where policies may run; the first is tried first.
        engines: Engines to try.
        max_torch_threads: Most torch threads of a process.
        fits: Says whether the memory is enough.
    """

    cores: int
    max_env_workers: int = 0
    max_envs_per_worker: int = 4096
    batch: tuple[int, int] | None = None
    groups: tuple[int, ...] = (1, 2)
    devices: tuple[str, ...] = ("cpu",)
    engines: tuple[str, ...] = ("auto",)
    max_torch_threads: int = 1
    fits: Callable[[Candidate], bool] = _always

    def __post_init__(self) -> None:
        """Refuse a space that is none.

        Raises:
            ConfigError: A number is no whole one, or too small, or there is nothing to choose.
        """
        whole_attributes(self, ("cores", "max_envs_per_worker", "max_torch_threads"))
        whole_attributes(self, ("max_env_workers",), at_least=0)
        if not (self.groups and self.devices and self.engines):
            raise ConfigError("groups, devices and engines need at least one entry each")
        if self.batch is not None:
            are_two = isinstance(self.batch, tuple) and len(self.batch) == 2
            if not (are_two and whole("batch", self.batch[0]) <= whole("batch", self.batch[1])):
                told = brief(self.batch)
                raise ConfigError(f"batch must be the smallest and the largest B, got {told}")

    @property
    def most_env_workers(self) -> int:
        """Largest N."""
        return self.max_env_workers or 2 * self.cores

    def contains(self, c: Candidate) -> bool:
        """Say whether a candidate is allowed, and is not the same as a simpler one."""
        low, high = self.batch or (1, c.num_envs)
        return (
            1 <= c.num_env_workers <= self.most_env_workers
            and 1 <= c.envs_per_worker <= self.max_envs_per_worker
            and low <= c.num_envs <= high
            and self._model_workers_are_sound(c)
            and c.device in self.devices
            and c.engine in self.engines
            and self._threads_are_sound(c)
            and self.fits(c)
        )

    def all(self) -> Iterator[Candidate]:
        """Yield the candidates with n a power of two, or any divisor where B is limited.

        Of N and M, all small numbers and some of the large ones (see `_counts`): a machine of 192
        cores and 8 GPUs would have 10⁸ otherwise. All N where B is nearly fixed, since few divide.
        """
        most = self.most_env_workers
        low, high = self.batch or (1, 2**63)
        all_workers = _counts(most, self.cores) if high - low >= most else range(1, most + 1)
        for workers in all_workers:
            model_workers = (0, *_counts(workers, workers))
            for n, models in itertools.product(self._sizes(workers), model_workers):
                for choice in itertools.product(self.groups, self.devices, self.engines):
                    groups, device, engine = choice
                    for threads in self._thread_counts():
                        c = Candidate(n, workers, models, groups, device, engine, threads)
                        if self.contains(c):
                            yield c

    def neighbours(self, c: Candidate) -> list[Candidate]:
        """Return the candidates one step away, without repetition."""
        found = itertools.chain(
            self._other_sizes(c),
            self._other_env_workers(c),
            self._other_model_workers(c),
            self._other_executions(c),
        )
        return [x for x in dict.fromkeys(found) if x != c and self.contains(x)]

    def seeds(self, default: Candidate) -> list[Candidate]:
        """Return what usually does well on some machine or other, the likeliest first."""
        cores, few = self.cores, max(1, self.cores // 4)
        alone = default.but(
            num_env_workers=cores, num_model_workers=0, groups=1, device="cpu", torch_threads=1
        )
        kinds = [(alone, _SIZES)]
        # A GPU wants large batches, and sleeps while it computes: it needs no core of its own.
        kinds += [
            (_served(default, cores, models, device), _SIZES_OF_GPU)
            for device in self.devices
            if device != "cpu"
            for models in dict.fromkeys((max(1, few // 2), device.count(",") + 1))
        ]
        kinds += [
            (_served(default, workers, models, "cpu"), _SIZES)
            for workers, models in ((cores, 1), (max(1, cores - few), few), (cores, few))
        ]
        # One size of each kind first, the other sizes of all kinds after.
        sized = [
            self._with_size(kind, sizes[i]) for i in range(len(_SIZES)) for kind, sizes in kinds
        ]
        return [c for c in dict.fromkeys(sized) if c != default and self.contains(c)]

    def nearest(self, c: Candidate) -> Candidate:
        """Return the allowed candidate that is most like ``c``, which may not be allowed."""
        if self.contains(c):
            return c
        plain = c.but(groups=1) if c.num_model_workers == 0 else c
        if self.contains(plain):
            return plain

        def distance(x: Candidate) -> tuple[float, ...]:
            return (
                x.device != c.device,
                x.engine != c.engine,
                abs(x.num_env_workers - c.num_env_workers),
                abs(x.num_model_workers - c.num_model_workers),
                abs(x.groups - c.groups),
                abs(x.torch_threads - c.torch_threads),
                abs(x.envs_per_worker - c.envs_per_worker),
            )

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

    def _threads_are_sound(self, c: Candidate) -> bool:
        most = max(1, min(self.max_torch_threads, self.cores // c.num_policies))
        return 1 <= c.torch_threads <= most

    def _thread_counts(self) -> list[int]:
        return [2**k for k in range(self.max_torch_threads.bit_length())]

    def _sizes(self, workers: int) -> list[int]:
        if self.batch is None:
            return [2**k for k in range(self.max_envs_per_worker.bit_length())]
        low, high = self.batch
        span = range(-(-low // workers), high // workers + 1)
        if len(span) <= 16:
            return list(span)
        powers = [2**k for k in range(high.bit_length()) if 2**k in span]
        return sorted({span[0], *powers, span[-1]})

    def _with_size(self, c: Candidate, n: int) -> Candidate:
        """Return ``c`` with n environments per worker, or as near as the batch allows."""
        if self.batch is not None:
            low, high = (bound // c.num_env_workers for bound in self.batch)
            n = min(max(n, low, 1), max(high, 1))
            if low * c.num_env_workers < self.batch[0] <= self.batch[1] < n * c.num_env_workers:
                n = low
        return c.but(envs_per_worker=n)

    def _other_sizes(self, c: Candidate) -> Iterator[Candidate]:
        n = c.envs_per_worker
        for size in (2 * n, n // 2, 4 * n, n // 4):
            yield c.but(envs_per_worker=max(1, size))
        if self.batch is not None:
            sizes = self._sizes(c.num_env_workers)
            around = [s for s in sizes if s < n][-1:] + [s for s in sizes if s > n][:1]
            yield from (c.but(envs_per_worker=size) for size in around)

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

    def _other_model_workers(self, c: Candidate) -> Iterator[Candidate]:
        models = c.num_model_workers
        if models == 0:
            for groups, device in itertools.product(self.groups[::-1], self.devices):
                yield c.but(num_model_workers=1, groups=groups, device=device)
            return
        yield c.but(num_model_workers=0, groups=1, device="cpu")
        counts = (models + 1, models - 1, 2 * models, models // 2)
        for count in dict.fromkeys(k for k in counts if 1 <= k <= c.num_env_workers):
            yield c.but(num_model_workers=count)
        yield from (c.but(groups=groups) for groups in self.groups)

    def _other_executions(self, c: Candidate) -> Iterator[Candidate]:
        if c.num_model_workers:
            yield from (c.but(device=device) for device in self.devices)
        yield from (c.but(engine=name) for name in self.engines)
        threads = c.torch_threads
        yield from (c.but(torch_threads=k) for k in (2 * threads, max(1, threads // 2)))


def _counts(most: int, cores: int) -> list[int]:
    """Return all numbers up to 16; beyond, 2ᵏ and 3 · 2ᵏ, those around ``cores``, and ``most``."""
    large = {factor << k for factor in (2, 3) for k in range(3, most.bit_length())}
    return sorted(k for k in {*range(1, 17), *large, cores - 1, cores, most} if 1 <= k <= most)


def _served(default: Candidate, workers: int, models: int, device: str) -> Candidate:
    return default.but(
        num_env_workers=workers, num_model_workers=models, groups=2, device=device, torch_threads=1
    )
