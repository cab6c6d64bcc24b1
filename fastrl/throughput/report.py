"""What a throughput test found, as JSON and as tables for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Group
from rich.table import Table

from fastrl.machine import machine, versions
from fastrl.sampling.stats import SHARES
from fastrl.spec import Topology
from fastrl.throughput.measure import Measurement


@dataclass(frozen=True)
class Report:
    """One throughput test.

    Attributes:
        env: Id of the environment.
        topology: n, N, M and groups.
        rollout_length: T.
        policy: What chose the actions, ``random`` for none.
        device: Where the policy ran.
        mode: ``sync`` or ``async``.
        measurement: What was measured.
        command: The command line that repeats it.
    """

    env: str
    topology: Topology
    rollout_length: int
    policy: str
    device: str
    mode: str
    measurement: Measurement
    command: str

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        found = self.measurement
        return {
            "env": self.env,
            "topology": asdict(self.topology),
            "rollout_length": self.rollout_length,
            "policy": self.policy,
            "device": self.device,
            "mode": self.mode,
            "frames": found.frames,
            "fps_median": found.fps_median,
            "fps_min": min(found.fps),
            "fps_max": max(found.fps),
            "fps": found.fps,
            "limit_fps": found.limit_fps,
            "limits": [asdict(limit) | {"fps": limit.fps} for limit in found.limits],
            "efficiency": found.efficiency,
            "start_s": found.start_s,
            "time_shares": found.shares,
            "hand_over_us": found.hand_over_us,
            "memory_mib": {name: asdict(memory) for name, memory in found.memory.items()},
            "machine": machine(),
            "versions": versions(),
            "date": datetime.now(UTC).date().isoformat(),
            "command": self.command,
        }

    def to_rich(self) -> Group:
        """Return the tables that the command line prints."""
        parts = [self._summary(), self._workers()]
        return Group(*parts)

    def _summary(self) -> Table:
        found, topology = self.measurement, self.topology
        table = Table(title=f"Throughput of {self.env}", title_justify="left", show_header=False)
        rows = {
            "frames per second": f"{found.fps_median:,.0f}  "
            f"({min(found.fps):,.0f} … {max(found.fps):,.0f} over {len(found.fps)} windows)",
            "n, N, M, groups": f"{topology.envs_per_worker}, {topology.num_env_workers}, "
            f"{topology.num_model_workers}, {topology.groups}   (T = {self.rollout_length}, "
            f"{self.mode})",
            "policy": f"{self.policy} on {self.device}",
            "frames counted": f"{found.frames:,}",
            "first transition after": f"{found.start_s:.1f} s",
        }
        if found.limits and found.limit_fps and found.efficiency:
            limit = found.limits[len(found.limits) // 2]
            rows["limit"] = (
                f"{found.limit_fps:,.0f}  ({limit.cores} cores / ({limit.t_step_s * 1e6:.2f} µs "
                f"env + {limit.t_policy_s * 1e6:.2f} µs policy))"
            )
            rows["sampling efficiency"] = f"{found.efficiency:.1%}"
        for woken, median_us in found.hand_over_us.items():
            rows[f"hand-over to {woken.replace('-', ' ')}"] = f"{median_us:.0f} µs median"
        rows["machine"] = f"{machine()['cpu']}, {machine()['cores']} cores"
        for label, value in rows.items():
            table.add_row(label, value)
        return table

    def _workers(self) -> Table:
        found = self.measurement
        table = Table(title="Where the time went", title_justify="left")
        table.add_column("process")
        for label in (*SHARES, "MiB unique", "MiB in use"):
            table.add_column(label, justify="right")
        for name, memory in found.memory.items():
            shares = found.shares.get(name, {})
            table.add_row(
                name,
                *(f"{shares[label]:.1%}" if label in shares else "" for label in SHARES),
                f"{memory.unique_mib:.0f}",
                f"{memory.rss_mib:.0f}",
            )
        return table
