"""Pages of the site that are made from code and results; a hook of mkdocs, see mkdocs.yml.

- ``api/…``: a page for each public module, from docstrings.
- ``commands.md``: from the command line.
- Messages in ``errors.md``: from the calls of errors in the code.
- ``notebooks/…``: from the notebooks, with the outputs in them.
- ``gallery.md``, ``measurements.md`` and ``results.md``: from the files of ``results/``.
- The README as first page, and the changelog.

Files outside of ``docs`` that a page links to become part of the site. Guides and decisions that
mkdocs.yml does not list are added to its navigation.
"""

from __future__ import annotations

import ast
import base64
import importlib
import inspect
import io
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from PIL import Image

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS)]

from write_lists import public_names  # noqa: E402
from write_tables import RESULTS, name_of  # noqa: E402

import fastrl.cli  # noqa: E402

IMAGES = ROOT / "imgs"
MOVED = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
"""Pages of the repository that are pages of the site."""
COLOURS = 256
"""Of a picture."""
MAX_ROWS = 60
"""Of a table of measurements; longer ones are only linked."""
MESSAGES = re.compile(r"<!-- messages of (\w+) -->")
LINK = re.compile(r"(?<=\]\()([^)#\s]+)")
SECTIONS = {
    "Notebooks": "notebooks",
    "Guides": "guide",
    "Decisions": "decisions",
    "Reference": "api",
}
"""Sections of the navigation, and the folders of which all pages belong to them."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here, and what pages link to; drop the theme's source maps."""
    for file in [each for each in files if each.src_uri.endswith(".map")]:
        files.remove(file)
    made: dict[str, str | bytes] = {
        target: (ROOT / source).read_text("utf-8") for source, target in MOVED.items()
    }
    made |= {"commands.md": commands(), "gallery.md": gallery(), "results.md": results()}
    made |= {"measurements.md": measurements(), **api_pages()}
    for path in sorted((DOCS / "notebooks").glob("*.ipynb")):
        made |= notebook(path)
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    linked = {
        target
        for file in files.documentation_pages()
        for target in re.findall(LINK, file.content_string)
        if "://" not in target
        for target in [_of_repository(target, file.src_uri)]
        if (ROOT / target).is_file() and target not in MOVED and not target.startswith("docs/")
    }
    for name in sorted(linked):
        files.append(
            File.generated(
                config,
                name,
                **_content(ROOT / name),
                inclusion=InclusionLevel.NOT_IN_NAV,
            )
        )
    _complete(config.nav, [file.src_uri for file in files.documentation_pages()])
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to where files of the repository are on the site; list messages of errors."""

    def moved(found: re.Match[str]) -> str:
        link = found[1]
        target = _of_repository(link, page.file.src_uri)
        if "://" in link or not (ROOT / target).exists():
            return link
        name = MOVED.get(target, target.removeprefix("docs/"))
        if name.startswith("notebooks/"):
            name = Path(name).with_suffix(".md").as_posix()
        if (ROOT / target).is_dir():
            name += "/README.md"
        return Path(os.path.relpath(name, Path(page.file.src_uri).parent)).as_posix()

    if page.file.src_uri == "errors.md":
        listed = messages()
        markdown = re.sub(MESSAGES, lambda found: "\n".join(listed[found[1]]), markdown)
    return re.sub(LINK, moved, markdown)


def messages() -> dict[str, list[str]]:
    """Return by the kind of errors a list of the messages in the code, with … for what varies."""
    for module in (*public_names(), "fastrl.cluster.connection", "fastrl.workers.descent"):
        importlib.import_module(module)
    kinds = {"conflict": fastrl.ConfigError.kind}
    classes = [fastrl.FastrlError]
    for each in classes:
        kinds[each.__name__] = each.kind
        classes += each.__subclasses__()
    found: dict[str, set[str]] = {kind: set() for kind in kinds.values()}
    for path in sorted((ROOT / "fastrl").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                texts = [_template(each) for each in node.args if node.func.id in kinds]
                # The longest: a key or the name of a worker precedes some messages.
                if text := max(texts, key=len, default="").replace("`", "'"):
                    found[kinds[node.func.id]].add(f"- `{text}`")
    return {kind: sorted(lines) for kind, lines in found.items()}


def _template(node: ast.expr) -> str:
    """Return a text of the code with … in place of values; empty if it is no text."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part) or "…" for part in node.values)
    if isinstance(node, ast.BinOp):
        return _template(node.left) + _template(node.right)
    return ""


