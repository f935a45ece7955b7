"""A recorded search as JSON: its tree, and the pieces of each output with their alternatives."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from transformer.inference.recorder import ROOT, Node, Recorded
from transformer.tools.page.fields import NUMBER, NUMBER_OR_NULL, TEXT, WHOLE, Schema, array, obj

TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
_ALTERNATIVE = obj({"piece": TEXT, "text": TEXT_OR_NULL, "probability": NUMBER})
SCHEMA = obj(
    {
        "nodes": array(
            obj(
                {
                    **{"parent": WHOLE, "piece": TEXT, "text": TEXT_OR_NULL, "log_prob": NUMBER, "total": NUMBER},
                    **{"score": NUMBER, "out": WHOLE},
                    "state": {"enum": ["considered", "live", "complete"]},
                },
                ["score", "out"],
            )
        ),
        "outputs": array(
            obj(
                {
                    "score": NUMBER_OR_NULL,
                    "pieces": array(
                        obj(
                            {
                                **{"node": WHOLE, "piece": TEXT, "text": TEXT_OR_NULL, "probability": NUMBER},
                                "alternatives": array(_ALTERNATIVE),
                            }
                        )
                    ),
                }
            )
        ),
    }
)


class Spelling(NamedTuple):
    """What pieces spell."""

    bytes_of: Sequence[bytes]
    """The bytes of each piece."""
    space: str
    """The character that stands for a space in them, or ""."""

    def after(self, pending: bytes | None, piece: int) -> tuple[str | None, bytes | None]:
        """The characters that become complete with a piece, and the bytes that wait for the next one; None for both if
        they can't be spelled. `pending`: the bytes that wait for this piece."""
        if pending is None:
            return None, None
        spelt = pending + self.bytes_of[piece]
        try:
            text, used = codecs.utf_8_decode(spelt, "strict", False)
        except UnicodeDecodeError:
            return None, None
        return text.replace(self.space, " ") if self.space else text, spelt[used:]

    def whole(self, pending: bytes | None, piece: int) -> str | None:
        """The characters that become complete with a piece; None also if one stays incomplete."""
        text, rest = self.after(pending, piece)
        return None if rest else text


def as_json(record: Recorded, name: Callable[[int], str], spelling: Spelling, end: int, n_best: int) -> dict[str, Any]:
    """The fields of `SCHEMA`. `name`: the printable name of a piece. `end`: the piece that ends an output, which has no
    text and nothing in its place."""
    texts, nodes = {ROOT: ("", b"")}, []  # of each node: what `Spelling.after` gives
    for i, node in enumerate(record.nodes):
        pending = texts[node.parent][1]
        texts[i] = ("", pending) if node.piece == end else spelling.after(pending, node.piece)
        nodes.append(_node(node, name, None if texts[i][1] else texts[i][0]))
    outputs = []
    for path in record.paths[:n_best]:
        pieces = []
        for i, at in enumerate(path):
            node, parent = record.nodes[at], path[i - 1] if i else ROOT
            alternatives = [
                {
                    "piece": name(one.piece),
                    "text": None if one.piece == end else spelling.whole(texts[parent][1], one.piece),
                    "probability": math.exp(one.log_prob),
                }
                for one in record.alternatives.get(parent, [])
            ]
            probability = math.exp(min(0.0, node.log_prob))
            pieces.append(
                {"node": at, "piece": name(node.piece), "text": texts[at][0], "probability": probability}
                | {"alternatives": alternatives}
            )
        outputs.append({"score": record.nodes[path[-1]].score, "pieces": pieces})
    return {"nodes": nodes, "outputs": outputs}


def _node(node: Node, name: Callable[[int], str], text: str | None) -> dict[str, Any]:
    """`text`: of the piece; None if it leaves a character incomplete, or can't be spelled."""
    state = "complete" if node.ended else "considered" if node.out == node.step else "live"
    found = {"parent": node.parent, "piece": name(node.piece), "text": text}
    found |= {"log_prob": node.log_prob, "total": node.total}
    more = {"score": node.score, "out": node.out}
    return found | {"state": state} | {key: value for key, value in more.items() if value is not None}
