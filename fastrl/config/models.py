"""The sections of a configuration; `fastrl.config.loading` reads them from YAML.

Every field has a description, bounds and a default. Nothing here imports torch, which takes
seconds, so that the command line answers at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    JsonValue,
    SerializeAsAny,
    StringConstraints,
    ValidationError,
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
    MOST_PROCESSES,
    Bool,
    Call,
    Callee,
    Code,
    Count,
    Device,
    Devices,
    Entries,
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
    named_off,
    sequence,
)
from fastrl.system import usable_cores

if TYPE_CHECKING:
    from fastrl.spec import Topology


class EnvConfig(Section):
    """The environment, and how it is built."""

    id: str = Field(min_length=1, max_length=500)
    """Id in gymnasium's registry 'CartPole-v1' or 'module:Id-v0', id of a family such as
    'fastrl/CartPole-v1', 'ALE/Pong-v5', 'vector:Id', 'gym:Id' or 'envpool:Id', or factory
    'package.module:function'."""
    kwargs: dict[str, JsonValue] = Field(default={})
    """Keyword arguments for the environment."""
    randomize: dict[str, JsonValue] = Field(default={})
    """Distribution of each randomised parameter, drawn again in every episode."""
    wrappers: Entries[Callee] = ()
    """Wrappers 'package.module:callable', or {path: 'package.module:callable', kwargs: {…}} with
    arguments, applied in order. Ids with vector: and envpool: take those of
    gymnasium.wrappers.vector, of which wrappers that change observations need the autoreset mode
    NextStep."""
    episode_info: Entries[Text] = ()
    """Values in the info of an episode's last step to add to the metrics, such as is_success; a/b
    is entry b of the dictionary a."""
    max_episode_steps: Size | None = None
    """Time limit in steps; null keeps the limit of the environment's id."""
    action_bounds: Literal["clip", "squash"] = "clip"
    """Actions outside a bounded Box are clipped, or all are squashed by tanh."""
    action_mask: Annotated[
        Literal["auto", "off"],
        BeforeValidator(named_off, json_schema_input_type=Literal["auto", "off", False]),
    ] = "auto"
    """Masks of valid actions: auto takes the key action_mask of Dict observations, else that of
    infos, else a method action_masks(); off, which may also be written false, ignores all of
    them."""
    step_timeout_s: Seconds = 60.0
    """Deadline in seconds for a batch of steps."""
    reset_timeout_s: Seconds = 120.0
    """Deadline in seconds for a reset."""
    close_timeout_s: Seconds = 10.0
    """Deadline in seconds for closing an environment, after which its worker is killed."""

    @property
    def wrapper_paths(self) -> tuple[str, ...]:
        """The import paths of the wrappers, without their arguments."""
        return tuple(each.path if isinstance(each, Call) else each for each in self.wrappers)


_ENVS, _ENVS_OF_DEVICE, _ENVS_OF_WORKER = 32, 16, 16
"""Default numbers of environments: of a run, on one device, and of each of N workers."""
_MEASURED_ENVS_OF_WORKER = 64
"""Default per worker in speed tests: within 3 % of the best of grids over n, N and M."""

_SAMPLER_KINDS = ["process", "serial", "device", "package.module:function"]
_ENGINES = ["auto", "eager", "compiled", "bfloat16", "package.module:function"]


