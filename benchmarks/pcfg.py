"""A probabilistic context-free grammar from trees, with nltk, and the likeliest tree of a sentence under it.

The grammar is what nltk's documentation shows: unary chains collapsed, Chomsky normal form with one remembered sibling,
relative frequencies. nltk's own parser takes minutes for 15 words, so the likeliest tree is found here by CKY over the
same grammar; a test compares the two.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import nltk
import numpy as np

SUFFIXES = ("s", "ed", "ing", "ion", "er", "ly", "al", "ic", "ous")
START = nltk.Nonterminal("ROOT")


class Pcfg:
    """The grammar of some trees. Words seen once stand for unknown ones, by their shape and suffix."""

    def __init__(self, trees: Iterable[nltk.Tree]):
        trees = list(trees)
        counts = Counter(word for tree in trees for word in tree.leaves())
        self.known = frozenset(word for word, count in counts.items() if count > 1)
        self.grammar = nltk.induce_pcfg(START, [rule for tree in trees for rule in self._binary(tree).productions()])
        """The rules with their probabilities: A -> B C and A -> word."""
        self._symbols = sorted({rule.lhs() for rule in self.grammar.productions()}, key=str)
        number = {symbol: i for i, symbol in enumerate(self._symbols)}
        self._start = number[START]
        self._lexicon: dict[str, list[tuple[int, float]]] = defaultdict(list)
        rules, roots = [], []
        for rule in self.grammar.productions():
            score, right = math.log(rule.prob()), rule.rhs()
            if rule.is_lexical():
                self._lexicon[right[0]].append((number[rule.lhs()], score))
            elif len(right) == 1:  # of the root alone
                roots.append((number[right[0]], score))
            else:
                rules.append((number[rule.lhs()], *(number[one] for one in right), score))
        rules.sort()
        self._left, self._first, self._second = (np.array([rule[i] for rule in rules], np.int32) for i in range(3))
        self._scores = np.array([rule[3] for rule in rules])
        self._roots = roots
        # Rules of one symbol are neighbours, so the best of each is a maximum over a part of an array.
        self._parents, self._begins = np.unique(self._left, return_index=True)

    def _binary(self, tree: nltk.Tree) -> nltk.Tree:
        tree = tree.copy(deep=True)
        for place in tree.treepositions("leaves"):
            tree[place] = self.word(tree[place])
        tree.collapse_unary(collapsePOS=True, collapseRoot=True)
        tree.chomsky_normal_form(horzMarkov=1)
        return nltk.Tree(str(START), [tree])

    def word(self, word: str) -> str:
        """The word, or the class of an unknown one."""
        if word in self.known:
            return word
        shape = ("C" if word[0].isupper() else "c") + ("D" if any(map(str.isdigit, word)) else "") + "-" * ("-" in word)
        return f"<{shape}{next((suffix for suffix in SUFFIXES if word.endswith(suffix)), '')}>"

    def parse(self, words: Sequence[str]) -> nltk.Tree | None:
        """The likeliest tree with these words; None if the grammar has none."""
        count = len(words)
        best = np.full((count, count + 1, len(self._symbols)), -np.inf)
        back: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        for i, word in enumerate(words):
            for symbol, score in self._lexicon.get(self.word(word), ()):
                best[i, i + 1, symbol] = score
        for length in range(2, count + 1):
            for i in range(count - length + 1):
                k = i + length
                splits = range(i + 1, k)
                scores = np.stack([best[i, j, self._first] + best[j, k, self._second] for j in splits]) + self._scores
                split, highest = scores.argmax(0), scores.max(0)
                best[i, k, self._parents] = np.maximum.reduceat(highest, self._begins)
                back[i, k] = split, highest
        at, score = max(((root, best[0, count, root] + score) for root, score in self._roots), key=lambda one: one[1])
        if not math.isfinite(score):
            return None
        tree = nltk.Tree(str(START), [self._tree(at, 0, count, words, best, back)])
        tree.un_chomsky_normal_form()
        return tree[0]

    def _tree(self, symbol: int, i: int, k: int, words: Sequence[str], best: Any, back: Any) -> nltk.Tree:
        if k == i + 1:
            return nltk.Tree(str(self._symbols[symbol]), [words[i]])
        split, highest = back[i, k]
        rules = np.flatnonzero(self._left == symbol)
        rule = rules[highest[rules].argmax()]
        j = i + 1 + int(split[rule])
        parts = (self._first[rule], i, j), (self._second[rule], j, k)
        return nltk.Tree(str(self._symbols[symbol]), [self._tree(*part, words, best, back) for part in parts])
