"""Plays episodes of one environment, shows each step, and writes the episodes as a dataset."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import gymnasium

from fastrl.closing import Terminated, unwinding
from fastrl.datasets import DatasetWriter, Episode
from fastrl.datasets.episodes import EpisodeBuilder
from fastrl.envs.actions import ActionBounds
from fastrl.envs.animation import Frame
from fastrl.envs.rows import reset_values, step_values
from fastrl.errors import ConfigError, EnvError, FastrlError, raised_as
from fastrl.play.key_map import KeyMap
from fastrl.spec import EnvSpec
from fastrl.training.recording import drawn
from fastrl.training.trained_policy import TrainedPolicy
from fastrl.workers.descent import OF_GROUPS

_DEFAULT_FPS = 30.0
_BETWEEN_EPISODES_S = 0.5


class Display(Protocol):
    """The display of a game and the source of its keys."""

    def show(self, frame: Frame, text: str) -> None:
        """Show a picture ``[height, width, 3] uint8`` with a line of text."""

    def pressed(self) -> frozenset[str]:
        """Return the keys that are pressed now."""

    def wait(self, seconds: float) -> bool:
        """Wait this long, and as long as it is hidden; return False once it is closed."""


class Player(Protocol):
    """The source of actions.

    Attributes:
        starts: Keys of which one begins an episode; none if it begins at once.
    """

    starts: Collection[str]

    def begin(self) -> None:
        """Begin an episode."""

    def act(self, observation: Any, pressed: frozenset[str]) -> Any:
        """Return an action, as the environment accepts it."""


class PolicyPlayer:
    """A trained policy.

    Args:
        policy: The policy.
        deterministic: Whether it takes its most probable action rather than a sample.
    """

    starts: Collection[str] = ()

    def __init__(self, policy: TrainedPolicy, *, deterministic: bool) -> None:
        self._policy, self._deterministic = policy, deterministic
        self._state: Any = None

    def begin(self) -> None:
        """Reset the memory."""
        self._state = None

    def act(self, observation: Any, pressed: frozenset[str]) -> Any:
        """Return an action; see `Player`."""
        action, self._state = self._policy.act(
            observation, self._state, deterministic=self._deterministic
        )
        return action


class KeyboardPlayer:
    """A person at a keyboard; an episode begins with the first key.

    Args:
        keys: Maps the pressed keys to an action.
    """

    def __init__(self, keys: KeyMap) -> None:
        self._keys = keys
        self.starts: Collection[str] = keys.keys

    def begin(self) -> None:
        """Do nothing."""

    def act(self, observation: Any, pressed: frozenset[str]) -> Any:
        """Return the action of the pressed keys."""
        return self._keys(pressed)


@dataclass(frozen=True)
class Played:
    """An episode that has ended.

    Attributes:
        number: Number of the episode, from 1.
        total: Return of the episode.
        steps: Length of the episode in steps.
        episode: Steps of the episode, if they are recorded.
    """

    number: int
    total: float
    steps: int
    episode: Episode | None = None

    def __str__(self) -> str:
        """Return one line."""
        return f"episode {self.number}: return {self.total:,.4g}, {self.steps:,} steps"


def play(
    env: gymnasium.Env[Any, Any],
    name: str,
    player: Player,
    display: Display,
    *,
    fps: float | None = None,
    seed: int | None = None,
    builder: EpisodeBuilder | None = None,
) -> Iterator[Played]:
    """Play episodes until the display is closed, and yield each that has ended.

    Args:
        env: The environment, with ``render_mode="rgb_array"``.
        name: Id of the environment, for errors.
        player: Chooses the actions.
        display: Window or page.
        fps: Steps per second; by default those of the environment.
        seed: Seed of the first episode.
        builder: Records the steps of each episode.

    Raises:
        EnvError: The environment raised, or cannot be drawn.
    """
    pause_s = 1.0 / (fps or float(env.metadata.get("render_fps") or _DEFAULT_FPS))
    number = 0
    while True:
        number += 1
        with raised_as(EnvError, f"'{name}' failed"):
            begun = env.reset(seed=seed if number == 1 else None)
            observation, _ = reset_values(begun, f"'{name}'")
            player.begin()
            total, steps, is_over = 0.0, 0, False
            if not _is_begun(env, name, player, display, f"episode {number}", pause_s):
                return
            if builder is not None:
                builder.begin(observation)
            due_s = time.monotonic()
            while not is_over:
                display.show(drawn(env, name), f"episode {number}   return {total:,.4g}")
                due_s = max(due_s + pause_s, time.monotonic())
                if not display.wait(due_s - time.monotonic()):
                    return
                action = player.act(observation, display.pressed())
                result = step_values(env.step(action), f"'{name}'")
                observation, reward, terminated, truncated, _ = result
                if builder is not None:
                    builder.add(action, float(reward), observation)
                total, steps = total + float(reward), steps + 1
                is_over = bool(terminated or truncated)
            display.show(drawn(env, name), f"episode {number}   return {total:,.4g}, done")
        episode = None if builder is None else builder.finish(terminated=bool(terminated))
        yield Played(number, total, steps, episode)
        if not display.wait(_BETWEEN_EPISODES_S):
            return


def _is_begun(
    env: gymnasium.Env[Any, Any],
    name: str,
    player: Player,
    display: Display,
    episode: str,
    pause_s: float,
) -> bool:
    """Wait until the player is ready; return False if the display is closed before."""
    while player.starts and display.pressed().isdisjoint(player.starts):
        display.show(drawn(env, name), f"{episode}: press a key to begin")
        if not display.wait(pause_s):
            return False
    return True


def record_episodes(
    played: Iterable[Played],
    path: Path,
    env_spec: EnvSpec,
    action_bounds: ActionBounds,
    player: str,
    report: Callable[[Played], None],
) -> int:
    """Write each episode when it ends, and complete the dataset; return the number of episodes.

    Ctrl-C, SIGTERM, a closed terminal or an error of the environment ends the recording. Finished
    episodes are kept; the exception is raised, or the signal ends the process, once the dataset is
    complete. Must be called from the main thread.

    Args:
        played: Episodes with their steps; the iterator ends when the display is closed.
        path: The dataset, a directory that does not exist yet.
        env_spec: The environment.
        action_bounds: ``clip`` or ``squash`` for bounded ``Box`` actions.
        player: Name of the player, for the metadata.
        report: Called with each episode.

    Raises:
        ConfigError: No episode was finished, so there is no dataset; or it cannot be written.
        FastrlError: The environment failed.
        KeyboardInterrupt: Ctrl-C ended the recording.
    """
    number = 0
    failure: BaseException | None = None
    about = {"algorithm_name": player}
    with (
        unwinding(),
        ExitStack() as completing,
        DatasetWriter(path, env_spec, action_bounds, about) as writer,
    ):
        try:
            for each in played:
                assert each.episode is not None
                with _held_signals():
                    writer.add([each.episode])
                    number += 1
                report(each)
        except (KeyboardInterrupt, Terminated, FastrlError) as error:
            failure = error
        if not number:
            raise failure or ConfigError(f"no episode was finished, so '{path}' was not written")
        completing.enter_context(_held_signals())
    if failure is not None:
        raise failure
    return number


@contextmanager
def _held_signals() -> Iterator[None]:
    """Deliver signals after the block, which writes files."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, OF_GROUPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
