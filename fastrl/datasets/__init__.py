"""Demonstrations: episodes in Minari's format, written and read as tensors."""

from fastrl.datasets.demonstrations import Demonstrations, load_demonstrations
from fastrl.datasets.files import DatasetWriter, Episode

__all__ = ["DatasetWriter", "Demonstrations", "Episode", "load_demonstrations"]
