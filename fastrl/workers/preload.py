"""Imported once by the fork server: all workers are forked from what is loaded here.

Compiled code is loaded too (and compiled, the first time on a machine), so that workers share its
memory and do not each wait for it.
"""

import contextlib
import gc

import gymnasium  # noqa: F401

import fastrl.workers.env_worker
import fastrl.workers.model_worker  # noqa: F401
from fastrl.shared.finite import compile_finite

compile_finite()

with contextlib.suppress(Exception):  # without a compiler, inference runs eagerly
    from fastrl.models.inference.mlp_program import compile_kernel
    from fastrl.workers.compiled_answers import compile_answers

    compile_kernel()
    compile_answers()

# Collections in the workers would write to every object's header, and so unshare its page.
gc.collect()
gc.freeze()
