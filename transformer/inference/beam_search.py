"""Beam search (paper §6.1; Wu et al. 2016 §7) over any step function, independent of the model.

`beam_search` is the complete search. Its parts (`start`, `advance`, `run`, `hypotheses`) are for callers that stop in
between, to remove finished sentences from the batch or to enlarge a cache.

Shapes: B sentences, M beams, L output positions, V vocabulary, C candidates; X = B * M rows, where the beams of a
sentence are adjacent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer.config import UserError, shown
from transformer.inference.search_checks import (
    check_arrays,
    check_capacity,
    check_function,
    check_options,
    checked_choice,
)
from transformer.model.checks import check_flag

NORMALIZATIONS = ("paper", "fairseq", "none")

# (last pieces_X, cache, position) -> log-probabilities_XV of the next piece, cache.
Step = Callable[[Array, Any, Array], tuple[Array, Any]]
# (cache, parents_BM) -> the cache after beam m of sentence b has become a continuation of its beam parents_BM[b, m].
Reorder = Callable[[Any, Array], Any]


class Hypotheses(NamedTuple):
    """The finished hypotheses of each sentence, best first."""

    tokens_BML: Array
    """Pieces without bos, with eos at the end (see `cut` of `beam_search`), padded on the right."""
    lengths_BM: Array
    """Number of pieces, eos included; 0 where fewer than M hypotheses exist."""
    scores_BM: Array
    """Log-probability divided by the length penalty. -inf where fewer than M hypotheses exist; NaN if they are missing
    because log-probabilities were not finite."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["length_penalty"],
    meta_fields=["beam_size", "bos", "eos", "pad", "length_normalization", "n_best", "stop_early", "cut"],
)
@dataclass(frozen=True)
class Options:
    """The options of `beam_search`, which explains them. A pytree whose only leaf is `length_penalty`."""

    beam_size: int
    bos: int
    eos: int
    pad: int = 0
    length_penalty: float | Array = 0.6
    length_normalization: str = "paper"
    n_best: int = 1
    stop_early: bool = True
    cut: bool = False

    def score(self, log_probs: Array, length: Array | int) -> Array:
        """The scores that hypotheses are ranked by."""
        return log_probs / penalty(length, self.length_penalty, self.length_normalization)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Beams:
    """The state of a search."""

    at: Array
    """Number of pieces chosen so far, the same for all sentences."""
    tokens_BML: Array
    """Pieces of the live hypotheses."""
    log_probs_BM: Array
    """Log-probabilities of the live hypotheses, best first; -inf where fewer than M are live."""
    done_tokens_BML: Array
    done_scores_BM: Array
    """Scores of the finished hypotheses, best first."""
    done_lengths_BM: Array
    stopped_B: Array
    broken_B: Array
    """Whether the log-probabilities after some live hypothesis were NaN or +inf."""
    limit_B: Array
    given: Any
    """Further data of each sentence for the hooks: any tree of arrays with B leading rows."""
    cache: Any


# (log_probs_BMV, beams) -> log_probs_BMV, with -inf at pieces that are not allowed, or other changes.
Adjust = Callable[[Array, Beams], Array]
# (log_probs_BMV, beams) -> log-probabilities_BC, parents_BC, pieces_BC of the candidate continuations.
Choose = Callable[[Array, Beams], tuple[Array, Array, Array]]


def penalty(length: Array | int, alpha: float | Array, form: str) -> Array:
    """The length penalty that a log-probability is divided by. The length includes eos.

    'paper': ((5 + length) / 6)^alpha (Wu et al. 2016, eq. 14); 'fairseq': length^alpha; 'none': 1.
    """
    length = jnp.asarray(length, jnp.float32)
    if not isinstance(form, str) or form not in NORMALIZATIONS:
        raise UserError(f"length_normalization = {shown(form)}: must be one of {', '.join(NORMALIZATIONS)}")
    if form == "paper":
        return ((5 + length) / 6) ** alpha
    if form == "fairseq":
        return length**alpha
    return jnp.ones_like(length)


def gather_rows(cache: Any, parents_BM: Array) -> Any:
    """Reorder a cache whose arrays have X leading rows, by gathering rows. Raises `UserError` for other arrays."""
    B, M = parents_BM.shape
    for leaf in jax.tree.leaves(cache) if M > 1 else ():
        if jnp.shape(leaf)[:1] != (B * M,):
            raise UserError(
                f"the cache holds an array of shape {jnp.shape(leaf)}: each needs {B * M} leading rows, a row for each "
                "beam, or give beam_search a `reorder` of your own"
            )
    rows_X = (jnp.arange(B)[:, None] * M + parents_BM).reshape(-1)
    return cache if M == 1 else jax.tree.map(lambda leaf: leaf[rows_X], cache)


