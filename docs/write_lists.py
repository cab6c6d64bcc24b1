"""Write what pages of the documentation list: modules in architecture.md, names in reference.md.

Both lists hold the first line of docstrings. Run it after a change of those, of a module's name
or of an ``__all__``::

    python docs/write_lists.py
"""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
PACKAGE = DOCS.parent / "fastrl"

# Public besides the `__all__` of packages.
PUBLIC_NAMES = {
    "fastrl.config.fields": (
        *("Bool", "Count", "Device", "Episodes", "Few", "Float", "Fraction", "ImportPath"),
        *("Schedule", "Seconds", "Section", "Seed", "Size", "Steps", "Text"),
    ),
    "fastrl.envs.classic_control.render": ("Renderer", "save_animation"),
    "fastrl.envs.crafter_native.textures": ("SPRITES",),
    "fastrl.learning.a2c": ("A2C",),
    "fastrl.learning.losses": (
        *("approx_kl", "clip_fraction", "clipped_value_loss", "entropy_loss"),
        *("explained_variance", "normalize_advantage", "policy_gradient_loss", "ppo_loss"),
        "value_loss",
    ),
    "fastrl.learning.ppo": ("PPO",),
    "fastrl.learning.returns": (
        *("VTraceSettings", "discounted_returns", "discounted_sums_so_far", "gae"),
        *("next_values", "vtrace"),
    ),
}
INTERNAL_PACKAGES = ("fastrl.cli",)

REFERENCE = """\
# Public names

What this page lists is public: the changelog announces a change of it. Every other module and name
is internal and may change in any release. `docs/write_lists.py` writes the page, and a test
compares it with the `__all__` of each module.
"""


def first_line(docstring: str | None) -> str:
    """Return the first line of a docstring, without the marks of its names."""
    return (docstring or "").partition("\n")[0].replace("``", "`").strip()


def packages() -> str:
    """Return the list of all modules, by package."""
    lines: list[str] = []
    for package in sorted(PACKAGE.rglob("__init__.py"), key=lambda path: path.parent.parts):
        name = package.parent.relative_to(PACKAGE.parent).as_posix()
        said = _docstring(package) if name != "fastrl" else "Modules that every package builds on."
        lines += [f"### {name}", "", said, ""]
        modules = sorted(path for path in package.parent.glob("*.py") if path.stem[0] != "_")
        lines += [f"- `{path.name}`: {_docstring(path)}" for path in modules]
        lines.append("")
    return "\n".join(lines)


def public_names() -> dict[str, list[str]]:
    """Return the public names of each public module."""
    paths = sorted(PACKAGE.rglob("__init__.py"), key=lambda path: path.parent.parts)
    packages = [".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in paths]
    found = {}
    for name in packages:
        names = getattr(importlib.import_module(name), "__all__", None)
        if names and name not in INTERNAL_PACKAGES:
            found[name] = sorted(names)
    found |= {name: sorted(names) for name, names in PUBLIC_NAMES.items()}
    return dict(sorted(found.items()))


def reference() -> str:
    """Return the page of public names."""
    parts = [REFERENCE]
    for name, names in public_names().items():
        module = importlib.import_module(name)
        parts.append(f"## {name}\n\n{first_line(module.__doc__)}\n")
        said = {each: _said_of(getattr(module, each)) for each in names}
        lines = [f"- `{each}`: {text}\n" for each, text in said.items() if text]
        others = ", ".join(f"`{each}`" for each, text in said.items() if not text)
        parts.append("".join([*lines, f"- {others}\n"] if others else lines))
    return "\n".join(parts)


def architecture(page: str) -> str:
    """Return the page about the architecture with its list of modules as it must be."""
    before, title, rest = page.partition("## Packages\n\n")
    introduction = rest.partition("### ")[0]
    after = rest.partition("\n## ")[2]
    return f"{before}{title}{introduction}{packages()}\n## {after}"


def _docstring(path: Path) -> str:
    return first_line(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))))


def _said_of(value: Any) -> str:
    is_documented = inspect.isclass(value) or inspect.isroutine(value)
    return first_line(inspect.getdoc(value)) if is_documented else ""


if __name__ == "__main__":
    page = DOCS / "architecture.md"
    page.write_text(architecture(page.read_text(encoding="utf-8")), encoding="utf-8")
    (DOCS / "reference.md").write_text(reference(), encoding="utf-8")
