"""Lets these tests use the machines on paper of scripts/tuner_bench."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