def best_candidates(log_probs_BMV: Array, beams: Beams) -> tuple[Array, Array, Array]:
    """The 2 * M most probable continuations of a sentence. With one beam only the most probable: greedy search."""
    B, M, V = log_probs_BMV.shape
    totals_BMV = beams.log_probs_BM[:, :, None] + log_probs_BMV
    if M == 1:
        return _first_best(totals_BMV)
    best_BC, index_BC = jax.lax.top_k(totals_BMV.reshape(B, M * V), min(2 * M, M * V))
    return best_BC, index_BC // V, index_BC % V


def _first_best(totals_B1V: Array) -> tuple[Array, Array, Array]:
    """`best_candidates` of one beam: the first of the most probable pieces. XLA on CPU computes it much sooner than
    `top_k` or `argmax`."""
    best_B1 = jnp.max(totals_B1V, axis=2)
    pieces_V = jnp.arange(totals_B1V.shape[2], dtype=jnp.int32)
    piece_B1 = jnp.min(jnp.where(totals_B1V == best_B1[:, :, None], pieces_V, pieces_V[-1]), axis=2)
    return best_B1, jnp.zeros_like(piece_B1), piece_B1


def start(cache: Any, limit_B: Array, length: int, options: Options, given: Any = ()) -> Beams:
    """The state before the first piece, with room for `length` pieces."""
    B, M = limit_B.shape[0], options.beam_size
    nothing_BML = jnp.full((B, M, length), options.pad, jnp.int32)
    return Beams(
        at=jnp.int32(0),
        tokens_BML=nothing_BML,
        # With explicit types: weak ones would compile the first call of `advance` and the later ones separately.
        log_probs_BM=jnp.tile(jnp.where(jnp.arange(M) == 0, jnp.float32(0), -jnp.inf), (B, 1)),
        done_tokens_BML=nothing_BML,
        done_scores_BM=jnp.full((B, M), -jnp.inf, jnp.float32),
        done_lengths_BM=jnp.zeros((B, M), jnp.int32),
        stopped_B=limit_B <= 0,
        broken_B=jnp.zeros(B, bool),
        limit_B=limit_B,
        given=given,
        cache=cache,
    )


def advance(
    step: Step,
    beams: Beams,
    options: Options,
    *,
    reorder: Reorder = gather_rows,
    adjust: Adjust | None = None,
    choose: Choose = best_candidates,
    by_rows: Callable[[Callable], Callable] = lambda function: function,
) -> Beams:
    """Add one piece to each live hypothesis.

    `by_rows` wraps the function that treats each sentence separately, of arrays with B leading rows and scalars: for
    example, to run it on the devices that hold the rows.
    """
    B, M, _ = beams.tokens_BML.shape
    last_BM = jnp.where(beams.at == 0, options.bos, beams.tokens_BML[:, :, jnp.maximum(beams.at - 1, 0)])
    result = step(last_BM.reshape(-1), beams.cache, beams.at)
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        raise UserError(f"the step gives a {type(result).__name__}: it must give a pair, log-probabilities and cache")
    log_probs_XV, cache = result
    if not hasattr(log_probs_XV, "ndim"):
        raise UserError(f"the step gives a {type(log_probs_XV).__name__}: it must give an array of log-probabilities")
    if log_probs_XV.ndim != 2 or len(log_probs_XV) != B * M or log_probs_XV.shape[1] <= options.eos:
        raise UserError(
            f"the step gives log-probabilities of shape {log_probs_XV.shape}: it must give {B * M} rows, one for each "
            f"hypothesis, with a column for each piece, eos = {options.eos} among them"
        )
    if not jnp.issubdtype(log_probs_XV.dtype, jnp.floating):
        raise UserError(f"the step gives log-probabilities of type {log_probs_XV.dtype}: it must give floats")
    chosen = by_rows(lambda *of_rows: _chosen(*of_rows, options, adjust, choose))
    parents_BM, new = chosen(log_probs_XV.reshape(B, M, -1).astype(jnp.float32), replace(beams, cache=()))
    cache = reorder(cache, parents_BM)
    if _form(cache) != _form(beams.cache):
        raise UserError(
            "step and reorder must give a cache with the structure, the shapes and the types of the one that they get"
        )
    return replace(beams, **new, at=beams.at + 1, cache=cache)


