"""Scripts define environments themselves, and need no ``if __name__ == "__main__"``."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from multiprocessing import spawn

import pytest

from fastrl.envs.lookup import of_script
from fastrl.workers import processes

DEFINITIONS = """
import gymnasium
import numpy as np
from gymnasium import spaces

import fastrl


class Steps(gymnasium.Env):
    observation_space = spaces.Box(0, 9, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        return np.full(1, self.count, np.float32), 1.0, self.count == 4, False, {}


class Scaled(gymnasium.RewardWrapper):
    def __init__(self, env, factor):
        super().__init__(env)
        self.factor = factor

    def reward(self, reward):
        return self.factor * reward


class Double(Scaled):
    def __init__(self, env):
        super().__init__(env, 2)


class Small(fastrl.ActorCritic):
    def __init__(self, env_spec):
        super().__init__(env_spec, fastrl.config.ModelConfig(hidden_sizes=(4,)))


gymnasium.register("Steps-v0", entry_point=Steps)
gymnasium.register("Steps-v1", entry_point="training_script:Steps")


SIZES = ["sampler.envs_per_worker=2", "sampler.num_env_workers=1", "sampler.rollout_length=8"]
"""


def run(directory, text, timeout=100):
    script = directory / "training_script.py"
    script.write_text(DEFINITIONS + textwrap.dedent(text))
    return subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=directory,
    )


def test_environment_wrapper_and_policy_of_the_script_are_sampled(tmp_path):
    done = run(
        tmp_path,
        """
        for module, steps in (
            ("__main__", "__main__:Steps"),
            ("training_script", "training_script:Steps"),
            ("__main__", "Steps-v0"),
            ("__main__", "Steps-v1"),
        ):
            scaled = f"{{path: '{module}:Scaled', kwargs: {{factor: 3}}}}"
            names = [f"env.id={steps}", f"env.wrappers=[{module}:Double, {scaled}]"]
            names.append(f"model.class_path={module}:Small")
            with fastrl.make_sampler(fastrl.load_config(None, [*names, *SIZES])) as sampler:
                print(sampler.collect().episodes.returns.tolist())
            envs = fastrl.make_vec(steps, 2, backend="processes")
            print(envs.reset(seed=0)[0].tolist())
            envs.close()
        """,
    )
    assert done.stdout.splitlines() == ["[24.0, 24.0, 24.0, 24.0]", "[[0.0], [0.0]]"] * 4, (
        done.stderr
    )


def test_script_is_found_while_another_thread_starts_a_process(monkeypatch):
    def make(): ...

    monkeypatch.setattr(sys.modules["__main__"], "make", make, raising=False)
    with processes._light_start():
        assert of_script("__main__:make") is make
        assert sys.modules["__main__"].make is make  # as pickle looks it up
        assert not [key for key in spawn.get_preparation_data("") if key.startswith("init_main")]


@pytest.mark.slow
def test_script_that_every_worker_would_run_again_is_told_so(tmp_path):
    imports = "import training_script\n\n\ndef make():\n    return training_script.Steps()\n"
    (tmp_path / "other.py").write_text(imports)
    done = run(
        tmp_path,
        """
        fastrl.make_sampler(fastrl.load_config(None, ["env.id=other:make", *SIZES])).collect()
        """,
    )
    assert done.returncode == 1
    assert "fastrl.errors.FastrlError: workers start workers that start workers" in done.stderr


def test_trials_find_what_the_script_defines_and_registers(tmp_path):
    done = run(
        tmp_path,
        """
        from fastrl.sweeps import Sweep, SweepPlan


        class Count(fastrl.Callback):
            def on_update(self, context, update):
                context.log("count", 1.0)


        fastrl.register("model", "small", Small)
        names = ["env.id=Steps-v1", "env.wrappers=[training_script:Double]"]
        names += ["model.class_path=small", "callbacks=[__main__:Count]"]
        names += ["sampler=serial", "total_steps=32", "evaluation.enabled=false"]
        plan = SweepPlan(None, [*names, *SIZES], {"seed": [0]})
        print([(trial.error, trial.score) for trial in Sweep(plan, "all").run(print).trials])
        """,
    )
    assert done.stdout.splitlines()[-1] == "[('', 8.0)]", done.stdout + done.stderr
