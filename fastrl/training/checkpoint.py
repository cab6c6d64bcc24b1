"""Checkpoints: complete or absent, verified when they are read, and never able to run code.

A checkpoint is a directory ``step_<steps>`` with these files: ``model.safetensors``; ``state.pt``,
all else that training resumes from, which ``torch.load`` reads with ``weights_only=True``, and
which a shared run lacks; ``environments.safetensors``, if the running episodes can be saved (see
`fastrl.envs.state`); and ``meta.json``, which describes the checkpoint and has the checksums of the
other files. It is written under another name, synced to the disk and then renamed, so a checkpoint
with its final name is complete. `saver` decides when and what to save.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from fastrl.durable import (
    json_bytes,
    read_bounded,
    write_and_sync,
    write_durably,
    writing,
)
from fastrl.errors import CheckpointError
from fastrl.runs import BEST, STEP, Checkpoints
from fastrl.system import sync

FORMAT = "fastrl checkpoint"
FORMAT_VERSION = 1

_MODEL, _STATE, _META = "model.safetensors", "state.pt", "meta.json"
_ENVIRONMENTS = "environments.safetensors"
_MOST_JSON_BYTES = 2**24


_writing = partial(writing, kind=CheckpointError, what="checkpoint ")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run.

    Attributes:
        model: The model's state dict.
        state: Nested dicts, lists, tensors, numbers and text: everything else that training
            resumes from; empty in a shared run, which has only the weights.
        about: Plain JSON types that can be read without loading the rest; at least ``steps``.
        environments: Packed result of a sampler's `get_state`; None if new episodes begin.
    """

    model: Mapping[str, Tensor]
    state: Mapping[str, Any]
    about: Mapping[str, Any]
    environments: bytes | None = None

    @property
    def steps(self) -> int:
        """Number of environment steps that were learnt from."""
        return int(self.about["steps"])

    @property
    def name(self) -> str:
        """Name of the checkpoint's directory."""
        return _name(self.steps)

    def files(self) -> dict[str, bytes]:
        """Return the content of each of its files."""
        contents = {
            _MODEL: safetensors.torch.save(
                {name: tensor.contiguous() for name, tensor in self.model.items()}
            ),
        }
        if self.state:
            buffer = io.BytesIO()
            torch.save(dict(self.state), buffer)
            contents[_STATE] = buffer.getvalue()
        if self.environments is not None:
            contents[_ENVIRONMENTS] = self.environments
        meta = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **self.about,
            "sha256": {name: _checksum(content) for name, content in contents.items()},
        }
        return {**contents, _META: json_bytes(meta)}

    @classmethod
    def of_files(cls, read: Callable[[str], bytes], path: Path) -> Checkpoint:
        """Return the checkpoint that has some files.

        Args:
            read: Returns the content of a file by its name; see `files`.
            path: Path of its directory, for errors.

        Raises:
            CheckpointError: A file is damaged or foreign.
        """
        meta = _checked_meta(read(_META), path)
        contents = {}
        for name in (_MODEL, *({_STATE, _ENVIRONMENTS} & meta["sha256"].keys())):
            contents[name] = read(name)
            if _checksum(contents[name]) != meta["sha256"].get(name):
                raise _damaged(path, f"{name} has changed since it was written")
        try:
            model = safetensors.torch.load(contents[_MODEL])
            state = {}
            if _STATE in contents:
                buffer = io.BytesIO(contents[_STATE])
                state = torch.load(buffer, map_location="cpu", weights_only=True)
        except Exception as error:  # readers of damaged bytes may raise anything
            raise _damaged(path, str(error).partition("\n")[0] or type(error).__name__) from None
        if not isinstance(state, dict):
            raise _damaged(path, f"{_STATE} holds no state")
        about = {k: v for k, v in meta.items() if k not in ("format", "format_version", "sha256")}
        return cls(model, state, about, contents.get(_ENVIRONMENTS))


