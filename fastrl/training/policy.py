"""A policy without its environments: from their observations to actions for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastrl.envs.actions import ActionBounds, ActionConverter
from fastrl.envs.rows import ObservationWriter
from fastrl.errors import ConfigError, EnvError
from fastrl.models.policy import Leaves, PolicyModel
from fastrl.spaces import flatten, leaves, unflatten
from fastrl.spec import EnvSpec

_MISFITS = (TypeError, ValueError, KeyError, IndexError)


@torch.inference_mode()
def choose(
    model: PolicyModel, observation: Leaves, generator: torch.Generator | None
) -> dict[str, Tensor]:
    """Return one action for each observation, as the policy puts it out.

    Args:
        model: The policy.
        observation: Leaves ``[n, *shape]`` by path, on the device of the policy.
        generator: Of the noise of sampled actions; None for the most probable actions.

    Returns:
        Leaves ``[n, *shape]`` by path; see `fastrl.spaces.action_specs`.
    """
    if generator is None:
        return model.mode(observation)
    num_rows = len(next(iter(observation.values())))
    return model.act(observation, model.draw_noise((num_rows,), generator))[0]


class TrainedPolicy:
    """Acts on observations as the environment returns them, with actions as it accepts them.

    Scaling and normalising of observations, and clipping, squashing and ``start`` of actions are
    included.

    Attributes:
        model: The network, on the CPU.
        env_spec: The spaces.
        action_bounds: How actions are kept inside a bounded ``Box``; see `ActionConverter`.

    Args:
        model: The network, on the CPU and in evaluation mode.
        env_spec: What it was built for.
        action_bounds: As the run had them.
        seed: Of sampled actions; None for another one each time.
    """

    def __init__(
        self,
        model: PolicyModel,
        env_spec: EnvSpec,
        action_bounds: ActionBounds = "clip",
        seed: int | None = None,
    ) -> None:
        self.model, self.env_spec, self.action_bounds = model, env_spec, action_bounds
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)
        self._observed = leaves(env_spec.observation_space)
        self._writer = ObservationWriter(env_spec.observation_space)
        self._converter = ActionConverter(env_spec.action_space, action_bounds)

    def act(
        self,
        observation: Any,  # noqa: ANN401
        state: Any = None,  # noqa: ANN401
        *,
        mask: Any = None,  # noqa: ANN401
        deterministic: bool = True,
    ) -> tuple[Any, Any]:
        """Return an action and the policy's state, as `predict` of Stable-Baselines3 does.

        Args:
            observation: Of one environment, or of n of them with arrays ``[n, *shape]``; arrays
                of NumPy or tensors of torch, in the dicts and tuples of the space.
            state: What the last call returned; None, as this policy keeps no state.
            mask: Which actions are allowed; None, as this policy takes no mask.
            deterministic: Whether to take the most probable action rather than a sample.

        Returns:
            The action of one environment, or actions ``[n, *shape]``, in the dicts and tuples of
            the space; tensors on the same device where the observation has tensors. And the
            state for the next call, None.

        Raises:
            ConfigError: There is a state or a mask.
            EnvError: The observation is not of the space.
        """
        for name, given in (("state", state), ("mask", mask)):
            if given is not None:
                raise ConfigError(f"{name} must be None: the policy takes no {name}")
        values = self._values(observation)
        device = next((value.device for value in values if isinstance(value, Tensor)), None)
        rows, is_single = self._rows(values)
        observed = dict(zip(self._observed, map(torch.from_numpy, rows), strict=True))
        chosen = choose(self.model, observed, None if deterministic else self._generator)
        arrays = tuple(chosen[path].numpy() for path in self.env_spec.action)
        convert = self._converter
        action = convert.split(arrays)[0] if is_single else convert.batch(arrays)
        return (action if device is None else self._on(device, action)), None

    def _values(self, observation: Any) -> list[Any]:  # noqa: ANN401
        space = self.env_spec.observation_space
        try:
            return list(flatten(space, observation))
        except _MISFITS:
            kind = type(observation).__name__
            raise EnvError(f"the observation, a {kind}, is not of its space {space}") from None

    def _rows(self, values: Sequence[Any]) -> tuple[list[NDArray[Any]], bool]:
        """Return copies ``[n, *shape]`` of leaves as they are stored, and whether it is one row."""
        found = [_array(value, path) for value, path in zip(values, self._observed, strict=True)]
        specs = self.env_spec.observation
        is_single = found[0].ndim == len(specs[next(iter(specs))].shape)
        leading = () if is_single else found[0].shape[:1]
        rows = []
        for number, (array, (path, spec)) in enumerate(zip(found, specs.items(), strict=True)):
            if array.shape != (*leading, *spec.shape) or 0 in leading:
                batch = str(("n", *spec.shape)).replace("'", "")
                either = f"{spec.shape}, or {batch} for n environments"
                expected = f"{(*leading, *spec.shape)}" if number else either
                raise EnvError(
                    f"the observation{_where(path)} has the shape {array.shape}; "
                    f"expected {expected}"
                )
            batched = array[None] if is_single else array
            dtype = spec.numpy_dtype
            fitting = self._writer.fitting(number, batched, dtype, range(len(batched)))
            rows.append(np.array(fitting, dtype, order="C"))
        return rows, is_single

    def _on(self, device: torch.device, action: Any) -> Any:  # noqa: ANN401
        space = self.env_spec.action_space
        arrays = zip(self.env_spec.action, flatten(space, action), strict=True)
        tensors = {path: torch.as_tensor(array, device=device) for path, array in arrays}
        return unflatten(space, tensors)


def _array(value: Any, path: str) -> NDArray[Any]:  # noqa: ANN401
    try:
        return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    except _MISFITS as error:
        raise EnvError(f"the observation{_where(path)} is no array: {error}") from None


def _where(path: str) -> str:
    return f" '{path}'" if path else ""
