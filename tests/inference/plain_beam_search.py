"""Beam search once more, one sentence at a time, over Python lists."""

import numpy as np


def normalization(length, alpha, form):
    """What a log-probability is divided by: Wu et al. 2016, eq. 14, or fairseq's, or nothing."""
    return {"paper": ((5 + length) / 6) ** alpha, "fairseq": length**alpha, "none": 1.0}[form]


def plain_beam_search(log_probs, limit, beam_size, eos, alpha, form):
    """[(score, pieces)], best first, where `log_probs(prefix)` gives the following piece's, as an array.

    Of all continuations the best 2 * beam_size are looked at: those that end are done, of the others the best
    beam_size go on. After `limit` pieces only an end is possible.
    """
    live, done = [(0.0, ())], []
    for length in range(1, limit + 1):
        candidates = []
        for total, prefix in live:
            for piece, log_prob in enumerate(log_probs(prefix)):
                if log_prob > -np.inf and (length < limit or piece == eos):
                    candidates.append((total + log_prob, (*prefix, piece)))
        candidates = sorted(candidates, reverse=True)[: 2 * beam_size]
        done += [(total / normalization(length, alpha, form), p) for total, p in candidates if p[-1] == eos]
        live = [(total, p) for total, p in candidates if p[-1] != eos][:beam_size]
    return sorted(done, reverse=True)[:beam_size]
