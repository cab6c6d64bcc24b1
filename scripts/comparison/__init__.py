"""What scripts/compare.py measures, how, and what it makes of it.

`task` is what every method samples; `method` says what a method is; `peers` are those of others;
`rounds` measures them; `report` and `picture` show what was found.

All methods step the environments that `fastrl.envs.EnvFactory` builds, without the wrappers
that cost time for nothing, except EnvPool and gymnasium's own batched environments, which bring
theirs. All run the network that the configuration describes: the peers by eager torch without
gradients, drawing actions and computing their log-probability and the value at every step, and
fastrl by the engine that the configuration names. The peers need not store what they sampled;
fastrl does.

What counts is a call of an environment's ``step``. Vector environments that spend a step on a
reset are not credited for it.
"""
