"""Stop signals: SIGINT (Ctrl-C), SIGTERM and SIGHUP take effect between updates, so that the state is saved first.

SLURM, Kubernetes and the maintenance of Cloud TPU send SIGTERM some time before they take a machine away. A closed
terminal or a broken connection sends SIGHUP; under nohup it is ignored.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from transformer.streams import tell

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class StopRequested(BaseException):
    """Interrupts an `interruptible` block. A BaseException, so that nothing else catches it."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class StopSignals:
    """Inside this context the first of `SIGNALS` only sets `received`. A SIGINT after it ends the process at once.

    Outside the main thread nothing is received: Python delivers signals to the main thread only.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._interrupting = False
        self._old_handlers: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            # Python runs a signal handler only after the current C call, such as a compilation. A thread that reads
            # the signal numbers from a pipe need not wait for it.
            reading, self._wakeup_fd = os.pipe()
            os.set_blocking(self._wakeup_fd, False)
            threading.Thread(target=_watch, args=(reading,), daemon=True).start()
            # A signal that is ignored stays ignored: a shell ignores Ctrl-C for a background process, for example.
            caught = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._old_handlers = {number: signal.signal(number, self._receive) for number in caught}
            self._old_wakeup_fd = signal.set_wakeup_fd(self._wakeup_fd, warn_on_full_buffer=False)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._old_wakeup_fd)
            os.close(self._wakeup_fd)
        for number, handler in self._old_handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """A block that a signal interrupts with `StopRequested`. With several processes it runs to its end."""
        if jax.process_count() == 1:
            self._interrupting = True  # before the test, so that no signal is lost between the two
            if self.received:
                self._interrupting = False
                raise StopRequested(self.received)
        try:
            yield
        finally:
            self._interrupting = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            # Neither the log nor sys.stderr may be used here: the handler may run while another line is being written.
            tell(f"\n{signal.Signals(number).name}: saving the state after this update; Ctrl-C then stops at once\n")
            if self._interrupting:
                self._interrupting = False
                raise StopRequested(number)


def _watch(pipe: int) -> None:
    """Read signal numbers from a pipe. End the process at a SIGINT that is not the first signal."""
    count = 0
    while number := os.read(pipe, 1):
        if number[0] in SIGNALS:
            if count and number[0] == signal.SIGINT:
                tell("\ninterrupted; the same command goes on from the last checkpoint\n")
                os._exit(128 + signal.SIGINT)
            count += 1
    os.close(pipe)


class StopPoll:
    """Tells all processes, after the same update, whether one of them has received a stop signal.

    All processes call it once for each update. It returns a function, to be called after that update is done, which
    returns the largest signal number that a process had received, or 0.
    """

    def __init__(self, mesh: Mesh, signals: StopSignals):
        self._signals, self._alone = signals, jax.process_count() == 1
        self._sharding = NamedSharding(mesh, P(mesh.axis_names))
        self._shape = (mesh.size,)
        self._max = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, P()))

    def __call__(self) -> Callable[[], int]:
        if self._alone:
            return lambda: self._signals.received or 0
        received = np.full(1, self._signals.received or 0, np.int32)
        largest = self._max(jax.make_array_from_callback(self._shape, self._sharding, lambda index: received))
        return lambda: int(largest)
