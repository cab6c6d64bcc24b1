"""Sweeps: runs with different seeds and values, side by side, and their comparison."""

from fastrl.sweeps.optuna_search import SearchSpace, TrialPruning, load_space
from fastrl.sweeps.sweep import Sweep
from fastrl.sweeps.sweep_plan import SweepPlan
from fastrl.sweeps.sweep_report import SweepReport, TrialResult

__all__ = [
    "SearchSpace",
    "Sweep",
    "SweepPlan",
    "SweepReport",
    "TrialPruning",
    "TrialResult",
    "load_space",
]
