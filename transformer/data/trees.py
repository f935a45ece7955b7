"""Read constituency trees in brackets, as in the Penn Treebank: (S (NP (DT the) (NN cat)) (VP (VBZ sleeps)))."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from transformer.config import UserError, shown
from transformer.data.text import read_lines

_TOKEN = re.compile(r"[()]|[^\s()]+")
_TRACE = "-NONE-"  # the tag of what stands for no word
_BRACKETS = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}"}
TOP = "TOP"
"""Label of a constituent that is put around a tree that needs one."""


class Tree(NamedTuple):
    """A constituent with its children, or a word with its tag."""

    label: str
    """The constituent's label, or the word's tag; "" for a bracket without a label, which some treebanks put around a
    tree."""
    children: list[Tree]
    word: str | None = None
    """None for a constituent."""

    def words(self) -> Iterator[Tree]:
        """The words of the tree, from left to right."""
        return (tree for tree, _, _ in self.spans() if tree.word is not None)

    def __str__(self) -> str:
        """The tree in brackets, on one line."""
        parts: list[str] = []
        waiting: list[Tree | None] = [self]
        while waiting:
            tree = waiting.pop()
            if tree is None:
                parts.append(")")
            elif tree.word is not None:
                parts.append(f" ({tree.label} {tree.word})")
            else:
                parts.append(f" ({tree.label}")
                waiting += [None, *reversed(tree.children)]
        return "".join(parts)[1:]

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

    Raises `UserError` for brackets that do not match or hold a label alone, and for words without a tag.
    """
    trees: list[Tree] = []
    opened: list[tuple[str, list[Tree], str | None]] = []
    tokens = _TOKEN.findall(text)
    for i, token in enumerate(tokens):
        if token == "(":
            if opened and opened[-1][2] is not None:
                raise _untagged(where, opened[-1][2])
            opened.append(("", [], None))
        elif token == ")":
            if not opened:
                raise UserError(f"{where}: a closing bracket too many, behind {' '.join(tokens[max(0, i - 5) : i])!r}")
            label, children, word = opened.pop()
            if label and not children and word is None:
                raise UserError(f"{where}: ({label}) holds neither a word nor a constituent")
            (opened[-1][1] if opened else trees).append(Tree(label, children, word))
        elif not opened:
            raise UserError(
                f"{where}: {shown(token)} stands outside of all brackets; each word needs its tag: (NN cat)"
            )
        else:
            label, children, word = opened[-1]
            if tokens[i - 1] == "(":
                opened[-1] = (token, children, word)
            elif children or word is not None:
                raise _untagged(where, token)
            else:
                opened[-1] = (label, children, token)
    if opened:
        raise UserError(f"{where}: {len(opened)} closing brackets are missing")
    return trees


def _untagged(where: str, word: str) -> UserError:
    return UserError(f"{where}: the word {shown(word)} has no tag; each word needs its own: (NN cat)")


class Source(NamedTuple):
    """A tree of a file."""

    tree: Tree
    line: int
    """Number of its first line, from 1."""


class Trees(NamedTuple):
    """The trees of files."""

    found: list[Source]
    unusable: list[str]
    """For each tree that can't be used: file, line and reason."""


def read_trees(path: str) -> Trees:
    """The trees of a file, one after the other; a tree may take several lines.

    Trees whose brackets match but that can't be used, such as one with a word without tag, are in `unusable`. Raises
    `UserError`, with the line, where brackets do not match: nobody knows where the next tree begins.
    """
    found: list[Source] = []
    unusable: list[str] = []
    waiting: list[str] = []
    depth = begin = 0
    for number, line in enumerate(read_lines(path), 1):
        # A byte order mark before a line is that of a file that was joined to others.
        for part in re.findall(r"[()]|[^()]+", line.removeprefix("\ufeff")):
            if not depth and part.isspace():
                continue
            if not waiting:
                begin = number
            waiting.append(part)
            depth += (part == "(") - (part == ")")
            if depth < 0:
                raise UserError(f"{path}:{number}: a closing bracket too many")
            if not depth and part != ")":
                parse("".join(waiting), f"{path}:{number}")  # raises
            if not depth:
                _add("".join(waiting), path, begin, found, unusable)
                waiting = []
        if waiting:
            waiting.append(" ")
    if waiting:
        parse("".join(waiting), f"{path}:{begin}")  # raises
    return Trees(found, unusable)


def _add(text: str, path: str, line: int, found: list[Source], unusable: list[str]) -> None:
    """Append the tree in a text whose brackets match to one of the two lists."""
    try:
        (tree,) = parse(text, f"{path}:{line}")
    except UserError as error:
        unusable.append(str(error))
        return
    tree = cleaned(tree)
    if tree is None:
        unusable.append(f"{path}:{line}: the tree holds no word")
    elif wrong := next((node for node in tree.words() if not node.label), None):
        unusable.append(str(_untagged(f"{path}:{line}", wrong.word)))
    else:
        found.append(Source(tree, line))


def cleaned(tree: Tree) -> Tree | None:
    """The tree as parsers learn it: without traces and what holds nothing else, function tags and indices.

    A bracket without a label is left out. Where a tree then is a word alone, or several trees, `TOP` is put around it.
    None if no word is left.
    """
    done: list[list[Tree]] = [[]]
    waiting: list[tuple[Tree, bool]] = [(tree, False)]
    while waiting:
        node, seen = waiting.pop()
        if node.word is not None:
            if node.label != _TRACE:
                done[-1].append(node)
        elif seen:
            children, label = done.pop(), plain(node.label)
            done[-1] += [Tree(label, children)] if label and children else children
        else:
            done.append([])
            waiting.append((node, True))
            waiting += [(child, False) for child in reversed(node.children)]
    trees = done[0]
    whole = len(trees) == 1 and trees[0].word is None
    return trees[0] if whole else Tree(TOP, trees) if trees else None


def plain(label: str) -> str:
    """A label without function tags and indices: NP for NP-SBJ-1, NP=2 and NP|S; but -NONE- and -LRB- as they are."""
    return label if label.startswith("-") else label[:1] + re.split("[-=|]", label[1:])[0]


def escaped(word: str) -> str:
    """A word as a treebank writes it: -LRB- for an opening bracket, f-LRB-x-RRB- for f(x)."""
    for name, bracket in (("-LRB-", "("), ("-RRB-", ")")):
        word = word.replace(bracket, name)
    return word


def spoken(words: Sequence[str]) -> list[str]:
    """Words as text has them: ( for -LRB-."""
    return [_BRACKETS.get(word, word) for word in words]
