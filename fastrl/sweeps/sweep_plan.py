"""The plan of a sweep: a configuration and the values of its trials."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fastrl.arguments import brief, file_path, instance
from fastrl.config import Config, load_config, resolved
from fastrl.config.text import parse_yaml
from fastrl.errors import ConfigError
from fastrl.learning.learner import learner_threads
from fastrl.runs import RUNS
from fastrl.sampling.build import make_plan
from fastrl.sweeps.optuna_search import OptunaSearch, SearchSpace
from fastrl.training.session import check_named_code

SEED = "seed"
Values = Mapping[str, Any]
"""Values of a trial by dotted key, such as ``algorithm.learning_rate``."""

_MOST_TRIALS = 10_000
_DRAWS = 10
"""Draws of which one must be valid, as keys may depend on each other."""
_MOST_THREADS = 8
"""Threads of a learner for images, which otherwise has one per core, even if trials share the
cores. Another number would change the last bits of the results."""


@dataclass(frozen=True)
class SweepPlan:
    """The trials of a sweep: a grid of values, or values that Optuna draws.

    Attributes:
        path: The configuration file; None for the defaults alone.
        overrides: Laid over the file, ``section.key=value`` each.
        grid: Values by dotted key; each combination of different values is a trial.
        space: What Optuna draws from, instead of a grid.

    Raises:
        ConfigError: A configuration is invalid or names code that is missing, there is nothing to
            vary, or a key is one of those that the sweep sets.
    """

    path: Path | None
    overrides: Sequence[str] = ()
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    space: SearchSpace | None = None

    def __post_init__(self) -> None:
        """Check the configuration of every trial that is known before."""
        if self.path is not None:
            object.__setattr__(self, "path", file_path("path", self.path))
        grid = instance("grid", self.grid, Mapping)
        object.__setattr__(self, "grid", {key: _plain(key, grid[key]) for key in grid})
        if self.space is not None:
            instance("space", self.space, SearchSpace, "load_space reads one from a file")
        if self.grid and self.space is not None:
            raise ConfigError(
                "--space draws all values; --seeds and --over are for sweeps without it"
            )
        if not self.grid and self.space is None:
            raise ConfigError("a sweep needs values to vary: --seeds, --over or --space")
        keys = {*self.grid, *(self.space.space if self.space else ())}
        for key in keys:
            if key.partition(".")[0] in ("run_dir", "cluster"):
                raise ConfigError(f"{key}: cannot be varied in a sweep")
        if self.base.run_dir is not None:
            raise ConfigError("run_dir: a sweep makes the directory of each trial; use --dir")
        for values in self.combinations():
            check_named_code(self.config(values))
        if self.space is not None:
            self._check_space(self.space)

    def _check_space(self, space: SearchSpace) -> None:
        """Reject a space from which no valid configuration is drawn."""
        search, problem = OptunaSearch(space, self.base.seed), None
        for _ in range(_DRAWS):
            if (values := search.ask(0)) is None:
                break
            try:
                return check_named_code(self.config(values))
            except ConfigError as error:
                problem = error
        raise ConfigError(f"--space: {problem}")

    @cached_property
    def given(self) -> Config:
        """The configuration without the values of a trial; its section ``cluster`` is the sweep's.

        Each trial runs on one machine, without that section.
        """
        return load_config(self.path, self.overrides)

    @cached_property
    def base(self) -> Config:
        """The configuration of the trials without their values."""
        return self.given.model_copy(update={"cluster": None})

    def config(self, values: Values) -> Config:
        """Return the configuration of a trial.

        Raises:
            ConfigError: The configuration is not valid.
        """
        return load_config(self.path, self.changes(values))

    def changes(self, values: Values) -> list[str]:
        """Return the overrides of a trial, ``section.key=value`` each."""
        # JSON is YAML, and has all digits of numbers.
        chosen = [f"{key}={json.dumps(each)}" for key, each in values.items()]
        alone = [] if self.given.cluster is None else ["cluster=null"]
        return [*self.overrides, *chosen, *alone]

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Yield the values of each trial of a grid; the first seed with all others comes first."""
        keys = sorted(self.grid, key=lambda key: key != SEED)
        for chosen in itertools.product(*(self.grid[key] for key in keys)) if keys else ():
            yield dict(zip(keys, chosen, strict=True))

    def identity(self) -> dict[str, Any]:
        """Return everything that determines the trials, as JSON."""
        found = {
            "config": self.base.model_dump(mode="json", warnings="none"),
            "grid": {key: list(values) for key, values in self.grid.items()},
            "space": self.space and self.space.model_dump(mode="json"),
        }
        plain: dict[str, Any] = json.loads(json.dumps(found))
        return plain

    def directory(self) -> Path:
        """Return the default directory of this sweep, which is the same for the same plan."""
        known = json.dumps(self.identity(), sort_keys=True).encode()
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", self.path.stem if self.path else self.base.env.id)
        return RUNS / f"sweep-{name.strip('-.')[:60]}-{hashlib.sha256(known).hexdigest()[:8]}"


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of ``0:5``, which is 0 to 4, or of ``0,3,7``.

    Raises:
        ConfigError: The text has another form.
    """
    ends = re.fullmatch(r"([0-9]{1,10}):([0-9]{1,10})", text)
    if ends is not None and 0 < int(ends[2]) - int(ends[1]) <= _MOST_TRIALS:
        return list(range(int(ends[1]), int(ends[2])))
    if re.fullmatch(r"[0-9]{1,10}(,[0-9]{1,10})*", text):
        return list(dict.fromkeys(map(int, text.split(","))))
    raise ConfigError(f"--seeds must be first:end, such as 0:5, or 0,3,7; got {brief(text)}")


def parse_over(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Return the values by key of ``key=value,value`` texts, the values in YAML.

    Raises:
        ConfigError: A text has another form, or a key occurs twice.
    """
    found: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        key = key.strip()
        if not equals or not key or not values.strip():
            raise ConfigError(
                f"--over must be key=value,value, such as algorithm.learning_rate=1e-4,3e-4; got "
                f"{brief(text)}"
            )
        if key in found:
            raise ConfigError(f"--over: '{key}' is given twice; separate its values by commas")
        found[key] = parse_yaml(f"[{values}]", f"--over: {key}", numbered=False)
    return found


