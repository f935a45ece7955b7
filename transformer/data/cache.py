"""Text tokenised once, kept as flat arrays that are memory-mapped: a corpus costs no memory and no time to reopen.

A cache lies at `<folder>/tokens/<key>/`, the key being a hash of text, tokenizer and format. It is built under another
name and renamed when complete, so whatever stands there is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np

from transformer.data.sources import owner, sweep
from transformer.data.text import Parallel, count_lines, fingerprint, read_pairs
from transformer.data.tokenizer import Tokenizer
from transformer.phases import phase

_FORMAT = 1  # part of the key: raise it when the files or the tokenisation change
_CHUNK = 2_000  # pairs handed to a process at a time
_SMALL = 20_000  # below so many pairs, processes take longer to start than to work

log = logging.getLogger("transformer")

Pair = tuple[str, str]
Tokens = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # source ids, lengths; target ids, lengths


class TokenCache:
    """Tokenised pairs 0 .. len-1, in the order of the text, opened from a folder that `tokenize` made."""

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        meta = json.loads((folder / "meta.json").read_text())
        self.path = folder
        self.source_tokens, self.source_offsets = _open(folder, "source", meta)
        """Flat ids of one side; pair i has those from offsets[i] up to offsets[i + 1], without BOS and EOS."""
        self.target_tokens, self.target_offsets = _open(folder, "target", meta)

    def __len__(self) -> int:
        return len(self.source_offsets) - 1

    @cached_property
    def source_lengths(self) -> np.ndarray:
        """int32 (len,): pieces of each source, EOS not counted."""
        return np.diff(self.source_offsets).astype(np.int32)

    @cached_property
    def target_lengths(self) -> np.ndarray:
        """int32 (len,): pieces of each target, EOS not counted."""
        return np.diff(self.target_offsets).astype(np.int32)

    def sha256(self) -> str:
        """Hex digest of all pieces and lengths."""
        digest = hashlib.sha256()
        for array in (self.source_tokens, self.source_offsets, self.target_tokens, self.target_offsets):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def source(self, i: int) -> np.ndarray:
        """The source ids of pair i, a view into the file."""
        return self.source_tokens[self.source_offsets[i] : self.source_offsets[i + 1]]

    def target(self, i: int) -> np.ndarray:
        """The target ids of pair i, a view into the file."""
        return self.target_tokens[self.target_offsets[i] : self.target_offsets[i + 1]]


def _open(folder: Path, side: str, meta: dict) -> tuple[np.ndarray, np.ndarray]:
    # np.asarray: a plain array over the map, which indexes faster than np.memmap. An empty file cannot be mapped.
    path, dtype = folder / f"{side}.tokens", np.dtype(meta["dtype"])
    tokens = np.asarray(np.memmap(path, dtype, "r")) if meta[f"{side}_pieces"] else np.zeros(0, dtype)
    offsets = np.asarray(np.load(folder / f"{side}.offsets.npy", mmap_mode="r", allow_pickle=False))
    if len(tokens) != meta[f"{side}_pieces"] or len(offsets) != meta["pairs"] + 1:
        raise ValueError(f"{path}: not the size that meta.json states")
    return tokens, offsets


def tokenize(
    parallel: Parallel,
    tokenizer: Tokenizer,
    *,
    fields: tuple[str, str] = ("source", "target"),
    folder: str | Path,
    workers: int = 0,
) -> TokenCache:
    """The tokens of a corpus, from the cache in `folder` or made now by so many processes (0 = one a processor).

    Blank lines (nothing but white space) become no pieces at all. The result does not depend on `workers`.
    Raises what reading the text raises.
    """
    depends_on = [_FORMAT, fingerprint(parallel), tokenizer.sha256, fields]
    key = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:32]
    final = Path(folder) / "tokens" / key
    if final.exists():
        try:
            return TokenCache(final)
        except (OSError, ValueError, KeyError) as error:  # cut off by a full disk or a crash of the machine
            log.warning("%s is damaged (%s): tokenising again", final, error)
            shutil.rmtree(final)

    building = final.with_name(f"{key}.{owner()}.tmp")
    sweep(building.parent)
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        with phase("building the cache of tokens"):
            _build(building, parallel, tokenizer, fields, workers or os.cpu_count() or 1)
        try:
            with phase("renaming the cache of tokens"):
                os.replace(building, final)
        except OSError:
            if not final.exists():  # otherwise another process was faster, with the same result
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return TokenCache(final)


def _build(folder: Path, parallel: Parallel, tokenizer: Tokenizer, fields: tuple[str, str], workers: int) -> None:
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    lengths: dict[str, list[np.ndarray]] = {"source": [], "target": []}
    started = time.monotonic()
    pairs = 0
    with (
        open(folder / "source.tokens", "wb") as source_file,
        open(folder / "target.tokens", "wb") as target_file,
        _progress(f"tokenising {parallel.source}", parallel.source) as show,
    ):
        for source, source_lengths, target, target_lengths in _encoded(parallel, tokenizer, fields, workers):
            source.astype(dtype).tofile(source_file)
            target.astype(dtype).tofile(target_file)
            lengths["source"].append(source_lengths)
            lengths["target"].append(target_lengths)
            pairs += len(source_lengths)
            show(pairs)

    meta = {"pairs": pairs, "dtype": dtype.str}
    for side, parts in lengths.items():
        offsets = np.zeros(pairs + 1, "<i8")
        np.cumsum(np.concatenate([*parts, np.zeros(0, np.int32)]), out=offsets[1:])
        np.save(folder / f"{side}.offsets.npy", offsets, allow_pickle=False)
        meta[f"{side}_pieces"] = int(offsets[-1])
    (folder / "meta.json").write_text(json.dumps(meta) + "\n")
    log.info(
        "tokenised %s: %s pairs, %s source and %s target pieces, in %.1f s",
        parallel.source,
        *(f"{meta[name]:,}" for name in ("pairs", "source_pieces", "target_pieces")),
        time.monotonic() - started,
    )


@contextlib.contextmanager
def _progress(what: str, path: str) -> Iterator[Callable[[int], None]]:
    """What shows how many of the file's lines are done: a bar on a terminal, elsewhere a line of the log at times."""
    total, began = count_lines(path), time.monotonic()
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=total)

            def draw(done: int) -> None:
                rate = done / max(time.monotonic() - began, 1e-9)
                bar.update(task, completed=done, description=f"{rate:,.0f} pairs/s")

            yield draw
        return
    reported = began

    def tell(done: int) -> None:
        nonlocal reported
        if time.monotonic() - reported > 10:
            reported = time.monotonic()
            rate = done / (reported - began)
            log.info("%s: %s of %s pairs, %s a second", what, f"{done:,}", f"{total:,}", f"{rate:,.0f}")

    yield tell


