"""SentencePiece BPE, one vocabulary for both sides, with byte fallback (paper §5.1 uses shared BPE of 37,000 pieces).

Ids are always PAD, BOS, EOS, UNK = 0, 1, 2, 3 and then the other pieces, whatever the order inside a ready model. The
same text gives the same model, byte for byte, wherever it lies: SentencePiece stores file names and the number of
threads in the model, so it trains from an iterator on one thread. (Another Python may know more of Unicode, and so
compile another table for `normalization = "clean"`.)

The model file names its rule, so whoever has the file cleans text as its training did.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import sentencepiece

from transformer.config import BOS, EOS, PAD, SPECIALS, UNK, DataConfig, UserError
from transformer.data import cleaning, normalizer
from transformer.data.folder import writable_cache_dir
from transformer.data.foreign import refuse_other
from transformer.data.normalizer import Normalizer
from transformer.data.text import Parallel, fingerprint, read_pairs, require_same
from transformer.files import cached

_MODEL_FILE = "tokenizer.model"

# SentencePiece silently skips lines above 4,192 bytes: longer ones are cut into runs of so many characters.
_MAX_RUN = 1_000
# Characters get a piece of their own, the most frequent first, until this share of the text is covered; the rest is
# spelt in bytes. On WMT14 full coverage would spend thousands of the 37,000 pieces on stray scripts.
COVERAGE = 0.99995
_FORMAT = 2  # part of every cache key: raise it when `train` would give another model for the same text

_MAX_SHOWN = 10  # unknown characters in a warning

log = logging.getLogger("transformer")

Side = Literal["source", "target"]
# Inside a model with `cleaning.RULE`, for text that is clean already: nothing is changed, and each space counts.
_IDENTITY = Normalizer("identity", remove_spaces=False)
_SPACE = "\u2581"


class Cut(NamedTuple):
    """A text in pieces."""

    pieces: list[int]
    spelt: list[bytes]
    """What each piece spells (see `Tokenizer.spelling`)."""


class Tokenizer:
    """A SentencePiece model with the special ids at 0..3.

    Text is cleaned by the rule that the model names: by `cleaning` where that is `cleaning.RULE`, else by the model
    itself, sources and targets alike.

    A ready model may keep its own special pieces elsewhere or lack some (SentencePiece's default is unk 0, bos 1,
    eos 2 and no pad); ids are then translated, missing ones are added, and `vocab_size` grows by their number. Our
    own models need no translation.
    """

    def __init__(self, model: bytes, where: str | Path = "tokenizer"):
        """`where` names the model in errors. Raises `UserError` if `model` is not a SentencePiece model."""
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
        """Whether text is cleaned by `cleaning`."""
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
        """The tokenizer in a SentencePiece .model file."""
        try:
            model = Path(path).read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); give a SentencePiece .model file") from None
        try:
            return cls(model, path)
        except UserError:
            refuse_other(path, "a SentencePiece model")
            raise

    @classmethod
    def train(cls, lines: Iterable[str], *, vocab_size: int, normalization: str = "identity") -> Tokenizer:
        """Train BPE on `lines`. The text's characters become pieces, but for the rarest (see `COVERAGE`).

        `normalization` as in `DataConfig`. With "clean" the lines must be clean by the rule of their side already.
        Raises `UserError` when the text does not allow `vocab_size` pieces, naming the nearest size that it allows,
        and passes on whatever reading `lines` raises.
        """
        failure: list[Exception] = []

        def runs() -> Iterator[str]:
            try:
                for line in lines:
                    for start in range(0, len(line), _MAX_RUN):
                        yield line[start : start + _MAX_RUN]
            except Exception as error:  # SentencePiece would wrap it
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
                remove_extra_whitespaces=False,  # decoding gives back every space
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
            message = str(error)
            if small := re.search(r"required_chars\. \d+ vs (\d+)", message):
                rule = f"too small for this text; with its characters the smallest possible is {small[1]}"
            elif large := re.search(r"value <= (\d+)", message):
                rule = f"too large for this text; the largest possible is {large[1]}"
            elif "!sentences_.empty()" in message:
                raise UserError("data.source: there is no text to train the tokenizer on") from None
            else:
                raise
            raise UserError(f"data.vocab_size = {vocab_size}: {rule}") from None
        if normalization == "clean":
            return cls(normalizer.replace(model.getvalue(), _cleaner("source")))
        return cls(model.getvalue())

    @property
    def sha256(self) -> str:
        """Hex digest of the model."""
        return hashlib.sha256(self.model).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Number of ids, specials included."""
        return len(self._model_ids)

    def piece(self, id: int) -> str:
        """The piece behind an id, with "▁" for a space."""
        return SPECIALS[id] if id < len(SPECIALS) else self._processor.id_to_piece(self._model_ids[id])

    def model_of(self, side: Side) -> bytes:
        """The SentencePiece model for one side alone: it cleans text as far as a model without context can."""
        return normalizer.replace(self.model, _cleaner("target")) if self.cleans and side == "target" else self.model

    def encode(self, lines: Sequence[str], side: Side = "source") -> list[list[int]]:
        """One list of ids a line, without BOS and EOS; none for an empty line. Lines are cleaned as text of a side."""
        return self._ids(self._processor.encode(self._cleaned(lines, side), num_threads=1))

    def _ids(self, lines: list[list[int]]) -> list[list[int]]:
        if self._our_ids is None:
            return lines
        return [[self._our_ids[i] for i in line] for line in lines]

    def _cleaned(self, lines: Sequence[str], side: Side) -> list[str]:
        rule = cleaning.source if side == "source" else cleaning.target
        return [rule(line) for line in lines] if self.cleans else list(lines)

    def prefix(self, text: str) -> str:
        """A text that a translation is to begin with, cleaned."""
        return cleaning.prefix(text, self.characters) if self.cleans else text

    def cut(self, lines: Sequence[str]) -> list[Cut]:
        """Lines that are clean already, in pieces."""
        ids = self._ids(self._processor.encode(list(lines), num_threads=1))
        return [Cut(line, [self.spelling[i] for i in line]) for line in ids]

    def ends_in_space(self, text: str) -> bool:
        """Whether a text that is clean already ends in a space, also where the model's own rule takes that away."""
        words = self._processor.normalize(f"{text}|")
        return words.endswith(f"{_SPACE}|") and words.strip(_SPACE) != "|"

    @cached_property
    def spelling(self) -> list[bytes]:
        """For each id what it spells, as UTF-8 with "▁" for a space; for UNK the byte 0xFF; nothing for other specials
        and what stands for no text."""
        p, spellings = self._processor, []
        for id, model_id in enumerate(self._model_ids):
            if id < len(SPECIALS) or p.is_control(model_id) or p.is_unused(model_id):
                spellings.append(b"\xff" if id == UNK else b"")
            elif p.is_byte(model_id):
                spellings.append(bytes([int(p.id_to_piece(model_id)[3:5], 16)]))
            else:
                spellings.append(p.id_to_piece(model_id).encode())
        return spellings

    @cached_property
    def characters(self) -> frozenset[str]:
        """The characters that pieces hold. A model has hardly met any other: they are spelt in bytes, or unknown."""
        is_byte = [model_id >= 0 and self._processor.is_byte(model_id) for model_id in self._model_ids]
        texts = [text for text, byte in zip(self.spelling, is_byte, strict=True) if not byte]
        return frozenset(" ").union(*(text.decode(errors="ignore") for text in texts))

    def unknown(self, lines: Sequence[str], first_line: int) -> str | None:
        """A warning that counts and names the characters, as cleaned, that no piece holds; None without any.

        Lines are sources, counted from `first_line`.
        """
        counts: Counter[str] = Counter()
        numbers = []
        for number, line in enumerate(self._cleaned(lines, "source"), first_line):
            if not self.characters.issuperset(line):
                # What a model's own rule replaces is not unknown.
                unseen = [c for c in self._processor.normalize(line) if c not in self.characters and c != _SPACE]
                counts.update(unseen)
                numbers += [number] if unseen else []
        if not counts:
            return None
        # Shown only where that is harmless on a terminal.
        names = [
            f"{c} (U+{ord(c):04X})" if c.isprintable() and not unicodedata.combining(c) else f"U+{ord(c):04X}"
            for c, _ in counts.most_common(_MAX_SHOWN)
        ]
        if len(counts) > _MAX_SHOWN:
            names.append(f"and {len(counts) - _MAX_SHOWN} more")
        characters = "1 character was" if counts.total() == 1 else f"{counts.total():,} characters were"
        first_of = "" if len(numbers) == 1 else f" the first of {len(numbers):,} such lines;"
        return f"line {numbers[0]}:{first_of} {characters} never seen in training: {', '.join(names)}"

    def decode(self, ids: Iterable[Iterable[int]]) -> list[str]:
        """One text for each sequence of ids; never raises.

        Specials, padding and numbers outside the vocabulary count for nothing. Byte pieces that are not UTF-8 together
        become U+FFFD, and they can spell any character, a line break too: who writes lines must see to that.
        """
        size, model_ids = self.vocab_size, self._model_ids
        lines = [[model_ids[i] for i in line if len(SPECIALS) <= i < size] for line in _id_lists(ids)]
        return self._processor.decode(lines) if lines else []  # SentencePiece takes [] for one sequence

    def round_trip_rate(self, lines: Sequence[str], side: Side = "source") -> float:
        """Share of `lines` of a side that decoding gives back unchanged; 1.0 without lines."""
        lines = list(lines)
        decoded = self.decode(self.encode(lines, side))
        return sum(a == b for a, b in zip(lines, decoded, strict=True)) / len(lines) if lines else 1.0


@functools.cache
def _cleaner(side: Side) -> Normalizer:
    """`cleaning.RULE` for one side as a SentencePiece model has it, for programs that read the model file alone."""
    rule = cleaning.source if side == "source" else cleaning.target
    return Normalizer(cleaning.RULE, normalizer.compiled(cleaning.rows(rule)))


def _id_lists(ids: Iterable[Iterable[int]]) -> Iterator[list[int]]:
    for line in ids:
        yield line.tolist() if hasattr(line, "tolist") else [int(i) for i in line]


def tokenizer(config: DataConfig, train: tuple[Parallel, ...]) -> Tokenizer:
    """The tokenizer of a run: `config.tokenizer` if given, whose own size then counts, else one trained on `train`.

    Both sides of all corpora are used, at most `config.tokenizer_sentences` lines of each side, spread evenly over
    the whole text. The model is kept in the cache under the content of the text and everything else it depends on.
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
    """Train a tokenizer on corpora of these fingerprints, and write it to a folder."""
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
    (folder / _MODEL_FILE).write_bytes(trained.model)


def _clean_pairs(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    return ((cleaning.source(source), cleaning.target(target)) for source, target in pairs)
