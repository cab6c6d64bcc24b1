"""A fake of Weights & Biases that follows its documentation, without a server."""

from __future__ import annotations


class UsageError(Exception):
    """The package's error for wrong arguments."""


class Video:
    """A video of a row."""

    def __init__(self, path):
        self.name = path.rpartition("/")[2]


class FakeWandb:
    """Fake of the package.

    Attributes:
        runs: Rows of each run by id.
        started: Arguments of every `init`.

    Args:
        rewinds: Whether the server can rewind runs.
    """

    Video = Video

    def __init__(self, rewinds=True):
        self.rewinds, self.runs, self.started = rewinds, {}, []

    def init(self, **arguments):
        """Start or continue a run."""
        self.started.append(arguments)
        if any(char in "/\\#?%:" for char in arguments["id"]):
            raise UsageError("Run ID cannot contain the characters: :;,#?/'")
        moment = arguments.get("resume_from")
        if moment is not None:
            if "resume" in arguments or "fork_from" in arguments:
                raise ValueError("`fork_from`, `resume` and `resume_from` are mutually exclusive")
            known, _, step = moment.partition("?_step=")
            if known != arguments["id"]:
                raise ValueError(
                    "`run_id` and `resume_from` have been specified with different ids"
                )
            if not self.rewinds:
                raise UsageError("rewinding is not\nenabled")
            if not 0 <= int(step) < len(self.runs[known]):
                raise UsageError("no such step")
            del self.runs[known][int(step) + 1 :]
        elif arguments.get("resume") != "allow":
            self.runs[arguments["id"]] = []
        return FakeRun(arguments["id"], self.runs.setdefault(arguments["id"], []))


class FakeRun:
    """Every `log` is one step."""

    def __init__(self, id, rows):
        self.id, self._rows = id, rows

    def define_metric(self, name, step_metric):
        """Record which metric is the x axis."""
        assert (name, step_metric) == ("*", "steps")

    def log(self, row):
        """Append a row."""
        self._rows.append(row)

    def finish(self):
        """Upload the rest; no row may follow."""
        self._rows = None
