"""The contract of algorithms: a section of the configuration and a loss to minimise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from fastrl.config import Config
from fastrl.config.algorithms import LearnerConfig
from fastrl.learning.experience import Batch, Experience, Minibatch
from fastrl.learning.ranks import Ranks
from fastrl.models.policy import PolicyModel
from fastrl.spec import EnvSpec

SectionT = TypeVar("SectionT", bound=LearnerConfig)
Scheduled = Mapping[str, float | Tensor]
"""Numbers that have a schedule, at one point of the run; tensors ``[]`` in a compiled loss."""


class Loss(NamedTuple):
    """What `Algorithm.loss` returns.

    Attributes:
        total: ``[]``: what the gradient steps minimise; differentiable.
        metrics: ``[]`` by name, reported. The learner adds ``loss``, the total. A metric that is
            not finite counts as divergence, like the total.
    """

    total: Tensor
    metrics: Mapping[str, Tensor]


@dataclass(frozen=True)
class Prepared:
    """What an algorithm computes once per rollout.

    Attributes:
        fields: ``[T, B, *]`` by name: constants for the loss, added to the rollout's fields or in
            place of those of the same name.
        metrics: ``[]`` by name: reported with the update.
    """

    fields: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Parameters that share an optimiser.

    Attributes:
        parameters: Those that need no gradient are ignored.
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
    """A loss and the fields that it is computed from.

    The learner does the rest for any algorithm: device, transfer, gradients, optimisers, schedules,
    clipping, bfloat16, ``torch.compile``, threads, normalisers and checkpoints.

    An update is `relabel` and `prepare`, and then, `epochs` times, a gradient step for each of
    `minibatches`.

    Args:
        section: The algorithm's section of the configuration.

    Attributes:
        section_type: Class of the section, a subclass of `LearnerConfig`: its keys are those of
            ``algorithm`` in the files.
        needs: Names of the outputs that a policy must have, such as ``value``.
        schedules: Names of the section's numbers that have a schedule, and of the keys that hold
            it. Their values in an update are in ``Minibatch.scheduled``, and reported.
        last_epoch_metrics: Names of metrics that are means over the last epoch instead of over all
            minibatches: how far an update has moved the policy.
        is_mean_over_rows: Whether the total and all metrics of `loss` are means over the rows of
            the minibatch, except for fields of `whole`. Only then may each thread compute them
            over a share of the rows. False in a class that defines `loss` but not this.
        uses_value: Whether `loss` uses the values that `Minibatch.evaluate` returns. Otherwise they
            may be 0, where a separate network of the value need not be computed.
    """

    section_type: ClassVar[type[LearnerConfig]]
    needs: ClassVar[tuple[str, ...]] = ()
    schedules: ClassVar[Mapping[str, str]] = {"learning_rate": "learning_rate_schedule"}
    last_epoch_metrics: ClassVar[frozenset[str]] = frozenset()
    is_mean_over_rows: ClassVar[bool] = False
    uses_value: ClassVar[bool] = True

    def __init__(self, section: SectionT) -> None:
        self.section = section

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Reset ``is_mean_over_rows`` in a class that defines another loss."""
        super().__init_subclass__(**kwargs)
        if "loss" in cls.__dict__ and "is_mean_over_rows" not in cls.__dict__:
            cls.is_mean_over_rows = False

    @property
    def epochs(self) -> int:
        """Number of passes over each rollout."""
        return 1

    def begin(self, config: Config, env_spec: EnvSpec, device: torch.device, ranks: Ranks) -> None:
        """Build what depends on the run, such as further networks; called once, by the learner.

        Args:
            config: The whole run.
            env_spec: Spaces of the environment.
            device: Where gradients are computed.
            ranks: Those that learn together, on each of which this is called.
        """

    def relabel(
        self, experience: Experience, policy: PolicyModel, scheduled: Scheduled
    ) -> Prepared:
        """Return fields in place of those of the rollout, such as a learnt reward.

        Called once per rollout, before `prepare` and before rewards are scaled and normalised;
        without gradients.

        Args:
            experience: The rollout, with the rewards of the environment.
            policy: What is learnt.
            scheduled: See `Minibatch.scheduled`.
        """
        return Prepared()

    def prepare(self, experience: Experience, policy: PolicyModel) -> Prepared:
        """Return constants computed once per rollout, such as advantages; without gradients."""
        return Prepared()

    def minibatches(self, batch: Batch, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield rows ``[n] int64`` of the batch, on its device, for one gradient step each.

        With a memory they are whole segments, as `learning.experience.segment_rows` returns them.

        Args:
            batch: The rollout; by default all of it is one minibatch.
            generator: Source of randomness, on the CPU; its state is in the checkpoints.
        """
        yield batch.all_rows()

    def whole(self, minibatch: Minibatch) -> Mapping[str, Tensor]:
        """Return fields ``[n, *]`` that depend on the whole minibatch, as constants.

        They replace those of the same name, and are computed before the rows are shared among
        threads.
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
        """Return bounds of metrics: an update stops before a minibatch that exceeds one."""
        return {}

    @property
    def is_finished(self) -> bool:
        """Whether further updates would not help, so that the run ends after this one."""
        return False

    def known_objective(self) -> Callable[[Scheduled], ObjectiveSettings] | None:
        """Return a function that returns the settings of `objective.objective`.

        None if `loss` is another one, for which there are no compiled kernels.
        """
        return None

    def groups(self, policy: PolicyModel) -> Mapping[str, Group]:
        """Return the parameters of each optimiser, by its name; by default one for all.

        The gradient of each group is clipped separately.
        """
        return {"": Group(policy.parameters())}

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the algorithm's state, on which further updates depend."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from such a state."""
