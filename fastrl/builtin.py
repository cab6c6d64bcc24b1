"""Registers what fastrl offers by name; each is imported on first use."""

from fastrl.registry import register

register(
    "algorithm", "ppo", "fastrl.learning.ppo:PPO", section="fastrl.config.algorithms:PPOConfig"
)
register(
    "algorithm", "a2c", "fastrl.learning.a2c:A2C", section="fastrl.config.algorithms:A2CConfig"
)
register(
    "algorithm", "appo", "fastrl.learning.appo:APPO", section="fastrl.config.algorithms:APPOConfig"
)
register(
    "algorithm",
    "impala",
    "fastrl.learning.impala:Impala",
    section="fastrl.config.algorithms:ImpalaConfig",
)
register(
    "algorithm",
    "gail",
    "fastrl.learning.adversarial:GAIL",
    section="fastrl.config.algorithms:GAILConfig",
)
register(
    "algorithm",
    "airl",
    "fastrl.learning.adversarial:AIRL",
    section="fastrl.config.algorithms:AIRLConfig",
)
register("algorithm", "bc", "fastrl.learning.bc:BC", section="fastrl.config.algorithms:BCConfig")
register(
    "algorithm",
    "dagger",
    "fastrl.learning.dagger:DAgger",
    section="fastrl.config.algorithms:DAggerConfig",
)
for _name in ("auto", "eager", "compiled", "bfloat16"):
    register("engine", _name, f"fastrl.models.inference.engines:{_name}")
register("logger", "jsonl", "fastrl.training.metrics:JsonLines")
register("logger", "tensorboard", "fastrl.training.metrics:TensorBoard")
register("logger", "wandb", "fastrl.training.metrics:WeightsAndBiases")
for _name in ("process", "serial", "device", "dataset"):
    register("sampler", _name, f"fastrl.sampling.build:{_name}_sampler")
register("sampler", "dagger", "fastrl.training.dagger_sampler:dagger_sampler")

# Before those of which the batches have their time limits.
register("environments", "tasks", "fastrl.envs.families:TASKS")
register("environments", "classic_control", "fastrl.envs.families:CLASSIC_CONTROL")
register("environments", "crafter", "fastrl.envs.families:CRAFTER")
register("environments", "mujoco", "fastrl.envs.families:MUJOCO")
register("environments", "atari", "fastrl.envs.families:ATARI")
register("environments", "gym", "fastrl.envs.families:OLD_GYM")
register("environments", "vector", "fastrl.envs.families:VECTOR_ENVS")
register("environments", "envpool", "fastrl.envs.families:ENVPOOL")
