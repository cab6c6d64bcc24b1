"""Optuna's samplers and pruners for the trials of a sweep; needs the extra 'sweep'."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, JsonValue, ValidationError, model_validator

from fastrl.arguments import brief, file_path
from fastrl.config.explain import dotted, explain, first_problem
from fastrl.config.fields import Bool, Float, NamedCall, Section, Size, conflict
from fastrl.config.loading import read_mapping
from fastrl.errors import ConfigError, cause
from fastrl.imports import how_to_install
from fastrl.training.callbacks import Callback, RunContext
from fastrl.training.evaluation import EvaluationResult

_MOST_DRAWS = 100
"""Draws of values that other trials have, after which there are taken to be no others."""


class Draws(Section):
    """Values of one key: a range, whose ends are included, or choices."""

    low: int | Float | None = None
    """Smallest value; an integer, as ``high``, for integers."""
    high: int | Float | None = None
    """Largest value."""
    log: Bool = False
    """Draw the logarithm evenly."""
    step: int | Float | None = None
    """Distance between values; null for any, or 1 between integers."""
    choices: tuple[JsonValue, ...] | None = None
    """Values, instead of a range."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        is_range = self.low is not None and self.high is not None
        if is_range == (self.choices is not None) or self.choices == ():
            raise conflict("", "needs low and high, or choices")
        return self

    def distribution(self) -> Any:
        """Return these values as a distribution of Optuna; choices are JSON texts."""
        kinds = _optuna().distributions
        if self.choices is not None:
            return kinds.CategoricalDistribution([json.dumps(each) for each in self.choices])
        ends: Any = (self.low, self.high)
        if all(isinstance(end, int) for end in (*ends, self.step or 1)):
            return kinds.IntDistribution(*ends, log=self.log, step=self.step or 1)
        return kinds.FloatDistribution(*map(float, ends), log=self.log, step=self.step)

    def value(self, drawn: Any) -> Any:
        """Return a value of the distribution as a value of the key."""
        return drawn if self.choices is None else json.loads(drawn)

    def drawn(self, value: Any) -> Any:
        """Return a value of the key as a value of the distribution."""
        return value if self.choices is None else json.dumps(value)


class SearchSpace(Section):
    """The file of ``fastrl sweep --space``."""

    trials: Size = 20
    """The number of trials."""
    sampler: str | NamedCall = "TPESampler"
    """A class of ``optuna.samplers``, or ``{path: …, kwargs: {…}}``."""
    pruner: str | NamedCall = "MedianPruner"
    """A class of ``optuna.pruners``, such as ``NopPruner`` for none, or with kwargs as above."""
    space: Annotated[dict[str, Draws], Field(min_length=1)]
    """Values to draw by dotted key, such as ``algorithm.learning_rate``."""


def load_space(file: Path) -> SearchSpace:
    """Return the search space of a YAML file.

    Raises:
        ConfigError: The file is invalid, with file, key and mistake in one line; or Optuna is
            missing.
    """
    _optuna()
    tree = read_mapping(file_path("--space", file))
    try:
        found = SearchSpace.model_validate(tree)
    except ValidationError as error:
        key, text = explain(first_problem(error), tree, root=SearchSpace)
        raise ConfigError(f"{file}: {dotted(key)}: {text}") from None
    # What Optuna rejects, and packages that its samplers lack after a result, are errors now.
    search = OptunaSearch(found, 0)
    for number in range(2):
        if search.ask(number) is not None:
            search.tell(number, 0.0)
    return found


