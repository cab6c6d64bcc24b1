"""What fastrl itself offers by name; each is imported when it is first used."""

from fastrl.registry import register

register("algorithm", "ppo", "fastrl.learning.ppo:PPO")
register("algorithm", "a2c", "fastrl.learning.a2c:A2C")
