"""python -m transformer VERB: translate, score, average, describe, convert, export, plan. A function for each."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from transformer.command_line import Parser, configured, decode_options, evaluate_options, run, set_up_jax, whole
from transformer.config import KINDS, Config, DecodeConfig, UserError, check, require_translation, whole_number
from transformer.data.opening import open_stream
from transformer.files import local_path
from transformer.jobs import LESS_TO_DECODE
from transformer.memory import enough_memory
from transformer.streams import plain

if TYPE_CHECKING:
    from transformer.checkpoint import Checkpoint
    from transformer.inference.translator import Translator

log = logging.getLogger("transformer")

MORE_MEMORY = "this needs all parameters in memory: end other programs, or use a machine with more memory"
DETAILS = (
    "pieces, log_probs, source_pieces and alignment: for each piece the index, from 0, in source_pieces (the last is "
    "the end of sentence) with the largest cross-attention weight in the last decoder layer but one, averaged over "
    "heads (with one decoder layer: in that layer; with --ensemble: in the first model)"
)


@enough_memory(LESS_TO_DECODE)
def translate(arguments: list[str]) -> None:
    """Translate standard input to standard output, line by line."""
    parser = Parser("python -m transformer translate", translate.__doc__, add_help=False)
    parser.add_argument(
        "--jsonl", action="store_true", help="lines are JSON objects with a field source; see the README"
    )
    parser.add_argument("--details", action="store_true", help=f"with --jsonl: also {DETAILS}")
    parser.add_argument("--input", metavar="FILE", help="read this file instead of standard input")
    parser.add_argument("--output", metavar="FILE", help="write this file instead of standard output")
    parser.add_argument(
        "--share",
        metavar="I/N",
        help="with --input and --output: translate share I (from 0) of N; the last process to finish joins the shares",
    )
    args, rest = _parsed(parser, arguments)
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

    def refuse(options: DecodeConfig) -> None:
        if options.n_best > 1 and not args.jsonl:
            raise no_room

    models, options, translator = _loaded(parser, args, rest, refuse)
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
        shares.translate_share(answer, source, target, *share, about)
    translator.tally.refuse()


@enough_memory(LESS_TO_DECODE)
def score(arguments: list[str]) -> None:
    """Score given translations: JSON objects with source and target, line by line."""
    parser = Parser("python -m transformer score", score.__doc__, add_help=False, epilog=f"Gives score, {DETAILS}.")
    _, _, translator = _loaded(parser, *_parsed(parser, arguments))
    from transformer.inference.stream import score_jsonl

    score_jsonl(translator, open_stream(sys.stdin.buffer), sys.stdout.buffer)
    translator.tally.refuse()


def _parsed(parser: Parser, arguments: list[str]) -> tuple[Namespace, list[str]]:
    """The options of the parser and of all commands that load models, and the remaining arguments.

    --help prints all options and stops. Raises `UserError`.
    """
    parser.add_argument("workdir", nargs="?", help="the workdir of a training run")
    parser.add_argument("--checkpoint", help="best, last, average or a step; default: the average if any, else best")
    parser.add_argument(
        "--ensemble",
        action="append",
        default=[],
        metavar="DIR",
        help="another workdir: average the probabilities of both models; may be repeated",
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this help and stop")
    args, rest = parser.parse_known_args(arguments)
    if args.help:
        parser.print_help()
        print("\nDecoding (default: the values in the workdir's config):\n")
        decode_options(Config(), ["--help"], parser.prog)
    _workdir_first(parser, args, arguments, "< in.txt > out.txt")
    return args, rest


def _workdir_first(parser: Parser, args: Namespace, arguments: list[str], others: str) -> None:
    """Raise `UserError` if the workdir is missing or an option of the config comes before it. The parser has none of
    these options, so it would take the option's value for the workdir."""
    sections = ("--data.", "--decode.", "--evaluate.")
    if not args.workdir or any(a.startswith(sections) for a in arguments[: arguments.index(args.workdir)]):
        raise UserError(f"the workdir comes first: {parser.prog} runs/quickstart {others}")


def _loaded(
    parser: Parser, args: Namespace, rest: list[str], refuse: Callable[[DecodeConfig], None] = lambda options: None
) -> tuple[list[Checkpoint], DecodeConfig, Translator]:
    """The checkpoints that a command line names, the options of decoding, and a translator of both.

    `refuse` gets the options before parameters are loaded, and may raise. If training removes a checkpoint in the
    meantime, checkpoints are chosen anew.
    """
    set_up_jax()
    from transformer.checkpoint import Checkpoints, again
    from transformer.inference.translator import Translator

    def load() -> tuple[list[Checkpoint], DecodeConfig, Translator]:
        chosen = []
        for workdir in (args.workdir, *args.ensemble):
            chosen.append(Checkpoints(workdir).open(args.checkpoint))
            log.info("using checkpoint %s of %s", chosen[-1].name, workdir)
            require_translation(chosen[-1].config, workdir)
        options = decode_options(chosen[0].config, rest, parser.prog, parser.options())
        refuse(options)
        return chosen, options, Translator.of(chosen, options)

    return again(load)


