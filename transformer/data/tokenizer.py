"""SentencePiece BPE with byte fallback, one vocabulary for both sides (paper §5.1: a shared BPE of 37,000 pieces).

Ids are always PAD, BOS, EOS, UNK = 0, 1, 2, 3, followed by the other pieces, whatever their order inside a ready model.
The same text gives the same model, byte for byte. SentencePiece stores file names and the number of threads in the
model, so it trains from an iterator on one thread. (With `normalization = "clean"`, a Python with a newer version of
Unicode may compile another table.)

The model file names the cleaning rule, so that every user of the file cleans text as in training.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import logging
import operator
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, get_args, get_type_hints

import numpy as np
import sentencepiece

from transformer.config import BOS, EOS, PAD, SPECIALS, UNK, DataConfig, UserError, shown
from transformer.data import cleaning, normalizer
from transformer.data.folder import writable_cache_dir
from transformer.data.foreign import refuse_other
from transformer.data.given import require_iterable, require_string, strings
from transformer.data.normalizer import Normalizer
from transformer.data.text import Parallel, fingerprint, never_seen, read_pairs, require_same
from transformer.files import cached, refuse_pipe, write_file

_MODEL_FILE = "tokenizer.model"

# SentencePiece silently skips lines above 4,192 bytes, so training cuts lines into runs of at most so many characters.
_MAX_RUN = 1_000
# The most frequent characters become pieces, until they cover this share of the text; byte pieces spell the rest. On
# WMT14, full coverage would spend thousands of the 37,000 pieces on stray scripts.
COVERAGE = 0.99995
_FORMAT = 2  # part of every cache key: raise it when `train` gives another model for the same text

# SentencePiece's options for running text.
_RUNNING = {"add_dummy_prefix": False, "allow_whitespace_only_pieces": True}

log = logging.getLogger("transformer")

Side = Literal["source", "target"]
NORMALIZATIONS = get_args(get_type_hints(DataConfig)["normalization"])
# The normaliser for text that `cleaning` has cleaned already: it changes nothing and keeps every space.
_IDENTITY = Normalizer("identity", remove_spaces=False)
SPACE = "\u2581"
"""The character that stands for a space in pieces."""


class Cut(NamedTuple):
    """A text, cut into pieces."""

    pieces: list[int]
    spelt: list[bytes]
    """The bytes that each piece spells (see `Tokenizer.spelling`)."""


class Tokenizer:
    """A SentencePiece model with the special ids at 0..3.

    The model names the rule that cleans text. If it is `cleaning.RULE`, `cleaning` cleans sources and targets each in
    its way; else the model itself normalises both sides alike.

    A ready model may have other ids for its special pieces, or lack some (SentencePiece's default is unk 0, bos 1,
    eos 2 and no pad). Its ids are then mapped to ours, the missing pieces are added, and `vocab_size` grows by their
    number. The models that `train` makes need no mapping.
    """

    def __init__(self, model: bytes, where: str | Path = "tokenizer"):
        """`where` names the model in errors. Raises `UserError` if `model` is not a SentencePiece model."""
        if not isinstance(model, bytes):
            raise UserError(f"{where}: give the bytes of a SentencePiece model, or its path to Tokenizer.load")
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model) if model else None
        except RuntimeError:
            self._processor = None
        if self._processor is None or self._processor.get_piece_size() == 0:
            raise UserError(f"{where}: not a SentencePiece model; give the .model file that spm_train wrote")
        self.model = model
        """The model file's bytes."""
        rule = normalizer.read(model).name
        self.cleans = rule == cleaning.RULE
        """Whether `cleaning` cleans the text; else the model itself does."""
        if self.cleans:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=normalizer.replace(model, _IDENTITY))
        elif rule.startswith(cleaning.RULE.rstrip("0123456789")):
            raise UserError(f"{where}: its rule {rule!r} is that of another version of this program; use that version")
        p = self._processor
        specials = [p.pad_id(), p.bos_id(), p.eos_id(), p.unk_id()]  # -1: the model has none
        pieces = [i for i in range(p.get_piece_size()) if i not in specials]
        self._model_ids = specials + pieces  # our id -> the model's
        self._our_ids = None  # the model's id -> ours; None: they are the same
        if self._model_ids != list(range(len(self._model_ids))):
            self._our_ids = {model_id: our_id for our_id, model_id in enumerate(self._model_ids) if model_id >= 0}

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Load a SentencePiece .model file. Raises `UserError` if it can't be read or is of another kind."""
        if not isinstance(path, (str, os.PathLike)):
            raise UserError(f"the tokenizer is a {type(path).__name__}: give the path of a SentencePiece .model file")
        try:
            refuse_pipe(path := os.path.expanduser(path))
            model = Path(path).read_bytes()
        except UserError:
            raise
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            why = getattr(error, "strerror", None) or error
            raise UserError(f"{path}: cannot be read ({why}); give a SentencePiece .model file") from None
        try:
            return cls(model, path)
        except UserError:
            refuse_other(path, "a SentencePiece model")
            raise

    @classmethod
    def train(
        cls,
        lines: Iterable[str],
        *,
        vocab_size: int,
        normalization: str = "identity",
        running: bool = False,
        added: int = 0,
    ) -> Tokenizer:
        """Train BPE on `lines`. All characters of the text become pieces, except the rarest (see `COVERAGE`).

        `normalization` is as in `DataConfig`. With "clean", the caller must have cleaned each line by the rule of its
        side. `running`: for running text; lines do not begin with a space of the model's, and several spaces may be
        one piece. `added`: number of pieces that the caller adds; sizes in messages count them. Raises `UserError` if
        the text does not allow `vocab_size` pieces, with the nearest size that it allows. Errors that reading `lines`
        raises pass through.
        """
        _require_size(vocab_size)
        require_one_of("normalization", normalization, NORMALIZATIONS)
        require_iterable("lines", lines, ordered=False)
        failure: list[Exception] = []

        def runs() -> Iterator[str]:
            try:
                for number, line in enumerate(lines):
                    require_string(f"lines[{number}]", line)
                    for start in range(0, len(line), _MAX_RUN):
                        yield line[start : start + _MAX_RUN].encode(errors="replace").decode()
            except Exception as error:  # SentencePiece would wrap the error
                failure.append(error)
                raise

        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=runs(),
                model_writer=model,
                model_type="bpe",
                vocab_size=vocab_size,
                normalization_rule_name="identity" if normalization == "clean" else normalization,
                character_coverage=COVERAGE,
                byte_fallback=True,
                remove_extra_whitespaces=False,  # decoding restores every space
                **(_RUNNING if running else {}),
                pad_id=PAD,
                bos_id=BOS,
                eos_id=EOS,
                unk_id=UNK,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            if failure:
                raise failure[0] from None
            if mistake := _mistake(str(error), vocab_size, added, "data.text" if running or added else "data.source"):
                raise UserError(mistake) from None
            raise
        if normalization == "clean":
            return cls(normalizer.replace(model.getvalue(), _cleaner("source")))
        return cls(model.getvalue())

    @property
    def file(self) -> tuple[str, bytes]:
        """Name and content of the file in a workdir."""
        return "tokenizer.model", self.model

    @property
    def sha256(self) -> str:
        """Hex sha256 of the model file."""
        return hashlib.sha256(self.model).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ids included."""
        return len(self._model_ids)

    def piece(self, id: int) -> str:
        """The piece of an id, with "▁" for a space. Raises `UserError` for a number outside the vocabulary."""
        if not isinstance(id, (int, np.integer)) or not 0 <= id < self.vocab_size:
            raise UserError(f"id = {shown(id)}: must be from 0 to {self.vocab_size - 1}")
        return SPECIALS[id] if id < len(SPECIALS) else self._processor.id_to_piece(self._model_ids[id])

    def model_of(self, side: Side) -> bytes:
        """The bytes of a SentencePiece model for one side. It cleans text as far as a model without context can."""
        require_one_of("side", side, get_args(Side))
        return normalizer.replace(self.model, _cleaner("target")) if self.cleans and side == "target" else self.model

    def encode(self, lines: Sequence[str], side: Side = "source") -> list[list[int]]:
        """Clean and encode lines of one side: a list of ids for each, without BOS and EOS; [] for an empty line.

        Raises `UserError` for anything other than strings. A lone surrogate is read as "?".
        """
        require_one_of("side", side, get_args(Side))
        lines = strings("lines", lines)
        return self._ids(self._processor.encode(self._cleaned(lines, side), num_threads=1))

    def _ids(self, lines: list[list[int]]) -> list[list[int]]:
        if self._our_ids is None:
            return lines
        return [[self._our_ids[i] for i in line] for line in lines]

    def _cleaned(self, lines: Sequence[str], side: Side) -> list[str]:
        rule = cleaning.source if side == "source" else cleaning.target
        return [rule(line) for line in lines] if self.cleans else list(lines)

    def prefix(self, text: str) -> str:
        """Clean a prefix, the text that a translation must begin with."""
        require_string("text", text)
        return cleaning.prefix(text, self.characters) if self.cleans else text

    def cut(self, lines: Sequence[str]) -> list[Cut]:
        """Cut lines into pieces, without cleaning them."""
        ids = self._ids(self._processor.encode(strings("lines", lines), num_threads=1))
        return [Cut(line, [self.spelling[i] for i in line]) for line in ids]

    def ends_in_space(self, text: str) -> bool:
        """Whether a clean text ends in a space, even if the model's own rule would strip that space."""
        words = self._processor.normalize(f"{text}|")
        return words.endswith(f"{SPACE}|") and words.strip(SPACE) != "|"

    @cached_property
    def spelling(self) -> list[bytes]:
        """For each id the bytes that it spells: UTF-8 with "▁" for a space, 0xFF for UNK, and b"" for other special ids
        and pieces without text."""
        p, spellings = self._processor, []
        for id, model_id in enumerate(self._model_ids):
            if id < len(SPECIALS) or p.is_control(model_id) or p.is_unused(model_id):
                spellings.append(b"\xff" if id == UNK else b"")
            elif p.is_byte(model_id):
                spellings.append(bytes([int(p.id_to_piece(model_id)[3:5], 16)]))
            else:
                spellings.append(p.id_to_piece(model_id).encode())
        return spellings

    def score(self, id: int) -> float:
        """The score of an id that is no special one: of BPE, minus the place of its merge in the order of merges."""
        self.piece(id)  # raises `UserError`
        return self._processor.get_score(self._model_ids[id])

    @cached_property
    def characters(self) -> frozenset[str]:
        """All characters in the pieces. Training hardly saw any other character: byte pieces spell it, or it is UNK."""
        is_byte = [model_id >= 0 and self._processor.is_byte(model_id) for model_id in self._model_ids]
        texts = [text for text, byte in zip(self.spelling, is_byte, strict=True) if not byte]
        return frozenset(" ").union(*(text.decode(errors="ignore") for text in texts))

    def unknown(self, lines: Sequence[str], first_line: int) -> str | None:
        """A warning that counts and lists the characters of cleaned sources that no piece has, or None.

        `lines` are sources; the first has the number `first_line`.
        """
        counts: Counter[str] = Counter()
        numbers = []
        for number, line in enumerate(self._cleaned(strings("lines", lines), "source"), first_line):
            if not self.characters.issuperset(line):
                # A character that the model's own rule replaces is not unknown.
                unseen = [c for c in self._processor.normalize(line) if c not in self.characters and c != SPACE]
                counts.update(unseen)
                numbers += [number] if unseen else []
        if not counts:
            return None
        first_of = "" if len(numbers) == 1 else f" the first of {len(numbers):,} such lines;"
        return f"line {numbers[0]}:{first_of} {never_seen(counts)}"

    def decode(self, ids: Iterable[Iterable[int]]) -> list[str]:
        """One text for each sequence of ids. Raises `UserError` only if these are no sequences of integers.

        Special ids, padding and numbers outside the vocabulary are skipped. Byte pieces that are not UTF-8 together
        become U+FFFD. Byte pieces can spell any character, even a line break: a caller that writes lines must replace
        it.
        """
        size, model_ids = self.vocab_size, self._model_ids
        lines = [[model_ids[i] for i in line if len(SPECIALS) <= i < size] for line in id_lists(ids)]
        return self._processor.decode(lines) if lines else []  # SentencePiece takes [] for one sequence

    def round_trip_rate(self, lines: Sequence[str], side: Side = "source") -> float:
        """Share of `lines` that encoding as text of `side` and decoding leave unchanged; 1.0 without lines."""
        lines = strings("lines", lines)
        decoded = self.decode(self.encode(lines, side))
        return sum(a == b for a, b in zip(lines, decoded, strict=True)) / len(lines) if lines else 1.0


