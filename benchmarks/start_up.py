"""Time and memory from tokenised text to the first batch, for a corpus of many millions of pairs.

    python benchmarks/start_up.py --pairs 9000000 --rows results/data.jsonl     # some minutes, and 1 GB of disk

The corpus is random pieces with lengths like WMT14's. A first start packs the pairs into rows, a second one finds the
rows in the cache. Each is a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rows import Rows
from side_by_side import environment, log

from transformer.command_line import Parser, run, whole
from transformer.data.batching import Batches
from transformer.data.tokens import TokenStore
from transformer.files import cached, compared, write_file

PIECES, MEAN, SPREAD = 32_000, 3.2, 0.55  # of log-normal lengths: 28 pieces on average
PART = 1_000_000  # pairs that are written at a time


def write_store(folder: Path, pairs: int) -> None:
    """Write a token store of random pieces into `folder`."""
    rng = np.random.default_rng(0)
    source = np.clip(rng.lognormal(MEAN, SPREAD, pairs), 1, 300)
    lengths = {"source": source, "target": np.clip(source * rng.lognormal(0.05, 0.2, pairs), 1, 300)}
    meta: dict[str, Any] = {"text": f"random {pairs}", "pairs": pairs, "same": 0, "dtype": "<u2"}
    for side, of in lengths.items():
        offsets = np.zeros(pairs + 1, "<i8")
        np.cumsum(of.astype(np.int64), out=offsets[1:])
        with compared(folder / f"{side}.tokens") as file:
            for begin in range(0, int(offsets[-1]), PART):
                count = min(PART, int(offsets[-1]) - begin)
                file.write(rng.integers(4, PIECES, count, dtype=np.uint16).data)
        with compared(folder / f"{side}.offsets.npy") as file:
            np.save(file, offsets, allow_pickle=False)
        meta[f"{side}_pieces"] = int(offsets[-1])
    write_file(folder / "meta.json", (json.dumps(meta) + "\n").encode())


def start(folder: str, batch_tokens: int, packing: bool) -> dict[str, Any]:
    """What a run does before its first update: open the store, plan the batches, read one."""
    clock, began = time.process_time(), time.monotonic()
    options = {"max_length": 256, "max_ratio": 9.0, "n_buckets": 8, "packing": packing, "seed": 0}
    with peak_memory() as peak:
        batches = Batches([TokenStore(folder)], batch_tokens=batch_tokens, **options)
        pieces = sum(int((array != 0).sum()) for array in batches[0].values())
    return {
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(time.process_time() - clock, 1),
        "peak_gib": round(peak[0] / 2**30, 2),
        "batches": batches.batches_per_epoch,
        "pieces_of_the_first": pieces,
        "padding": round(batches.padding, 4),
    }


@contextlib.contextmanager
def peak_memory() -> Iterator[list[int]]:
    """A block whose most bytes of memory, without mapped files, are in the list at its end. Looks every 20 ms."""
    peak, ended = [0], threading.Event()

    def look() -> None:
        while not ended.wait(0.02):
            status = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines())
            peak[0] = max(peak[0], 1024 * int(status["RssAnon"].split()[0]))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def main(arguments: list[str]) -> None:
    parser = Parser("benchmarks/start_up.py", (__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--pairs", type=whole(1, 10**9), default=9_000_000, help="pairs of the corpus (default 9 million)"
    )
    parser.add_argument("--batch-tokens", type=whole(1), default=25_000, help="of a batch (default 25,000)")
    parser.add_argument("--rows", metavar="FILE", help="rows are added to this file")
    parser.add_argument("--store", help="measure one start with this store, and print it as JSON")
    parser.add_argument("--bucketed", action="store_true", help="with --store: buckets of lengths instead of packing")
    o = parser.parse_args(arguments)
    if o.store:
        print(json.dumps(start(o.store, o.batch_tokens, not o.bucketed)))
        return
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "tokens" / "store"
        cached(store, lambda new: write_store(new, o.pairs), TokenStore, "the token store")
        rows = Rows(o.rows, device=None) if o.rows else None
        for number, more in (("first", []), ("second", []), ("bucketed", ["--bucketed"])):
            options = ["--store", str(store), "--batch-tokens", str(o.batch_tokens), *more]
            done = subprocess.run([sys.executable, __file__, *options], stdout=subprocess.PIPE, env=environment())
            found = {"part": "start-up", "start": number, "pairs": o.pairs, **json.loads(done.stdout)}
            log(f"{rows.add(found) if rows else found}")


if __name__ == "__main__":
    run(main)