class SamplerConfig(Section):
    """The processes that sample."""

    kind: Annotated[str, Code("sampler"), Field(examples=_SAMPLER_KINDS)] = "process"
    """Worker processes; serial: their steps in one process, to debug; device: a tensor environment
    or a DeviceEnv, the policy and the learner on one device; or a custom sampler, by its registered
    name or as 'package.module:function'."""
    num_envs: Size | None = None
    """B: environments of all env workers together; null for n × N. Where none of the three is
    given, B is 32, or 16 with kind: device."""
    envs_per_worker: Size | None = None
    """n: environments of each env worker; null for num_envs / N, or for 16 where only N is
    given."""
    num_env_workers: Few | Literal["auto"] = "auto"
    """N: env worker processes; auto is one per usable core, or fewer where these do not divide
    num_envs."""
    num_model_workers: Count = 0
    """M: processes that run the policy; with 0 each env worker runs it itself."""
    groups: Few = 1
    """Parts of a worker's environments: one steps while others wait for actions."""
    rollout_length: Size = 128
    """T: steps of every environment in a rollout."""
    device: Device | Devices = "cpu"
    """Device of the policies: cpu, cuda, cuda:0, or a list distributed among them."""
    mode: Literal["sync", "async"] = "sync"
    """Wait for new weights after a rollout, or fill the other bank."""
    wait: Annotated[float, Field(gt=0, le=1)] | Literal["all"] = "all"
    """Share of the env workers that a rollout waits for, for environments of uneven speed; parts of
    the others are learnt from in a later update."""
    spare_envs: Count = 0
    """Spare environments of each group of a worker, for long resets: they are reset in the
    background, and take the places of those whose episodes end. With 0 the others wait for each
    reset."""
    lock_step: Bool = False
    """Infer a group only when all its workers are ready: reproducible."""
    engine: Annotated[str, Code("engine"), Field(examples=_ENGINES)] = "auto"
    """How the policy's forward pass is executed: auto, eager, compiled; bfloat16 rounds the
    network's bodies, for conv nets on hardware that has it; or a custom engine, by its registered
    name or as 'package.module:function'."""
    torch_threads: Few = 1
    """Torch threads of each worker."""
    tune_s: Seconds | None = None
    """Seconds before training in which to search for n, N, M, groups and device with the same
    number of environments, unless a result is known; null for none."""
    debug: Bool = False
    """Fill memory with NaN, to detect reads of unwritten elements."""
    start_timeout_s: Seconds = 120.0
    """Deadline in seconds for all workers to be ready."""

    @property
    def unit(self) -> int:
        """Number of environments of which the part of each rank is a multiple."""
        return self.envs_per_worker or self.groups

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices as a tuple, also if the configuration names a single one."""
        return (self.device,) if isinstance(self.device, str) else self.device

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if self.kind == "device":
            fixed = {"num_env_workers": (1, "auto"), "num_model_workers": (0,), "groups": (1,)}
            fixed |= {"mode": ("sync",), "device": self.devices[:1], "spare_envs": (0,)}
            self._check_fixed("kind", fixed)
        if self.wait != "all":
            fixed = {"kind": ("process",), "mode": ("async",)}
            self._check_fixed("wait", fixed | {"num_model_workers": (0,), "tune_s": (None,)})
        return self

    def _check_fixed(self, cause: str, fixed: Mapping[str, tuple[Any, ...]]) -> None:
        """Raise an error if a key has none of the values that another key requires."""
        for key, allowed in fixed.items():
            value = getattr(self, key)
            if value not in (*allowed, allowed):
                choices = " or ".join("null" if each is None else str(each) for each in allowed)
                why = f"with sampler.{cause}: {getattr(self, cause)}"
                raise conflict(key, f"must be {choices} {why}, got {value}")

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        n, workers, total = self.envs_per_worker, self._known_workers, self._total
        if n is None and total is not None:
            _check_divides("num_envs", total, num_env_workers=workers or 1, groups=self.groups)
        else:
            _check_divides("envs_per_worker", n or _ENVS_OF_WORKER, groups=self.groups)
        if n is not None and total is not None:
            _check_divides("num_envs", total, envs_per_worker=n)
            if workers is not None and n * workers != total:
                sizes = f"sampler.envs_per_worker × sampler.num_env_workers ({n} × {workers})"
                raise conflict("num_envs", f"must be {sizes}, got {total}; give two of the three")
            if total // n > MOST_PROCESSES:
                problem = f"makes {total // n} env workers; at most {MOST_PROCESSES} are possible"
                raise conflict("envs_per_worker", problem)
        if workers is not None and self.num_model_workers > workers:
            raise conflict("num_model_workers", self._too_many_model_workers(workers))
        return self

    def _too_many_model_workers(self, workers: int) -> str:
        return f"must be at most sampler.num_env_workers ({workers}), got {self.num_model_workers}"

    @property
    def _total(self) -> int | None:
        """B, unless it follows from n and N; then None."""
        given = self.envs_per_worker is not None or self.num_env_workers != "auto"
        if self.num_envs is not None or given:
            return self.num_envs
        return _ENVS_OF_DEVICE if self.kind == "device" else _ENVS

    @property
    def _known_workers(self) -> int | None:
        """N, unless it depends on the machine; then None."""
        if self.kind == "device":
            return 1
        return None if self.num_env_workers == "auto" else self.num_env_workers

    def topology(self, cores: int | None = None) -> Topology:
        """Return the topology of workers, with ``auto`` resolved.

        Args:
            cores: Cores of the machine; by default the usable ones of this one.

        Raises:
            ConfigError: ``num_env_workers`` is auto, and smaller than the number of model workers.
        """
        # fastrl.spec imports torch, which takes seconds; see the module's docstring.
        from fastrl.errors import ConfigError
        from fastrl.spec import Topology

        n, workers, total = self.envs_per_worker, self._known_workers, self._total
        cores = usable_cores() if cores is None else cores
        if workers is None and total is None:
            workers = cores
        elif workers is None:
            assert total is not None
            parts = total // (n or self.groups)
            workers = parts if n else max(k for k in range(1, cores + 1) if not parts % k)
        if self.num_model_workers > workers:
            problem = self._too_many_model_workers(workers)
            raise ConfigError(f"sampler.num_model_workers: {problem}")
        return Topology(
            envs_per_worker=n or (_ENVS_OF_WORKER if total is None else total // workers),
            num_env_workers=workers,
            num_model_workers=self.num_model_workers,
            groups=self.groups,
            by_slot=total is not None,
        )


def _check_divides(key: str, number: int, **divisors: int) -> None:
    known = {name: divisor for name, divisor in divisors.items() if divisor > 1}
    if number % math.prod(known.values()):
        by = " × ".join(f"sampler.{name}" for name in known)
        sizes = " × ".join(map(str, known.values()))
        raise conflict(key, f"must be divisible by {by} ({sizes}), got {number}")


# Keys that a name in place of the section `sampler` sets.
_NAMED_SAMPLERS: Mapping[str, Mapping[str, Any]] = {
    "process": {"kind": "process"},
    "serial": {"kind": "serial"},
    "device": {"kind": "device"},
    "auto": {"tune_s": 30.0},
}


def named_sampler(value: Any) -> Any:
    """Return the keys for a name such as ``sampler: device``; return a mapping unchanged."""
    if not isinstance(value, str):
        return value
    return dict(_NAMED_SAMPLERS.get(value, {"kind": value}))


ConvLayers = Annotated[
    tuple[Annotated[tuple[Size, Size, Size], BeforeValidator(sequence)], ...],
    Field(min_length=1),
    BeforeValidator(sequence),
]
Layout = Literal[
    "auto", "flat", "HW", "HWC", "CHW", "HWS", "SHW", "SHWC", "SCHW", "CSHW", "HWCS", "HWSC"
]
LogStd = Annotated[Float, Field(ge=-20, le=20)]


class ModelConfig(Section):
    """The network that maps observations to actions and values."""

    class_path: Annotated[str, Code("model")] | None = None
    """Custom module 'package.module:Class', or a registered name; null for the built-in network."""
    kwargs: dict[str, JsonValue] = Field(default={})
    """Keyword arguments for class_path."""
    hidden_sizes: Entries[Size] = (64, 64)
    """Width of each hidden layer of the MLP."""
    critic_hidden_sizes: Entries[Size] | None = None
    """The same for the value, where bodies are separate; null for hidden_sizes."""
    activation: Literal["tanh", "relu", "elu", "gelu", "silu"] = "tanh"
    """Non-linearity of the hidden layers."""
    shared_body: Bool | Literal["auto"] = "auto"
    """Policy and value share all but the last layer; auto: if there are images."""
    conv_layers: ConvLayers | None = None
    """[channels, kernel, stride] of each convolution; null for the usual three."""
    image_layout: Layout | dict[str, Layout] = "auto"
    """Axes of images: H height, W width, C channels, S frames of a stack; flat for no image, auto
    to infer them from the sizes. For several images a mapping from their paths."""
    conv_features: Size = 512
    """Width of the layer after the conv net."""
    recurrent: Literal["gru", "lstm"] | None = None
    """Memory behind the hidden layers: gated recurrent units or long short-term memory; null for
    none. Separate bodies of policy and value have separate memories."""
    recurrent_size: Size = 64
    """Units in each recurrent layer."""
    recurrent_layers: Annotated[Size, Field(le=64)] = 1
    """Recurrent layers."""
    log_std_init: Annotated[Float, Field(ge=-20, le=5)] = 0.0
    """Initial log standard deviation of continuous actions."""
    log_std: Literal["constant", "state"] = "constant"
    """Learned log standard deviations: the same in every state, or a function of the
    observation."""
    log_std_bounds: Annotated[tuple[LogStd, LogStd], BeforeValidator(sequence)] | None = None
    """Bounds of log standard deviations, approached smoothly; null for none."""
    orthogonal_init: Bool = True
    """Orthogonal weights and zero biases."""
    normalize_observations: Bool = False
    """Normalise observations by their running mean and variance."""
    previous_action_reward: Bool = False
    """Add the previous action and reward to observations, for policies with a memory."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kwargs and self.class_path is None:
            raise conflict("kwargs", "must be empty where model.class_path is null")
        if self.critic_hidden_sizes is not None and self.shared_body is True:
            raise conflict("critic_hidden_sizes", "must be null where model.shared_body is true")
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
    """Evaluation during training, in separate environments."""

    enabled: Bool = True
    """Evaluate during training."""
    every_steps: Steps = 50_000
    """Environment steps between evaluations."""
    episodes: Episodes = 10
    """Episodes of each evaluation."""
    final_episodes: Episodes = 100
    """Episodes of the evaluation after the last step."""
    deterministic: Bool = True
    """Take the most likely action, not a sample."""
    seed: Seed = 10_000
    """Seed of the evaluation's environments."""
    env_kwargs: dict[str, JsonValue] = Field(default={})
    """Keyword arguments that differ from env.kwargs."""
    max_steps: Steps = 1_000_000
    """Environment steps of all episodes after which an evaluation ends."""
    max_s: Seconds = 600.0
    """Seconds after which an evaluation ends."""
    metric: Annotated[str, StringConstraints(pattern=r"^(return_mean|info/.{1,200})$")] = (
        "return_mean"
    )
    """Metric by which policies are compared: return_mean, or info/NAME of env.episode_info."""
    stop_at: Float | None = None
    """Value of the metric that ends training; null for total_steps alone."""
    video: Bool = False
    """Record an episode of every evaluated policy: MP4 with the extra 'video', else GIF."""

    @model_validator(mode="after")
    def _check_stop(self) -> Self:
        if self.stop_at is not None and not self.enabled:
            problem = f"must be null where evaluation.enabled is false, got {self.stop_at:g}"
            raise conflict("stop_at", problem)
        return self


