"""python -m transformer score, for every task that decodes."""

from __future__ import annotations

import sys

from transformer.command_line import Parser
from transformer.config import CONTINUING, Config
from transformer.data.opening import open_stream
from transformer.evaluation import LESS_TO_DECODE
from transformer.memory import enough_memory
from transformer.verbs.decoding import loaded, parsed

DETAILS = (
    "pieces, log_probs, source_pieces and alignment: for each piece the index, from 0, in source_pieces (the last is "
    "the end of sentence) with the largest cross-attention weight in the last decoder layer but one, averaged over "
    "heads (with one decoder layer: in that layer; with --ensemble: in the first model)"
)


@enough_memory(LESS_TO_DECODE)
def score(arguments: list[str]) -> None:
    """Score given translations (JSON objects with source and target) or texts (with text), line by line."""
    told = f"Translation: gives score, {DETAILS}. Language models: gives log_prob (their sum), pieces and log_probs."
    parser = Parser("python -m transformer score", score.__doc__, add_help=False, epilog=told)
    tasks = [kind.task for kind in (Config, *CONTINUING)]
    (first, *_), _, scorer = loaded(parser, *parsed(parser, arguments), tasks)
    if isinstance(first.config, CONTINUING):
        from transformer.inference.text_stream import score_texts as score_lines
    else:
        from transformer.inference.stream import score_jsonl as score_lines
    score_lines(scorer, open_stream(sys.stdin.buffer), sys.stdout.buffer)
    scorer.tally.refuse()
