"""python -m transformer parse and evalb."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from transformer.command_line import Parser, decode_options, set_up_jax
from transformer.config import ParsingConfig, UserError, require_workdir
from transformer.data import trees
from transformer.data.opening import open_stream
from transformer.evaluation import LESS_TO_DECODE
from transformer.files import local_path, replace
from transformer.memory import enough_memory
from transformer.tools.tree_picture import svg
from transformer.verbs.decoding import workdir_first

log = logging.getLogger("transformer")


@enough_memory(LESS_TO_DECODE)
def parse(arguments: list[str]) -> None:
    """Write the constituency tree of each line of standard input, in brackets."""
    told = (
        "Reads a sentence a line: words as the treebank of training has them, with spaces between them. A blank line "
        "gives a blank line. In the output, brackets within words are -LRB- and -RRB-."
    )
    parser = Parser("python -m transformer parse", parse.__doc__, epilog=told, add_help=False)
    parser.add_argument("workdir", nargs="?", help="the workdir of a parser")
    parser.add_argument("--checkpoint", help="best, last, average or a step; default: the average if any, else best")
    parser.add_argument(
        "--raw",
        action="store_true",
        help="read raw English text, a sentence a line, and split it by simple rules in the style of the Penn Treebank",
    )
    parser.add_argument("--draw", metavar="FILE", help="also draw the trees, one below the other, as an .svg")
    parser.add_argument("-h", "--help", action="store_true", help="show this help and stop")
    args, rest = parser.parse_known_args(arguments)
    if args.help:
        parser.print_help()
        print("\nSearch (default: the values in the workdir's config):\n")
        decode_options(ParsingConfig(), ["--help"], parser.prog)
    workdir_first(parser, args, arguments, "< tokenised.txt > trees.mrg")
    picture = None if args.draw is None else _picture(args.draw)
    set_up_jax()
    from transformer.checkpoint import Checkpoint, Checkpoints, best_seed
    from transformer.inference.parser import Parser as TreeParser
    from transformer.inference.stream import answer_texts

    def opened(checkpoint: Checkpoint) -> TreeParser:
        require_workdir(checkpoint.config, args.workdir, ParsingConfig)
        return TreeParser.of(checkpoint, decode_options(checkpoint.config, rest, parser.prog, parser.options()))

    found = Checkpoints(best_seed(args.workdir)).read(args.checkpoint, opened)
    drawn = []

    def answer(lines: Sequence[str], first: int) -> Iterator[str]:
        if first == 1 and _is_tree(lines[0]):
            log.warning("line 1 is a tree, and its brackets and labels are read as words; give the words alone")
        for tree in found.parse(lines, first_line=first, raw=args.raw):
            if tree is not None and picture is not None:
                drawn.append(tree)
            yield "" if tree is None else str(tree)

    answer_texts(open_stream(sys.stdin.buffer), sys.stdout.buffer, answer)
    if picture is not None:
        replace(picture, svg(drawn).encode())
    found.tally.refuse()


def _picture(name: str) -> Path:
    """The path of a picture. Raises `UserError` if there is something, or if no file can be written there."""
    path = local_path("--draw", name)
    if path.suffix != ".svg":
        raise UserError(f"--draw {name}: the name must end with .svg")
    if os.path.lexists(path):
        raise UserError(f"--draw {name} exists; name another file, or remove it")
    if not path.parent.is_dir():
        raise UserError(f"--draw {name}: there is no folder {path.parent}")
    return path


def _is_tree(line: str) -> bool:
    """Whether a line is a tree in brackets."""
    try:
        return any(tree.word is None and tree.children for tree in trees.parse(line, "here"))
    except UserError:
        return False


def evalb(arguments: list[str]) -> None:
    """Score constituency trees as EVALB does, and print its figures: brackets, crossing brackets, tags."""
    parser = Parser("python -m transformer evalb", evalb.__doc__)
    parser.add_argument("gold", help="the right trees in brackets, one a line")
    parser.add_argument("test", help="the trees to be scored, line by line; a blank line where there is none")
    parser.add_argument(
        "--parameters", metavar="FILE", required=True, help="EVALB's parameter file, such as COLLINS.prm"
    )
    parser.add_argument("--json", action="store_true", help="instead, print the two summaries as one JSON object")
    args = parser.parse_args(arguments)
    from transformer.tasks.evalb import read_parameters, report, score, summary

    parameters = read_parameters(args.parameters)
    sentences = list(score(args.gold, args.test, parameters))
    if args.json:
        short = [one for one in sentences if one.length <= parameters.cutoff]
        print(json.dumps({"all": summary(sentences)._asdict(), f"len<={parameters.cutoff}": summary(short)._asdict()}))
    else:
        print("\n".join(report(sentences, parameters)))