def make_grid(seeds: str | None, over: Sequence[str]) -> dict[str, list[Any]]:
    """Return the grid of the options ``--seeds`` and ``--over``.

    Raises:
        ConfigError: An option is invalid, the seed is in both, or there are too many trials.
    """
    grid = parse_over(over)
    if seeds is not None:
        if SEED in grid:
            raise ConfigError("--seeds and --over seed=…: give only one of them")
        grid[SEED] = parse_seeds(seeds)
    number = 1
    for values in grid.values():
        number *= len(values)
    if number > _MOST_TRIALS:
        raise ConfigError(f"{number:,} trials are too many; at most {_MOST_TRIALS:,} are possible")
    return grid


def _plain(key: object, values: Any) -> list[Any]:
    """Return the values of a key as JSON has them, each once.

    Raises:
        ConfigError: There are none, or one is of another type.
    """
    rule = "grid must have a list of values, of types as in YAML, for each key"
    if not isinstance(key, str) or isinstance(values, str | bytes | Mapping):
        raise ConfigError(f"{rule}; got {brief({key: values})}")
    try:
        # Those of NumPy become Python's.
        texts = [json.dumps(each, default=lambda value: value.tolist()) for each in values]
    except (TypeError, ValueError, AttributeError):
        raise ConfigError(f"{rule}; got {brief({key: values})}") from None
    if not texts:
        raise ConfigError(f"{rule}; '{key}' has none")
    return [json.loads(text) for text in dict.fromkeys(texts)]


class Pins:
    """Settings that make the results of a trial independent of its share of the cores.

    They are the ones that `fastrl train` would choose on the whole machine. Environments are
    probed, once each.
    """

    def __init__(self) -> None:
        self._threads: dict[str, int] = {}

    def of(self, config: Config) -> list[str]:
        """Return the pins of a trial, ``section.key=value`` each.

        Raises:
            FastrlError: The environment cannot be built, or something is missing.
        """
        config = resolved(config)
        pins = []
        if config.sampler.tune_s is not None:
            # A tuning beside other trials would measure these, too.
            pins.append("sampler.tune_s=null")
        topology = config.topology
        if not topology.by_slot or topology.num_model_workers:
            pins.append(f"sampler.num_env_workers={topology.num_env_workers}")
        key = config.model_dump_json(include={"env", "model"})
        if key not in self._threads:
            automatic = learner_threads(config, make_plan(config).env_spec)
            self._threads[key] = min(automatic, _MOST_THREADS)
        if config.algorithm.torch_threads == "auto" and self._threads[key] > 1:
            pins.append(f"algorithm.torch_threads={self._threads[key]}")
        return pins
