"""Train the vocabularies of an encoder alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from transformer.config import UserError
from transformer.data.wordpiece import (
    CONTINUES,
    SPECIAL_PIECES,
    MaskedSentencePiece,
    WordPiece,
    tokenizer_json,
)

_CHARACTERS = 1_000  # the most characters that become pieces, the most frequent ones, as in BertWordPieceTokenizer


def train_wordpiece(lines: Sequence[str], size: int, *, lower_case: bool) -> WordPiece:
    """A WordPiece vocabulary of `size` pieces. The same lines give the same pieces.

    Raises `UserError` if the text does not allow so many or so few pieces.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower_case)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    first, later = _characters(lines, tokenizer)
    if not first:
        raise UserError("data.text: nothing is left of the text once it is normalised; give other files")
    # The trainer numbers the characters inside words in the order of a hash table, which differs from run to run, and
    # breaks ties by these numbers. As special pieces, they have numbers in a fixed order.
    fixed = [*SPECIAL_PIECES, *first, *(CONTINUES + c for c in later)]
    if size < len(fixed):
        raise UserError(
            f"data.vocab_size = {size}: too small for this text; with its characters the smallest possible is "
            f"{len(fixed)}"
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=fixed,
        initial_alphabet=first,
        limit_alphabet=len(first),
        continuing_subword_prefix=CONTINUES,
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    ids = tokenizer.get_vocab()
    if len(ids) < size:
        raise UserError(f"data.vocab_size = {size}: too large for this text; the largest possible is {len(ids)}")
    return WordPiece(tokenizer_json(sorted(ids, key=ids.__getitem__), lower_case=lower_case))


def _characters(lines: Iterable[str], tokenizer: Any) -> tuple[list[str], list[str]]:
    """The characters of the text, and those of them that go on with a word. Both are sorted."""
    counts: Counter[str] = Counter()
    later: set[str] = set()
    for line in lines:
        words = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(line))
        for word, _ in words:
            counts.update(word)
            later.update(word[1:])
    kept = sorted(counts, key=lambda c: (-counts[c], c))[:_CHARACTERS]
    return sorted(kept), sorted(later.intersection(kept))


def train_sentencepiece(lines: Iterable[str], size: int, *, lower_case: bool) -> MaskedSentencePiece:
    """A SentencePiece BPE vocabulary of `size` pieces, the mask included. Raises `UserError` as `Tokenizer.train`."""
    from transformer.data.tokenizer import Tokenizer

    rule = "nmt_nfkc_cf" if lower_case else "nmt_nfkc"
    return MaskedSentencePiece(Tokenizer.train(lines, vocab_size=size - 1, normalization=rule, added=1).model)