def _form(tree: Any) -> tuple[Any, list[Any]]:
    """Structure, shapes and types of a tree of arrays."""
    leaves, structure = jax.tree.flatten(tree)
    shapes = [(getattr(leaf, "shape", ()), getattr(leaf, "dtype", None) or jnp.result_type(leaf)) for leaf in leaves]
    return structure, shapes


def candidates(
    raw_BMV: Array, beams: Beams, options: Options, adjust: Adjust | None, choose: Choose
) -> tuple[Array, Array, Array, Array]:
    """The continuations that a step considers: their log-probabilities, their parents, their pieces and whether they
    end, each (B, C). `raw_BMV`: the log-probabilities that the step of the model gives."""
    s, o = beams, options
    raw_BMV = jnp.where(raw_BMV < jnp.inf, raw_BMV, -jnp.inf)  # NaN and +inf become -inf
    log_probs_BMV = raw_BMV if adjust is None else adjust(raw_BMV, s)
    if getattr(log_probs_BMV, "shape", None) != raw_BMV.shape:
        raise UserError(f"adjust gives {shown(log_probs_BMV)}: it must give log-probabilities of shape {raw_BMV.shape}")
    must_end_B = s.at + 1 >= s.limit_B
    if not o.cut:  # at its limit a sentence can only end, whatever the constraints demand
        ends_V = jnp.arange(raw_BMV.shape[-1]) == o.eos
        log_probs_BMV = jnp.where(must_end_B[:, None, None], jnp.where(ends_V, raw_BMV, -jnp.inf), log_probs_BMV)
    best_BC, parents_BC, pieces_BC = checked_choice(choose(log_probs_BMV, s), *raw_BMV.shape[:2])
    ended_BC = pieces_BC == o.eos
    if o.cut:
        ended_BC = ended_BC | must_end_B[:, None]
    return best_BC, parents_BC, pieces_BC, ended_BC


@jax.named_scope("choose")
def _chosen(
    raw_BMV: Array, beams: Beams, options: Options, adjust: Adjust | None, choose: Choose
) -> tuple[Array, dict[str, Array]]:
    """The parents of the next live hypotheses, and the new values of the fields of `Beams`."""
    s, o = beams, options
    rows, M = jnp.arange(len(raw_BMV))[:, None], raw_BMV.shape[1]
    # Softmax makes a whole row NaN or none of it, so it is enough to test one column.
    broken_BM = ~(raw_BMV[:, :, o.eos] < jnp.inf) & (s.log_probs_BM > -jnp.inf) & ~s.stopped_B[:, None]
    best_BC, parents_BC, pieces_BC, ended_BC = candidates(raw_BMV, s, o, adjust, choose)
    tokens_BCL = s.tokens_BML[rows, parents_BC].at[:, :, s.at].set(pieces_BC)
    must_end_B = s.at + 1 >= s.limit_B

    # Finished hypotheses: the old ones come first, so that of two equal scores the earlier one ranks higher.
    fresh_BC = jnp.where(ended_BC, o.score(best_BC, s.at + 1), -jnp.inf)
    done_scores, kept = jax.lax.top_k(jnp.concatenate([s.done_scores_BM, fresh_BC], axis=1), M)
    done_tokens = jnp.concatenate([s.done_tokens_BML, tokens_BCL], axis=1)[rows, kept]
    done_lengths = jnp.concatenate([s.done_lengths_BM, jnp.full_like(pieces_BC, s.at + 1)], axis=1)[rows, kept]

    # Live hypotheses: the best M that did not end.
    live_BM, kept = jax.lax.top_k(jnp.where(ended_BC, -jnp.inf, best_BC), M)

    # A stopped sentence keeps its results while the other sentences go on.
    frozen = s.stopped_B[:, None]
    done_scores = jnp.where(frozen, s.done_scores_BM, done_scores)
    # The bound on later scores holds for a search only. Sampled hypotheses continue to their end, however probable.
    if o.stop_early and choose is best_candidates:
        over_B = done_scores[:, o.n_best - 1] >= o.score(live_BM[:, 0], s.limit_B)
    else:
        over_B = jnp.isneginf(live_BM[:, 0])
    return parents_BC[rows, kept], {
        "tokens_BML": tokens_BCL[rows, kept],
        "log_probs_BM": live_BM,
        "done_tokens_BML": jnp.where(frozen[..., None], s.done_tokens_BML, done_tokens),
        "done_scores_BM": done_scores,
        "done_lengths_BM": jnp.where(frozen, s.done_lengths_BM, done_lengths),
        "stopped_B": s.stopped_B | must_end_B | over_B,
        "broken_B": s.broken_B | jnp.any(broken_BM, axis=1),
    }


