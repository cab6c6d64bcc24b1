"""The sections of the learning algorithms; ``name`` or ``class_path`` chooses one."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from fastrl import registry
from fastrl.arguments import brief
from fastrl.config.fields import (
    Bool,
    Device,
    Entries,
    Few,
    Float,
    Fraction,
    ImportPath,
    Schedule,
    Section,
    Size,
    Text,
    conflict,
    registered,
    sequence,
)
from fastrl.errors import USERS_FAILURES, ConfigError, cause
from fastrl.imports import import_object

Rate = Annotated[Float, Field(gt=0, le=10)]
Beta = Annotated[Float, Field(ge=0, lt=1)]
_BETAS = (0.9, 0.999)
_NAME_CHARS = 200


class LearnerConfig(Section):
    """The keys of every algorithm; the section of a new one is a subclass.

    Attributes:
        wanted_fields: Optional fields of a rollout that the algorithm needs, such as
            ``final_observation``.
        own_sampler: Registered name of the sampler that the algorithm learns from, in place of
            ``sampler.kind``; None if any sampler will do.
        needs_dataset: Whether the section ``dataset`` must name demonstrations.
    """

    wanted_fields: ClassVar[tuple[str, ...]] = ()
    own_sampler: ClassVar[str | None] = None
    needs_dataset: ClassVar[bool] = False
    _class_path: str | None = PrivateAttr(default=None)

    name: Text
    """Name of the algorithm."""
    learning_rate: Rate = 3e-4
    """Step size of the optimizer."""
    learning_rate_schedule: Schedule = "constant"
    """Constant, or linear or cosine down to 0 at total_steps."""
    learning_rate_warmup: Annotated[Float, Field(ge=0, le=2**62)] = 0.0
    """Environment steps in which the learning rate rises from 0, before its schedule begins; below
    1 a share of total_steps."""
    gamma: Fraction = 0.99
    """Discount factor per step."""
    max_grad_norm: Annotated[Float, Field(gt=0)] | None = 0.5
    """Norm to which gradients are clipped; null to leave them."""
    optimizer: Literal["adam", "rmsprop"] = "adam"
    """Adam or RMSprop."""
    optimizer_eps: Annotated[Float, Field(gt=0, le=1)] = 1e-5
    """Epsilon of the optimizer."""
    adam_betas: Annotated[tuple[Beta, Beta], BeforeValidator(sequence)] = _BETAS
    """Decay per step of Adam's two running averages."""
    weight_decay: Annotated[Float, Field(ge=0, le=10)] = 0.0
    """Each step first shrinks all parameters by learning_rate times this; with adam that is AdamW.
    """
    reward_scale: Annotated[Float, Field(gt=0)] = 1.0
    """Factor on every reward before learning."""
    normalize_rewards: Bool = False
    """Divide rewards by the running deviation of the discounted return."""
    sequence_length: Size | None = None
    """Length of the sequences from which a policy with a memory learns: a divisor of
    sampler.rollout_length, or any length for demonstrations; null for the whole rollout, or the
    longest part of it that fits into minibatches."""
    recompute_states_each_epoch: Bool = False
    """Compute the states at the beginning of sequences again before each epoch but the first."""
    device: Device = "cpu"
    """Device on which gradients are computed."""
    torch_threads: Few | Literal["auto"] = "auto"
    """Threads that learn on the CPU; auto is one per usable core for images, two for MLPs with
    separate actor and critic if workers wait meanwhile, and otherwise one."""
    compile: Bool = False
    """Compile the loss with torch.compile where fastrl has no kernels for it, on a GPU into CUDA
    graphs: pays for custom losses, large networks and long runs."""
    bf16: Bool = False
    """Compute the network in bfloat16 while learning (autocast)."""

    @property
    def import_path(self) -> str | None:
        """The import path of the algorithm; None for a registered one."""
        return self._class_path

    @model_validator(mode="after")
    def _check_betas(self) -> Self:
        if self.optimizer != "adam" and self.adam_betas != _BETAS:
            problem = f"must be left out with algorithm.optimizer: {self.optimizer}"
            raise conflict("adam_betas", problem)
        return self

    @model_serializer(mode="wrap")
    def _to_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        keys: dict[str, Any] = handler(self)
        return keys if self._class_path is None else {"class_path": self._class_path, **keys}


