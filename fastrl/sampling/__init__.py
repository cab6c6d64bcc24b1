"""Samplers, which collect rollouts in this process or in worker processes; see `build`."""

from fastrl.sampling.build import env_factory, initial_weights, make_plan, make_sampler
from fastrl.sampling.device_sampler import DeviceSampler
from fastrl.sampling.process_sampler import ProcessSampler
from fastrl.sampling.sampler import Sampler, SamplerStats
from fastrl.sampling.serial_sampler import SerialSampler
from fastrl.sampling.uneven_sampler import UnevenSampler
from fastrl.sampling.worker_pool import Fault, FaultPolicy, Suspect
from fastrl.workers.watchdog import Deadlines

__all__ = [
    "Deadlines",
    "DeviceSampler",
    "Fault",
    "FaultPolicy",
    "ProcessSampler",
    "Sampler",
    "SamplerStats",
    "SerialSampler",
    "Suspect",
    "UnevenSampler",
    "env_factory",
    "initial_weights",
    "make_plan",
    "make_sampler",
]
