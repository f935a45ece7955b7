"""The vocabulary in a folder of Hugging Face's: tokenizer.json with byte-level BPE, or a vocabulary of ours as such."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from transformer.config import PAD, SPECIALS, UNK, UserError
from transformer.data import vocabularies
from transformer.data.vocabularies import BYTE_SYMBOLS, ByteLevel, Bytes, Characters, SentencePiece, Vocabulary
from transformer.tools.hf.folder import read, read_object

OURS = "transformer_vocabulary"
"""Field of tokenizer_config.json: the file of our own vocabulary, which an export writes beside its tokenizer.json."""
_END = "<|endoftext|>"
_SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}

log = logging.getLogger("transformer")
V = TypeVar("V", bound=Vocabulary)


# ---- In --------------------------------------------------------------------------------------------------------------


def vocabulary_in(folder: Path) -> Vocabulary | None:
    """The vocabulary of a folder: our own if `export` wrote it, else tokenizer.json, else vocab.json and merges.txt.

    None, with a warning, if the folder has none of them. Raises `UserError` if one of them can't be read, or is not
    byte-level BPE.
    """
    options = folder / "tokenizer_config.json"
    name = read_object(options).get(OURS) if options.exists() else None
    if name in vocabularies.FILES and (path := folder / name).exists():
        return vocabularies.read(name, read(path), path)
    if (path := folder / "tokenizer.json").exists():
        return ByteLevel(read(path), path)
    if (path := folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return ByteLevel(_from_pairs(folder), path)
    log.warning(
        "%s: no tokenizer.json, and no vocab.json with merges.txt: the model is imported without a vocabulary; it "
        "can't read or write text until it is imported with one",
        folder,
    )
    return None


def begins_texts(folder: Path, vocabulary: Vocabulary) -> bool:
    """Whether the tokenizer of a folder puts the vocabulary's begin before each text."""
    path = folder / "tokenizer.json"
    return path.exists() and _begins_texts(read_object(path), vocabulary.begin)


def _begins_texts(tokenizer: Mapping[str, Any], begin: int) -> bool:
    """Whether the content of a tokenizer.json puts the piece with this id before each text."""
    processor = tokenizer.get("post_processor")
    steps = processor.get("processors") if isinstance(processor, dict) and "processors" in processor else [processor]
    for step in steps if isinstance(steps, list) else ():
        if isinstance(step, dict) and step.get("type") == "TemplateProcessing":
            with contextlib.suppress(AttributeError, IndexError, KeyError, TypeError):  # of another form
                name = step["single"][0]["SpecialToken"]["id"]
                return step["special_tokens"][name]["ids"] == [begin]
    return False


def longest_text(folder: Path) -> int | None:
    """The most pieces that the tokenizer of a folder allows a text; None if it does not say."""
    path = folder / "tokenizer_config.json"
    longest = read_object(path).get("model_max_length") if path.exists() else None
    return longest if type(longest) is int and longest >= 2 else None


def _from_pairs(folder: Path) -> bytes:
    """The tokenizer.json of vocab.json, merges.txt and, if there, added_tokens.json."""
    vocab = read_object(folder / "vocab.json")
    try:
        lines = read(folder / "merges.txt").decode().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{folder / 'merges.txt'}: cannot be read ({error})") from None
    merges = [line.split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    added = {_END: vocab[_END]} if _END in vocab else {}
    if (more := folder / "added_tokens.json").exists():
        added |= read_object(more)
    for name, ids in (("vocab.json", vocab), ("added_tokens.json", added)):
        if wrong := [piece for piece, id in ids.items() if type(id) is not int or id < 0]:
            raise UserError(f"{folder / name}: the id of {wrong[0]!r} is {ids[wrong[0]]!r}: must be a whole number")
    return _tokenizer_json(vocab, merges, added, {"pre_tokenizer": _byte_level(True), "decoder": _byte_level(True)})


def refuse_larger(vocabulary: Vocabulary, size: int, folder: Path) -> None:
    """Raise `UserError` if the vocabulary has more than `size` ids."""
    if vocabulary.size > size:
        raise UserError(
            f"{folder}: its tokenizer has {vocabulary.size:,} pieces, but config.json has vocab_size {size:,}; give "
            "the tokenizer of this model"
        )


def of_size(vocabulary: V, size: int, folder: Path) -> V:
    """The vocabulary for a model with `size` ids, as many as its table has rows. Raises `UserError` if it has more. If
    it has fewer, warns, and adds special pieces for the last ids."""
    refuse_larger(vocabulary, size, folder)
    if lacking := size - vocabulary.size:
        log.warning("%s: the last %s ids of the model have no piece in its tokenizer", folder, f"{lacking:,}")
    name, content = vocabulary.file
    if not lacking or name != "tokenizer.json":
        return vocabulary
    spec = json.loads(content)
    more = [{"id": i, "content": f"<|unused_{i}|>", **_SPECIAL} for i in range(vocabulary.size, size)]
    return type(vocabulary)(_json({**spec, "added_tokens": [*(spec.get("added_tokens") or ()), *more]}))


# ---- Out -------------------------------------------------------------------------------------------------------------


def files_of(vocabulary: Vocabulary, context: int, *, begins: bool) -> dict[str, Any]:
    """File name -> content, bytes or JSON, of a folder for `AutoTokenizer.from_pretrained`. `context`: the most pieces.
    `begins`: the tokenizer puts the begin of a document before each text.

    A tokenizer.json of Hugging Face's goes out as it came in. Our other vocabularies become one that gives the same
    ids; their own file goes along, so that `vocabulary_in` finds it.
    """
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIALS, strict=True))
    if isinstance(vocabulary, ByteLevel):
        names = {"bos_token": vocabulary.name(vocabulary.begin), "eos_token": vocabulary.name(vocabulary.end)}
        files = {"tokenizer.json": vocabulary.file[1]}
        ours = {}
    else:
        name, content = vocabulary.file
        files = {"tokenizer.json": _converted(vocabulary), name: content}
        ours = {OURS: name}
    if begins:
        files["tokenizer.json"] = _with_begin(files["tokenizer.json"], names["bos_token"], vocabulary.begin)
    options = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        # A special piece never comes from text, which may well hold "</s>".
        "split_special_tokens": True,
        "model_max_length": context,
        **names,
        **ours,
    }
    return files | {"tokenizer_config.json": options}


