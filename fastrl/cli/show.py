"""Commands that show what is there: configurations, environments and plug-ins."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer
from rich.table import Table

from fastrl import registry
from fastrl.cli.arguments import ConfigArguments, EnvOption, split_arguments
from fastrl.cli.output import note, show_tables, write
from fastrl.config import config_schema, config_to_yaml, load_config
from fastrl.errors import ConfigError


def config(
    arguments: ConfigArguments = None,
    env: EnvOption = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of configuration files.")
    ] = False,
) -> None:
    """Print a configuration as it will be used: bases and overrides merged, defaults filled in."""
    if schema:
        write(json.dumps(config_schema(), indent=2))
        return
    path, overrides = split_arguments(arguments, env)
    write(config_to_yaml(load_config(path, overrides)).rstrip("\n"))


def envs(
    pattern: Annotated[str, typer.Argument(metavar="FILTER", help="Part of the id.")] = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Also list what misses a package, and which.")
    ] = False,
) -> None:
    """List the environments that can be built here."""
    from fastrl.envs.catalogue import list_environments

    found = list_environments(pattern)
    usable = [listing for listing in found if not listing.problem]
    if not found or not (usable or everything):
        raise ConfigError(f"no environment that can be built here has '{pattern}' in its id")
    table = Table("id", "time limit", box=None, pad_edge=False)
    if everything:
        table.add_column("problem", no_wrap=True)
    for listing in found if everything else usable:
        limit = "" if listing.max_episode_steps is None else str(listing.max_episode_steps)
        table.add_row(*[listing.id, limit, listing.problem][: len(table.columns)])
    show_tables(table)
    if len(found) > len(usable) and not everything:
        missing = len(found) - len(usable)
        note(f"{missing} more need packages that are not installed; see fastrl envs --all")


def plugins() -> None:
    """List what configurations choose by name, and its source."""
    table = Table("kind", "name", "source", box=None, pad_edge=False)
    found, broken = registry.entries(), registry.broken()
    if broken:
        table.add_column("problem", no_wrap=True)
    for entry in found:
        table.add_row(entry.kind, entry.name, _with_version(entry.source))
    for plugin in broken:
        table.add_row("plug-in", plugin.name, _with_version(plugin.source), plugin.reason)
    show_tables(table)
    if not broken and all(entry.source == "fastrl" for entry in found):
        note("no plug-in is installed; docs/guide/plugins.md says how one is written")


def _with_version(source: str) -> str:
    """Return a distribution and its version; the bare name for fastrl and for plain modules."""
    if source == "fastrl":
        return source
    try:
        return f"{source} {version(source)}"
    except (PackageNotFoundError, ValueError):
        return source
