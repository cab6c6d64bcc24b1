"""Where an env worker is, which follows from how many steps it has made."""

from __future__ import annotations

from typing import NamedTuple

from fastrl.spec import Topology


class Position(NamedTuple):
    """What an env worker does next: step ``t`` of ``group`` in ``rollout``.

    Groups are stepped in turn, so those before ``group`` have made step ``t`` and the others not.
    """

    rollout: int
    t: int
    group: int

    def steps_of(self, group: int) -> int:
        """Return how many steps of the rollout a group has completed: ``t`` or ``t + 1``."""
        return self.t + (group < self.group)

    @property
    def at_start(self) -> bool:
        """Whether no step of the rollout is complete."""
        return self.t == 0 and self.group == 0


def position_of(env_steps: int, topology: Topology, rollout_length: int) -> Position:
    """Return where a worker is that has made ``env_steps`` environment steps in all.

    The count is raised after everything that a step writes, so what it says is complete is.
    """
    turns = env_steps // topology.envs_per_group
    rollout, turns = divmod(turns, rollout_length * topology.groups)
    return Position(rollout, *divmod(turns, topology.groups))