class CheckpointConfig(Section):
    """Times at which a run is saved, and the checkpoints that are kept."""

    every_steps: Steps | None = None
    """Environment steps between checkpoints; null for none by steps."""
    every_s: Seconds | None = 300.0
    """Seconds between checkpoints; null for none by time."""
    keep_last: Size = 3
    """Checkpoints kept, newest first."""
    keep_best: Bool = True
    """Also keep the checkpoint with the best evaluation."""
    environments: Bool = True
    """Also save unfinished episodes, where the environment supports it, so that a resumed run
    continues them; otherwise it starts new ones."""


class FaultsConfig(Section):
    """The reaction of a run to failures."""

    max_restarts: Count = 5
    """Replacements of each worker process within an hour; one more failure saves and ends the
    run."""
    bad_numbers: Literal["raise", "truncate_episode", "skip_update"] = "raise"
    """NaN or infinity from an environment or a loss, or a mask without a valid action: end the run;
    replace the environments at the last good step; or leave out the update."""


class MachineConfig(Section):
    """Keys of machines that differ from the section sampler; null for the same value."""

    cores: Size
    """Number of cores of the machines that have these keys."""
    num_envs: Size | None = None
    """B of each of these machines."""
    envs_per_worker: Size | None = None
    """n of each of these machines."""
    num_env_workers: Few | None = None
    """N of each of these machines."""
    num_model_workers: Count | None = None
    """M of each of these machines."""
    groups: Few | None = None
    """As sampler.groups."""
    device: Device | Devices | None = None
    """As sampler.device."""
    engine: Annotated[str, Code("engine")] | None = None
    """As sampler.engine."""
    torch_threads: Few | None = None
    """As sampler.torch_threads."""


