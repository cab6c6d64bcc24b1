"""The one thing that a worker is given: the plan, the memory and the signals of its run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cloudpickle

from fastrl.shared.counters import CounterBoard
from fastrl.shared.table import Table
from fastrl.shared.weights import WeightStore
from fastrl.workers.hand_over import HandOver
from fastrl.workers.plan import SamplingPlan


@dataclass
class WorkerContext:
    """Plan, memory and signals of a run; each worker also gets its index.

    Attributes:
        plan: What to sample.
        table: The shared table.
        weights: Published parameters, or None where actions are random.
        counters: What every worker did.
        hand_over: Who wakes whom.
        check_numbers: Whoever completes a part of a rollout looks for numbers that are not
            finite (see `HandOver.suspected`).
    """

    plan: SamplingPlan
    table: Table
    weights: WeightStore | None
    counters: CounterBoard
    hand_over: HandOver
    check_numbers: bool = False

    def close(self) -> None:
        """Drop the descriptors of all shared memory; held views stay valid."""
        for part in (self.table, self.weights, self.counters, self.hand_over):
            if part is not None:
                part.close()

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the plan by value: it may hold functions of the user's script."""
        return vars(self) | {"plan": cloudpickle.dumps(self.plan)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Attach in a worker."""
        vars(self).update(state | {"plan": cloudpickle.loads(state["plan"])})
