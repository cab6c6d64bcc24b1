"""Fill the README's tables between their markers from the committed results.

python scripts/report.py
python scripts/report.py --print
"""

from __future__ import annotations

import sys
from pathlib import Path

from command_line import Parser

from fastrl.errors import FastrlError
from fastrl.throughput.published import tables, write_tables

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Write or print the tables; return the exit code."""
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--print", action="store_true", help="write nothing")
    args = parser.parse_args()
    try:
        if args.print:
            print(tables(args.results))
        else:
            write_tables(args.readme, args.results)
    except FastrlError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