def run(
    step: Step, beams: Beams, options: Options, *, few: Array | int = 0, until: Array | int | None = None, **hooks: Any
) -> Beams:
    """Advance until at most `few` sentences are unfinished, or until there are `until` pieces (default: L)."""
    until = beams.tokens_BML.shape[2] if until is None else until

    def continues(s: Beams) -> Array:
        return (s.at < until) & (jnp.sum(~s.stopped_B) > few)

    return jax.lax.while_loop(continues, lambda s: advance(step, s, options, **hooks), beams)


def hypotheses(beams: Beams, options: Options) -> Hypotheses:
    """The finished hypotheses of a state, whose arrays may be of JAX or NumPy. NumPy's need no compilation."""
    xp = np if isinstance(beams.done_scores_BM, np.ndarray) else jnp
    exists_BM = xp.isfinite(beams.done_scores_BM)
    scores_BM = xp.where(exists_BM | ~beams.broken_B[:, None], beams.done_scores_BM, xp.nan)
    return Hypotheses(
        xp.where(exists_BM[..., None], beams.done_tokens_BML, options.pad),
        xp.where(exists_BM, beams.done_lengths_BM, 0),
        scores_BM,
    )


def beam_search(
    step: Step,
    cache: Any,
    limit_B: Array,
    *,
    max_length: int,
    beam_size: int,
    bos: int,
    eos: int,
    pad: int = 0,
    length_penalty: float | Array = 0.6,
    length_normalization: str = "paper",
    n_best: int = 1,
    stop_early: bool = True,
    cut: bool = False,
    reorder: Reorder = gather_rows,
    adjust: Adjust | None = None,
    choose: Choose = best_candidates,
    given: Any = (),
) -> Hypotheses:
    """The best hypotheses of B sentences under `step`.

    `step(tokens_X, cache, at) -> log_probs_XV, cache` takes the last piece of each row (bos at first), at position
    `at`, and returns the log-probabilities of the next piece, in nats (at most 0; -inf forbids a piece). `cache` is any
    tree of arrays with X = B * beam_size leading rows, which are moved with the beams; for another cache, pass a
    `reorder`. The hypotheses of sentence b have at most `limit_B[b]` pieces, eos included, and are forced to end there;
    `max_length` is the largest limit. With `cut`, they need not end: at its limit a hypothesis is finished without eos.

    At each position, the search considers the 2 * beam_size best continuations. Those that end are finished; of the
    others, the best beam_size stay live. A beam of 1 considers only the best one: greedy search. `adjust` may change
    or forbid log-probabilities at each position (see `constraints.py`; it finds `given` in the state). `choose` may
    propose other continuations (see `sampling.py`).

    A sentence stops when no live hypothesis can still beat its `n_best`-th finished one, however long it gets: because
    log-probabilities only fall and penalties only rise, its score is at most its present log-probability divided by
    the penalty at the limit. So stopping (`stop_early`) changes none of the `n_best` results. With another `choose`,
    such as sampling, all hypotheses continue until they end.

    Raises `UserError` (a ValueError) for invalid options. The values of `limit_B` and `length_penalty` are not checked
    inside `jax.jit`, where they are unknown.
    """
    for name, function in (("step", step), ("reorder", reorder), ("choose", choose)):
        check_function(name, function)
    if adjust is not None:
        check_function("adjust", adjust)
    check_arrays("cache", cache)
    check_arrays("given", given)
    check_options(limit_B, max_length, beam_size, (bos, eos, pad), length_penalty, n_best)
    check_capacity(cache, max_length)
    penalty(1, 0.0, length_normalization)
    check_flag("stop_early", stop_early)
    check_flag("cut", cut)
    options = Options(beam_size, bos, eos, pad, length_penalty, length_normalization, n_best, stop_early, cut)
    beams = start(cache, limit_B, max_length, options, given)
    return hypotheses(run(step, beams, options, reorder=reorder, adjust=adjust, choose=choose), options)
