"""Workers that fail at chosen points of their work, a different one in each process.

What runs first in a worker is the plan's ``build_env`` or ``build_model``; from there the worker's
own functions are replaced by ones that fail when they are called for the n-th time.
"""

from __future__ import annotations

import dataclasses
import os
from typing import NamedTuple

import numpy as np

from fastrl.shared import memory
from fastrl.workers.env_worker import EnvStepper
from fastrl.workers.policy_runner import PolicyRunner
from tests.sampling.counting import CountingEnvs, abort, hang, kill, raise_error

FAULTS = (raise_error, kill, abort, hang)
HANG = 3


class Point(NamedTuple):
    """Point of failure: the ``number``-th call of a function.

    In ``step`` it fails when half of the environments have been stepped; ``before post`` is
    between what others are to see and the signal that tells them to look.
    """

    where: str
    number: int
    fault: int = 1


class Failures:
    """List of points, of which each process takes the next one.

    Args:
        directory: Directory in which the processes count themselves.
        points: Points of failure.
    """

    def __init__(self, directory, points):
        self._path, self._points = str(directory / "starts"), tuple(points)

    def next_point(self):
        """Return the point of this process, or None."""
        descriptor = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, b".")
        started = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.close(descriptor)
        return self._points[started - 1] if started <= len(self._points) else None

    @property
    def happened(self):
        """Return the number of used points."""
        return min(self.started(), len(self._points))

    def started(self):
        """Return how many processes have asked for a point."""
        return os.path.getsize(self._path)


class FaultyEnvs(CountingEnvs):
    """Batch that fails between two of its environments."""

    def __init__(self, num_envs, countdown, fault):
        super().__init__(num_envs)
        self._countdown, self._fault_here = countdown, fault

    def _write(self, rows, index):
        # Among the rows written one by one, only the ends of episodes count.
        if isinstance(index, int | np.integer) and next(self._countdown) == 0:
            self._fault_here()
        super()._write(rows, index)


def countdown(number):
    """Yield number - 1, …, 1, 0, −1, …"""
    while True:
        number -= 1
        yield number


def failing(original, numbers, fault, before=False):
    """Return a function that fails before or after ``original``."""

    def call(*args, **kwargs):
        fails = next(numbers) == 0
        if fails and before:
            fault()
        result = original(*args, **kwargs)
        if fails:
            fault()
        return result

    return call


TARGETS = {
    "step done": (EnvStepper, "step", False),
    "rollout begun": (EnvStepper, "begin", False),
    "take over": (EnvStepper, "take_over", False),
    "before post": (memory._LinuxSignal, "post", True),
    "post": (memory._LinuxSignal, "post", False),
    "serve": (PolicyRunner, "serve", False),
    "policy begun": (PolicyRunner, "begin", False),
}


def arm(point):
    """Make this process fail at a point."""
    owner, name, before = TARGETS[point.where]
    fault, numbers = FAULTS[point.fault], countdown(point.number)
    setattr(owner, name, failing(getattr(owner, name), numbers, fault, before))


def with_failing_env_workers(plan, failures):
    """Return a plan whose env workers fail."""
    groups = plan.topology.groups

    def build(num_envs, built=[]):  # noqa: B006 - counts the groups of this process
        built.append(None)
        point = failures.next_point() if len(built) == 1 else None
        if point is not None and point.where in TARGETS:
            arm(point)
        if point is not None and point.where == "step":
            built[0] = (countdown(point.number), FAULTS[point.fault])
        assert len(built) <= groups
        return FaultyEnvs(num_envs, *built[0]) if built[0] else CountingEnvs(num_envs)

    return dataclasses.replace(plan, build_env=build)


def with_failing_model_workers(plan, failures):
    """Return a plan whose model workers fail."""

    def build():
        # Env workers have no policy of their own here, and the sampler was given its weights.
        point = failures.next_point()
        if point is not None:
            arm(point)
        return plan.build_model()

    schema = plan.schema
    return dataclasses.replace(
        plan, build_model=build, outputs=schema.outputs, state_size=schema.state_size
    )
