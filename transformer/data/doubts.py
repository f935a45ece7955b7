"""Signs that a file holds something else than what it is read as: quoted fields, lists as text, other columns."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise

from transformer.config import UserError
from transformer.data.compression import uncompressed_name
from transformer.data.foreign import piped
from transformer.streams import plain

log = logging.getLogger("transformer")

NAME_IT_SO = "name the file .conll"
_FEW = 10  # so few texts may all be single words
_CERTAIN = 3  # so many rows are not all in quotes by chance
_WITHOUT_COMMENTS = "grep -v '^#'"
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_TAG = re.compile(r"O|[BIESLU]-\S+")


class QuotedFields:
    """Tells once if fields of a .tsv are quoted as in a .csv: there quotes are characters as all others."""

    def __init__(self, path: str):
        self._path = path
        self._told = False
        self._rows: int | None = 0
        """The number of rows, all in quotes, behind the first line; None after one that is not."""

    def seen(self, line: int, fields: list[str]) -> list[str]:
        """The fields of a line, as they are."""
        if self._told:
            return fields
        if self._rows is not None and line > 1:  # the first line may be a header
            quoted = all(len(field) > 1 and _QUOTED.fullmatch(field) for field in fields)
            self._rows = self._rows + 1 if quoted else None
        escaped = any('""' in field and _QUOTED.fullmatch(field) for field in fields)
        if escaped or self._rows == _CERTAIN:
            self._told = True
            what = "a field is" if escaped else "all fields are"
            log.warning(
                "%s:%d: %s quoted as in a .csv, but in a .tsv quotes are part of the text; write it without them "
                "(pandas: quoting=csv.QUOTE_NONE; R: quote=FALSE)",
                *(plain(self._path), line, what),
            )
        return fields


def refuse_csv(paths: Iterable[str], name: str = "") -> None:
    """Raise `UserError` if the name of one of these files, which hold a sentence a line or pairs, is that of a .csv.
    `name`: the beginning of the message."""
    for path in paths:
        if uncompressed_name(path).endswith(".csv"):
            raise UserError(
                f"{name}{path}: a .csv, which holds neither a sentence a line nor pairs; convert it to .jsonl first, "
                "e.g. with csvjson --stream -I of csvkit, and name its fields in data.fields"
            )


def list_hint(line: str) -> str:
    """The end of an error message for a line that should be a JSON object: how to convert a list of objects, or objects
    of several lines, to .jsonl; what a blank line asks for; "" for other lines."""
    if not line.strip():
        return "; this one is blank: remove it"
    if line.lstrip().startswith("["):
        return "; convert a list of objects to lines with jq -c '.[]'"
    return "; write each object in one line, with jq -c ." if line.strip() == "{" else ""


def is_list(text: str) -> bool:
    """Whether a list was written as text, as programs do that write one into a field of a table."""
    return text.startswith("[") and text.endswith("]") and any(mark in text for mark in " ,'\"")


def doubt_single_words(path: str, texts: Sequence[Sequence[str]], lines: Sequence[int]) -> None:
    """Warn if each text of a table, a list of words, is a single word. Raises `UserError` if there are blank lines
    between rows, too, as between the sentences of a .conll. `lines`: the number of each row's first line."""
    if len(texts) >= _FEW and all(len(words) == 1 for words in texts):
        told = f"{path}: each text is a single word; if each line is a word and its tag, {NAME_IT_SO}"
        if any(after - before > 1 for before, after in pairwise(lines)):
            raise UserError(told)
        log.warning("%s", told)


def refuse_other_columns(path: str, sentences: Sequence[tuple[int, tuple[str, ...], tuple[str, ...]]]) -> None:
    """Raise `UserError` if the first column of a .conll holds numbers of words (GermEval, CoNLL-2009), the name of a
    document (CoNLL-2012) or the tags (the MIT movie corpus) instead of words. `sentences`: the first line, the words
    and the tags of each."""
    first, tags = [words for _, words, _ in sentences], chain.from_iterable(tags for *_, tags in sentences)
    if all(len(words) == 1 for words in first) or sum(map(len, first)) < _FEW:
        return
    if any(all(words == tuple(map(str, range(i, i + len(words)))) for words in first) for i in (0, 1)):
        what, columns = "the first column numbers the words", "$2, $3"
    elif all(len({*words}) == 1 for words in first):
        what, columns = "the first column is the same in all lines of a sentence, so it is not the word", "$4, $5"
    elif all(map(_TAG.fullmatch, chain(*first))) and not all(map(_TAG.fullmatch, tags)):
        what, columns = "the first column holds the tags", "$2, $1"
    else:
        return
    raise UserError(
        f"{path}:{sentences[0][0]}: {what}; each line must hold a word first and its tag last: "
        f"{piped(_WITHOUT_COMMENTS, path)} | awk '{{print {columns}}}' > NEW.conll (with the numbers of their columns)"
    )
