"""Several processes that train or evaluate one model, each on its own devices: start, order, agreement, failure.

They exchange short texts through JAX's coordination service, which process 0 runs. With a single process, these
functions do nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from transformer.config import UserError, whole_number
from transformer.streams import one_line, tell

log = logging.getLogger("transformer")

WAIT = 3_600.0  # seconds that a process waits for another one
HEARTBEAT = 20  # seconds without a sign of life after which a process counts as lost
LOST = 75  # exit code of a process that has lost another one; the job can be started again
# Words in JAX's errors when another process is gone.
_COLLECTIVE_WORDS = ("Gloo", "gloo", "NCCL")
_LOST_WORDS = (
    *_COLLECTIVE_WORDS,
    *("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED", "oordination", "onnection"),
)
_REMIND_EVERY = 60.0  # seconds between two warnings that a process is waiting
_CHUNK = 1 << 20  # characters of a message part; the service takes at most a few million bytes at once
_rounds = itertools.count()  # equal in all processes, because all run the same program
_published: list[str] = []  # keys of the last message of this process
_last_word = threading.Lock()  # held by `_lost` to its end, so that no other thread writes a line after its own


def start(coordinator: str | None = None, process: str | None = None) -> None:
    """Connect to the other processes of this job. Call it before any other use of JAX.

    `process`: the number of this process and of all, such as '0/4'. `coordinator`: the address of process 0, such as
    '10.0.0.1:1234'. Without the two, the processes of a SLURM, Cloud TPU, GKE or Open MPI job are found; without such a
    job, this process is alone. Raises `UserError` for wrong options, or if the processes do not connect.
    """
    if (coordinator is None) != (process is None):
        raise UserError("--coordinator HOST:PORT and --process I/N go together; leave both out for a single process")
    options: dict[str, Any] = {}
    if coordinator is not None and process is not None:
        index, number = map(whole_number, process.partition("/")[::2])
        if index is None or number is None or not index < number:
            raise UserError(f"--process {process}: give it as I/N, such as 0/2 for the first of two")
        host, _, port = coordinator.rpartition(":")
        if not host or not 1 <= (whole_number(port) or 0) <= 65_535:
            raise UserError(
                f"--coordinator {coordinator}: give it as HOST:PORT, the same for all processes, with a port from 1 to "
                "65535"
            )
        options = {
            "coordinator_address": coordinator,
            "num_processes": number,
            "process_id": index,
            "cluster_detection_method": "deactivate",
        }
    sizes = [os.environ.get(name) for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")]
    if options.get("num_processes") == 1 or (not options and "1" in sizes):
        return
    # `stopping` handles SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with _report_lost_processes():
            jax.distributed.initialize(**options, heartbeat_timeout_seconds=HEARTBEAT)
    except Exception as error:  # detecting a job may raise anything
        reason = " ".join(str(error).split())
        if not options and ("coordinator_address should be defined" in reason or "must be called before" in reason):
            return  # there is no job of several processes, or the caller, a single process, has already used JAX
        raise UserError(
            f"the processes of this job did not connect ({type(error).__name__}: {reason[:200]}); start all of them "
            "again, or run this one alone: --process 0/1 --coordinator localhost:1"
        ) from None
    if jax.process_index():
        log.setLevel(logging.WARNING)  # only process 0 logs information
        for handler in log.handlers:
            handler.addFilter(_add_process_number)


class TimedOut(UserError):
    """Another process took too long. `all_or_none` raises it at once, without waiting for the others again."""


@contextlib.contextmanager
def _report_lost_processes() -> Iterator[None]:
    """In this block the process connects. If it loses another process later, it ends with our message and code `LOST`.

    JAX detects the loss in native threads and then ends the process. It has a callback for it, which is not public.
    Known versions fail to call it and abort instead, so this function handles both, the callback and SIGABRT.
    """
    try:
        from jax._src.lib import _jax

        original = _jax.get_distributed_runtime_client
    except (ImportError, AttributeError):  # another version of JAX: the process ends with JAX's own message
        yield
        return

    def client(*arguments: Any, **options: Any) -> Any:
        return original(*arguments, **options, missed_heartbeat_callback=_lost)

    _jax.get_distributed_runtime_client = client
    try:
        yield
        if sys.platform == "linux":
            ctypes.CDLL(None).signal(signal.SIGABRT, _aborted)
    finally:
        _jax.get_distributed_runtime_client = original


def _lost(*reason: Any) -> None:
    line = (
        "\nerror: another process of this job was lost, so this one ends, too, unless the lines above say that it "
        "failed itself; start all of them again: they go on from the last checkpoint\n"
    )
    _last_word.acquire(timeout=1)  # a signal may have interrupted the thread that holds it
    tell(line)
    os._exit(LOST)


_aborted = ctypes.CFUNCTYPE(None, ctypes.c_int)(_lost)


@contextlib.contextmanager
def fail_fast() -> Iterator[None]:
    """A block of work that several processes share. Ends a process that fails alone, instead of waiting for the others.

    A `UserError` that the other processes do not have ends this process at once; the others then detect its loss. If a
    collective fails because another process has ended, the block waits for JAX to report that loss.
    """
    try:
        yield
    except UserError as error:
        if count() > 1 and not getattr(error, "shared", False):
            print("error:", one_line(error), file=sys.stderr, flush=True)
            # All may have the same error. Process 0 ends last, so that each ends with it and not with a lost process 0.
            time.sleep(1 if jax.process_index() else 4)
            os._exit(2)
        raise
    except (RuntimeError, ValueError) as error:
        # A collective that fails during its dispatch raises ValueError.
        words = _LOST_WORDS if isinstance(error, RuntimeError) else _COLLECTIVE_WORDS
        if count() > 1 and any(word in str(error) for word in words):
            with _last_word:
                log.warning("the other processes no longer answer; waiting for JAX to report which are lost")
            time.sleep(2 * HEARTBEAT)
        raise


def _add_process_number(record: logging.LogRecord) -> bool:
    record.msg = f"process {jax.process_index()}: {record.msg}"
    return True


def count() -> int:
    """The number of processes. Unlike `jax.process_count`, it does not initialise the devices of a single process."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def first() -> bool:
    """Whether this is process 0, the only one that writes to the workdir and logs progress."""
    return count() == 1 or jax.process_index() == 0


