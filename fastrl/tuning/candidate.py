"""What is tuned: one way to spread sampling over a machine's processes and devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from fastrl.arguments import whole_attributes


@dataclass(frozen=True)
class Candidate:
    """One choice of everything that decides how fast a given policy samples a given environment.

    Attributes:
        envs_per_worker: n, environments of each env worker.
        num_env_workers: N, processes that step.
        num_model_workers: M, processes that infer; 0 lets each env worker run the policy itself.
        groups: Parts of a worker's environments that are stepped in turn.
        device: Where policies run; several are joined by commas and dealt out.
        engine: Inference engine, see `fastrl.models.inference.build_engine`.
        torch_threads: Of each worker.
    """

    envs_per_worker: int
    num_env_workers: int
    num_model_workers: int = 0
    groups: int = 1
    device: str = "cpu"
    engine: str = "auto"
    torch_threads: int = 1

    def __post_init__(self) -> None:
        """Refuse numbers that nothing can have.

        Raises:
            ConfigError: A number is no whole one, or too small.
        """
        whole_attributes(self, ("num_model_workers",), at_least=0)
        whole_attributes(self, ("envs_per_worker", "num_env_workers", "groups", "torch_threads"))

    @property
    def num_envs(self) -> int:
        """B, environments of all workers."""
        return self.envs_per_worker * self.num_env_workers

    @property
    def num_policies(self) -> int:
        """Processes that run the policy."""
        return self.num_model_workers or self.num_env_workers

    @property
    def label(self) -> str:
        """The candidate on one line; what has its usual value is left out."""
        text = f"n={self.envs_per_worker} N={self.num_env_workers} M={self.num_model_workers}"
        if self.groups != 1:
            text += f" groups={self.groups}"
        for name in ("device", "engine", "torch_threads"):
            value = getattr(self, name)
            if value != _USUAL[name]:
                text += f" {value}" if name != "torch_threads" else f" threads={value}"
        return text

    def but(self, **changes: Any) -> Self:  # noqa: ANN401
        """Return a copy with some attributes changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as plain JSON types, by the names that configurations use."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """Return the candidate that `to_dict` has written; keys of others are ignored."""
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in found.items() if name in names})


_USUAL = {field.name: field.default for field in fields(Candidate)}