class ClusterConfig(Section):
    """Several machines that sample one run, by Ray (extra 'ray')."""

    address: Annotated[str, Field(min_length=1, max_length=300)] = "local"
    """The Ray cluster: local for one that starts with the run on this machine, auto for the one
    that this machine belongs to, or host:port of its head."""
    nodes: Size | Literal["all"] = "all"
    """Number of machines that sample, each with the processes of the section sampler."""
    machines: Entries[MachineConfig] = ()
    """Keys of the section sampler that differ on some machines, such as [{cores: 64,
    num_env_workers: 60}]; with rollouts, sampler.tune_s finds them."""
    wait: Annotated[float, Field(gt=0, le=1)] | Literal["all"] = "all"
    """Share of the machines whose rollouts an update waits for; rollouts of the others are learnt
    from in a later update."""
    node_timeout_s: Seconds = 20.0
    """Seconds without an answer after which a machine is lost; it is used again when it is back."""
    mode: Literal["rollouts", "gradients"] = "rollouts"
    """Data on the network: rollouts to one learner, or gradients among one learner on each
    machine."""
    elastic: Bool = False
    """With gradients, continue from the last update without a machine that died; otherwise the
    others save and end."""


def _on_machine(sampler: SamplerConfig, machine: MachineConfig) -> SamplerConfig:
    given = machine.model_dump(exclude_none=True, exclude={"cores"})
    return SamplerConfig.model_validate(sampler.model_dump() | given)


