"""What a process is in the middle of, told to the log at its lowest level; by it the tests in `tests/faults` know when
to do harm."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

log = logging.getLogger("transformer.phases")


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """A block of this name, whose begin and end are told."""
    log.debug("begin %s", name)
    yield
    log.debug("end %s", name)
