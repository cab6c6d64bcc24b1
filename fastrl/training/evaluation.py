"""How good a policy is: whole episodes with fixed seeds, apart from those that it learns from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastrl.arguments import whole
from fastrl.closing import build_all, close_all, closed_after
from fastrl.envs.agreement import Claim, check_spaces
from fastrl.envs.batched_env import BatchedEnv, Rows, StepViews
from fastrl.errors import ConfigError, EnvError
from fastrl.global_streams import seeded_streams
from fastrl.learning.torch_threads import policy_threads, torch_threads
from fastrl.models.policy import PolicyModel, sampling_mode
from fastrl.spaces import TensorSpec
from fastrl.spec import EnvSpec
from fastrl.training.policy import choose

_WIDTH = 16
"""Episodes played at once: a step of the policy costs little more for them than for one."""
_MAX_EPISODE_STEPS = 200_000
"""Steps after which an episode that does not end is taken as it is."""
RETURN_MEAN, INFO = "return_mean", "info/"
"""What ``evaluation.metric`` is: the mean return, or the mean of a figure ``info/NAME``."""


@dataclass(frozen=True)
class EvaluationProtocol:
    """What is played.

    Attributes:
        episodes: How many.
        seed: From which the seed of every episode follows, and the randomness of the actions.
        deterministic: Whether to take the most probable action rather than a sample.
        max_steps: Environment steps of all episodes together after which the evaluation ends.
        max_s: Seconds after which it ends; None for neither of these limits.
        cuts_bad_numbers: Whether an episode ends before an observation or a reward that is not
            finite; otherwise the evaluation ends with an error.
    """

    episodes: int
    seed: int
    deterministic: bool = True
    max_steps: int | None = None
    max_s: float | None = None
    cuts_bad_numbers: bool = False

    def __post_init__(self) -> None:
        """Reject what cannot be played.

        Raises:
            ConfigError: There are no episodes or too many, the seed is negative or too large, or
                a limit is not positive.
        """
        whole("episodes", self.episodes, at_most=1_000_000)
        whole("seed", self.seed, at_least=0, at_most=2**63 - 1)
        if self.max_steps is not None:
            whole("max_steps", self.max_steps, at_most=2**62)
        if self.max_s is not None and not 0 < self.max_s < math.inf:
            raise ConfigError(f"max_s must be above 0 s, got {self.max_s}")

    def limit_reached(self, steps: int, elapsed_s: float) -> str:
        """Return the limit that so many steps or seconds have reached, in words; else nothing."""
        if self.max_steps is not None and steps >= self.max_steps:
            return f"evaluation.max_steps ({self.max_steps:,})"
        if self.max_s is not None and elapsed_s >= self.max_s:
            return f"evaluation.max_s ({self.max_s:g})"
        return ""

    def episode_seeds(self) -> list[int]:
        """Return the seed of each episode; more episodes begin with those of fewer."""
        return [
            int(np.random.SeedSequence(self.seed, spawn_key=(episode,)).generate_state(1)[0])
            for episode in range(self.episodes)
        ]


@dataclass(frozen=True)
class EvaluationResult:
    """What came of it.

    Attributes:
        returns: ``[episodes]``: undiscounted sum of rewards, in the order of the seeds.
        lengths: ``[episodes]``: in environment steps.
        info: By name ``[episodes]``: the figures that `EnvSpec.episode_info` names, NaN where an
            episode did not report one.
        cut: How many of the episodes had not ended by themselves.
        bad: How many of these were cut at a number that is not finite.
        limit: The limit that ended the evaluation before all episodes were played, in words.
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    info: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    cut: int = 0
    limit: str = ""
    bad: int = 0

    def score(self, metric: str) -> float:
        """Return ``return_mean``, or the mean of ``info/NAME``; NaN where no episode reported it.

        A policy whose score is not finite is never the best one and ends no training.
        """
        if metric == RETURN_MEAN:
            return self.return_mean
        return self.info_means().get(metric.removeprefix(INFO), math.nan)

    def info_means(self) -> dict[str, float]:
        """Return the mean of each figure over the episodes that reported it."""
        means = {}
        for name, figures in self.info.items():
            reported = [figure for figure in figures if not math.isnan(figure)]
            if reported:
                means[name] = float(np.mean(reported))
        return means

    def remark(self) -> str:
        """Return what a reader of the means must know; nothing where all episodes have ended."""
        played, endless = len(self.returns), self.cut - self.bad
        told = [f"{self.limit} reached"] if self.limit else []
        if endless:
            told.append(f"{endless} of {played} episodes did not end")
            told.append("env.max_episode_steps limits them")
        if self.bad:
            told.append(f"{self.bad} of {played} episodes were cut at a number that is not finite")
        return "; ".join(told)

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
    """Environments in which policies are evaluated, one evaluation after the other.

    Every environment is built alone and seeded anew for each of its episodes, so an episode
    depends on its seed and on the policy, not on what was played before. All go on until each has
    ended: none is favoured for being short. The global random streams are seeded anew for each
    evaluation, and those of the caller stay where they are.

    Args:
        env_spec: What the environments observe and accept.
        build_env: Builds a `BatchedEnv` of that many environments.
        episodes: How many are played at most; no more environments are built.

    Raises:
        EnvError: An environment cannot be built.
    """

    def __init__(
        self, env_spec: EnvSpec, build_env: Callable[[int], BatchedEnv], episodes: int
    ) -> None:
        self._width = min(_WIDTH, episodes)
        self._observation = _rows(env_spec.observation, self._width)
        self._action = _rows(env_spec.action, self._width)
        self._final = _rows(env_spec.observation, self._width)
        self._reward = np.zeros(self._width, np.float32)
        self._terminated, self._truncated = np.zeros((2, self._width), np.bool_)
        self._info_names = env_spec.episode_info
        self._info = np.full((self._width, len(self._info_names)), np.nan, np.float32)
        self._numbers = [row for row in self._observation if row.dtype.kind == "f"]
        self._observed = _tensors(env_spec.observation, self._observation)
        self._acted = _tensors(env_spec.action, self._action)
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
        """Evaluate a policy on the CPU, which stays as it is, statistics included.

        Args:
            model: The policy.
            protocol: What is played.
            watch: Called after every step with the number of episodes and of steps played.

        Raises:
            EnvError: An environment raised or broke its contract, or its numbers are not finite.
        """
        with sampling_mode(model), seeded_streams(protocol.seed, 1):
            return self._play(self._policy(model, protocol), protocol, watch)

    def _play(
        self,
        act: Callable[[], None],
        protocol: EvaluationProtocol,
        watch: Callable[[int, int], None],
    ) -> EvaluationResult:
        game = _Game(protocol, self._info_names)
        began_s = time.monotonic()
        for slot in range(self._width):
            self._begin(slot, game)
        steps, limit = 0, ""
        while game.playing and not limit:
            self._look_at_observations(game)
            act()
            for slot in list(game.playing):
                self._step(slot, game)
                steps += 1
            watch(game.num_over, steps)
            limit = protocol.limit_reached(steps, time.monotonic() - began_s)
        return game.result(limit if game.playing else "")

    def _step(self, slot: int, game: _Game) -> None:
        self._envs[slot].step(self._views[slot])
        reward = float(self._reward[slot])
        if not math.isfinite(reward):
            self._cut_bad(slot, game, "reward")
            return
        length = game.add(slot, reward)
        if self._terminated[slot] or self._truncated[slot]:
            game.end(slot, self._info[slot])
            self._begin(slot, game)
        elif length >= _MAX_EPISODE_STEPS:
            game.cut(slot)
            self._begin(slot, game)

    def _look_at_observations(self, game: _Game) -> None:
        """Find observations that are not finite before the policy sees them."""
        while not all(np.isfinite(rows).all() for rows in self._numbers):
            for slot in range(self._width):
                if all(np.isfinite(rows[slot]).all() for rows in self._numbers):
                    continue
                for rows in self._numbers:
                    rows[slot] = 0.0
                if slot in game.playing:
                    self._cut_bad(slot, game, "observation")

    def _cut_bad(self, slot: int, game: _Game, what: str) -> None:
        """End an episode before a number that is not finite.

        Raises:
            EnvError: Such a number ends the evaluation.
        """
        if not game.protocol.cuts_bad_numbers:
            raise EnvError(f"evaluation: the {what} of {game.where(slot)} is not finite")
        game.cut(slot, is_bad=True)
        self._begin(slot, game)

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
                # The figures of some environments would lie in the columns of others.
                self._info_names = ()
        except BaseException:
            env.close()
            raise
        return env

    def _begin(self, slot: int, game: _Game) -> None:
        """Start the next episode in a slot, if one is left."""
        seed = game.begin(slot)
        if seed is not None:
            self._info[slot] = np.nan
            self._envs[slot].reset([seed], self._views[slot].observation)

    def _policy(self, model: PolicyModel, protocol: EvaluationProtocol) -> Callable[[], None]:
        """Return a call that writes an action for every slot.

        Slots without an episode count as well: the last bits of a result may depend on the size
        of the batch, and must not depend on who has already ended.
        """
        generator = torch.Generator().manual_seed(protocol.seed)

        def act() -> None:
            chosen = choose(model, self._observed, None if protocol.deterministic else generator)
            for path, action in self._acted.items():
                action.copy_(chosen[path])

        return act

    def _view(self, index: int) -> StepViews:
        one = slice(index, index + 1)
        return StepViews(
            action=tuple(row[one] for row in self._action),
            observation=tuple(row[one] for row in self._observation),
            reward=self._reward[one],
            terminated=self._terminated[one],
            truncated=self._truncated[one],
            final_observation=tuple(row[one] for row in self._final),
            episode_info=self._info[one] if self._info_names else None,
        )


