"""python -m transformer embed."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence

from transformer.command_line import Parser, set_up_jax
from transformer.data.opening import open_stream
from transformer.evaluation import LESS_TO_DECODE
from transformer.memory import enough_memory

log = logging.getLogger("transformer")


@enough_memory(LESS_TO_DECODE)
def embed(arguments: list[str]) -> None:
    """Write a vector for each line of standard input, as a JSON list of numbers, with an encoder such as BERT."""
    parser = Parser("python -m transformer embed", embed.__doc__, reads_lines=True)
    parser.add_argument("workdir", help="the workdir of an encoder alone, trained or imported")
    parser.add_argument("--checkpoint", help="best, last, average or a step; default: the average if any, else best")
    parser.add_argument(
        "--pooling",
        choices=["mean", "cls"],
        default="mean",
        help="the mean of the states of all pieces (default), or the state of the first, [CLS]",
    )
    parser.add_argument("--normalize", action="store_true", help="scale each vector to length 1")
    args = parser.parse_args(arguments)
    set_up_jax()
    from transformer.inference.embedder import Embedder
    from transformer.inference.stream import answer_texts

    embedder = Embedder.load(args.workdir, args.checkpoint)

    def answer(lines: Sequence[str], first: int) -> Iterator[str]:
        vectors = embedder.embed(lines, pooling=args.pooling, normalize=args.normalize, first_line=first)
        for vector in vectors:  # str: the fewest digits that give the same float32 back
            yield json.dumps([float(str(x)) for x in vector])

    answer_texts(open_stream(sys.stdin.buffer), sys.stdout.buffer, answer)
