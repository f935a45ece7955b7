"""python -m transformer translate."""

from __future__ import annotations

import sys
from functools import partial

from transformer.command_line import Parser
from transformer.config import Config, DecodeConfig, UserError
from transformer.data.opening import open_stream
from transformer.evaluation import LESS_TO_SEARCH
from transformer.files import local_path
from transformer.memory import enough_memory
from transformer.verbs.decoding import loaded, parsed
from transformer.verbs.scoring import DETAILS


@enough_memory(LESS_TO_SEARCH)
def translate(arguments: list[str]) -> None:
    """Translate standard input to standard output, line by line."""
    parser = Parser("python -m transformer translate", translate.__doc__, add_help=False)
    parser.add_argument(
        "--jsonl", action="store_true", help="lines are JSON objects with a field source; see docs/decoding.md"
    )
    parser.add_argument("--details", action="store_true", help=f"with --jsonl: also {DETAILS}")
    parser.add_argument("--input", metavar="FILE", help="read this file instead of standard input")
    parser.add_argument("--output", metavar="FILE", help="write this file instead of standard output")
    parser.add_argument(
        "--share",
        metavar="I/N",
        help="with --input and --output: translate share I (from 0) of N; the last process to finish joins the shares",
    )
    args, rest = parsed(parser, arguments)
    # Report mistakes before a model is loaded.
    no_room = UserError("--details and --decode.n_best need --jsonl: a line of text has no room for them")
    if args.details and not args.jsonl:
        raise no_room
    if (args.input is None) != (args.output is None) or (args.share and args.input is None):
        raise UserError("--input and --output go together, and --share needs both")
    from transformer.inference import shares

    share = shares.parse(args.share or "0/1")
    if args.input is not None:
        source, target = local_path("--input", args.input), local_path("--output", args.output)
        shares.refuse(source, target, share[1])

    def checked(options: DecodeConfig) -> DecodeConfig:
        if options.n_best > 1 and not args.jsonl:
            raise no_room
        return options

    models, options, translator = loaded(parser, args, rest, [Config.task], checked)
    from transformer.inference import stream
    from transformer.model.rounding import in_type

    answer = partial(stream.translate_stream, translator)
    if args.jsonl:
        answer = partial(stream.translate_jsonl, translator, details=args.details)
    if args.input is None:
        answer(open_stream(sys.stdin.buffer), sys.stdout.buffer)
    else:
        # `about` names all that the output depends on: only shares with the same `about` are joined. It has digests of
        # the models, because machines may see them under different paths, and the types that this machine uses.
        fields = {**vars(options), "batch_sentences": 0, "batch_tokens": 0, "streams": 0}
        types = [in_type(model.config.model, {}, options.dtype)[0].dtype for model in models]
        about = repr(([model.digest for model in models], types, args.jsonl, args.details, sorted(fields.items())))
        check = stream.check_jsonl if args.jsonl else None
        shares.translate_share(answer, source, target, *share, about, check)
    translator.tally.refuse()
