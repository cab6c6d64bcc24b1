"""Memories of policies: the base class `Core`, and GRU and LSTM; `recurrent_loops` runs them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastrl.config import ModelConfig
from fastrl.models.networks import require_memory


class Core(nn.Module):
    """Maps the features of a step and a state to new features and the next state.

    A subclass sets the attributes and defines `step`. It may override `initial_state`, and
    `sequence`, which computes the same for many steps.

    Attributes:
        state_size: S, numbers in the state of one environment.
        num_features: Width of the output.
    """

    state_size: int
    num_features: int

    def initial_state(self, n: int) -> Tensor:
        """Return the states ``[n, S] float32`` in which episodes begin: by default zeros."""
        parameter = next(self.parameters(), None)
        return torch.zeros(n, self.state_size, device=getattr(parameter, "device", None))

    def step(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return new features ``[n, num_features]`` and the next state ``[n, S]``.

        Args:
            features: ``[n, F]``.
            state: ``[n, S]``.
        """
        raise NotImplementedError(f"{type(self).__name__} must define step")

    def sequence(
        self, features: Tensor, state: Tensor, keep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return new features ``[L, b, num_features]`` and the state ``[b, S]`` after all steps.

        Args:
            features: ``[L, b, F]``: L steps of b environments.
            state: ``[b, S]`` before the first step.
            keep: ``[L, b] bool``: False where an episode begins, whose state is the initial one;
                None if none begins.
        """
        outputs = []
        for time, step_features in enumerate(features):
            if keep is not None:
                state = torch.where(keep[time, :, None], state, self.initial_state(len(state)))
            output, state = self.step(step_features, state)
            outputs.append(output)
        return torch.stack(outputs), state


class RecurrentCore(Core):
    """Layers of GRU or LSTM, as PyTorch defines them.

    GRU: Cho et al. 2014 (https://arxiv.org/abs/1406.1078) in the variant of cuDNN, whose reset gate
    comes after the matrix product. LSTM: Hochreiter and Schmidhuber 1997
    (https://doi.org/10.1162/neco.1997.9.8.1735) with a forget gate and without peepholes.

    A state contains the outputs of all layers, followed by their cells for LSTM.

    Attributes:
        layers: The parameters. With ``orthogonal_init`` the matrices of all gates are orthogonal
            and biases zero.

    Args:
        inputs: F, the width of the input.
        config: ``recurrent``, its size and number of layers, and the initialisation.

    Raises:
        ConfigError: A layer does not fit into memory.
    """

    def __init__(self, inputs: int, config: ModelConfig) -> None:
        super().__init__()
        assert config.recurrent is not None
        size, depth = config.recurrent_size, config.recurrent_layers
        kind, self._cell, self._parts = _KINDS[config.recurrent]
        widest = max(inputs, size)
        require_memory(4 * depth * size * (widest + size), "model.recurrent_size")
        self.layers: nn.RNNBase = kind(inputs, size, depth)
        self.state_size, self.num_features = self._parts * depth * size, size
        if config.orthogonal_init:
            _orthogonal_gates(self.layers)

    def step(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs of the last layer ``[n, num_features]`` and the next state."""
        states = self._split(state)
        after = []
        for weights, before in zip(self.layers.all_weights, states.unbind(1), strict=True):
            after.append(self._cell(features, before, *weights))
            features = after[-1][0]
        return features, self._joined(torch.stack(after, 1))

    def sequence(
        self, features: Tensor, state: Tensor, keep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the result of L steps; see `Core.sequence`.

        On the CPU it runs compiled loops. On a GPU it runs cuDNN if no episode begins within the
        sequences and torch does not compile it, else one step after the other.
        """
        if torch.compiler.is_compiling():
            return super().sequence(features, state, keep)
        if features.is_cuda and (keep is None or bool(keep[1:].all())):
            return self._by_cudnn(features, state, keep)
        if features.device.type != "cpu" or state.dtype != torch.float32:
            return super().sequence(features, state, keep)
        # Imported here, as importing numba takes 0.2 s.
        from fastrl.models import recurrent_loops

        after = []
        for weights, before in zip(
            self.layers.all_weights, self._split(state).unbind(1), strict=True
        ):
            before = before.transpose(0, 1).flatten(1)
            features, last = recurrent_loops.sequence(self._parts, features, before, keep, weights)
            after.append(last.unflatten(1, (self._parts, -1)).transpose(0, 1))
        return features, self._joined(torch.stack(after, 1))

    def _by_cudnn(
        self, features: Tensor, state: Tensor, keep: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if keep is not None:
            state = torch.where(keep[0, :, None], state, self.initial_state(len(state)))
        parts = self._split(state).contiguous()
        # Under autocast torch would run cuDNN in float16, in which small gradients become 0.
        with warnings.catch_warnings(), torch.autocast(features.device.type, enabled=False):
            # Parameters are views of the optimiser's vector, which cuDNN copies in each call.
            warnings.simplefilter("ignore")
            features = features.float()
            features, after = self.layers(features, parts[0] if self._parts == 1 else tuple(parts))
        after = after if self._parts == 1 else torch.stack(after)
        return features, self._joined(after.view_as(parts))

    def _split(self, state: Tensor) -> Tensor:
        """Return a state ``[b, S]`` as ``[parts, layers, b, num_features]``."""
        # Without a fixed batch size, as exported files take any.
        states: Tensor = state.unflatten(1, (self._parts, self.layers.num_layers, -1))
        return states.permute(1, 2, 0, 3)

    @staticmethod
    def _joined(states: Tensor) -> Tensor:
        """Undo `_split`."""
        return states.permute(2, 0, 1, 3).flatten(1)


def _gru_cell(features: Tensor, before: Tensor, *weights: Tensor) -> Tensor:
    return torch.gru_cell(features, before[0], *weights)[None]


def _lstm_cell(features: Tensor, before: Tensor, *weights: Tensor) -> Tensor:
    return torch.stack(torch.lstm_cell(features, before.unbind(), *weights))


_Cell = Callable[..., Tensor]
"""Returns a layer's next state, of features ``[n, F]``, its state ``[parts, n, H]`` and weights."""
_KINDS: Mapping[str, tuple[Any, _Cell, int]] = {
    "gru": (nn.GRU, _gru_cell, 1),
    "lstm": (nn.LSTM, _lstm_cell, 2),
}


def _orthogonal_gates(layers: nn.RNNBase) -> None:
    for name, parameter in layers.named_parameters():
        if name.startswith("bias"):
            nn.init.zeros_(parameter)
            continue
        for gate in parameter.detach().split(layers.hidden_size):
            nn.init.orthogonal_(gate)
