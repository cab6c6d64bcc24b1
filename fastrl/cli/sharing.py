"""The commands that share runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastrl.cli.learn import CheckpointName, Run
from fastrl.cli.output import loading, note, write

Repo = Annotated[
    str,
    typer.Argument(
        metavar="REPO",
        help="owner/name on the Hugging Face hub (extra 'hub'), or a folder such as ./name.",
    ),
]


def push(
    run: Run,
    repo: Repo,
    checkpoint: CheckpointName = None,
    private: Annotated[
        bool, typer.Option("--private", help="Create a private repository, if it is missing.")
    ] = False,
) -> None:
    """Share a policy: weights, configuration, versions, metrics, and a page with curve and video.

    What training resumes from stays here. 'hf auth login' logs in to the hub.
    """
    with loading():
        from fastrl.training import push_run

    write(push_run(run, repo, checkpoint=checkpoint, private=private))


def pull(
    repo: Repo,
    directory: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR",
            help="A new directory; by default runs/ and the last part of REPO.",
            show_default=False,
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option("--revision", metavar="NAME", help="A branch, tag or commit on the hub."),
    ] = None,
) -> None:
    """Copy a shared run; 'fastrl eval' then plays what its author's command played."""
    with loading():
        from fastrl.training import pull_run
        from fastrl.training.run_directory import read_config
        from fastrl.training.trust import named_code

    path = pull_run(repo, directory, revision=revision)
    write(str(path))
    if named := named_code(read_config(path)):
        note(f"it imports {', '.join(named)}: read that code before you use the run with --trust")
