"""Environments that each start a process and close it slowly."""

import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np


class SlowClose(gymnasium.Env):
    """Environment that records started and ended processes in a directory."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, directory, close_s):
        command = [sys.executable, "-c", "import time; time.sleep(600)"]
        self.process, self.close_s = subprocess.Popen(command), close_s
        self.directory = Path(directory)
        (self.directory / f"{self.process.pid}.started").touch()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def close(self):
        time.sleep(self.close_s)
        self.process.kill()
        self.process.wait()
        (self.directory / f"{self.process.pid}.closed").touch()


def pids(directory, kind):
    return sorted(int(path.stem) for path in Path(directory).glob(f"*.{kind}"))