class OpenConfig(LearnerConfig):
    """The section of an algorithm that ``class_path`` names and that is not imported yet.

    `fastrl.config.resolved` validates its keys when a run starts. Until then they are stored and
    written as given, and the attributes of `LearnerConfig` have their defaults.
    """

    model_config = ConfigDict(extra="ignore")

    class_path: ImportPath
    """Your own algorithm, imported when a run starts."""
    _given: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def given(self) -> dict[str, Any]:
        """The keys as they were given."""
        return dict(self._given)

    @classmethod
    def of(cls, given: dict[str, Any]) -> Self:
        """Return a section with these keys; only ``class_path`` is validated."""
        name = given.get("name")
        path = given.get("class_path")
        default = path.rpartition(":")[2] if isinstance(path, str) else "?"
        name = name if isinstance(name, str) and name else default
        section = cls.model_validate({"class_path": path, "name": name[:_NAME_CHARS] or "?"})
        section._given, section._class_path = dict(given), section.class_path
        return section

    @model_serializer(mode="wrap")
    def _to_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return self.given


class ActorCriticConfig(LearnerConfig):
    """Keys that A2C and PPO share."""

    gae_lambda: Fraction = 0.95
    """Lambda of generalised advantage estimation; 1 is the n-step return."""
    entropy_coef: Annotated[Float, Field(ge=0)] = 0.0
    """Weight of the entropy bonus in the loss."""
    entropy_schedule: Schedule = "constant"
    """Constant, or linear or cosine down to 0 at total_steps."""
    value_coef: Annotated[Float, Field(ge=0)] = 0.5
    """Weight of the value loss in the loss."""


class PPOConfig(ActorCriticConfig):
    """Proximal policy optimisation with the clipped objective (Schulman et al., 2017)."""

    name: Text = "ppo"
    """Proximal policy optimisation."""
    learning_rate_schedule: Schedule | Literal["kl_adaptive"] = "constant"  # type: ignore[assignment]
    """Constant; linear or cosine down to 0 at total_steps; or kl_adaptive, which follows target_kl.
    """
    epochs: Size = 10
    """Passes over each rollout."""
    minibatch_size: Size = 64
    """Transitions in each gradient step."""
    clip_range: Annotated[Float, Field(gt=0, le=10)] = 0.2
    """Largest distance of the probability ratio from 1."""
    clip_schedule: Schedule = "constant"
    """Constant, or linear or cosine down to 0 at total_steps."""
    clip_value_range: Annotated[Float, Field(gt=0)] | None = None
    """Largest distance of a value from the old one; null for no clipping."""
    normalize_advantage: Bool = True
    """Standardise the advantages of each minibatch."""
    target_kl: Annotated[Float, Field(gt=0)] | None = None
    """An update stops before the first minibatch whose mean KL divergence is above 1.5 times this;
    null for never. With learning_rate_schedule: kl_adaptive no update stops: the learning rate is
    divided by 1.5 after an update with more than twice this, and multiplied by 1.5 after one with
    less than half."""
    learning_rate_bounds: Annotated[tuple[Rate, Rate], BeforeValidator(sequence)] = (1e-5, 1e-2)
    """Least and largest learning rate of learning_rate_schedule: kl_adaptive."""

    @property
    def is_kl_adaptive(self) -> bool:
        """Whether the learning rate follows ``target_kl``."""
        return self.learning_rate_schedule == "kl_adaptive"

    @property
    def stopping_kl(self) -> float | None:
        """The ``target_kl`` of a single update; None if no update stops early."""
        return None if self.is_kl_adaptive else self.target_kl

    @model_validator(mode="after")
    def _check_kl_adaptive(self) -> Self:
        low, high = self.learning_rate_bounds
        if low > high:
            raise conflict("learning_rate_bounds", f"must be in order, got {[low, high]}")
        if not self.is_kl_adaptive:
            return self
        adaptive = "with algorithm.learning_rate_schedule: kl_adaptive"
        if self.target_kl is None:
            raise conflict("target_kl", f"must be a number {adaptive}, got null")
        if self.learning_rate_warmup:
            problem = f"must be 0 {adaptive}, got {self.learning_rate_warmup:g}"
            raise conflict("learning_rate_warmup", problem)
        if not low <= self.learning_rate <= high:
            bounds = f"algorithm.learning_rate_bounds ({low:g} to {high:g})"
            problem = f"must be within {bounds} {adaptive}, got {self.learning_rate:g}"
            raise conflict("learning_rate", problem)
        return self


class A2CConfig(ActorCriticConfig):
    """Synchronous advantage actor-critic: one gradient step per rollout (Mnih et al., 2016)."""

    name: Text = "a2c"
    """Advantage actor-critic."""
    learning_rate: Rate = 7e-4
    """Step size of the optimizer."""
    gae_lambda: Fraction = 1.0
    """Lambda of generalised advantage estimation; 1 is the n-step return."""
    optimizer: Literal["adam", "rmsprop"] = "rmsprop"
    """Adam or RMSprop."""
    normalize_advantage: Bool = False
    """Standardise the advantages of each rollout."""
    vtrace: Bool = False
    """Correct rollouts of an older policy by V-trace; for sampler.mode async."""


