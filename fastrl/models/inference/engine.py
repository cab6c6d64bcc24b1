"""What runs a policy for the workers: tensors of the shared table in, tensors of it out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastrl.spaces import TensorSpec
from fastrl.spec import LOG_PROB_AND_VALUE


@dataclass(frozen=True)
class PolicyOutput:
    """Views of the shared table that an engine writes into.

    Attributes:
        action: Per leaf ``[n, *shape]`` in the dtypes of `fastrl.spaces.action_specs`.
        outputs: What the policy declares (see `fastrl.spec.outputs_of`), by name ``[n, *shape]``.
    """

    action: dict[str, Tensor]
    outputs: dict[str, Tensor]

    @classmethod
    def zeros(
        cls,
        num_rows: int,
        action: Mapping[str, TensorSpec],
        outputs: Mapping[str, TensorSpec] = LOG_PROB_AND_VALUE,
    ) -> PolicyOutput:
        """Return new tensors for n rows of an action space, see `EnvSpec.action`."""
        made = (
            {name: torch.zeros(num_rows, *spec.shape, dtype=spec.dtype) for name, spec in x.items()}
            for x in (action, outputs)
        )
        return cls(*made)


class InferenceEngine(ABC):
    """Computes a policy for batches of n rows that lie in CPU tensors, views of any strides.

    An engine has its own copy of the parameters. `bind` prepares everything that depends on the
    tensors alone, since workers compute the same views again in every rollout.

    Attributes:
        name: For reports; by default that of the class.
    """

    name = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:  # noqa: ANN401
        """Give a class without a name of its own that of the class."""
        super().__init_subclass__(**kwargs)
        cls.name = cls.__dict__.get("name", cls.__name__)

    @abstractmethod
    def load(self, state_dict: Mapping[str, Tensor]) -> None:
        """Copy parameters in; calls that are already bound use them from then on."""

    @abstractmethod
    def draw_noise(
        self, shape: tuple[int, ...], generator: torch.Generator | None = None
    ) -> Tensor:
        """Return noise ``[*shape, noise_size] float32`` on the CPU, as `bind` consumes it."""

    @abstractmethod
    def bind(
        self, observation: Mapping[str, Tensor], noise: Tensor, out: PolicyOutput
    ) -> Callable[[], None]:
        """Return a call that samples actions, and writes them and the policy's outputs.

        Args:
            observation: Per leaf ``[n, *shape]``, read by each call.
            noise: ``[n, noise_size] float32``, read by each call.
            out: Written by each call.

        Raises:
            ValueError: A tensor's shape, dtype or device is not the one expected.
        """

    @abstractmethod
    def bind_values(self, observation: Mapping[str, Tensor], out: Tensor) -> Callable[[], None]:
        """Return a call that writes the value of ``observation`` into ``out [n] float32``.

        Raises:
            ValueError: A tensor's shape, dtype or device is not the one expected.
        """

    def act(self, observation: Mapping[str, Tensor], noise: Tensor, out: PolicyOutput) -> None:
        """Bind and call once."""
        self.bind(observation, noise, out)()

    def values(self, observation: Mapping[str, Tensor], out: Tensor) -> None:
        """Bind and call once."""
        self.bind_values(observation, out)()
