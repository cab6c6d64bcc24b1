"""``sampler: auto``: tunes at the start of training, once for what it depends on."""

from __future__ import annotations

import math
from contextlib import ExitStack
from functools import partial

from rich.console import Console

from fastrl.config import Config
from fastrl.tuning.apply import with_candidate
from fastrl.tuning.candidate import Candidate
from fastrl.tuning.finding import TIME_IS_UP
from fastrl.tuning.study import StudyCache, undamaged_study
from fastrl.tuning.trials import TrialError
from fastrl.tuning.tune import TuneOptions, Tuning, could_find, study_name, study_path


def tuned(config: Config, console: Console | None = None, *, fresh: bool = False) -> Config:
    """Return a configuration with nothing left to tune.

    What was found is kept in the user's cache directory, for this machine, environment and its
    code, policy, way of learning and versions of packages. A tuning whose time was up is gone on
    with where there is more time. The number of environments stays as configured, since it changes
    what is learnt.

    Args:
        config: Tuned where ``sampler.tune_s`` says for how long; otherwise returned as it is.
        console: Where to say what was found; nowhere by default.
        fresh: Forget what was found before.

    Raises:
        ConfigError: The sampler has nothing to tune.
        EnvError: The environment cannot be built.
    """
    budget_s = config.sampler.tune_s
    if budget_s is None:
        return config
    config = config.model_copy(
        update={"sampler": config.sampler.model_copy(update={"tune_s": None})}
    )
    options = TuneOptions("train_fps", budget_s, with_limit=False)
    try:
        best, how = _find(config, options, fresh, console)
    except TrialError as error:
        _say(console, f"not tuned, as {error}")
        return config
    _say(console, f"{how}: {best.label}")
    return with_candidate(config, best)


def _find(
    config: Config, options: TuneOptions, fresh: bool, console: Console | None
) -> tuple[Candidate, str]:
    with ExitStack() as stack:
        kept = StudyCache(
            lambda: undamaged_study(study_path(), study_name(config, options), fresh=fresh),
            lambda text: _say(console, text),
        )
        stack.enter_context(kept)
        found = kept.result_of(options.budget_s, partial(could_find, config, options))
        if found is not None:
            return found, "tuned before"
        tuning = stack.enter_context(Tuning(config, options, kept))
        finding = tuning.run().finding
        enough_s = options.budget_s if finding.ended == TIME_IS_UP else math.inf
        kept.keep_result(finding.best, enough_s)
        return finding.best, f"tuned in {finding.spent_s:.0f} s"


def _say(console: Console | None, text: str) -> None:
    if console is not None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)
