"""What was measured is kept for as long as the code of environment and policy stays the same."""

import sys

import pytest

from fastrl.config import load_config
from fastrl.tuning.tune import TuneOptions, sources, study_name

FILES = {
    "robots/__init__.py": "",
    "robots/arm.py": "from . import motors\nfrom .parts.joint import Joint\ndef make(): ...\n",
    "robots/motors.py": "import robots.parts.cable\n",
    "robots/parts/joint.py": "class Joint: ...\n",
    "robots/parts/cable.py": "import json, torch, gymnasium\n",
    "robots/training.py": "from robots.arm import make\n",
    "registers.py": "from gymnasium import register\nregister('Arm-v0', 'robots.arm:make')\n",
    "wrapper.py": "def wrap(env): return env\n",
    "policy.py": "class Net: ...\n",
    "broken.py": "def make(:\n",
}
ARM = {"robots/__init__.py", *(f"robots/{name}.py" for name in ("arm", "motors"))}
ARM |= {"robots/parts/joint.py", "robots/parts/cable.py"}


@pytest.fixture
def project(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("overrides", "files"),
    [
        (["env.id=robots.arm:make"], ARM),
        (["env.id=registers:Arm-v0"], {"registers.py", *ARM}),
        (["env.id=gym:registers:Arm-v0"], {"registers.py", *ARM}),
        (["env.id=CartPole-v1", "env.wrappers=[wrapper:wrap]"], {"wrapper.py"}),
        (["env.id=CartPole-v1", "env.wrappers=[{path: 'wrapper:wrap'}]"], {"wrapper.py"}),
        (["env.id=CartPole-v1", "model.class_path=policy:Net"], {"policy.py"}),
        (["env.id=broken:make"], {"broken.py"}),
        (["env.id=no_such_module:make"], set()),
        (["env.id=CartPole-v1"], set()),
    ],
)
def test_tunings_depend_on_the_code_that_they_measured_and_on_no_other(project, overrides, files):
    def found():
        return sources(load_config(None, overrides))

    for file in FILES:
        before = found()
        with (project / file).open("a") as written:
            written.write("# changed\n")
        assert (found() != before) == (file in files), file
    assert not {"robots", "registers", "wrapper", "policy"} & sys.modules.keys()


def test_a_study_has_another_name_once_the_code_has_changed(project):
    config = load_config(None, ["env.id=robots.arm:make"])
    before = study_name(config, TuneOptions())
    (project / "robots" / "arm.py").write_text("def make(): ...\n")
    assert study_name(config, TuneOptions()) != before


def test_installed_packages_count_by_their_version():
    assert sources(load_config(None, ["env.id=CartPole-v1"])).values()
    found = sources(load_config(None, ["env.id=gymnasium.envs.classic_control:CartPoleEnv"]))
    assert list(found) == ["gymnasium.envs.classic_control"]
    assert found["gymnasium.envs.classic_control"][0].isdigit()