class VTraceConfig(Section):
    """Keys that the algorithms with V-trace share."""

    rho_clip: Annotated[Float, Field(gt=0)] = 1.0
    """Largest weight of a temporal difference in V-trace, rho-bar."""
    c_clip: Annotated[Float, Field(gt=0)] = 1.0
    """Largest trace coefficient of V-trace, c-bar; at most rho_clip."""
    max_policy_lag: Size = 4
    """Largest age of a step's policy in updates: older steps are left out, or if all steps of a
    rollout are older, all but the newest. With sampler.wait: all and no cluster the age is at most
    1."""

    @model_validator(mode="after")
    def _check_clips(self) -> Self:
        if self.c_clip > self.rho_clip:
            problem = f"must be at most algorithm.rho_clip ({self.rho_clip:g}), got {self.c_clip:g}"
            raise conflict("c_clip", problem)
        return self


class APPOConfig(VTraceConfig, PPOConfig):
    """Asynchronous PPO: the clipped objective with targets by V-trace, for sampler.mode async."""

    name: Text = "appo"
    """Asynchronous proximal policy optimisation."""


class ImpalaConfig(VTraceConfig, ActorCriticConfig):
    """The policy gradient with V-trace, for sampler.mode async (Espeholt et al., 2018)."""

    name: Text = "impala"
    """Importance weighted actor-learner architecture."""
    gae_lambda: Fraction = 1.0
    """Lambda of V-trace; 1 weighs long traces fully."""
    normalize_advantage: Bool = False
    """Standardise the advantages of each rollout."""


class AdversarialConfig(PPOConfig):
    """Keys that the algorithms with a discriminator share."""

    needs_dataset: ClassVar[bool] = True

    discriminator_updates: Size = 30
    """Gradient steps of the discriminator for each rollout."""
    discriminator_batch_size: Size = 256
    """Steps of the rollout in each of these gradient steps, and as many demonstrated ones."""
    discriminator_learning_rate: Rate = 1e-3
    """Step size of its optimizer, Adam."""
    discriminator_learning_rate_schedule: Schedule = "constant"
    """Constant, or linear or cosine down to 0 at total_steps."""
    discriminator_hidden_sizes: Entries[Size] = (64, 64)
    """Width of each of its hidden layers, whose activation is model.activation."""
    gradient_penalty: Annotated[Float, Field(ge=0)] = 0.1
    """Weight of the penalty that keeps the norm of its gradient near 1; 0 for none."""
    spectral_norm: Bool = False
    """Divide the weights of each of its layers by their largest singular value."""
    reward: Literal["positive", "negative", "both"] = "positive"
    """With D, the probability that a step is demonstrated: -log(1 - D), log D, or their sum."""
    episode_ends: Literal["absorbing", "ignored"] = "absorbing"
    """absorbing: an absorbing state with a reward follows a termination; ignored: nothing follows,
    so that the sign of rewards favours long or short episodes."""

    @model_validator(mode="after")
    def _check_forever(self) -> Self:
        if self.episode_ends == "absorbing" and self.gamma == 1:
            problem = "must be below 1 with algorithm.episode_ends: absorbing, got 1"
            raise conflict("gamma", problem)
        return self


class GAILConfig(AdversarialConfig):
    """Generative adversarial imitation learning, with PPO (Ho and Ermon, 2016)."""

    name: Text = "gail"
    """Generative adversarial imitation learning."""


class AIRLConfig(AdversarialConfig):
    """Adversarial inverse reinforcement learning, with PPO (Fu et al., 2018)."""

    wanted_fields: ClassVar[tuple[str, ...]] = ("final_observation",)

    name: Text = "airl"
    """Adversarial inverse reinforcement learning."""
    reward: Literal["positive", "negative", "both"] = "both"
    """With D, the probability that a step is demonstrated: -log(1 - D), log D, or their sum."""
    state_only: Bool = False
    """Learn a reward of observations alone, which holds where the dynamics differ."""


class CloningConfig(LearnerConfig):
    """Keys that behavioural cloning and DAgger share."""

    learning_rate: Rate = 1e-3
    """Step size of the optimizer."""
    minibatch_size: Size = 32
    """Transitions in each gradient step."""
    entropy_coef: Annotated[Float, Field(ge=0)] = 1e-3
    """Weight of the entropy bonus in the loss."""
    max_grad_norm: Annotated[Float, Field(gt=0)] | None = None
    """Norm to which gradients are clipped; null to leave them."""
    recompute_states_each_epoch: Bool = True
    """Compute the states at the beginning of sequences again before each epoch but the first of an
    update, before which they always are."""


