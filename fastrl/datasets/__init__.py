"""Datasets of demonstrations in Minari's format: writing, reading as tensors, and experts."""

from fastrl.datasets.demonstrations import (
    HELD_OUT,
    Demonstrations,
    check_dataset,
    load_dataset,
    load_demonstrations,
    named_dataset,
)
from fastrl.datasets.files import DatasetWriter, Episode, check_new_dataset, local_dataset
from fastrl.datasets.streams import PADDING

__all__ = [
    "HELD_OUT",
    "PADDING",
    "DatasetWriter",
    "Demonstrations",
    "Episode",
    "check_dataset",
    "check_new_dataset",
    "load_dataset",
    "load_demonstrations",
    "local_dataset",
    "named_dataset",
]
