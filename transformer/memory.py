"""Out-of-memory errors: recognise them among other errors, and report them in one line."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

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
