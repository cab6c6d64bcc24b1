"""Sharing of runs: in a folder, or in a repository of the Hugging Face hub.

A shared run has the layout of a run directory: one checkpoint with only the weights, and text,
pictures and videos. None of these files can run code, and no other files are copied.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fastrl.closing import unwinding
from fastrl.config import Config, config_to_yaml
from fastrl.config.models import LoggingConfig
from fastrl.config.text import dump_yaml
from fastrl.curves import is_number
from fastrl.durable import (
    new_directory,
    read_bounded,
    read_object,
    write_and_sync,
    writing,
)
from fastrl.errors import CheckpointError, ConfigError, one_line
from fastrl.imports import DISTRIBUTION, how_to_install
from fastrl.runs import check_pull, check_push, locate, read_config
from fastrl.training.checkpoint import Checkpoint, CheckpointStore
from fastrl.training.plotting import plot_runs
from fastrl.training.run_directory import require_own_files
from fastrl.training.trust import named_code

CARD, CURVE = "README.md", "curve.png"
"""Files of the model card and its picture."""

_TEXTS = ("versions.json", "spaces.json", "metrics.jsonl", "summary.json")
"""Files of a run that are shared unchanged."""
_SHARED = re.compile(
    r"README\.md|curve\.png|config\.yaml|versions\.json|spaces\.json|metrics\.jsonl|summary\.json"
    r"|checkpoints/step_[0-9]{1,20}/(model\.safetensors|meta\.json)"
    r"|videos/[\w-][\w.-]{0,99}\.(mp4|gif)"
)
"""The only files that are copied from a shared run."""
_LONGEST_REASON = 300


def push_run(
    run: str | Path, repo: str | Path, *, checkpoint: str | None = None, private: bool = False
) -> str:
    """Share the policy of a run, with its configuration, versions, metrics, curve and video.

    Only the weights of one checkpoint are shared, so training cannot resume. The configuration
    loses ``run_dir``, ``init_from``, ``logging`` and ``cluster``, which belong to this machine.
    Code that it names is not imported.

    Args:
        run: As for `evaluate_run`.
        repo: ``owner/name`` on the hub, which is created if it is missing, and whose files of an
            earlier push are replaced; or a new folder, which begins with ``/``, ``./``, ``../`` or
            ``~``, or is a `Path`.
        checkpoint: As for `evaluate_run`.
        private: Whether a new repository is private.

    Returns:
        The folder, or the address of the repository.

    Raises:
        ConfigError: There is no such run, the folder is not empty, or the hub reports an error.
        CheckpointError: The checkpoint is missing or damaged.
        WriteError: A file cannot be written.
    """
    folder = check_push(repo)
    directory, name = locate(run, checkpoint)
    require_own_files(directory, "shared")
    shared = _Shared(directory, read_config(directory), name)
    if folder is not None:
        with new_directory(folder) as place:
            shared.write(place, f"./{folder.name}", folder)
        return str(folder)
    hub = _Hub()
    with unwinding(), tempfile.TemporaryDirectory(prefix="fastrl-push-") as temporary:
        shared.write(Path(temporary), str(repo))
        return hub.push(Path(temporary), str(repo), private)


def pull_run(
    repo: str | Path, directory: str | Path | None = None, *, revision: str | None = None
) -> Path:
    """Copy a shared run into a directory, where it can be evaluated, recorded and exported.

    Only files that `push_run` writes are copied. The run is not trusted: code that its
    configuration names is imported only with ``trust``.

    Args:
        repo: As for `push_run`.
        directory: A new directory; by default ``runs/`` and the last part of ``repo``.
        revision: A branch, tag or commit of a repository on the hub.

    Returns:
        The directory.

    Raises:
        ConfigError: ``repo`` has no run, the directory is not empty, or the hub reports an error.
        CheckpointError: The checkpoint is damaged.
        WriteError: A file cannot be written.
    """
    folder, target = check_pull(repo, directory, revision)
    with new_directory(target) as place:
        if folder is not None:
            _copy_shared(folder, place, target)
        else:
            _Hub().pull(str(repo), place, revision)
        config = _checked_run(place, repo)
        with writing(target):
            # With every key, so that the run needs no base file.
            write_and_sync(place / "config.yaml", config_to_yaml(config).encode())
    return target


@dataclass(frozen=True)
class _Shared:
    """A run to share: its directory, its configuration, and the name of a checkpoint."""

    directory: Path
    config: Config
    checkpoint: str

    def write(self, place: Path, repo: str, target: Path | None = None) -> None:
        """Write all files into an empty directory, which errors call ``target``."""
        target = target or place
        store = CheckpointStore(self.directory / "checkpoints")
        found = store.load(self.checkpoint)
        weights = dataclasses.replace(found, state={}, environments=None)
        here = {"run_dir": None, "init_from": None, "cluster": None, "logging": LoggingConfig()}
        config = self.config.model_copy(update=here)
        with writing(target), _called(place, target):
            (place / "checkpoints").mkdir()
            CheckpointStore(place / "checkpoints").save(weights)
            write_and_sync(place / "config.yaml", config_to_yaml(config).encode())
            for name in _TEXTS:
                if (self.directory / name).is_file():
                    shutil.copyfile(self.directory / name, place / name)
            video = self._video()
            if video is not None:
                (place / "videos").mkdir()
                shutil.copyfile(video, place / "videos" / video.name)
            has_curve = self._draw(place / CURVE)
            card = self._card(found, store, repo, video, has_curve)
            write_and_sync(place / CARD, card.encode())

    def _video(self) -> Path | None:
        """Return the newest video whose name can be shared, or None."""
        videos = (path for path in (self.directory / "videos").glob("*") if path.is_file())
        named = [path for path in videos if _SHARED.fullmatch(f"videos/{path.name}")]
        return max(named, key=lambda path: path.stat().st_mtime, default=None)

    def _draw(self, file: Path) -> bool:
        """Draw the curve; return whether there is one."""
        with suppress(ConfigError):  # a short run may have no returns yet
            plot_runs([self.directory], file)
            return True
        return False

    def _card(
        self,
        found: Checkpoint,
        store: CheckpointStore,
        repo: str,
        video: Path | None,
        has_curve: bool,
    ) -> str:
        """Return the model card: Markdown after a header that the hub reads."""
        env, algorithm = self.config.env.id, self.config.algorithm.name
        title = f"{algorithm.upper()} on {env}"
        header = {
            "library_name": "fastrl",
            "pipeline_tag": "reinforcement-learning",
            "tags": ["reinforcement-learning", "fastrl", algorithm, env],
        }
        name = Path(repo).name
        parts = [
            f"---\n{dump_yaml(header)}---\n\n# {title}\n",
            f"A policy that fastrl trained for {found.steps:,} steps.\n",
            "\n".join(["| | |\n|---|---|", *self._rows(found, store), ""]),
        ]
        if has_curve:
            parts.append(f"![Return over steps of {title}]({CURVE})\n")
        if video is not None:
            mark = "!" if video.suffix == ".gif" else ""
            parts.append(f"{mark}[Video of the policy](videos/{video.name})\n")
        if named := named_code(self.config):
            parts.append(
                f"It imports code that is not here: {', '.join(named)}. Read that code before you "
                "add `--trust` to the commands below.\n"
            )
        parts.append(
            f"## Use\n\nWith fastrl installed (the distribution `{DISTRIBUTION}` and its extra "
            f"`hub`):\n\n```\nfastrl pull {repo}\nfastrl eval {name}\n```\n\n"
            f'```python\nimport fastrl\n\npolicy = fastrl.load_policy("{name}")\n```\n'
        )
        return "\n".join(parts)

    def _rows(self, found: Checkpoint, store: CheckpointStore) -> Iterator[str]:
        summary = read_object(self.directory / "summary.json")
        best = store.best()
        if best is not None and best["checkpoint"] == found.name:
            yield f"| return when it was chosen as the best | {best['return_mean']:,.1f} |"
        mean, spread = summary.get("eval_return_mean"), summary.get("eval_return_std")
        if is_number(mean) and is_number(spread):
            figure = f"{mean:,.1f} ± {spread:,.1f} over {summary.get('eval_episodes')} episodes"
            yield f"| return at the end of training | {figure} |"
        if is_number(speed := summary.get("steps_per_s")):
            yield f"| steps/s | {speed:,.0f} |"
        yield f"| seed | {self.config.seed} |"
        versions = read_object(self.directory / "versions.json").get("versions")
        for package, number in versions.items() if isinstance(versions, dict) else ():
            yield f"| {package} | {number} |"


class _Hub:
    """Repositories on the hub; huggingface_hub keeps the token.

    Raises:
        ConfigError: The package huggingface_hub is missing.
    """

    def __init__(self) -> None:
        try:
            import huggingface_hub
        except ImportError as error:
            needed = f"a repository on the hub needs huggingface_hub: {how_to_install('hub')}"
            raise ConfigError(f"{needed}; a folder such as ./name needs no package") from error
        self._api = huggingface_hub.HfApi()

    def push(self, folder: Path, repo: str, private: bool) -> str:
        """Make one commit that adds the files of a folder and removes those of earlier pushes."""
        with _reporting():
            url = self._api.create_repo(repo, exist_ok=True, private=private or None)
            earlier = [name for name in self._api.list_repo_files(repo) if _SHARED.fullmatch(name)]
            self._api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                commit_message="Run of fastrl",
                delete_patterns=earlier,
            )
            return str(url)

    def pull(self, repo: str, place: Path, revision: str | None) -> None:
        """Download the files of a shared run, all from one commit."""
        with _reporting():
            info = self._api.model_info(repo, revision=revision)
            for name in sorted(each.rfilename for each in info.siblings or ()):
                if _SHARED.fullmatch(name):
                    self._api.hf_hub_download(repo, name, revision=info.sha, local_dir=place)
        shutil.rmtree(place / ".cache", ignore_errors=True)


@contextmanager
def _reporting() -> Iterator[None]:
    """Turn an error of the hub, of the network or of the disk into one line.

    Raises:
        ConfigError: Such an error occurred.
    """
    try:
        yield
    except Exception as error:  # the client and its HTTP library have no common type of errors
        status = getattr(getattr(error, "response", None), "status_code", None)
        hint = "; log in with 'hf auth login'" if status in (401, 403, 404) else ""
        raise ConfigError(f"hub: {one_line(error, _LONGEST_REASON)}{hint}") from error


def _copy_shared(folder: Path, place: Path, target: Path) -> None:
    require_own_files(folder, "shared")
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if _SHARED.fullmatch(name) and path.is_file():
            content = _read(path)
            with writing(target):
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_bytes(content)


def _read(path: Path) -> bytes:
    try:
        return read_bounded(path)
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be read: {error.strerror or error}") from None


def _checked_run(place: Path, repo: str | Path) -> Config:
    """Return the configuration of a directory; reject one without a whole checkpoint."""
    if not (place / "config.yaml").is_file():
        raise ConfigError(f"'{repo}' contains no run of fastrl: config.yaml is missing")
    with _called(place, repo):
        CheckpointStore(place / "checkpoints").load("last")
        return read_config(place)


@contextmanager
def _called(place: Path, name: str | Path) -> Iterator[None]:
    """Name a directory otherwise in errors: it is hidden, and gone when they are shown."""
    try:
        yield
    except (ConfigError, CheckpointError) as error:
        raise type(error)(str(error).replace(str(place), str(name))) from error
