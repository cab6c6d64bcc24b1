"""The base class of algorithms, and its inputs and results; `learner` calls it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from fastrl.config import Config
from fastrl.config.algorithms import LearnerConfig
from fastrl.errors import ConfigError
from fastrl.learning.ranks import Ranks
from fastrl.models.policy import PolicyModel, initial_state
from fastrl.spaces import flatten
from fastrl.spec import ACTION_MASK, EnvSpec

SectionT = TypeVar("SectionT", bound=LearnerConfig)
Scheduled = Mapping[str, float | Tensor]
"""Current values of scheduled numbers, by name; tensors ``[]`` in a compiled loss."""

LEARNT = "learnt"
"""Field ``[T, B] bool`` that `Algorithm.prepare` may return: rows that the loss uses. The running
statistics of observations count only these; without the field, all rows."""
_ALIGNMENT = 64
Moved = Callable[[Iterable[Tensor]], list[Tensor]]
"""A function that copies tensors to the learner's device, such as a `Transfer`."""


class Loss(NamedTuple):
    """The result of `Algorithm.loss`.

    Attributes:
        total: ``[]``: differentiable loss that the gradient steps minimise.
        metrics: ``[]`` by name, reported. The learner adds ``loss``, the total. A metric that is
            not finite counts as divergence, like the total.
    """

    total: Tensor
    metrics: Mapping[str, Tensor]


