"""Read constituency trees in brackets, as in the Penn Treebank: (S (NP (DT the) (NN cat)) (VP (VBZ sleeps)))."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from transformer.config import UserError

_TOKEN = re.compile(r"[()]|[^\s()]+")


class Tree(NamedTuple):
    """A constituent with its children, or a word with its tag."""

    label: str
    """The constituent's label, or the word's tag; "" for a bracket without a label, which some treebanks put around a
    tree."""
    children: list[Tree]
    word: str | None = None
    """None for a constituent."""

    def spans(self) -> Iterator[tuple[Tree, int, int]]:
        """Each constituent and word of the tree, after its children, with the numbers of words before its begin and
        before its end."""
        count, waiting = 0, [(self, 0, False)]
        while waiting:
            tree, begin, seen = waiting.pop()
            if tree.word is not None:
                count += 1
                yield tree, count - 1, count
            elif seen:
                yield tree, begin, count
            else:
                waiting.append((tree, count, True))
                waiting += [(child, -1, False) for child in reversed(tree.children)]


def parse(text: str, where: str) -> list[Tree]:
    """The trees in a text, one after the other. `where` begins an error message: file and line.

    Raises `UserError` for brackets that do not match, and for words without a tag.
    """
    trees: list[Tree] = []
    opened: list[tuple[str, list[Tree], str | None]] = []
    tokens = _TOKEN.findall(text)
    for i, token in enumerate(tokens):
        if token == "(":
            opened.append(("", [], None))
        elif token == ")":
            if not opened:
                raise UserError(f"{where}: a closing bracket too many, behind {' '.join(tokens[max(0, i - 5) : i])!r}")
            label, children, word = opened.pop()
            (opened[-1][1] if opened else trees).append(Tree(label, children, word))
        elif not opened:
            raise UserError(f"{where}: {token!r} stands outside of all brackets; each word needs its tag: (NN cat)")
        else:
            label, children, word = opened[-1]
            if tokens[i - 1] == "(":
                opened[-1] = (token, children, word)
            elif children or word is not None:
                raise UserError(f"{where}: the word {token!r} has no tag; each word needs its own: (NN cat)")
            else:
                opened[-1] = (label, children, token)
    if opened:
        raise UserError(f"{where}: {len(opened)} closing brackets are missing")
    return trees