class _Game:
    """The episodes of one evaluation: which are played, and what has come of each.

    Attributes:
        protocol: What is played.
        playing: The episode that is played in each slot.
        num_over: Episodes that are over.
    """

    def __init__(self, protocol: EvaluationProtocol, info_names: Sequence[str]) -> None:
        self.protocol, self._info_names = protocol, info_names
        self.playing: dict[int, int] = {}
        self.num_over = 0
        self._seeds = protocol.episode_seeds()
        self._returns: list[float] = []
        self._lengths: list[int] = []
        self._info: list[NDArray[np.float32]] = []
        self._cut = self._bad = 0

    def begin(self, slot: int) -> int | None:
        """Start the next episode in a slot and return its seed; None where none is left."""
        self.playing.pop(slot, None)
        episode = len(self._returns)
        if episode == len(self._seeds):
            return None
        self.playing[slot] = episode
        self._returns.append(0.0)
        self._lengths.append(0)
        self._info.append(np.full(len(self._info_names), np.nan, np.float32))
        return self._seeds[episode]

    def add(self, slot: int, reward: float) -> int:
        """Add a step to the episode in a slot; return how long that is now."""
        episode = self.playing[slot]
        self._returns[episode] += reward
        self._lengths[episode] += 1
        return self._lengths[episode]

    def end(self, slot: int, info: NDArray[np.float32]) -> None:
        """Note that the episode in a slot has ended, with the figures ``[K]`` of it."""
        self._info[self.playing[slot]] = info.copy()
        self.num_over += 1

    def cut(self, slot: int, *, is_bad: bool = False) -> None:
        """Take the episode in a slot as it is, perhaps since a number of it is not finite."""
        self._cut += 1
        self._bad += is_bad
        self.num_over += 1

    def where(self, slot: int) -> str:
        """Return in words which episode is played in a slot, and how far it is."""
        episode = self.playing[slot]
        seed, length = self._seeds[episode], self._lengths[episode]
        return f"episode {episode} (seed {seed}) after {length:,} steps"

    def result(self, limit: str) -> EvaluationResult:
        """Return what came of all episodes; those that are still played count as cut."""
        info = {
            name: tuple(float(figures[column]) for figures in self._info)
            for column, name in enumerate(self._info_names)
        }
        cut = self._cut + len(self.playing)
        return EvaluationResult(
            tuple(self._returns), tuple(self._lengths), info, cut, limit, self._bad
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
    player = EpisodePlayer(env_spec, build_env, protocol.episodes)
    with closed_after(player), torch_threads(policy_threads(env_spec)):
        return player.play(model, protocol, watch)


def _rows(specs: dict[str, TensorSpec], num_rows: int) -> Rows:
    rows: list[NDArray[Any]] = [
        np.zeros((num_rows, *spec.shape), spec.numpy_dtype) for spec in specs.values()
    ]
    return tuple(rows)


def _tensors(specs: dict[str, TensorSpec], rows: Rows) -> dict[str, Tensor]:
    return {path: torch.from_numpy(row) for path, row in zip(specs, rows, strict=True)}
