"""Lets ``python -m fastrl`` do what the command ``fastrl`` does."""

import sys

from fastrl.cli import main

if __name__ == "__main__":
    sys.exit(main())
