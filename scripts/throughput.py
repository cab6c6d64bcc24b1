"""Measure frames per second: the same as the command ``fastrl throughput``."""

import sys

from fastrl.cli import main

if __name__ == "__main__":
    sys.exit(main(["throughput", *sys.argv[1:]]))
