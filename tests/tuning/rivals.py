"""The tuner and the methods it is compared with, with equal wall time on the same surface."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fastrl.tuning import Candidate, Search, Settings
from tests.tuning.surfaces import Surface, Trials

if TYPE_CHECKING:
    import optuna

Tune = Callable[[Surface, float, int], Candidate]
"""Function of a surface, a budget in seconds and a seed that returns a tuner's choice."""

_WINDOW_S = 0.4


def fastrl_tune(surface: Surface, budget_s: float, seed: int) -> Candidate:
    """Tune as `fastrl tune` does."""
    trials = Trials(surface, seed)
    settings = Settings(budget_s=budget_s, seed=seed)
    search = Search(surface.space, surface.default, trials, settings, clock=trials.clock)
    return search.run().best


def tpe(surface: Surface, budget_s: float, seed: int) -> Candidate:
    """Tune by Optuna's tree-structured Parzen estimator, which is also told the default."""
    import optuna

    return _optuna(surface, budget_s, seed, optuna.samplers.TPESampler(seed=seed))


def random(surface: Surface, budget_s: float, seed: int) -> Candidate:
    """Tune by random choices, including the default."""
    import optuna

    return _optuna(surface, budget_s, seed, optuna.samplers.RandomSampler(seed=seed))


def _optuna(
    surface: Surface, budget_s: float, seed: int, sampler: optuna.samplers.BaseSampler
) -> Candidate:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trials, study = (
        Trials(surface, seed),
        optuna.create_study(direction="maximize", sampler=sampler),
    )
    known: dict[Candidate, float] = {}
    first = surface.default
    while trials.now_s < budget_s:
        trial = study.ask()
        candidate = first if not known else _suggest(trial, surface)
        if not surface.space.contains(candidate):
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            trials.now_s += 1e-4
            continue
        try:
            fps = trials(candidate, _WINDOW_S).fps
        except Exception:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        known[candidate] = max(fps, known.get(candidate, 0.0))
        study.tell(trial, fps)
    return max(known, key=lambda c: known[c])


def _suggest(trial: optuna.Trial, surface: Surface) -> Candidate:
    space = surface.space
    workers = trial.suggest_int("N", 1, space.most_env_workers)
    # As a share, so that the ranges do not depend on each other.
    models = round(trial.suggest_float("M", 0, 1) * workers)
    groups = trial.suggest_categorical("groups", space.groups) if models else 1
    device = trial.suggest_categorical("device", space.devices) if models else "cpu"
    engine = trial.suggest_categorical("engine", space.engines)
    n = 2 ** trial.suggest_int("n", 0, space.max_envs_per_worker.bit_length() - 1)
    return Candidate(n, workers, models, groups, device, engine)


RIVALS: dict[str, Tune] = {"fastrl": fastrl_tune, "tpe": tpe, "random": random}
