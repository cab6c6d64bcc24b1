"""What an algorithm is: a section of the configuration and a loss, which the learner minimises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from fastrl.config.algorithms import LearnerConfig
from fastrl.learning.batch import Batch, Experience, Minibatch
from fastrl.models.policy import PolicyModel

SectionT = TypeVar("SectionT", bound=LearnerConfig)
Scheduled = Mapping[str, float | Tensor]
"""Numbers that have a schedule, at one point of the run; tensors ``[]`` in a compiled loss."""


class Loss(NamedTuple):
    """What `Algorithm.loss` returns.

    Attributes:
        total: ``[]``: what the gradient steps make smaller; differentiable.
        metrics: ``[]`` by name: what is reported of it. The learner adds ``loss``, the total. A
            metric that is not finite counts as divergence, as a total that is not finite does.
    """

    total: Tensor
    metrics: Mapping[str, Tensor]


@dataclass(frozen=True)
class Prepared:
    """What an algorithm computes once per rollout.

    Attributes:
        fields: ``[T, B, *]`` by name: constants for the loss. They join the rollout's own fields,
            and replace those of the same name.
        metrics: ``[]`` by name: reported with the update.
    """

    fields: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Parameters that share an optimiser.

    Attributes:
        parameters: Those that need no gradient are left alone.
        learning_rate: Name of its learning rate, one of `Algorithm.schedules`.
    """

    parameters: Iterable[nn.Parameter]
    learning_rate: str = "learning_rate"


@dataclass(frozen=True)
class ObjectiveSettings:
    """Weights and bounds of the objective that PPO and A2C share; see `objective.objective`.

    Attributes:
        clip_range: ε of PPO; None for the plain policy gradient of A2C.
        clip_value_range: How far a value may move from the old one; None for no bound.
        entropy_coef: Weight of the entropy bonus.
        value_coef: Weight of the value loss.
        normalize_advantage: Whether to standardise the advantages of each minibatch.
    """

    clip_range: float | Tensor | None
    clip_value_range: float | None
    entropy_coef: float | Tensor
    value_coef: float
    normalize_advantage: bool


class Algorithm(ABC, Generic[SectionT]):
    """A loss, and what it is computed from; it differentiates and steps nothing itself.

    The learner does the rest for any of them: device, transfer, gradients, optimisers, schedules,
    clipping, bfloat16, ``torch.compile``, threads, normalisers and checkpoints.

    An update is `prepare`, and then, `epochs` times, a gradient step for each of `minibatches`.

    Args:
        section: The algorithm's section of the configuration.

    Attributes:
        section_type: Class of the section, a subclass of `LearnerConfig`: its keys are those of
            ``algorithm`` in the files.
        needs: Names of the outputs that a policy must have, such as ``value``.
        schedules: Names of the section's numbers that have a schedule, and of the keys that hold
            it. What they are in an update is in ``Minibatch.scheduled``, and reported.
        last_epoch_metrics: Names of metrics that are means over the last epoch rather than over all
            minibatches: how far an update has gone.
        is_mean_over_rows: Whether the total and all metrics of `loss` are means over the rows of
            the minibatch, terms of `whole` aside. Only then may each thread compute them over a
            share of the rows. False in a class that defines `loss`, unless it says otherwise.
    """

    section_type: ClassVar[type[LearnerConfig]]
    needs: ClassVar[tuple[str, ...]] = ()
    schedules: ClassVar[Mapping[str, str]] = {"learning_rate": "learning_rate_schedule"}
    last_epoch_metrics: ClassVar[frozenset[str]] = frozenset()
    is_mean_over_rows: ClassVar[bool] = False

    def __init__(self, section: SectionT) -> None:
        self.section = section

    def __init_subclass__(cls, **kwargs: Any) -> None:  # noqa: ANN401
        """Take back what a base class says about its loss where that is replaced."""
        super().__init_subclass__(**kwargs)
        if "loss" in cls.__dict__ and "is_mean_over_rows" not in cls.__dict__:
            cls.is_mean_over_rows = False

    @property
    def epochs(self) -> int:
        """How often `minibatches` is gone through for each rollout."""
        return 1

    def prepare(self, experience: Experience, policy: PolicyModel) -> Prepared:
        """Return what is computed once per rollout, such as advantages; without gradients."""
        return Prepared()

    def minibatches(self, batch: Batch, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield rows ``[n] int64`` of the batch, on its device, for one gradient step each.

        Args:
            batch: The rollout; by default all of it is one minibatch.
            generator: Source of randomness, on the CPU; its state is in the checkpoints.
        """
        yield torch.arange(len(batch), device=batch.device)

    def whole(self, minibatch: Minibatch) -> Mapping[str, Tensor]:
        """Return fields ``[n, *]`` that depend on the whole minibatch, as constants.

        They replace those of the same name, and are computed before the rows are shared among
        threads: what a loss needs of the minibatch as a whole belongs here.
        """
        return {}

    @abstractmethod
    def loss(self, minibatch: Minibatch, policy: PolicyModel) -> Loss:
        """Return the loss of a minibatch, on the minibatch's device.

        It may run in several threads at once, and compiled, so it must not change anything.

        Args:
            minibatch: The rows; ``minibatch["advantage"]`` is a field ``[n, *]``.
            policy: What is learnt. Its ``evaluate`` returns float32, also with ``bf16``.
        """

    def bounds(self) -> Mapping[str, float]:
        """Return metrics and their bounds: an update ends before a minibatch that exceeds one."""
        return {}

    def known_objective(self) -> Callable[[Scheduled], ObjectiveSettings] | None:
        """Return what gives the settings of `objective.objective`, if `loss` is that objective.

        The compiled kernels know this one. None stands for any other loss.
        """
        return None

    def groups(self, policy: PolicyModel) -> Mapping[str, Group]:
        """Return what the optimisers change, by the name of the optimiser.

        Each group's gradient is clipped on its own. By default there is one, of all parameters.
        """
        return {"": Group(policy.parameters())}

    def state_dict(self) -> dict[str, Any]:
        """Return copies of what further updates depend on, if the algorithm keeps anything."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
