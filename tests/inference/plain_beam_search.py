"""Beam search once more, one sentence at a time, over Python lists."""

import numpy as np


def normalization(length, alpha, form):
    """What a log-probability is divided by: Wu et al. 2016, eq. 14, or fairseq's, or nothing."""
    return {"paper": ((5 + length) / 6) ** alpha, "fairseq": length**alpha, "none": 1.0}[form]


def allowed(pieces, limit, eos, *, min_length=0, banned=(), no_repeat_ngram=0, prefix=()):
    """Whether the last of these pieces may follow the others: at the limit an end and nothing else, before that the
    forced prefix and nothing else, after it whatever no wish forbids."""
    *before, last = pieces
    if len(pieces) == limit:
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
    """[(score, pieces)], best first, where `log_probs(prefix)` gives the following piece's, as an array.

    Of all continuations the best 2 * beam_size are looked at: those that end are done, of the others the best
    beam_size go on; with a beam of 1 the best alone is looked at. After `limit` pieces only an end is possible. The
    `wishes` are those of `allowed`.
    """
    live, done = [(0.0, ())], []
    for length in range(1, limit + 1):
        candidates = []
        for total, prefix in live:
            for piece, log_prob in enumerate(log_probs(prefix)):
                if log_prob > -np.inf and allowed((*prefix, piece), limit, eos, **wishes):
                    candidates.append((total + log_prob, (*prefix, piece)))
        candidates = sorted(candidates, reverse=True)[: 2 * beam_size if beam_size > 1 else 1]
        done += [(total / normalization(length, alpha, form), p) for total, p in candidates if p[-1] == eos]
        live = [(total, p) for total, p in candidates if p[-1] != eos][:beam_size]
    return sorted(done, reverse=True)[:beam_size]
