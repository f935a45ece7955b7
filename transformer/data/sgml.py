"""Read SGML sets of WMT, NIST and IWSLT: `<srcset>`, `<refset>` or `<tstset>` with documents of segments."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from transformer.config import UserError

_SETS = ("srcset", "refset", "tstset")
_PROLOG = rb"\s*(?:<\?[^<>]*\?>\s*|<!--(?:(?!-->).){0,2000}-->\s*|<!doctype[^<>]*>\s*)*"
_OPENING = re.compile(_PROLOG + rb"<([a-z]\w*)", re.I | re.S)
_INCOMPLETE = re.compile(_PROLOG + rb"(?:<[a-z]*|<[?!][^<>]*|<!--(?:(?!-->).){0,2000})?$", re.I | re.S)
_TAG = re.compile(r"<!--|-->|<(/?)(srcset|refset|tstset|mteval|doc|seg)\b([^<>]*)>", re.I)
_ATTRIBUTE = re.compile(r"""(?<![\w:.-])([\w:.-]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'/]+))""")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]*);")


class Segment(NamedTuple):
    """One segment of a set."""

    reader: str
    """The set of the segment, with its number in the file, and its translator (sysid), such as "refset 1 ref"."""
    document: str
    """The docid of the document; without one, #1 for the first document."""
    number: str
    """The id of the segment within the document; without one, #1 for the first segment."""
    text: str
    """The text, on one line."""

    @property
    def place(self) -> str:
        """Document and number of the segment; its translation has the same."""
        return f"document {self.document}, segment {self.number}"


def root(head: bytes) -> str:
    """Name of the first element, in lower case, of a file with these first bytes; "" if it does not begin with one."""
    match = _OPENING.match(head.removeprefix(b"\xef\xbb\xbf"))
    return match[1].decode().lower() if match else ""


def undecided(head: bytes) -> bool:
    """Whether markup has begun and more bytes may show the first element."""
    head = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return head.startswith(b"<") and _INCOMPLETE.match(head) is not None


def is_set(head: bytes) -> bool:
    """Whether a file with these first bytes is an SGML set."""
    first = root(head)
    return first in (*_SETS, "mteval") or (first == "doc" and re.search(rb"<seg\s", head, re.I) is not None)


def segments(text: str, name: str) -> list[Segment]:
    """All segments of a file, in their order.

    `name` is the file's name in errors. Raises `UserError` if the file is truncated, has no segments, or has several
    texts of the same segments, such as two references.
    """
    parsed = list(_segments(text, name))
    if not parsed:
        raise UserError(f"{name}: no <seg> in it; an SGML set holds <seg id=...>text</seg>")
    readers = {segment.reader: {} for segment in parsed}
    texts = Counter(place for _, place in {(segment.reader, segment.place) for segment in parsed})
    if max(texts.values()) > 1:
        raise UserError(
            f"{name}: holds {len(readers)} texts of the same segments ({', '.join(readers)}); write each to a file of "
            "its own"
        )
    return parsed


def compare(sources: list[Segment], targets: list[Segment], source: str, target: str) -> None:
    """Raise `UserError` if the segments of two files differ in document, number or order.

    `source` and `target` are the files' names in the message.
    """
    for i, (ours, theirs) in enumerate(zip(sources, targets, strict=False), 1):
        if ours.place != theirs.place:
            raise UserError(
                f"{source} and {target}: the segments differ: number {i} is {ours.place} in the first and "
                f"{theirs.place} in the second; both must have the same segments in the same order"
            )


def _segments(text: str, name: str) -> Iterator[Segment]:
    reader = set_name = document = ""
    documents: Counter = Counter()  # number of documents of each reader
    sets = numbered = 0  # sets so far, and segments of the document so far
    open_sets: list[tuple[str, re.Match]] = []  # the sets that are open, with their opening tags
    seg: re.Match | None = None  # the <seg> that is open
    number = ""
    comment = False  # whether a comment is open; inside a segment it is text
    for tag in _TAG.finditer(text):
        if comment or tag[2] is None:
            comment = seg is None and tag[0] != "-->"
            continue
        closing, kind, attributes = tag[1], tag[2].lower(), _attributes(tag[3])
        if seg is not None and not (closing and kind == "seg"):
            raise UserError(f"{name}:{_line(text, seg)}: <seg> without </seg>; the file is truncated or damaged")
        if kind == "seg" and not closing:
            numbered += 1
            seg, number = tag, attributes.get("id") or f"#{numbered}"
            if tag[3].endswith("/"):
                yield Segment(reader, document, number, "")
                seg = None
        elif kind == "seg":
            if seg is None:
                raise UserError(f"{name}:{_line(text, tag)}: </seg> without <seg>; correct the file")
            yield Segment(reader, document, number, _plain_text(text[seg.end() : tag.start()]))
            seg = None
        elif kind == "doc" and not closing:
            reader = " ".join((set_name, attributes.get("sysid", ""))).strip()
            documents[reader] += 1
            document, numbered = attributes.get("docid") or f"#{documents[reader]}", 0
        elif kind != "doc" and not closing:
            open_sets.append((kind, tag))
            if kind != "mteval":
                sets += 1
                reader = set_name = f"{kind} {sets}"
        elif kind != "doc" and open_sets:
            open_sets.pop()
    unclosed = (("seg", seg) if seg is not None else None) or (open_sets[-1] if open_sets else None)
    if unclosed:
        kind, tag = unclosed
        raise UserError(f"{name}:{_line(text, tag)}: <{kind}> without </{kind}>; the file is truncated or damaged")


def _attributes(text: str) -> dict[str, str]:
    return {match[1].lower(): match[2] or match[3] or match[4] or "" for match in _ATTRIBUTE.finditer(text)}


def _line(text: str, match: re.Match) -> int:
    return 1 + text.count("\n", 0, match.start())


def _plain_text(text: str) -> str:
    """A segment's text on one line, with entities decoded."""
    text = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
    return re.sub(r"(?<![ \t])[ \t]*[\r\n][ \t\r\n]*", " ", text).strip(" \t\r\n")
