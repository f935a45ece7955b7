"""A trained parser beside a PCFG of nltk's: the same short sentences, the same scorer.

    pip install nltk
    python benchmarks/parsing.py runs/parser --train train.mrg --dev dev.mrg --rows results/parsing.jsonl

The grammar comes from the training trees of at most --words words; the sentences are the development sentences of at
most so many words. Ours was trained on trees of all lengths.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rows import Rows
from side_by_side import log

from transformer.command_line import Parser, run
from transformer.data import treebank
from transformer.data.treebank import Sentence
from transformer.data.trees import Tree, parse
from transformer.tasks.evalb import COLLINS, summary
from transformer.tasks.parse_scores import scored


def short(path: str, words: int) -> list[Sentence]:
    """The trees of a file with at most this many words."""
    return [one for one in treebank.read([path]).sentences if len(one.words) <= words]


def pcfg(train: Sequence[Sentence]) -> Callable[[Sequence[Sentence]], list[Tree | None]]:
    """The parser of nltk's grammar."""
    import nltk
    from pcfg import Pcfg

    grammar = Pcfg(nltk.Tree.fromstring(str(one.tree)) for one in train)
    log(f"{len(grammar.grammar.productions()):,} rules from {len(train):,} trees")

    def parsed(sentences: Sequence[Sentence]) -> list[Tree | None]:
        found = [grammar.parse(one.words) for one in sentences]
        return [None if tree is None else parse(tree.pformat(margin=sys.maxsize), "nltk")[0] for tree in found]

    return parsed


def ours(workdir: str, checkpoint: str | None) -> Callable[[Sequence[Sentence]], list[Tree | None]]:
    """The trained parser."""
    from transformer.inference.parser import Parser as TreeParser

    parser = TreeParser.load(workdir, checkpoint)
    return lambda sentences: parser.parse([one.words for one in sentences])


def row(system: str, sentences: Sequence[Sentence], parsed: Callable[..., list[Tree | None]]) -> dict[str, Any]:
    """The figures of a system. Sentences without a tree are skipped by EVALB, so their number stands beside them."""
    begin = time.perf_counter()
    found = parsed(sentences)
    seconds = time.perf_counter() - begin
    figures = summary(scored(sentences, found, COLLINS))
    rounded = {name: round(value, 2) for name, value in figures._asdict().items()}
    return {"part": "short sentences", "system": system, "seconds": round(seconds, 1), **rounded}


def main(arguments: list[str]) -> None:
    parser = Parser("benchmarks/parsing.py", __doc__.split("\n")[0])
    parser.add_argument("workdir", help="the workdir of a trained parser")
    parser.add_argument("--checkpoint")
    parser.add_argument("--train", required=True, metavar="FILE", help="trees for the grammar")
    parser.add_argument("--dev", required=True, metavar="FILE", help="trees to score")
    parser.add_argument("--words", type=int, default=15, help="the longest sentences (default 15)")
    parser.add_argument("--rows", metavar="FILE", required=True, help="rows are added to this file")
    o: argparse.Namespace = parser.parse_args(arguments)
    rows, dev = Rows(o.rows), short(o.dev, o.words)
    for system, make in (
        ("ours", lambda: ours(o.workdir, o.checkpoint)),
        ("nltk", lambda: pcfg(short(o.train, o.words))),
    ):
        found = rows.add({**row(system, dev, make()), "words": o.words, "dev": Path(o.dev).name})
        log("  ".join(f"{name} {value}" for name, value in found.items()))


if __name__ == "__main__":
    run(main)