class BCConfig(CloningConfig):
    """Behavioural cloning of a dataset, an epoch in each update; total_steps counts transitions."""

    own_sampler: ClassVar[str | None] = "dataset"
    needs_dataset: ClassVar[bool] = True

    name: Text = "bc"
    """Behavioural cloning."""
    validation_fraction: Annotated[Float, Field(ge=0, le=0.9)] = 0.1
    """Share of the episodes that are held out, at least one of two or more; 0 for none."""
    patience: Size | None = None
    """Epochs in a row without a lower loss of validation after which training ends; null for
    total_steps alone."""

    @model_validator(mode="after")
    def _check_patience(self) -> Self:
        if self.patience is not None and not self.validation_fraction:
            problem = f"must be null with algorithm.validation_fraction: 0, got {self.patience}"
            raise conflict("patience", problem)
        return self


class DAggerConfig(CloningConfig):
    """Dataset aggregation: an expert's actions in the states of the policy (Ross et al., 2011)."""

    own_sampler: ClassVar[str | None] = "dagger"

    name: Text = "dagger"
    """Dataset aggregation."""
    expert: Annotated[str, Field(min_length=1, max_length=4000)] | None = None
    """Run, or directory of a checkpoint, that is the expert; it takes its most probable actions."""
    expert_policy: ImportPath | None = None
    """Expert 'package.module:function' from an observation to an action, in place of a run."""
    beta_rollouts: Size = 15
    """Rollouts over which the share of the expert among the actions falls from 1 to 0, by equal
    steps; with 1 it acts in the first rollout alone."""
    epochs: Size = 4
    """Passes over all steps of the run after each rollout."""

    @model_validator(mode="after")
    def _check_expert(self) -> Self:
        if (self.expert is None) == (self.expert_policy is None):
            raise conflict("expert", "must be given, or algorithm.expert_policy, and not both")
        return self


def algorithm_section(
    keys: dict[str, Any], own: type[LearnerConfig] | None = None
) -> LearnerConfig:
    """Return the section of the keys in a file, or raise an error of pydantic.

    Args:
        keys: With ``name``, by default ``ppo``, or ``class_path``.
        own: The class of the section if ``class_path`` was imported.
    """
    path = keys.get("class_path")
    rest = {key: value for key, value in keys.items() if key != "class_path"}
    if path is None:
        rest = {"name": "ppo", **rest}
        return _validated(section_type(rest), rest, "name")
    if own is None:
        return OpenConfig.of(keys)
    if not _names_itself(own):
        rest.setdefault("name", path.rpartition(":")[2])
    section = _validated(own, rest, "class_path")
    section._class_path = path
    return section


def _validated(own: type[LearnerConfig], keys: dict[str, Any], key: str) -> LearnerConfig:
    try:
        return own.model_validate(keys)
    except (ValidationError, PydanticCustomError):
        raise
    except USERS_FAILURES as error:
        raise conflict(key, f"{own.__name__} does not validate its keys: {cause(error)}") from error


def _names_itself(own: type[LearnerConfig]) -> bool:
    """Return whether a section declares a default name of its own."""
    declaring = next(each for each in own.__mro__ if "name" in inspect.get_annotations(each))
    is_ours = declaring.__module__.partition(".")[0] == "fastrl"
    return not is_ours and not own.model_fields["name"].is_required()


def section_type(keys: dict[str, Any]) -> type[LearnerConfig]:
    """Return the class of the section with a registered ``name``, or raise an error of pydantic."""
    name = keys["name"]
    if not isinstance(name, str):
        known = ", ".join(registry.names("algorithm"))
        raise conflict("name", f"must be one of {known}; got {brief(name)}")
    registered("algorithm", name, "name")
    try:
        return checked_section_type(registry.section_of("algorithm", name, "name"), f"'{name}'")
    except ConfigError as error:
        raise conflict("name", str(error).removeprefix("name: ")) from None


def own_section_type(class_path: str) -> type[LearnerConfig]:
    """Import an algorithm and return the class of its section, or raise a `ConfigError`."""
    algorithm = import_object(class_path, "algorithm.class_path")
    found = getattr(algorithm, "section_type", None)
    return checked_section_type(found, f"algorithm.class_path: '{class_path}'")


def checked_section_type(found: object, algorithm: str) -> type[LearnerConfig]:
    """Return ``found`` if it is the class of a section; otherwise raise a `ConfigError`."""
    if isinstance(found, type) and issubclass(found, LearnerConfig):
        return found
    raise ConfigError(
        f"{algorithm} must be an Algorithm whose section_type is a subclass of "
        f"fastrl.config.LearnerConfig; its section_type is {brief(found)}"
    )
