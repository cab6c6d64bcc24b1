"""The sampler of DAgger: states of the policy with an expert's actions, of the run so far."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastrl.config import Config, DAggerConfig
from fastrl.datasets import DatasetWriter, Demonstrations, load_demonstrations
from fastrl.datasets.demonstrations import concatenated, space_differences
from fastrl.datasets.episodes import fragments
from fastrl.datasets.experts import (
    AsPlayed,
    Demonstrator,
    FunctionPolicy,
    Mixture,
    MostProbable,
    label_names,
    try_function,
)
from fastrl.datasets.streams import joined_episodes, rollout_fields
from fastrl.durable import make_directory, writing
from fastrl.envs.calls import EnvCall
from fastrl.envs.state import State
from fastrl.errors import ConfigError, FastrlError
from fastrl.imports import import_object
from fastrl.models.policy import build_model
from fastrl.runs import locate, read_config
from fastrl.sampling import Fault, Sampler, SamplerStats, env_factory
from fastrl.sampling.build import sampler_builder
from fastrl.shared.rollouts import Rollout
from fastrl.spaces import unflatten
from fastrl.spec import EnvSpec
from fastrl.training.checkpoint import CheckpointStore
from fastrl.training.saved_spec import SPACES, read_spec
from fastrl.training.saver import load_model
from fastrl.training.trust import require_trust
from fastrl.workers.plan import SamplingPlan

FOLDER = "demonstrations"
"""Subdirectory of a run with the dataset of each rollout."""
_ROLLOUT = "rollout_"
_EPISODE = "episode"
"""Field ``[T, B] int64``: number of each step's episode in the run."""