def _encoded(parallel: Parallel, tokenizer: Tokenizer, fields: tuple[str, str], workers: int) -> Iterator[Tokens]:
    rows = read_pairs(parallel, fields)
    chunks = iter(lambda: list(itertools.islice(rows, _CHUNK)), [])
    first = list(itertools.islice(chunks, _SMALL // _CHUNK))
    if workers == 1 or len(first) < _SMALL // _CHUNK:
        for chunk in itertools.chain(first, chunks):
            yield _encode(tokenizer, chunk)
        return
    # Spawned, not forked: JAX's threads may hold locks that a forked child would wait for for ever.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (tokenizer.model,)) as pool:
        yield from _in_order(pool.submit, itertools.chain(first, chunks), ahead=4 * workers)


def _in_order(submit: Callable, chunks: Iterable[list[Pair]], ahead: int) -> Iterator[Tokens]:
    """Results in the order of `chunks`, with at most `ahead` of them in flight, which bounds memory."""
    running: deque = deque()
    for chunk in chunks:
        running.append(submit(_work, chunk))
        if len(running) >= ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _start_worker(model: bytes) -> None:
    global _tokenizer
    _tokenizer = Tokenizer(model)


def _work(chunk: list[Pair]) -> Tokens:
    return _encode(_tokenizer, chunk)


def _encode(tokenizer: Tokenizer, chunk: list[Pair]) -> Tokens:
    arrays = []
    for side in zip(*chunk, strict=True):
        ids = tokenizer.encode([line if line.strip() else "" for line in side])
        arrays.append(np.fromiter(itertools.chain.from_iterable(ids), np.int32))
        arrays.append(np.fromiter(map(len, ids), np.int32))
    return tuple(arrays)