@contextlib.contextmanager
def in_turn(what: str, timeout: float | None = None) -> Iterator[None]:
    """Run the block in process 0 first, and then in all other processes.

    So process 0 makes the files of a shared folder once; a process that does not share the folder makes its own.
    `what`: the name of these files. If the block fails in one process, all raise `UserError`. A process that waits for
    another one longer than `timeout` seconds (default: `WAIT`) raises `TimedOut` alone.
    """
    with all_or_none(timeout):
        key = f"transformer/turn/{next(_rounds)}"
        if count() == 1:
            yield
        elif first():
            try:
                yield
            except BaseException:
                _set(key, "failed")
                raise
            _set(key, "done")
        elif _get(key, f"process 0 to make {what}", timeout) == "done":
            yield
        else:
            raise UserError("")  # `all_or_none` replaces it with the error of process 0


@contextlib.contextmanager
def all_or_none(timeout: float | None = None) -> Iterator[None]:
    """If the block raises `UserError` in one process, every process raises `UserError` after it.

    After the block, each process waits for the others for at most `timeout` seconds (default: `WAIT`).
    """
    failure = None
    try:
        yield
    except TimedOut:
        raise
    except UserError as error:
        failure = str(error)
        if count() == 1:
            raise
    except BaseException as error:
        if count() > 1:  # so that the others do not wait for this process
            _publish(f"transformer/gather/{next(_rounds)}", json.dumps(f"{type(error).__name__}: {error}"))
        raise
    failures = [json.loads(text) for text in gather(json.dumps(failure), timeout)]
    for index, other in enumerate(failures):
        if failure or other:
            raise _shared_error(failure or f"process {index} had to stop: {other}")


def _shared_error(message: str) -> UserError:
    """An error that all processes raise."""
    error = UserError(message)
    error.shared = True
    return error


def gather(text: str, timeout: float | None = None) -> list[str]:
    """The texts of all processes, in the order of their numbers. Every process must call this at the same point.

    Raises `TimedOut` if the text of a process takes longer than `timeout` seconds (default: `WAIT`).
    """
    n = count()
    if n == 1:
        return [text]
    key = f"transformer/gather/{next(_rounds)}"
    keys = _publish(key, text)
    texts = []
    for index in range(n):
        message = ""
        for part in itertools.count():
            left, _, content = _get(f"{key}/{index}/{part}", f"process {index}", timeout).partition(" ")
            message += content
            if left == "0":
                break
        texts.append(message)
    # All processes have published this round, so all have read the round before: its messages can be deleted.
    for name in _published:
        _client().key_value_delete(name)
    _published[:] = keys
    return texts


def _publish(key: str, text: str) -> list[str]:
    """Publish a text for the other processes, in parts of `_CHUNK` characters. Returns the keys of the parts."""
    parts = -(-len(text) // _CHUNK) or 1
    keys = [f"{key}/{jax.process_index()}/{part}" for part in range(parts)]
    for part, name in enumerate(keys):
        _set(name, f"{parts - part - 1} {text[part * _CHUNK : (part + 1) * _CHUNK]}")
    return keys


def agree(values: Mapping[str, Any]) -> None:
    """Raise `UserError` in all processes if a value differs between them. The message names the first such value."""
    gathered = [json.loads(text) for text in gather(json.dumps(dict(values)))]
    for index, other in enumerate(gathered):
        for name, value in gathered[0].items():
            if other.get(name) != value:
                raise _shared_error(
                    f"{name} is {other.get(name)!r} in process {index} and {value!r} in process 0; all must see the "
                    "same: give them the same files and options, then start them again"
                )


def _client() -> Any:
    from jax._src import distributed  # JAX has no public interface to its key-value store

    return distributed.global_state.client


def _set(key: str, value: str) -> None:
    _client().key_value_set(key, value)


def _get(key: str, whom: str, timeout: float | None = None) -> str:
    """Wait for the value of a key. `whom`: the process that sets it, for messages."""
    began, timeout = time.monotonic(), WAIT if timeout is None else timeout
    while (left := timeout - (time.monotonic() - began)) > 0:
        try:
            return _client().blocking_key_value_get(key, int(1_000 * min(left, _REMIND_EVERY)) + 1)
        except RuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
            if left > _REMIND_EVERY:
                log.warning("waiting for %s (%.0f s)", whom, time.monotonic() - began)
    raise TimedOut(
        f"process {jax.process_index()} waited {timeout:.0f} s for {whom}; see what delays it, then start all again"
    )
