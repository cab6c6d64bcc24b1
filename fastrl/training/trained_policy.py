"""A trained policy as a function from observations to actions, without its environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastrl.arguments import brief, instance, whole
from fastrl.envs.action_masks import PLAIN, flat_mask
from fastrl.envs.actions import ActionBounds, ActionConverter
from fastrl.envs.rows import ObservationWriter
from fastrl.errors import ConfigError, EnvError, FastrlError
from fastrl.models.policy import Leaves, PolicyModel, initial_state, state_size
from fastrl.spaces import flatten, leaves, unflatten
from fastrl.spec import EnvSpec, PolicyStep, check_state, only_given

_MISFITS = (TypeError, ValueError, KeyError, IndexError)


@torch.inference_mode()
def choose(
    model: PolicyModel,
    observation: Leaves,
    generator: torch.Generator | None,
    state: Tensor | None = None,
    mask: Tensor | None = None,
) -> PolicyStep:
    """Return one action for each observation, as the policy outputs it.

    Args:
        model: The policy.
        observation: Leaves ``[n, *shape]`` by path, on the device of the policy.
        generator: Source of the noise of sampled actions; None for the most probable actions.
        state: ``[n, size]``: state of a policy with a memory.
        mask: ``[n, choices] bool``: valid actions; None for all.

    Returns:
        Actions ``[n, *shape]`` by path, see `fastrl.spaces.action_specs`, and the next state.
    """
    given = only_given(state=state, mask=mask)
    if generator is None:
        step = model.mode(observation, **given)
    else:
        num_rows = len(next(iter(observation.values())))
        step = model.act(observation, model.draw_noise((num_rows,), generator), **given)
    if not isinstance(step, PolicyStep):
        method = f"{type(model).__name__}.{'mode' if generator is None else 'act'}"
        raise FastrlError(f"{method} must return PolicyStep, but returned a {type(step).__name__}")
    if state is not None:
        check_state(model, step.state, *state.shape)
    return step


class TrainedPolicy:
    """Maps observations, as the environment returns them, to actions, as it accepts them.

    This includes scaling and normalising observations, and clipping, squashing and offsetting
    actions.

    Attributes:
        model: The network, on the CPU.
        env_spec: The spaces.
        action_bounds: ``clip`` or ``squash`` for bounded ``Box`` actions; see `ActionConverter`.

    Args:
        model: The network, on the CPU and in evaluation mode.
        env_spec: The spaces of the network.
        action_bounds: As in the run.
        seed: Seed of sampled actions; None for a random one.
    """

    def __init__(
        self,
        model: PolicyModel,
        env_spec: EnvSpec,
        action_bounds: ActionBounds = "clip",
        seed: int | None = None,
    ) -> None:
        instance("model", model, nn.Module, "build_model returns one")
        instance("env_spec", env_spec, EnvSpec)
        self.model, self.env_spec, self.action_bounds = model, env_spec, action_bounds
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(whole("seed", seed, 0))
        self._state_size = state_size(model)
        self._observed = leaves(env_spec.observation_space)
        self._writer = ObservationWriter(env_spec.observation_space)
        self._converter = ActionConverter(env_spec.action_space, action_bounds)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle for another process, with the random stream of sampled actions."""
        known = self.model, self.env_spec, self.action_bounds, self._generator.get_state()
        return _restored, known

    def act(
        self,
        observation: Any,
        state: Any = None,
        *,
        mask: Any = None,
        deterministic: bool = True,
    ) -> tuple[Any, Any]:
        """Return an action and the policy's state, as `predict` of Stable-Baselines3 does.

        Args:
            observation: Observation of one environment, or of n with arrays ``[n, *shape]``; arrays
                of NumPy or tensors of torch, in the dicts and tuples of the space.
            state: State of the last call for these environments; None if their episodes
                begin. For one of n environments, a row of `initial_state`. Always None for a
                policy without a memory.
            mask: Valid actions, if the environment has masks that ``observation``
                does not contain under ``action_mask``: an array ``[choices]``, or ``[n, choices]``,
                of 0 and 1, or nested like the action space; see `fastrl.EnvSpec.choices`.
            deterministic: Whether to take the most probable action rather than a sample.

        Returns:
            The action of one environment, or actions ``[n, *shape]``, in the dicts and tuples of
            the space, as tensors on the same device if the observation has tensors; and the
            state for the next call, likewise: ``[S]`` or ``[n, S]`` float32, None without a memory.

        Raises:
            ConfigError: The state has another shape, is not finite or not taken; or a mask is
                missing, or not taken.
            EnvError: The observation is not of the space or not finite, or no action is valid.
        """
        values = self._values(self._with_mask(observation, mask))
        device = next((value.device for value in values if isinstance(value, Tensor)), None)
        rows, is_single = self._rows(values)
        observed, valid = self.env_spec.split_mask(
            dict(zip(self._observed, map(torch.from_numpy, rows), strict=True))
        )
        if valid is not None and not self.env_spec.has_valid(valid).all():
            raise EnvError("the mask allows no action")
        before = self._state(state, len(rows[0]), is_single)
        generator = None if deterministic else self._generator
        chosen = choose(self.model, observed, generator, before, valid)
        arrays = tuple(chosen.action[path].numpy() for path in self.env_spec.action)
        convert = self._converter
        action = convert.split(arrays)[0] if is_single else convert.batch(arrays)
        after: Any = None
        if before is not None and chosen.state is not None:
            after = (chosen.state[0] if is_single else chosen.state).numpy().copy()
        if device is not None:
            action = self._on(device, action)
            after = None if after is None else torch.from_numpy(after).to(device)
        return action, after

    def initial_state(self, n: int) -> NDArray[np.float32] | None:
        """Return the states ``[n, S] float32`` in which episodes begin; None without a memory."""
        whole("n", n)
        return self._initial_state(n).numpy().copy() if self._state_size else None

    @torch.inference_mode()
    def _initial_state(self, n: int) -> Tensor:
        return initial_state(self.model, n)

    def _state(self, state: Any, n: int, is_single: bool) -> Tensor | None:
        """Return the state ``[n, S]`` as the policy takes it; None without a memory."""
        size = self._state_size
        if not size:
            if state is not None:
                raise ConfigError("state must be None: the policy takes no state")
            return None
        if state is None:
            return self._initial_state(n)
        expected = (size,) if is_single else (n, size)
        given = state.detach().cpu().numpy() if isinstance(state, Tensor) else state
        try:
            array = np.array(given, np.float32)
        except _MISFITS as error:
            raise ConfigError(f"the state is not an array of numbers: {error}") from None
        if array.shape != expected:
            raise ConfigError(f"the state has the shape {array.shape}; expected {expected}")
        if not np.isfinite(array).all():
            raise ConfigError(f"the state has a number that is not finite: {brief(array)}")
        return torch.from_numpy(array).reshape(n, size)

    def _with_mask(self, observation: Any, mask: Any) -> Any:
        """Return the observation with its mask, which may be in it or passed separately.

        Raises:
            ConfigError: The mask is missing, or the environment has none.
            EnvError: The mask does not match the actions.
        """
        spec = self.env_spec
        if spec.action_mask is None:
            if mask is not None:
                raise ConfigError("mask must be None: the policy takes no mask")
            return observation
        is_dict = isinstance(observation, Mapping)
        if mask is None:
            if not is_dict or spec.action_mask not in observation:
                raise ConfigError(
                    f"'{spec.id}' has masks of valid actions: pass mask=…, {sum(spec.choices)} "
                    f"numbers, or an observation with the key '{spec.action_mask}'"
                )
            mask = observation[spec.action_mask]
        if isinstance(mask, Tensor):
            mask = mask.detach().cpu().numpy()
        flat = flat_mask(spec.action_space, mask)
        return {**(observation if is_dict else {PLAIN: observation}), spec.action_mask: flat}

    def _values(self, observation: Any) -> list[Any]:
        space = self.env_spec.observation_space
        try:
            return list(flatten(space, observation))
        except _MISFITS:
            kind = type(observation).__name__
            raise EnvError(f"the observation, a {kind}, is not of its space {space}") from None

    def _rows(self, values: Sequence[Any]) -> tuple[list[NDArray[Any]], bool]:
        """Return copies of leaves as ``[n, *shape]`` in stored dtypes, and whether n was absent."""
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
            if dtype.kind == "f" and not np.isfinite(rows[-1]).all():
                raise EnvError(
                    f"the observation{_where(path)} has a number that is not finite: "
                    f"{brief(fitting if leading else fitting[0])}"
                )
        return rows, is_single

    def _on(self, device: torch.device, action: Any) -> Any:
        space = self.env_spec.action_space
        arrays = zip(self.env_spec.action, flatten(space, action), strict=True)
        tensors = {path: torch.as_tensor(array, device=device) for path, array in arrays}
        return unflatten(space, tensors)


def _restored(
    model: PolicyModel, env_spec: EnvSpec, action_bounds: ActionBounds, stream: Tensor
) -> TrainedPolicy:
    policy = TrainedPolicy(model, env_spec, action_bounds)
    policy._generator.set_state(stream)
    return policy


def _array(value: Any, path: str) -> NDArray[Any]:
    try:
        return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    except _MISFITS as error:
        raise EnvError(f"the observation{_where(path)} is not an array: {error}") from None


def _where(path: str) -> str:
    return f" '{path}'" if path else ""