def api_pages() -> dict[str, str]:
    """Return a page for each public module; a class or function is described on one of them."""
    home: dict[Any, str] = {}
    pages = {}
    for module, names in public_names().items():
        first, *_ = (importlib.import_module(module).__doc__ or "").partition("\n")
        lines = [f"# {module}", "", first.replace("``", "`"), ""]
        for name in names:
            value = getattr(importlib.import_module(module), name)
            path = _path_of(value, module, name)
            if path in home:
                where = home[path]
                lines += [f"## {name}", "", f"See [{where}.{name}]({where}.md#{path}).", ""]
            else:
                home[path] = module
                lines += [f"::: {path}", ""]
        pages[f"api/{module}.md"] = "\n".join(lines)
    return pages


def notebook(path: Path) -> dict[str, str | bytes]:
    """Return the page of a notebook, and the pictures in its outputs."""
    parts, pictures = [], {}
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            shown = output.get("data", {"text/plain": output.get("text", "")})
            kind = next((kind for kind in ("image/png", "image/gif") if kind in shown), None)
            if kind is not None:
                name = f"{path.stem}_{len(pictures) + 1}.{kind[-3:]}"
                pictures[f"notebooks/{name}"] = base64.b64decode("".join(shown[kind]))
                parts.append(f"![Picture {len(pictures)} that the notebook draws]({name})")
            elif text := "".join(shown.get("text/plain", "")).rstrip():
                parts.append(f"```text\n{text}\n```")
    download = f"[Download]({path.name}) this notebook, or read it here."
    title, newline, rest = "\n\n".join(parts).partition("\n")
    return {f"notebooks/{path.stem}.md": f"{title}\n\n{download}{newline}{rest}\n", **pictures}


def commands() -> str:
    """Return a page with each command, its arguments and its options."""
    parts = ["# Commands\n\n`fastrl COMMAND --help` prints the same.\n"]
    group: Any = typer.main.get_command(fastrl.cli.app)
    for name, command in sorted(group.commands.items()):
        parts.append(f"## fastrl {name}\n\n{inspect.cleandoc(command.help)}\n")
        rows = []
        for each in command.params:
            names = each.opts if each.param_type_name == "option" else ()
            usage = " ".join([*names, *filter(None, [each.metavar])]).replace("|", "\\|")
            rows.append(f"| `{usage}` | {each.help or ''} |")
        if rows:
            parts.append("\n".join(["| | |\n|---|---|", *rows, ""]))
        examples = [line.strip() for line in command.epilog.splitlines()[2:]]
        parts.append("\n".join(["```", *examples, "```", ""]))
    return "\n".join(parts)


def gallery() -> str:
    """Return a page with each result of ``learning_curves.py``: figures, command and curves."""
    parts = [
        "# Learning gallery\n\nEach return is the mean of the final policies over their seeds, "
        "with the standard deviation over seeds; each policy is evaluated over whole episodes.\n"
    ]
    for path in sorted(RESULTS.glob("learning_*.json")):
        found = json.loads(path.read_text("utf-8"))
        runs = found["runs"]
        first, spread = runs[0], found["eval_return_std_over_seeds"]
        title = path.stem.removeprefix("learning_").replace("_", " ")
        figure = f"{found['eval_return_mean']:,.1f}"
        figure += f" ± {spread:,.1f} over {len(runs)} seeds" if len(runs) > 1 else ", one seed"
        facts = {
            "environment": f"`{first['env']}`",
            "algorithm": first["algorithm"].upper(),
            "return": f"{figure}, {first['eval_episodes']} episodes each",
            "steps": f"{max(run['steps'] for run in runs):,}",
            "steps/s": f"{found['steps_per_s_mean']:,.0f}",
            "measured": _circumstances(found),
            "command": f"`{found['command']}`",
            "files": f"[{found['config']}](../{found['config']}), "
            f"[{path.name}](../results/{path.name})",
        }
        if "note" in found:
            facts["note"] = found["note"]
        rows = [f"| {name} | {fact} |" for name, fact in facts.items()]
        parts.append("\n".join([f"## {title}\n", "| | |\n|---|---|", *rows, ""]))
        if (IMAGES / f"{path.stem}.png").exists():
            parts.append(f"![Return over steps of {title}](../imgs/{path.stem}.png)\n")
    return "\n".join(parts)


