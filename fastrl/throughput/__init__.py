"""How many environment steps per second are sampled, and how many the machine would allow."""

from fastrl.throughput.limits import Limit, LimitProbe
from fastrl.throughput.measure import Measurement, Protocol, measure
from fastrl.throughput.report import Report
from fastrl.throughput.run import run_throughput

__all__ = [
    "Limit",
    "LimitProbe",
    "Measurement",
    "Protocol",
    "Report",
    "measure",
    "run_throughput",
]
