"""Imported once by the fork server: all workers are forked from what is loaded here.

Compiled code is loaded too (and compiled, the first time on a machine), so that workers share its
memory and do not each wait for it. What fails here fails again in the worker that needs it, which
reports it by name; so it must not end the server, and with it every worker.
"""

import contextlib
import gc
from importlib import import_module

for _module in ("gymnasium", "fastrl.workers.env_worker", "fastrl.workers.model_worker"):
    with contextlib.suppress(Exception):
        import_module(_module)

with contextlib.suppress(Exception):
    from fastrl.shared.finite import compile_finite

    compile_finite()

with contextlib.suppress(Exception):  # without a compiler, inference runs eagerly
    from fastrl.models.inference.mlp_program import compile_kernel

    compile_kernel()

# Collections in the workers would write to every object's header, and so unshare its page.
gc.collect()
gc.freeze()
