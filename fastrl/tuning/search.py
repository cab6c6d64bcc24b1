"""The search of the tuner: finds the fastest candidate by few, short and noisy measurements.

Every candidate is measured beside the best so far (the incumbent), in short turns, and only the
ratio of the two counts, so that drifts of the machine cancel. A candidate that looks slower is
dropped after one or two short windows; one that looks faster is measured for longer. Of equally
fast candidates the smaller is better. A Gaussian process proposes the next candidate. The search
ends when no neighbour of the incumbent, and none of a few proposals, is faster by more than noise.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrl.tuning.space import Candidate, Space
from fastrl.tuning.study import Measure, Study, Trial, TrialError, visit

Array = NDArray[np.float64]

TIME_IS_UP = "the time is up"
"""`Finding.ended` of a search that might find more with more time."""

_WINDOW_S = 0.4  # length of the first windows of a candidate
_RACE = (1, 1, 2, 2)  # lengths of its windows, in multiples of the first
_SEEDS = 6  # usual good choices that are tried first
_DOUBTS = 12  # failures in a row after which only neighbours are tried
_PATIENCE = 30  # failures in a row after which the search ends
_RECENT = 8  # trials of which the median cost is the usual one
_POOL = 500  # candidates beside the neighbours, drawn at random where there are more

# Differences of log speed:
_SUCCESS = 0.02  # of the chosen candidate, after which the count of failures restarts
_WORTH_A_DOUBT = 0.004  # expected, of a candidate that is not a neighbour
_PER_DOUBLING = 0.005  # that a doubling of environments, or of processes, must gain
_WORTH_IT = 0.005  # that is worth a change
_FAR_BEHIND = 0.25  # in one window, that usual noise does not explain
_SLOW = 1.2  # from which on candidates count as equally slow

# Standard deviations:
_UNLIKELY = 2.5  # by which the prediction of a neighbour that is skipped is below the best
_SURE, _SURE_AT_LAST = 2.0, 1.5  # by which a candidate must lead to win, early and at the end
_PROMISING = 0.5  # by which it must lead to continue after its second window
_SPREAD = 0.35  # of log speed between very different candidates, before any is measured
_PRIOR_VARIANCE_S = 0.04**2 * 0.4  # of the log ratio of windows, times their seconds
_PRIOR_WEIGHT = 4.0  # deviations that the prior counts for

_SCALES, _ENOUGH = (0.7, 1.0, 1.5, 2.2), 6  # length scales to fit, once there are that many scores


@dataclass(frozen=True)
class Settings:
    """Settings of a search.

    Attributes:
        budget_s: Wall time of all trials, including those of an earlier search in the same study.
        final_rounds: Windows of the best and of the default, in turns, at the end.
        seed: Seed of candidates that are drawn at random.
        limit_s: Seconds after which a trial is given up. Recorded trials that were given up after
            less are tried again.
    """

    budget_s: float = 120.0
    final_rounds: int = 3
    seed: int = 0
    limit_s: float = 0.0


@dataclass(frozen=True)
class Finding:
    """The result of a search.

    Attributes:
        best: The fastest candidate; the default if none is faster.
        best_fps: Windows of the best, in turns with ``default_fps``.
        default_fps: Windows of the default; empty if it failed, or if the search was
            interrupted before the final comparison.
        trials: All trials, oldest first.
        path: The incumbents, each faster than the one before.
        spent_s: Wall time of the trials.
        ended: Reason for the end of the search.
        num_final: Number of trials of the final comparison, which are the last ones.
        ratios: Speed of each candidate relative to the first incumbent.
    """

    best: Candidate
    default: Candidate
    best_fps: tuple[float, ...]
    default_fps: tuple[float, ...]
    trials: tuple[Trial, ...]
    path: tuple[Candidate, ...]
    spent_s: float
    ended: str
    num_final: int = 0
    ratios: Mapping[Candidate, float] = field(default_factory=dict)

    @property
    def searched(self) -> tuple[Trial, ...]:
        """The trials before the final comparison."""
        return self.trials[: len(self.trials) - self.num_final]

    @property
    def fps_median(self) -> float:
        """Frames per second of the best."""
        return float(np.median(self.best_fps))

    @property
    def default_fps_median(self) -> float | None:
        """Frames per second of the default; None without ``default_fps``."""
        return float(np.median(self.default_fps)) if self.default_fps else None

    @property
    def gain(self) -> float | None:
        """Speed of the best relative to the default; None if the default failed.

        After the final comparison it is the ratio of `fps_median` to `default_fps_median`.
        """
        best, default = self.ratios.get(self.best), self.ratios.get(self.default)
        return best / default if best and default else None


class _BudgetSpentError(Exception):
    """No time is left for another trial."""


class _Budget:
    """The time of a search, of which a part is reserved for the final comparison."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self.spent_s = settings, 0.0
        # Time of trials outside of windows: starting workers, and waiting until they rest.
        self._all_s: list[float] = []
        self._of: dict[Candidate, list[float]] = {}

    def spend(self, trial: Trial) -> None:
        """Count the cost of a trial."""
        self.spent_s += trial.cost_s
        self._all_s.append(trial.cost_s - 2 * trial.seconds)
        if trial.fps is not None:
            self._of.setdefault(trial.candidate, []).append(self._all_s[-1])

    def affords(self, candidate: Candidate, incumbent: Candidate | None, seconds: float) -> bool:
        """Return whether there is time for a trial and the final comparison."""
        cost_s = 2 * seconds + max(self._usual_s(), self._start_s(candidate))
        rounds, budget_s = self._settings.final_rounds, self._settings.budget_s
        final_s = 0.0 if incumbent is None else rounds * self._final_s(incumbent)
        return self.spent_s + cost_s <= budget_s - min(final_s, budget_s / 4)

    def affords_final(self, best: Candidate) -> bool:
        """Return whether there is time for another round of the final comparison."""
        return self.spent_s + self._final_s(best) <= self._settings.budget_s

    def _final_s(self, best: Candidate) -> float:
        # Many environments also take long to come to rest.
        return 4 * _WINDOW_S + max(self._usual_s(), self._of[best][-1])

    def _usual_s(self) -> float:
        # Called for every candidate; numpy's median takes twenty times as long for so few.
        return max(0.0, statistics.median(self._all_s[-_RECENT:]) if self._all_s else 0.0)

    def _start_s(self, candidate: Candidate) -> float:
        """Predict the time to start a candidate, from the one with most environments so far."""
        if candidate in self._of or not self._of:
            return 0.0
        starts = [(c.num_envs, costs[0]) for c, costs in self._of.items()]
        most, longest_s = max(starts)
        least_s = min(seconds for _, seconds in starts)
        return least_s + (longest_s - least_s) * candidate.num_envs / most


