"""Files and directories that are complete or absent, however their writing ends."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest

from fastrl.durable import new_directory, write_durably, write_output
from fastrl.errors import ConfigError

WRITING = """
import os, signal, sys
from pathlib import Path
from fastrl.durable import appearing, new_directory

with {how}(Path("made")) as place:
    {write}
    os.kill(os.getpid(), int(sys.argv[1]))
    raise SystemExit("it goes on")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("how", "write"),
    [("appearing", "place.write_text('a part')"), ("new_directory", "(place / 'a').mkdir()")],
)
def test_a_signal_leaves_nothing_and_ends_the_process(tmp_path, how, write, number):
    code = WRITING.format(how=how, write=write)
    done = subprocess.run(
        [sys.executable, "-c", code, str(int(number))],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        stderr=subprocess.DEVNULL,
        check=False,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    assert done.returncode == -number
    assert list(tmp_path.iterdir()) == []


def test_full_disk_keeps_the_old_file_and_leaves_no_part(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_bytes(b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_durably(file, b"new")
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"old"]


def test_output_goes_through_links_and_into_pipes(tmp_path):
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(target)
    write_output(link, b"found")
    assert (link.is_symlink(), target.read_bytes()) == (True, b"found")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_output(pipe, b"found")
    assert os.read(reader, 99) == b"found"
    os.close(reader)


def test_an_error_leaves_no_new_directory_and_none_above_it(tmp_path):
    for place in (tmp_path / "a" / "b" / "c", tmp_path):
        with pytest.raises(IsADirectoryError), new_directory(place) as made:
            made.write_text("")
        assert list(tmp_path.iterdir()) == []


def test_a_directory_is_written_by_one_process_alone(tmp_path):
    hidden = tmp_path / ".made.partial"
    hidden.mkdir()
    (hidden / "of a killed process").touch()
    with new_directory(tmp_path / "made") as place:
        (place / "a").touch()
        with (
            pytest.raises(ConfigError, match=r"made' is being written by another process; wait"),
            new_directory(tmp_path / "made"),
        ):
            pass
    assert [each.name for each in (tmp_path / "made").iterdir()] == ["a"]
    assert [each.name for each in tmp_path.iterdir()] == ["made"]


def test_a_new_directory_may_be_there_and_empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path / "new", tmp_path):
        with new_directory(place.relative_to(tmp_path)) as made:
            (made / "file").write_text("")
        assert (place / "file").exists()
        with (
            pytest.raises(ConfigError, match="is not empty; name a new directory"),
            new_directory(place),
        ):
            pass
        (place / "file").unlink()
        if place != tmp_path:
            place.rmdir()