Place = Annotated[str, Field(min_length=1, max_length=4000)]


class DatasetConfig(Section):
    """Demonstrations, which imitation and offline algorithms learn from (extra 'minari')."""

    path: Place | None = None
    """Directory of a dataset in Minari's format, or of several; see fastrl record --dataset."""
    id: Place | None = None
    """Id in Minari's collection, such as mujoco/halfcheetah/medium-v0, downloaded if it is not on
    this machine."""
    episodes: Episodes | None = None
    """Number of episodes, from the first; null for all."""

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.path is None) == (self.id is None):
            raise conflict("path", "must be given, or dataset.id, and not both")
        return self


class LoggingConfig(Section):
    """Destinations of metrics, besides the run's JSONL file."""

    tensorboard: Bool = True
    """Write TensorBoard event files."""
    wandb: Bool = False
    """Send metrics to Weights & Biases (extra 'wandb')."""
    every_s: Seconds = 5.0
    """Seconds between rows of metrics, and between lines of progress."""
    every_steps: Steps | None = None
    """Environment steps after which a row of metrics is written earlier; null for a 200th of
    total_steps."""
    loggers: Entries[Annotated[str | Call, Code("logger")]] = ()
    """More destinations of the metrics: 'package.module:Class' or a registered name each, or
    {path: …, kwargs: {…}} with arguments."""


