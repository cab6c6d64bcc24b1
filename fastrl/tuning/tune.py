"""A whole tuning, from a configuration to a report."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fastrl.arguments import brief
from fastrl.closing import Closing
from fastrl.config import Config
from fastrl.cores import usable_cores
from fastrl.errors import ConfigError, FastrlError
from fastrl.machine import machine, versions
from fastrl.models.images import has_images
from fastrl.models.inference import bfloat16
from fastrl.sampling.build import env_factory, make_plan
from fastrl.sampling.stats import memory_of
from fastrl.throughput.limits import Limit, LimitProbe
from fastrl.tuning.apply import candidate_of, with_candidate
from fastrl.tuning.candidate import Candidate
from fastrl.tuning.finding import Finding, Settings
from fastrl.tuning.memory import MemoryNeed, unique_bytes
from fastrl.tuning.report import TuneReport
from fastrl.tuning.search import Search
from fastrl.tuning.sources import sources
from fastrl.tuning.space import Space
from fastrl.tuning.trials import Journal, Trial
from fastrl.tuning.workbench import Objective, Workbench, with_few_envs
from fastrl.workers.plan import SamplingPlan
from fastrl.workers.supervisor import call_in_child

_LIMIT_ROUNDS = 3
_LIMIT_WINDOW_S = 0.6
_LIMIT_S, _LIMIT_SHARE = 6.0, 0.15
"""What starting and measuring the limit takes, and its share of long budgets."""
_SHORT_S = 20.0
"""Budgets for which little is measured more than once."""
_MOST_TORCH_THREADS = 8
_METHOD = 3
"""Raised whenever a window comes to mean something else, so that older ones are measured anew."""
_MOST_DIGITS = 12


@dataclass(frozen=True)
class TuneOptions:
    """What to tune for, and how long.

    Attributes:
        objective: ``fps`` of sampling alone, or ``train_fps`` with the learner.
        budget_s: Wall time of all trials, of an earlier tuning that is gone on with as well.
            Setting up comes first: starting processes, and learning what resets cost.
        batch: Smallest and largest B = N · n; None for any where only sampling counts, and for
            the configured one in training.
        with_limit: Measure the physical limit at the end.
        seed: Of the search.
    """

    objective: Objective = "fps"
    budget_s: float = 120.0
    batch: tuple[int, int] | None = None
    with_limit: bool = True
    seed: int = 0


class Tuning(Closing):
    """A tuning that may be interrupted at any time; use it in a ``with`` block.

    Args:
        config: What to tune.
        options: What for.
        journal: Keeps the trials.
        watch: Called after every trial with it and with the best so far.
        command: The command line that repeats it.

    Raises:
        ConfigError: There is nothing to tune, or no candidate has the batch that is asked for.
        EnvError: The environment cannot be built.
    """

    def __init__(
        self,
        config: Config,
        options: TuneOptions,
        journal: Journal | None = None,
        watch: Callable[[Trial, Candidate | None], None] | None = None,
        command: str = "",
    ) -> None:
        if config.sampler.kind != "process":
            raise ConfigError(f"sampler.kind: only 'process' is tuned, got '{config.sampler.kind}'")
        self._config, self._options, self._command = config, options, command
        self._stack = ExitStack()
        self._began_s = self._ready_s = time.monotonic()
        self._limits: list[tuple[Limit, float]] = []
        try:
            self._limit_s = max(5.0, options.budget_s / 6)
            # A start takes as long whatever the budget; what takes most of it is of no use.
            start_limit_s = max(self._limit_s, options.budget_s / 2)
            self._bench = Workbench(config, options.objective, self._limit_s, start_limit_s)
            self._stack.callback(self._bench.close)
            self.space = self._build_space()
            default = self.space.nearest(candidate_of(config))
            if not self.space.contains(default) and options.batch is not None:
                raise ConfigError(f"--batch: no n and N make {options.batch[0]}:{options.batch[1]}")
            self._ready_s = time.monotonic()
            self._search = Search(
                self.space,
                default,
                self._bench,
                self._settings(),
                journal=journal,
                watch=lambda trial: watch(trial, self._search.incumbent) if watch else None,
            )
        except BaseException:
            self._stack.close()
            raise

    def _settings(self) -> Settings:
        """Return how to search, with what the limit leaves of the time."""
        options = self._options
        limit_s = min(max(_LIMIT_S, _LIMIT_SHARE * options.budget_s), options.budget_s / 2)
        return Settings(
            budget_s=options.budget_s - limit_s if options.with_limit else 0.97 * options.budget_s,
            final_rounds=1 if options.budget_s < _SHORT_S else 3,
            seed=options.seed,
            limit_s=self._limit_s,
        )

    def run(self) -> TuneReport:
        """Search, compare with the default, and measure the limit.

        Raises:
            TrialError: Nothing could be measured.
        """
        finding = self._search.run()
        if self._options.with_limit and self._left_s() > 0:
            self._measure_limit(finding.best)
        return self._report(finding)

    def _left_s(self) -> float:
        """Return what is left of the time."""
        return self._options.budget_s - (time.monotonic() - self._ready_s)

    def report(self) -> TuneReport:
        """Return the best so far, also after an interrupt.

        Raises:
            TrialError: Nothing has been measured yet.
        """
        return self._report(self._search.finding())

    def close(self) -> None:
        """End all processes."""
        self._stack.close()

    def _report(self, finding: Finding) -> TuneReport:
        return TuneReport(
            env=self._config.env.id,
            objective=self._options.objective,
            finding=finding,
            limits=tuple(self._limits),
            wall_s=time.monotonic() - self._began_s,
            command=self._command,
        )

    def _build_space(self) -> Space:
        config, plan = self._config, self._bench.plan
        small = with_few_envs(candidate_of(config))
        worker_bytes = self._bench.calibrate(small)
        process_bytes = call_in_child(_own_bytes, config.sampler.start_timeout_s)
        need = MemoryNeed.usable(
            plan.schema,
            plan.rollout_length,
            process_bytes,
            max(0, worker_bytes - process_bytes) // small.envs_per_worker,
        )
        return replace(_space(config, self._options, plan), fits=need.fits)

    def _measure_limit(self, best: Candidate) -> None:
        """Measure limit and best in turn; an environment that cannot be built alone has none."""
        try:
            factory = env_factory(self._config)
            # What is bare of a batched environment is a batch of the best's size.
            plan = make_plan(with_candidate(self._config, best), env_spec=self._bench.plan.env_spec)
            with LimitProbe(plan, factory, usable_cores(), timeout_s=20) as probe:
                for _ in range(1 if self._options.budget_s < _SHORT_S else _LIMIT_ROUNDS):
                    limit = probe.measure(_LIMIT_WINDOW_S)
                    self._limits.append((limit, self._bench(best, _LIMIT_WINDOW_S).fps))
        except FastrlError:
            self._limits.clear()


def could_find(config: Config, options: TuneOptions, candidate: Candidate) -> bool:
    """Say whether a tuning could end with a candidate here, as far as its memory is enough.

    Raises:
        EnvError: The environment had to be looked at, and cannot be built.
    """
    # What an environment observes decides only which engines and how many threads are tried.
    usual = candidate.torch_threads == 1 and candidate.engine == config.sampler.engine
    space = _space(config, options, None if usual else make_plan(config))
    return space.contains(candidate) or candidate == space.nearest(candidate_of(config))


def _space(config: Config, options: TuneOptions, plan: SamplingPlan | None) -> Space:
    """Return the candidates that a configuration, this machine and a user allow.

    Args:
        config: What to tune.
        options: What for.
        plan: Of the configuration; None for an environment without images.
    """
    engines: tuple[str, ...] = (config.sampler.engine,)
    batch, images = options.batch, False
    if batch is None and options.objective == "train_fps":
        batch = (config.topology.num_envs,) * 2
    if plan is not None:
        images = has_images(plan.env_spec.observation_space, config.model)
        engines = _engines(config, plan, images, options.objective)
    return Space(
        cores=usable_cores(),
        batch=batch,
        devices=_devices(),
        engines=engines,
        max_torch_threads=_MOST_TORCH_THREADS if images else 1,
    )


def study_path() -> Path:
    """Return where trials are kept unless another file is named; its directory is made."""
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        directory = Path(cache) / "fastrl"
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{directory} cannot be made: {error.strerror}") from error
    except RuntimeError as error:  # an account without a home
        raise ConfigError(f"there is no place for trials, as {error}; name one: --study") from error
    return directory / "tuning.db"


def study_name(config: Config, options: TuneOptions) -> str:
    """Return a name that is equal where measurements are worth the same.

    That is: the machine with its devices, the versions of packages, the environment and its code
    (see `sources`), the policy and its engine, the length of rollouts, whether they are in lock
    step, how they are checked, and for training all that is learnt with.
    """
    sampler = config.sampler
    what = {
        "machine": machine(),
        "devices": _devices(),
        "versions": versions(),
        "env": config.env.model_dump(mode="json"),
        "sources": sources(config),
        "model": config.model.model_dump(mode="json"),
        "rollout_length": sampler.rollout_length,
        "engine": sampler.engine,
        "lock_step": sampler.lock_step,
        "checks": [sampler.debug, config.faults.bad_numbers],
        "objective": options.objective,
        "batch": options.batch,
        "seed": options.seed,
        "method": _METHOD,
    }
    if options.objective == "train_fps":
        # Rates and coefficients change what is learnt, and not how fast.
        algorithm = config.algorithm.model_dump(mode="json")
        what["algorithm"] = {k: v for k, v in algorithm.items() if not isinstance(v, float)}
        what["mode"] = sampler.mode
        what["envs"] = config.topology.num_envs
    digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()
    return f"{config.env.id} {options.objective} {digest[:12]}"


def parse_batch(text: str | None) -> tuple[int, int] | None:
    """Return the smallest and largest B that ``B`` or ``lo:hi`` stands for.

    Raises:
        ConfigError: It stands for none.
    """
    if text is None:
        return None
    low, colon, high = text.partition(":")
    ends = (low, high) if colon else (low,)
    if not all(end.isdecimal() and len(end) <= _MOST_DIGITS for end in ends):
        raise ConfigError(f"--batch must be B or lo:hi, such as 64 or 64:1024; got {brief(text)}")
    bounds = (int(ends[0]), int(ends[-1]))
    if not 1 <= bounds[0] <= bounds[1]:
        raise ConfigError(f"--batch must be at least 1, and lo at most hi; got {brief(text)}")
    return bounds


def parse_seconds(text: str) -> float:
    """Return the seconds that ``90``, ``120s`` or ``2m`` stands for.

    Raises:
        ConfigError: It stands for none.
    """
    number, unit = (text[:-1], text[-1]) if text[-1:] in ("s", "m") else (text, "s")
    try:
        seconds = float(number) * (60 if unit == "m" else 1)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 1e6:
        told = brief(text)
        raise ConfigError(f"--budget must be seconds or minutes, such as 120s or 2m; got {told}")
    return seconds


def _own_bytes() -> int:
    return unique_bytes(memory_of({"tuner": os.getpid()}))


def _devices() -> tuple[str, ...]:
    found = tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))
    together = (",".join(found),) if len(found) > 1 else ()
    return ("cpu", *found, *together)


def _engines(
    config: Config, plan: SamplingPlan, images: bool, objective: Objective
) -> tuple[str, ...]:
    """Return the engines to try: the configured one first.

    Rounding changes what is learnt from, a little, so training tries it only where it is
    configured; and it pays for conv nets only.
    """
    engines = [config.sampler.engine]
    if images and objective == "fps" and plan.build_model is not None:
        devices = [torch.device(device.partition(",")[0]) for device in _devices()]
        if any(not bfloat16.why_not(plan.build_model(), device) for device in devices):
            engines += ["auto", "bfloat16"]
    return tuple(dict.fromkeys(engines))
