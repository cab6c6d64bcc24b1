"""The search on machines that exist on paper only: noisy, drifting, failing, misleading ones."""

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastrl.tuning import (
    Candidate,
    Sample,
    Search,
    Settings,
    Space,
    Study,
    TrialError,
)
from tests.tuning import surfaces
from tests.tuning.rivals import RIVALS
from tests.tuning.surfaces import Surface, Trials

SEEDS = st.integers(0, 10_000)
few = settings(max_examples=4, suppress_health_check=[HealthCheck.too_slow])


def search_on(surface, budget_s=60.0, seed=0, study=None, measure=None, **options):
    trials = measure or Trials(surface, seed)
    settings = Settings(budget_s=budget_s, seed=seed, **options)
    clock = trials.clock if hasattr(trials, "clock") else lambda: 0.0
    return Search(surface.space, surface.default, trials, settings, study=study, clock=clock)


@few
@given(SEEDS, SEEDS)
def test_the_choice_is_allowed_and_hardly_ever_slower_than_the_default(machine, seed):
    surface = surfaces.machine(machine)
    finding = search_on(surface, seed=seed).run()
    assert surface.space.contains(finding.best)
    # Up to what three windows of a second cannot tell from noise.
    assert surface.speed(finding.best) >= 0.93 * surface.speed(surface.default)


def test_what_was_given_up_sooner_is_tried_again():
    """A tuning with more time gives candidates more, which may be enough for those."""
    surface, asked = surfaces.machine(0), []

    def measure(candidate, seconds):
        asked.append(candidate)
        if candidate != surface.default:
            raise TrialError("took longer than 5 s", exhausted=True, limit_s=5.0)
        return Sample(1.0)

    study = Study()
    search_on(surface, study=study, measure=measure, limit_s=5.0).run()
    given_up = set(asked) - {surface.default}
    asked.clear()
    search_on(surface, study=study, measure=measure, limit_s=5.0).run()
    assert not given_up & set(asked)
    search_on(surface, study=study, measure=measure, limit_s=10.0).run()
    assert given_up & set(asked)


@few
@given(SEEDS, st.floats(5, 100))
def test_the_budget_is_kept_up_to_the_last_trial(machine, budget_s):
    surface = surfaces.machine(machine)
    trials = Trials(surface, machine)
    finding = search_on(surface, budget_s, measure=trials).run()
    longest_s = max(trial.cost_s for trial in finding.trials)
    assert finding.spent_s == pytest.approx(trials.now_s)
    assert finding.spent_s <= budget_s + 2 * longest_s


class BuiltOneByOne(Trials):
    """Starting a candidate takes as long as it has environments."""

    def __call__(self, candidate, seconds):
        if candidate not in self._warm:
            self.now_s += 0.02 * candidate.num_envs
        return super().__call__(candidate, seconds)


@pytest.mark.parametrize("machine", range(2))
def test_nothing_is_begun_that_takes_longer_to_start_than_there_is_time(machine):
    trials = BuiltOneByOne(surfaces.machine(machine))
    finding = search_on(trials.surface, budget_s=60.0, measure=trials).run()
    assert max(trial.candidate.num_envs for trial in finding.trials) > 100
    assert trials.now_s < 66


class SlowToRest(Trials):
    """A window takes as much longer as a candidate has environments."""

    def __call__(self, candidate, seconds):
        self.now_s += 0.002 * candidate.num_envs
        return super().__call__(candidate, seconds)


@pytest.mark.parametrize("machine", range(2))
def test_the_comparison_at_the_end_is_within_the_budget_too(machine):
    trials = SlowToRest(surfaces.machine(machine))
    search_on(trials.surface, budget_s=60.0, measure=trials).run()
    assert trials.now_s < 66


@few
@given(SEEDS, SEEDS)
def test_equal_seeds_give_equal_searches(machine, seed):
    surface = surfaces.machine(machine)
    first, second = (search_on(surface, seed=seed).run() for _ in range(2))
    assert first == second


@few
@given(SEEDS, st.integers(1, 30))
def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(machine, stop_after):
    surface = surfaces.machine(machine)
    study = Study()
    uninterrupted = Trials(surface, 1)
    expected = search_on(surface, study=study, measure=uninterrupted).run()
    calls = 0

    class Stopping(Trials):
        def __call__(self, candidate, seconds):
            nonlocal calls
            calls += 1
            if calls > stop_after:
                raise KeyboardInterrupt
            return super().__call__(candidate, seconds)

    part, trials = Study(), Stopping(surface, 1)
    search = search_on(surface, study=part, measure=trials)
    if stop_after < sum(uninterrupted.measured.values()):
        with pytest.raises(KeyboardInterrupt):
            search.run()
    # What the first sitting has measured is replayed; the machine's noise goes on from there.
    recorded = len(part.trials)
    assert part.trials == study.trials[:recorded]
    rest = Trials(surface, 1, now_s=trials.now_s)
    resumed = search_on(surface, study=part, measure=rest).run()
    assert list(resumed.trials[:recorded]) == study.trials[:recorded]
    left = [trial.seconds for trial in resumed.trials[recorded:]]
    assert rest.measured_s <= 2.001 * sum(left)
    assert resumed.default == expected.default


