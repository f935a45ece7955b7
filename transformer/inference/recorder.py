"""A search whose steps are recorded: every hypothesis that it considered, its score, and where it fell out.

The steps are those of the compiled search, run one by one: `observe` calls `beam_search.advance` as `programs.proceed`
does. So outputs and scores are the same.

Shapes: B sentences, M beams, C candidates, K alternatives, V vocabulary; X = B * M rows.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import NamedSharding

from transformer.config import UserError, shown
from transformer.inference.beam_search import Beams, Hypotheses, advance, candidates
from transformer.inference.context import Context
from transformer.inference.engine import finished, once, stages
from transformer.inference.programs import Strategy, divides, hooks, next_log_probs, on_each_device, slots_used
from transformer.model import Model, Params

ROOT = -1
"""The parent of first pieces."""


@dataclass
class Node:
    """A hypothesis: the hypothesis `parent` and one piece."""

    parent: int
    """The index of the parent among the nodes; `ROOT` of a first piece."""
    step: int
    """The number of pieces before this one."""
    piece: int
    log_prob: float
    """The log-probability (nats) of the piece, 0 where the search leaves no choice, such as after a stop string."""
    total: float
    """The log-probability of the hypothesis."""
    ended: bool
    """Whether it is a complete output."""
    score: float | None = None
    """The score that complete outputs are ranked by; None of others."""
    out: int | None = None
    """The step at which it fell out of the search: its own, if it was only considered; else a later one, at which
    none of its continuations was kept. None if it did not fall out."""


class Alternative(NamedTuple):
    """A piece that could come next."""

    piece: int
    log_prob: float
    """Under the model, whatever the constraints and the forced prefix."""


@dataclass
class Recorded:
    """The record of the search for one sentence."""

    nodes: list[Node] = field(default_factory=list)
    """Parents before children."""
    alternatives: dict[int, list[Alternative]] = field(default_factory=dict)
    """The likeliest pieces after each node that was continued, and after `ROOT`; best first."""
    hypotheses: Hypotheses | None = None
    """What the search returns; None if it was stopped before its end."""
    paths: list[list[int]] = field(default_factory=list)
    """The nodes of each hypothesis, best first, with that of its end."""


class _Seen(NamedTuple):
    """What one step has considered."""

    totals_BC: Array
    parents_BC: Array
    pieces_BC: Array
    ended_BC: Array
    scores_BC: Array
    kept_BM: Array
    """The beam that each live hypothesis continues."""
    likely_BMK: Array
    """The likeliest pieces after each hypothesis, and their log-probabilities."""
    likelihoods_BMK: Array


@partial(jax.jit, static_argnames=("models", "over", "top"))
def observe(
    params: tuple[Params, ...],
    context: Context,
    beams: Beams,
    strategy: Strategy,
    *,
    models: tuple[Model, ...],
    over: NamedSharding | None = None,
    top: int,
) -> tuple[Beams, Array, _Seen]:
    """One step of `programs.proceed`, and what it has considered. `top`: the number K of alternatives."""
    over = over if divides(over, len(beams.limit_B)) else None
    step = next_log_probs(models, params, context, strategy, over)
    used, options, caught = hooks(strategy), strategy.options, {}

    def stepped(tokens_X: Array, past: Any, at: Array) -> tuple[Array, Any]:
        caught["raw"], past = step(tokens_X, past, at)
        return caught["raw"], past

    def reordered(past: Any, parents_BM: Array) -> Any:
        caught["kept"] = parents_BM
        return used["reorder"](past, parents_BM)

    by_rows = partial(on_each_device, over=over)
    after = advance(stepped, beams, options, by_rows=by_rows, **{**used, "reorder": reordered})
    # XLA computes the candidates, which `advance` has computed too, only once.
    raw_BMV = caught["raw"].reshape(*beams.log_probs_BM.shape, -1)
    found = candidates(raw_BMV, replace(beams, cache=()), options, used["adjust"], used["choose"])
    likelihoods_BMK, likely_BMK = jax.lax.top_k(raw_BMV, min(top, raw_BMV.shape[2]))
    scores_BC = options.score(found[0], beams.at + 1)
    return after, slots_used(after), _Seen(*found, scores_BC, caught["kept"], likely_BMK, likelihoods_BMK)


def record(
    models: tuple[Model, ...],
    params: tuple[Params, ...],
    source: Any,
    limit_B: Array,
    strategy: Strategy,
    given: Any = (),
    stop: threading.Event | None = None,
    window: int | None = None,
    *,
    top: int = 8,
) -> dict[int, Recorded]:
    """`engine.decode` of a batch, recorded: a record for each row that is not empty.

    `top`: the number of alternatives that are kept after each hypothesis. Once `stop` is set, it ends after the present
    step. Raises `UserError` for another `stop`.
    """
    if stop is not None and not isinstance(stop, threading.Event):
        raise UserError(f"{shown(stop)} can't end a search; give a threading.Event")
    records = {int(row): _Recorder() for row in np.flatnonzero(np.asarray(limit_B) > 0)}
    seen: list[_Seen] = []

    def watch(
        params: Any, context: Any, beams: Any, strategy: Any, few: int, until: int, **static: Any
    ) -> tuple[Beams, Array]:
        beams, used, one = once(observe, params, context, beams, strategy, top=top, **static)
        seen.append(one)
        return beams, used

    arguments = (models, params, source, limit_B, strategy, given, stop, window)
    for at, (input_row, beams) in enumerate(stages(*arguments, most=1, watch=watch)):
        one = jax.tree.map(np.asarray, seen.pop())
        live_BML, log_probs_BM = np.asarray(beams.tokens_BML), np.asarray(beams.log_probs_BM)
        for row in np.flatnonzero(input_row >= 0):
            of_row = _Seen(*(x[row] for x in one))
            records[int(input_row[row])].add(at, of_row, live_BML[row, :, at], log_probs_BM[row])
        for row, hypotheses in finished(input_row, beams, strategy.options):
            records[row].finish(hypotheses)
    return {row: recorder.record for row, recorder in records.items()}


class _Recorder:
    """Makes the record of one sentence, step by step."""

    def __init__(self) -> None:
        self.record = Recorded()
        self._live: list[int | None] = [ROOT]  # the node of each beam
        self._ids: dict[tuple[int, int], int] = {}  # (parent, piece) -> node

    def add(self, step: int, seen: _Seen, pieces_M: np.ndarray, totals_M: np.ndarray) -> None:
        """Add what a step has considered. `pieces_M`, `totals_M`: the last pieces of the hypotheses that are live after
        it, and their log-probabilities."""
        before, nodes = self._live, self.record.nodes
        start = len(nodes)
        for beam, node in enumerate(before):
            if node is not None:
                pairs = zip(seen.likely_BMK[beam].tolist(), seen.likelihoods_BMK[beam].tolist(), strict=True)
                self.record.alternatives[node] = [Alternative(*pair) for pair in pairs if np.isfinite(pair[1])]
        considered = (seen.totals_BC, seen.parents_BC, seen.pieces_BC, seen.ended_BC, seen.scores_BC)
        for total, beam, piece, ended, score in zip(*(x.tolist() for x in considered), strict=True):
            if np.isfinite(total) and before[beam] is not None:
                self._node(before[beam], step, piece, total, score if ended else None)
        self._live = [
            self._ids[before[beam], piece] if np.isfinite(total) else None
            for beam, piece, total in zip(seen.kept_BM.tolist(), pieces_M.tolist(), totals_M.tolist(), strict=True)
        ]
        # Without a continuation that is live or complete, a hypothesis has fallen out.
        alive, fresh = set(self._live), range(start, len(nodes))
        for i in fresh:
            nodes[i].out = None if i in alive or nodes[i].ended else step
        stays = {nodes[i].parent for i in fresh if nodes[i].out is None}
        for node in {node for node in before if node is not None and node != ROOT} - stays:
            nodes[node].out = step

    def _node(self, parent: int, step: int, piece: int, total: float, score: float | None) -> None:
        """Add a node, unless it is there: samples may be the same."""
        if (parent, piece) in self._ids:
            return
        nodes = self.record.nodes
        before = 0.0 if parent == ROOT else nodes[parent].total
        self._ids[parent, piece] = len(nodes)
        nodes.append(Node(parent, step, piece, total - before, total, score is not None, score))

    def finish(self, hypotheses: Hypotheses) -> None:
        """Add what the search returns."""
        self.record.hypotheses = hypotheses
        for tokens_L, length in zip(hypotheses.tokens_BML, hypotheses.lengths_BM.tolist(), strict=True):
            path, node = [], ROOT
            for piece in tokens_L[:length].tolist():
                node = self._ids[node, piece]
                path.append(node)
            if path:
                self.record.paths.append(path)
