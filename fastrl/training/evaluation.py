"""Evaluation: a policy plays whole episodes with fixed seeds; `evaluator` runs it in training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from fastrl.arguments import finite_number, function, instance, whole
from fastrl.closing import build_all, close_all, closed_after
from fastrl.envs.agreement import Claim, check_spaces
from fastrl.envs.batched_env import BatchedEnv, Rows, StepViews
from fastrl.errors import EnvError
from fastrl.global_streams import seeded_streams
from fastrl.learning.learner import policy_threads
from fastrl.models.policy import PolicyModel, initial_state, sampling_mode
from fastrl.spaces import TensorSpec
from fastrl.spec import EnvSpec
from fastrl.system import torch_threads
from fastrl.training.trained_policy import choose

_WIDTH = 16
"""Episodes played at once: the policy's step for all costs little more than for one."""
_MAX_EPISODE_STEPS = 200_000
"""Steps after which an endless episode is stopped."""
RETURN_MEAN, INFO = "return_mean", "info/"
"""``evaluation.metric`` is the mean return, or the mean of an episode info ``info/NAME``."""


@dataclass(frozen=True)
class EvaluationProtocol:
    """Episodes, seeds and limits of an evaluation.

    Attributes:
        episodes: Number of episodes.
        seed: Determines the seed of every episode and the randomness of actions.
        deterministic: Whether to take the most probable action rather than a sample.
        max_steps: Environment steps of all episodes together after which the evaluation ends.
        max_s: Seconds after which it ends; None for no limit.
        cuts_bad_numbers: If True, an observation or reward that is not finite, or a mask without
            a valid action, stops the episode; otherwise the evaluation fails.
    """

    episodes: int
    seed: int
    deterministic: bool = True
    max_steps: int | None = None
    max_s: float | None = None
    cuts_bad_numbers: bool = False

    def __post_init__(self) -> None:
        """Reject values that are out of range.

        Raises:
            ConfigError: A value is out of range; the error names it.
        """
        whole("episodes", self.episodes, at_most=1_000_000)
        whole("seed", self.seed, at_least=0, at_most=2**63 - 1)
        if self.max_steps is not None:
            whole("max_steps", self.max_steps, at_most=2**62)
        if self.max_s is not None:
            finite_number("max_s", self.max_s, above=0)

    def limit_reached(self, steps: int, elapsed_s: float) -> str:
        """Return a text with the limit that was reached; empty if none was."""
        if self.max_steps is not None and steps >= self.max_steps:
            return f"evaluation.max_steps ({self.max_steps:,})"
        if self.max_s is not None and elapsed_s >= self.max_s:
            return f"evaluation.max_s ({self.max_s:g})"
        return ""

    def episode_seeds(self) -> list[int]:
        """Return the seed of each episode; those of fewer episodes are the first of these."""
        return [
            int(np.random.SeedSequence(self.seed, spawn_key=(episode,)).generate_state(1)[0])
            for episode in range(self.episodes)
        ]


