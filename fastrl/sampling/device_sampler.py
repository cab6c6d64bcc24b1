"""Samples environments and policy on one device, in this process.

A rollout of a tensor environment is one function of weights, states and noise
(`fastrl.envs.tensor.rollout`), replayed as CUDA graphs on a GPU; a `DeviceEnv` is stepped by the
same function, without graphs. Only returns and lengths of completed episodes are copied to the
host. On a CPU compiled loops are many times faster than tensor environments, so `make_sampler` uses
a `SerialSampler` of them there.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastrl.arguments import instance
from fastrl.closing import closing_on_error
from fastrl.envs.calls import EnvCall, checked_calls
from fastrl.envs.device_env import DeviceEnv
from fastrl.envs.state import State, StateError, load_state, state_of
from fastrl.envs.tensor.base import TensorEnv
from fastrl.envs.tensor.rollout import Rollouts, Start, TensorRollout
from fastrl.envs.tensor.tensor_policy import ModulePolicy, RandomPolicy, TensorPolicy
from fastrl.errors import ConfigError, EnvError
from fastrl.models.inference.engines import bfloat16, rounded_to_bfloat16
from fastrl.sampling.sampler import CountingSampler
from fastrl.shared.rollouts import Episodes, Rollout
from fastrl.shared.weights import check_parameters, copy_parameters
from fastrl.system import existing_device
from fastrl.workers.handoff import Counter, CounterBoard, Stopwatch
from fastrl.workers.plan import SamplingPlan

_LOGGER = logging.getLogger(__name__)
_WORKER = "env-worker-0"
_STEPS_PER_GRAPH = 32
"""Steps per graph on a GPU: more take longer to compile and less time to launch."""


class DeviceSampler(CountingSampler):
    """Samples environments on one device; see `Sampler` for the contract.

    Rollouts are new tensors on that device, without a limit of validity.

    Args:
        plan: Plan with one env worker and one device.
        env: The tensor environment, or all environments of the plan, which are closed by `close`.
        params: Parameters of a tensor environment, on the same device.
        state_dict: First parameters of the policy; by default those of a freshly built model.
        squash: Map samples for a ``Box`` into its bounds by tanh, rather than clip them.
        check_numbers: Reject rollouts with a NaN or an infinity.

    Raises:
        ConfigError: The device does not exist, or the plan has several workers.
        EnvError: The environments are on another device, or cannot be stepped.
    """

    def __init__(
        self,
        plan: SamplingPlan,
        env: TensorEnv[Any, Any] | DeviceEnv,
        params: Any = None,
        state_dict: Mapping[str, Tensor] | None = None,
        *,
        squash: bool = False,
        check_numbers: bool = True,
    ) -> None:
        instance("plan", plan, SamplingPlan, "make_plan makes one of a configuration")
        if not isinstance(env, DeviceEnv):
            instance("env", env, TensorEnv, "fastrl.envs.make_tensor makes one")
        if plan.topology.num_env_workers != 1:
            workers = plan.topology.num_env_workers
            raise ConfigError(f"num_env_workers must be 1 on a device, got {workers}")
        self._device, self._schema = existing_device(plan.device(0)), plan.schema
        # The environment keeps its own state.
        self._stateful = env if isinstance(env, DeviceEnv) else None
        self._model = _built(plan, self._device)
        policy: TensorPolicy = (
            RandomPolicy(env.spec) if self._model is None else ModulePolicy(self._model)
        )
        self._rollouts = Rollouts(
            env,
            policy,
            params,
            squash=squash,
            steps_per_graph=self._steps_per_graph(plan.env_spec.id),
            sequence_length=plan.sequence_length,
        )
        self._version, self._check_numbers = 0, check_numbers
        self._here: Start | None = None
        self._resumed: State | None = None
        if self._model is not None:
            self._publish(self._model.state_dict() if state_dict is None else state_dict)
        # Last, as an error would leave the counters open.
        super().__init__(plan, CounterBoard([_WORKER]))
        self._watch = Stopwatch(self.counters, _WORKER)

    def start(self) -> None:
        """Begin an episode in every environment; see `Sampler`."""
        self._check_open()
        if self._here is None:
            with closing_on_error(self):
                self._here = self._begun()

    def _begun(self) -> Start:
        generator = self._generator(self._plan.env_seeds(0, 0)[0])
        return self._rollouts.start(self.topology.num_envs, generator)

    def get_state(self) -> State | None:
        """See `Sampler`."""
        self._check_open()
        if self._next_rollout == 0 or self._here is None:
            return self._resumed
        state = {
            "rollouts": self._num_rollouts,
            "tensors": self._rollouts.get_state(self._here),
        }
        return state if self._stateful is None else {**state, "env": state_of(self._stateful)}

    def set_state(self, state: State) -> None:
        """See `Sampler`."""
        self._check_open()
        if not isinstance(state, dict) or not isinstance(state.get("tensors"), list):
            raise StateError("the state belongs to another kind of sampler")
        if ("env" in state) != (self._stateful is not None):
            raise StateError("the state belongs to another kind of environment")
        here = self._rollouts.at_state(self._begun(), state["tensors"])
        if self._stateful is not None:
            load_state(self._stateful, state["env"])
        self._here, self._resumed = here, state

    def call_envs(self, calls: Sequence[EnvCall]) -> None:
        """Call the object that holds all environments, now; see `Sampler`.

        Raises:
            EnvError: The call failed; or this is a tensor environment, which has no methods to
                call.
        """
        self._check_open()
        calls = checked_calls(calls)
        if self._stateful is not None:
            for call in calls:
                call.make(self._stateful, f"'{self.env_spec.id}'")
        elif calls:
            raise EnvError(
                f"'{calls[0].name}' cannot be called or set: '{self.env_spec.id}' is pure "
                "functions on a device; use sampler.kind process or serial"
            )

    def collect(self) -> Rollout:
        """See `Sampler`."""
        self.start()
        with closing_on_error(self):
            return self._collected()

    def _collected(self) -> Rollout:
        assert self._here is not None
        self._watch.charge(Counter.HANDOFF_NS)
        index, num_envs = self._next_rollout, self.topology.num_envs
        generator = self._generator(
            self._plan.policy_generator(self.topology.first_env, index).initial_seed()
        )
        noise = self._rollouts.draw_noise(self.rollout_length, num_envs, generator)
        # None stands for the policy's parameters, whose addresses the graphs hold.
        found, self._here = self._rollouts.run(None, self._here, noise)
        self._next_rollout += 1
        held = self._held(found)
        if self._check_numbers:
            self._refuse_bad_numbers(held, index)
        fields = self._schema.fields
        rollout = Rollout(
            {name: fields[name].nested(value) for name, value in held.items()},
            episodes=_episodes(found),
            index=index,
            restarted=torch.full_like(found.terminated[0], index == 0 and self._resumed is None),
        )
        row = self._watch.row
        row[Counter.ENV_STEPS] += rollout.num_steps
        row[Counter.EPISODES] += len(rollout.episodes)
        row[Counter.HEARTBEAT_NS] = self._watch.charge(Counter.STEPPING_NS)
        return rollout

    @torch.no_grad()
    def _publish(self, state_dict: Mapping[str, Tensor], version: int | None = None) -> int:
        """Copy new parameters, from this device or another."""
        assert self._model is not None
        own = self._model.state_dict()
        check_parameters(state_dict, own)
        copy_parameters(state_dict, own)
        self._version = self._version + 1 if version is None else version
        return self._version

    def close(self) -> None:
        """See `Sampler`."""
        stateful, self._stateful, self._here = self._stateful, None, None
        super().close()
        if stateful is not None:
            stateful.close()

    def _steps_per_graph(self, name: str) -> int:
        on_gpu = self._device.type == "cuda"
        if self._stateful is None:
            return _STEPS_PER_GRAPH if on_gpu else 0
        found = torch.device(self._stateful.device)
        if found.type != self._device.type:
            raise EnvError(
                f"'{name}' is on {found}, but sampler.device is {self._device}; let its factory "
                "take the argument device"
            )
        if on_gpu:
            _LOGGER.info("'%s' keeps its own state: rollouts are not CUDA graphs", name)
        return 0

    def _generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self._device).manual_seed(seed)

    def _held(self, found: TensorRollout) -> dict[str, Any]:
        """Return the fields of a rollout: tensors, or mappings from leaf path to tensor."""
        schema = self._schema
        declared = {**schema.outputs, **self.env_spec.extras}
        extras = found.outputs | found.extras
        extras = {name: extras[name].to(spec.dtype) for name, spec in declared.items()}
        version = torch.full_like(found.terminated, self._version, dtype=torch.int64)
        held = found._asdict() | extras | {"policy_version": version}
        return {field.name: held[field.name] for field in schema if field.in_rollout}

    def _refuse_bad_numbers(self, held: Mapping[str, Any], index: int) -> None:
        # Sums are one number to copy; finite ones may overflow.
        sums = [tensor.sum() for _, _, tensor in self._schema.numbers(held)]
        good = torch.stack(sums).isfinite().all()
        valid = self._schema.has_valid(held)
        if good if valid is None else good & valid.all():
            return
        found = self._schema.first_bad_number(held)
        if found is not None:
            raise self._bad_number(found, index)


def _built(plan: SamplingPlan, device: torch.device) -> nn.Module | None:
    if plan.build_model is None:
        return None
    # A copy, as a user's function may return the learner's model.
    model: Any = copy.deepcopy(plan.build_model())
    if plan.engine in ("bfloat16", bfloat16):
        model = rounded_to_bfloat16(model, device) or model
    return model.to(device).requires_grad_(False).eval()  # type: ignore[no-any-return]


def _episodes(found: TensorRollout) -> Episodes:
    """Return the completed episodes, on the host, in order of their end."""
    step, slot = (found.terminated | found.truncated).nonzero(as_tuple=True)
    return Episodes(
        returns=found.episode_return[step, slot].double().cpu().numpy(),
        lengths=found.episode_length[step, slot].long().cpu().numpy(),
        end_step=step.cpu().numpy(),
        slot=slot.cpu().numpy(),
    )
