"""Versioned parameters that every policy runner reads and only the learner writes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastrl.arguments import brief
from fastrl.errors import FastrlError
from fastrl.shared.memory import Shared, SharedArrays, align, array_tensor


def check_tensors(given: Mapping[str, Tensor]) -> None:
    """Reject values that are not state dicts.

    Raises:
        FastrlError: ``given`` is not a mapping, or a value in it is not a tensor.
    """
    if not isinstance(given, Mapping):
        raise FastrlError(f"parameters are a state dict of tensors by name, got {brief(given)}")
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise FastrlError(f"parameter {brief(name)} must be a tensor, got {brief(tensor)}")


def check_parameters(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Reject parameters of another model.

    Raises:
        FastrlError: Names or shapes differ from those of ``own``.
    """
    check_tensors(given)
    if given.keys() != own.keys():
        changed = sorted(map(str, given.keys() ^ own.keys()))
        raise FastrlError(f"published parameters differ from the model's: {changed}")
    for name, tensor in own.items():
        if tensor.shape != given[name].shape:
            raise FastrlError(
                f"parameter '{name}' has shape {tuple(given[name].shape)}, "
                f"expected {tuple(tensor.shape)}"
            )


def copy_parameters(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Copy the values of ``given``, see `check_parameters`, into the tensors of ``own``."""
    for name, tensor in own.items():
        tensor.copy_(given[name].detach())


class WeightLayout:
    """The places of a state dict's tensors within one vector of bytes.

    Attributes:
        num_bytes: Size of the vector in bytes.

    Args:
        state_dict: Defines names, shapes and dtypes.
    """

    def __init__(self, state_dict: Mapping[str, Tensor]) -> None:
        check_tensors(state_dict)
        self._specs: dict[str, tuple[torch.dtype, tuple[int, ...], int]] = {}
        self.num_bytes = 0
        for name, tensor in state_dict.items():
            self._specs[name] = (tensor.dtype, tuple(tensor.shape), self.num_bytes)
            self.num_bytes = align(self.num_bytes + tensor.numel() * tensor.element_size())

    def views(self, memory: NDArray[np.uint8]) -> dict[str, Tensor]:
        """Return the tensors by name as views of ``memory [num_bytes]``."""
        return {name: array_tensor(memory, *spec) for name, spec in self._specs.items()}


class WeightStore(Shared):
    """A state dict in shared memory, in two copies: one being read, one being written.

    A reader copies the newest version and reads again if the learner has begun to overwrite it
    meanwhile, which happens with the second publication after that version.

    Args:
        state_dict: Fixes names, shapes and dtypes; its values are not yet published.
    """

    def __init__(self, state_dict: Mapping[str, Tensor]) -> None:
        self._layout = WeightLayout(state_dict)
        versions, copies = ((2,), np.int64), ((2, self._layout.num_bytes), np.uint8)
        self._memory = SharedArrays([versions, copies])
        self._share()

    @property
    def version(self) -> int:
        """Version of the latest publication; 0 before the first."""
        return int(self._version[0])

    def publish(self, state_dict: Mapping[str, Tensor], version: int | None = None) -> int:
        """Make new parameters visible to all readers; return their version.

        Args:
            state_dict: The parameters.
            version: Larger than the latest; by default the next one.

        Raises:
            FastrlError: Names or shapes differ from those the store was made for.
        """
        if version is None:
            version = self.version + 1
        target = self._copies[version % 2]
        check_parameters(state_dict, target)
        self._begun[0] = version
        copy_parameters(state_dict, target)
        self._version[0] = version
        return version

    def read(self, newer_than: int = 0) -> tuple[int, dict[str, Tensor]] | None:
        """Return (version, copied state dict), or None where there is nothing newer."""
        while (version := self.version) > newer_than:
            copied = {name: tensor.clone() for name, tensor in self._copies[version % 2].items()}
            if int(self._begun[0]) - version < 2:
                return version, copied
        return None

    def _attach(self) -> None:
        versions, copies = self._memory.arrays
        self._version, self._begun = versions[:1], versions[1:]
        self._copies = [self._layout.views(copy) for copy in copies]
