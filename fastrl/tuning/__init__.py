"""Tuning: finds the fastest n, N, M, groups, device and engine for a run on a machine."""

from fastrl.tuning.automatic import tuned
from fastrl.tuning.search import Finding, Search, Settings
from fastrl.tuning.space import Candidate, Space
from fastrl.tuning.study import Measure, Notes, Sample, Study, Trial, TrialError

__all__ = [
    "Candidate",
    "Finding",
    "Measure",
    "Notes",
    "Sample",
    "Search",
    "Settings",
    "Space",
    "Study",
    "Trial",
    "TrialError",
    "tuned",
]
