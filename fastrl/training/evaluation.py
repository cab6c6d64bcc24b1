"""How good a policy is: whole episodes with fixed seeds, apart from those that it learns from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastrl.arguments import whole
from fastrl.closing import build_all, close_all, closed_after
from fastrl.envs.agreement import Claim, check_spaces
from fastrl.envs.batched_env import BatchedEnv, Rows, StepViews
from fastrl.global_streams import seeded_streams
from fastrl.learning.torch_threads import policy_threads, torch_threads
from fastrl.models.policy import PolicyModel, sampling_mode
from fastrl.spaces import TensorSpec
from fastrl.spec import EnvSpec

_WIDTH = 16
"""Episodes played at once: a step of the policy costs little more for them than for one."""
_MAX_EPISODE_STEPS = 200_000
"""Steps after which an episode that does not end is taken as it is."""


@dataclass(frozen=True)
class EvaluationProtocol:
    """What is played.

    Attributes:
        episodes: How many.
        seed: From which the seed of every episode follows, and the randomness of the actions.
        deterministic: Whether to take the most probable action rather than a sample.
    """

    episodes: int
    seed: int
    deterministic: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be played.

        Raises:
            ConfigError: There are no episodes or too many, or the seed is negative or too large.
        """
        whole("episodes", self.episodes, at_most=1_000_000)
        whole("seed", self.seed, at_least=0, at_most=2**63 - 1)

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
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...]

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
        self._observed = _tensors(env_spec.observation, self._observation)
        self._acted = _tensors(env_spec.action, self._action)
        self._claim = Claim()
        with seeded_streams(0):
            self._envs = build_all(
                self._built(index, build_env, env_spec) for index in range(self._width)
            )
        self._views = [self._view(index) for index in range(self._width)]

    def play(self, model: PolicyModel, protocol: EvaluationProtocol) -> EvaluationResult:
        """Evaluate a policy on the CPU, which stays as it is, statistics included.

        Raises:
            EnvError: An environment raised or broke its contract.
        """
        with sampling_mode(model), seeded_streams(protocol.seed, 1):
            return self._play(self._policy(model, protocol), protocol)

    def _play(self, act: Callable[[], None], protocol: EvaluationProtocol) -> EvaluationResult:
        seeds = protocol.episode_seeds()
        returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), np.int64)
        waiting = iter(range(len(seeds)))
        playing: dict[int, int] = {}
        for slot in range(self._width):
            self._begin(slot, playing, waiting, seeds)
        while playing:
            act()
            for slot, episode in list(playing.items()):
                self._envs[slot].step(self._views[slot])
                returns[episode] += self._reward[slot]
                lengths[episode] += 1
                over = self._terminated[slot] or self._truncated[slot]
                if over or lengths[episode] >= _MAX_EPISODE_STEPS:
                    self._begin(slot, playing, waiting, seeds)
        return EvaluationResult(tuple(returns.tolist()), tuple(lengths.tolist()))

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
        except BaseException:
            env.close()
            raise
        return env

    def _begin(
        self, slot: int, playing: dict[int, int], waiting: Iterator[int], seeds: Sequence[int]
    ) -> None:
        """Start the next episode in a slot, if one is left."""
        playing.pop(slot, None)
        for episode in waiting:
            playing[slot] = episode
            self._envs[slot].reset([seeds[episode]], self._views[slot].observation)
            return

    def _policy(self, model: PolicyModel, protocol: EvaluationProtocol) -> Callable[[], None]:
        """Return a call that writes an action for every slot.

        Slots without an episode count as well: the last bits of a result may depend on the size
        of the batch, and must not depend on who has already ended.
        """
        generator = torch.Generator().manual_seed(protocol.seed)

        @torch.inference_mode()
        def act() -> None:
            if protocol.deterministic:
                chosen = model.mode(self._observed)
            else:
                noise = model.draw_noise((self._width,), generator)
                chosen = model.act(self._observed, noise)[0]
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
        )


def evaluate(
    model: PolicyModel,
    env_spec: EnvSpec,
    build_env: Callable[[int], BatchedEnv],
    protocol: EvaluationProtocol,
) -> EvaluationResult:
    """Evaluate a policy once; see `EpisodePlayer`.

    Raises:
        EnvError: An environment cannot be built, raised or broke its contract.
    """
    player = EpisodePlayer(env_spec, build_env, protocol.episodes)
    with closed_after(player), torch_threads(policy_threads(env_spec)):
        return player.play(model, protocol)


def _rows(specs: dict[str, TensorSpec], num_rows: int) -> Rows:
    rows: list[NDArray[Any]] = [
        np.zeros((num_rows, *spec.shape), spec.numpy_dtype) for spec in specs.values()
    ]
    return tuple(rows)


def _tensors(specs: dict[str, TensorSpec], rows: Rows) -> dict[str, Tensor]:
    return {path: torch.from_numpy(row) for path, row in zip(specs, rows, strict=True)}
