"""SentencePiece BPE, one vocabulary for both sides, with byte fallback (paper §5.1 uses shared BPE of 37,000 pieces).

Ids are always PAD, BOS, EOS, UNK = 0, 1, 2, 3 and then the other pieces, whatever the order inside a ready model. The
same text gives the same model, byte for byte, wherever it lies: SentencePiece stores file names and the number of
threads in the model, so it trains from an iterator on one thread.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import sentencepiece

from transformer.config import DataConfig, UserError
from transformer.data.sources import cache
from transformer.data.text import Parallel, fingerprint, read_pairs, require_same
from transformer.files import cached

PAD, BOS, EOS, UNK = 0, 1, 2, 3
_MODEL = "tokenizer.model"
SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")

# SentencePiece silently skips lines above 4,192 bytes: longer ones are cut into runs of so many characters.
_LONGEST_RUN = 1_000
# Characters get a piece of their own, the most frequent first, until this share of the text is covered; the rest is
# spelt in bytes. On WMT14 full coverage would spend thousands of the 37,000 pieces on stray scripts.
COVERAGE = 0.99995
_FORMAT = 2  # part of every cache key: raise it when `train` would give another model for the same text

log = logging.getLogger("transformer")


class Tokenizer:
    """A SentencePiece model with the special ids at 0..3.

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
        p = self._processor
        specials = [p.pad_id(), p.bos_id(), p.eos_id(), p.unk_id()]  # -1: the model has none
        others = [i for i in range(p.get_piece_size()) if i not in specials]
        self._inner = specials + others  # our id -> the model's
        self._outer = None  # the model's id -> ours; None: they are the same
        if self._inner != list(range(len(self._inner))):
            self._outer = {inner: outer for outer, inner in enumerate(self._inner) if inner >= 0}

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """The tokenizer in a SentencePiece .model file."""
        try:
            model = Path(path).read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); give a SentencePiece .model file") from None
        return cls(model, path)

    @classmethod
    def train(cls, lines: Iterable[str], *, vocab_size: int, normalization: str = "identity") -> Tokenizer:
        """Train BPE on `lines`. The text's characters become pieces, but for the rarest (see `COVERAGE`).

        Raises `UserError` when the text does not allow `vocab_size` pieces, naming the nearest size that it allows,
        and passes on whatever reading `lines` raises.
        """
        failure: list[Exception] = []

        def runs() -> Iterator[str]:
            try:
                for line in lines:
                    for start in range(0, len(line), _LONGEST_RUN):
                        yield line[start : start + _LONGEST_RUN]
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
                normalization_rule_name=normalization,
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
        return cls(model.getvalue())

    @property
    def sha256(self) -> str:
        """Hex digest of the model."""
        return hashlib.sha256(self.model).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Number of ids, specials included."""
        return len(self._inner)

    def piece(self, id: int) -> str:
        """The piece behind an id, with "▁" for a space."""
        return SPECIALS[id] if id < len(SPECIALS) else self._processor.id_to_piece(self._inner[id])

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """One list of ids a line, without BOS and EOS; none for an empty line."""
        ids = self._processor.encode(list(lines), num_threads=1)
        if self._outer is not None:
            ids = [[self._outer[i] for i in line] for line in ids]
        return ids

    def decode(self, ids: Iterable[Iterable[int]]) -> list[str]:
        """One text for each sequence of ids; never raises.

        Specials, padding and numbers outside the vocabulary count for nothing. Byte pieces that are not UTF-8 together
        become U+FFFD, and they can spell any character, a line break too: who writes lines must see to that.
        """
        size, inner = self.vocab_size, self._inner
        lines = [[inner[i] for i in line if len(SPECIALS) <= i < size] for line in _ints(ids)]
        return self._processor.decode(lines) if lines else []  # SentencePiece takes [] for one sequence

    def round_trip_rate(self, lines: Sequence[str]) -> float:
        """Share of `lines` that decoding gives back unchanged; 1.0 without lines."""
        lines = list(lines)
        back = self.decode(self.encode(lines))
        return sum(a == b for a, b in zip(lines, back, strict=True)) / len(lines) if lines else 1.0


def _ints(ids: Iterable[Iterable[int]]) -> Iterator[list[int]]:
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
    key = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:32]
    with cache(config) as folder:
        return cached(
            folder / "tokenizers" / key,
            lambda new: _train(new, config, train, digests),
            lambda path: Tokenizer.load(path / _MODEL),
            "the tokenizer",
        )


def _train(folder: Path, config: DataConfig, train: tuple[Parallel, ...], digests: Sequence[str]) -> None:
    """Train a tokenizer on corpora of these fingerprints, and write it to a folder."""
    count = sum(1 for parallel in train for _ in read_pairs(parallel, config.fields))
    used = min(count, config.tokenizer_sentences)
    log.info("training a tokenizer of %s pieces on %s of %s pairs", f"{config.vocab_size:,}", f"{used:,}", f"{count:,}")
    found: dict[str, str] = {}
    pairs = itertools.chain.from_iterable(read_pairs(parallel, config.fields, found) for parallel in train)
    chosen = (pair for i, pair in enumerate(pairs) if (i + 1) * used // count > i * used // count)
    trained = Tokenizer.train(
        itertools.chain.from_iterable(chosen),
        vocab_size=config.vocab_size,
        normalization=config.normalization,
    )
    for parallel, digest in zip(train, digests, strict=True):
        require_same(parallel, digest, found)
    (folder / _MODEL).write_bytes(trained.model)
