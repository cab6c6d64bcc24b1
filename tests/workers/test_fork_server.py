"""A fork server that ends by itself is not started again and again."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere its end is not seen")

SCRIPT = textwrap.dedent(
    """
    import time
    from fastrl.errors import FastrlError
    from fastrl.workers import processes
    from fastrl.workers.supervisor import Supervisor

    processes._PRELOAD = (*processes._PRELOAD[:1], "loaded_first")
    supervisor = Supervisor(request_stop=lambda: None, grace_s=0.1)
    try:
        supervisor.start("worker-0", time.sleep, 600)
    except FastrlError as error:
        print(error)
    """
)


def run(script, folder):
    """Return what a script writes that finds modules in a folder."""
    path = os.pathsep.join([str(folder), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("does", "told", "written"),
    [
        (
            "raise ValueError('a\\nb')",
            "worker-0 cannot be started: the fork server ended with exit code 1\n",
            "fastrl: the fork server ends: ValueError: a b\n",
        ),
        (
            "raise OSError(28, 'No space left on device')",
            "worker-0 cannot be started: No space left on device\n",
            "",
        ),
        (
            "raise MemoryError",
            "worker-0 cannot be started: Cannot allocate memory; lower sampler.num_env_workers, "
            "or give the processes more memory\n",
            "",
        ),
        (
            "import os, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.abort()",
            "worker-0 cannot be started: the fork server was ended by SIGABRT\n",
            "",
        ),
    ],
    ids=["raises", "disk full", "no memory", "aborts"],
)
def test_server_that_ends_by_itself_is_one_line_at_once(tmp_path, does, told, written):
    (tmp_path / "loaded_first.py").write_text(
        f"open({str(tmp_path / 'starts')!r}, 'a').write('.')\n{does}\n"
    )
    assert run(SCRIPT, tmp_path) == (told, written)
    assert (tmp_path / "starts").read_text() == "."


def test_server_that_is_killed_while_it_starts_is_replaced(tmp_path):
    (tmp_path / "loaded_first.py").write_text(
        textwrap.dedent(
            f"""
            import os, pathlib, signal
            if not (seen := pathlib.Path({str(tmp_path / "seen")!r})).exists():
                seen.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            """
        )
    )
    assert run(f"{SCRIPT}\nprint(*supervisor.pids())", tmp_path) == ("worker-0\n", "")
    assert (tmp_path / "seen").exists()
