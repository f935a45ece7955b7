"""SGML sets of WMT, NIST and IWSLT: `<srcset>`, `<refset>` or `<tstset>` with documents of segments."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from transformer.config import UserError

_SETS = ("srcset", "refset", "tstset")
_BEFORE = rb"\s*(?:<\?[^<>]*\?>\s*|<!--(?:(?!-->).){0,2000}-->\s*|<!doctype[^<>]*>\s*)*"
_OPENING = re.compile(_BEFORE + rb"<([a-z]\w*)", re.I | re.S)
_BEGUN = re.compile(_BEFORE + rb"(?:<[a-z]*|<[?!][^<>]*|<!--(?:(?!-->).){0,2000})?$", re.I | re.S)
_TAG = re.compile(r"<!--|-->|<(/?)(srcset|refset|tstset|mteval|doc|seg)\b([^<>]*)>", re.I)
_ATTRIBUTE = re.compile(r"""(?<![\w:.-])([\w:.-]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'/]+))""")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]*);")


class Segment(NamedTuple):
    """One segment of a set."""

    reader: str
    """Its set, and whose translation it is there (sysid), such as "refset 1 ref"."""
    document: str
    """Its docid; where it has none, #1 for the first document."""
    number: str
    """Its id within the document."""
    text: str
    """On one line."""

    @property
    def place(self) -> str:
        """Its document and its number, which its translation has, too."""
        return f"document {self.document}, segment {self.number}"


def root(head: bytes) -> str:
    """Name of the first element of a file with these first bytes, in small letters; "" if it begins with none."""
    found = _OPENING.match(head.removeprefix(b"\xef\xbb\xbf"))
    return found[1].decode().lower() if found else ""


def undecided(head: bytes) -> bool:
    """Whether more bytes may show what the first element is, as markup has begun."""
    head = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return head.startswith(b"<") and _BEGUN.match(head) is not None


def is_set(head: bytes) -> bool:
    """Whether a file with these first bytes is such a set."""
    first = root(head)
    return first in (*_SETS, "mteval") or (first == "doc" and re.search(rb"<seg\s", head, re.I) is not None)


def segments(text: str, name: str) -> list[Segment]:
    """All segments of a file, in their order.

    `name` names the file in errors. Raises `UserError` for a file that breaks off, has no segments, or holds several
    texts of the same segments, such as two references.
    """
    found = list(_segments(text, name))
    if not found:
        raise UserError(f"{name}: no <seg> in it; an SGML set holds <seg id=...>text</seg>")
    readers = {segment.reader: {} for segment in found}
    texts = Counter(place for _, place in {(segment.reader, segment.place) for segment in found})
    if max(texts.values()) > 1:
        raise UserError(
            f"{name}: holds {len(readers)} texts of the same segments ({', '.join(readers)}); write each to a file of "
            "its own"
        )
    return found


def compare(sources: list[Segment], targets: list[Segment], source: str, target: str) -> None:
    """Raise `UserError` where the segments of two files are not the same, one by one."""
    for i, (ours, theirs) in enumerate(zip(sources, targets, strict=False), 1):
        if ours.place != theirs.place:
            raise UserError(
                f"{source} and {target}: the segments differ: number {i} is {ours.place} in the one and {theirs.place} "
                "in the other; both must hold the same segments in the same order"
            )


def _segments(text: str, name: str) -> Iterator[Segment]:
    reader = of_set = document = ""
    documents: Counter = Counter()  # how many each reader has
    sets = numbered = 0  # how many sets have begun, and segments of a document
    outer: list[tuple[str, re.Match]] = []  # the sets that are open
    begun: re.Match | None = None  # the <seg> that is open
    number = ""
    comment = False  # whether one is open; inside of a segment it is text
    for tag in _TAG.finditer(text):
        if comment or tag[2] is None:
            comment = begun is None and tag[0] != "-->"
            continue
        closing, kind, attributes = tag[1], tag[2].lower(), _attributes(tag[3])
        if begun is not None and not (closing and kind == "seg"):
            raise UserError(f"{name}:{_line(text, begun)}: <seg> without </seg>; the file breaks off or is damaged")
        if kind == "seg" and not closing:
            numbered += 1
            begun, number = tag, attributes.get("id") or f"#{numbered}"
            if tag[3].endswith("/"):
                yield Segment(reader, document, number, "")
                begun = None
        elif kind == "seg":
            if begun is None:
                raise UserError(f"{name}:{_line(text, tag)}: </seg> without <seg>; correct the file")
            yield Segment(reader, document, number, _plain(text[begun.end() : tag.start()]))
            begun = None
        elif kind == "doc" and not closing:
            reader = " ".join((of_set, attributes.get("sysid", ""))).strip()
            documents[reader] += 1
            document, numbered = attributes.get("docid") or f"#{documents[reader]}", 0
        elif kind != "doc" and not closing:
            outer.append((kind, tag))
            if kind != "mteval":
                sets += 1
                reader = of_set = f"{kind} {sets}"
        elif kind != "doc" and outer:
            outer.pop()
    unclosed = (("seg", begun) if begun is not None else None) or (outer[-1] if outer else None)
    if unclosed:
        kind, tag = unclosed
        raise UserError(f"{name}:{_line(text, tag)}: <{kind}> without </{kind}>; the file breaks off or is damaged")


def _attributes(given: str) -> dict[str, str]:
    return {found[1].lower(): found[2] or found[3] or found[4] or "" for found in _ATTRIBUTE.finditer(given)}


def _line(text: str, found: re.Match) -> int:
    return 1 + text.count("\n", 0, found.start())


def _plain(text: str) -> str:
    """A segment's text on one line, with characters for entities."""
    text = _ENTITY.sub(lambda found: html.unescape(found[0]), text)
    return re.sub(r"(?<![ \t])[ \t]*[\r\n][ \t\r\n]*", " ", text).strip(" \t\r\n")
