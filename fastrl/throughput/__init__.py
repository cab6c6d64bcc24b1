"""Measurements of environment steps per second, and of the machine's limit; see `benchmark`."""

from fastrl.throughput.benchmark import Column, Report, run_throughput
from fastrl.throughput.limits import Limit, LimitProbe
from fastrl.throughput.measure import Measurement, Protocol, Training, measure
from fastrl.throughput.scaling_plan import Network, ScalingPlan, Workload, plan_scaling
from fastrl.throughput.updates import UpdateProbe, UpdateTimes

__all__ = [
    "Column",
    "Limit",
    "LimitProbe",
    "Measurement",
    "Network",
    "Protocol",
    "Report",
    "ScalingPlan",
    "Training",
    "UpdateProbe",
    "UpdateTimes",
    "Workload",
    "measure",
    "plan_scaling",
    "run_throughput",
]
