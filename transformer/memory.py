"""Too little memory, told apart from other errors and in one line."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from transformer.config import UserError

# What JAX, the C library and Python say where they get none, in exceptions of several classes.
_SAID = (
    "RESOURCE_EXHAUSTED",
    "Out of memory",
    "out of memory",
    "bad_alloc",
    "annot allocate memory",
    "can't start new thread",
    "failed to map segment",
    "YNNPACK operation failed",  # XLA's kernels for CPUs say no more, and "allocate failed" on standard error
)
_DISK = ("No space left", "Disk quota")  # which some libraries call an exhausted resource, too


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, SystemError):  # of an extension that did not get any, and does not say so
        return address_space() is not None
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    text = str(error)
    return any(words in text for words in _SAID) and not any(words in text for words in _DISK)


def address_space() -> int | None:
    """The bytes that this process may use at most, where its user set a limit (ulimit -v)."""
    try:
        import resource
    except ImportError:  # another system
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


class OutOfMemory(UserError):
    """Memory ran out. That says nothing about what was being read."""


@contextlib.contextmanager
def enough_memory(fix: str) -> Iterator[None]:
    """A block that may need more memory than there is: then it raises `UserError` with the fix."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not ran_out(error):
            raise
        raise short(error, fix) from error


def short(error: BaseException, fix: str) -> OutOfMemory:
    """The error for a user whose memory ran out."""
    reason = " ".join(f"{type(error).__name__}: {error}".rstrip(": ").split())
    return OutOfMemory(f"memory ran out ({reason[:200]}); {fix}")