def test_a_search_that_has_ended_measures_nothing_when_it_is_asked_again():
    surface = surfaces.machine(3)
    study = Study()
    expected = search_on(surface, study=study).run()

    def refuse(candidate, seconds):
        raise AssertionError("measured again")

    again = search_on(surface, study=study, measure=refuse).run()
    assert again == expected
    assert study.trials == list(expected.trials)


def test_more_time_goes_on_where_less_had_ended():
    surface = surfaces.machine(8)
    study = Study()
    short = search_on(surface, 15.0, study=study).run()
    assert short.ended == "the time is up"
    before = len(study.trials)
    longer = search_on(surface, 60.0, study=study, measure=Trials(surface, 2)).run()
    assert len(longer.trials) > before - 3
    assert longer.spent_s <= 62


@pytest.mark.parametrize("error", [RuntimeError("boom"), MemoryError(), TimeoutError("late")])
def test_failures_are_recorded_and_skipped(error):
    def speed(c):
        return 0.0 if c.envs_per_worker >= 64 else 100.0 * c.envs_per_worker

    surface = Surface("fails", Space(2), Candidate(16, 2), speed)
    seen = []

    class Failing(Trials):
        def __call__(self, candidate, seconds):
            seen.append(candidate)
            if speed(candidate) == 0:
                self.now_s += 1
                raise error
            return super().__call__(candidate, seconds)

    finding = search_on(surface, measure=Failing(surface)).run()
    assert finding.best.envs_per_worker == 32
    failed = [trial for trial in finding.trials if trial.fps is None]
    assert failed
    assert all(trial.error for trial in failed)
    assert len({trial.candidate for trial in failed}) == len(failed)
    if not isinstance(error, RuntimeError):
        # What has run out of memory with n is not tried with 2 n.
        kinds = {}
        for trial in failed:
            kind = trial.candidate.but(envs_per_worker=1)
            assert trial.candidate.envs_per_worker < kinds.get(kind, math.inf)
            kinds[kind] = trial.candidate.envs_per_worker


def two_candidates(speed):
    """A space with nothing but a default and one that is twice as fast; ``speed`` may raise."""
    default, other = Candidate(16, 1), Candidate(32, 1)
    space = Space(1, fits=lambda c: c in (default, other))

    def measure(candidate, seconds):
        return Sample(speed(candidate))

    def search(study=None, watch=None):
        return Search(space, default, measure, study=study, clock=lambda: 0.0, watch=watch)

    return default, other, search


@pytest.mark.parametrize("fails", ["default", "other"])
def test_who_fails_in_the_last_comparison_does_not_win(fails):
    trials = []

    def speed(candidate):
        # A lead of this size is sure after two trials.
        if sum(trial.reference == default for trial in trials) >= 2 and candidate == failing:
            raise RuntimeError("the simulator has lost its licence")
        return 10.0 * candidate.envs_per_worker

    default, other, search = two_candidates(speed)
    failing, best = (default, other) if fails == "default" else (other, default)
    finding = search(watch=trials.append).run()
    assert finding.path[:2] == (default, other)
    assert finding.best == best
    assert finding.fps_median == 10.0 * best.envs_per_worker
    assert finding.default_fps_median == (None if fails == "default" else 160)
    assert "lost its licence" in finding.trials[-1].error


def test_a_candidate_that_makes_no_step_counts_as_failed():
    default, _, search = two_candidates(lambda c: 160.0 * (c.envs_per_worker == 16))
    finding = search().run()
    assert finding.best == default
    assert [trial.error for trial in finding.trials if trial.fps is None] == ["it made no step"]


def test_where_nothing_could_be_measured_it_is_tried_again_the_next_time():
    broken, study = True, Study()

    def speed(candidate):
        if broken:
            raise MemoryError("somebody else has it all")
        return 10.0 * candidate.envs_per_worker

    _, other, search = two_candidates(speed)
    with pytest.raises(TrialError, match="somebody else"):
        search(study).run()
    broken = False
    expected = search(study).run()
    assert expected.best == other
    broken = True
    assert search(study).run() == expected


