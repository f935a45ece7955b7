"""Several processes that work on one model, each on its own devices: who does what alone, and what all must agree on.

They talk through JAX's coordination service, which process 0 runs. For a single process all of this is nothing.
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
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from transformer.config import UserError, whole_number
from transformer.streams import one_line, tell

log = logging.getLogger("transformer")

WAIT = 3_600.0  # seconds that a process waits for another one
HEARTBEAT = 20  # seconds of silence after which a process is given up
LOST = 75  # the exit code of a process that has lost the others: to be started again
# What JAX's errors say when another process is gone.
_COLLECTIVE_WORDS = ("Gloo", "gloo", "NCCL")
_LOST_WORDS = (
    *_COLLECTIVE_WORDS,
    *("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED", "oordination", "onnection"),
)
_REMIND_EVERY = 60.0  # seconds between two lines that say so
_CHUNK = 1 << 20  # characters of a message: a service takes no more than a few million bytes at once
_rounds = itertools.count()  # in step everywhere, as all processes run the same program
_published: list[str] = []  # keys of this process's last messages


def start(coordinator: str | None = None, process: str | None = None) -> None:
    """Join the other processes: those of a SLURM, Cloud TPU, GKE or Open MPI job, or those that `process`, such as
    '0/4', numbers, meeting at process 0's `coordinator`, such as '10.0.0.1:1234'. Before JAX is used at all.

    Without either this process is alone. Raises `UserError` for wrong options, or if the others can't be met.
    """
    if (coordinator is None) != (process is None):
        raise UserError("--coordinator HOST:PORT and --process I/N go together; leave both out for a single process")
    options: dict[str, Any] = {}
    if coordinator is not None and process is not None:
        index, number = map(whole_number, process.partition("/")[::2])
        if index is None or number is None or not index < number:
            raise UserError(f"--process {process}: give it as I/N, such as 0/2 for the first of two")
        if whole_number(coordinator.rpartition(":")[2]) is None or ":" not in coordinator:
            raise UserError(f"--coordinator {coordinator}: give it as HOST:PORT, the same for all processes")
        options = {
            "coordinator_address": coordinator,
            "num_processes": number,
            "process_id": index,
            "cluster_detection_method": "deactivate",
        }
    sizes = [os.environ.get(name) for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")]
    if options.get("num_processes") == 1 or (not options and "1" in sizes):
        return
    # SIGTERM is for `stopping` to hear.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with _report_lost_processes():
            jax.distributed.initialize(**options, heartbeat_timeout_seconds=HEARTBEAT)
    except Exception as error:  # what finds a job out raises what it likes
        reason = " ".join(str(error).split())
        if not options and ("coordinator_address should be defined" in reason or "must be called before" in reason):
            return  # no job of several processes; or called from a program that uses JAX already, alone
        raise UserError(
            f"the processes of this job did not meet ({type(error).__name__}: {reason[:200]}); start all of them, and "
            "anew; or say that this one is alone: --process 0/1 --coordinator localhost:1"
        ) from None
    if jax.process_index():
        log.setLevel(logging.WARNING)  # process 0 tells for all
        for handler in log.handlers:
            handler.addFilter(_add_process_number)


class TimedOut(UserError):
    """Another process took too long. Who says so can't wait for what the others say to it."""


@contextlib.contextmanager
def _report_lost_processes() -> Iterator[None]:
    """A block that joins the others: who loses one of them later ends with a line of ours, and with `LOST`.

    JAX notices, in threads that Python does not hold up, and then ends the process natively. It offers a callback, but
    shows that nowhere, and in the versions at hand fails to call it and aborts instead: so both are caught.
    """
    try:
        from jax._src.lib import _jax

        original = _jax.get_distributed_runtime_client
    except (ImportError, AttributeError):  # then it ends as JAX sees fit
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
    tell(line)
    os._exit(LOST)


_aborted = ctypes.CFUNCTYPE(None, ctypes.c_int)(_lost)


