"""The interface of inference engines, which read and write tensors of the shared table."""

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
        outputs: Those of the policy (see `fastrl.spec.outputs_of`), by name ``[n, *shape]``.
        state: ``[n, S]`` float32: the next state of a policy with a memory, else None; never the
            memory of the state before.
    """

    action: dict[str, Tensor]
    outputs: dict[str, Tensor]
    state: Tensor | None = None

    @classmethod
    def zeros(
        cls,
        num_rows: int,
        action: Mapping[str, TensorSpec],
        outputs: Mapping[str, TensorSpec] = LOG_PROB_AND_VALUE,
        state_size: int = 0,
    ) -> PolicyOutput:
        """Return new tensors for n rows of an action space, see `EnvSpec.action`."""
        actions, others = (
            {name: torch.zeros(num_rows, *spec.shape, dtype=spec.dtype) for name, spec in x.items()}
            for x in (action, outputs)
        )
        state = torch.zeros(num_rows, state_size) if state_size else None
        return cls(actions, others, state)


class InferenceEngine(ABC):
    """Computes a policy for batches of n rows in CPU tensors, which may be views of any strides.

    An engine has a copy of the parameters. `bind` prepares everything that depends only on the
    tensors, since workers use the same views in every rollout. ``state`` is passed only for a
    policy with a memory: an engine that runs no such policies needs neither the parameter nor
    `initial_state`.

    Attributes:
        name: For reports; by default that of the class.
    """

    name = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Name a class without ``name`` after itself."""
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

    def initial_state(self, n: int) -> Tensor:
        """Return the states ``[n, S] float32`` in which episodes begin, on the CPU."""
        return torch.zeros(n, 0)

    @abstractmethod
    def bind(
        self,
        observation: Mapping[str, Tensor],
        noise: Tensor,
        out: PolicyOutput,
        state: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Callable[[], None]:
        """Return a call that samples actions, and writes them and the policy's outputs.

        Args:
            observation: Per leaf ``[n, *shape]``, read by each call.
            noise: ``[n, noise_size] float32``, read by each call.
            out: Written by each call.
            state: ``[n, S] float32``, read by each call.
            mask: ``[n, choices] bool``: which actions are valid, read by each call; passed only
                where the environment has masks.

        Raises:
            ValueError: A tensor's shape, dtype or device is not the one expected.
        """

    @abstractmethod
    def bind_values(
        self, observation: Mapping[str, Tensor], out: Tensor, state: Tensor | None = None
    ) -> Callable[[], None]:
        """Return a call that writes the value of ``observation`` into ``out [n] float32``.

        Raises:
            ValueError: A tensor's shape, dtype or device is not the one expected.
        """

    def act(
        self, observation: Mapping[str, Tensor], noise: Tensor, out: PolicyOutput, **given: Any
    ) -> None:
        """Bind and call once; ``given`` are further arguments of `bind`."""
        self.bind(observation, noise, out, **given)()

    def values(self, observation: Mapping[str, Tensor], out: Tensor, **given: Tensor) -> None:
        """Bind and call once."""
        self.bind_values(observation, out, **given)()
