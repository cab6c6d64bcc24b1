"""A whole tuning, from a configuration to a report, and ``sampler: auto`` before training."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from rich.console import Console

from fastrl.arguments import taken
from fastrl.closing import Closing
from fastrl.config import Config
from fastrl.errors import ConfigError, FastrlError
from fastrl.live_display import check_console
from fastrl.models.images import has_images
from fastrl.models.inference import bfloat16
from fastrl.models.policy import check_model_class
from fastrl.sampling.build import env_factory, make_plan
from fastrl.system import machine, usable_cores, versions
from fastrl.throughput.limits import LimitProbe
from fastrl.training.session import check_named_code
from fastrl.tuning.search import TIME_IS_UP, Search, Settings
from fastrl.tuning.sources import sources
from fastrl.tuning.space import Candidate, Space, candidate_of, with_candidate
from fastrl.tuning.study import Result, Study, Trial, TrialError, cached_study
from fastrl.tuning.tune_report import TuneReport
from fastrl.tuning.workbench import Objective, Workbench
from fastrl.workers.plan import SamplingPlan

_LIMIT_WINDOW_S = 0.6
_LIMIT_S, _LIMIT_SHARE = 6.0, 0.15  # time to measure the limit, and its share of long budgets
_SHORT_S = 20.0  # budgets below leave no time to measure anything more than once
_MOST_TORCH_THREADS = 8
_METHOD = 3  # raised when windows are measured differently, so that older trials are void


@dataclass(frozen=True)
class TuneOptions:
    """What to tune for, and how long.

    Attributes:
        objective: ``fps`` of sampling alone, or ``train_fps`` with the learner.
        budget_s: Wall time of all trials, including those of an earlier tuning that is continued.
            Setting up is not counted: starting processes, and measuring what resets cost.
        batch: Smallest and largest B = N · n. None means any when sampling alone, and
            the configured B in training.
        with_limit: Whether to measure the physical limit at the end.
        seed: Of the search.
    """

    objective: Objective = "fps"
    budget_s: float = 120.0
    batch: tuple[int, int] | None = None
    with_limit: bool = True
    seed: int = 0

    @property
    def rounds(self) -> int:
        """How often best, default and limit are measured at the end."""
        return 1 if self.budget_s < _SHORT_S else 3

    @property
    def search_s(self) -> float:
        """The budget of the search, without the time of the limit."""
        if not self.with_limit:
            return 0.97 * self.budget_s
        limit_s = max(_LIMIT_S, _LIMIT_SHARE * self.budget_s)
        return self.budget_s - min(limit_s, self.budget_s / 2)


class Tuning(Closing):
    """A tuning, which may be interrupted at any time; use it in a ``with`` block.

    Args:
        config: What to tune.
        options: What for.
        study: Keeps the trials.
        watch: Called after every trial.
        command: The command line, for the report.

    Raises:
        ConfigError: There is nothing to tune, or no candidate has the requested batch.
        EnvError: The environment cannot be built.
    """

    def __init__(
        self,
        config: Config,
        options: TuneOptions,
        study: Study | None = None,
        watch: Callable[[Trial], None] | None = None,
        command: str = "",
    ) -> None:
        if config.sampler.kind != "process":
            raise ConfigError(f"sampler.kind: only 'process' is tuned, got '{config.sampler.kind}'")
        check_model_class(config.model)
        if options.objective == "fps":
            config = config.for_throughput()
        self._config, self._options, self._command = config, options, command
        self._began_s = time.monotonic()
        self._limit: tuple[float, float] | None = None
        limit_s = max(5.0, options.budget_s / 6)
        # A start takes the same time for any budget, and must leave time for the rest.
        self._bench = Workbench(
            config, options.objective, limit_s, start_limit_s=max(limit_s, options.budget_s / 2)
        )
        try:
            default = candidate_of(config)
            fits = self._bench.calibrate(default).fits
            self.space = replace(_space(config, options, self._bench.plan), fits=fits)
            default = self.space.nearest(default)
            if not self.space.contains(default) and options.batch is not None:
                raise ConfigError(f"--batch: no n and N make {options.batch[0]}:{options.batch[1]}")
            settings = Settings(options.search_s, options.rounds, options.seed, limit_s)
            self._search = Search(
                self.space, default, self._bench, settings, study=study, watch=watch
            )
        except BaseException:
            self.close()
            raise
        self._ready_s = time.monotonic()

    def run(self) -> TuneReport:
        """Search and measure the limit; raise a `TrialError` where nothing could be measured."""
        finding = self._search.run()
        left_s = self._options.budget_s - (time.monotonic() - self._ready_s)
        if self._options.with_limit and left_s > 0:
            self._limit = self._measured_limit(finding.best)
        return self.report()

    def report(self) -> TuneReport:
        """Return the best so far, also after an interrupt; see `Search.finding`."""
        wall_s, finding = time.monotonic() - self._began_s, self._search.finding()
        env, objective = self._config.env.id, self._options.objective
        return TuneReport(env, objective, finding, self._limit, wall_s, self._command)

    def close(self) -> None:
        """End all processes."""
        self._bench.close()

    def _measured_limit(self, best: Candidate) -> tuple[float, float] | None:
        """Measure limit and best in turns and return the pair with the median ratio.

        An environment that cannot be built without workers has no limit.
        """
        pairs = []
        try:
            # The limit of a batched environment is that of a batch of the best's size.
            plan = make_plan(with_candidate(self._config, best), env_spec=self._bench.plan.env_spec)
            cores = usable_cores()
            with LimitProbe(plan, env_factory(self._config), cores, timeout_s=20) as probe:
                for _ in range(self._options.rounds):
                    limit = probe.measure(_LIMIT_WINDOW_S)
                    pairs.append((limit.fps, self._bench(best, _LIMIT_WINDOW_S).fps))
        except FastrlError:
            return None
        pairs.sort(key=lambda pair: pair[1] / pair[0])
        return pairs[(len(pairs) - 1) // 2]


def tuned(config: Config, console: Console | None = None, *, fresh: bool = False) -> Config:
    """Tune a configuration with ``sampler.tune_s`` for training, and return it without that key.

    The result is kept in the user's cache directory, under a `study_name`. A tuning that ran out
    of time is continued where there is more. B stays as configured, since it changes what is
    learnt.

    Args:
        config: Returned as it is where ``sampler.tune_s`` is null.
        console: Where to print the result; nowhere by default.
        fresh: Discard earlier results.

    Raises:
        ConfigError: The sampler has nothing to tune.
        EnvError: The environment cannot be built.
    """
    taken("tuned", config, Config, "load_config reads one from a file")
    check_console(console)

    def say(text: str) -> None:
        if console is not None:
            console.print(text, highlight=False, markup=False, soft_wrap=True)

    budget_s = config.sampler.tune_s
    if budget_s is None:
        return config
    # What would end the run after the tuning is reported before it.
    check_named_code(config)
    sampler = config.sampler.model_copy(update={"tune_s": None})
    config = config.model_copy(update={"sampler": sampler})
    options = TuneOptions("train_fps", budget_s, with_limit=False)
    study = cached_study(study_name(config, options), say, fresh=fresh)
    kept = study.result
    try:
        if kept is not None and (kept.enough_s is None or budget_s <= kept.enough_s):
            if could_find(config, options, kept.best):
                say(f"tuned before: {kept.best.label}")
                return with_candidate(config, kept.best)
            say("the earlier result is impossible for this configuration here; tuning again")
        with Tuning(config, options, study) as tuning:
            finding = tuning.run().finding
    except TrialError as error:
        say(f"not tuned, as {error}")
        return config
    study.keep_result(Result(finding.best, budget_s if finding.ended == TIME_IS_UP else None))
    say(f"tuned in {finding.spent_s:.0f} s: {finding.best.label}")
    return with_candidate(config, finding.best)


def could_find(config: Config, options: TuneOptions, candidate: Candidate) -> bool:
    """Say whether a tuning on this machine might choose a candidate, its memory aside."""
    # The observations of the environment only matter for engines and threads.
    usual = candidate.torch_threads == 1 and candidate.engine == config.sampler.engine
    space = _space(config, options, None if usual else make_plan(config))
    return space.contains(candidate) or candidate == space.nearest(candidate_of(config))


def study_name(config: Config, options: TuneOptions) -> str:
    """Return a name that is equal for measurements that may be compared.

    It depends on the machine with its devices, the versions of packages, the environment and its
    code (see `sources`), the policy and its engine, the rollouts and their checks, and in training
    on everything that changes the time of an update.
    """
    sampler = config.sampler
    what = {
        "machine": machine(),
        "devices": _devices(),
        "versions": versions(),
        "env": config.env.model_dump(mode="json"),
        "sources": sources(config),
        "model": config.model.model_dump(mode="json"),
        "sampler": [sampler.rollout_length, sampler.engine, sampler.lock_step, sampler.debug],
        "bad_numbers": config.faults.bad_numbers,
        "options": [options.objective, options.batch, options.seed],
        "method": _METHOD,
    }
    if options.objective == "train_fps":
        # Rates and coefficients do not change the speed.
        algorithm = config.algorithm.model_dump(mode="json")
        what["algorithm"] = {k: v for k, v in algorithm.items() if not isinstance(v, float)}
        what["training"] = [sampler.mode, config.topology.num_envs]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()
    return f"{config.env.id} {options.objective} {digest[:12]}"


def _space(config: Config, options: TuneOptions, plan: SamplingPlan | None) -> Space:
    """Return the candidates that a configuration, this machine and a user allow.

    Without a ``plan`` the observations are taken to be without images.
    """
    batch = options.batch
    if batch is None and options.objective == "train_fps":
        batch = (config.topology.num_envs,) * 2
    images = plan is not None and has_images(plan.env_spec.observation_space, config.model)
    devices, engines = _devices(), [config.sampler.engine]
    # Rounding changes slightly what is learnt, so training has it only where it is configured; and
    # it is faster for conv nets only.
    if images and options.objective == "fps" and plan is not None and plan.build_model is not None:
        model, kinds = plan.build_model(), [torch.device(d.partition(",")[0]) for d in devices]
        if any(not bfloat16.why_not(model, kind) for kind in kinds):
            engines += ["auto", "bfloat16"]
    return Space(
        cores=usable_cores(),
        batch=batch,
        devices=devices,
        engines=tuple(dict.fromkeys(engines)),
        max_torch_threads=_MOST_TORCH_THREADS if images else 1,
    )


def _devices() -> tuple[str, ...]:
    found = tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))
    together = (",".join(found),) if len(found) > 1 else ()
    return ("cpu", *found, *together)