@enough_memory(MORE_MEMORY)
def average(arguments: list[str]) -> None:
    """Average the parameters of the last checkpoints, and score the result on the development set."""
    parser = Parser("python -m transformer average", average.__doc__, add_help=False)
    parser.add_argument("workdir", nargs="?", help="the workdir of a training run")
    parser.add_argument("--last", type=whole(1), default=5, help="how many of the newest checkpoints (default 5)")
    parser.add_argument("-h", "--help", action="store_true", help="show this help and stop")
    args, rest = parser.parse_known_args(arguments)
    if args.help:
        parser.print_help()
        print("\nDecoding and scoring (default: the values in the workdir's config):\n")
        evaluate_options(Config(), ["--help"], parser.prog)
    _workdir_first(parser, args, arguments, "--last 5")
    set_up_jax()
    from transformer.tasks.scoring import average as average_workdir

    options = partial(evaluate_options, arguments=rest, program=parser.prog, options=parser.options())
    for line in average_workdir(args.workdir, args.last, options):
        print(line, flush=True)


@enough_memory(MORE_MEMORY)
def describe(arguments: list[str]) -> None:
    """Print the parameters of a config, matrix by matrix, and the paper's count."""
    parser = Parser("python -m transformer describe", describe.__doc__, add_help=False)
    parser.add_argument("--config", metavar="FILE", help="a config file, such as configs/wmt14_en_de.py")
    parser.add_argument("--kv", action="store_true", help="instead, measure what sharing keys and values saves")
    args, _, config = configured(parser, arguments)
    if config is None:
        raise UserError("--config is missing, such as --config configs/wmt14_en_de.py")
    require_translation(config, f"--config {args.config}")
    from transformer.tools.describe import describe as lines

    if args.kv:
        set_up_jax()
        from transformer.tools.kv_table import kv_table as lines

    for line in lines(config):
        print(line, flush=True)


@enough_memory(MORE_MEMORY)
def convert(arguments: list[str]) -> None:
    """Convert a trained model to fewer key/value heads by mean-pooling, as the start of up-training."""
    parser = Parser("python -m transformer convert", convert.__doc__)
    parser.add_argument("workdir", help="the workdir of a training run")
    parser.add_argument("out", help="the folder to write; must be new or empty")
    parser.add_argument(
        "--kv-heads", type=whole(1), required=True, help="number of key/value heads in every attention; 1 = multi-query"
    )
    parser.add_argument("--checkpoint", help="best, last, average or a step; default: the average if any, else best")
    args = parser.parse_args(arguments)
    set_up_jax()
    from transformer.checkpoint import Checkpoints
    from transformer.tools.convert import convert as convert_workdir

    config = Checkpoints(args.workdir).read(args.checkpoint, lambda opened: opened.config)
    model = dataclasses.replace(config.model, kv_heads=args.kv_heads)
    for kind in KINDS:
        attention = dataclasses.replace(getattr(model, f"{kind}_attention"), kv_heads=None)
        model = dataclasses.replace(model, **{f"{kind}_attention": attention})
    check(dataclasses.replace(config, model=model))
    convert_workdir(args.workdir, args.out, model, args.checkpoint)
    log.info("wrote %s; to train it on: --model.kv_heads %d --train.init_from %s", args.out, args.kv_heads, args.out)


@enough_memory(MORE_MEMORY)
def export(arguments: list[str]) -> None:
    """Write a trained model as a folder that another library can load."""
    parser = Parser("python -m transformer export", export.__doc__)
    parser.add_argument("workdir", help="the workdir of a training run")
    parser.add_argument("out", help="the folder to write; must be new or empty")
    parser.add_argument("--to", required=True, choices=["hf-marian"], help="hf-marian: transformers' MarianMTModel")
    parser.add_argument("--checkpoint", help="best, last, average or a step; default: the average if any, else best")
    args = parser.parse_args(arguments)
    from transformer.tools.hf import marian

    written = plain(str(marian.export(args.workdir, args.out, args.checkpoint)))
    try:
        print(written, flush=True)
    except OSError:
        log.info("wrote %s", written)
        raise


@enough_memory(MORE_MEMORY)
def plan(arguments: list[str]) -> None:
    """Compile training and decoding for TPUs, without the TPUs, and print the memory and time that they need."""
    parser = Parser("python -m transformer plan", plan.__doc__, add_help=False)
    parser.add_argument("--config", metavar="FILE", help="a config file, such as configs/wmt14_en_de.py")
    parser.add_argument("--topology", help="kind of chip and its torus, such as v5e:16x16, v5p:4x4x4 or v6e:4x4")
    parser.add_argument("--mesh", metavar="D,F,T", help="devices along data, fsdp and tensor, such as 64,2,2")
    parser.add_argument("--only", choices=["training", "decoding"], help="compile only one of the two; default: both")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args, _, config = configured(parser, arguments)
    for name in ("config", "topology", "mesh"):
        if getattr(args, name) is None:
            raise UserError(f"--{name} is missing; {parser.prog} --help shows an example")
    require_translation(config, f"--config {args.config}")
    sizes = [whole_number(size) for size in args.mesh.split(",")]
    if len(sizes) != 3 or not all(sizes):
        raise UserError(f"--mesh {args.mesh}: give three numbers, devices along data, fsdp and tensor, such as 64,2,2")
    from transformer.tools import plan as planning

    result = planning.plan(config, args.topology, sizes, args.only)
    print(json.dumps(result) if args.json else "\n".join(planning.lines(result)))


VERBS = {
    "translate": translate,
    "score": score,
    "average": average,
    "describe": describe,
    "convert": convert,
    "export": export,
    "plan": plan,
}


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print("python -m transformer VERB ...   (VERB --help prints its options)\n")
        for name, verb in VERBS.items():
            print(f"  {name:10} {verb.__doc__}")
    elif arguments[0] in VERBS:
        VERBS[arguments[0]](arguments[1:])
    else:
        raise UserError(f"unknown verb {arguments[0]!r}; the verbs are {', '.join(VERBS)}")


if __name__ == "__main__":
    run(main)
