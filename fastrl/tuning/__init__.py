"""Chooses n, N, M, groups, device and engine for an environment, a policy and a machine."""

from fastrl.tuning.candidate import Candidate
from fastrl.tuning.finding import Finding, Settings
from fastrl.tuning.search import Search
from fastrl.tuning.space import Space
from fastrl.tuning.trials import Journal, Measure, MemoryJournal, Sample, Trial, TrialError

__all__ = [
    "Candidate",
    "Finding",
    "Journal",
    "Measure",
    "MemoryJournal",
    "Sample",
    "Search",
    "Settings",
    "Space",
    "Trial",
    "TrialError",
]