def test_more_environments_must_be_worth_it():
    def speed(c):
        doublings = math.log2(c.num_envs)
        return 1e5 * (1 + min(doublings, 6) + 0.02 * max(0, doublings - 6))

    surface = Surface("nearly flat from 64 on", Space(2), Candidate(4, 2), speed, noise=1e-4)
    assert search_on(surface).run().best.num_envs <= 128


def test_a_default_that_fails_is_replaced():
    surface = Surface(
        "fails", Space(2), Candidate(512, 2), lambda c: 0.0 if c.envs_per_worker > 64 else 100.0
    )
    finding = search_on(surface).run()
    assert surface.speed(finding.best) > 0
    assert finding.default_fps_median is None


def test_where_nothing_can_be_measured_the_reason_is_told():
    surface = Surface("fails", Space(2), Candidate(16, 2), lambda c: 0.0)
    with pytest.raises(TrialError, match=r"nothing could be measured: out of memory"):
        search_on(surface).run()
    with pytest.raises(TrialError, match="nothing has been measured"):
        search_on(surface).finding()


def test_an_interrupted_search_tells_the_best_so_far():
    surface = surfaces.machine(4)

    class Interrupted(Trials):
        def __call__(self, candidate, seconds):
            if self.now_s > 20:
                raise KeyboardInterrupt
            return super().__call__(candidate, seconds)

    search = search_on(surface, measure=Interrupted(surface))
    with pytest.raises(KeyboardInterrupt):
        search.run()
    finding = search.finding()
    assert finding.ended == "interrupted"
    assert finding.searched == finding.trials
    assert finding.fps_median > 0
    assert surface.speed(finding.best) >= 0.9 * surface.speed(surface.default)


def test_ratios_end_with_the_comparison_of_best_and_default():
    """What a path adds up to is spread over its steps, so that all figures agree."""
    default, middle, best, loser = (Candidate(n, 1) for n in (16, 32, 64, 128))
    speeds = {default: 100.0, middle: 200.0, best: 300.0, loser: 150.0}

    def measure(candidate, seconds):
        # Once it has won its race, the best is slower than it was.
        has_won = candidate == best == search.incumbent
        return Sample(speeds[candidate] * (0.8 if has_won else 1.0))

    space = Space(1, fits=lambda c: c in speeds)
    search = Search(space, default, measure, clock=lambda: 0.0)
    finding = search.run()
    assert finding.ratios[default] == 1
    assert finding.ratios[best] == pytest.approx(2.4)
    assert finding.gain == pytest.approx(finding.fps_median / finding.default_fps_median)


def test_the_comparison_at_the_end_is_told_apart_from_the_search():
    finding = search_on(surfaces.plateau(), final_rounds=2).run()
    assert len(finding.trials) == len(finding.searched) + 2
    assert len({trial.candidate for trial in finding.trials[-2:]}) == 1


def test_however_little_time_there_is_the_default_is_measured():
    surface = surfaces.plateau()
    finding = search_on(surface, budget_s=0).run()
    assert finding.best == finding.default == surface.default
    assert len(finding.searched) == 1
    assert finding.fps_median > 0


def test_without_time_the_reason_why_the_default_fails_is_told():
    surface = Surface("fails", Space(2), Candidate(16, 2), lambda c: 0.0)
    with pytest.raises(TrialError, match=r"nothing could be measured: out of memory"):
        search_on(surface, budget_s=0).run()


def test_where_all_are_equal_the_search_ends_by_itself():
    finding = search_on(surfaces.plateau(), 1000).run()
    assert finding.ended == "no neighbour is faster"
    assert finding.spent_s < 500


def test_the_edge_of_a_cliff_is_found():
    surface = surfaces.cliff()
    assert surface.regret(search_on(surface).run().best) < 0.02


def test_a_moving_machine_does_not_mislead():
    """Windows are compared with adjacent ones only, so a machine that halves changes nothing."""
    surface = surfaces.machine(1)

    class Moving(Trials):
        def __call__(self, candidate, seconds):
            sample = super().__call__(candidate, seconds)
            return Sample(sample.fps * (0.5 if 15 < self.now_s < 40 else 1.0))

    assert surface.regret(search_on(surface, measure=Moving(surface, 3)).run().best) < 0.08


def test_at_equal_time_it_beats_tpe_and_random_search():
    pytest.importorskip("optuna")
    regrets = {name: [] for name in RIVALS}
    for seed in range(7):
        surface = surfaces.machine(seed)
        for name, tune in RIVALS.items():
            regrets[name].append(surface.regret(tune(surface, 40.0, seed)))
    median = {name: sorted(found)[len(found) // 2] for name, found in regrets.items()}
    assert median["fastrl"] <= min(median["tpe"], median["random"])
    assert median["fastrl"] < 0.05
