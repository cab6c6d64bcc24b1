"""What a comparison found: as JSON and as a Markdown table; `picture` draws it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Self

from bench.results import quantity
from bench.rounds import fastest, ratio
from bench.tables import table

from fastrl.config import Config
from fastrl.system import circumstances
from fastrl.throughput.limits import Limit

FASTRL = ("fastrl-default", "fastrl-best")
VECTOR_ENVS = ("gymnasium-sync", "gymnasium-async", "sb3-dummy", "sb3-subproc")
"""Vector environments that run any Python environment, as fastrl does."""

COMPILED = ("gymnasium-native", "envpool-sync", "envpool-async")
"""Peers with an environment of their own, to which the limit of the Python one does not apply."""

PEER_PACKAGES = ("stable-baselines3", "envpool")
_SHORT = {"envs_per_worker": "n", "num_env_workers": "N", "num_model_workers": "M"}


@dataclass(frozen=True)
class Result:
    """One method at its best settings.

    Attributes:
        method: Its name.
        label: Its name in tables and plots.
        settings: What was set.
        fps: Frames per second of each round.
    """

    method: str
    label: str
    settings: Mapping[str, Any]
    fps: Sequence[float]

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """Return what `to_dict` wrote."""
        return cls(found["method"], found["label"], found["settings"], found["fps"])

    def to_dict(self, env: str) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "method": self.method,
            "label": self.label,
            "env": env,
            "settings": dict(self.settings),
            **quantity("fps", self.fps),
        }

    @property
    def settings_text(self) -> str:
        """The settings in a few words; a single thread goes without saying."""
        shown = {k: v for k, v in self.settings.items() if (k, v) != ("torch_threads", 1)}
        return ", ".join(f"{_SHORT.get(key, key)}={value}" for key, value in shown.items())


@dataclass(frozen=True)
class Comparison:
    """All methods, measured in turn in every round.

    Attributes:
        config: What was sampled, and fastrl's default sampler.
        policy: The network in a few words.
        results: One per method.
        limits: The physical limit of each round; empty where it was not measured.
        scan: The quick windows among which the best settings were found.
        skipped: Why a method is missing, by name.
        protocol: Length and number of the windows.
    """

    config: Config
    policy: str
    results: Sequence[Result]
    limits: Sequence[Limit] = ()
    scan: Sequence[Mapping[str, Any]] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)

    @property
    def best_vector_env(self) -> str | None:
        """The fastest of the vector environments that run any Python environment."""
        among = {each.method: each.fps for each in self.results if each.method in VECTOR_ENVS}
        return fastest(among) if among else None

    def ratios(self) -> dict[str, dict[str, float]]:
        """Return how many times each peer's throughput fastrl reaches; of the limit, its share."""
        rounds = {result.method: result.fps for result in self.results}
        others = {name: fps for name, fps in rounds.items() if name not in FASTRL}
        if self.best_vector_env:
            others["best-vector-env"] = rounds[self.best_vector_env]
        if self.limits:
            others["limit"] = [limit.fps for limit in self.limits]
        return {
            name: {other: ratio(rounds[name], fps) for other, fps in others.items()}
            for name in FASTRL
            if name in rounds
        }

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        env = self.config.env.id
        limits = [asdict(limit) | {"fps": limit.fps} for limit in self.limits]
        return {
            "env": env,
            "policy": self.policy,
            "results": [result.to_dict(env) for result in self.results],
            "ratios": self.ratios(),
            "best_vector_env": self.best_vector_env,
            "limit_fps": median([limit.fps for limit in self.limits]) if self.limits else None,
            "limits": limits,
            "scan": [dict(each) for each in self.scan],
            "skipped": dict(self.skipped),
            "protocol": dict(self.protocol),
            "config": self.config.model_dump(
                mode="json", include={"seed", "env", "sampler", "model"}
            ),
            **circumstances(*PEER_PACKAGES),
        }

    def to_markdown(self) -> str:
        """Return a heading and a table, the slowest method first."""
        single = next((r.fps for r in self.results if r.method == "single-env"), None)
        head = ["method", "settings", "frames/s, median", "min … max"]
        head += ["× single env"] if single else []
        head += ["of the limit"] if self.limits else []
        lines = []
        for result in sorted(self.results, key=lambda result: median(result.fps)):
            line = [result.label, result.settings_text, f"{median(result.fps):,.0f}"]
            line.append(f"{min(result.fps):,.0f} … {max(result.fps):,.0f}")
            if single:
                line.append(f"{ratio(result.fps, single):.1f}")
            if self.limits:
                share = ratio(result.fps, [limit.fps for limit in self.limits])
                line.append("–" if result.method in COMPILED else f"{share:.0%}")
            lines.append(line)
        title = f"### {self.config.env.id}\n"
        return "\n".join([title, table(head, lines), footer(self.to_dict()), ""])


def footer(found: Mapping[str, Any]) -> str:
    """Return in a line where, how and when figures were measured; of `Comparison.to_dict`."""
    used = found["machine"]
    rounds = max((len(result["fps"]) for result in found["results"]), default=0)
    return (
        f"{used['cpu']}, {used['cores']} cores; policy: {found['policy']}; "
        f"medians of {rounds} interleaved rounds; {found['date']}"
    )
