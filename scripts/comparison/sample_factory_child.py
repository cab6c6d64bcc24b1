"""Sample Factory's sampler, alone in its own interpreter, told by lines on standard input.

Sample Factory needs older packages than fastrl, so that it lives in a virtual environment of its
own; this file is run by that environment's Python and imports nothing of fastrl. A line
``SECONDS`` asks for a window; the answer is a line ``FRAMES``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import gymnasium
from sample_factory.algo.sampling.simplified_sampling_api import SyncSamplingAPI
from sample_factory.algo.utils.env_info import obtain_env_info_in_a_separate_process
from sample_factory.algo.utils.rl_utils import samples_per_trajectory
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env


def main() -> None:
    """Start the sampler that the first argument describes (JSON) and answer until the end."""
    asked = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Sample Factory reports its progress there
    register_env(asked["env"], _make_env)
    flags = [f"--env={asked['env']}", *(f"--{key}={v}" for key, v in asked["flags"].items())]
    flags += ["--encoder_mlp_layers", *(str(size) for size in asked["hidden_sizes"])]
    parser, _ = parse_sf_args(flags)
    config = parse_full_cfg(parser, flags)
    sampler = SyncSamplingAPI(config, obtain_env_info_in_a_separate_process(config))
    sampler.start()
    sampler.get_trajectories_sync()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(_window(sampler, float(line)), file=answers, flush=True)
    os._exit(0)  # the parent ends the workers; SyncSamplingAPI.stop may never return


def _window(sampler: SyncSamplingAPI, seconds: float) -> int:
    while not sampler.traj_queue.empty():  # sampled before this window
        sampler.get_trajectories_sync()
    frames, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        frames += samples_per_trajectory(sampler.get_trajectories_sync())
    return frames


def _make_env(
    name: str,
    config: object,
    env_config: object,
    render_mode: str | None = None,
) -> gymnasium.Env[Any, Any]:
    return gymnasium.make(name, render_mode=render_mode, disable_env_checker=True)


if __name__ == "__main__":
    main()
