"""train.py that writes its phases to a file and pauses in each: `told.py FILE SECONDS …`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time

from transformer.command_line import run
from transformer.jobs import train


class Told(logging.Handler):
    """Write the begin and the end of each phase as one line. Pause after the begin and before the end."""

    def __init__(self, path: str, seconds: float):
        super().__init__()
        self._file, self._seconds = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), seconds

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if line.startswith("end "):
            time.sleep(self._seconds)
        os.write(self._file, f"{line}\n".encode())
        if line.startswith("begin "):
            time.sleep(self._seconds)


if __name__ == "__main__":
    path, seconds = sys.argv[1:3]
    del sys.argv[1:3]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background processes ignore it
    phases = logging.getLogger("transformer.phases")
    phases.addHandler(Told(path, float(seconds)))
    phases.setLevel(logging.DEBUG)
    phases.propagate = False
    run(train)
