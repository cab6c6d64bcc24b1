"""The search on grids that were measured: what it chooses, and how close that is to the best."""

import json
from dataclasses import fields
from pathlib import Path

import pytest

from fastrl.tuning import Candidate, Search, Settings
from tests.tuning import surfaces
from tests.tuning.surfaces import Trials

RESULTS = Path(__file__).parents[2] / "results"
KEYS = [field.name for field in fields(Candidate)]
CHOICES = {
    "CartPole-v1": ["n=256 N=2 M=0"] * 3,
    "Crafter-v1": ["n=64 N=2 M=0", "n=64 N=2 M=0", "n=32 N=2 M=0"],
    "HalfCheetah-v5": ["n=256 N=4 M=4"] * 3,
}
"""Of three searches with different noise; they change only if the search does."""


def grid(env):
    """Return the speeds of a file, as a machine on paper."""
    found = json.loads((RESULTS / f"tune_grid_{env}.json").read_text())
    speeds = {Candidate(**{k: row[k] for k in KEYS}): row["fps"] for row in found["rows"]}
    measured = {candidate: fps for candidate, fps in speeds.items() if fps}
    default = Candidate(**found["default"])
    return surfaces.from_table(env, found["cores"], measured, default)


@pytest.mark.parametrize("env", CHOICES)
def test_on_measured_grids_the_choices_stay_and_are_among_the_best(env):
    surface, chosen = grid(env), []
    for seed in range(3):
        trials = Trials(surface, seed)
        options = Settings(budget_s=60.0, seed=seed)
        search = Search(surface.space, surface.default, trials, options, clock=trials.clock)
        chosen.append(search.run().best)
    assert [candidate.label for candidate in chosen] == CHOICES[env]
    # A grid has one window of each candidate, so the best of all has been lucky.
    assert max(map(surface.regret, chosen)) < 0.2