@dataclass(frozen=True)
class Prepared:
    """The result of `Algorithm.prepare`.

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
    """Weights and bounds of the objective that PPO and A2C share; see `ppo.objective`.

    Attributes:
        clip_range: ε of PPO; None for the plain policy gradient of A2C.
        clip_value_range: Largest change of a value from the old one; None for no bound.
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

    For any algorithm the learner handles device, transfer, gradients, optimisers, schedules,
    clipping, bfloat16, ``torch.compile``, threads, normalisers and checkpoints.

    An update is `relabel` and `prepare`, and then, `epochs` times, a gradient step for each of
    `minibatches`.

    Args:
        section: The algorithm's section of the configuration.

    Attributes:
        section_type: Class of the section, a subclass of `LearnerConfig`: its keys are those of
            ``algorithm`` in the files.
        needs: Names of the outputs that a policy must have, such as ``value``.
        schedules: Names of the section's scheduled numbers, and of the keys that contain
            their schedules. Current values are in ``Minibatch.scheduled`` and in the metrics.
        last_epoch_metrics: Names of metrics that are means over the last epoch instead of over all
            minibatches, such as the KL divergence.
        is_mean_over_rows: Whether the total and all metrics of `loss` are means over the rows of
            the minibatch, except for fields of `whole`. Only then may each thread compute them
            over a share of the rows. False in a class that defines `loss` but not this.
        uses_value: Whether `loss` uses the values that `Minibatch.evaluate` returns. If not, they
            may be 0, so that a separate value network is not computed.
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
        """Build what depends on the run, such as further networks; the learner calls this once.

        Args:
            config: The whole run.
            env_spec: Spaces of the environment.
            device: Device of the gradients.
            ranks: The ranks of the run; each of them calls this method.
        """

    def relabel(
        self, experience: Experience, policy: PolicyModel, scheduled: Scheduled
    ) -> Prepared:
        """Return fields in place of those of the rollout, such as a learnt reward.

        Called once per rollout, before `prepare` and before rewards are scaled and normalised;
        without gradients, and with the policy in evaluation mode.

        Args:
            experience: The rollout, with the rewards of the environment.
            policy: The policy that learns.
            scheduled: See `Minibatch.scheduled`.
        """
        return Prepared()

    def prepare(self, experience: Experience, policy: PolicyModel) -> Prepared:
        """Return constants computed once per rollout, such as advantages.

        It is called without gradients, and with the policy in evaluation mode.
        """
        return Prepared()

    def minibatches(self, batch: Batch, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield rows ``[n] int64`` of the batch, on its device, for one gradient step each.

        With a memory they are whole segments, as `segment_rows` returns them.

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
            policy: The policy that learns. Its ``evaluate`` returns float32, also with ``bf16``.
        """

    def bounds(self) -> Mapping[str, float]:
        """Return bounds of metrics: an update stops before a minibatch that exceeds one."""
        return {}

    @property
    def is_finished(self) -> bool:
        """Whether the run ends after this update, because further ones would not help."""
        return False

    def known_objective(self) -> Callable[[Scheduled], ObjectiveSettings] | None:
        """Return a function that computes the settings of `ppo.objective` from scheduled numbers.

        None if `loss` is another function, for which there are no compiled kernels.
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


@dataclass(frozen=True)
class Experience:
    """The input of `Algorithm.prepare`: a rollout, with all tensors on its device.

    ``experience["reward"]`` is a field by its name.

    Attributes:
        observation: Per leaf ``[T+1, B, *shape]``; see `EnvSpec.inputs`.
        action: Per leaf ``[T, B, *shape]``.
        fields: The rollout's other fields by name, ``[T, B, *]`` or ``[T+1, B, *]``; those that
            are nested like the observation, by ``name/leaf``. Rewards are scaled and normalised.
            ``action_mask`` is that of the observation, ``[T+1, B, choices] bool``, if it has one.
        device: Device of the gradients.
    """

    observation: Mapping[str, Tensor]
    action: Mapping[str, Tensor]
    fields: Mapping[str, Tensor]
    device: torch.device

    @classmethod
    def of(cls, rollout: Mapping[str, Any], env_spec: EnvSpec, device: torch.device) -> Experience:
        """Return the experience of a rollout's fields.

        Args:
            rollout: By name: tensors, or nested like a space.
            env_spec: The environment.
            device: Device of the gradients.
        """
        observed = flatten(env_spec.observation_space, rollout["observation"])
        observation, mask = env_spec.split_mask(
            dict(zip(env_spec.observation, observed, strict=True))
        )
        action = flatten(env_spec.action_space, rollout["action"])
        fields: dict[str, Tensor] = {}
        for name, found in rollout.items():
            if name in ("observation", "action"):
                continue
            if isinstance(found, Tensor):
                fields[name] = found
            else:
                nested = flatten(env_spec.observation_space, found)
                by_path = zip(env_spec.observation, nested, strict=True)
                fields |= {f"{name}/{path}": leaf for path, leaf in by_path}
        if mask is not None:
            fields[ACTION_MASK] = mask
        return cls(observation, dict(zip(env_spec.action, action, strict=True)), fields, device)

    def __getitem__(self, name: str) -> Tensor:
        """Return a field."""
        return _field(self.fields, name)

    def batch(self, transfer: Moved, prepared: Mapping[str, Tensor]) -> Batch:
        """Return the rollout as rows, on the learner's device.

        Fields that do not have a row for every step are left out.

        Args:
            transfer: Copies to the device.
            prepared: ``[T, B, *]`` by name: further fields, in place of those of the same name.

        Raises:
            ConfigError: A prepared field has other leading axes.
        """
        length, slots = self.fields["reward"].shape
        every_step = [(length, slots), (length + 1, slots)]
        states = self.fields.get("policy_state")
        fields = {
            name: field
            for name, field in self.fields.items()
            if field.shape[:2] in every_step and field is not states
        }
        fields |= prepared
        for name, given in prepared.items():
            if given.shape[:2] != (length, slots):
                raise ConfigError(
                    f"the algorithm's field '{name}' must be [T, B, …] = [{length}, {slots}, …], "
                    f"got {list(given.shape)}"
                )
        groups = (self.observation, self.action, fields)
        leaves = [leaf[:length].flatten(0, 1) for group in groups for leaf in group.values()]
        if states is not None:
            leaves += [states, self._keep()]
        moved = iter(transfer(leaves))
        observation, action, fields = ({name: next(moved) for name in group} for group in groups)
        sequences = None if states is None else Sequences(next(moved), next(moved))
        return Batch(observation, action, fields, self.device, sequences, slots)

    def on_device(self) -> Batch:
        """Return the rollout as rows where gradients are computed; on the CPU nothing is copied."""
        return self.batch(lambda leaves: [leaf.to(self.device) for leaf in leaves], {})

    def states(self, policy: PolicyModel, sequence_length: int) -> Tensor:
        """Compute the policy's state before each segment, for a rollout without stored states.

        Args:
            policy: A policy with the method `PolicyModel.state_after`.
            sequence_length: L.

        Returns:
            ``[K+1, B, S] float32``; the last is that of a new episode.

        Raises:
            ConfigError: The policy lacks the method.
        """
        length, slots = self.fields["reward"].shape
        begin = initial_state(policy, slots).to(self.device)
        unknown = begin.expand(length // sequence_length + 1, *begin.shape)
        observation = {path: leaf[:length].flatten(0, 1) for path, leaf in self.observation.items()}
        sequences = Sequences(unknown, self._keep().to(self.device))
        found = sequences.recomputed(observation, policy).state
        return found.to(self.fields["reward"].device)

    def _keep(self) -> Tensor:
        """Return ``[T, B] bool``: False where an episode begins, but for the first step."""
        ended = self.fields["terminated"] | self.fields["truncated"]
        return torch.cat([torch.ones_like(ended[:1]), ~ended[:-1]])


@dataclass(frozen=True)
class Sequences:
    """The states and masks with which a policy learns from K segments of L steps of each slot.

    Attributes:
        state: ``[K+1, B, S] float32``: before each segment and after the last, with that of a new
            episode where one begins there.
        keep: ``[T, B] bool``: False where an episode begins, but for the first step.
    """

    state: Tensor
    keep: Tensor

    @property
    def length(self) -> int:
        """L."""
        return len(self.keep) // (len(self.state) - 1)

    def of(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states ``[b, S]`` before segments, and their steps' ``keep [L, b]``.

        Args:
            index: Rows of segments, as `segment_rows` returns them.
        """
        length, slots = self.length, self.keep.shape[1]
        keep = self.keep.flatten().index_select(0, index).view(length, -1)
        first = index[: keep.shape[1]]
        segment = first.div(length * slots, rounding_mode="floor") * slots + first % slots
        return self.state.flatten(0, 1).index_select(0, segment), keep

    def recomputed(self, observation: Mapping[str, Tensor], policy: PolicyModel) -> Sequences:
        """Return these sequences with states that a policy recomputes from the first one.

        The states after the last segment are unchanged.

        Args:
            observation: Per leaf ``[T · B, *shape]``, on any device.
            policy: A policy with the method `PolicyModel.state_after`.

        Raises:
            ConfigError: The policy lacks the method.
        """
        if not callable(getattr(policy, "state_after", None)):
            raise ConfigError(
                f"{type(policy).__name__} lacks the method state_after of PolicyModel, which "
                "computes the states before sequences again"
            )
        length, slots = self.length, self.keep.shape[1]
        initial = initial_state(policy, slots).to(self.state.device)
        segments = [leaf.unflatten(0, (-1, length, slots)) for leaf in observation.values()]
        states, state = [], self.state[0]
        for *leaves, keep in zip(*segments, self.keep.unflatten(0, (-1, length)), strict=True):
            # Row 0 of `keep` is True in the first segment, whose state is the stored one.
            states.append(torch.where(keep[0, :, None], state, initial))
            moved = (leaf.to(self.state.device) for leaf in leaves)
            part = dict(zip(observation, moved, strict=True))
            state = policy.state_after(part, states[-1], keep)
        return replace(self, state=torch.stack([*states, self.state[-1]]))

    def require_segments(self, index: Tensor, who: str) -> None:
        """Reject rows that are not whole segments.

        Raises:
            ConfigError: They are not rows of `segment_rows`; the error names ``who``.
        """
        length, slots = self.length, self.keep.shape[1]
        is_whole = len(index) > 0 and len(index) % length == 0
        if is_whole:
            times, slot = index.view(length, -1) // slots, index.view(length, -1) % slots
            steps = torch.arange(length, device=index.device)[:, None]
            is_whole = bool((times % length == steps).all() and (slot == slot[0]).all())
            is_whole = is_whole and bool((times - times[0] == steps).all())
        if not is_whole:
            raise ConfigError(
                f"{who}.minibatches must yield whole segments of {length} steps for a policy with "
                "a memory: fastrl.learning.algorithm.segment_rows returns their rows"
            )


@dataclass(frozen=True)
class Batch:
    """A rollout as N = T · B rows; row t · B + b is slot b at time t.

    Attributes:
        observation: Per leaf ``[N, *shape]``.
        action: Per leaf ``[N, *shape]``.
        fields: By name ``[N, *]``: those of the rollout and those that the algorithm prepared.
        device: Device of all tensors.
        sequences: None for a policy without a memory.
        slots: B.
    """

    observation: Mapping[str, Tensor]
    action: Mapping[str, Tensor]
    fields: Mapping[str, Tensor]
    device: torch.device
    sequences: Sequences | None = None
    slots: int = 1

    @property
    def sequence_length(self) -> int:
        """L, the steps of each segment; 1 for a policy without a memory."""
        return 1 if self.sequences is None else self.sequences.length

    def all_rows(self) -> Tensor:
        """Return the index ``[N] int64`` of all rows, segment by segment: ``[L, K · B]``."""
        segments = torch.arange(len(self) // self.sequence_length, device=self.device)
        return segment_rows(segments, self.sequence_length, self.slots)

    def shuffled(
        self, size: int, generator: torch.Generator, segments: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Yield the rows of the minibatches of one epoch, every segment once, in random order.

        The last minibatch is smaller if the sizes do not divide.

        Args:
            size: Rows of each minibatch but the last, rounded down to whole segments;
                at least one segment.
            generator: On the CPU, so that all devices get the same order.
            segments: ``[*] int64``: segments of the epoch, by default all; see `segment_rows`.
        """
        number = len(self) // self.sequence_length if segments is None else len(segments)
        order = torch.randperm(number, generator=generator).to(self.device)
        if segments is not None:
            order = segments[order]
        for part in order.split(max(1, size // self.sequence_length)):
            yield segment_rows(part, self.sequence_length, self.slots)

    def segments_with(self, marked: Tensor) -> Tensor:
        """Return the segments in which a row is marked, ``[*] int64``; see `segment_rows`.

        Args:
            marked: ``[N] bool``.
        """
        in_time = marked.view(-1, self.sequence_length, self.slots)
        return in_time.any(1).flatten().nonzero().flatten()

    def evaluated(
        self, policy: PolicyModel, rows_at_once: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return log-probability and value of all rows, ``[N] float32`` each.

        Args:
            policy: On the batch's device.
            rows_at_once: Transitions that the policy evaluates at a time; None for all.
        """
        length = self.sequence_length
        segments = torch.arange(len(self) // length, device=self.device)
        at_once = len(segments) if rows_at_once is None else max(1, rows_at_once // length)
        parts = [segment_rows(each, length, self.slots) for each in segments.split(at_once)]
        found = [Minibatch(self, rows, {}).evaluate(policy) for rows in parts]
        rows = torch.cat(parts)
        log_prob, value = (torch.cat([each[which] for each in found]) for which in (0, 2))
        in_time = [torch.empty_like(x).index_copy(0, rows, x) for x in (log_prob, value)]
        return in_time[0], in_time[1]

    def part(self, segments: Tensor, device: torch.device) -> Batch:
        """Return some segments as a batch on a device, each a slot of its own.

        Args:
            segments: ``[b] int64``; see `segment_rows`.
            device: Target device.
        """
        rows = segment_rows(segments, self.sequence_length, self.slots)
        observation, action, fields = (
            {name: leaf.index_select(0, rows).to(device) for name, leaf in group.items()}
            for group in (self.observation, self.action, self.fields)
        )
        sequences = None
        if self.sequences is not None:
            state, keep = self.sequences.of(rows)
            sequences = Sequences(torch.stack([state, state]).to(device), keep.to(device))
        return Batch(observation, action, fields, device, sequences, len(segments))

    def __len__(self) -> int:
        """Return N."""
        return len(next(iter(self.fields.values())))


NO_BATCH = Batch({}, {}, {}, torch.device("cpu"))
"""The batch of a gradient engine between two rollouts."""


class Minibatch:
    """Some rows of a `Batch`; each field is gathered when it is first read.

    ``minibatch["advantage"]`` is a field ``[n, *]``.

    Attributes:
        index: ``[n] int64``: its rows; with a memory whole segments, ``[L, b]`` flattened.
        scheduled: Current values of the numbers of `Algorithm.schedules`; tensors ``[]``
            in a compiled loss, so that their changes need no new compilation.

    Args:
        batch: All rows.
        index: See the attribute.
        scheduled: See the attribute.
        own: Fields ``[n, *]`` of these rows, which replace the batch's.
    """

    def __init__(
        self,
        batch: Batch,
        index: Tensor,
        scheduled: Mapping[str, float | Tensor],
        own: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.index, self.scheduled = index, scheduled
        self._batch, self._own = batch, dict(own or {})
        self._spaces: dict[str, dict[str, Tensor]] = {}

    @property
    def observation(self) -> dict[str, Tensor]:
        """Per leaf ``[n, *shape]``."""
        return self._leaves("observation", self._batch.observation)

    @property
    def action(self) -> dict[str, Tensor]:
        """Per leaf ``[n, *shape]``."""
        return self._leaves("action", self._batch.action)

    def evaluate(self, policy: PolicyModel) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probability, entropy and value of the rows, ``[n]`` each; differentiable.

        Raises:
            ConfigError: The policy returns something else.
        """
        # Classes without a memory or masks need no parameters for them.
        given = {"mask": self[ACTION_MASK]} if ACTION_MASK in self._batch.fields else {}
        sequences = self._batch.sequences
        if sequences is None:
            found = policy.evaluate(self.observation, self.action, **given)
            _require_rows(policy, found, self.index.shape)
            return found
        axes = (sequences.length, -1)
        observation, action, given = (
            {name: tensor.unflatten(0, axes) for name, tensor in tensors.items()}
            for tensors in (self.observation, self.action, given)
        )
        given["state"], given["keep"] = sequences.of(self.index)
        found = policy.evaluate(observation, action, **given)
        _require_rows(policy, found, given["keep"].shape)
        log_prob, entropy, value = found
        return log_prob.flatten(), entropy.flatten(), value.flatten()

    @property
    def sequence_length(self) -> int:
        """L, the steps of each segment; 1 for a policy without a memory."""
        return self._batch.sequence_length

    def __getitem__(self, name: str) -> Tensor:
        """Return a field ``[n, *]``."""
        if name not in self._own:
            self._own[name] = _field(self._batch.fields, name).index_select(0, self.index)
        return self._own[name]

    def __len__(self) -> int:
        """Return n."""
        return len(self.index)

    def _leaves(self, space: str, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if space not in self._spaces:
            self._spaces[space] = {k: v.index_select(0, self.index) for k, v in leaves.items()}
        return self._spaces[space]


def _field(fields: Mapping[str, Tensor], name: str) -> Tensor:
    try:
        return fields[name]
    except KeyError:
        raise ConfigError(
            f"the rollout has no field '{name}'; there are {', '.join(sorted(fields))}"
        ) from None


def _require_rows(policy: object, found: tuple[Tensor, ...], shape: torch.Size) -> None:
    """Reject shapes that a loss would broadcast to a matrix.

    Raises:
        ConfigError: ``evaluate`` did not return three tensors of this shape.
    """
    names = ("log_prob", "entropy", "value")
    if not isinstance(found, tuple | list) or len(found) != len(names):
        raise ConfigError(f"{type(policy).__name__}.evaluate must return {', '.join(names)}")
    for name, each in zip(names, found, strict=True):
        if isinstance(each, Tensor) and each.shape != shape:
            raise ConfigError(
                f"{type(policy).__name__}.evaluate: the {name} must have the shape {list(shape)}, "
                f"got {list(each.shape)}"
            )


class Transfer:
    """Copies the tensors of a rollout to a device at once.

    On the CPU nothing is copied, nor if the rollout was sampled on the device. Otherwise tensors
    are packed into page-locked memory, which is copied without waiting for the device; the
    rollout's memory is free afterwards. The next call overwrites the returned tensors.

    Args:
        device: The target.
        staged: Whether to pack; by default on all devices but the CPU.
    """

    def __init__(self, device: torch.device, staged: bool | None = None) -> None:
        self._device = device
        self._staged = device.type != "cpu" if staged is None else staged
        self._host = self._there = torch.empty(0, dtype=torch.uint8)

    def __call__(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Return equal tensors on the device."""
        tensors = list(tensors)
        if not self._staged or all(tensor.device.type != "cpu" for tensor in tensors):
            # A rollout that was sampled on the device is there already.
            return tensors
        starts = [0]
        for tensor in tensors:
            num_bytes = tensor.numel() * tensor.element_size()
            starts.append(starts[-1] + math.ceil(num_bytes / _ALIGNMENT) * _ALIGNMENT)
        if len(self._host) < starts[-1]:
            pinned = self._device.type == "cuda"
            self._host = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=pinned)
            self._there = torch.empty(starts[-1], dtype=torch.uint8, device=self._device)
        elif self._device.type == "cuda":
            # The copy before this one may still be reading the page-locked memory.
            torch.cuda.current_stream(self._device).synchronize()
        for tensor, start in zip(tensors, starts, strict=False):
            _view(self._host, start, tensor).copy_(tensor)
        self._there.copy_(self._host, non_blocking=True)
        return [
            _view(self._there, start, tensor)
            for tensor, start in zip(tensors, starts, strict=False)
        ]


def _view(memory: Tensor, start: int, like: Tensor) -> Tensor:
    num_bytes = like.numel() * like.element_size()
    return memory[start : start + num_bytes].view(like.dtype).view(like.shape)


def segment_rows(segments: Tensor, sequence_length: int, num_slots: int) -> Tensor:
    """Return the rows of segments of a rollout, ``[L, b]`` flattened.

    Args:
        segments: ``[b] int64``: k · B + s is the segment of slot s that begins at time k · L.
        sequence_length: L.
        num_slots: B.
    """
    if sequence_length == 1:
        return segments
    first = segments.div(num_slots, rounding_mode="floor") * (sequence_length - 1) * num_slots
    times = torch.arange(sequence_length, device=segments.device)
    return (first + segments + times[:, None] * num_slots).flatten()
