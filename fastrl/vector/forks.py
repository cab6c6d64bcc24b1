"""A fork of the program has neither its threads nor its worker processes, only their memory."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Disownable(Protocol):
    """Has threads or processes that a fork of this process must not ask for anything."""

    def disown(self) -> None:
        """Refuse whatever is asked from now on."""
        ...


WHY = "the environments belong to the process that built them, of which this one is a fork"

_living: weakref.WeakSet[Disownable] = weakref.WeakSet()


def disown_in_forks(driver: Disownable) -> None:
    """Let a driver be disowned in every fork of this process."""
    _living.add(driver)


def _disown() -> None:
    for driver in list(_living):
        driver.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown)
