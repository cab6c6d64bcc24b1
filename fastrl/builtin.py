"""What fastrl itself offers by name; each is imported when it is first used."""

from fastrl.registry import register

register("algorithm", "ppo", "fastrl.learning.ppo:PPO")
register("algorithm", "a2c", "fastrl.learning.a2c:A2C")

register("environments", "classic_control", "fastrl.envs.families.classic_control:FAMILY")
register("environments", "crafter", "fastrl.envs.families.crafter:FAMILY")
register("environments", "mujoco", "fastrl.envs.families.mujoco:FAMILY")
register("environments", "atari", "fastrl.envs.families.atari:FAMILY")
register("environments", "gym", "fastrl.envs.families.others:OLD_GYM")
register("environments", "vector", "fastrl.envs.families.others:VECTOR_ENVS")
register("environments", "envpool", "fastrl.envs.families.others:ENVPOOL")
