"""The default rule that cleans text before SentencePiece cuts it into pieces (`data.normalization = "clean"`).

- Sources: Unicode's compatibility form (NFKC). Each run of white space, and of letters that are blank, becomes one
  space; white space at both ends is removed. Format and control characters, which are invisible, are removed. U+200C,
  U+200D and U+180E stay where a script or an emoji needs them, and so do the tags of a flag.
- Targets: the composed form (NFC) and the same treatment of white space, nothing else. The text that a model learns to
  write is never distorted.
- Prefixes, the texts that translations must begin with: as sources, but characters that the model itself writes stay,
  and so does one space at the end, which marks the end of a word.

U+2581, "▁", is white space everywhere, because SentencePiece uses it for a space.

Training and translation call the same functions. `rows` gives the rule as a table of replacements for SentencePiece. A
table has no context, so it keeps every joiner and every tag. Tests check that both agree on all other text.
"""

from __future__ import annotations

import itertools
import operator
import re
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterator
from typing import Literal

RULE = "transformer.clean.1"
"""Name of the rule inside a SentencePiece model. Raise the number when the rule changes."""

_SHOWS_NOTHING = (
    "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"  # controls; the others are white space
    "\u00ad\u034f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
)
_TAG = "\U000e0001\U000e0020-\U000e007f"
_JOINER = "\u200c\u200d\u180e"
_FORMAT = re.compile(f"[{_SHOWS_NOTHING}]")
# Hangul fillers (NFKC maps them all to these two) and the Braille cell without dots.
_BLANK = re.compile("[\u115f\u1160\u2800]")
# Long runs of characters other than letters, digits, white space and ASCII: these include all combining marks.
_MANY_MARKS = re.compile(r"[^\w\s\x00-\x7f]{64,}")
# A flag such as Scotland's is a black flag, the letters of its name as tags, and a closing tag.
_TAGS = re.compile(f"(\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f)|[{_TAG}]")
_JOINERS = re.compile(f"[{_JOINER}]+")
# Arabic and related scripts, the scripts of India and those derived from them, Mongolian.
_SCRIPTS = re.compile(
    "[\u0600-\u0dff\u0f00-\u109f\u1780-\u18af\u1a20-\u1c4f\ua800-\ua82f\ua840-\ua8ff\ua930-\ua9ff\uaa00-\uaaff\uabc0-\uabff"
    "\ufb50-\ufdff\ufe70-\ufefc\U00010a00-\U00010aff\U00010d00-\U00010d3f\U00010f30-\U00010fdf\U00011000-\U00011fff"
    "\U0001e900-\U0001e95f]"
)
_MONGOLIAN = re.compile("[\u1800-\u18af]")
_PICTURE = re.compile("[\u00a9\u00ae\u2190-\u2bff\u3030\u303d\U0001f000-\U0001faff]")
_PICTURE_ENDS = "\ufe0f\u20e3\U000e007f"


def source(text: str) -> str:
    """Clean a source. Idempotent."""
    if text.isascii() and text.isprintable():
        return spaces(text)
    while (cleaned := _clean_once(text)) != text:
        text = cleaned
    return text


def target(text: str) -> str:
    """Clean a target: compose characters and normalise white space. Idempotent."""
    return spaces(_normalized("NFC", text))


def prefix(text: str, known: Collection[str]) -> str:
    """Clean the prefix of a translation. Characters in `known` stay unchanged."""
    # The "|" at the end protects a space at the end of the prefix, even if characters after the space are removed.
    words = target(f"{text}|")
    rest = "".join({c for c in words[:-1] if c not in known})
    if rest:
        # Clean whole runs, so that neighbours are composed. The "|" protect spaces at the ends of a run.
        runs = re.compile(f"[{re.escape(rest)}]+")
        words = target(runs.sub(lambda run: source(f"|{run[0]}|")[1:-1], words[:-1]) + "|")
    return words[:-1]


def spaces(text: str) -> str:
    """Replace each run of white space of any kind by one space, and strip it at both ends."""
    return " ".join(text.replace("\u2581", " ").split())


def _normalized(form: Literal["NFC", "NFKC"], text: str) -> str:
    """As unicodedata.normalize, but in nearly linear time. The library sorts a run of marks by insertion, in quadratic
    time; so long runs are sorted here first."""
    decomposition = "NFD" if form == "NFC" else "NFKD"

    def in_order(match: re.Match[str]) -> str:
        sort_keys, start = [], 0
        for i, c in enumerate(chars := "".join(unicodedata.normalize(decomposition, c) for c in match[0])):
            combining_class = unicodedata.combining(c)
            start = start if combining_class else i
            sort_keys.append((start, combining_class))
        return "".join(c for _, c in sorted(zip(sort_keys, chars, strict=True), key=operator.itemgetter(0)))

    return unicodedata.normalize(form, _MANY_MARKS.sub(in_order, text))


def _clean_once(text: str) -> str:
    text = _BLANK.sub(" ", _FORMAT.sub("", _normalized("NFKC", text)))
    text = _TAGS.sub(lambda match: match[1] or "", text)
    return spaces(_JOINERS.sub(_needed_joiners, text))


def _needed_joiners(match: re.Match[str]) -> str:
    """From a run of joiners, keep those that the neighbouring characters need, each once."""
    before, after = match.string[max(0, match.start() - 1) : match.start()], match.string[match.end() : match.end() + 1]
    between = bool(_SCRIPTS.match(before) and _SCRIPTS.match(after))
    beside = bool(_SCRIPTS.match(before) or _SCRIPTS.match(after))
    pictures = bool((_PICTURE.match(before) or before in [*_PICTURE_ENDS]) and _PICTURE.match(after))
    mongolian = bool(_MONGOLIAN.match(before) and _MONGOLIAN.match(after))
    stays = {"\u200c": between, "\u200d": beside or pictures, "\u180e": mongolian}
    return "".join(joiner for joiner in dict.fromkeys(match[0]) if stays[joiner])


def rows(rule: Callable[[str], str]) -> Iterator[tuple[str, str]]:
    """Yield `rule`, which is `source` or `target`, as replacements of single characters and of sequences that compose.

    SentencePiece's `remove_extra_whitespaces` handles white space. Its tables can't hold U+0000.
    """
    kept = re.compile(f"[{_JOINER}{_TAG}]")
    for c in map(chr, itertools.chain(range(1, 0xD800), range(0xE000, sys.maxunicode + 1))):
        if unicodedata.category(c) in ("Cn", "Co") or kept.match(c):
            continue
        # The letters around c protect spaces at both ends; no rule changes these letters.
        cleaned = rule(f"a{c}a")[1:-1] if unicodedata.combining(c) == 0 else rule(c)
        if cleaned != c:
            yield c, cleaned
        if unicodedata.normalize("NFC", c) == c:
            yield from ((sequence, cleaned) for sequence in _sequences(c))


def _sequences(c: str) -> Iterator[str]:
    """Yield the sequences of characters whose composed form is c."""
    parts = unicodedata.normalize("NFD", c)
    if parts == c:
        return
    candidates = {parts}
    for marks in itertools.permutations(parts[1:]):
        for i in range(len(marks)):
            candidates.add(unicodedata.normalize("NFC", parts[0] + "".join(marks[:i])) + "".join(marks[i:]))
    yield from sorted(s for s in candidates if s != c and unicodedata.normalize("NFC", s) == c)
