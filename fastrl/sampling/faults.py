"""Faults of workers, and how often they are tolerated."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from fastrl.arguments import function, whole
from fastrl.errors import WorkerError

_NAMED_ENV = re.compile(r"^[\w-]+ failed: \w*Error: env (\d+)\b")
_LISTED = 8


@dataclass(frozen=True)
class Suspect:
    """An environment that was being stepped when its worker failed.

    Attributes:
        env: Its index in the run.
        seed: Its seed.
        episode: Number of the episode since it was seeded, from 0.
        action: The latest action chosen for it, as the policy sampled it.
    """

    env: int
    seed: int
    episode: int
    action: Any


@dataclass(frozen=True)
class Fault:
    """A worker that failed and was replaced.

    Attributes:
        worker: Its name.
        cause: One line.
        remote_traceback: The worker's traceback, empty if it died without one.
        restarts: How often it was replaced within the last hour.
        rollout: The rollout that it was filling.
        step: The step in that rollout.
        suspects: The environment that raised, or all that were being stepped.
    """

    worker: str
    cause: str
    remote_traceback: str
    restarts: int
    rollout: int | None = None
    step: int | None = None
    suspects: tuple[Suspect, ...] = ()

    def __str__(self) -> str:
        """Return one line."""
        listed = [
            f"env {each.env} (seed {each.seed}, episode {each.episode}, action {each.action})"
            for each in self.suspects[:_LISTED]
        ]
        more = len(self.suspects) - len(listed)
        who = f"; it was stepping {', '.join(listed)}" if listed else ""
        return f"{self.cause}{who}{f' and {more} more' if more else ''}; it is replaced"

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return asdict(self)


@dataclass(frozen=True)
class FaultPolicy:
    """How often workers may fail.

    Attributes:
        max_restarts: How often each worker is replaced within an hour; one more failure ends the
            run with its cause.
        on_fault: Called with each worker failure that leads to a replacement; by default the
            logger ``fastrl.sampling.process_sampler`` warns.
    """

    max_restarts: int = 0
    on_fault: Callable[[Fault], None] | None = None

    def __post_init__(self) -> None:
        """Check the attributes.

        Raises:
            ConfigError: One has the wrong type or value.
        """
        whole("max_restarts", self.max_restarts, at_least=0)
        if self.on_fault is not None:
            function("on_fault", self.on_fault)


def named_env(error: WorkerError) -> int | None:
    """Return the index of the environment that an `EnvError` names, or None."""
    found = _NAMED_ENV.match(str(error.args[0]))
    return int(found[1]) if found else None
