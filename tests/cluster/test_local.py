"""A cluster of this machine alone, which ends with its program."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

pytest.importorskip("ray")

pytestmark = pytest.mark.ray

PROGRAM = """
from fastrl.cluster.connection import Connection
from fastrl.errors import ConfigError
try:
    with Connection("local") as connection:
        print(len(connection.nodes()))
except ConfigError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("directory", "said"), [("d", "1"), ("d" * 60, "; name a shorter directory by RAY_TMPDIR")]
)
def test_nothing_is_left_of_a_local_cluster(directory, said):
    with TemporaryDirectory(dir="/tmp") as above:
        place = Path(above) / directory
        place.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=os.environ | {"RAY_TMPDIR": str(place)},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.stdout.rstrip().endswith(said), done.stderr
        if said == "1":
            assert not [*(place / "ray").iterdir()]
