"""What holds sampling up, and what would help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from fastrl.sampling.stats import SHARES
from fastrl.tuning.candidate import Candidate
from fastrl.tuning.trials import number_in

STEPPING, INFERENCE, HAND_OVER, LEARNER = "env stepping", "inference", "hand-over", "learner"

_ADVICE = {
    STEPPING: "only more cores, or an environment that steps many at once "
    "('fastrl envs' lists compiled ones), would be faster",
    INFERENCE: "a smaller network, a GPU, or on a CPU that has it sampler.engine=bfloat16 "
    "for conv nets would help",
    HAND_OVER: "more environments per worker, or sampler.num_model_workers=0, would help",
    LEARNER: "sampler.mode=async hides sampling behind learning; fewer algorithm.epochs, larger "
    "minibatches or a GPU for algorithm.device would help",
}
_Share = Annotated[float, Field(ge=0, le=1)]
_SHARES = TypeAdapter(dict[str, dict[str, _Share]])


@dataclass(frozen=True)
class Bottleneck:
    """What takes most of the time.

    Attributes:
        name: ``env stepping``, ``inference``, ``hand-over`` or ``learner``.
        share: Of the time that could be saved without it.
        advice: What would help.
    """

    name: str
    share: float
    advice: str

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.name} ({self.share:.0%} of the time); {self.advice}"


def time_shares(notes: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the share of time by activity of each kind of worker, empty where there are none."""
    try:
        shares = _SHARES.validate_python(notes.get("shares") or {})
    except ValidationError:  # another program's notes
        return {}
    return {kind: {**dict.fromkeys(SHARES, 0.0), **found} for kind, found in shares.items()}


def find_bottleneck(candidate: Candidate, notes: Mapping[str, Any]) -> Bottleneck | None:
    """Return what holds a candidate up, by the time shares of a window; None if there are none.

    Where policies run in processes of their own, env workers that wait do so for the inference,
    or, as far as the model workers wait as well, for the hand-over.
    """
    shares, learner = time_shares(notes), number_in(notes, "learner_share", 0.0)
    stepper = shares.get("env-worker")
    if stepper is None:
        return None
    sampling = 1.0 - learner
    parts = {LEARNER: learner, STEPPING: stepper["stepping"] * sampling}
    if candidate.num_model_workers and (server := shares.get("model-worker")):
        held_up = stepper["waiting"] + stepper["hand-over"]
        computing = server["inference"] / max(1e-9, server["inference"] + server["waiting"])
        parts[INFERENCE] = held_up * computing * sampling
        parts[HAND_OVER] = held_up * (1 - computing) * sampling
    else:
        parts[INFERENCE] = stepper["inference"] * sampling
        parts[HAND_OVER] = stepper["hand-over"] * sampling
    name = max(parts, key=lambda part: parts[part])
    advice = _ADVICE[name]
    if name == INFERENCE and candidate.engine == "bfloat16":
        advice = "a smaller network or a GPU would help"
    return Bottleneck(name, min(1.0, parts[name]), advice)
