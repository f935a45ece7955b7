"""Memory: what a device has, and out-of-memory errors, recognised among other errors and reported in one line."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from transformer.config import UserError

# Messages of JAX, the C library and Python when memory runs out, in exceptions of several classes.
_MESSAGES = (
    "RESOURCE_EXHAUSTED",
    "Out of memory",
    "out of memory",
    "bad_alloc",
    "annot allocate memory",
    "can't start new thread",
    "failed to map segment",
    "YNNPACK operation failed",  # of XLA's CPU kernels, which print "allocate failed" only on standard error
)
_DISK_MESSAGES = ("No space left", "Disk quota")  # some libraries report a full disk as RESOURCE_EXHAUSTED, too


def ran_out(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, SystemError):  # an extension module may raise this when an allocation fails
        return address_space() is not None
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    text = str(error)
    return any(words in text for words in _MESSAGES) and not any(words in text for words in _DISK_MESSAGES)


def address_space() -> int | None:
    """The limit on this process's address space in bytes (ulimit -v), or None."""
    try:
        import resource
    except ImportError:  # not a Unix system
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def memory_of_a_device() -> int:
    """Bytes that this program may use on one device. Devices of a CPU share the memory of the machine."""
    import jax

    device = jax.local_devices()[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):  # a container's limits
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(Path(path).read_text()))
    if (limit := address_space()) is not None:
        limits.append(limit)
    return min(limits) // jax.local_device_count()


def require_memory(needed: int, what: str, fix: str) -> None:
    """Raise `UserError` if a device has less memory than the `needed` bytes for `what`. Without this check, JAX may
    crash or hang, or the system kills the process."""
    if needed > (memory := memory_of_a_device()):
        gib = 2**30
        raise OutOfMemory(
            f"{what} need at least {needed / gib:,.1f} GiB a device, which has {memory / gib:.1f} GiB; {fix}"
        )


class OutOfMemory(UserError):
    """Memory ran out. A file that was being read may be undamaged."""


@contextlib.contextmanager
def enough_memory(fix: str) -> Iterator[None]:
    """Context manager: if memory runs out in the block, raise `UserError` with this fix."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not ran_out(error):
            raise
        raise out_of_memory(error, fix) from error


def out_of_memory(error: BaseException, fix: str) -> OutOfMemory:
    """Convert an out-of-memory error to a `UserError` of one line, with this fix."""
    reason = " ".join(f"{type(error).__name__}: {error}".rstrip(": ").split())
    return OutOfMemory(f"memory ran out ({reason[:200]}); {fix}")
