"""A whole tuning, from a configuration to a report."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import re
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.machinery import PathFinder
from pathlib import Path

import gymnasium
import torch

from fastrl.closing import Closing, closing_on_error
from fastrl.config import Config
from fastrl.config.fields import code_of
from fastrl.envs.family import family_of, own_families
from fastrl.errors import ConfigError, FastrlError
from fastrl.models.images import has_images
from fastrl.models.inference.engines import why_not_bfloat16
from fastrl.models.policy import check_model_class
from fastrl.sampling.build import env_factory, make_plan
from fastrl.system import machine, usable_cores, versions
from fastrl.throughput.limits import LimitProbe
from fastrl.tuning.search import TIME_IS_UP, Search, Settings
from fastrl.tuning.space import Candidate, Space, candidate_of, with_candidate
from fastrl.tuning.study import Result, Study, Trial, TrialError, cached_study
from fastrl.tuning.tune_report import TuneReport
from fastrl.tuning.workbench import Objective, Workbench
from fastrl.workers.plan import SamplingPlan

_LIMIT_WINDOW_S = 0.6
_LIMIT_S, _LIMIT_SHARE = 6.0, 0.15  # time to measure the limit, and its share of long budgets
_SHORT_S = 20.0  # smaller budgets have no time to measure anything twice
_MOST_TORCH_THREADS = 8
_METHOD = 3  # increased when the measurement changes, which makes older trials void
_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
"""An import path, such as gymnasium's registry contains."""
_INSTALLED = tuple(
    Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")
)


@dataclass(frozen=True)
class TuneOptions:
    """The objective and the budgets of a tuning.

    Attributes:
        objective: ``fps`` of sampling alone, or ``train_fps`` with the learner.
        budget_s: Wall time of all trials, including those of an earlier tuning that is continued.
            The start of processes and the measurement of resets are not counted.
        batch: Smallest and largest B = N · n. None means any when sampling alone, and
            the configured B in training.
        with_limit: Whether to measure the physical limit at the end.
        seed: Seed of the search.
    """

    objective: Objective = "fps"
    budget_s: float = 120.0
    batch: tuple[int, int] | None = None
    with_limit: bool = True
    seed: int = 0

    @property
    def rounds(self) -> int:
        """Number of final measurements of best, default and limit."""
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
        config: Configuration to tune.
        options: Objective and budgets.
        study: File of the trials.
        watch: Called after every trial.
        command: Command line, for the report.

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
        # A start takes equally long for any budget, and must leave time for the trials.
        self._bench = Workbench(
            config, options.objective, limit_s, start_limit_s=max(limit_s, options.budget_s / 2)
        )
        with closing_on_error(self):
            default = candidate_of(config)
            fits = self._bench.calibrate(default).fits
            self.space = replace(_space(config, options, self._bench.plan), fits=fits)
            default = self.space.nearest(default)
            if not self.space.contains(default) and options.batch is not None:
                low, high = options.batch
                raise ConfigError(f"--batch: no product n · N is in {low}:{high}")
            settings = Settings(options.search_s, options.rounds, options.seed, limit_s)
            self._search = Search(
                self.space, default, self._bench, settings, study=study, watch=watch
            )
        self._ready_s = time.monotonic()

    def run(self) -> TuneReport:
        """Search and measure the limit; raise a `TrialError` if nothing could be measured."""
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
            # The limit of a batched environment is measured with the best candidate's batch size.
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


def tuned_here(
    config: Config, budget_s: float, say: Callable[[str], None], *, fresh: bool
) -> Candidate | None:
    """Return the best candidate for training on this machine; None if none can be measured.

    Args:
        config: Configuration to train.
        budget_s: Budget of all trials in seconds.
        say: Called with lines to print.
        fresh: Discard earlier results.

    Raises:
        ConfigError: The sampler has nothing to tune.
        EnvError: The environment cannot be built.
    """
    options = TuneOptions("train_fps", budget_s, with_limit=False)
    study = cached_study(study_name(config, options), say, fresh=fresh)
    kept = study.result
    try:
        if kept is not None and (kept.enough_s is None or budget_s <= kept.enough_s):
            if could_find(config, options, kept.best):
                say(f"tuned before: {kept.best.label}")
                return kept.best
            say("the earlier result is impossible for this configuration here; tuning again")
        with Tuning(config, options, study) as tuning:
            finding = tuning.run().finding
    except TrialError as error:
        say(f"not tuned, as {error}")
        return None
    study.keep_result(Result(finding.best, budget_s if finding.ended == TIME_IS_UP else None))
    say(f"tuned in {finding.spent_s:.0f} s: {finding.best.label}")
    return finding.best