@contextlib.contextmanager
def fail_fast() -> Iterator[None]:
    """A block of work that several processes share, for errors that only one of them has.

    Where a collective fails as another process has ended, that is what is told, once JAX knows. An error that the
    others were not told of ends this process without waiting for them; they find it gone.
    """
    try:
        yield
    except UserError as error:
        if count() > 1 and not getattr(error, "shared", False):
            print("error:", one_line(error), file=sys.stderr, flush=True)
            # Where all have the same error each shall end with it, and not with the loss of process 0, who goes last.
            time.sleep(1 if jax.process_index() else 4)
            os._exit(2)
        raise
    except (RuntimeError, ValueError) as error:
        # A collective that fails while it is dispatched raises ValueError.
        words = _LOST_WORDS if isinstance(error, RuntimeError) else _COLLECTIVE_WORDS
        if count() > 1 and any(word in str(error) for word in words):
            log.warning("the other processes no longer answer; waiting for what became of them")
            time.sleep(2 * HEARTBEAT)
        raise


def _add_process_number(record: logging.LogRecord) -> bool:
    record.msg = f"process {jax.process_index()}: {record.msg}"
    return True


def count() -> int:
    """How many processes there are. Unlike `jax.process_count` it does not wake JAX's devices up where there is one."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def first() -> bool:
    """Whether this is process 0, which alone writes to the workdir and tells how it goes."""
    return count() == 1 or jax.process_index() == 0


@contextlib.contextmanager
def in_turn(what: str, timeout: float | None = None) -> Iterator[None]:
    """The block runs in process 0 first, and in all others once it is done there.

    So what it leaves in a folder that all can see is made once; who can't see it makes its own. If it fails in one of
    them all raise `UserError`; who waits for another longer than `timeout` seconds (default: `WAIT`) raises it alone.
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
            raise UserError("")  # what failed there comes with what all tell each other at the end


@contextlib.contextmanager
def all_or_none(timeout: float | None = None) -> Iterator[None]:
    """If the block raises `UserError` in some of the processes, all raise it behind the block: none goes on alone.

    There each waits for the others for `timeout` seconds at most (default: `WAIT`).
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
        if count() > 1:  # the others shall not wait for this one
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
    """The texts of all processes, in their order; each must call this at the same point.

    Raises `TimedOut` if one of them does not come within `timeout` seconds (default: `WAIT`).
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
    # All have come here, so all have read what was said the time before.
    for name in _published:
        _client().key_value_delete(name)
    _published[:] = keys
    return texts


def _publish(key: str, text: str) -> list[str]:
    """Tell the others, in as many parts as it takes; the keys of these."""
    parts = -(-len(text) // _CHUNK) or 1
    keys = [f"{key}/{jax.process_index()}/{part}" for part in range(parts)]
    for part, name in enumerate(keys):
        _set(name, f"{parts - part - 1} {text[part * _CHUNK : (part + 1) * _CHUNK]}")
    return keys


def agree(values: Mapping[str, Any]) -> None:
    """Raise `UserError`, in all processes, naming what is not the same in each."""
    gathered = [json.loads(text) for text in gather(json.dumps(dict(values)))]
    for index, other in enumerate(gathered):
        for name, value in gathered[0].items():
            if other.get(name) != value:
                raise _shared_error(
                    f"{name} is {other.get(name)!r} in process {index} and {value!r} in process 0; all must see the "
                    "same: give them the same files and options, then start them anew"
                )


def _client() -> Any:
    from jax._src import distributed  # JAX shows its key-value store nowhere else

    return distributed.global_state.client


def _set(key: str, value: str) -> None:
    _client().key_value_set(key, value)


def _get(key: str, whom: str, timeout: float | None = None) -> str:
    """The value of a key, once it is there."""
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
        f"process {jax.process_index()} waited {timeout:.0f} s for {whom}; see what holds it up, then start all anew"
    )
