"""What the command line prints can be read on narrow terminals, too."""

import io
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
from rich.console import Console

from fastrl.cli.consoles import QuietConsole, show_tables
from fastrl.cli.output import loading
from fastrl.sampling.sampler import Memory
from fastrl.spec import Topology
from fastrl.throughput.benchmark import Report
from fastrl.throughput.limits import Limit
from fastrl.throughput.measure import Measurement
from fastrl.tuning import Candidate, Finding, Trial
from fastrl.tuning.tune_report import TuneReport

BIG, SMALL = Candidate(1024, 16, 8, 2, "cuda:0", "bfloat16"), Candidate(8, 2)


def throughput_report():
    found = Measurement(
        start_s=1.5, frames=123_456_789, fps=[1_234_567.0] * 3, limits=[Limit(2, 1e-6, 1e-6)] * 3,
        shares={"env-worker-0": {"stepping": 0.6, "inference": 0.1, "waiting": 0.2}},
        handoff_us={"env-worker": 12.0}, memory={"env-worker-0": Memory(123.0, 45.0)},
    )  # fmt: skip
    topology = Topology(1024, 16, 8, 2)
    policy = "conv net + 64×64 tanh, auto engine"
    return Report("ALE/Breakout-v5", topology, 128, policy, "cuda:0", "async", found, "fastrl x")


def tune_report():
    trial = Trial(BIG, SMALL, 0.4, 1_234_567.0, 123_456.0, 3.0)
    finding = Finding(
        BIG, SMALL, (1_234_567.0,) * 3, (123_456.0,) * 3, (trial,), (SMALL, BIG), 120.0,
        "no neighbour is faster",
    )  # fmt: skip
    return TuneReport("ALE/Breakout-v5", "fps", finding)


def printed(report, width):
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    show_tables(report.to_rich(), console)
    return file.getvalue()


@pytest.mark.parametrize("report", [throughput_report, tune_report])
def test_nothing_is_cut_at_40_columns(report):
    text = printed(report(), 40)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 40
    joined = " ".join(text.split())
    assert "1,234,567" in joined
    for word in printed(report(), 200).replace("┃", " ").replace("│", " ").split():
        assert word in joined or not any(sign.isalnum() for sign in word), word


@pytest.mark.parametrize("report", [throughput_report, tune_report])
def test_tables_are_tables_where_there_is_room(report):
    assert "│" in printed(report(), 200)


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "| true"])
def test_command_succeeds_where_standard_streams_are_closed(closed):
    command = f"set -o pipefail; {sys.executable} -m fastrl config CartPole-v1 {closed}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_console_whose_reader_is_gone_says_nothing_and_ends_nothing():
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    console = QuietConsole(file=Gone())
    console.print("a line")
    console.print("another")
    assert console.quiet


@pytest.mark.parametrize(("signals", "is_done"), [(1, True), (2, False)])
def test_ctrl_c_while_packages_are_imported_is_not_lost(signals, is_done):
    done = []

    @loading(quiet=True)
    def importing():
        # As some packages do.
        with suppress(BaseException):
            signal.raise_signal(signal.SIGINT)
        if signals > 1:
            signal.raise_signal(signal.SIGINT)
        done.append("everything")

    with pytest.raises(KeyboardInterrupt):
        importing()
    assert bool(done) == is_done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
