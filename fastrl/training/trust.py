"""Trust: only run directories that this user has trained or trusted may import code.

A configuration names code, and loading a run imports it. A run that this user trained, or trusted
once, has a signature: a keyed hash of all keys of its configuration that name code. The key
stays in the user's data directory, so a directory from elsewhere has no valid signature.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from fastrl.config import Config
from fastrl.config.fields import code_of
from fastrl.durable import make_directory, write_durably, writing
from fastrl.envs.family import family_of, own_families
from fastrl.errors import ConfigError
from fastrl.runs import SIGNATURE

_KEY_BYTES = 32
_KNOWN_WRAPPERS = ("gymnasium.wrappers", "gymnasium.wrappers.vector")
_WRITING_WRAPPERS = ("RecordVideo",)
"""Wrappers that write files at paths in their arguments."""


def named_code(config: Config) -> list[str]:
    """Return the import paths in a configuration, each with its key.

    Registered ids, gymnasium's wrappers and fastrl's factories are left out, as they only import
    these packages and installed plug-ins. ``RecordVideo`` is included, since it writes files.
    """
    factories = {path: name for each in own_families() for path, name in each.factories.items()}
    ids: dict[str, object] = {"env.id": config.env.id}
    if (argument := factories.get(config.env.id)) is not None:
        # The factory is fastrl's; its argument is an id.
        ids = {
            f"env.kwargs.{argument}": config.env.kwargs.get(argument, ""),
            f"evaluation.env_kwargs.{argument}": config.evaluation.env_kwargs.get(argument, ""),
        }
    named = [f"'{value}' ({key})" for key, value in ids.items() if not _is_known_id(str(value))]
    for key, _, paths in _keys(config):
        unknown = (each for each in paths if key != "env.wrappers" or not _is_known_wrapper(each))
        named += [f"'{path}' ({key})" for path in unknown]
    return named


def sign(directory: Path, config: Config) -> None:
    """Mark a run as this user's, unless the user's data directory cannot be written.

    Raises:
        WriteError: The run's directory cannot be written.
    """
    key = _key(make=True)
    if key is not None:
        with writing(directory / SIGNATURE):
            write_durably(directory / SIGNATURE, _signature(key, config).encode())


def require_trust(directory: Path, config: Config) -> None:
    """Reject an untrusted run directory whose configuration would import code.

    Raises:
        ConfigError: The run lacks this user's signature; the error names the imports.
    """
    named = named_code(config)
    if not named or _is_signed(directory, config):
        return
    raise ConfigError(
        f"'{directory}' was not trained by this user, and would import {', '.join(named)}; read "
        "this code first, then add --trust, or trust=True in Python"
    )


def _is_known_id(env_id: str) -> bool:
    _, colon, rest = env_id.partition(":")
    is_registered = not colon or (":" not in rest and family_of(env_id) is not None)
    return is_registered or any(env_id in family.aliases for family in own_families())


def _is_known_wrapper(path: str) -> bool:
    module, _, name = path.partition(":")
    return module in _KNOWN_WRAPPERS and "." not in name and name not in _WRITING_WRAPPERS


def _keys(config: Config) -> Iterator[tuple[str, object, list[str]]]:
    """Yield each key that names code, its value, and the import paths in it; see `code_of`."""
    section = config.algorithm
    for key, value, paths in code_of(config):
        if section.import_path is None or not key.startswith("algorithm."):
            yield key, value, paths
    if section.import_path is not None:
        # The whole section is passed to the code, and its keys are unknown before the import.
        yield "algorithm.class_path", section.model_dump(mode="json"), [section.import_path]


def _is_signed(directory: Path, config: Config) -> bool:
    key = _key(make=False)
    if key is None:
        return False
    with suppress(OSError, ValueError):
        file = directory / SIGNATURE
        found = file.read_bytes() if file.is_file() else b""
        return hmac.compare_digest(found, _signature(key, config).encode())
    return False


def _signature(key: bytes, config: Config) -> str:
    signed: dict[str, object] = {
        "env.id": config.env.id,
        "env.kwargs": config.env.kwargs,
        "env.wrappers": config.env.wrappers,
        "evaluation.env_kwargs": config.evaluation.env_kwargs,
        "model.class_path": config.model.class_path,
        "model.kwargs": config.model.kwargs,
    }
    # Newer keys count only if they name code, so that older signatures stay valid.
    signed |= {key: value for key, value, paths in _keys(config) if paths and key not in signed}
    # Values with arguments are sections; all others have plain types.
    text = json.dumps(signed, sort_keys=True, default=dict)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _key(*, make: bool) -> bytes | None:
    """Return this user's key, or None."""
    with suppress(OSError, RuntimeError):  # the user may have no home directory
        data = os.environ.get("XDG_DATA_HOME") or Path("~/.local/share").expanduser()
        file = Path(data) / "fastrl" / "key"
        if make and not file.exists():
            _make_key(file)
        key = file.read_bytes()
        return key if len(key) == _KEY_BYTES else None
    return None


def _make_key(file: Path) -> None:
    """Write a new key, unless another process has written one."""
    make_directory(file.parent)
    new = file.with_name(f"key.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(secrets.token_bytes(_KEY_BYTES))
        with suppress(FileExistsError):
            os.link(new, file)
    finally:
        new.unlink(missing_ok=True)
