"""python -m transformer predict."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from transformer.command_line import Parser, set_up_jax
from transformer.data.opening import open_stream
from transformer.evaluation import LESS_TO_DECODE
from transformer.memory import enough_memory
from transformer.streams import plain, to_json

if TYPE_CHECKING:
    from transformer.inference.classifier import Prediction


@enough_memory(LESS_TO_DECODE)
def predict(arguments: list[str]) -> None:
    """Write the label of each line of standard input, with its probability, by a fine-tuned encoder."""
    told = (
        "Reads a text a line; of a model for pairs, two texts with a tab between them; of one for tags, words with "
        "spaces between them. Writes a label, a tab and its probability; or a number; or tags and their probabilities, "
        "each with spaces between them. A blank line gives a blank line."
    )
    parser = Parser("python -m transformer predict", predict.__doc__, reads_lines=True, epilog=told)
    parser.add_argument("workdir", help="the workdir of a fine-tuned encoder; of several seeds, the best is used")
    parser.add_argument("--checkpoint", help="best, last, average or a step; default: the average if any, else best")
    parser.add_argument(
        "--jsonl",
        action="store_true",
        help="write JSON objects: text, label, probability, and of classes the probabilities of all",
    )
    args = parser.parse_args(arguments)
    set_up_jax()
    from transformer.data.labelled import words_in
    from transformer.inference.classifier import Classifier
    from transformer.inference.stream import answer_texts

    classifier = Classifier.load(args.workdir, args.checkpoint)

    kind, pairs = classifier.labels.kind, classifier.labels.pairs

    def answer(lines: Sequence[str], first: int) -> Iterator[str]:
        texts = [words_in(line) if kind == "tags" else [line] if pairs is False else line.split("\t") for line in lines]
        for text, found in zip(texts, classifier.classify(texts, first_line=first), strict=True):
            if args.jsonl:
                given = {"words": text} if kind == "tags" else dict(zip(("text", "second"), text, strict=False))
                yield to_json(
                    given | {name: x for name, x in found._asdict().items() if name == "label" or x is not None}
                )
            else:
                yield shown(found)

    tabs = kind == "tags" or pairs is not False
    answer_texts(open_stream(sys.stdin.buffer), sys.stdout.buffer, answer, tabs=tabs)
    classifier.tally.refuse()


def shown(found: Prediction) -> str:
    """A prediction as a line of text; "" without a label."""
    label, probability = found.label, found.probability
    if isinstance(label, list):
        each = ["-" if p is None else f"{p:.4f}" for p in probability]
        return f"{' '.join(map(plain, label))}\t{' '.join(each)}"
    if isinstance(label, str):
        return f"{plain(label)}\t{probability:.4f}"
    return "" if label is None else f"{label:.6g}"
