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
    import sys, time
    from fastrl.errors import FastrlError
    from fastrl.workers import processes
    from fastrl.workers.supervisor import Supervisor

    supervisor = Supervisor(request_stop=lambda: None, grace_s=0.1)
    for module in sys.argv[1:]:
        processes._PRELOAD = ("fastrl.workers.fork_server", module)
        try:
            supervisor.start("worker-0", time.sleep, 600)
        except FastrlError as error:
            print(error)
        else:
            print(*supervisor.pids())
    """
)
ENDS = {
    "raises": (
        "raise ValueError('a\\nb')",
        "worker-0 cannot be started: the fork server ended with exit code 1",
    ),
    "disk_full": (
        "raise OSError(28, 'No space left on device')",
        "worker-0 cannot be started: No space left on device",
    ),
    "no_memory": (
        "raise MemoryError",
        "worker-0 cannot be started: Cannot allocate memory; lower sampler.num_env_workers, "
        "or give the processes more memory",
    ),
    "aborts": (
        "import os, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.abort()",
        "worker-0 cannot be started: the fork server was ended by SIGABRT",
    ),
    "killed_once": (
        "import os, signal; starts.tell() > 1 or os.kill(os.getpid(), signal.SIGKILL)",
        "worker-0",
    ),
}


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """Start fork servers that end in these ways.

    Return the lines of the starts, standard error, and how often each server was started.
    """
    folder = tmp_path_factory.mktemp("ends")
    for name, (does, _) in ENDS.items():
        counting = f"with open({str(folder / name)!r}, 'a') as starts:\n    starts.write('.')\n"
        (folder / f"{name}.py").write_text(f"{counting}    starts.flush()\n    {does}\n")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *ENDS],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    starts = {name: len((folder / name).read_text()) for name in ENDS}
    return dict(zip(ENDS, done.stdout.splitlines(), strict=True)), done.stderr, starts


@pytest.mark.parametrize("name", [name for name in ENDS if name != "killed_once"])
def test_server_that_ends_by_itself_is_one_line_at_once(ends, name):
    told, _, starts = ends
    assert told[name] == ENDS[name][1]
    assert starts[name] == 1


def test_server_says_why_it_ends_where_no_exit_code_does(ends):
    assert ends[1] == "fastrl: the fork server ends: ValueError: a b\n"


def test_server_that_is_killed_while_it_starts_is_replaced(ends):
    told, _, starts = ends
    assert told["killed_once"] == "worker-0"
    assert starts["killed_once"] == 2
