"""A recorded search as JSON: its tree, and the pieces of each output with their alternatives."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Sequence
from typing import Any

from transformer.inference.recorder import ROOT, Node, Recorded
from transformer.tools.page.fields import NUMBER, NUMBER_OR_NULL, TEXT, WHOLE, Schema, array, obj

TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
_ALTERNATIVE = obj({"piece": TEXT, "text": TEXT_OR_NULL, "probability": NUMBER})
SCHEMA = obj(
    {
        "nodes": array(
            obj(
                {
                    **{"parent": WHOLE, "piece": TEXT, "log_prob": NUMBER, "total": NUMBER},
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


class Spelled:
    """The text that pieces spell, one after the other."""

    def __init__(self, spelling: Sequence[bytes], space: str):
        """`spelling`: the bytes of each piece. `space`: the character that stands for a space in them, or ""."""
        self._spelling, self._space = spelling, space
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._broken = False

    def next(self, piece: int) -> str | None:
        """The characters that become complete with this piece; None if they can't be spelled."""
        try:
            text = self._decoder.decode(self._spelling[piece])
        except UnicodeDecodeError:
            self._broken = True
        return None if self._broken else self._spaced(text)

    def instead(self, piece: int) -> str | None:
        """What `next` would give; None also if a character would stay incomplete."""
        pending = self._decoder.getstate()[0]
        try:
            return None if self._broken else self._spaced((pending + self._spelling[piece]).decode())
        except UnicodeDecodeError:
            return None

    def _spaced(self, text: str) -> str:
        return text.replace(self._space, " ") if self._space else text


def as_json(
    record: Recorded, name: Callable[[int], str], spelled: Callable[[], Spelled], end: int, n_best: int
) -> dict[str, Any]:
    """The fields of `SCHEMA`. `name`: the printable name of a piece. `spelled` begins a text. `end`: the piece that
    ends an output, which has no text and nothing in its place."""
    outputs = []
    for path in record.paths[:n_best]:
        text, pieces = spelled(), []
        for i, node in enumerate(path):
            piece = record.nodes[node].piece
            likely = record.alternatives.get(path[i - 1] if i else ROOT, [])
            alternatives = [
                {
                    "piece": name(one.piece),
                    "text": None if one.piece == end else text.instead(one.piece),
                    "probability": math.exp(one.log_prob),
                }
                for one in likely
            ]
            shown = "" if piece == end else text.next(piece)
            probability = math.exp(min(0.0, record.nodes[node].log_prob))
            pieces.append(
                {"node": node, "piece": name(piece), "text": shown, "probability": probability}
                | {"alternatives": alternatives}
            )
        outputs.append({"score": record.nodes[path[-1]].score, "pieces": pieces})
    return {"nodes": [_node(node, name) for node in record.nodes], "outputs": outputs}


def _node(node: Node, name: Callable[[int], str]) -> dict[str, Any]:
    state = "complete" if node.ended else "considered" if node.out == node.step else "live"
    found = {"parent": node.parent, "piece": name(node.piece), "log_prob": node.log_prob, "total": node.total}
    more = {"score": node.score, "out": node.out}
    return found | {"state": state} | {key: value for key, value in more.items() if value is not None}