def _with_begin(tokenizer: bytes, name: str, begin: int) -> bytes:
    """A tokenizer.json that puts the special piece `name`, with the id `begin`, before each text."""
    spec, first = json.loads(tokenizer), {"SpecialToken": {"id": name, "type_id": 0}}
    if _begins_texts(spec, begin):
        return tokenizer
    one, other = ({"Sequence": {"id": text, "type_id": number}} for number, text in enumerate("AB"))
    template = {
        "type": "TemplateProcessing",
        "single": [first, one],
        "pair": [first, one, other],
        "special_tokens": {name: {"id": name, "ids": [begin], "tokens": [name]}},
    }
    if (before := spec.get("post_processor")) is not None:
        template = {"type": "Sequence", "processors": [before, template]}
    return _json({**spec, "post_processor": template})


def special_ids(vocabulary: Vocabulary) -> dict[str, int | None]:
    """The ids of begin, end and padding, by the names of their fields in config.json."""
    pad = None if isinstance(vocabulary, ByteLevel) else PAD
    return {"bos_token_id": vocabulary.begin, "eos_token_id": vocabulary.end, "pad_token_id": pad}


def _converted(vocabulary: Vocabulary) -> bytes:
    """The tokenizer.json that gives the ids of a vocabulary of ours."""
    special = {name: i for i, name in enumerate(SPECIALS)}
    if isinstance(vocabulary, Bytes):
        vocab = special | {symbol: len(SPECIALS) + byte for symbol, byte in BYTE_SYMBOLS.items()}
        parts = {"pre_tokenizer": _byte_level(False), "decoder": _byte_level(False)}
        return _tokenizer_json(vocab, [], special, parts)
    fuse = {"type": "Fuse"}
    if isinstance(vocabulary, Characters):
        vocab = special | {vocabulary.name(i): i for i in range(len(SPECIALS), vocabulary.size)}
        return _tokenizer_json(vocab, [], special, {"decoder": fuse}, unk_token=SPECIALS[UNK])
    if isinstance(vocabulary, SentencePiece):
        vocab, merges = _of_sentencepiece(vocabulary)
        decoder = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, fuse]}
        return _tokenizer_json(special | vocab, merges, special, {"decoder": decoder}, byte_fallback=True)
    raise TypeError(f"a vocabulary of the class {type(vocabulary).__name__} has no tokenizer.json")


def _of_sentencepiece(vocabulary: SentencePiece) -> tuple[dict[str, int], list[list[str]]]:
    """The pieces, with a space for "▁", and the pairs that BPE merges, the first ones first.

    SentencePiece has no list of merges: it merges the neighbours that form the piece of the highest score. So each way
    to cut a piece in two pieces is a merge, in the order of the scores.
    """
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=vocabulary.file[1])
    vocab, scores = {}, {}
    for i in range(len(SPECIALS), vocabulary.size):
        name, spelt = vocabulary.name(i), vocabulary.spelling[i]
        if spelt and not processor.is_byte(processor.piece_to_id(name)):
            scores[spelt.decode()] = processor.get_score(processor.piece_to_id(name))
            name = spelt.decode()
        vocab[name] = i
    merges = [
        [piece[:cut], piece[cut:]]
        for piece in sorted(scores, key=lambda piece: -scores[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return vocab, merges


def _byte_level(split: bool) -> dict[str, Any]:
    """`split`: cut text into words first, by GPT-2's pattern."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": split}


def _tokenizer_json(
    vocab: Mapping[str, int],
    merges: Sequence[Sequence[str]],
    special: Mapping[str, int],
    parts: Mapping[str, Any],
    *,
    unk_token: str | None = None,
    byte_fallback: bool = False,
) -> bytes:
    """A tokenizer.json with BPE, as the package `tokenizers` writes it. `parts`: its parts that are not null."""
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": unk_token,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": byte_fallback,
        "ignore_merges": False,
        "vocab": dict(vocab),
        "merges": [list(pair) for pair in merges],
    }
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    added = [{"id": i, "content": name, **_SPECIAL} for name, i in sorted(special.items(), key=lambda item: item[1])]
    content = {"version": "1.0", "added_tokens": added, **empty, **parts, "model": model}
    return _json(content)


def _json(content: Any) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()
