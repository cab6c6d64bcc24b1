"""The configuration of a run: frozen, validated sections; `fastrl.config.loading` reads the YAML.

Every field has a description, bounds and a default; unknown keys are refused. Nothing here
imports torch, so the command line can answer before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    JsonValue,
    SerializeAsAny,
    StringConstraints,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fastrl.config.algorithms import (
    LearnerConfig,
    OpenConfig,
    PPOConfig,
    algorithm_section,
)
from fastrl.config.fields import (
    Bool,
    Call,
    Callee,
    Code,
    Count,
    Device,
    Devices,
    Episodes,
    Few,
    Float,
    Seconds,
    Section,
    Seed,
    Size,
    Steps,
    Text,
    conflict,
    is_call,
    sequence,
)
from fastrl.cores import usable_cores

if TYPE_CHECKING:
    from fastrl.spec import Topology


class EnvConfig(Section):
    """Which environment is sampled, and how it is built."""

    id: str = Field(
        min_length=1,
        max_length=500,
        description="'CartPole-v1', 'module:Id-v0', a factory 'package.module:function', or of "
        "another kind: 'vector:Id', 'gym:Id', 'envpool:Id'.",
    )
    kwargs: dict[str, JsonValue] = Field(
        default={}, description="Keyword arguments for the environment."
    )
    randomize: dict[str, JsonValue] = Field(
        default={},
        description="Distribution of each randomised parameter, drawn anew every episode.",
    )
    wrappers: Annotated[tuple[Callee, ...], BeforeValidator(sequence)] = Field(
        default=(),
        description=(
            "Wrappers 'package.module:callable', or {path: 'package.module:callable', kwargs: {…}} "
            "with arguments, applied in order; imported as named. Around "
            "vector: and envpool: ids those of gymnasium.wrappers.vector; of these, wrappers that "
            "change observations need the autoreset mode NextStep."
        ),
    )
    episode_info: Annotated[tuple[Text, ...], BeforeValidator(sequence)] = Field(
        default=(),
        description="Figures in the info of an episode's last step that go into the metrics, such "
        "as is_success; a/b is entry b of the dictionary a.",
    )
    max_episode_steps: Size | None = Field(
        default=None,
        description="Time limit in steps; null keeps the limit of the environment's id.",
    )
    action_bounds: Literal["clip", "squash"] = Field(
        default="clip",
        description="How actions are kept inside a bounded Box: clipped, or by tanh.",
    )
    step_timeout_s: Seconds = Field(
        default=60.0, description="Deadline in seconds for a batch of steps."
    )
    reset_timeout_s: Seconds = Field(default=120.0, description="Deadline in seconds for a reset.")
    close_timeout_s: Seconds = Field(
        default=10.0,
        description="Deadline in seconds for closing an environment; then its worker is ended.",
    )

    @property
    def wrapper_paths(self) -> tuple[str, ...]:
        """The import paths of the wrappers, without their arguments."""
        return tuple(each.path if isinstance(each, Call) else each for each in self.wrappers)


class SamplerConfig(Section):
    """How many processes sample, and what each of them does."""

    kind: Annotated[str, Code("sampler")] = Field(
        default="process",
        description="Worker processes; serial: their steps in one process, to debug; device: a "
        "tensor environment, the policy and the learner on one device; or a sampler of others, by "
        "its registered name or as 'package.module:function'.",
        examples=["process", "serial", "device", "package.module:function"],
    )
    envs_per_worker: Size = Field(
        default=16, description="n: environments stepped by each env worker."
    )
    num_env_workers: Few | Literal["auto"] = Field(
        default="auto", description="N: env worker processes; auto is one per usable core."
    )
    num_model_workers: Count = Field(
        default=0,
        description="M: processes that run the policy; with 0 each env worker runs it itself.",
    )
    groups: Few = Field(
        default=1,
        description="Parts of a worker's environments stepped in turn while others infer.",
    )
    rollout_length: Size = Field(
        default=128, description="T: steps of every environment in a rollout."
    )
    device: Device | Devices = Field(
        default="cpu",
        description="Where policies run: cpu, cuda, cuda:0, or a list dealt out to them.",
    )
    mode: Literal["sync", "async"] = Field(
        default="sync", description="Wait for new weights after a rollout, or fill the other bank."
    )
    lock_step: Bool = Field(
        default=False,
        description="Infer a group only when all its workers are ready: reproducible.",
    )
    engine: Annotated[str, Code("engine")] = Field(
        default="auto",
        description="How the policy's forward pass is executed: auto, eager, compiled; bfloat16 "
        "rounds the network's bodies, for conv nets on hardware that has it; or an engine of "
        "others, by its registered name or as 'package.module:function'.",
        examples=["auto", "eager", "compiled", "bfloat16", "package.module:function"],
    )
    torch_threads: Few = Field(default=1, description="Torch threads of each worker.")
    tune_s: Seconds | None = Field(
        default=None,
        description="Seconds to spend on finding n, N, M, groups and device for the same number "
        "of environments before training, unless that was done before; null for none.",
    )
    debug: Bool = Field(
        default=False, description="Fill memory with NaN, so that unwritten reads show."
    )
    start_timeout_s: Seconds = Field(
        default=120.0, description="Deadline in seconds for all workers to be ready."
    )

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices as a tuple, also where the configuration names a single one."""
        return (self.device,) if isinstance(self.device, str) else self.device

    @model_validator(mode="after")
    def _check_device(self) -> Self:
        if self.kind != "device":
            return self
        fixed = {"num_env_workers": (1, "auto"), "num_model_workers": (0,), "groups": (1,)}
        fixed |= {"mode": ("sync",), "device": self.devices[:1]}
        for key, allowed in fixed.items():
            value = getattr(self, key)
            if value not in (*allowed, allowed):
                choices = " or ".join(map(str, allowed))
                raise conflict(key, f"must be {choices} with sampler.kind: device, got {value}")
        return self

    @model_validator(mode="after")
    def _check_layout(self) -> Self:
        if self.envs_per_worker % self.groups:
            raise conflict(
                "envs_per_worker",
                f"must be divisible by sampler.groups ({self.groups}), got {self.envs_per_worker}",
            )
        workers = self.num_env_workers
        if workers != "auto" and self.num_model_workers > workers:
            raise conflict("num_model_workers", self._too_many_model_workers(workers))
        return self

    def _too_many_model_workers(self, workers: int) -> str:
        return f"must be at most sampler.num_env_workers ({workers}), got {self.num_model_workers}"

    def topology(self) -> Topology:
        """Return who steps and who infers, with ``auto`` resolved for this machine.

        Raises:
            ConfigError: ``num_env_workers`` is auto, and too small here for the model workers.
        """
        # fastrl.spec imports torch, which takes seconds; see the module's docstring.
        from fastrl.errors import ConfigError
        from fastrl.spec import Topology

        workers = self.num_env_workers
        if workers == "auto":
            workers = 1 if self.kind == "device" else usable_cores()
        if self.num_model_workers > workers:
            problem = self._too_many_model_workers(workers)
            raise ConfigError(f"sampler.num_model_workers: {problem}")
        return Topology(
            envs_per_worker=self.envs_per_worker,
            num_env_workers=workers,
            num_model_workers=self.num_model_workers,
            groups=self.groups,
        )


