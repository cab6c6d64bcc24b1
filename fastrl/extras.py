"""How optional packages are installed."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires

_REQUIREMENT = re.compile(r"""\s*([^;]+?)\s*;.*\bextra\s*==\s*["']([^"']+)["']""")


def how_to_install(extra: str) -> str:
    """Return the command that installs the packages of one of fastrl's extras.

    It names these packages and not ``fastrl[extra]``: on PyPI that name belongs to another project.
    """
    try:
        lines = requires("fastrl") or []
    except PackageNotFoundError:
        lines = []
    found = [match for line in lines if (match := _REQUIREMENT.match(line))]
    packages = [f"'{match[1]}'" for match in found if match[2] == extra]
    if not packages:
        # The package is imported from a checkout that is not installed, or is an older one.
        return f"pip install -e '.[{extra}]' in the checkout of fastrl"
    return f"pip install {' '.join(packages)}"
