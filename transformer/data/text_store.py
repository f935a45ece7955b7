"""The text store: a text of a language model, split into pieces once. Its arrays are memory-mapped, so that a text of
any size needs hardly any memory.

A store is a sealed folder `<folder>/texts/<key>/`. The key is a hash of text, vocabulary and format.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transformer.config import UserError
from transformer.data import vocabularies
from transformer.data.bar import bar
from transformer.data.pool import in_processes
from transformer.data.running import Part, Text, parts
from transformer.data.text import changed, fingerprint_of_files, never_seen, require_same_files
from transformer.data.vocabularies import Vocabulary
from transformer.files import ENTRY, cached, compared, damage, digest_once, manifest, write_file

_FORMAT = 1  # part of the key: raise it when the format of the files changes
_SPLITTING = 1  # part of `TextStore.text`: raise it when the same text gives other pieces or documents
_CHUNK = 250_000  # characters that a process encodes at a time
_PARALLEL_FROM = 8  # chunks; with fewer, starting processes takes longer than encoding

log = logging.getLogger("transformer")


class Encoded(NamedTuple):
    """Parts of a text as pieces."""

    ids: np.ndarray
    parts: np.ndarray
    """For each part: number of pieces, file, first line, whether a document begins with it; int64 (parts, 4)."""
    characters: int
    bytes: int
    missing: Counter[str]
    """Characters without a piece, with their numbers."""


class TextStore:
    """The pieces of a text, from a folder that `encode_text` wrote. Documents are counted from 0."""

    def __init__(self, folder: Path, text: Text, vocabulary: Vocabulary):
        """Raises OSError or ValueError if a file is damaged or has the wrong length."""
        if wrong := damage(folder, digest_once):
            raise ValueError(wrong)
        meta = json.loads((folder / "meta.json").read_text())
        content = {name: entry for name, entry in manifest(folder).items() if name != ENTRY}
        self._sha256 = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        self.path, self.source, self.vocabulary = folder, text, vocabulary
        self.text: str = meta["text"]
        """Hex digest of the text and the vocabulary. It does not depend on the format of the files."""
        self.characters: int = meta["characters"]
        """Number of characters of the text, separators of documents left out."""
        self.bytes: int = meta["bytes"]
        """Number of bytes of these characters in UTF-8."""
        self.missing: Counter[str] = Counter(meta["missing"])
        """The characters of the text for which the vocabulary has no piece, with their numbers."""
        dtype = np.dtype(meta["dtype"])
        # np.asarray: a plain array over the map is faster to index than np.memmap. An empty file can't be mapped.
        tokens = np.memmap(folder / "tokens", dtype, "r") if meta["pieces"] else np.zeros(0, dtype)
        self.tokens = np.asarray(tokens)
        """All ids, without begin and end."""
        self.offsets, self._parts = (_array(folder, name) for name in ("offsets", "parts"))
        """Document d has the ids from offsets[d] up to offsets[d + 1]."""
        if len(self.tokens) != meta["pieces"] or len(self.offsets) != meta["documents"] + 1:
            raise ValueError(f"tokens has {len(self.tokens):,} pieces instead of {meta['pieces']:,}")

    def __len__(self) -> int:
        """Number of documents; 1 for a running text."""
        return len(self.offsets) - 1

    def require_same(self, digests: Mapping[str, str]) -> None:
        """Raise `UserError` unless the text was made of files with these digests (see `running.parts`)."""
        paths = self.source.paths
        if _text_key(self.source, fingerprint_of_files(paths, digests), self.vocabulary) != self.text:
            raise changed(paths)

    def sha256(self) -> str:
        """Hex sha256 of all pieces and documents."""
        return self._sha256

    @property
    def framed(self) -> bool:
        """Whether the text has documents, which are framed by the ids begin and end; a running text is not."""
        return self.source.documents != "none"

    @cached_property
    def positions(self) -> np.ndarray:
        """Number of predictions in each document, int64: its pieces and the end; of a running text, all pieces but the
        first."""
        return np.diff(self.offsets) + (1 if self.framed else -1)

    def read(self, document: int, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """The pieces read at the positions `begin` to `end` of a document, and the piece that follows each."""
        first = int(self.offsets[document])
        if not self.framed:
            return self.tokens[first + begin : first + end], self.tokens[first + begin + 1 : first + end + 1]
        last = int(self.offsets[document + 1])
        inner = self.tokens[first + max(begin - 1, 0) : min(first + end, last)].astype(np.int32)
        before = [] if begin else [self.vocabulary.begin]
        after = [self.vocabulary.end] if first + end > last else []
        pieces = np.concatenate([np.array(before, np.int32), inner, np.array(after, np.int32)])
        return pieces[:-1], pieces[1:]

    def place(self, document: int, position: int) -> tuple[str, int]:
        """The file, and the line from 1, of the piece that is predicted at a position of a document."""
        first, end = self.offsets[document : document + 2].tolist()
        return self.line(min(first + position + (not self.framed), end - 1))

    def line(self, at: int) -> tuple[str, int]:
        """The file, and the line from 1, of `tokens[at]`."""
        part = int(np.searchsorted(self._parts[:, 0], at, side="right")) - 1
        start, file, line = self._parts[part].tolist()
        return self.source.paths[file], line + int(self._line_breaks[self.tokens[start:at]].sum())

    @cached_property
    def _line_breaks(self) -> np.ndarray:
        """Number of line breaks that each id spells."""
        return np.array([text.count(b"\n") for text in self.vocabulary.spelling])

    def doubt(self) -> str | None:
        """A warning of one line about the characters that the vocabulary lacks, or None."""
        return f"{self.source.name}: {never_seen(self.missing)}" if self.missing else None


def _array(folder: Path, name: str) -> np.ndarray:
    return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))


def encode_text(text: Text, vocabulary: Vocabulary, *, folder: str | Path, workers: int = 0) -> TextStore:
    """The store of a text in `folder`. If there is none, `workers` processes write it (0 = one per processor).

    The result does not depend on `workers`. Raises what reading the text raises, and `UserError` if one of the
    processes is killed, or for an id beyond the vocabulary.
    """
    files = fingerprint_of_files(text.paths)
    digest = _text_key(text, files, vocabulary)
    return cached(
        Path(folder) / "texts" / _key(_FORMAT, digest),
        lambda new: _build(new, digest, text, files, vocabulary, workers or os.cpu_count() or 1),
        lambda path: TextStore(path, text, vocabulary),
        "the text store",
    )


def _text_key(text: Text, files: str, vocabulary: Vocabulary) -> str:
    """`TextStore.text`. `files`: the fingerprint of the files."""
    return _key(_SPLITTING, files, *text.chosen, vocabulary.sha256)


def _key(*depends_on: Any) -> str:
    return hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:32]


def _build(folder: Path, digest: str, text: Text, files: str, vocabulary: Vocabulary, workers: int) -> None:
    """`files`: the fingerprint of the files before they are read."""
    dtype = np.dtype("<u2" if vocabulary.size <= 1 << 16 else "<u4")
    started, digests = time.monotonic(), {}
    total = sum(len(part.text) for part in parts(text))
    if not total:
        raise UserError(f"{text.name}: holds no text")
    characters = size = 0
    missing: Counter[str] = Counter()
    rows = []
    with compared(folder / "tokens") as file, bar(f"tokenising {text.name}", total, "characters") as show:
        for one in _encoded(text, vocabulary, workers, digests):
            if len(one.ids) and int(one.ids.max()) >= vocabulary.size:
                raise UserError(f"the vocabulary has {vocabulary.size:,} pieces, but gives the id {one.ids.max():,}")
            file.write(one.ids.astype(dtype).data)
            rows.append(one.parts)
            characters, size, missing = characters + one.characters, size + one.bytes, missing + one.missing
            show(characters)
    require_same_files(text.paths, files, digests)
    lengths, *places, begins = np.concatenate(rows).T
    starts = np.cumsum(lengths) - lengths
    pieces = int(lengths.sum())
    offsets = np.append(starts[begins == 1], pieces)
    for name, array in {"offsets": offsets, "parts": np.stack([starts, *places], axis=1)}.items():
        with compared(folder / f"{name}.npy") as file:
            np.save(file, array.astype("<i8"), allow_pickle=False)
    meta = {"text": digest, "pieces": pieces, "documents": len(offsets) - 1, "dtype": dtype.str}
    meta |= {"characters": characters, "bytes": size, "missing": missing}
    write_file(folder / "meta.json", (json.dumps(meta) + "\n").encode())
    log.info(
        "tokenised %s: %s characters, %s pieces, in %.1f s",
        *(text.name, f"{characters:,}", f"{pieces:,}", time.monotonic() - started),
    )


def _encoded(text: Text, vocabulary: Vocabulary, workers: int, digests: dict[str, str]) -> Iterator[Encoded]:
    chunks = _chunks(parts(text, digests))
    first = list(itertools.islice(chunks, _PARALLEL_FROM))
    if workers == 1 or not vocabulary.slow or len(first) < _PARALLEL_FROM:
        return map(functools.partial(_encode, vocabulary), itertools.chain(first, chunks))
    return in_processes(_encoder, vocabulary.file, itertools.chain(first, chunks), workers)


def _chunks(all_parts: Iterable[Part]) -> Iterator[list[Part]]:
    """Small documents together, for one process to encode at a time."""
    chunk, size = [], 0
    for part in all_parts:
        chunk.append(part)
        size += len(part.text)
        if size >= _CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _encoder(name: str, content: bytes) -> Callable[[list[Part]], Encoded]:
    return functools.partial(_encode, vocabularies.read(name, content))


def _encode(vocabulary: Vocabulary, chunk: list[Part]) -> Encoded:
    ids = [vocabulary.encode(part.text) for part in chunk]
    rows = [(len(n), part.file, part.line, part.begins) for n, part in zip(ids, chunk, strict=True)]
    text = "".join([part.text for part in chunk])
    missing = vocabulary.missing(text)
    return Encoded(np.concatenate(ids), np.array(rows, np.int64), len(text), len(text.encode()), missing)