def results() -> str:
    """Return a page that lists every file of results: what it is of, when, where and how."""
    parts = [
        "# Files of results\n\nThe figures of benchmarks and gallery are from these files, which "
        "have all rounds and versions, too. The repository's history has scripts that are gone.\n",
        "| file | date | machine | command |\n|---|---|---|---|",
    ]
    for path in sorted(RESULTS.glob("*.json")):
        for found in _entries(json.loads(path.read_text("utf-8"))):
            cells = (
                f"[{path.stem}](../results/{path.name})",
                str(found.get("date", ""))[:10],
                name_of(found["machine"]) if "machine" in found else "",
                f"`{found['command']}`" if "command" in found else "",
            )
            parts.append(f"| {' | '.join(cells)} |")
    return "\n".join([parts[0], "\n".join(parts[1:]), ""])


def measurements() -> str:
    """Return a page with median and spread of all that was measured in rounds."""
    parts = [
        "# Measurements\n\nMedian, least and most of the rounds of each measurement. Compare "
        "within a table only: the speed of the machine drifts.\n"
    ]
    for path in sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text("utf-8"))
        measured = found.get("results", []) if isinstance(found, dict) else []
        rows = [row for each in measured for row in _medians(each)]
        if rows and len(rows) <= MAX_ROWS:
            parts.append(
                f"## {path.stem}\n\n{_circumstances(found)}; [file](../results/{path.name}); "
                f"`{found.get('command', '')}`\n\n"
                "| | | median | least | most |\n|---|---|---:|---:|---:|"
            )
            parts.append("\n".join([*rows, ""]))
    return "\n".join(parts)


def _medians(measured: Mapping[str, Any]) -> Iterator[str]:
    """Yield a row of a table for each quantity of a measurement."""
    names = ("env", "part", "workload", "label", "method", "num_envs", "settings")
    shown = [measured[name] for name in names if measured.get(name)]
    texts = [
        ", ".join(f"{key} {value}" for key, value in each.items())
        if isinstance(each, dict)
        else str(each)
        for each in shown
    ]
    for name in measured:
        quantity, _, kind = name.rpartition("_")
        if kind == "median" and f"{quantity}_min" in measured:
            values = (measured[f"{quantity}_{each}"] for each in ("median", "min", "max"))
            cells = [f"{value:,.0f}" if value >= 100 else f"{value:.4g}" for value in values]
            yield f"| {'; '.join(texts)} | {quantity} | {' | '.join(cells)} |"


def _entries(found: Any) -> Iterator[Mapping[str, Any]]:
    yield from found if isinstance(found, list) else [found]


def _circumstances(found: Mapping[str, Any]) -> str:
    parts = (
        str(found.get("date", ""))[:10],
        name_of(found["machine"]) if "machine" in found else "",
        f"torch {found['versions']['torch']}" if "torch" in found.get("versions", {}) else "",
    )
    return ", ".join(filter(None, parts))


def _content(path: Path) -> dict[str, Any]:
    """Return where mkdocs gets a file from; a PNG is smaller with a palette, and looks the same."""
    if path.suffix != ".png":
        return {"abs_src_path": str(path)}
    written = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").quantize(COLOURS).save(written, "PNG", optimize=True)
    return {"content": written.getvalue()}


def _of_repository(link: str, page: str) -> str:
    """Return the path from the root of the repository to what a page of the site links to."""
    source = next((old for old, new in MOVED.items() if new == page), f"docs/{page}")
    return os.path.normpath(Path(source).parent / link)


def _path_of(value: Any, module: str, name: str) -> str:
    """Return where a public object is defined."""
    defined = getattr(value, "__module__", "") or ""
    if defined.startswith("fastrl") and getattr(value, "__name__", "") == name:
        return f"{defined}.{name}"
    return f"{module}.{name}"


def _complete(nav: list[Any], pages: list[str]) -> None:
    """Add the pages of each folder that belongs to a section and are not in it."""
    for section in nav:
        for title, entries in section.items() if isinstance(section, dict) else ():
            folder = f"{SECTIONS.get(title, '-')}/"
            entries += [page for page in sorted(pages) if page.startswith(folder)
                        and page not in entries]  # fmt: skip