class _Score(NamedTuple):
    """The result of a comparison of a candidate with the best one."""

    log_speed: float = 0.0  # relative to the first incumbent, less `_burden`
    variance: float = 0.0  # of log_speed
    races: int = 0  # from the first incumbent to the candidate, its own included if it won


class Search:
    """One search; after an interrupt of `run`, `finding` returns the best so far.

    Args:
        space: The candidates.
        default: First candidate, with which the best is compared.
        measure: Samples with a candidate.
        settings: Settings of the search.
        study: File of trials; trials that it contains are not measured again.
        clock: Returns seconds of a monotonic clock.
        watch: Called after every trial.
    """

    def __init__(
        self,
        space: Space,
        default: Candidate,
        measure: Measure,
        settings: Settings | None = None,
        *,
        study: Study | None = None,
        clock: Callable[[], float] = time.monotonic,
        watch: Callable[[Trial], None] | None = None,
    ) -> None:
        self._space, self._default, self._measure = space, default, measure
        self._settings, self._study = settings or Settings(), study or Study()
        self._clock, self._watch = clock, watch
        self._answers = self._study.answers(self._settings.limit_s)
        self._budget = _Budget(self._settings)
        self._noise_sum, self._noise_weight = _PRIOR_WEIGHT * _PRIOR_VARIANCE_S, _PRIOR_WEIGHT
        self._scores: dict[Candidate, _Score] = {}
        # Failed candidates, and whether they ran out of memory or time.
        self._failed: dict[Candidate, bool] = {}
        self._trials: list[Trial] = []
        self._path: list[Candidate] = []
        self._num_final, self._failures, self._ended = 0, 0, "interrupted"

    @property
    def incumbent(self) -> Candidate | None:
        """The best candidate so far; None before the first trial has succeeded."""
        return self._path[-1] if self._path else None

    def run(self) -> Finding:
        """Search to the end; raise a `TrialError` if no candidate could be measured."""
        seeds = self._space.seeds(self._default)
        try:
            self._begin(seeds)
            for seed in seeds[:_SEEDS]:
                if self._affords(seed) and self._is_open(seed):
                    self._challenge(seed)
            while self._path and self._step():
                pass
            self._ended = "no neighbour is faster"
        except _BudgetSpentError:
            self._ended = TIME_IS_UP
        if not self._path:
            raise TrialError(f"nothing could be measured: {self._trials[-1].error}")
        self._compare_with_default(self._path[-1])
        return self.finding()

    def finding(self) -> Finding:
        """Return the best so far; raise a `TrialError` if no trial has succeeded yet."""
        if not self._path:
            raise TrialError("nothing has been measured yet")
        best, final = self._path[-1], self._final()
        best_fps = [trial.fps for trial in final if trial.fps]
        default_fps = [trial.reference_fps for trial in final if trial.reference_fps]
        # Without this, windows of the default are minutes older than those of the best.
        if best == self._default:
            best_fps = default_fps = default_fps or best_fps or self._windows(best)
        return Finding(
            best,
            self._default,
            best_fps=tuple(best_fps or self._windows(best)),
            default_fps=tuple(default_fps),
            trials=tuple(self._trials),
            path=tuple(self._path),
            spent_s=self._budget.spent_s,
            ended=self._ended,
            num_final=self._num_final,
            ratios=self._ratios(),
        )

    def _windows(self, candidate: Candidate) -> list[float]:
        """Return the frames per second of all windows of a candidate."""
        trials = self._trials
        both = [((t.candidate, t.fps), (t.reference, t.reference_fps)) for t in trials]
        return [fps for pair in both for c, fps in pair if c == candidate and fps is not None]

    def _ratios(self) -> dict[Candidate, float]:
        """Return the speed of each candidate relative to the first incumbent.

        Frames per second of different minutes cannot be compared, so ratios of adjacent windows are
        multiplied along the path. The final comparison measures the product directly: the
        difference is spread evenly over the path.
        """
        scores, first, correction = self._scores, self._path[0], 0.0
        logs = {c: score.log_speed + _burden(c, first) for c, score in scores.items()}
        final = [trial for trial in self._final() if trial.reference_fps]
        if final and scores[final[0].candidate].races:
            fps, reference_fps = zip(*((t.fps, t.reference_fps) for t in final), strict=True)
            best, lead = final[0].candidate, math.log(np.median(fps) / np.median(reference_fps))
            correction = (lead - logs[best]) / scores[best].races
        return {c: math.exp(log + correction * scores[c].races) for c, log in logs.items()}

    def _begin(self, seeds: Sequence[Candidate]) -> None:
        """Measure the default, or if that fails the first seed that succeeds."""
        for candidate in (self._default, *seeds):
            # The default is measured once, even without time.
            trial = self._visit(candidate, None, _WINDOW_S, must=candidate == self._default)
            if trial.fps is not None:
                self._scores[candidate] = _Score()
                self._path.append(candidate)
                return

    def _step(self) -> bool:
        """Challenge the incumbent with the most promising candidate; False if none is left."""
        near = [c for c in self._space.neighbours(self._path[-1]) if self._is_open(c)]
        far = [c for c in self._pool if self._is_open(c)]
        if not near and not far:
            return False
        near = [c for c in near if self._affords(c)]
        left = list(dict.fromkeys([*near, *filter(self._affords, far)]))
        if not left:  # all take longer to start than there is time
            raise _BudgetSpentError
        best = self._scores[self._path[-1]].log_speed
        mean, std = _predict(self._evidence(), left)
        gains = _expected_improvement(mean, std, best)
        is_near = np.arange(len(left)) < len(near)
        useful = np.where(
            is_near,
            (gains > _WORTH_A_DOUBT) | (mean + _UNLIKELY * std > best),
            (gains > _WORTH_A_DOUBT) & (self._failures < _DOUBTS),
        )
        if not useful.any() or self._failures >= _PATIENCE:
            return False
        chosen = left[int(np.argmax(np.where(useful, gains, -1.0)))]
        self._challenge(chosen)
        gained = self._scores.get(chosen, _Score(-math.inf)).log_speed - best
        self._failures = 0 if gained > _SUCCESS else self._failures + 1
        return True

    def _challenge(self, candidate: Candidate) -> None:
        """Race a candidate against the incumbent, and replace that if it wins."""
        incumbent = self._path[-1]
        weighted, seconds = 0.0, 0.0
        for number, length in enumerate(_RACE, 1):
            trial = self._visit(candidate, incumbent, length * _WINDOW_S)
            if trial.fps is None or not trial.reference_fps:
                return
            lead = math.log(trial.fps / trial.reference_fps) - _burden(candidate, incumbent)
            if seconds:
                self._count_noise(lead - weighted / seconds, 1 / (1 / seconds + 1 / trial.seconds))
            weighted += lead * trial.seconds
            seconds += trial.seconds
            variance = self._noise_sum / self._noise_weight / seconds
            has_won = _verdict(number, weighted / seconds, math.sqrt(variance))
            # Stored even if the time is up before the race is decided.
            log_speed = self._scores[incumbent].log_speed + weighted / seconds
            self._scores[candidate] = _Score(log_speed, variance, len(self._path) - (not has_won))
            if has_won is not None:
                break
        if has_won:
            self._path.append(candidate)

    def _count_noise(self, deviation: float, seconds: float) -> None:
        """Record the difference of two log ratios of a race; see `_PRIOR_VARIANCE_S`."""
        # One jump of the machine's speed during a race says little about other races.
        most = 9 * (self._noise_sum / self._noise_weight)
        self._noise_sum += min(deviation**2 * seconds, most)
        self._noise_weight += 1.0

    def _compare_with_default(self, best: Candidate) -> None:
        """Measure best and default in turns; the default replaces the best if it is faster."""
        must_not = best == self._default or self._default in self._failed
        reference = None if must_not else self._default
        for number in range(self._settings.final_rounds):
            if number and not self._budget.affords_final(best):
                break
            trial = self._visit(best, reference, 2 * _WINDOW_S, must=True)
            self._num_final += 1
            if trial.fps is None:
                break
        own = [trial.fps for trial in self._final() if trial.fps]
        pairs = [(t.fps, t.reference_fps) for t in self._final() if t.fps and t.reference_fps]
        leads = [math.log(fps / reference_fps) for fps, reference_fps in pairs]
        is_slower = leads and (
            np.median(leads) < 0 or np.median(own) < np.median([fps for _, fps in pairs])
        )
        if reference is not None and (not own or is_slower):
            self._path.append(self._default)

    def _final(self) -> list[Trial]:
        return self._trials[len(self._trials) - self._num_final :]

    def _visit(
        self, candidate: Candidate, reference: Candidate | None, seconds: float, must: bool = False
    ) -> Trial:
        """Return a recorded trial, or a new one if there is time or it is a ``must``."""
        if recorded := self._answers.get((candidate, reference, seconds)):
            trial = recorded.popleft()
        elif must or self._affords(candidate, seconds):
            began_s = self._clock()
            trial = visit(self._measure, candidate, reference, seconds)
            trial = replace(trial, cost_s=self._clock() - began_s)
            self._study.add(trial)
        else:
            raise _BudgetSpentError
        self._budget.spend(trial)
        self._trials.append(trial)
        if trial.error:
            self._failed[candidate] = trial.exhausted
        if self._watch is not None:
            self._watch(trial)
        return trial

    def _affords(self, candidate: Candidate, seconds: float = _WINDOW_S) -> bool:
        return self._budget.affords(candidate, self.incumbent, seconds)

    def _is_open(self, c: Candidate) -> bool:
        """Return whether a candidate was not measured yet and may succeed."""
        if c in self._scores or c in self._failed:
            return False
        # A candidate that ran out of memory or time also does with more environments.
        return not any(
            is_exhausted
            and c.envs_per_worker >= failed.envs_per_worker
            and c.but(envs_per_worker=failed.envs_per_worker) == failed
            for failed, is_exhausted in self._failed.items()
        )

    def _evidence(self) -> dict[Candidate, tuple[float, float]]:
        """Return log speed and variance of all that were measured; failures count as slow."""
        known = {c: (score.log_speed, score.variance) for c, score in self._scores.items()}
        worst = min(log_speed for log_speed, _ in known.values()) - math.log(2)
        return {**known, **dict.fromkeys(self._failed, (worst, 1.0))}

    @cached_property
    def _pool(self) -> list[Candidate]:
        pool = list(self._space.all())
        if len(pool) <= _POOL:
            return pool
        rng = np.random.default_rng(self._settings.seed)
        return [pool[i] for i in sorted(rng.choice(len(pool), _POOL, replace=False))]