def _mistake(message: str, size: int, added: int, field: str) -> str | None:
    """The user's mistake behind an error of SentencePiece, and its fix; None if it is another error.

    `size` and `added`: see `Tokenizer.train`. `field`: the one that names the text.
    """
    given = f"data.vocab_size = {size + added}"
    if small := re.search(r"required_chars\. \d+ vs (\d+)", message):
        least = int(small[1]) + added
        return f"{given}: too small for this text; with its characters the smallest possible is {least}"
    if large := re.search(r"value <= (\d+)", message):
        return f"{given}: too large for this text; the largest possible is {int(large[1]) + added}"
    return f"{field}: there is no text to train the tokenizer on" if "!sentences_.empty()" in message else None


@functools.cache
def _cleaner(side: Side) -> Normalizer:
    """`cleaning.RULE` for one side as a SentencePiece normaliser, for programs that read the model file only."""
    rule = cleaning.source if side == "source" else cleaning.target
    return Normalizer(cleaning.RULE, normalizer.compiled(cleaning.rows(rule)))


def _require_size(vocab_size: object) -> None:
    if not isinstance(vocab_size, int) or isinstance(vocab_size, bool) or not len(SPECIALS) <= vocab_size < 2**31:
        raise UserError(f"vocab_size = {shown(vocab_size)}: must be a whole number from {len(SPECIALS)} to 2**31 - 1")


