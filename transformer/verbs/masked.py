"""python -m transformer fill."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence

from transformer.command_line import Parser, set_up_jax, whole
from transformer.data.opening import open_stream
from transformer.evaluation import LESS_TO_DECODE
from transformer.memory import enough_memory
from transformer.streams import to_json

log = logging.getLogger("transformer")


@enough_memory(LESS_TO_DECODE)
def fill(arguments: list[str]) -> None:
    """Write the likeliest pieces for each [MASK] in the lines of standard input, with their probabilities."""
    told = (
        "Writes a line for each line: pieces, each with its probability; a tab between masks; nothing without a mask. "
        "A text that is longer than the model's positions loses its end, and a mask in that end has no pieces."
    )
    parser = Parser("python -m transformer fill", fill.__doc__, reads_lines=True, epilog=told)
    parser.add_argument("workdir", help="the workdir of a training run of a masked language model")
    parser.add_argument("--checkpoint", help="best, last, average or a step; default: the average if any, else best")
    parser.add_argument("--top", type=whole(1), default=5, help="how many pieces for each mask (default 5)")
    parser.add_argument(
        "--jsonl",
        action="store_true",
        help="write JSON objects: text, and masks, a list with a list of piece and probability for each mask",
    )
    args = parser.parse_args(arguments)
    set_up_jax()
    from transformer.inference.filler import Filler
    from transformer.inference.stream import answer_texts

    filler = Filler.load(args.workdir, args.checkpoint)

    def answer(lines: Sequence[str], first: int) -> Iterator[str]:
        for line, masks in zip(lines, filler.fill(lines, args.top, first_line=first), strict=True):
            if args.jsonl:
                yield to_json({"text": line, "masks": [[one._asdict() for one in mask] for mask in masks]})
            else:
                yield "\t".join(" ".join(f"{one.piece} {one.probability:.4f}" for one in mask) for mask in masks)

    answer_texts(open_stream(sys.stdin.buffer), sys.stdout.buffer, answer)
    filler.tally.refuse()
