"""Videos of a policy: MP4 if an encoder is installed, else GIF; see `fastrl.envs.animation`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from fastrl.durable import make_directory, writing
from fastrl.envs.animation import Frame, animation
from fastrl.envs.env_factory import EnvFactory
from fastrl.envs.rows import reset_values, step_values
from fastrl.errors import ConfigError, EnvError, raised_as
from fastrl.formats import check_animation
from fastrl.global_streams import seeded_streams
from fastrl.imports import how_to_install
from fastrl.models.policy import PolicyModel, sampling_mode
from fastrl.spec import EnvSpec
from fastrl.system import draw_without_screen
from fastrl.training.evaluation import EvaluationProtocol
from fastrl.training.trained_policy import TrainedPolicy

_SMALLEST_SIDE = 240
"""Smaller frames are enlarged by a whole factor, because most players blur small ones."""


@dataclass(frozen=True)
class Recorder:
    """Plays episodes in a rendered environment and writes them as a video.

    Attributes:
        factory: Builds the environment.
        env_spec: Spaces of the environment.
        protocol: Episodes, seeds and limits.
        max_steps: Longest video, in environment steps.
    """

    factory: EnvFactory
    env_spec: EnvSpec
    protocol: EvaluationProtocol
    max_steps: int = 10_000

    def __call__(self, model: PolicyModel, path: Path) -> list[float]:
        """Write a video of all episodes, one after the other; return their returns.

        Args:
            model: The policy, on the CPU.
            path: Ends in .mp4 or .gif; its directory is made.

        Raises:
            ConfigError: The format is unknown, its encoder is missing, or the file cannot be
                written.
            EnvError: The environment cannot be rendered, raised or broke its contract.
        """
        check_animation(path)
        draw_without_screen()
        returns: list[float] = []
        streams = seeded_streams(self.protocol.seed, 1)
        with sampling_mode(model), streams, closing(self._drawable()) as env:
            fps = float(env.metadata.get("render_fps") or 30)
            frames = self._frames(env, model, returns)
            # The first frame is rendered before a file is made, as rendering may fail.
            first = next(frames)
            with writing(path, ConfigError):
                make_directory(path.parent)
            with animation(path, fps) as append:
                append(first)
                for frame in frames:
                    append(frame)
        return returns

    def check(self) -> None:
        """Render the first observation of an episode.

        Raises:
            EnvError: The environment cannot be rendered here.
        """
        draw_without_screen()
        with closing(self._drawable()) as env:
            env.reset(seed=self.protocol.episode_seeds()[0])
            drawn(env, self.factory.name)

    def _drawable(self) -> gymnasium.Env[Any, Any]:
        try:
            return self.factory.single(render_mode="rgb_array")
        except EnvError as error:
            raise EnvError(f"{error}; videos need render_mode='rgb_array'") from error

    def _frames(
        self, env: gymnasium.Env[Any, Any], model: PolicyModel, returns: list[float]
    ) -> Iterator[Frame]:
        protocol = self.protocol
        policy = TrainedPolicy(model, self.env_spec, self.factory.action_bounds, protocol.seed)
        steps, who = 0, f"'{self.factory.name}'"
        for seed in protocol.episode_seeds():
            with raised_as(EnvError, f"{who} failed"):
                observation, _ = reset_values(env.reset(seed=seed), who)
            yield drawn(env, self.factory.name)
            total, over, state = 0.0, False, None
            while not over and steps < self.max_steps:
                action, state = policy.act(observation, state, deterministic=protocol.deterministic)
                with raised_as(EnvError, f"{who} failed"):
                    result = step_values(env.step(action), who)
                    observation, reward, terminated, truncated, _ = result
                    total, steps = total + float(reward), steps + 1
                    over = bool(terminated or truncated)
                yield drawn(env, self.factory.name)
            returns.append(total)
            if steps >= self.max_steps:
                return


def unfinished(videos: Path) -> list[Path]:
    """Return the incomplete files of interrupted recordings in a directory of videos."""
    return [*videos.glob(".step_*")]


def drawn(env: gymnasium.Env[Any, Any], name: str) -> Frame:
    """Return the picture of an environment, ``[height, width, 3] uint8``; small ones enlarged.

    Raises:
        EnvError: The environment cannot be drawn.
    """
    try:
        frame = np.asarray(env.render())
    except Exception as error:  # renderers raise many types, mostly for reasons of the machine
        text = " ".join(str(error).split()) or type(error).__name__
        raise EnvError(f"'{name}' cannot be drawn here: {text[:200]} ({_hint(error)})") from error
    if frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        raise EnvError(f"'{name}' cannot be drawn: render() returned no RGB image")
    factor = -(-_SMALLEST_SIDE // min(frame.shape[:2]))
    return frame.repeat(factor, 0).repeat(factor, 1) if factor > 1 else frame


def _hint(error: Exception) -> str:
    if isinstance(error, gymnasium.error.DependencyNotInstalled):
        return how_to_install("video")
    return "MuJoCo draws with OpenGL: on Debian, apt install libegl1, and MUJOCO_GL=egl"