# What a name in the place of the section `sampler` stands for.
_NAMED_SAMPLERS: Mapping[str, Mapping[str, Any]] = {
    "process": {"kind": "process"},
    "serial": {"kind": "serial"},
    "device": {"kind": "device"},
    "auto": {"tune_s": 30.0},
}


def named_sampler(value: Any) -> Any:  # noqa: ANN401
    """Return the keys that ``sampler: device`` stands for; a mapping of keys as it is."""
    if not isinstance(value, str):
        return value
    return dict(_NAMED_SAMPLERS.get(value, {"kind": value}))


ConvLayers = Annotated[
    tuple[Annotated[tuple[Size, Size, Size], BeforeValidator(sequence)], ...],
    Field(min_length=1),
    BeforeValidator(sequence),
]


Layout = Literal[
    "auto",
    "flat",
    "HW",
    "HWC",
    "CHW",
    "HWS",
    "SHW",
    "SHWC",
    "SCHW",
    "CSHW",
    "HWCS",
    "HWSC",
]


LogStd = Annotated[Float, Field(ge=-20, le=20)]


class ModelConfig(Section):
    """The network that maps observations to actions and values."""

    class_path: Annotated[str, Code("model"), Field(examples=["package.module:name"])] | None = (
        Field(
            default=None,
            description="Your own module 'package.module:Class', imported as named, or the "
            "registered name of one.",
        )
    )
    kwargs: dict[str, JsonValue] = Field(
        default={}, description="Keyword arguments for class_path."
    )
    hidden_sizes: Annotated[tuple[Size, ...], BeforeValidator(sequence)] = Field(
        default=(64, 64), description="Width of each hidden layer of the MLP."
    )
    critic_hidden_sizes: Annotated[tuple[Size, ...], BeforeValidator(sequence)] | None = Field(
        default=None,
        description="The same for the value, where bodies are separate; null for hidden_sizes.",
    )
    activation: Literal["tanh", "relu", "elu", "gelu", "silu"] = Field(
        default="tanh", description="Non-linearity of the hidden layers."
    )
    shared_body: Bool | Literal["auto"] = Field(
        default="auto",
        description="Policy and value share all but the last layer; auto: if there are images.",
    )
    conv_layers: ConvLayers | None = Field(
        default=None,
        description="[channels, kernel, stride] of each convolution; null for the usual three.",
    )
    image_layout: Layout | dict[str, Layout] = Field(
        default="auto",
        description="Axes of images: H height, W width, C channels, S frames of a stack; flat for "
        "no image, auto to tell by size. For several images a mapping from their paths.",
    )
    conv_features: Size = Field(default=512, description="Width of the layer after the conv net.")
    log_std_init: Annotated[Float, Field(ge=-20, le=5)] = Field(
        default=0.0, description="Initial log standard deviation of continuous actions."
    )
    log_std: Literal["constant", "state"] = Field(
        default="constant",
        description="Learned log standard deviations: the same in every state, or a function of "
        "the observation.",
    )
    log_std_bounds: Annotated[tuple[LogStd, LogStd], BeforeValidator(sequence)] | None = Field(
        default=None,
        description="Bounds of log standard deviations, approached smoothly; null for none.",
    )
    orthogonal_init: Bool = Field(default=True, description="Orthogonal weights and zero biases.")
    normalize_observations: Bool = Field(
        default=False, description="Normalise observations by their running mean and variance."
    )

    @model_validator(mode="after")
    def _check_kwargs(self) -> Self:
        if self.kwargs and self.class_path is None:
            raise conflict("kwargs", "must be empty where model.class_path is null")
        return self

    @model_validator(mode="after")
    def _check_critic(self) -> Self:
        if self.critic_hidden_sizes is not None and self.shared_body is True:
            raise conflict("critic_hidden_sizes", "must be null where model.shared_body is true")
        return self

    @model_validator(mode="after")
    def _check_log_std(self) -> Self:
        if self.log_std_bounds is None:
            return self
        low, high = self.log_std_bounds
        if low >= high:
            raise conflict("log_std_bounds", f"must be in order, got {[low, high]}")
        if not low < self.log_std_init < high:
            bounds = f"model.log_std_bounds ({low:g} to {high:g})"
            raise conflict("log_std_init", f"must be between {bounds}, got {self.log_std_init:g}")
        return self


