"""Draw constituency trees as an SVG."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from transformer.data.trees import Tree, spoken

_NOT_IN_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
SIZE, WIDTH = 14, 8.4  # of a monospaced font, in pixels
ROW, GAP, MARGIN = 44, 14, 20  # pixels between two levels, between two words, and around


class _Node(NamedTuple):
    """A label, a tag or a word: where it stands, and the nodes below it."""

    text: str
    kind: str
    x: float
    """Middle of the text."""
    height: int
    """Levels between it and the words."""
    below: tuple[_Node, ...]


def svg(trees: Sequence[Tree]) -> str:
    """The trees, one below the other. Words stand on one line; each constituent stands over the middle of its
    children."""
    body: list[str] = []
    top = width = 0.0
    for tree in trees:
        root, right = _placed(tree)
        width = max(width, right)
        body += _drawn(root, top + MARGIN + SIZE + root.height * ROW)
        top += 2 * MARGIN + SIZE + root.height * ROW
    style = (
        f"text{{font:{SIZE}px monospace;text-anchor:middle;fill:#222}}.label{{font-weight:bold;fill:#1a5fb4}}"
        ".tag{fill:#26734d}line{stroke:#999}"
    )
    size = f'viewBox="0 0 {width + 2 * MARGIN:.0f} {top:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} width="{width + 2 * MARGIN:.0f}" height="{top:.0f}">'
    background = '<rect width="100%" height="100%" fill="white"/>'
    return "\n".join([head, f"<style>{style}</style>", background, *body, "</svg>", ""])


def _placed(tree: Tree) -> tuple[_Node, float]:
    """The nodes of a tree, and the width of its words."""
    done: list[list[_Node]] = [[]]
    # With each node: the most letters of the labels above it that stand over it alone.
    waiting: list[tuple[Tree, int, bool]] = [(tree, 0, False)]
    right = 0.0
    while waiting:
        node, above, seen = waiting.pop()
        if node.word is not None:
            (word,) = spoken([node.word])
            needed = WIDTH * max(len(word), len(node.label), above) + GAP
            below = _Node(word, "word", MARGIN + right + needed / 2, 0, ())
            done[-1].append(_Node(node.label, "tag", below.x, 1, (below,)))
            right += needed
        elif seen:
            below = tuple(done.pop())
            middle = (below[0].x + below[-1].x) / 2
            done[-1].append(_Node(node.label, "label", middle, 1 + max(one.height for one in below), below))
        else:
            done.append([])
            waiting.append((node, 0, True))
            above = max(above, len(node.label)) if len(node.children) == 1 else 0
            waiting += [(child, above, False) for child in reversed(node.children)]
    return done[0][0], right


def _drawn(root: _Node, bottom: float) -> Iterator[str]:
    """The elements of a tree whose words stand at the height `bottom`."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        y = bottom - node.height * ROW
        for child in node.below:
            end = bottom - child.height * ROW - SIZE
            yield f'<line x1="{node.x:.1f}" y1="{y + 4:.1f}" x2="{child.x:.1f}" y2="{end:.1f}"/>'
        yield f'<text class="{node.kind}" x="{node.x:.1f}" y="{y:.1f}">{_written(node.text)}</text>'
        waiting += node.below


def _written(text: str) -> str:
    """A text in XML. Characters that XML cannot hold, such as control characters, become U+FFFD."""
    return escape(_NOT_IN_XML.sub("\ufffd", text))
