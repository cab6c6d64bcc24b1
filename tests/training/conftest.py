"""What several tests of training start from."""

from __future__ import annotations

import pytest

from fastrl.training import train
from tests.training.clockwork import small_run


@pytest.fixture(scope="package")
def trained(tmp_path_factory):
    """Return the directory of a small run that is done, to be copied and never changed."""
    path = tmp_path_factory.mktemp("runs") / "run"
    train(small_run(path, total_steps=64))
    return path