def _verdict(number: int, lead: float, error: float) -> bool | None:
    """Return whether a candidate has won after ``number`` windows; None if undecided."""
    if number == 1:
        return False if lead < -_FAR_BEHIND or lead + 2 * error < 0 else None
    if lead - _SURE * error > 0:
        return True
    is_last = number == len(_RACE)
    if lead < max(_WORTH_IT, (_SURE_AT_LAST if is_last else _PROMISING) * error):
        return False
    return True if is_last else None


def _burden(candidate: Candidate, other: Candidate) -> float:
    """Return the log speed that a candidate must gain over another one to be as good.

    The smaller of two starts sooner, takes less memory, and has shorter or fewer rollouts.
    """

    def doublings(c: Candidate) -> float:
        return math.log2(c.num_envs * (c.num_env_workers + c.num_model_workers))

    return _PER_DOUBLING * (doublings(candidate) - doublings(other))


def _predict(
    evidence: Mapping[Candidate, tuple[float, float]], candidates: Sequence[Candidate]
) -> tuple[Array, Array]:
    """Return mean and standard deviation of log speeds, ``[candidates]`` each.

    They are those of a Gaussian process over the logarithms of n, N, M and others, of which
    ``evidence`` has log speed and variance of each measured candidate.
    """
    known, noise = _features(evidence), np.array([each for _, each in evidence.values()]) + 1e-4
    speeds = np.array([log_speed for log_speed, _ in evidence.values()])
    # Differences between slow candidates are irrelevant, and would mask those of fast ones.
    speeds = np.maximum(speeds, speeds.max() - _SLOW)
    mean, variance = float(np.median(speeds)), max(_SPREAD, float(np.std(speeds))) ** 2

    def fit(scale: float) -> tuple[float, float, Array, Array]:
        covariance = _kernel(known / scale, known / scale, variance) + np.diag(noise)
        inverse: Array = np.linalg.inv(covariance).astype(np.float64)
        weights = _product("ij,j->i", inverse, speeds - mean)
        log_volume = float(np.linalg.slogdet(covariance)[1])
        likelihood = -0.5 * (float(_product("i,i->", speeds - mean, weights)) + log_volume)
        return likelihood, scale, inverse, weights

    fits = map(fit, _SCALES if len(speeds) >= _ENOUGH else (1.0,))
    _, scale, inverse, weights = max(fits, key=lambda found: found[0])
    cross = _kernel(_features(candidates) / scale, known / scale, variance)
    explained = _product("ij,ij->i", _product("ij,jk->ik", cross, inverse), cross)
    std = np.sqrt(np.maximum(variance - explained, 1e-12))
    return mean + _product("ij,j->i", cross, weights), std