class OptunaSearch:
    """Draws the values of trials, and prunes bad trials.

    It is in memory only: a continued sweep rebuilds it from its file.

    Args:
        space: Values to draw, with sampler and pruner.
        seed: Seed of the sampler.

    Raises:
        ConfigError: Optuna is missing, or rejects the sampler, the pruner or a range.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        optuna = _optuna()
        self._space, self._trials = space, dict[int, Any]()
        self._seen: dict[int, set[int]] = {}
        self._drawn: set[str] = set()
        self._distributions = {}
        for key, draws in space.space.items():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    self._distributions[key] = draws.distribution()
            except ValueError as error:
                raise ConfigError(f"space: {key}: {cause(error)}") from None
            except UserWarning:
                raise ConfigError(
                    f"space: {key}: high must be low plus a multiple of step"
                ) from None
        self._study = optuna.create_study(
            direction="maximize",
            study_name="sweep",  # by which HyperbandPruner chooses
            sampler=_built("samplers", space.sampler, seed=seed),
            pruner=_built("pruners", space.pruner),
        )
        # A sampler that has drawn everything stops the study. Optuna allows that only while the
        # study runs the trials itself.
        self._study.stop = self._stop
        self._is_exhausted = False

    def ask(self, number: int, known: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """Return the values of a trial, which no other trial has; None if there are no more.

        Args:
            number: Of the trial.
            known: Values that it was given earlier and is given again.

        Raises:
            ConfigError: The sampler fails.
        """
        if known is not None:
            given = {key: self._space.space[key].drawn(each) for key, each in known.items()}
            self._study.enqueue_trial(given)
            return self._draw(number)[0]
        if number >= self._space.trials:
            return None
        for _ in range(_MOST_DRAWS):
            if self._is_exhausted:
                return None
            values, is_new = self._draw(number)
            if is_new:
                return values
            self.tell(number, None)
        return None

    def _draw(self, number: int) -> tuple[dict[str, Any], bool]:
        """Return the values of a new trial of Optuna, and whether no other trial has them."""
        with _lines("sampler"):
            trial = self._study.ask(self._distributions)
        self._trials[number], self._seen[number] = trial, set()
        text, before = json.dumps(trial.params, sort_keys=True), len(self._drawn)
        self._drawn.add(text)
        draws = self._space.space
        values = {key: draws[key].value(each) for key, each in trial.params.items()}
        return values, len(self._drawn) > before

    def _stop(self) -> None:
        self._is_exhausted = True

    def report(self, number: int, values: Iterable[tuple[int, float]]) -> bool:
        """Report intermediate values with their steps; return whether to prune the trial."""
        trial, prune = self._trials[number], False
        with _lines("pruner"):
            for steps, value in values:
                if steps not in self._seen[number]:
                    self._seen[number].add(steps)
                    trial.report(value, steps)
                    prune = prune or trial.should_prune()
        return prune

    def tell(self, number: int, score: float | None, *, pruned: bool = False) -> None:
        """Report the score of a trial, or None if it failed."""
        states = _optuna().trial.TrialState
        state = states.PRUNED if pruned else states.FAIL if score is None else states.COMPLETE
        with _lines("sampler"):
            self._study.tell(
                self._trials[number], score if state == states.COMPLETE else None, state=state
            )


class TrialPruning(Callback):
    """Reports evaluations to a trial of Optuna, and ends training if the trial is pruned.

    For custom objectives: ``fastrl.train(config, callbacks=[TrialPruning(trial)])``.

    Attributes:
        pruned: Whether the trial was pruned.

    Args:
        trial: An ``optuna.Trial``.
    """

    def __init__(self, trial: Any) -> None:
        self._trial, self.pruned = trial, False

    def on_evaluation(self, context: RunContext, result: EvaluationResult, steps: int) -> None:
        """Report ``evaluation.metric``, except after the last step."""
        if self.pruned or steps >= context.config.total_steps:
            return
        self._trial.report(result.score(context.config.evaluation.metric), steps)
        if self._trial.should_prune():
            self.pruned = True
            context.stop()


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ConfigError(f"--space needs Optuna: {how_to_install('sweep')}") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _built(kind: str, chosen: str | NamedCall, **defaults: Any) -> Any:
    """Return a sampler or a pruner of Optuna."""
    name, kwargs = (chosen.path, chosen.kwargs) if isinstance(chosen, NamedCall) else (chosen, {})
    module = import_module(f"optuna.{kind}")
    known = [each for each in module.__all__ if not each.startswith("Base") and each[0].isupper()]
    if name == "GridSampler":
        raise ConfigError("sampler: GridSampler is not possible; --over runs a grid")
    if name not in known:
        raise ConfigError(
            f"{kind[:-1]}: '{name}' is not in optuna.{kind}, which has {', '.join(known)}"
        )
    build = getattr(module, name)
    taken = inspect.signature(build).parameters
    defaults = {key: value for key, value in defaults.items() if key in taken}
    with _lines(f"{kind[:-1]}: {brief(name)}"):
        return build(**{**defaults, **kwargs})


@contextmanager
def _lines(place: str) -> Iterator[None]:
    """Report an error of Optuna in one line; hide warnings of what the user has chosen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except Exception as error:
            raise ConfigError(f"{place}: {cause(error)}") from error
