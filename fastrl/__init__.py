"""fastrl samples experience at the speed the machine allows, and trains A2C and PPO on it.

- A training loop of one's own: `make_vec` builds environments behind gymnasium's vector interface.
- Whole rollouts, with the policy in the workers: `load_config`, then `make_sampler`.
- Whole runs in directories of their own: `train`, `resume`, `evaluate_run`, `record_run`.
- Their policies elsewhere: `load_policy`, `export_run`.
- What configurations may choose by name: `register`.
- How fast it is: `run_throughput`.
- Environments as pure tensor functions: `fastrl.envs.make_tensor`.

Names are imported when they are first used, so that ``import fastrl`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str

    import fastrl.config
    import fastrl.envs
    import fastrl.learning
    import fastrl.models
    import fastrl.sampling
    import fastrl.throughput
    import fastrl.training
    import fastrl.tuning
    import fastrl.vector  # noqa: F401
    from fastrl.config import Config as Config
    from fastrl.config import load_config as load_config
    from fastrl.config import save_config as save_config
    from fastrl.envs import BatchedEnv as BatchedEnv
    from fastrl.envs import EnvFactory as EnvFactory
    from fastrl.envs import StepViews as StepViews
    from fastrl.errors import ConfigError as ConfigError
    from fastrl.errors import EnvError as EnvError
    from fastrl.errors import FastrlError as FastrlError
    from fastrl.errors import SpaceError as SpaceError
    from fastrl.errors import WorkerError as WorkerError
    from fastrl.learning import Learner as Learner
    from fastrl.learning import build_learner as build_learner
    from fastrl.models import ActorCritic as ActorCritic
    from fastrl.models import PolicyModel as PolicyModel
    from fastrl.models import build_model as build_model
    from fastrl.registry import register as register
    from fastrl.sampling import DeviceSampler as DeviceSampler
    from fastrl.sampling import ProcessSampler as ProcessSampler
    from fastrl.sampling import Sampler as Sampler
    from fastrl.sampling import SerialSampler as SerialSampler
    from fastrl.sampling import make_plan as make_plan
    from fastrl.sampling import make_sampler as make_sampler
    from fastrl.shared.rollout_buffer import Episodes as Episodes
    from fastrl.shared.rollout_buffer import Rollout as Rollout
    from fastrl.spaces import TensorSpec as TensorSpec
    from fastrl.spec import EnvSpec as EnvSpec
    from fastrl.spec import PolicyStep as PolicyStep
    from fastrl.spec import Topology as Topology
    from fastrl.throughput import Protocol as Protocol
    from fastrl.throughput import Report as Report
    from fastrl.throughput import run_throughput as run_throughput
    from fastrl.training import Callback as Callback
    from fastrl.training import RunContext as RunContext
    from fastrl.training import TrainedPolicy as TrainedPolicy
    from fastrl.training import TrainedRun as TrainedRun
    from fastrl.training import Trainer as Trainer
    from fastrl.training import evaluate_run as evaluate_run
    from fastrl.training import export_run as export_run
    from fastrl.training import load_policy as load_policy
    from fastrl.training import record_run as record_run
    from fastrl.training import resume as resume
    from fastrl.training import train as train
    from fastrl.vector import FastVectorEnv as FastVectorEnv
    from fastrl.vector import make_vec as make_vec
    from fastrl.workers.plan import SamplingPlan as SamplingPlan

_MODULE_OF = {
    "ActorCritic": "fastrl.models",
    "BatchedEnv": "fastrl.envs",
    "Callback": "fastrl.training",
    "Config": "fastrl.config",
    "ConfigError": "fastrl.errors",
    "DeviceSampler": "fastrl.sampling",
    "EnvError": "fastrl.errors",
    "EnvFactory": "fastrl.envs",
    "EnvSpec": "fastrl.spec",
    "Episodes": "fastrl.shared.rollout_buffer",
    "FastVectorEnv": "fastrl.vector",
    "FastrlError": "fastrl.errors",
    "Learner": "fastrl.learning",
    "PolicyModel": "fastrl.models",
    "PolicyStep": "fastrl.spec",
    "ProcessSampler": "fastrl.sampling",
    "Protocol": "fastrl.throughput",
    "Report": "fastrl.throughput",
    "Rollout": "fastrl.shared.rollout_buffer",
    "RunContext": "fastrl.training",
    "Sampler": "fastrl.sampling",
    "SamplingPlan": "fastrl.workers.plan",
    "SerialSampler": "fastrl.sampling",
    "SpaceError": "fastrl.errors",
    "StepViews": "fastrl.envs",
    "TensorSpec": "fastrl.spaces",
    "Topology": "fastrl.spec",
    "TrainedPolicy": "fastrl.training",
    "TrainedRun": "fastrl.training",
    "Trainer": "fastrl.training",
    "WorkerError": "fastrl.errors",
    "build_learner": "fastrl.learning",
    "build_model": "fastrl.models",
    "evaluate_run": "fastrl.training",
    "export_run": "fastrl.training",
    "load_config": "fastrl.config",
    "load_policy": "fastrl.training",
    "make_plan": "fastrl.sampling",
    "make_sampler": "fastrl.sampling",
    "make_vec": "fastrl.vector",
    "record_run": "fastrl.training",
    "register": "fastrl.registry",
    "resume": "fastrl.training",
    "run_throughput": "fastrl.throughput",
    "save_config": "fastrl.config",
    "train": "fastrl.training",
}

_ROOMS = {
    "config",
    "envs",
    "learning",
    "models",
    "sampling",
    "throughput",
    "training",
    "tuning",
    "vector",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import a public name from its module on first use."""
    if name in _ROOMS:
        return importlib.import_module(f"fastrl.{name}")
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("fastrl")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'fastrl' has no attribute '{name}'")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
