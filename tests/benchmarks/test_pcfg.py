"""The peer of the parser: a PCFG of nltk's, and the likeliest trees under it."""

import sys
from pathlib import Path

import pytest

nltk = pytest.importorskip("nltk")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from pcfg import START, Pcfg  # noqa: E402

TREES = [
    "(S (NP (DT the) (NN cat)) (VP (VBD saw) (NP (DT the) (NN dog))) (. .))",
    "(S (NP (DT the) (NN dog)) (VP (VBD saw) (NP (NP (DT the) (NN cat)) (PP (IN in) (NP (DT the) (NN park))))) (. .))",
    "(S (NP (DT the) (NN man)) (VP (VBD saw) (NP (DT the) (NN cat)) (PP (IN in) (NP (DT the) (NN park)))) (. .))",
    "(S (NP (NP (DT the) (NN man)) (PP (IN in) (NP (DT the) (NN park)))) (VP (VBD saw) (NP (NN dogs))) (. .))",
    "(S (NP (DT the) (NN wolf)) (VP (VBD saw) (NP (NN dogs))) (. .))",
]


def test_the_likeliest_tree_is_that_of_nltk() -> None:
    grammar = Pcfg(map(nltk.Tree.fromstring, TREES))
    theirs = nltk.ViterbiParser(grammar.grammar)
    for text in (
        "the cat saw the dog in the park .",
        "the man in the park saw dogs .",
        "the man saw the zebra .",
        "the zebra saw dogs .",
    ):
        words = text.split()
        ours = grammar.parse(words)
        assert ours.leaves() == words
        best = next(theirs.parse([grammar.word(word) for word in words]))
        best.un_chomsky_normal_form()
        for place, word in zip(best.treepositions("leaves"), words, strict=True):
            best[place] = word
        assert nltk.Tree.fromstring(best[0].pformat().split(" (p=")[0]) == ours
    assert str(grammar.grammar.start()) == str(START)
    assert grammar.parse(["the", "the"]) is None
