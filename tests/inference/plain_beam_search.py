"""A plain beam search to compare with: one sentence at a time, over Python lists."""

import numpy as np


def normalization(length, alpha, form):
    """The length penalty that a log-probability is divided by: Wu et al. 2016, eq. 14, or fairseq's, or 1."""
    return {"paper": ((5 + length) / 6) ** alpha, "fairseq": length**alpha, "none": 1.0}[form]


def allowed(pieces, limit, eos, *, min_length=0, banned=(), no_repeat_ngram=0, prefix=(), cut=False):
    """Whether the last of these pieces may follow the others: at the limit only eos, but for `cut`; before it only the
    forced prefix; after the prefix, any piece that no constraint forbids."""
    *before, last = pieces
    if len(pieces) == limit and not cut:
        return last == eos
    if len(pieces) <= len(prefix):
        return last == prefix[len(before)]
    if last == eos and len(before) < min_length:
        return False
    if any(pieces[-len(phrase) :] == tuple(phrase) for phrase in banned):
        return False
    n = no_repeat_ngram
    earlier = [pieces[i : i + n] for i in range(len(pieces) - n)] if n else []
    return pieces[len(pieces) - n :] not in earlier


def plain_beam_search(log_probs, limit, beam_size, eos, alpha, form, **wishes):
    """[(score, pieces)], best first. `log_probs(prefix)` returns the log-probabilities of the next piece, as an array.

    The search considers the best 2 * beam_size continuations: those that end are finished; of the others, the best
    beam_size go on. A beam of 1 considers only the best one. The last of `limit` pieces must be eos; with `cut`,
    hypotheses of this length are finished without it. `wishes`: the constraints of `allowed`.
    """
    live, done = [(0.0, ())], []
    for length in range(1, limit + 1):
        candidates = []
        for total, prefix in live:
            for piece, log_prob in enumerate(log_probs(prefix)):
                if log_prob > -np.inf and allowed((*prefix, piece), limit, eos, **wishes):
                    candidates.append((total + log_prob, (*prefix, piece)))
        candidates = sorted(candidates, reverse=True)[: 2 * beam_size if beam_size > 1 else 1]
        ends = length == limit and wishes.get("cut", False)
        done += [(total / normalization(length, alpha, form), p) for total, p in candidates if ends or p[-1] == eos]
        live = [(total, p) for total, p in candidates if not ends and p[-1] != eos][:beam_size]
    return sorted(done, reverse=True)[:beam_size]
