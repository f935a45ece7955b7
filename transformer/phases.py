"""Debug log of the phases of a process, such as saving a checkpoint. `tests/faults` uses it to time its faults."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

log = logging.getLogger("transformer.phases")


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Log the begin and the end of a block, at level DEBUG."""
    log.debug("begin %s", name)
    yield
    log.debug("end %s", name)