class DAggerSampler(Sampler):
    """Samples with a mixture of the policy and the expert, and returns all steps so far.

    The steps of each rollout are written to a dataset in the run directory before they are learnt
    from: observations, the expert's actions, and rewards. An episode that spans two rollouts is
    stored as one part in each dataset. A resumed run reads the datasets, and drops those that are
    newer than its checkpoint.

    A policy with a memory learns from whole episodes, so the parts are joined; each step has the
    number of its episode.

    Args:
        sampler: Samples the mixture.
        expert: Expert of the mixture.
        config: The run, with its directory.
        plan: Plan of the run; its policy learns.
    """

    def __init__(
        self, sampler: Sampler, expert: Demonstrator, config: Config, plan: SamplingPlan
    ) -> None:
        assert isinstance(config.algorithm, DAggerConfig)
        self._sampler, self._section = sampler, config.algorithm
        self._expert = {f"expert.{name}": x for name, x in expert.state_dict().items()}
        self.env_spec, self.topology = plan.env_spec, sampler.topology
        self.rollout_length = sampler.rollout_length
        self._bounds = config.env.action_bounds
        self._directory = Path(config.run_dir or ".") / FOLDER
        self._rollouts = plan.first_rollout
        self._parts: list[Demonstrations] | None = None
        has_memory = plan.schema.state_size > 0
        self._sequence_length = config.sequence_length if has_memory else None
        self._kept = (_EPISODE, "truncated") if has_memory else ()

    def start(self) -> None:
        """Read the steps of earlier sessions and start sampling; see `Sampler`.

        Raises:
            ConfigError: Steps of earlier sessions are damaged or missing.
        """
        if self._parts is None:
            with writing(self._directory):
                make_directory(self._directory)
                next_name = self._path(self._rollouts).name
                for path in self._directory.iterdir():
                    name = path.name.removeprefix(".")
                    if name.startswith(_ROLLOUT) and (name >= next_name or name != path.name):
                        shutil.rmtree(path)
            self._parts = [self._read(number) for number in range(self._rollouts)]
        self._sampler.start()

    def collect(self) -> Rollout:
        """Sample the next rollout and return all steps so far; see `Sampler`."""
        self.start()
        assert self._parts is not None
        rollout = self._sampler.collect()
        spec, number = self.env_spec, self._rollouts
        labels = [rollout.fields[name] for name in label_names(spec)]
        action = unflatten(spec.action_space, dict(zip(spec.action, labels, strict=True)))
        fields = {**rollout.fields, "action": action}
        if self._kept:
            fields[_EPISODE] = self._numbered(rollout)
        labelled = dataclasses.replace(rollout, fields=fields)
        with writing(self._directory):
            self._directory.stat()  # else the directory of a run that was removed would be made
        with DatasetWriter(self._path(number), spec, self._bounds) as writer:
            writer.add(fragments(spec, labelled, self._kept))
        self._parts.append(self._read(number))
        self._rollouts += 1
        return self._joined(rollout, self._parts)

    def _joined(self, newest: Rollout, parts: Sequence[Demonstrations]) -> Rollout:
        found = concatenated(parts)
        if self._kept:
            found = joined_episodes(found, found.fields[_EPISODE])
        fields = rollout_fields(found, self._sequence_length)
        shape = fields["reward"].shape
        return Rollout(
            fields,
            policy_version=newest.policy_version[:1, :1].expand(shape),
            episodes=newest.episodes,
            index=newest.index,
            restarted=torch.ones(shape[1], dtype=torch.bool),
            counted_steps=newest.num_steps,
        )

    def _numbered(self, rollout: Rollout) -> Tensor:
        """Return the number of each step's episode, ``[T, B] int64``."""
        assert self._parts is not None
        ended = rollout.terminated | rollout.truncated
        length, slots = ended.shape
        begins = torch.cat([torch.ones_like(ended[:1]), ended[:-1]])
        going_on, first = torch.full((1, slots), -1), 0
        if self._parts:
            before = self._parts[-1]
            numbers = before.fields[_EPISODE]
            first = max(int(part.fields[_EPISODE].max()) for part in self._parts) + 1
            if rollout.restarted is None or not rollout.restarted.all():
                # A part contains the steps slot by slot.
                begins[0] = (before.terminated | before.fields["truncated"])[length - 1 :: length]
                going_on = numbers[None, length - 1 :: length]
            if rollout.restarted is not None:
                begins[0] |= rollout.restarted
        new = first + begins.flatten().cumsum(0).view_as(begins) - 1
        # Later episodes have larger numbers.
        numbers = torch.cat([going_on.where(~begins[:1], -1), new.where(begins, -1)])
        return numbers.cummax(0).values[1:]

    def _path(self, number: int) -> Path:
        return self._directory / f"{_ROLLOUT}{number:08d}"

    def _read(self, number: int) -> Demonstrations:
        # All rollouts are read from their files, so that a resumed run learns from the same rows.
        return load_demonstrations(
            self._path(number),
            self.env_spec,
            action_bounds=self._bounds,
            fields=self._kept,
            key=FOLDER,
        )

    def publish(self, state_dict: Mapping[str, Tensor]) -> int:
        """Publish new parameters and the expert's share of the next rollout."""
        share = torch.tensor(expert_share(self._section, self._rollouts))
        learner = {f"learner.{name}": tensor for name, tensor in state_dict.items()}
        return self._sampler.publish({"share": share, **learner, **self._expert})

    def stats(self, *, details: bool = False) -> SamplerStats:
        """See `Sampler`."""
        return self._sampler.stats(details=details)

    def pause(self, timeout_s: float = 120.0) -> None:
        """See `Sampler`."""
        self._sampler.pause(timeout_s)

    def get_state(self) -> State | None:
        """See `Sampler`."""
        return self._sampler.get_state()

    def set_state(self, state: State) -> None:
        """See `Sampler`."""
        self._sampler.set_state(state)

    def call_envs(self, calls: Sequence[EnvCall]) -> None:
        """See `Sampler`."""
        self._sampler.call_envs(calls)

    def close(self) -> None:
        """See `Sampler`."""
        self._sampler.close()


