"""What fastrl itself offers by name; each is imported when it is first used."""

from fastrl.registry import register

register(
    "algorithm", "ppo", "fastrl.learning.ppo:PPO", section="fastrl.config.algorithms:PPOConfig"
)
register(
    "algorithm", "a2c", "fastrl.learning.a2c:A2C", section="fastrl.config.algorithms:A2CConfig"
)
for _name in ("auto", "eager", "compiled", "bfloat16"):
    register("engine", _name, f"fastrl.models.inference.build:{_name}")
register("logger", "jsonl", "fastrl.training.metrics:JsonLines")
register("logger", "tensorboard", "fastrl.training.metrics:TensorBoard")
register("logger", "wandb", "fastrl.training.metrics:WeightsAndBiases")
for _name in ("process", "serial", "device"):
    register("sampler", _name, f"fastrl.sampling.build:{_name}_sampler")

register("environments", "classic_control", "fastrl.envs.families.classic_control:FAMILY")
register("environments", "crafter", "fastrl.envs.families.crafter:FAMILY")
register("environments", "mujoco", "fastrl.envs.families.mujoco:FAMILY")
register("environments", "atari", "fastrl.envs.families.atari:FAMILY")
register("environments", "gym", "fastrl.envs.families.others:OLD_GYM")
register("environments", "vector", "fastrl.envs.families.others:VECTOR_ENVS")
register("environments", "envpool", "fastrl.envs.families.others:ENVPOOL")
