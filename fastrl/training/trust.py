"""Whose code a run directory would import: what this user trained, and what comes from elsewhere.

A configuration names code, and loading a run imports it. A run that this user trained, or trusted
once, carries a signature: a keyed hash of all that its configuration says about code. The key never
leaves the user's data directory, so a directory from elsewhere has no valid signature.
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
from fastrl.envs.family import family_of, own_families
from fastrl.errors import ConfigError
from fastrl.training.durable import make_directory, write_durably, writing

SIGNATURE = "signature"
"""Name of the file in a run's directory."""

_KEY_BYTES = 32
_KNOWN_WRAPPERS = ("gymnasium.wrappers", "gymnasium.wrappers.vector")
_WRITING_WRAPPERS = ("RecordVideo",)
"""Of these: what writes files where its arguments say."""


def named_code(config: Config) -> list[str]:
    """Return the import paths that a configuration names, each with its key.

    Registered ids, gymnasium's wrappers and fastrl's factories are left out: they import nothing
    but these packages and plug-ins that are installed, and write no files but those of
    ``RecordVideo``, which is named.
    """
    named = []
    factories = {path: name for each in own_families() for path, name in each.factories.items()}
    if (argument := factories.get(config.env.id)) is None:
        if not _is_known_id(config.env.id):
            named.append(f"'{config.env.id}' (env.id)")
    else:
        # Its argument is an id, too.
        both = {
            "env.kwargs": config.env.kwargs,
            "evaluation.env_kwargs": config.evaluation.env_kwargs,
        }
        for key, kwargs in both.items():
            if not _is_known_id(str(kwargs.get(argument, ""))):
                named.append(f"'{kwargs[argument]}' ({key}.{argument})")
    for key, _, paths in _keys(config):
        unknown = (
            path for path in paths if not (key == "env.wrappers" and _is_known_wrapper(path))
        )
        named += [f"'{path}' ({key})" for path in unknown]
    return named


def sign(directory: Path, config: Config) -> None:
    """Mark a run as this user's.

    Where the user's data directory cannot be written, the run gets no signature.

    Raises:
        WriteError: The run's directory cannot be written.
    """
    key = _key(make=True)
    if key is not None:
        with writing(directory / SIGNATURE):
            write_durably(directory / SIGNATURE, _signature(key, config).encode())


def require_trust(directory: Path, config: Config) -> None:
    """Reject a run from elsewhere that would import code.

    Args:
        directory: Of the run.
        config: As the directory has it.

    Raises:
        ConfigError: The run has no signature of this user; names what would be imported.
    """
    named = named_code(config)
    if not named or _is_signed(directory, config):
        return
    raise ConfigError(
        f"'{directory}' was not trained by this user, and would import {', '.join(named)}; read "
        "that code first, then add --trust, or trust=True in Python"
    )


def _is_known_id(env_id: str) -> bool:
    _, colon, rest = env_id.partition(":")
    is_registered = not colon or (":" not in rest and family_of(env_id) is not None)
    return is_registered or any(env_id in family.aliases for family in own_families())


def _is_known_wrapper(path: str) -> bool:
    module, _, name = path.partition(":")
    return module in _KNOWN_WRAPPERS and "." not in name and name not in _WRITING_WRAPPERS


def _keys(config: Config) -> Iterator[tuple[str, object, list[str]]]:
    """Yield each key that names code, what it says, and the import paths in it; see `code_of`."""
    section = config.algorithm
    for key, value, paths in code_of(config):
        if section.import_path is None or not key.startswith("algorithm."):
            yield key, value, paths
    if section.import_path is not None:
        # All of the section is for the code; which keys it has is not known before the import.
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
    said: dict[str, object] = {
        "env.id": config.env.id,
        "env.kwargs": config.env.kwargs,
        "env.wrappers": config.env.wrappers,
        "evaluation.env_kwargs": config.evaluation.env_kwargs,
        "model.class_path": config.model.class_path,
        "model.kwargs": config.model.kwargs,
    }
    # Keys that the first versions did not have count where they name code, so that older
    # signatures stay valid.
    said |= {key: value for key, value, paths in _keys(config) if paths and key not in said}
    # What has arguments is a section; everything else is of plain types.
    text = json.dumps(said, sort_keys=True, default=dict)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _key(*, make: bool) -> bytes | None:
    """Return this user's key; None where there is none."""
    with suppress(OSError, RuntimeError):  # the user may have no home
        data = os.environ.get("XDG_DATA_HOME") or Path("~/.local/share").expanduser()
        file = Path(data) / "fastrl" / "key"
        if make and not file.exists():
            _make_key(file)
        key = file.read_bytes()
        return key if len(key) == _KEY_BYTES else None
    return None


def _make_key(file: Path) -> None:
    """Write a new key, unless another process does so first."""
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
