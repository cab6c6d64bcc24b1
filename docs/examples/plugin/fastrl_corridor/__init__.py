"""An algorithm, a policy, a callback and a family of environments, chosen by name in YAML."""

from fastrl import register

register("algorithm", "penalty", "fastrl_corridor.penalty:Penalty")
register("model", "with-logits", "fastrl_corridor.policy:WithLogits")
register("callback", "longer-corridor", "fastrl_corridor.curriculum:LongerCorridor")
register("environments", "corridor", "fastrl_corridor.corridor:CORRIDORS")
