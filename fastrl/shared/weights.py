"""Versioned parameters that every policy runner reads and only the learner writes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastrl.arguments import brief
from fastrl.errors import FastrlError
from fastrl.shared.memory import CACHE_LINE, SharedBlock, align


def check_tensors(given: Mapping[str, Tensor]) -> None:
    """Refuse what is no state dict.

    Raises:
        FastrlError: It is no mapping, or holds something that is no tensor.
    """
    if not isinstance(given, Mapping):
        raise FastrlError(f"parameters are a state dict of tensors by name, got {brief(given)}")
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise FastrlError(f"parameter {brief(name)} must be a tensor, got {brief(tensor)}")


def check_parameters(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse parameters of another model.

    Raises:
        FastrlError: Names or shapes differ from the model's own.
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


class WeightStore:
    """A state dict in shared memory, in two copies: one being read, one being written.

    A reader copies the newest version out and then looks whether the learner has begun to write
    over it, which it does with the second publication from there; if so, it reads again.

    Args:
        state_dict: Fixes names, shapes and dtypes; its values are not yet published.
    """

    def __init__(self, state_dict: Mapping[str, Tensor]) -> None:
        check_tensors(state_dict)
        self._specs = {
            name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state_dict.items()
        }
        self._offsets, self._copy_bytes = {}, 0
        for name, tensor in state_dict.items():
            self._offsets[name] = self._copy_bytes
            self._copy_bytes = align(self._copy_bytes + tensor.numel() * tensor.element_size())
        self._block = SharedBlock(CACHE_LINE + 2 * self._copy_bytes)
        self._attach()

    @property
    def version(self) -> int:
        """Number of publications so far; 0 before the first."""
        return int(self._version[0])

    def publish(self, state_dict: Mapping[str, Tensor]) -> int:
        """Make new parameters visible to all readers; return their version.

        Raises:
            FastrlError: Names or shapes differ from those the store was made for.
        """
        version = self.version + 1
        target = self._copies[version % 2]
        check_parameters(state_dict, target)
        self._begun[0] = version
        for name, tensor in target.items():
            tensor.copy_(state_dict[name].detach())
        self._version[0] = version
        return version

    def read(self, newer_than: int = 0) -> tuple[int, dict[str, Tensor]] | None:
        """Return (version, copied state dict), or None where there is nothing newer."""
        while (version := self.version) > newer_than:
            copied = {name: tensor.clone() for name, tensor in self._copies[version % 2].items()}
            if int(self._begun[0]) - version < 2:
                return version, copied
        return None

    def close(self) -> None:
        """Drop the memory's descriptor."""
        self._block.close()

    def __getstate__(self) -> dict[str, object]:
        """Travel without the views."""
        return {k: v for k, v in vars(self).items() if k not in ("_copies", "_version", "_begun")}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Attach in a worker."""
        vars(self).update(state)
        self._attach()

    def _attach(self) -> None:
        self._version = self._block.tensor(torch.int64, (1,))
        self._begun = self._block.tensor(torch.int64, (1,), offset=8)
        self._copies = [
            {
                name: self._block.tensor(
                    dtype, shape, CACHE_LINE + copy * self._copy_bytes + self._offsets[name]
                )
                for name, (dtype, shape) in self._specs.items()
            }
            for copy in range(2)
        ]
