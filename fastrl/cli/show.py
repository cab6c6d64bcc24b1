"""The commands that list, print or write: configurations, environments, plug-ins, new projects."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from fastrl.cli.inputs import (
    ConfigArguments,
    EnvOption,
    check_output,
    option,
    path_of,
    split_arguments,
)
from fastrl.cli.output import loading, note, show_wait, write, write_json
from fastrl.durable import new_directory, write_output, writing
from fastrl.errors import ConfigError
from fastrl.formats import check_ending

EXIT_FAILS = 1
PROJECT_FILES = Path(__file__).parent / "project"
"""Files of `fastrl new`: a project that trains and passes its tests."""


def config(
    arguments: ConfigArguments = None,
    env: EnvOption = None,
    schema: Annotated[bool, typer.Option("--schema")] = False,
    resolve: Annotated[bool, typer.Option("--resolve")] = False,
) -> None:
    """Print a resolved configuration: bases and overrides merged, defaults filled in.

    Options:
        schema: Print the JSON schema of configuration files.
        resolve: Import algorithm.class_path and check its keys, too.

    Examples:
        fastrl config configs/cartpole_ppo.yaml seed=7
        fastrl config --env CartPole-v1 --resolve
        fastrl config --schema > fastrl.schema.json
    """
    with show_wait("loading …"):
        from fastrl.config import config_schema, config_to_yaml, load_config, resolved

        if schema:
            described = config_schema()
        else:
            found = load_config(*split_arguments(arguments, env))
            found = resolved(found) if resolve else found
    if schema:
        write_json(described)
        return
    write(config_to_yaml(found).rstrip("\n"))


def dataset(
    path: Annotated[Path, typer.Argument(metavar="PATH", parser=path_of("PATH"))],
    picture: Annotated[Path | None, option("--picture", "FILE")] = None,
    json_file: Annotated[Path | None, option("--json", "FILE")] = None,
) -> None:
    """Print the returns, lengths, sizes and spaces of a dataset in Minari's format.

    Options:
        path: Directory of a dataset.
        picture: Draw returns and lengths here.
        json_file: Write all numbers here.

    Examples:
        fastrl dataset datasets/cartpole
        fastrl dataset datasets/cartpole --picture returns.png
    """
    if picture is not None:
        check_ending(picture)
    check_output("--picture", picture)
    check_output("--json", json_file)
    with loading():
        from fastrl.cli.consoles import show_tables
        from fastrl.datasets.summary import summarize

    with show_wait("reading …"):
        found = summarize(path)
    show_tables(found.to_rich())
    if picture is not None:
        found.draw(picture)
        note(str(picture))
    if json_file is not None:
        write_json(found.to_dict(), json_file)


def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", parser=path_of("FILE"))],
    entry: Annotated[str | None, typer.Argument(metavar="ENTRY")] = None,
    algorithm: Annotated[str | None, option("--algorithm", "NAME")] = None,
    env: EnvOption = None,
    output: Annotated[Path | None, option("--output -o", "FILE")] = None,
) -> None:
    """Convert hyperparameters of rl-baselines3-zoo to a configuration.

    Keys without a counterpart are listed.

    Options:
        file: File of rl-baselines3-zoo, such as ppo.yml.
        entry: Entry of the file, such as CartPole-v1.
        algorithm: ppo, a2c, ppo_lstm or ppo_mask; by default the name of the file.
        output: Write the configuration here.

    Examples:
        fastrl convert hyperparams/ppo.yml CartPole-v1 --output cartpole.yaml
        fastrl convert ppo.yml atari --env ALE/Breakout-v5 > breakout.yaml
    """
    check_output("--output", output)
    with loading(imports_torch=False):
        from fastrl.config.text import dump_yaml
        from fastrl.config.zoo import convert_entry

    found = convert_entry(file, entry, algorithm, env)
    for remark in found.remarks:
        note(remark)
    text = f"# Converted from {file.name} of rl-baselines3-zoo.\n{dump_yaml(found.tree)}"
    if output is None:
        write(text.rstrip("\n"))
        return
    with writing(output, ConfigError):
        write_output(output, text.encode())


def envs(
    pattern: Annotated[str, typer.Argument(metavar="FILTER")] = "",
    everything: Annotated[bool, typer.Option("--all")] = False,
) -> None:
    """List the environments that can be built here.

    If at most 20 ids contain the FILTER, each is built to find the source of its masks of valid
    actions.

    Options:
        pattern: Part of the id.
        everything: List those that need a package, too, with its name.

    Examples:
        fastrl envs
        fastrl envs CartPole
        fastrl envs --all
    """
    with loading():
        from rich.table import Table

        from fastrl.cli.consoles import show_tables
        from fastrl.envs.catalogue import list_environments

    with show_wait("building environments …"):
        found = list_environments(pattern)
    usable = [listing for listing in found if not listing.problem]
    if not found or not (usable or everything):
        raise ConfigError(f"no environment that can be built here has '{pattern}' in its id")
    table = Table("id", "time limit", box=None, pad_edge=False)
    has_masks = any(listing.masks for listing in usable)
    if has_masks:
        table.add_column("masks of valid actions")
    if everything:
        table.add_column("problem", no_wrap=True)
    for listing in found if everything else usable:
        limit = "" if listing.max_episode_steps is None else str(listing.max_episode_steps)
        masks = [listing.masks] if has_masks else []
        table.add_row(*[listing.id, limit, *masks, listing.problem][: len(table.columns)])
    show_tables(table)
    if len(found) > len(usable) and not everything:
        missing = len(found) - len(usable)
        note(f"{missing} more need packages that are not installed; see fastrl envs --all")


def doctor(
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> int:
    """Check this machine: report what will be slow or fail, with remedies.

    Samples a few steps in a worker process. The exit code is 1 if something fails, else 0.

    Options:
        as_json: Print a list of objects instead of lines.

    Examples:
        fastrl doctor
        fastrl doctor --json
    """
    with loading(imports_torch=as_json):
        from fastrl.cli.checks import diagnoses

    found = []
    for diagnosis in diagnoses(show_wait):
        found.append(diagnosis)
        if not as_json:
            write(str(diagnosis))
    if as_json:
        write_json([asdict(diagnosis) for diagnosis in found])
    return EXIT_FAILS if any(diagnosis.level == "fails" for diagnosis in found) else 0


def new(
    directory: Annotated[Path, typer.Argument(metavar="DIR", parser=path_of("DIR"))],
) -> None:
    """Write a project: an environment with its test, a wrapper, a configuration and a script.

    Options:
        directory: A new directory, or an empty one.

    Examples:
        fastrl new my_project
    """
    for file in _write_project(directory):
        write(str(file))
    note(f"next: cd {shlex.quote(str(directory))}; python -m pytest; fastrl train config.yaml")


def _write_project(directory: Path) -> list[Path]:
    """Write the files of a project into a directory, which must be empty.

    Returns:
        Paths of the files.

    Raises:
        ConfigError: The directory is not empty or cannot be written.
    """
    names = []
    with new_directory(directory) as place, writing(directory, ConfigError):
        for source in sorted(PROJECT_FILES.iterdir()):
            # The suffix keeps tools from taking these files for modules of fastrl.
            names.append(source.name.removesuffix(".txt"))
            (place / names[-1]).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    return [directory / name for name in names]


def plugins() -> None:
    """List the names for configurations, with their sources.

    Examples:
        fastrl plugins
    """
    with loading(imports_torch=False):
        from rich.table import Table

        from fastrl import registry
        from fastrl.cli.consoles import show_tables

    table = Table("kind", "name", "source", box=None, pad_edge=False)
    with show_wait("looking for plug-ins …"):
        found, broken = registry.entries(), registry.broken()
    if broken:
        table.add_column("problem", no_wrap=True)
    for entry in found:
        table.add_row(entry.kind, entry.name, _with_version(entry.source))
    for plugin in broken:
        table.add_row("plug-in", plugin.name, _with_version(plugin.source), plugin.reason)
    show_tables(table)
    if not broken and all(entry.source == "fastrl" for entry in found):
        note("no plug-in is installed; docs/guide/plugins.md shows how to write one")


def _with_version(source: str) -> str:
    """Return a distribution and its version; the bare name for fastrl and for plain modules."""
    if source == "fastrl":
        return source
    try:
        return f"{source} {version(source)}"
    except (PackageNotFoundError, ValueError):
        return source