def _kernel(a: Array, b: Array, variance: float) -> Array:
    """Return the Matérn 5/2 covariance, as smooth as speeds, which have kinks at full cores."""
    square = np.sum((a[:, None, :] - b[None, :, :]) ** 2, axis=-1)
    distance = math.sqrt(5) * np.sqrt(square)
    kernel: Array = variance * (1 + distance + 5 * square / 3) * np.exp(-distance)
    return kernel


def _expected_improvement(mean: Array, std: Array, best: float) -> Array:
    """Return the expected improvement over ``best``; Jones et al. 1998, eq. 15.

    https://doi.org/10.1023/A:1008306431147
    """
    std = np.maximum(std, 1e-9)
    z = (mean - best) / std
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    below = 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
    gain: Array = std * (z * below + density)
    return gain


def _product(subscripts: str, *arrays: Array) -> Array:
    """Return an Einstein sum without BLAS, whose threads would occupy the measured cores."""
    product: Array = np.einsum(subscripts, *arrays, optimize=False)
    return product


def _features(candidates: Iterable[Candidate]) -> Array:
    """Return ``[candidates, features]``, in units over which speed is smooth."""

    def features(c: Candidate) -> tuple[float, ...]:
        gpu, models = float(c.device != "cpu"), c.num_model_workers
        return (
            math.log2(c.envs_per_worker) / 2.0,
            math.log2(c.num_env_workers) / 0.8,
            # From none to one is a larger step than from one to two.
            1.0 + math.log2(models) if models else 0.0,
            math.log2(c.groups) / 1.5,
            math.log2(c.torch_threads) / 1.5,
            gpu / 1.5,
            (c.device.count(",") + gpu) / 4,
            (c.engine == "eager") / 1.5,
            (c.engine == "bfloat16") / 1.5,
        )

    return np.array([features(c) for c in candidates])