class EvaluationConfig(Section):
    """Evaluation during training, in an environment of its own."""

    enabled: Bool = Field(default=True, description="Evaluate during training.")
    every_steps: Steps = Field(default=50_000, description="Environment steps between evaluations.")
    episodes: Episodes = Field(default=10, description="Episodes of each evaluation.")
    final_episodes: Episodes = Field(
        default=100, description="Episodes of the evaluation after the last step."
    )
    deterministic: Bool = Field(
        default=True, description="Take the most likely action, not a sample."
    )
    seed: Seed = Field(default=10_000, description="Seed of the evaluation's environments.")
    env_kwargs: dict[str, JsonValue] = Field(
        default={}, description="Keyword arguments for the environment that are others than env's."
    )
    max_steps: Steps = Field(
        default=1_000_000,
        description="Environment steps of all episodes after which an evaluation ends.",
    )
    max_s: Seconds = Field(default=600.0, description="Seconds after which an evaluation ends.")
    metric: Annotated[str, StringConstraints(pattern=r"^(return_mean|info/.{1,200})$")] = Field(
        default="return_mean",
        description="What is compared: return_mean, or info/NAME of env.episode_info.",
    )
    stop_at: Float | None = Field(
        default=None,
        description="Value of the metric that ends training; null for total_steps alone.",
    )
    video: Bool = Field(
        default=False,
        description="Record an episode of every evaluated policy: MP4 with the extra 'video', "
        "else GIF.",
    )

    @model_validator(mode="after")
    def _check_stop(self) -> Self:
        if self.stop_at is not None and not self.enabled:
            problem = f"must be null where evaluation.enabled is false, got {self.stop_at:g}"
            raise conflict("stop_at", problem)
        return self


