"""Puts a candidate into a configuration: in memory, into its YAML file, or into an overlay."""

from __future__ import annotations

import codecs
import io
import os
import shutil
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from fastrl.config import Config, load_config
from fastrl.cores import usable_cores
from fastrl.errors import ConfigError
from fastrl.training.durable import write_and_sync
from fastrl.tuning.candidate import Candidate

_ALWAYS = ("envs_per_worker", "num_env_workers", "num_model_workers", "groups")


def candidate_of(config: Config) -> Candidate:
    """Return what a configuration says, with ``auto`` resolved for this machine."""
    sampler = config.sampler
    workers = sampler.num_env_workers
    return Candidate(
        envs_per_worker=sampler.envs_per_worker,
        num_env_workers=usable_cores() if workers == "auto" else workers,
        num_model_workers=sampler.num_model_workers,
        groups=sampler.groups,
        device=",".join(sampler.devices),
        engine=sampler.engine,
        torch_threads=sampler.torch_threads,
    )


def with_candidate(config: Config, candidate: Candidate) -> Config:
    """Return a configuration that samples as a candidate says."""
    return config.model_copy(
        update={"sampler": config.sampler.model_copy(update=_keys(candidate, typed=True))}
    )


def write_into(path: Path, config: Config, candidate: Candidate) -> None:
    """Put a candidate into the section ``sampler`` of a YAML file, whose comments stay.

    A time for tuning goes: what has been found is not to be looked for again.

    Args:
        path: The file that ``config`` was read from, perhaps with overrides.
        config: Names the environment, which the file may not.
        candidate: What to write.

    Raises:
        ConfigError: The file cannot be changed, or would not be valid afterwards.
    """
    yaml = _yaml()
    try:
        content = path.read_bytes()
        tree = yaml.load(content.decode("utf-8-sig").replace("\r\n", "\n"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ConfigError(f"{path} cannot be changed: {_one_line(error)}") from error
    before = _alone(path, config)
    if tree is None:
        tree = {}
    section = tree.get("sampler")
    if not isinstance(section, dict):
        # A name such as 'auto', or nothing at all.
        section = tree["sampler"] = {} if section in (None, "auto") else {"kind": section}
    section.pop("tune_s", None)
    for key, value in _changes(before, candidate).items():
        section[key] = value
    if "base" not in tree:
        section.pop("tune_s", None)
    _replace(path, _like(content, _text(yaml, tree)), config)


def write_overlay(path: Path, base: Path | None, config: Config, candidate: Candidate) -> None:
    """Write a YAML file that lays a candidate over another file.

    Raises:
        ConfigError: The file cannot be written.
    """
    tree: dict[str, Any] = {}
    if base is not None:
        tree["base"] = os.path.relpath(base.resolve(), path.resolve().parent)
    else:
        tree["env"] = {"id": config.env.id}
    tree["sampler"] = _changes(_alone(base, config), candidate)
    _replace(path, _text(_yaml(), tree).encode(), config)


def _keys(candidate: Candidate, *, typed: bool = False) -> dict[str, Any]:
    """Return the keys of the section ``sampler``."""
    keys = candidate.to_dict()
    devices = tuple(candidate.device.split(","))
    keys["device"] = devices[0] if len(devices) == 1 else devices if typed else list(devices)
    return keys


def _changes(config: Config, candidate: Candidate) -> dict[str, Any]:
    """Return the keys that matter: n, N, M and groups, and whatever differs besides."""
    now = _keys(candidate_of(config))
    changes = {k: v for k, v in _keys(candidate).items() if k in _ALWAYS or v != now[k]}
    return changes if config.sampler.tune_s is None else {**changes, "tune_s": None}


def _alone(path: Path | None, config: Config) -> Config:
    """Return what a file says without the overrides of ``config``, but for its environment."""
    return load_config(path, [f"env.id={config.env.id}"])


def _yaml() -> YAML:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    return yaml


def _text(yaml: YAML, tree: Any) -> str:  # noqa: ANN401
    stream = io.StringIO()
    yaml.dump(tree, stream)
    return stream.getvalue()


def _like(before: bytes, text: str) -> bytes:
    """Return a text with the line ends, and the mark at its beginning, that a file has."""
    if before.count(b"\r\n") * 2 > before.count(b"\n"):
        text = text.replace("\n", "\r\n")
    mark = codecs.BOM_UTF8 if before.startswith(codecs.BOM_UTF8) else b""
    return mark + text.encode()


def _replace(path: Path, content: bytes, config: Config) -> None:
    """Write a configuration, after it was found to be valid; a link stays, and so does the mode."""
    # Beside the link, where its base is looked for, and beside the file, which it replaces.
    target = path.resolve()
    trial, new = path.with_name(f".{path.name}.new"), target.with_name(f".{target.name}.new")
    try:
        try:
            write_and_sync(trial, content)
            load_config(trial, [f"env.id={config.env.id}"])
            write_and_sync(new, content)
            if target.exists():
                shutil.copymode(target, new)
            os.replace(new, target)
        finally:
            trial.unlink(missing_ok=True)
            new.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())
