"""`jit` for programs that run a few times on tiny shapes: compiled in a hurry instead of well, where XLA offers it."""

import functools

import jax


def _accepted(options):
    try:
        jax.jit(lambda x: x + 1, compiler_options=options)(0)
    except Exception:  # each version of XLA has its own options
        return {}
    return options


_OPTIONS = {}
if jax.default_backend() == "cpu":
    _OPTIONS |= _accepted({"xla_backend_optimization_level": 0})
    _OPTIONS |= _accepted({"xla_cpu_use_fusion_emitters": False})

jit = functools.partial(jax.jit, compiler_options=_OPTIONS)
