"""Generation for a stream of prompts, one in a line: prompts that have arrived are answered together, and at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from transformer.config import UserError
from transformer.data.text import RepeatedKey, read_json
from transformer.inference.generator import Generator
from transformer.inference.stream import answer_lines, records_of
from transformer.streams import to_json

log = logging.getLogger("transformer")

SEPARATOR = "-" * 15
"""The line between two texts."""


def answer_prompt(generator: Generator, prompt: str, target: BinaryIO, stop: Sequence[str], *, jsonl: bool) -> None:
    """Write texts that go on from one prompt, each after the prompt, with a line `SEPARATOR` between them.

    If there is only one and it is not the result of a beam search, each piece is flushed as it comes. With `jsonl`:
    see `answer_prompts`.
    """
    if not jsonl and generator.streams:
        _write_pieces(generator, prompt, target, stop, 1)
        target.write(b"\n")
    else:
        for line in _answers(generator, [{"prompt": prompt}], 1, stop, jsonl):
            target.write(_bytes(line) + b"\n")
    target.flush()


def answer_prompts(
    generator: Generator, source: BinaryIO, target: BinaryIO, stop: Sequence[str], *, jsonl: bool
) -> int:
    """Write the texts that go on from each line of `source`, in order. Returns the number of lines.

    Only "\n" ends a line. Each text follows its prompt; a line `SEPARATOR` stands between two texts. The pieces of a
    line that arrives alone are flushed as they come, where there is one text (see `answer_prompt`).

    With `jsonl`, each text is a line, an object with `prompt`, `text`, `log_prob` and `pieces`. If the model's scores
    are not finite, text is "" and log_prob null. A line may then be an object with a field `prompt`; its fields of
    other names are kept.
    """

    doubted = False

    def answer(lines: Sequence[str], first: int) -> Iterator[str]:
        nonlocal doubted
        records = [_record(line, number) if jsonl else {"prompt": line} for number, line in enumerate(lines, first)]
        if not doubted and (doubt := _doubt(lines, records, first, jsonl)):
            doubted = True
            log.warning("%s", doubt)
        if first > 1 and not jsonl:
            yield SEPARATOR
        if len(lines) == 1 and not jsonl and generator.streams:
            _write_pieces(generator, lines[0], target, stop, first)
            yield ""  # the end of the line
        else:
            yield from _answers(generator, records, first, stop, jsonl)

    return answer_lines(source, target, answer, 1)


def score_texts(generator: Generator, source: BinaryIO, target: BinaryIO) -> int:
    """Score texts: JSON lines, objects with the field `text`. Returns the number of lines.

    Writes each object with all its fields and with `log_prob`, `pieces` and `log_probs` (see `ScoredText`). Numbers
    that are not finite are null.
    """

    def answer(lines: Sequence[str], first: int) -> Iterator[str]:
        records = list(records_of(lines, first, ("text",), ()))
        scored = generator.score([record["text"] for record in records], first_line=first)
        for record, one in zip(records, scored, strict=True):
            yield to_json(record | {"log_prob": one.log_prob, "pieces": one.pieces, "log_probs": one.log_probs})

    return answer_lines(source, target, answer, 1)


def _write_pieces(generator: Generator, prompt: str, target: BinaryIO, stop: Sequence[str], first_line: int) -> None:
    """Write a prompt and each piece that goes on from it, as it comes."""
    target.write(_bytes(prompt))
    target.flush()
    for part in generator.stream(prompt, stop=stop, first_line=first_line):
        target.write(_bytes(part))
        target.flush()


def _answers(
    generator: Generator, records: Sequence[dict[str, Any]], first: int, stop: Sequence[str], jsonl: bool
) -> Iterator[str]:
    """The texts for each record with a `prompt`: JSON objects, or texts with separators between them."""
    results = generator.generate_n_best([record["prompt"] for record in records], stop=stop, first_line=first)
    separated = False
    for record, found in zip(records, results, strict=True):
        texts = [(one.text, one.log_prob, one.tokens) for one in found] or [("", None, [])]
        for text, log_prob, tokens in texts:
            if jsonl:
                pieces = generator.vocabulary.pieces(tokens)
                yield to_json(record | {"text": text, "log_prob": log_prob, "pieces": pieces})
                continue
            if separated:
                yield SEPARATOR
            separated = True
            yield record["prompt"] + text


def _record(line: str, number: int) -> dict[str, Any]:
    """A line as an object with `prompt`: the object that it holds, or the line itself. Raises `UserError` for an object
    with a wrong field."""
    try:
        has_prompt = line.startswith("{") and "prompt" in read_json(line)
    except RepeatedKey as error:
        raise UserError(f"line {number}: {error}") from None
    except (ValueError, RecursionError):
        has_prompt = False
    if not has_prompt:
        return {"prompt": line}
    return next(records_of([line], number, ("prompt",), ()))


def _doubt(lines: Sequence[str], records: Sequence[dict[str, Any]], first: int, jsonl: bool) -> str | None:
    """A warning that names the first line that may be meant as an object, but is read as text; or None."""
    for number, (line, record) in enumerate(zip(lines, records, strict=True), first):
        if not line.startswith("{") or record != {"prompt": line}:
            continue
        if jsonl:
            return f"line {number} is no JSON object with a field 'prompt', so it is read as text"
        if _record(line, number) != record:
            return f"line {number} is a JSON object and is read as text; --jsonl reads its field 'prompt'"
    return None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", errors="replace")
