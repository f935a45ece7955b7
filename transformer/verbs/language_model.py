"""python -m transformer generate."""

from __future__ import annotations

import dataclasses
import sys

from transformer.command_line import Parser, text_of, whole
from transformer.config import CONTINUING, DecodeConfig, LanguageModelConfig, UserError
from transformer.data.opening import open_stream
from transformer.evaluation import LESS_TO_SEARCH
from transformer.memory import enough_memory
from transformer.verbs.decoding import loaded, parsed


@enough_memory(LESS_TO_SEARCH)
def generate(arguments: list[str]) -> None:
    """Write text that goes on from --prompt, or from each line of standard input."""
    parser = Parser("python -m transformer generate", generate.__doc__, add_help=False)
    parser.add_argument("--prompt", metavar="TEXT", help="default: each line of standard input is a prompt")
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text; may be repeated; a line break: --stop $'\\n'",
    )
    parser.add_argument("--samples", type=whole(1, 10_000), help="number of texts for each prompt (decode.n_best)")
    parser.add_argument(
        "--jsonl",
        action="store_true",
        help="write a JSON object for each text: prompt, text, log_prob, pieces; an input line may be an object with a "
        "field prompt",
    )
    args, rest = parsed(parser, arguments, LanguageModelConfig(), '--prompt "Once upon a time"')
    args.stop = [text_of("--stop", text) for text in args.stop]
    args.prompt = None if args.prompt is None else text_of("--prompt", args.prompt)
    if not all(args.stop):
        raise UserError("--stop is empty; leave it out, or give the text to end before")
    if args.samples and any(argument.split("=")[0].replace("-", "_") == "__decode.n_best" for argument in rest):
        raise UserError("--samples and --decode.n_best are one option; leave one of the two out")

    def adjusted(options: DecodeConfig) -> DecodeConfig:
        if not args.samples:
            return options
        if not options.sample and args.samples > options.beam_size:
            raise UserError(
                f"--samples {args.samples}: beam search finds at most decode.beam_size = {options.beam_size}"
            )
        return dataclasses.replace(options, n_best=args.samples)

    _, _, generator = loaded(parser, args, rest, [kind.task for kind in CONTINUING], adjusted)
    from transformer.inference import text_stream

    target = sys.stdout.buffer
    if args.prompt is not None:
        text_stream.answer_prompt(generator, args.prompt, target, args.stop, jsonl=args.jsonl)
    else:
        text_stream.answer_prompts(generator, open_stream(sys.stdin.buffer), target, args.stop, jsonl=args.jsonl)
    generator.tally.refuse()
