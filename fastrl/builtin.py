"""Registers fastrl's own objects by name; each is imported on first use."""

from fastrl.registry import register

_ALGORITHMS = {
    "ppo": "ppo:PPO",
    "a2c": "a2c:A2C",
    "appo": "off_policy:APPO",
    "impala": "off_policy:Impala",
    "gail": "adversarial:GAIL",
    "airl": "adversarial:AIRL",
    "bc": "bc:BC",
    "dagger": "bc:DAgger",
}
"""Modules and classes; the section of a class has its name."""

for _name, _class in _ALGORITHMS.items():
    _section = f"fastrl.config.algorithms:{_class.partition(':')[2]}Config"
    register("algorithm", _name, f"fastrl.learning.{_class}", section=_section)
for _name in ("auto", "eager", "compiled", "bfloat16"):
    register("engine", _name, f"fastrl.models.inference.engines:{_name}")
register("logger", "jsonl", "fastrl.training.metrics:JsonLines")
register("logger", "tensorboard", "fastrl.training.metrics:TensorBoard")
register("logger", "wandb", "fastrl.training.metrics:WeightsAndBiases")
for _name in ("process", "serial", "device", "dataset"):
    register("sampler", _name, f"fastrl.sampling.build:{_name}_sampler")
register("sampler", "dagger", "fastrl.training.dagger_sampler:dagger_sampler")

# Before the families whose batches use their time limits.
register("environments", "tasks", "fastrl.envs.families:TASKS")
register("environments", "classic_control", "fastrl.envs.families:CLASSIC_CONTROL")
register("environments", "crafter", "fastrl.envs.families:CRAFTER")
register("environments", "mujoco", "fastrl.envs.families:MUJOCO")
register("environments", "atari", "fastrl.envs.families:ATARI")
register("environments", "gym", "fastrl.envs.families:OLD_GYM")
register("environments", "vector", "fastrl.envs.families:VECTOR_ENVS")
register("environments", "envpool", "fastrl.envs.families:ENVPOOL")