_SHORTEST_SEQUENCE = 8
"""Least length of sequences if none is configured: a memory learns little from shorter ones."""


def _fitting_sequence(rollout_length: int, section: LearnerConfig) -> int:
    """Return the longest sequence length that divides a rollout and a minibatch."""
    return math.gcd(rollout_length, getattr(section, "minibatch_size", rollout_length))


OWN_SECTION = "algorithm"
"""Key in the validation context, for the section class of an imported algorithm."""


class Config(Section):
    """The configuration of a run.

    Read from YAML by `fastrl.config.loading.load_config`; building one in Python validates it
    the same way, but raises pydantic's own error.
    """

    seed: Seed = 0
    """Seed of environments, actions, weights and shuffling."""
    run_dir: Place | None = None
    """Directory of the run; null for a new one under runs/."""
    init_from: Place | None = None
    """Run, or directory of a checkpoint, with whose weights and observation statistics a new run
    begins; null for new ones."""
    total_steps: Steps = 1_000_000
    """Environment steps to train for, all environments together."""
    env: EnvConfig
    """The environment."""
    sampler: SamplerConfig = SamplerConfig()
    """The processes that sample."""
    model: ModelConfig = ModelConfig()
    """The network."""
    algorithm: SerializeAsAny[LearnerConfig] = PPOConfig()
    """The learning algorithm."""
    dataset: DatasetConfig | None = None
    """Demonstrations to learn from; null for none."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluation."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""
    faults: FaultsConfig = FaultsConfig()
    """Failures."""
    logging: LoggingConfig = LoggingConfig()
    """Metrics."""
    cluster: ClusterConfig | None = None
    """Several machines; null for this one."""
    callbacks: Entries[Annotated[str | Call, Code("callback")]] = ()
    """Callbacks 'package.module:Class', registered names, or {path: …, kwargs: {…}}; imported when
    a run starts."""
    transforms: Entries[Annotated[str | Call, Code("transform")]] = ()
    """Transforms of rollouts before learning, in order; named like callbacks."""

    @field_validator("algorithm", mode="before")
    @classmethod
    def _choose_algorithm(cls, value: Any, info: ValidationInfo) -> Any:
        """Choose the class of the section; PPO's without a name."""
        own = (info.context or {}).get(OWN_SECTION)
        return algorithm_section(value, own) if isinstance(value, dict) else value

    @field_validator("sampler", mode="before", json_schema_input_type=SamplerConfig | str)
    @classmethod
    def _name_sampler(cls, value: Any) -> Any:
        return named_sampler(value)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        """Check keys of one section against those of others."""
        self._check_kwargs()
        self._check_learner()
        self._check_sequences()
        if self.algorithm.needs_dataset and self.dataset is None:
            problem = f"must name demonstrations with algorithm.name: {self.algorithm.name}"
            raise conflict("dataset", f"{problem}, got null")
        if self.cluster is not None:
            self._check_cluster(self.cluster)
        return self

    def _check_kwargs(self) -> None:
        given = {"env.kwargs": self.env.kwargs, "evaluation.env_kwargs": self.evaluation.env_kwargs}
        for key, kwargs in given.items():
            if self.env.id.startswith("fastrl/") and "num_envs" in kwargs:
                raise conflict(key, "num_envs must be left out: the sampler's keys set it")

    def _check_learner(self) -> None:
        section, sampler = self.algorithm, self.sampler
        is_known = not isinstance(section, OpenConfig)
        if is_known and sampler.kind == "device" and section.device != sampler.devices[0]:
            sampled = f"sampler.device ({sampler.devices[0]})"
            problem = f"must be {sampled} with sampler.kind: device, got {section.device}"
            raise conflict("algorithm.device", problem)
        if section.own_sampler is not None and sampler.wait != "all":
            problem = f"must be an algorithm without a sampler of its own, got {section.name}"
            raise conflict("algorithm.name", f"{problem}, with sampler.wait: {sampler.wait}")
        if section.learning_rate_warmup >= self.total_steps:
            warmup = f"{section.learning_rate_warmup:g}"
            problem = f"must be less than total_steps ({self.total_steps}), got {warmup}"
            raise conflict("algorithm.learning_rate_warmup", problem)

    def _check_sequences(self) -> None:
        section, steps = self.algorithm, self.sampler.rollout_length
        length, has_memory = section.sequence_length, self.model.recurrent is not None
        size: int = getattr(section, "minibatch_size", length or 0)
        if length is None:
            fitting = _fitting_sequence(steps, section)
            if has_memory and fitting < min(steps, _SHORTEST_SEQUENCE):
                problem = (
                    f"must have a larger divisor in common with sampler.rollout_length ({steps}), "
                    f"got {size}: minibatches would hold sequences of {fitting}"
                )
                raise conflict("algorithm.minibatch_size", problem)
            return
        if steps % length and section.own_sampler is None:
            problem = f"must divide sampler.rollout_length ({steps}), got {length}"
            raise conflict("algorithm.sequence_length", problem)
        if has_memory and size % length:
            problem = f"must be a multiple of algorithm.sequence_length ({length}), got {size}"
            raise conflict("algorithm.minibatch_size", problem)

    def _check_cluster(self, cluster: ClusterConfig) -> None:
        if self.algorithm.own_sampler is not None:
            raise conflict("cluster", f"must be null with algorithm.name: {self.algorithm.name}")
        if self.sampler.wait != "all":
            problem = f"must be null with sampler.wait: {self.sampler.wait}; see cluster.wait"
            raise conflict("cluster", problem)
        if cluster.machines and cluster.mode == "gradients":
            raise conflict("cluster.machines", "must be [] with cluster.mode: gradients")
        known: set[int] = set()
        for index, machine in enumerate(cluster.machines):
            where = f"cluster.machines[{index}]"
            if machine.cores in known:
                problem = f"must be named once, got {machine.cores} again"
                raise conflict(f"{where}.cores", problem)
            known.add(machine.cores)
            try:
                _on_machine(self.sampler, machine)
            except ValidationError as error:
                found = error.errors()[0]
                key = found.get("ctx", {}).get("key") or ".".join(map(str, found["loc"]))
                raise conflict(f"{where}.{key}", found["msg"]) from error

    @property
    def sequence_length(self) -> int:
        """L: steps of the sequences that a policy with a memory learns from."""
        given = getattr(self.algorithm, "sequence_length", None)
        return given or _fitting_sequence(self.sampler.rollout_length, self.algorithm)

    def sampler_on(self, cores: int) -> SamplerConfig:
        """Return the section sampler of cluster machines with this number of cores."""
        machines = () if self.cluster is None else self.cluster.machines
        for machine in machines:
            if machine.cores == cores:
                return _on_machine(self.sampler, machine)
        return self.sampler

    @property
    def topology(self) -> Topology:
        """Topology of workers, with ``auto`` resolved; see `SamplerConfig.topology`."""
        return self.sampler.topology()

    def for_throughput(self) -> Self:
        """Return a configuration for speed tests; by default 64 environments per worker."""
        sampler = self.sampler
        sized = sampler.num_envs is not None or sampler.envs_per_worker is not None
        if sized or sampler.kind == "device":
            return self
        sizes = {"envs_per_worker": _MEASURED_ENVS_OF_WORKER}
        return self.model_copy(update={"sampler": sampler.model_copy(update=sizes)})
