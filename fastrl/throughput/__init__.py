"""How many environment steps per second are sampled, and how many the machine would allow."""

from fastrl.throughput.benchmark import Report, run_throughput
from fastrl.throughput.limits import Limit, LimitProbe
from fastrl.throughput.measure import Measurement, Protocol, measure
from fastrl.throughput.scaling_plan import Network, ScalingPlan, Workload, plan_scaling

__all__ = [
    "Limit",
    "LimitProbe",
    "Measurement",
    "Network",
    "Protocol",
    "Report",
    "ScalingPlan",
    "Workload",
    "measure",
    "plan_scaling",
    "run_throughput",
]