def could_find(config: Config, options: TuneOptions, candidate: Candidate) -> bool:
    """Return whether a tuning on this machine could choose a candidate, apart from its memory."""
    # The observations of the environment only matter for engines and threads.
    usual = candidate.torch_threads == 1 and candidate.engine == config.sampler.engine
    space = _space(config, options, None if usual else make_plan(config))
    return space.contains(candidate) or candidate == space.nearest(candidate_of(config))


def study_name(config: Config, options: TuneOptions) -> str:
    """Return a name that is equal for comparable measurements.

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

    Without a ``plan``, observations are assumed to have no images.
    """
    batch = options.batch
    if batch is None and options.objective == "train_fps":
        batch = (config.topology.num_envs,) * 2
    images = plan is not None and has_images(plan.env_spec.observation_space, config.model)
    devices, engines = _devices(), [config.sampler.engine]
    # Rounding changes learning slightly, so in training it is used only if configured; and
    # it is only faster for conv nets.
    if images and options.objective == "fps" and plan is not None and plan.build_model is not None:
        model, kinds = plan.build_model(), [torch.device(d.partition(",")[0]) for d in devices]
        if any(not why_not_bfloat16(model, kind) for kind in kinds):
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


def sources(config: Config) -> dict[str, str]:
    """Return a digest of each source file, and the version of each package, behind a configuration.

    The files are those of the modules that keys such as ``env.id``, ``env.wrappers`` and
    ``model.class_path`` name, and of all modules that these import, except installed packages. Only
    plug-ins are imported to find them. Files that an environment reads are not included.
    """
    algorithm = config.algorithm
    named = [*_named_by(config.env.id), algorithm.import_path or type(algorithm).__module__]
    named += [path for _, _, paths in code_of(config) for path in paths]
    left = [path.partition(":")[0] for path in named]
    tops = {name: name.partition(".")[0] for name in left}
    found = {name: _version(top) for name, top in tops.items() if top != "fastrl"}
    seen = set[str]()
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        left += [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)]
        file = _file_of(name)
        if file is not None and not any(file.is_relative_to(place) for place in _INSTALLED):
            found[str(file)] = hashlib.sha256(file.read_bytes()).hexdigest()
            left += _imported_by(file, name if file.stem == "__init__" else name.rpartition(".")[0])
    return {name: what for name, what in found.items() if what}


def _named_by(env_id: str) -> Iterator[str]:
    """Yield the modules that an id names, and the one in which it is registered."""
    *modules, name = env_id.split(":")
    yield from (module for module in modules if module != "vector")
    family = family_of(env_id)
    if family is not None and family not in own_families():
        yield type(family).__module__
    entry_point = getattr(gymnasium.registry.get(name), "entry_point", None)
    if entry_point is not None:
        yield entry_point if isinstance(entry_point, str) else entry_point.__module__


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return ""


def _file_of(name: str) -> Path | None:
    """Return the file of a module, which is not imported; None without one, and of fastrl."""
    top, *parts = name.split(".")
    if top == "fastrl":
        return None
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # modules created at run time have no spec
        spec = None
    for part in parts:
        places = spec and spec.submodule_search_locations
        # By its last name alone: namespace packages would import their parent.
        spec = PathFinder.find_spec(part, places) if places else None
    origin = spec and spec.origin
    if name == "__main__":
        origin = getattr(sys.modules["__main__"], "__file__", None)
    file = Path(origin).resolve() if origin else None
    return file if file is not None and file.is_file() else None


def _imported_by(file: Path, package: str) -> Iterator[str]:
    """Yield the modules that a file imports or names in import paths."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # compiled, or broken
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level]
            base = ".".join([*(above if node.level else ()), *filter(None, [node.module])])
            yield from (name for name in (base,) if name)
            yield from (f"{base}.{alias.name}".lstrip(".") for alias in node.names)
        elif isinstance(node, ast.Constant) and _PATH.fullmatch(str(node.value)):
            yield str(node.value).partition(":")[0]
