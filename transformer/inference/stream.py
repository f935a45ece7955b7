"""Translation of a stream of lines: lines that have arrived are translated together, and written at once."""

from __future__ import annotations

import json
import logging
import math
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

from transformer.config import UserError
from transformer.data.compression import Damaged
from transformer.data.doubts import list_hint
from transformer.data.text import RepeatedKey, read_json
from transformer.inference.scorer import Scored
from transformer.inference.translator import Hypothesis, Translator
from transformer.streams import to_json

log = logging.getLogger("transformer")

CHUNK_LINES = 10_000  # the most lines that are translated together
CHUNK_SECONDS = 0.05  # seconds to wait for a further line
_FIELDS = ("source",), ("prefix",)  # of JSON lines to translate: those that are needed, and those that may be there


def translate_stream(translator: Translator, source: BinaryIO, target: BinaryIO, first_line: int = 1) -> int:
    """Write one translation for each line of `source`, in order. Returns the number of lines.

    Only "\n" ends a line; the last line may lack it. All lines that have arrived are translated together: a file in
    large batches, typed text line by line. Bytes that are not UTF-8 are read as U+FFFD; one warning names the first
    such line, another counts them. `first_line`: the number of the first line, if `source` is a part of a file.
    """

    def answer(lines: Sequence[str], first: int) -> list[str]:
        if first == 1 and _is_record(lines[0], "source"):
            log.warning("line 1 is a JSON object and is translated as text; --jsonl translates its field 'source'")
        elif first == 1:
            _doubt(lines[0])
        return translator.translate(lines, first_line=first)

    return answer_lines(source, target, answer, first_line)


def translate_jsonl(
    translator: Translator, source: BinaryIO, target: BinaryIO, first_line: int = 1, *, details: bool = False
) -> int:
    """`translate_stream` for JSON lines: objects with a field `source` and optionally `prefix`, the beginning of the
    translation. Writes each object with all its fields, and in addition

    - `translation` and `score`, by which beam search ranks;
    - `n_best`, if decode.n_best is more than 1: a list of such pairs, best first;
    - with `details`, for the best translation: `pieces`, `log_probs`, `source_pieces` and `alignment` (see `Scored`).

    If the source is blank or the model's scores are not finite, the translation is "" and the score null. Raises
    `UserError`, with the number of the line, for a line that is no such object.
    """

    def answer(lines: Sequence[str], first: int) -> Iterator[str]:
        records = list(records_of(lines, first, *_FIELDS))
        sources = [record["source"] for record in records]
        prefixes = [record.get("prefix", "") for record in records]
        n_best = translator.translate_n_best(sources, first_line=first, prefixes=prefixes if any(prefixes) else None)
        scored = iter(())
        if details:
            best = [
                (text, hypotheses[0].tokens)
                for text, hypotheses in zip(sources, n_best, strict=True)
                if has_score(hypotheses)
            ]
            # None: the warnings have been logged already.
            again = translator.encode([text for text, _ in best], None)
            scored = iter(translator.score_pieces(again, [tokens for _, tokens in best]))
        for record, hypotheses in zip(records, n_best, strict=True):
            record |= translated(hypotheses, translator.config.n_best)
            if details and has_score(hypotheses):
                record |= details_of(next(scored))
            yield to_json(record)

    return answer_lines(source, target, answer, first_line)


def translated(hypotheses: Sequence[Hypothesis], n_best: int) -> dict[str, Any]:
    """The fields `translation`, `score` and, if `n_best` is more than 1, `n_best` (see `translate_jsonl`)."""
    found = [{"translation": t.text, "score": t.score} for t in hypotheses] if has_score(hypotheses) else []
    best = found[0] if found else {"translation": "", "score": None}
    return best | {"n_best": found} if n_best > 1 else best


def score_jsonl(translator: Translator, source: BinaryIO, target: BinaryIO) -> int:
    """Score given translations: JSON lines, objects with the fields `source` and `target`. Returns the number of lines.

    Writes each object with all its fields and with `score`, `pieces`, `log_probs`, `source_pieces` and `alignment` (see
    `Scored`). Scores and log-probabilities that are not finite are null. Raises `UserError` as `translate_jsonl` does.
    """

    def answer(lines: Sequence[str], first: int) -> Iterator[str]:
        records = list(records_of(lines, first, ("source", "target"), ()))
        sides = [[record[side] for record in records] for side in ("source", "target")]
        for record, scored in zip(records, translator.score(*sides, first_line=first), strict=True):
            yield to_json(record | {"score": scored.score} | details_of(scored))

    return answer_lines(source, target, answer, 1)


def answer_texts(
    source: BinaryIO,
    target: BinaryIO,
    answer: Callable[[Sequence[str], int], Iterable[str]],
    *,
    tabs: bool = False,
) -> int:
    """`answer_lines` for lines that are texts, from line 1. Logs a warning if the first line is a JSON object, or has a
    tab. `tabs`: whether tabs have a meaning, so that there is no warning of them."""

    def warned(lines: Sequence[str], first: int) -> Iterable[str]:
        if first == 1:
            _doubt(lines[0], tabs=tabs)
        return answer(lines, first)

    return answer_lines(source, target, warned, 1)


