"""``sampler: auto`` before training: tunes this machine, or each kind of machine of a cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console

from fastrl.arguments import taken
from fastrl.cluster.connection import Connection, NodeLostError
from fastrl.cluster.node_sampler import packages, require_packages
from fastrl.cluster.peer import Answering, Peer
from fastrl.config import Config
from fastrl.config.models import MachineConfig
from fastrl.errors import FastrlError
from fastrl.live_display import check_console, waiting
from fastrl.program_code import packed, unpacked
from fastrl.training.session import check_named_code
from fastrl.tuning.space import Candidate, sampler_keys, with_candidate
from fastrl.tuning.tune import tuned_here

_SLOWER = 4.0
"""Multiple of its budget, besides the time to start, after which a tuning is given up."""


def tuned(config: Config, console: Console | None = None, *, fresh: bool = False) -> Config:
    """Tune a configuration with ``sampler.tune_s`` for training, and return it without that key.

    The result is stored in the user's cache directory, under a `study_name`. A tuning that ran out
    of time is continued if there is more time. B stays as configured, since it changes what is
    learnt. With a section ``cluster`` whose mode is ``rollouts``, one machine of each kind is
    tuned, and ``cluster.machines`` has the results.

    Args:
        config: Returned unchanged if ``sampler.tune_s`` is null.
        console: Console that shows the result; none by default.
        fresh: Discard earlier results.

    Raises:
        ConfigError: The sampler has nothing to tune, or a machine lacks a package or module.
        EnvError: The environment cannot be built.
        WorkerError: The head of the cluster does not answer.
    """
    taken("tuned", config, Config, "load_config reads one from a file")
    check_console(console)

    def say(text: str) -> None:
        if console is not None:
            console.print(text, highlight=False, markup=False, soft_wrap=True)

    budget_s = config.sampler.tune_s
    if budget_s is None:
        return config
    # Errors that would end the run after the tuning are reported before it.
    check_named_code(config)
    sampler = config.sampler.model_copy(update={"tune_s": None})
    config = config.model_copy(update={"sampler": sampler})
    with waiting(console, f"tuning for up to {budget_s:g} s …"):
        if config.cluster is not None and config.cluster.mode == "rollouts":
            return _tuned_machines(config, budget_s, say, fresh=fresh)
        best = tuned_here(config, budget_s, say, fresh=fresh)
    return config if best is None else with_candidate(config, best)


class Tuner(Answering):
    """Tunes its machine; see `Answering`."""

    def tune(self, wanted: dict[str, str], content: bytes) -> tuple[Candidate | None, list[str]]:
        """Return the best candidate, or None, and lines to print.

        Args:
            wanted: The driver's `packages`.
            content: `packed`: the run, the budget in seconds, and whether earlier results are
                discarded.

        Raises:
            ConfigError: Versions differ, or something cannot be imported or built here.
            EnvError: The environment cannot be built here.
        """
        require_packages(wanted)
        config, budget_s, fresh = unpacked(content)
        lines: list[str] = []
        return tuned_here(config, budget_s, lines.append, fresh=fresh), lines


def _tuned_machines(
    config: Config, budget_s: float, say: Callable[[str], None], *, fresh: bool
) -> Config:
    """Tune one machine for each number of cores, in parallel; return the configuration.

    Machines with keys in ``cluster.machines`` are not tuned.

    Args:
        config: Configuration with a section ``cluster``.
        budget_s: Budget of all trials of a machine in seconds.
        say: Called with lines to print.
        fresh: Discard earlier results.

    Raises:
        ConfigError: The cluster cannot be joined, or a machine lacks a package or module.
        EnvError: The environment cannot be built on a machine.
        WorkerError: The head of the cluster does not answer.
    """
    cluster = config.cluster
    assert cluster is not None
    found = list(cluster.machines)
    with Connection(cluster.address) as connection:
        kinds = {node.cores: node for node in reversed(connection.nodes())}
        for machine in found:
            kinds.pop(machine.cores, None)
        timeout_s = _SLOWER * budget_s + config.sampler.start_timeout_s
        peers = [Peer(connection, node, Tuner, cores) for cores, node in kinds.items()]
        try:
            for peer in peers:
                alone = {"cluster": None, "sampler": config.sampler_on(peer.node.cores)}
                content = packed(config, (config.model_copy(update=alone), budget_s, fresh))
                peer.ask(timeout_s, "tune", packages(), content)
            for peer in peers:
                where = f"{peer} ({peer.node.cores} cores)"
                try:
                    best, lines = peer.wait()
                except NodeLostError as error:
                    best, lines = None, [f"not tuned: it {error}"]
                except FastrlError as error:
                    raise type(error)(f"{where}: {error}") from error
                for line in lines:
                    say(f"{where}: {line}")
                if best is not None:
                    keys: dict[str, Any] = sampler_keys(best)
                    found.append(MachineConfig(cores=peer.node.cores, **keys))
        finally:
            for peer in peers:
                peer.kill()
    machines = cluster.model_copy(update={"machines": tuple(found)})
    return config.model_copy(update={"cluster": machines})
