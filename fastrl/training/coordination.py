"""Coordination of the ranks of a run: equal configurations, sums of samples, and the end."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from fastrl.config import Config, config_to_yaml
from fastrl.envs.state import State, pack, unpack
from fastrl.errors import ConfigError, FastrlError, cause
from fastrl.learning.ranks import Ranks
from fastrl.shared.rollouts import Episodes, Rollout
from fastrl.system import usable_cores, versions
from fastrl.training.interrupts import StopSignal
from fastrl.workers.plan import SamplingPlan

_RANKS = "ranks"
"""Key of the states of the ranks' samplers in a checkpoint."""


@contextmanager
def together(ranks: Ranks) -> Iterator[None]:
    """Report a failure of the block to the other ranks, and leave the group at its end."""
    try:
        yield
    except BaseException as error:
        ranks.fail(str(error) if isinstance(error, FastrlError) else cause(error))
        raise
    finally:
        ranks.close()


def require_alike(ranks: Ranks, config: Config) -> None:
    """Compare this run on all ranks.

    Raises:
        ConfigError: Another rank has another configuration, or another version of a package.
    """
    if ranks.size == 1:
        return
    own = {"the configuration": config_to_yaml(config), **versions()}
    first, *others = ranks.gather(own)
    for rank, other in enumerate(others, 1):
        for name in first.keys() | other.keys():
            if first.get(name) != other.get(name):
                here, there = _difference(first.get(name, ""), other.get(name, ""))
                raise ConfigError(
                    f"rank {rank} differs from rank 0 in {name}: '{there}' instead of '{here}'"
                )


def _difference(first: str, second: str) -> tuple[str, str]:
    """Return the first line of each text in which they differ."""
    lines = [text.splitlines() or [""] for text in (first, second)]
    longest = max(map(len, lines))
    padded = [found + [""] * (longest - len(found)) for found in lines]
    differing = ((a.strip(), b.strip()) for a, b in zip(*padded, strict=True) if a != b)
    return next(differing, ("", ""))


def own_part(config: Config, ranks: Ranks) -> Config:
    """Return the configuration of this rank's sampler and learner.

    The sizes of ``sampler`` are those of the whole run. Each rank has an equal part of the
    environments, and at least one worker.

    Raises:
        ConfigError: The sizes cannot be divided among the ranks.
    """
    if config.cluster is not None and config.cluster.mode == "gradients":
        # Each rank samples on its node alone.
        config = config.model_copy(update={"cluster": None})
    if ranks.size == 1:
        return config
    sampler, size, total = config.sampler, ranks.size, config.topology.num_envs
    unit = sampler.unit
    if total % (size * unit):
        by = f"the number of ranks ({size})"
        if unit > 1:
            key = "envs_per_worker" if sampler.envs_per_worker else "groups"
            by += f" × sampler.{key} ({unit})"
        raise ConfigError(f"sampler.num_envs: must be divisible by {by}, got {total}")
    smallest = getattr(config.algorithm, "minibatch_size", None)
    if smallest is not None and smallest < size:
        raise ConfigError(
            f"algorithm.minibatch_size: must be at least the number of ranks ({size}), "
            f"got {smallest}"
        )
    given, own = sampler.num_env_workers, total // size
    most = usable_cores() if given == "auto" else max(1, given // size)
    workers = max(n for n in range(1, most + 1) if not (own // unit) % n)
    if sampler.envs_per_worker:
        workers = own // sampler.envs_per_worker
    sizes = {
        "num_envs": own,
        "num_env_workers": workers,
        "num_model_workers": min(workers, -(-sampler.num_model_workers // size)),
        "device": tuple(map(ranks.device, sampler.devices)),
    }
    algorithm = config.algorithm.model_copy(
        update={"device": ranks.device(config.algorithm.device)}
    )
    sampler = sampler.model_copy(update=sizes)
    return config.model_copy(update={"sampler": sampler, "algorithm": algorithm})


def own_plan(plan: SamplingPlan, ranks: Ranks) -> SamplingPlan:
    """Return the plan of this rank's sampler: its part of the slots of the whole run."""
    if ranks.size == 1:
        return plan
    own = plan.topology.num_envs
    topology = dataclasses.replace(
        plan.topology, by_slot=True, first_env=ranks.rank * own, run_envs=ranks.size * own
    )
    return dataclasses.replace(plan, topology=topology)


def meet(
    ranks: Ranks, rollout: Rollout | None, lag: float = 0.0, asked: int | None = None
) -> tuple[Episodes, float]:
    """Return the episodes that ended on all ranks, and their policies' mean lag.

    Args:
        ranks: All ranks, which call this once per update.
        rollout: Rollout of this rank; None if it was interrupted.
        lag: Lag of this rank's policy.
        asked: The signal that interrupted the rollout.

    Raises:
        StopSignal: The rollout of a rank was interrupted; carries the signal.
        WorkerError: A rank is lost.
    """
    if rollout is not None and ranks.size == 1:
        return rollout.episodes, lag
    own: State = int(asked or signal.SIGTERM)
    if rollout is not None:
        episodes = vars(rollout.episodes) | {"info": dict(rollout.episodes.info)}
        own = {"episodes": episodes, "lag": lag}
    found = ranks.gather(own)
    for item in found:
        if isinstance(item, int):
            raise StopSignal(item)
    assert rollout is not None
    width = rollout.reward.shape[1]
    parts = [Episodes(**each["episodes"]) for each in found]
    joined = Episodes.joined(parts, range(0, len(found) * width, width))
    return joined, float(np.mean([each["lag"] for each in found]))


def joined_environments(ranks: Ranks, own: bytes | None, reason: str) -> tuple[bytes | None, str]:
    """Join the states of all ranks' environments; or return None and the reason.

    Args:
        ranks: All ranks, which call this together.
        own: State of this rank's environments; None if there is none.
        reason: Reason for None; empty if no episode has begun.

    Raises:
        WorkerError: A rank is lost.
    """
    found = ranks.gather([own, reason])
    if ranks.size == 1 or any(state is None for state, _ in found):
        return own if ranks.size == 1 else None, max(why for _, why in found)
    return pack({_RANKS: [state for state, _ in found]}), ""


def own_environments(state: State, ranks: Ranks) -> tuple[State, str]:
    """Return this rank's part of a checkpoint's environments, or the reason why there is none."""
    parts = state.get(_RANKS) if isinstance(state, dict) else None
    number = 1 if parts is None else len(parts)
    if number != ranks.size:
        return None, f"the checkpoint is of another number of ranks ({number})"
    return state if parts is None else unpack(parts[ranks.rank]), ""
