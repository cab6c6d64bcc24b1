"""Imported once by the fork server, so that all workers share the modules loaded here.

This includes compiled code, which is compiled once per machine. Failures are ignored
here, as they would end the server: they occur again in the worker that needs the module, which
reports them.
"""

import contextlib
import gc
from importlib import import_module

for _module in ("gymnasium", "fastrl.workers.env_worker", "fastrl.workers.model_worker"):
    with contextlib.suppress(Exception):
        import_module(_module)

with contextlib.suppress(Exception):  # without a compiler, inference runs eagerly
    from fastrl.models.inference.mlp_engine import compile_kernel

    compile_kernel()

# Garbage collections in workers would write to the header of every object and copy its page.
gc.collect()
gc.freeze()
