"""Set up JAX for a program: devices, the cache of compiled programs, memory."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import sys

from transformer.config import UserError
from transformer.memory import address_space, ran_out


def set_up_jax() -> None:
    """Cache compiled programs on disk, so that later starts are quick, and keep freed memory in the process.

    On a CPU, JAX allocates the memory of its intermediate results anew at each step. By default glibc returns freed
    memory to the system; the page faults of getting it back took a sixth of a training step. Raises `UserError` if JAX
    can't use its devices, or would compute in 64 bits.
    """
    import jax

    from transformer.compiled import cache_compiled

    if jax.config.jax_enable_x64:
        raise UserError("JAX_ENABLE_X64 is set, but this program computes in 32 bits; unset it, or set it to 0")
    if (limit := address_space()) is not None and limit < 8 * 2**30:
        logging.getLogger("transformer").warning(
            "memory is limited to %.2f GiB (ulimit -v). If JAX needs more, this program may crash with exit code 134 "
            "or 139, or hang: then raise the limit",
            limit / 2**30,
        )

    try:
        jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: no plugin for this device
        if ran_out(error):
            raise
        reason = " ".join(str(error).split())[:200] or "no plugin for it"
        platforms = jax.config.jax_platforms
        asked = f"JAX_PLATFORMS={platforms} asks for" if platforms else "this machine has"
        raise UserError(
            f"JAX cannot use the devices that {asked} ({reason}); set JAX_PLATFORMS=cpu to run on the CPU"
        ) from None
    try:
        cache_compiled()
    except UserError as error:
        logging.getLogger("transformer").warning("compiled programs are not cached: %s", error)
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # a C library other than glibc
            mallopt = ctypes.CDLL(None).mallopt
            # <malloc.h>: M_MMAP_MAX, M_ARENA_MAX, M_TRIM_THRESHOLD
            for option, value in ((-4, 0), (-8, 1), (-1, 2**31 - 1)):
                mallopt(option, value)
