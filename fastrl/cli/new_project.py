"""New projects: `fastrl new` writes files of `cli/project/`, which train and pass their tests."""

from __future__ import annotations

from pathlib import Path

from fastrl.errors import ConfigError

FILES = Path(__file__).parent / "project"


def write_project(directory: Path) -> list[Path]:
    """Write the files of a project into a directory, which may not hold any yet.

    Returns:
        The files.

    Raises:
        ConfigError: There are files already, or the directory cannot be written.
    """
    written = []
    # Without `fastrl.training.durable.writing`, as that room imports torch.
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise ConfigError(f"'{directory}' is not empty; name a new directory")
        for source in sorted(FILES.iterdir()):
            # The suffix keeps tools from taking these files for modules of fastrl.
            target = directory / source.name.removesuffix(".txt")
            target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
            written.append(target)
    except OSError as error:
        raise ConfigError(f"'{directory}' cannot be written: {error.strerror or error}") from error
    return written
