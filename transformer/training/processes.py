"""Several processes that train one model, each on its own devices: who does what alone, and what all must agree on.

They meet through JAX's coordination service, which process 0 runs. For a single process all of this is nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from transformer.config import UserError

log = logging.getLogger("transformer")

WAIT = 3_600.0  # seconds that the others give process 0 to build tokenizer and cache
_REMIND = 60.0  # seconds between two lines that say so
_turns = itertools.count()  # in step everywhere, as all processes run the same program


def start(coordinator: str | None = None, process: str | None = None) -> None:
    """Join the other processes: those of a SLURM, Cloud TPU, GKE or Open MPI job, or those that `process`, such as
    '0/4', numbers, meeting at process 0's `coordinator`, such as '10.0.0.1:1234'. Before JAX is used at all.

    Without either this process is alone.
    """
    if (coordinator is None) != (process is None):
        raise UserError("--coordinator HOST:PORT and --process I/N go together; leave both out for a single process")
    given: dict[str, Any] = {}
    if coordinator is not None and process is not None:
        index, _, number = process.partition("/")
        if not (index.isdigit() and number.isdigit() and int(index) < int(number)):
            raise UserError(f"--process {process}: give it as I/N, such as 0/2 for the first of two")
        if not coordinator.rpartition(":")[2].isdigit() or ":" not in coordinator:
            raise UserError(f"--coordinator {coordinator}: give it as HOST:PORT, the same for all processes")
        given = {
            "coordinator_address": coordinator,
            "num_processes": int(number),
            "process_id": int(index),
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(**given)
    except ValueError as error:
        if given:
            raise UserError(f"--coordinator {coordinator} --process {process}: {error}") from None
        return  # no job of several processes
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        if not given and "must be called before" in reason:
            return  # called from a program that uses JAX already, alone
        raise UserError(f"the processes of this job did not meet ({reason}); start all of them, and anew") from None
    if jax.process_index():
        log.setLevel(logging.WARNING)  # process 0 tells for all
        for handler in log.handlers:
            handler.addFilter(_number)


def _number(record: logging.LogRecord) -> bool:
    record.msg = f"process {jax.process_index()}: {record.msg}"
    return True


def first() -> bool:
    """Whether this is process 0, which alone writes to the workdir and tells how it goes."""
    return jax.process_index() == 0


@contextlib.contextmanager
def in_turn(what: str, timeout: float | None = None) -> Iterator[None]:
    """The block runs in process 0 first, and in all others once it is done there.

    So what it leaves in a folder that all can see is made once; who can't see it makes its own. The others raise
    `UserError` if process 0 fails, or takes longer than `timeout` seconds (default: `WAIT`).
    """
    if jax.process_count() == 1:
        yield
        return
    from jax._src import distributed  # JAX shows its key-value store nowhere else

    client, key = distributed.global_state.client, f"transformer/turn/{next(_turns)}"
    if first():
        try:
            yield
        except BaseException as error:
            client.key_value_set(key, f"failed: {error}")
            raise
        client.key_value_set(key, "done")
        return
    answer, began, timeout = None, time.monotonic(), WAIT if timeout is None else timeout
    while answer is None:
        left = timeout - (time.monotonic() - began)
        if left <= 0:
            raise UserError(f"process {jax.process_index()} waited {timeout:.0f} s for process 0 to make {what}; "
                            "see what holds it up, then start all processes anew")  # fmt: skip
        try:
            answer = client.blocking_key_value_get(key, int(1_000 * min(left, _REMIND)) + 1)
        except RuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
            if left > _REMIND:
                log.warning("waiting for process 0 to make %s (%.0f s)", what, time.monotonic() - began)
    if answer != "done":
        raise UserError(f"process 0 could not make {what}: {answer}")
    yield


def gather(text: str) -> list[str]:
    """The texts of all processes, in their order; each must call this at the same point."""
    if jax.process_count() == 1:
        return [text]
    content = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(content)))
    longest = 1 << int(max(sizes)).bit_length()  # a few sizes, as each is compiled
    contents = multihost_utils.process_allgather(np.pad(content, (0, longest - len(content))))
    return [bytes(own[:size]).decode() for own, size in zip(contents, sizes, strict=True)]


def agree(values: Mapping[str, Any]) -> None:
    """Raise `UserError`, in all processes, naming what is not the same in each."""
    told = [json.loads(one) for one in gather(json.dumps(dict(values)))]
    for index, other in enumerate(told):
        for name, value in told[0].items():
            if other.get(name) != value:
                raise UserError(
                    f"{name} is {_short(other.get(name))} in process {index} and {_short(value)} in process 0; "
                    "all must see the same: give them the same files and options, then start them anew"
                )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:16]}…"


def from_first(number: int) -> int:
    """Process 0's number, in all of them."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(number))) if jax.process_count() > 1 else number
