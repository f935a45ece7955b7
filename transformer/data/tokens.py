"""The token store: a parallel corpus, tokenised once into flat arrays. They are memory-mapped, so that a corpus of any
size needs hardly any memory.

A store is a sealed folder `<folder>/tokens/<key>/`. The key is a hash of text, tokenizer and format.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from transformer.config import EOS, UserError
from transformer.data import marian
from transformer.data.bar import bar
from transformer.data.pool import in_processes
from transformer.data.text import Parallel, count_lines, fingerprint, read_pairs, require_same
from transformer.data.tokenizer import Tokenizer
from transformer.files import ENTRY, cached, compared, damage, digest_once, manifest, write_file

_FORMAT = 3  # part of the key: raise it when the format of the files changes
_TOKENISATION = 1  # part of `TokenStore.text`: raise it when the same text gives other tokens
_CHUNK = 2_000  # pairs that a process tokenises at a time
_PARALLEL_FROM = 20_000  # pairs; with fewer, starting processes takes longer than tokenising

log = logging.getLogger("transformer")

Pair = tuple[str, str]
# Source ids and lengths, target ids and lengths, number of pairs with the same text on both sides.
Tokens = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]


class TokenStore:
    """The tokenised pairs 0 .. len-1 of a corpus, in the order of the text, from a folder that `tokenize` wrote."""

    ends: Mapping[str, int] = MappingProxyType({"source": EOS, "target": EOS})
    """The id that follows each sentence of a side."""

    def __init__(self, folder: str | Path):
        """Raises OSError or ValueError if a file is damaged or has the wrong length."""
        folder = Path(folder)
        if wrong := damage(folder, digest_once):
            raise ValueError(wrong)
        meta = json.loads((folder / "meta.json").read_text())
        self.path = folder
        content = {name: entry for name, entry in manifest(folder).items() if name != ENTRY}
        self._sha256 = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        self.text: str = meta["text"]
        """Hex digest of the text, the fields read and the tokenizer. It does not depend on the format of the files."""
        self.same: int = meta["same"]
        """Number of pairs with the same text on both sides; blank pairs do not count."""
        self.source_tokens, self.source_offsets = _open(folder, "source", meta)
        """Flat ids of one side, without BOS and EOS. Pair i has the ids from offsets[i] up to offsets[i + 1]."""
        self.target_tokens, self.target_offsets = _open(folder, "target", meta)

    def __len__(self) -> int:
        return len(self.source_offsets) - 1

    @cached_property
    def source_lengths(self) -> np.ndarray:
        """Number of pieces of each source, without EOS: int32 (len,)."""
        return np.diff(self.source_offsets).astype(np.int32)

    @cached_property
    def target_lengths(self) -> np.ndarray:
        """Number of pieces of each target, without EOS: int32 (len,)."""
        return np.diff(self.target_offsets).astype(np.int32)

    def sha256(self) -> str:
        """Hex sha256 of all pieces and lengths."""
        return self._sha256

    def source(self, i: int) -> np.ndarray:
        """The source ids of pair i, a view into the file."""
        return self.source_tokens[self.source_offsets[i] : self.source_offsets[i + 1]]

    def target(self, i: int) -> np.ndarray:
        """The target ids of pair i, a view into the file."""
        return self.target_tokens[self.target_offsets[i] : self.target_offsets[i + 1]]


def _open(folder: Path, side: str, meta: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    # np.asarray: a plain array over the map is faster to index than np.memmap. An empty file can't be mapped.
    path, dtype = folder / f"{side}.tokens", np.dtype(meta["dtype"])
    tokens = np.asarray(np.memmap(path, dtype, "r")) if meta[f"{side}_pieces"] else np.zeros(0, dtype)
    offsets = np.asarray(np.load(folder / f"{side}.offsets.npy", mmap_mode="r", allow_pickle=False))
    if len(offsets) != meta["pairs"] + 1 or len(tokens) != offsets[-1]:
        raise ValueError(f"{path.name} has {len(tokens):,} pieces instead of {int(offsets[-1]):,}")
    return tokens, offsets


def tokenize(
    parallel: Parallel,
    tokenizer: Tokenizer,
    *,
    fields: tuple[str, str] = ("source", "target"),
    folder: str | Path,
    workers: int = 0,
) -> TokenStore:
    """The token store of a corpus in `folder`. If there is none, `workers` processes write it (0 = one per processor).

    Blank lines (white space only) have no pieces. The result does not depend on `workers`.
    Raises what reading the text raises, and `UserError` if one of the processes is killed.
    """
    digest = fingerprint(parallel)
    text = _key(_TOKENISATION, digest, tokenizer.sha256, fields)
    key = _key(_FORMAT, text)
    return cached(
        Path(folder) / "tokens" / key,
        lambda new: _build(new, text, parallel, digest, tokenizer, fields, workers or os.cpu_count() or 1),
        TokenStore,
        "the token store",
    )


def _key(*depends_on: Any) -> str:
    return hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:32]


def _build(
    folder: Path,
    text: str,
    parallel: Parallel,
    digest: str,
    tokenizer: Tokenizer,
    fields: tuple[str, str],
    workers: int,
) -> None:
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    lengths: dict[str, list[np.ndarray]] = {"source": [], "target": []}
    started = time.monotonic()
    pairs = same = 0
    digests: dict[str, str] = {}
    with (
        compared(folder / "source.tokens") as source_file,
        compared(folder / "target.tokens") as target_file,
        bar(f"tokenising {parallel.source}", count_lines(parallel.source), "pairs") as show,
    ):
        for source, source_lengths, target, target_lengths, alike in _encoded(
            parallel, tokenizer, fields, workers, digests
        ):
            source_file.write(source.astype(dtype).data)
            target_file.write(target.astype(dtype).data)
            lengths["source"].append(source_lengths)
            lengths["target"].append(target_lengths)
            pairs, same = pairs + len(source_lengths), same + alike
            show(pairs)
    require_same(parallel, digest, digests)
    if not pairs:
        raise UserError(f"{parallel.source}: empty; leave it out, or give another file")

    meta = {"text": text, "pairs": pairs, "same": same, "dtype": dtype.str}
    for side, parts in lengths.items():
        offsets = np.zeros(pairs + 1, "<i8")
        np.cumsum(np.concatenate([*parts, np.zeros(0, np.int32)]), out=offsets[1:])
        with compared(folder / f"{side}.offsets.npy") as file:
            np.save(file, offsets, allow_pickle=False)
        meta[f"{side}_pieces"] = int(offsets[-1])
    write_file(folder / "meta.json", (json.dumps(meta) + "\n").encode())
    log.info(
        "tokenised %s: %s pairs, %s source and %s target pieces, in %.1f s",
        parallel.source,
        *(f"{meta[name]:,}" for name in ("pairs", "source_pieces", "target_pieces")),
        time.monotonic() - started,
    )


def _encoded(
    parallel: Parallel, tokenizer: Tokenizer, fields: tuple[str, str], workers: int, digests: dict[str, str]
) -> Iterator[Tokens]:
    rows = read_pairs(parallel, fields, digests)
    chunks = iter(lambda: list(itertools.islice(rows, _CHUNK)), [])
    first = list(itertools.islice(chunks, _PARALLEL_FROM // _CHUNK))
    if workers == 1 or len(first) < _PARALLEL_FROM // _CHUNK:
        for chunk in itertools.chain(first, chunks):
            yield _encode(tokenizer, chunk)
        return
    yield from in_processes(_encoder, tokenizer.file, itertools.chain(first, chunks), workers)


def _encoder(name: str, content: bytes) -> Callable[[list[Pair]], Tokens]:
    return functools.partial(_encode, marian.read(name, content))


def _encode(tokenizer: Tokenizer, chunk: list[Pair]) -> Tokens:
    arrays = []
    for side, lines in zip(("source", "target"), zip(*chunk, strict=True), strict=True):
        ids = tokenizer.encode([line if line.strip() else "" for line in lines], side)
        arrays.append(np.fromiter(itertools.chain.from_iterable(ids), np.int32))
        arrays.append(np.fromiter(map(len, ids), np.int32))
    return *arrays, sum(source == target and not (source == "" or source.isspace()) for source, target in chunk)