def require_one_of(name: str, given: object, allowed: Sequence[str]) -> None:
    if not isinstance(given, str) or given not in allowed:
        raise UserError(f"{name} = {shown(given)}: must be one of {', '.join(allowed)}")


def id_lists(ids: Iterable[Iterable[int]]) -> Iterator[list[int]]:
    try:
        for line in ids:
            yield [operator.index(i) for i in (line.tolist() if hasattr(line, "tolist") else line)]
    except TypeError:
        raise UserError(f"ids = {shown(ids)}: give a list of lists of integers") from None


def tokenizer(config: DataConfig, train: tuple[Parallel, ...]) -> Tokenizer:
    """The tokenizer of a run: `config.tokenizer` if given (`config.vocab_size` is then ignored), else one trained on
    both sides of all corpora in `train`.

    Training uses at most `config.tokenizer_sentences` lines of each side, spread evenly over the whole text. The cache
    folder keeps the model under a hash of the text and of everything else that the model depends on.
    """
    if config.tokenizer is not None:
        return Tokenizer.load(config.tokenizer)
    digests = [fingerprint(parallel) for parallel in train]
    depends_on = [
        _FORMAT,
        sentencepiece.__version__,
        config.vocab_size,
        config.normalization,
        config.tokenizer_sentences,
        config.fields,
        digests,
    ]
    if config.normalization == "clean":
        depends_on += [cleaning.RULE, unicodedata.unidata_version]
    key = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:32]
    with writable_cache_dir(config) as folder:
        return cached(
            folder / "tokenizers" / key,
            lambda new: _train(new, config, train, digests),
            lambda path: Tokenizer.load(path / _MODEL_FILE),
            "the tokenizer",
        )


def _train(folder: Path, config: DataConfig, train: tuple[Parallel, ...], digests: Sequence[str]) -> None:
    """Train a tokenizer on corpora with the fingerprints `digests`, and write it to `folder`."""
    count = sum(1 for parallel in train for _ in read_pairs(parallel, config.fields))
    used = min(count, config.tokenizer_sentences)
    log.info("training a tokenizer of %s pieces on %s of %s pairs", f"{config.vocab_size:,}", f"{used:,}", f"{count:,}")
    read: dict[str, str] = {}
    pairs = itertools.chain.from_iterable(read_pairs(parallel, config.fields, read) for parallel in train)
    chosen = (pair for i, pair in enumerate(pairs) if (i + 1) * used // count > i * used // count)
    trained = Tokenizer.train(
        itertools.chain.from_iterable(_clean_pairs(chosen) if config.normalization == "clean" else chosen),
        vocab_size=config.vocab_size,
        normalization=config.normalization,
    )
    for parallel, digest in zip(train, digests, strict=True):
        require_same(parallel, digest, read)
    write_file(folder / _MODEL_FILE, trained.model)


def _clean_pairs(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    return ((cleaning.source(source), cleaning.target(target)) for source, target in pairs)
