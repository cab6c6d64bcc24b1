"""How much memory a candidate would need."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fastrl.free_memory import free_bytes
from fastrl.sampling.stats import Memory
from fastrl.shared.schema import Schema
from fastrl.shared.table import NUM_BANKS
from fastrl.tuning.candidate import Candidate

_USABLE = 0.7
"""Share of the free memory that may be filled: others need some, too."""


def unique_bytes(memory: Mapping[str, Memory]) -> int:
    """Return the memory that processes hold alone, the mean over them."""
    found = [each.unique_mib * 2**20 for each in memory.values()]
    return int(sum(found) / max(1, len(found)))


@dataclass(frozen=True)
class MemoryNeed:
    """What candidates need, by what a small one was seen to need.

    Attributes:
        schema: The fields of the shared table.
        rollout_length: T.
        process_bytes: Of a worker without environments.
        env_bytes: Of one environment.
        most_bytes: What may be used.
    """

    schema: Schema
    rollout_length: int
    process_bytes: int
    env_bytes: int
    most_bytes: int

    @classmethod
    def usable(
        cls, schema: Schema, rollout_length: int, process_bytes: int, env_bytes: int
    ) -> MemoryNeed:
        """Return the need, within what is free now."""
        most = int(_USABLE * free_bytes())
        return cls(schema, rollout_length, process_bytes, env_bytes, most)

    def fits(self, c: Candidate) -> bool:
        """Say whether there is enough for a candidate and the one it is compared with."""
        return 2 * self.of(c) <= self.most_bytes

    def of(self, c: Candidate) -> int:
        """Return the bytes that a candidate needs."""
        table = NUM_BANKS * sum(
            math.prod(field.shape(spec, self.rollout_length, c.num_envs)) * spec.dtype.itemsize
            for field in self.schema
            for spec in field.leaves.values()
        )
        processes = c.num_env_workers + c.num_model_workers
        return table + processes * self.process_bytes + c.num_envs * self.env_bytes