@dataclass(frozen=True)
class EvaluationResult:
    """The result of an evaluation.

    Attributes:
        returns: ``[episodes]``: undiscounted sum of rewards, in the order of the seeds.
        lengths: ``[episodes]``: lengths in environment steps.
        info: By name ``[episodes]``: the values that `EnvSpec.episode_info` names, NaN if an
            episode did not report one.
        cut: Number of episodes that were stopped before their end.
        limit: The limit that ended the evaluation early, in words; empty if none did.
        bad: Number of episodes stopped because of a number that is not finite or an empty mask.
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    info: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    cut: int = 0
    limit: str = ""
    bad: int = 0

    def score(self, metric: str) -> float:
        """Return the mean return, or the mean of ``info/NAME``; NaN if no episode reported it."""
        if metric == RETURN_MEAN:
            return self.return_mean
        return self.info_means().get(metric.removeprefix(INFO), math.nan)

    def info_means(self) -> dict[str, float]:
        """Return the mean of each value over the episodes that reported it."""
        means = {}
        for name, values in self.info.items():
            reported = [value for value in values if not math.isnan(value)]
            if reported:
                means[name] = float(np.mean(reported))
        return means

    def info_row(self) -> dict[str, float]:
        """Return `info_means` as metrics, named ``info/NAME``."""
        return {f"{INFO}{name}": mean for name, mean in self.info_means().items()}

    def remark(self) -> str:
        """Return a warning to show with the means; empty if all episodes have ended."""
        played, endless = len(self.returns), self.cut - self.bad
        parts = [f"{self.limit} reached"] if self.limit else []
        if endless:
            parts.append(f"{endless} of {played} episodes did not end")
            parts.append("env.max_episode_steps limits them")
        if self.bad:
            parts.append(f"{self.bad} of {played} episodes were cut at a number that is not finite")
        return "; ".join(parts)

    @property
    def return_mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def return_std(self) -> float:
        """Standard deviation of the returns of these episodes."""
        return float(np.std(self.returns))

    @property
    def length_mean(self) -> float:
        """Mean length in environment steps."""
        return float(np.mean(self.lengths))


class EpisodePlayer:
    """Evaluates policies, one after the other, in its own environments.

    Each environment is built separately and seeded for each of its episodes, so an episode depends
    only on its seed and on the policy. All episodes are played to their end, so that short ones are
    not favoured. Each evaluation seeds the global random streams and restores the caller's.

    Args:
        env_spec: The spaces of the environments.
        build_env: Builds a `BatchedEnv` of a given number of environments.
        episodes: Largest number of episodes; no more environments are built.

    Raises:
        EnvError: An environment cannot be built.
    """

    def __init__(
        self, env_spec: EnvSpec, build_env: Callable[[int], BatchedEnv], episodes: int
    ) -> None:
        instance("env_spec", env_spec, EnvSpec)
        function("build_env", build_env)
        self._width = min(_WIDTH, whole("episodes", episodes))
        self._arrays = arrays = StepViews.zeros(env_spec, self._width)
        self._info_names = env_spec.episode_info
        self._info = np.full((self._width, len(self._info_names)), np.nan, np.float32)
        self._numbers = [row for row in arrays.observation if row.dtype.kind == "f"]
        self._env_spec = env_spec
        self._mask = None
        if env_spec.action_mask is not None:
            self._mask = arrays.observation[list(env_spec.observation).index(env_spec.action_mask)]
        self._observed = _tensors(env_spec.observation, arrays.observation)
        self._acted = _tensors(env_spec.action, arrays.action)
        self._claim = Claim()
        with seeded_streams(0):
            self._envs = build_all(
                self._built(index, build_env, env_spec) for index in range(self._width)
            )
        self._views = [self._view(index) for index in range(self._width)]

    def play(
        self,
        model: PolicyModel,
        protocol: EvaluationProtocol,
        watch: Callable[[int, int], None] = lambda episodes, steps: None,
    ) -> EvaluationResult:
        """Evaluate a policy on the CPU; its statistics do not change.

        Args:
            model: The policy.
            protocol: Episodes, seeds and limits.
            watch: Called after every step with the number of episodes and of steps played.

        Raises:
            EnvError: An environment raised or broke its contract, or its numbers are not finite.
        """
        with sampling_mode(model), seeded_streams(protocol.seed, 1):
            initial = initial_state(model, self._width).detach()
            state = _EvaluationState(protocol, protocol.episode_seeds(), initial, initial.clone())
            act = self._policy(model, state)
            began_s = time.monotonic()
            for slot in range(self._width):
                self._begin(slot, state)
            steps, limit = 0, ""
            while state.playing and not limit:
                self._check_observations(state)
                act()
                steps += len(state.playing)
                for slot in list(state.playing):
                    self._step(slot, state)
                watch(len(state.episodes) - len(state.playing), steps)
                limit = protocol.limit_reached(steps, time.monotonic() - began_s)
            return state.result(self._info_names, limit if state.playing else "")

    def _step(self, slot: int, state: _EvaluationState) -> None:
        self._envs[slot].step(self._views[slot])
        reward, episode = float(self._arrays.reward[slot]), state.playing[slot]
        if not math.isfinite(reward):
            self._cut_bad(slot, state, "reward")
            return
        episode.total += reward
        episode.length += 1
        if self._arrays.terminated[slot] or self._arrays.truncated[slot]:
            episode.info = self._info[slot].tolist()
        elif episode.length >= _MAX_EPISODE_STEPS:
            state.cut += 1
        else:
            return
        self._begin(slot, state)

    def _check_observations(self, state: _EvaluationState) -> None:
        """Stop episodes whose observation is not finite, or that have no valid action."""
        while not all(np.isfinite(rows).all() for rows in self._numbers):
            for slot in range(self._width):
                if all(np.isfinite(rows[slot]).all() for rows in self._numbers):
                    continue
                for rows in self._numbers:
                    rows[slot] = 0.0
                if slot in state.playing:
                    self._cut_bad(slot, state, "observation")
        while self._mask is not None and not (valid := self._env_spec.has_valid(self._mask)).all():
            slot = int(valid.argmin())
            self._mask[slot] = True
            if slot in state.playing:
                self._cut_bad(slot, state, "action_mask", "without a valid action")

    def _cut_bad(
        self, slot: int, state: _EvaluationState, what: str, problem: str = "not finite"
    ) -> None:
        """Stop an episode because of a bad number or mask, or raise `EnvError`."""
        if not state.protocol.cuts_bad_numbers:
            raise EnvError(f"evaluation: the {what} of {state.playing[slot]} is {problem}")
        state.cut += 1
        state.bad += 1
        self._begin(slot, state)

    def close(self) -> None:
        """Close the environments."""
        self._claim.release()
        close_all(self._envs)

    def _built(
        self, index: int, build_env: Callable[[int], BatchedEnv], env_spec: EnvSpec
    ) -> BatchedEnv:
        env = build_env(1)
        try:
            self._claim.add(env, index)
            who = f"an environment of '{env_spec.id}' for evaluation"
            check_spaces(env.spec, env_spec, who, different=True)
            if env.spec.episode_info != env_spec.episode_info:
                # Otherwise environments would write each other's columns.
                self._info_names = ()
        except BaseException:
            env.close()
            raise
        return env

    def _begin(self, slot: int, state: _EvaluationState) -> None:
        """Start the next episode in a slot, if one is left."""
        state.playing.pop(slot, None)
        index = len(state.episodes)
        if index < len(state.seeds):
            state.playing[slot] = _Episode(index, state.seeds[index])
            state.episodes.append(state.playing[slot])
            self._info[slot] = np.nan
            state.memory[slot] = state.initial[slot]
            self._envs[slot].reset([state.seeds[index]], self._views[slot].observation)

    def _policy(self, model: PolicyModel, state: _EvaluationState) -> Callable[[], None]:
        """Return a call that writes an action for every slot, and the policy's next state.

        Slots without an episode are included: the last bits of an action may depend on the size of
        the batch, which therefore must not change when episodes end.
        """
        generator = torch.Generator().manual_seed(state.protocol.seed)
        drawn_by = None if state.protocol.deterministic else generator
        memory = state.memory if state.memory.numel() else None
        observation, mask = self._env_spec.split_mask(self._observed)

        def act() -> None:
            chosen = choose(model, observation, drawn_by, memory, mask)
            for path, action in self._acted.items():
                action.copy_(chosen.action[path])
            if memory is not None and chosen.state is not None:
                memory.copy_(chosen.state)

        return act

    def _view(self, index: int) -> StepViews:
        one = slice(index, index + 1)
        info = self._info[one] if self._info_names else None
        return replace(self._arrays.part(one), episode_info=info)


@dataclass
class _Episode:
    """An episode that is played, and its result so far."""

    index: int
    seed: int
    total: float = 0.0
    length: int = 0
    info: Sequence[float] = ()

    def __str__(self) -> str:
        return f"episode {self.index} (seed {self.seed}) after {self.length:,} steps"


@dataclass
class _EvaluationState:
    """The episodes of one evaluation: all that have begun, and the current one of each slot.

    The policy's states are ``memory [slots, size]``; episodes begin with ``initial``.
    """

    protocol: EvaluationProtocol
    seeds: Sequence[int]
    initial: Tensor
    memory: Tensor
    episodes: list[_Episode] = field(default_factory=list)
    playing: dict[int, _Episode] = field(default_factory=dict)
    cut: int = 0
    bad: int = 0

    def result(self, info_names: Sequence[str], limit: str) -> EvaluationResult:
        """Return the result; unfinished episodes count as cut."""
        return EvaluationResult(
            returns=tuple(episode.total for episode in self.episodes),
            lengths=tuple(episode.length for episode in self.episodes),
            info={
                name: tuple(each.info[column] if each.info else math.nan for each in self.episodes)
                for column, name in enumerate(info_names)
            },
            cut=self.cut + len(self.playing),
            limit=limit,
            bad=self.bad,
        )


def evaluate(
    model: PolicyModel,
    env_spec: EnvSpec,
    build_env: Callable[[int], BatchedEnv],
    protocol: EvaluationProtocol,
    watch: Callable[[int, int], None] = lambda episodes, steps: None,
) -> EvaluationResult:
    """Evaluate a policy once, in this process; see `EpisodePlayer`.

    Raises:
        EnvError: An environment cannot be built, raised or broke its contract.
    """
    instance("protocol", protocol, EvaluationProtocol)
    player = EpisodePlayer(env_spec, build_env, protocol.episodes)
    with closed_after(player), torch_threads(policy_threads(env_spec)):
        return player.play(model, protocol, watch)


def _tensors(specs: dict[str, TensorSpec], rows: Rows) -> dict[str, Tensor]:
    return {path: torch.from_numpy(row) for path, row in zip(specs, rows, strict=True)}
