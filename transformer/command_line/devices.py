"""JAX set up for a program: its devices, its compiled programs and its memory."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import sys

from transformer.config import Config, UserError
from transformer.memory import address_space, ran_out


def set_up_jax() -> None:
    """Keep compiled programs in the cache folder, so that the second start is quick, and freed memory in the process.

    JAX on a CPU asks for the memory of its intermediate results anew at each step. What glibc gives back to the system
    in between comes back as fresh pages, and faulting them in took a sixth of a training step.
    """
    import jax

    from transformer.data.folder import writable_cache_dir

    if (limit := address_space()) is not None and limit < 8 * 2**30:
        logging.getLogger("transformer").warning(
            "memory is limited to %.2f GiB (ulimit -v). If JAX needs more, it may end this program by itself, with "
            "exit code 134 or 139, or stand still: then raise the limit",
            limit / 2**30,
        )

    try:
        jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # the latter of a kind of device that JAX has no plugin for
        if ran_out(error):
            raise
        reason = " ".join(str(error).split())[:200] or "no plugin for it"
        platforms = jax.config.jax_platforms
        asked = f"JAX_PLATFORMS={platforms} asks for" if platforms else "this machine has"
        raise UserError(
            f"JAX cannot use the devices that {asked} ({reason}); set JAX_PLATFORMS=cpu to do without"
        ) from None
    try:
        with writable_cache_dir(Config().data) as folder:
            (folder / "compiled").mkdir(exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    except UserError as error:
        logging.getLogger("transformer").warning("compiled programs are not kept: %s", error)
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            # <malloc.h>: M_MMAP_MAX, M_ARENA_MAX, M_TRIM_THRESHOLD
            for option, value in ((-4, 0), (-8, 1), (-1, 2**31 - 1)):
                mallopt(option, value)