def expert_share(section: DAggerConfig, rollout: int) -> float:
    """Return the expert's share of a rollout's actions: β of the algorithm."""
    return max(0.0, 1.0 - rollout / section.beta_rollouts)


def dagger_sampler(
    config: Config,
    plan: SamplingPlan,
    weights: Mapping[str, Tensor] | None,
    on_fault: Callable[[Fault], None] | None,
) -> Sampler:
    """Return the sampler of DAgger, which wraps the one that ``sampler.kind`` names.

    Raises:
        ConfigError: The expert is missing or does not match the environment.
    """
    assert isinstance(config.algorithm, DAggerConfig)
    expert, build = load_expert(config, plan.env_spec), plan.build_model
    assert build is not None
    spec, share = plan.env_spec, expert_share(config.algorithm, plan.first_rollout)

    def build_mixture() -> Mixture:
        return Mixture(spec, build(), expert, share)

    mixed = dataclasses.replace(
        plan,
        build_model=build_mixture,
        outputs=None,
        engine="eager",
        wanted_fields=("final_observation",),
    )
    mixture = build_mixture()
    if weights is not None:
        mixture.learner.load_state_dict(dict(weights))
    sampler = sampler_builder(config)(config, mixed, mixture.state_dict(), on_fault)
    return DAggerSampler(sampler, expert, config, plan)


def check_expert(config: Config, env_spec: EnvSpec) -> None:
    """Check the expert of a run of DAgger, before the run has a directory.

    Raises:
        ConfigError: It is missing or does not match the environment, the sampler runs no expert, or
            bad numbers would be learnt from again.
    """
    if not isinstance(config.algorithm, DAggerConfig):
        return
    if config.sampler.kind == "device":
        raise ConfigError(
            "sampler.kind: must be process or serial with algorithm.name: dagger, got device"
        )
    if config.faults.bad_numbers == "skip_update":
        raise ConfigError(
            "faults.bad_numbers: must be raise or truncate_episode with algorithm.name: dagger, "
            "which learns from each rollout again, got skip_update"
        )
    expert = load_expert(config, env_spec)
    if isinstance(expert, AsPlayed) and isinstance(expert.expert, FunctionPolicy):
        where = f"algorithm.expert_policy: '{config.algorithm.expert_policy}'"
        try_function(expert.expert, where, env_factory(config))


def load_expert(config: Config, env_spec: EnvSpec) -> Demonstrator:
    """Return the expert of a run of DAgger.

    Args:
        config: The run.
        env_spec: The environment.

    Raises:
        ConfigError: It is missing, has other spaces, or would import code that is not trusted.
    """
    section, bounds = config.algorithm, config.env.action_bounds
    assert isinstance(section, DAggerConfig)
    if section.expert_policy is not None:
        function = import_object(section.expert_policy, "algorithm.expert_policy")
        if not callable(function):
            raise ConfigError(
                f"algorithm.expert_policy: '{section.expert_policy}' is not a function"
            )
        return AsPlayed(FunctionPolicy(env_spec, function, bounds), env_spec, bounds, bounds)
    try:
        path, name = locate(section.expert or "")
        own = read_config(path)
        require_trust(path, own)
        found = CheckpointStore(path / "checkpoints").load(name)
        spec = read_spec(path / SPACES)
        if spec is not None and (differences := space_differences(spec, env_spec, "expert")):
            raise ConfigError(
                f"'{section.expert}' is not of '{env_spec.id}': {'; '.join(differences)}"
            )
        model = build_model(env_spec, own.model, own.env.action_bounds)
        load_model(model, found)
    except FastrlError as error:
        named = f"'{section.expert}'"
        where = "algorithm.expert" if named in str(error) else f"algorithm.expert: {named}"
        raise ConfigError(f"{where}: {error}") from error
    return AsPlayed(MostProbable(model), env_spec, own.env.action_bounds, bounds)
