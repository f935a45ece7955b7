"""Split raw English text into words as the Penn Treebank does, by simple rules.

The rules are a selection of those of Robert MacIntyre's script tokenizer.sed: quotes, punctuation, brackets,
contractions. Abbreviations keep their full stop only within a sentence.
"""

from __future__ import annotations

import re

_RULES = [
    (re.compile(rule), by)
    for rule, by in (
        (r"^[\"“]", "`` "),
        (r"(?<=[\s(\[{<])[\"“]", "`` "),
        # The full stop of the sentence, before what closes behind it is split off.
        (r"(?<![.\s])\.([\]\)}>\"'”’]*)\s*$", r" . \1"),
        (r"[\"”]", " '' "),
        (r"\.\.\.|…", " ... "),
        (r"([;@#$%&?!()\[\]{}<>])", r" \1 "),
        (r"([,:])(?![0-9])", r" \1 "),
        (r"--+|[–—]", " -- "),
        (r"‘", " ` "),
        (r"((?<=\w)['’]|(?<=\s)’)(?=\s|$)", " ' "),
        (r"(?i)(?<=\w)(?:'|’)(s|m|d|ll|re|ve)\b", r" '\1"),
        (r"(?i)(?<=\w)n(?:'|’)t\b", " n't"),
        (r"(?i)\b(can)(not)\b", r"\1 \2"),
        (r"(?i)\b(gon|wan)(na)\b", r"\1 \2"),
    )
]


def words(text: str) -> list[str]:
    """The words of a sentence. Quotes are as in the treebank, `` and ''; brackets stay as they are."""
    for rule, by in _RULES:
        text = rule.sub(by, text)
    return text.split()
