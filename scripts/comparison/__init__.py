"""Measurements of scripts/compare.py: methods, rounds and reports.

`task` is what every method samples; `method` is the base of methods, `peers` are other libraries';
`rounds` measures them; `report` and `picture` show the results.

All methods step the environments that `fastrl.envs.EnvFactory` builds, without the wrappers
that only check, except EnvPool and gymnasium's own batched environments, which bring
theirs. All run the network that the configuration describes: the peers by eager torch without
gradients, drawing actions and computing their log-probability and the value at every step, and
fastrl by the engine that the configuration names. The peers need not store what they sampled;
fastrl does.

What counts is a call of an environment's ``step``. Vector environments that spend a step on a
reset are not credited for it.
"""
