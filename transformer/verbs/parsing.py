"""python -m transformer evalb."""

from __future__ import annotations

import json

from transformer.command_line import Parser


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