class CheckpointConfig(Section):
    """When a run is saved, and what is kept."""

    every_steps: Steps | None = Field(
        default=None, description="Environment steps between checkpoints; null for none by steps."
    )
    every_s: Seconds | None = Field(
        default=300.0, description="Seconds between checkpoints; null for none by time."
    )
    keep_last: Size = Field(default=3, description="Checkpoints kept, newest first.")
    keep_best: Bool = Field(
        default=True, description="Keep the checkpoint that evaluated best as well."
    )
    environments: Bool = Field(
        default=True,
        description="Save the episodes under way as well, where the environment can, and go on "
        "with them; else a resumed run begins new ones.",
    )


class FaultsConfig(Section):
    """What is done when something fails that need not end the run."""

    max_restarts: Count = Field(
        default=5,
        description="How often each worker process is replaced within an hour; one failure more "
        "saves and ends the run.",
    )
    bad_numbers: Literal["raise", "truncate_episode", "skip_update"] = Field(
        default="raise",
        description="NaN or infinity from an environment or a loss: end the run; replace the "
        "environments at the last good step; or leave out the update.",
    )


# What may be registered by a name, too, alone or with keyword arguments.
_call_or_name = Discriminator(lambda value: "call" if is_call(value) else "path")
_EXAMPLES = Field(examples=["package.module:name", "registered-name"])
_PATH = Field(description="As where it has no arguments.")


class LoggerCall(Call):
    """A logger, and the keyword arguments that it is called with."""

    path: Annotated[str, Code("logger")] = _PATH


class CallbackCall(Call):
    """A callback, and the keyword arguments that it is called with."""

    path: Annotated[str, Code("callback")] = _PATH


class TransformCall(Call):
    """A transform, and the keyword arguments that it is called with."""

    path: Annotated[str, Code("transform")] = _PATH


Logger = Annotated[
    Annotated[str, Code("logger"), _EXAMPLES, Tag("path")] | Annotated[LoggerCall, Tag("call")],
    _call_or_name,
]
CallbackEntry = Annotated[
    Annotated[str, Code("callback"), _EXAMPLES, Tag("path")] | Annotated[CallbackCall, Tag("call")],
    _call_or_name,
]
TransformEntry = Annotated[
    Annotated[str, Code("transform"), _EXAMPLES, Tag("path")]
    | Annotated[TransformCall, Tag("call")],
    _call_or_name,
]


class LoggingConfig(Section):
    """Where metrics go besides the run's own JSONL file."""

    tensorboard: Bool = Field(default=True, description="Write TensorBoard event files.")
    wandb: Bool = Field(
        default=False, description="Send metrics to Weights & Biases (extra 'wandb')."
    )
    every_s: Seconds = Field(
        default=5.0, description="Seconds between rows of metrics, and between lines of progress."
    )
    every_steps: Steps | None = Field(
        default=None,
        description="Environment steps after which a row of metrics comes sooner; null for a "
        "200th of total_steps.",
    )
    loggers: Annotated[tuple[Logger, ...], BeforeValidator(sequence)] = Field(
        default=(),
        description="Where metrics go besides: 'package.module:Class' or a registered name each, "
        "or {path: …, kwargs: {…}} with arguments.",
    )