class CheckpointStore(Checkpoints):
    """The checkpoints of a run: the last k, and the one with the best evaluation.

    Args:
        directory: Existing directory of the checkpoints; it is not made again after it was removed.
        keep_last: k.
        on_written: Called with the directory of each checkpoint once it is complete.
        require: Called before each is written; raises an error if the run is gone.
    """

    def __init__(
        self,
        directory: Path,
        keep_last: int = 3,
        on_written: Callable[[Path], None] = lambda path: None,
        require: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(directory)
        self._keep_last = keep_last
        self._on_written, self._require = on_written, require

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint unless it exists, remove old ones, and return its directory.

        Raises:
            CheckpointError: It cannot be written.
            FastrlError: The run is gone.
        """
        final = self._directory / checkpoint.name
        self._require()
        if final.exists():
            return final
        try:
            with _writing(final):
                self._write(checkpoint, final)
                self._prune(checkpoint.name)
        except CheckpointError:
            self._require()  # which says more if the run was removed meanwhile
            raise
        self._on_written(final)
        return final

    def save_best(self, checkpoint: Checkpoint, about: Mapping[str, Any]) -> Path:
        """Save a checkpoint as the best one.

        Args:
            checkpoint: The best one.
            about: Plain JSON types: result of its evaluation.

        Raises:
            CheckpointError: It cannot be written.
        """
        final = self.save(checkpoint)
        with _writing(final):
            tree = {"checkpoint": checkpoint.name, **about}
            write_durably(self._directory / BEST, json_bytes(tree))
            self._prune(checkpoint.name)
        return final

    def load(self, name: str) -> Checkpoint:
        """Read a checkpoint.

        Args:
            name: As in `names`, or ``last`` or ``best``.

        Raises:
            CheckpointError: There is none of that name, or it is damaged, foreign or newer than
                this version of fastrl; the error names an older one to resume from.
        """
        chosen = self.resolve(name)
        try:
            path = self._directory / chosen
            return Checkpoint.of_files(partial(_content, path), path)
        except CheckpointError as error:
            older = [other for other in self.names() if other < chosen]
            offer = f"; the one before it is {older[-1]}" if older else "; there is no older one"
            raise CheckpointError(f"{error}{offer}") from error

    def set_aside_after(self, name: str) -> None:
        """Rename the checkpoints that are newer than this one, from which training resumes.

        Raises:
            CheckpointError: They cannot be renamed.
        """
        for newer in self.names():
            if newer > name:
                aside = self._directory / f"discarded_{newer}"
                shutil.rmtree(aside, ignore_errors=True)
                with _writing(aside):
                    (self._directory / newer).rename(aside)

    def clean(self) -> None:
        """Remove the remains of an interrupted `save`; only in the process that saves."""
        for path in self._directory.glob(f".{STEP}*"):
            shutil.rmtree(path, ignore_errors=True)

    def _write(self, checkpoint: Checkpoint, final: Path) -> None:
        hidden = self._directory / f".{checkpoint.name}.partial"
        shutil.rmtree(hidden, ignore_errors=True)
        try:
            hidden.mkdir()
            for name, content in checkpoint.files().items():
                write_and_sync(hidden / name, content)
            sync(hidden)
            hidden.rename(final)
        except OSError:
            # Frees space on a full disk.
            shutil.rmtree(hidden, ignore_errors=True)
            raise
        sync(self._directory)

    def _prune(self, written: str) -> None:
        """Remove all but the last k, the best one, and the one that was just written.

        That one is older than the last k if its evaluation took long, and becomes the best.
        """
        names, best = self.names(), self.best()
        kept = {*names[-self._keep_last :], best["checkpoint"] if best else "", written}
        for name in names:
            if name not in kept:
                # Renamed first, so that a partly removed one is never read as a checkpoint.
                removed = self._directory / f".{name}.removed"
                shutil.rmtree(removed, ignore_errors=True)
                (self._directory / name).rename(removed)
                shutil.rmtree(removed, ignore_errors=True)


def _content(path: Path, name: str) -> bytes:
    try:
        return read_bounded(path / name, _MOST_JSON_BYTES if name == _META else None)
    except OSError as error:
        raise _damaged(path, f"{name}: {error.strerror}") from None


def _checked_meta(content: bytes, path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(content)
    except (ValueError, RecursionError):
        raise _damaged(path, f"{_META} is not JSON") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise CheckpointError(f"'{path}' is not a checkpoint of fastrl")
    if meta.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"'{path}' has format version {meta.get('format_version')}; "
            f"this version of fastrl reads version {FORMAT_VERSION}"
        )
    steps = meta.get("steps")
    if type(steps) is not int or not isinstance(meta.get("sha256"), dict):
        raise _damaged(path, f"{_META} lacks what a checkpoint has")
    if path.name != _name(steps):
        raise _damaged(path, f"{_META} is that of {_name(steps)}")
    return meta


def _name(steps: int) -> str:
    return f"{STEP}{steps:012d}"[:100]


def _damaged(path: Path, how: str) -> CheckpointError:
    return CheckpointError(f"checkpoint '{path}' is damaged: {how}")


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
