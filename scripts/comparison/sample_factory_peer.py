"""Sample Factory as a method, in the virtual environment that its older packages need.

    python3.11 -m venv DIR
    DIR/bin/pip install sample-factory==2.1.1 'numpy<2' torch gymnasium[mujoco]
    SAMPLE_FACTORY_PYTHON=DIR/bin/python python scripts/compare.py --env CartPole-v1

Its sampler alone (`SyncSamplingAPI`), with the same layers; nothing is learnt. Between its windows
its processes are stopped by a signal, since it has no way to rest.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from comparison.method import Method, Settings
from comparison.task import Task
from fastrl.errors import EnvError

PYTHON = "SAMPLE_FACTORY_PYTHON"
"""Environment variable that names the interpreter with Sample Factory."""

_CHILD = Path(__file__).with_name("sample_factory_child.py")
_START_S = 120.0
_DEADLINE_S = 30.0


@dataclass(frozen=True)
class SampleFactorySettings(Settings):
    """What Sample Factory's speed depends on.

    Attributes:
        num_workers: Its rollout workers, each with ``num_envs / num_workers`` environments.
        worker_num_splits: Groups of each worker's environments.
    """

    num_workers: int = 1
    worker_num_splits: int = 1


class SampleFactory(Method):
    """Sample Factory's asynchronous sampler: rollout workers and one inference worker."""

    name, label, requires = "sample-factory", "Sample Factory", "gymnasium"

    def __init__(self, task: Task, chosen: SampleFactorySettings) -> None:
        self.task, self.chosen = task, chosen
        self.settings = {key: v for key, v in asdict(chosen).items() if v is not None}
        self._process: subprocess.Popen[str] | None = None

    @classmethod
    def to_try(cls, task: Task, sizes: tuple[int, ...]) -> list[SampleFactorySettings]:
        """Return one and two workers per core with few and many environments each.

        Raises:
            ModuleNotFoundError: No interpreter with Sample Factory is named.
        """
        if PYTHON not in os.environ:
            raise ModuleNotFoundError(f"{PYTHON} names no interpreter that has Sample Factory")
        workers = [task.cores, 2 * task.cores]
        sizes = sizes or tuple(task.cores * size for size in (8, 32, 128))
        return [
            SampleFactorySettings(size, num_workers=count, worker_num_splits=splits)
            for size in sizes
            for count in workers
            for splits in (1, 2)
            if size % (count * splits) == 0
        ]

    def start(self) -> None:
        """Start its processes and wait for the first trajectories."""
        config = self.task.config
        if config.env.kwargs or config.env.wrappers or config.env.max_episode_steps:
            raise EnvError("Sample Factory is compared on environments without arguments")
        if "conv net" in self.task.policy:
            raise EnvError("Sample Factory is compared with an MLP as its policy")
        self._directory = tempfile.TemporaryDirectory(prefix="sample_factory_")
        asked = {
            "env": config.env.id,
            "hidden_sizes": config.model.hidden_sizes,
            "flags": self._flags(),
        }
        self._process = subprocess.Popen(
            [os.environ[PYTHON], str(_CHILD), json.dumps(asked)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log.open("w"),
            text=True, bufsize=1, start_new_session=True,
        )  # fmt: skip
        try:
            self._answer(_START_S)
        except BaseException:
            self.close()
            raise
        self.rest()

    def run(self, seconds: float) -> int:
        """Wake its processes and let them sample; see `Method.run`."""
        assert self._process is not None
        assert self._process.stdin is not None
        os.killpg(self._process.pid, signal.SIGCONT)
        print(seconds, file=self._process.stdin, flush=True)
        return int(self._answer(seconds + _DEADLINE_S))

    def rest(self) -> None:
        """Stop its processes until they are asked again."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def close(self) -> None:
        """End its processes."""
        process, self._process = self._process, None
        if process is None:
            return
        _kill_all_but_the_tracker(process.pid)
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._directory.cleanup()

    @property
    def _log(self) -> Path:
        return Path(self._directory.name) / "stderr.txt"

    def _flags(self) -> dict[str, Any]:
        chosen, model = self.chosen, self.task.config.model
        return {
            "experiment": "comparison",
            "train_dir": self._directory.name,
            "device": "cpu",
            "seed": self.task.config.seed,
            "use_rnn": False,
            "nonlinearity": model.activation,
            "normalize_input": False,
            "rollout": 32,
            "num_workers": chosen.num_workers,
            "num_envs_per_worker": chosen.num_envs // chosen.num_workers,
            "worker_num_splits": chosen.worker_num_splits,
            "decorrelate_envs_on_one_worker": False,
            "decorrelate_experience_max_seconds": 0,
        }

    def _answer(self, timeout_s: float) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        end = time.monotonic() + timeout_s
        while not select.select([self._process.stdout], [], [], 0.2)[0]:
            if time.monotonic() > end:
                raise EnvError(f"Sample Factory gave no answer within {timeout_s:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            last = self._log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise EnvError(f"Sample Factory ended: {last}")
        return line


def _kill_all_but_the_tracker(group: int) -> None:
    """Kill a process group; multiprocessing's tracker then unlinks its semaphores, and ends."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) != group:
                continue
            if "resource_tracker" in " ".join(process.cmdline()):
                process.resume()
            else:
                process.kill()