def answer_lines(
    source: BinaryIO, target: BinaryIO, answer: Callable[[Sequence[str], int], Iterable[str]], first_line: int
) -> int:
    """Write a line for each line of `source`. Returns their number.

    `answer(lines, number of the first line)` returns the lines to write for lines that have arrived together.
    """
    done = broken = 0
    for lines in _chunks(source):
        texts = _texts(lines, first_line + done)
        for number, (line, text) in enumerate(zip(lines, texts, strict=True), first_line + done):
            if "\ufffd" in text and "\ufffd".encode() not in line:
                broken += 1
                if broken == 1:
                    log.warning("line %d: not valid UTF-8; invalid bytes are read as U+FFFD", number)
        for text in answer(texts, first_line + done):
            target.write(text.encode("utf-8", errors="replace") + b"\n")
        target.flush()
        done += len(lines)
    if broken > 1:
        log.warning("%d of %d lines were not valid UTF-8", broken, done)
    return done


def _texts(lines: Sequence[bytes], first: int) -> list[str]:
    """Lines as text, without the "\\r" of Windows line ends, and without a byte order mark before line 1."""
    texts = [line.removesuffix(b"\r").decode("utf-8", errors="replace") for line in lines]
    return [text.removeprefix("\ufeff") if number == 1 else text for number, text in enumerate(texts, first)]


def check_jsonl(lines: Sequence[bytes]) -> None:
    """Raise `UserError` for the first line, of all, that `translate_jsonl` can't translate."""
    for _ in records_of(_texts(lines, 1), 1, *_FIELDS):
        pass


def records_of(
    lines: Sequence[str], first: int, needed: Sequence[str], optional: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The objects in JSON lines. `needed` and `optional`: names of fields that are strings. Raises `UserError`."""
    for number, line in enumerate(lines, first):
        try:
            record = read_json(line)
            # Python reads NaN and 1e999, but no other reader of JSON accepts what it would write for them.
            json.dumps(record, allow_nan=False)
        except RepeatedKey as error:
            raise UserError(f"line {number}: {error}") from None
        except (ValueError, RecursionError) as error:
            fix = f"each line must be an object{list_hint(line)}"
            raise UserError(f"line {number}: not JSON ({error}); {fix}") from None
        if not isinstance(record, dict):
            raise UserError(f"line {number}: not a JSON object; each line must be one{list_hint(line)}")
        for name in needed:
            if name not in record:
                raise UserError(f"line {number}: no field {name!r}; each object needs {' and '.join(needed)}")
        for name in (*needed, *optional):
            if not isinstance(record.get(name, ""), str):
                raise UserError(f"line {number}: the field {name!r} must be a string")
            if name in record:  # JSON can hold a lone surrogate, which no tokenizer takes
                record[name] = record[name].encode("utf-8", errors="replace").decode()
        yield record


def _doubt(line: str, *, tabs: bool = False) -> None:
    """Log a warning if the first line is a JSON object, or, unless `tabs`, has a tab as in a table."""
    if _is_record(line):
        log.warning(
            "line 1 is a JSON object and is read as text; to read one of its fields, such as text, write that to a "
            "file first: jq -r .text FILE > NEW"
        )
    elif "\t" in line and not tabs:
        log.warning(
            "line 1 has a tab and is read as one text; to read one column of a file, such as the first, write it to a "
            "file first: cut -f 1 FILE > NEW"
        )


def _is_record(line: str, field: str | None = None) -> bool:
    """Whether a line is a JSON object; with this field, if one is given."""
    try:
        record = read_json(line) if line.startswith("{") else None
    except (ValueError, RecursionError):
        return False
    return record is not None and (field is None or field in record)


def has_score(hypotheses: Sequence[Hypothesis]) -> bool:
    """Whether there is a translation with a finite score."""
    return bool(hypotheses) and math.isfinite(hypotheses[0].score)


def details_of(scored: Scored) -> dict[str, Any]:
    """The fields of `--details` (see `translate_jsonl`)."""
    return {name: getattr(scored, name) for name in ("pieces", "log_probs", "source_pieces", "alignment")}


def _chunks(source: BinaryIO) -> Iterator[list[bytes]]:
    """Lists of lines that arrived together. A thread reads, so that reading continues during a translation.

    It reads from the raw stream below the buffer of `source`: if it waited for input while holding the lock of the
    buffer, Python could not exit.
    """
    arrived: queue.Queue[bytes | None] = queue.Queue(maxsize=2 * CHUNK_LINES)
    raw = getattr(source, "raw", source)
    failure: list[OSError] = []

    def read() -> None:
        line: list[bytes] = []  # parts of a line whose end has not arrived
        try:
            while block := raw.read(1 << 16):
                part, *parts = block.split(b"\n")
                line.append(part)
                for part in parts:
                    arrived.put(b"".join(line))
                    line = [part]
        except OSError as error:
            failure.append(error)
        if any(line) and not failure:
            arrived.put(b"".join(line))
        arrived.put(None)

    threading.Thread(target=read, daemon=True).start()
    line = arrived.get()
    while line is not None:
        lines = [line]
        try:
            while len(lines) < CHUNK_LINES and (line := arrived.get(timeout=CHUNK_SECONDS)) is not None:
                lines.append(line)
            if line is not None:
                line = b""
        except queue.Empty:
            line = b""
        yield lines
        if line is not None:
            line = arrived.get()
    for error in failure:
        raise UserError(f"the input is {error}") if isinstance(error, Damaged) else error
