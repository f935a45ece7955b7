"""Stop strings: an output ends before the first of them. They are matched on text, also across pieces.

A search follows the automaton of Aho and Corasick 1975 over the bytes that pieces spell. Once a hypothesis holds a stop
string, it can only end, so that a stop string counts in a search as the end of a document does.

Shapes: B sentences, M beams, L output positions, V vocabulary, S states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer.config import UserError

_MOST_BYTES = 1_000  # in all stop strings together: the table has as many columns of V numbers
_ROUND = 16  # numbers of states are rounded up to a multiple, so that few programs serve all stop strings


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stops:
    """The automaton of stop strings over pieces. State 0 has matched nothing; state S - 1 has seen a stop string."""

    following_SV: Array
    """The state after each piece."""

    def found(self, tokens_BML: Array, at: Array) -> Array:
        """(B, M): whether the last of the first `at` pieces completes a stop string.

        Each piece spells a byte at least, so a stop string lies within the last S pieces.
        """
        S, L = len(self.following_SV), tokens_BML.shape[2]

        def follow(j: Array, state_BM: Array) -> Array:
            i = at - min(S, L) + j
            state = jnp.asarray(self.following_SV)[state_BM, tokens_BML[:, :, jnp.maximum(i, 0)]]
            return jnp.where(i >= 0, state, state_BM)

        # Zeros made of the pieces are on the devices of their rows, as a loop inside `jax.shard_map` demands.
        states_BM = jax.lax.fori_loop(0, min(S, L), follow, tokens_BML[:, :, 0] * 0)
        return states_BM == S - 1


def automaton(stops: Sequence[str], spelling: Sequence[bytes]) -> Stops:
    """The automaton for these stop strings. `spelling`: the bytes that each piece spells."""
    patterns = sorted((stop.encode() for stop in stops), key=len)
    if sum(map(len, patterns)) > _MOST_BYTES:
        raise UserError(f"the stop strings have more than {_MOST_BYTES} bytes together; give fewer or shorter ones")
    by_byte = _over_bytes(patterns)
    last = len(by_byte) - 1
    following_SV = np.tile(np.arange(last + 1, dtype=np.int32)[:, None], (1, len(spelling)))
    longest = max(map(len, spelling), default=0)
    for n in range(longest):
        pieces = np.array([i for i, text in enumerate(spelling) if len(text) > n])
        bytes_ = np.array([spelling[i][n] for i in pieces])
        following_SV[:, pieces] = by_byte[following_SV[:, pieces], bytes_]
    return Stops(following_SV)


def _over_bytes(patterns: Sequence[bytes]) -> np.ndarray:
    """The state after each byte: (S, 256). `patterns`: the stop strings, the shortest first."""
    seen, children = -1, [{}]  # of each state: the states that the bytes of longer beginnings lead to
    for pattern in patterns:
        at = 0
        for n, byte in enumerate(pattern, 1):
            if n == len(pattern):
                children[at][byte] = seen
            elif byte not in children[at]:
                children[at][byte] = len(children)
                children.append({})
            if (at := children[at][byte]) == seen:
                break
    last = -(-(len(children) + 1) // _ROUND) * _ROUND - 1
    following = np.zeros((last + 1, 256), np.int32)
    following[last] = last
    states = [(0, 0)]  # and for each the state of the longest end of its text that begins a stop string
    for state, fallback in states:
        following[state] = following[fallback]
        for byte, child in children[state].items():
            if (beyond := int(following[state, byte])) == last:  # a shorter stop string ends here
                continue
            following[state, byte] = last if child == seen else child
            if child != seen:
                states.append((child, beyond))
    return following


def before(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string."""
    found = [i for stop in stops if (i := text.find(stop)) >= 0]
    return text[: min(found)] if found else text


def certain(text: str, stops: Sequence[str]) -> str:
    """The text without the end that may turn out to begin a stop string."""
    longest = max(map(len, stops), default=0)
    for n in range(min(longest - 1, len(text)), 0, -1):
        if any(stop.startswith(text[-n:]) for stop in stops):
            return text[:-n]
    return text
