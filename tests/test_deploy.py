"""The files of docs/deploy are valid as far as that can be checked without a cloud."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "docs" / "deploy"
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "requirements.txt").read_text(), re.M))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_cluster_at_aws_is_valid_by_the_schema_of_ray():
    util = pytest.importorskip("ray.autoscaler._private.util")
    written = yaml.safe_load((DEPLOY / "ray-aws.yaml").read_text())
    config = util.prepare_config(written)
    util.validate_config(config)
    machines = config["available_node_types"]
    assert machines["sampler"]["max_workers"] <= config["max_workers"]
    assert machines["head"]["node_config"] == machines["sampler"]["node_config"]
    jsonschema = pytest.importorskip("jsonschema")
    with pytest.raises(jsonschema.ValidationError, match="'max_worker' was unexpected"):
        util.validate_config({**config, "max_worker": 3})


def test_pods_of_kuberay_are_alike():
    cluster, claim = yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text())
    assert (cluster["kind"], claim["kind"]) == ("RayCluster", "PersistentVolumeClaim")
    spec = cluster["spec"]
    assert spec["rayVersion"] == PINS.get("ray", spec["rayVersion"])
    pods = [
        group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])
    ]
    containers = [container for pod in pods for container in pod["containers"]]
    assert len({container["image"] for container in containers}) == 1
    for container in containers:
        assert container["resources"]["limits"] == container["resources"]["requests"]
    (volume,) = pods[0]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    ports = [spec["workerGroupSpecs"][0]["rayStartParams"]["node-manager-port"], 6379]
    assert {str(c["readinessProbe"]["tcpSocket"]["port"]) for c in containers} == {*map(str, ports)}


@pytest.fixture
def slurm(tmp_path):
    """Run the script of Slurm with commands that print what they are called with."""
    for name, says in {"srun": 'printf "%s\\n" "$@"', "scontrol": 'echo "m1"; echo "m2"'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{says}\n")
        (tmp_path / name).chmod(0o755)
    given = {"SLURM_JOB_NODELIST": "m[1-2]", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"}
    path = f"{tmp_path}:{os.environ['PATH']}"

    def slurm(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(DEPLOY / "slurm.sh"), *arguments],
            env={**given, "SLURM_CPUS_PER_TASK": "8", "PATH": path},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    return slurm


def test_slurm_trains_on_all_machines_or_resumes(slurm):
    done = slurm("a config.yaml", "seed=1")
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert words[:3] == ["--nodes=2", "--ntasks=2", "--cpus-per-task=8"]
    assert words[words.index("--address") + 1] == "m1:10007"
    command = words[words.index("--") + 1 :]
    assert command == ["fastrl", "train", "a config.yaml", "seed=1", "cluster.address=m1:10007"]
    words = slurm("--resume", "runs/one").stdout.splitlines()
    assert words[words.index("--") + 1 :][:3] == ["fastrl", "resume", "runs/one"]
    assert slurm().returncode == 2


def test_configurations_that_are_named_exist():
    for file in DEPLOY.iterdir():
        named = re.findall(r"\bconfigs/\w+\.yaml", file.read_text())
        assert [name for name in named if not (ROOT / name).exists()] == []


def instructions():
    """Return the instructions of the Dockerfile, continued lines as one."""
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line]


def test_image_is_built_from_what_is_here():
    given = instructions()
    assert given[0][0] == "FROM"
    assert re.fullmatch(r"python:3\.1[12]-slim", given[0][1])
    known = {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "USER", "ENV", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in given} <= known
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    for name, rest in given:
        if name == "COPY":
            for source in shlex.split(rest)[:-1]:
                assert (ROOT / source).exists()
                assert f"!{source}" in kept
        if name == "RUN":
            assert subprocess.run(["bash", "-n", "-c", rest], check=False).returncode == 0
            if "apt-get install" in rest:
                assert "--no-install-recommends" in rest
                assert rest.rstrip().endswith("rm -rf /var/lib/apt/lists/*")
    extras = next(rest for name, rest in given if name == "ARG" and rest.startswith("EXTRAS="))
    assert set(extras.removeprefix("EXTRAS=").split(",")) <= EXTRAS.keys()
    assert next(rest for name, rest in reversed(given) if name == "USER") != "root"