OWN_SECTION = "algorithm"
"""Key of the context of validation under which the class of an imported algorithm's section is."""


class Config(Section):
    """A whole run.

    Read from YAML by `fastrl.config.loading.load_config`; building one in Python validates it
    the same way, but raises pydantic's own error.
    """

    seed: Seed = Field(
        default=0, description="Seed of environments, actions, weights and shuffling."
    )
    run_dir: Annotated[str, Field(min_length=1, max_length=4000)] | None = Field(
        default=None, description="Directory of the run; null for a new one under runs/."
    )
    init_from: Annotated[str, Field(min_length=1, max_length=4000)] | None = Field(
        default=None,
        description="Run, or directory of a checkpoint, whose weights and statistics of "
        "observations a new run begins with; null for new ones.",
    )
    total_steps: Steps = Field(
        default=1_000_000, description="Environment steps to train for, all environments together."
    )
    env: EnvConfig = Field(description="The environment.")
    sampler: SamplerConfig = Field(
        default=SamplerConfig(), description="The processes that sample."
    )
    model: ModelConfig = Field(default=ModelConfig(), description="The network.")
    algorithm: SerializeAsAny[LearnerConfig] = Field(
        default=PPOConfig(), description="The learning algorithm."
    )
    evaluation: EvaluationConfig = Field(default=EvaluationConfig(), description="Evaluation.")
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="Checkpoints.")
    faults: FaultsConfig = Field(default=FaultsConfig(), description="Failures.")
    logging: LoggingConfig = Field(default=LoggingConfig(), description="Metrics.")
    callbacks: Annotated[tuple[CallbackEntry, ...], BeforeValidator(sequence)] = Field(
        default=(),
        description="Callbacks 'package.module:Class', names that are registered, or {path: …, "
        "kwargs: {…}}; imported when a run starts.",
    )
    transforms: Annotated[tuple[TransformEntry, ...], BeforeValidator(sequence)] = Field(
        default=(),
        description="What changes rollouts before they are learnt from, in order; named as "
        "callbacks are.",
    )

    @field_validator("algorithm", mode="before")
    @classmethod
    def _choose_algorithm(cls, value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401
        """Let a section without a name be PPO's, as no section at all is."""
        own = (info.context or {}).get(OWN_SECTION)
        return algorithm_section(value, own) if isinstance(value, dict) else value

    @field_validator("sampler", mode="before", json_schema_input_type=SamplerConfig | str)
    @classmethod
    def _name_sampler(cls, value: Any) -> Any:  # noqa: ANN401
        return named_sampler(value)

    @field_validator("algorithm")
    @classmethod
    def _check_one_device(cls, value: LearnerConfig, info: ValidationInfo) -> LearnerConfig:
        sampler = info.data.get("sampler")
        if isinstance(value, OpenConfig):
            return value
        if sampler is not None and sampler.kind == "device" and value.device != sampler.devices[0]:
            sampled = f"sampler.device ({sampler.devices[0]})"
            problem = f"must be {sampled} with sampler.kind: device, got {value.device}"
            raise conflict("device", problem)
        return value

    @field_validator("algorithm")
    @classmethod
    def _check_warmup(cls, value: LearnerConfig, info: ValidationInfo) -> LearnerConfig:
        total_steps = info.data.get("total_steps")
        if total_steps is not None and value.learning_rate_warmup >= total_steps:
            problem = f"must be less than total_steps ({total_steps}), got "
            raise conflict("learning_rate_warmup", f"{problem}{value.learning_rate_warmup:g}")
        return value

    @property
    def topology(self) -> Topology:
        """Who steps and who infers, with ``auto`` resolved; see `SamplerConfig.topology`."""
        return self.sampler.topology()
