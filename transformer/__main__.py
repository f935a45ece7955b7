"""python -m transformer VERB: translate, score, average, describe, convert, export, plan; each calls one function."""

from __future__ import annotations

import dataclasses
import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any

from transformer.command_line import Parser, configured, decode_options, run, set_up_jax
from transformer.config import KINDS, Config, UserError, check

log = logging.getLogger("transformer")


def translate(arguments: list[str]) -> None:
    """Translate standard input to standard output, line by line."""
    parser = Parser("python -m transformer translate", translate.__doc__, add_help=False)
    parser.add_argument(
        "--jsonl", action="store_true", help="lines are JSON objects with a field source; see the README"
    )
    parser.add_argument("--details", action="store_true", help="with --jsonl: also pieces, log_probs and alignment")
    parser.add_argument("--input", metavar="FILE", help="read this instead of standard input")
    parser.add_argument("--output", metavar="FILE", help="write this instead of standard output")
    parser.add_argument(
        "--share",
        metavar="I/N",
        help="with both: translate the I-th of N shares (from 0); the last to finish joins them",
    )
    translator, own = _translator(parser, arguments)
    from transformer.inference import shares, stream

    if not own.jsonl and (own.details or translator.config.n_best > 1):
        raise UserError("--details and --decode.n_best need --jsonl: a line of text has no room for them")
    if (own.input is None) != (own.output is None) or (own.share and own.input is None):
        raise UserError("--input and --output go together, and --share needs both")
    answer = partial(stream.translate_stream, translator)
    if own.jsonl:
        answer = partial(stream.translate_jsonl, translator, details=own.details)
    if own.input is None:
        answer(sys.stdin.buffer, sys.stdout.buffer)
    else:
        # What an output depends on: shares of other models or options are not put together. Of a workdir its last name,
        # as machines may see it under different paths.
        names = [Path(workdir).name for workdir in (own.workdir, *own.ensemble)]
        options = {**vars(translator.config), "batch_sentences": 0, "batch_tokens": 0, "streams": 0}
        about = repr((names, own.checkpoint, own.jsonl, own.details, sorted(options.items())))
        share = shares.parse(own.share or "0/1")
        shares.translate_share(answer, Path(own.input), Path(own.output), *share, about)


def score(arguments: list[str]) -> None:
    """Score given translations: JSON objects with source and target, line by line."""
    translator, _ = _translator(Parser("python -m transformer score", score.__doc__, add_help=False), arguments)
    from transformer.inference.stream import score_jsonl

    score_jsonl(translator, sys.stdin.buffer, sys.stdout.buffer)


def _translator(parser: Parser, arguments: list[str]) -> tuple[Any, Any]:
    """The translator that a command line names, and the parsed options."""
    parser.add_argument("workdir", nargs="?", help="the workdir of a training run")
    parser.add_argument("--checkpoint", help="best, last, average or a step; default: the average if made, else best")
    parser.add_argument(
        "--ensemble",
        action="append",
        default=[],
        metavar="DIR",
        help="another workdir that votes, too; may be repeated",
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this and stop")
    own, rest = parser.parse_known_args(arguments)
    if own.help:
        parser.print_help()
        print("\nDecoding, by default as in the workdir's config:\n")
        decode_options(Config(), ["--help"], parser.prog)
    # What follows an option of --decode is its value, but the parser, which knows none of them, would take it.
    if not own.workdir or any("--decode" in argument for argument in arguments[: arguments.index(own.workdir)]):
        raise UserError(f"the workdir comes first: {parser.prog} runs/quickstart < in.txt > out.txt")
    set_up_jax()
    from transformer.checkpoint import Checkpoints
    from transformer.inference.translator import Translator

    checkpoints = Checkpoints(own.workdir)
    name = checkpoints.choose(own.checkpoint)
    log.info("using checkpoint %s of %s", name, own.workdir)
    asked, own.checkpoint = own.checkpoint, str(name)
    options = decode_options(checkpoints.config(name), rest, parser.prog, parser.options())
    if not own.ensemble:
        return Translator.load(own.workdir, own.checkpoint, options), own
    return Translator.load([own.workdir, *own.ensemble], asked, options), own


def average(arguments: list[str]) -> None:
    """Average the parameters of the last checkpoints, and score the result on the development set."""
    parser = Parser("python -m transformer average", average.__doc__)
    parser.add_argument("workdir", help="the workdir of a training run")
    parser.add_argument("--last", type=int, default=5, help="how many checkpoints, by step (default 5)")
    own = parser.parse_args(arguments)
    if own.last < 1:
        raise UserError(f"--last {own.last}: must be at least 1")
    set_up_jax()
    from transformer.tasks.scoring import average as average_workdir

    for line in average_workdir(own.workdir, own.last):
        print(line, flush=True)


def describe(arguments: list[str]) -> None:
    """Print the parameters of a config, matrix by matrix, beside the paper's."""
    parser = Parser("python -m transformer describe", describe.__doc__, add_help=False)
    parser.add_argument("--config", metavar="FILE", help="a config file, such as configs/wmt14_en_de.py")
    parser.add_argument("--kv", action="store_true", help="instead: what sharing keys and values saves, measured here")
    own, _, config = configured(parser, arguments)
    if config is None:
        raise UserError("--config is missing, such as --config configs/wmt14_en_de.py")
    from transformer.tools.describe import describe as lines

    if own.kv:
        set_up_jax()
        from transformer.tools.kv_table import kv_table as lines

    for line in lines(config):
        print(line, flush=True)


def convert(arguments: list[str]) -> None:
    """Give a trained model fewer key/value heads, by mean-pooling, as the start of up-training."""
    parser = Parser("python -m transformer convert", convert.__doc__)
    parser.add_argument("workdir", help="the workdir of a training run")
    parser.add_argument("out", help="the folder to write; must be new or empty")
    parser.add_argument(
        "--kv-heads", type=int, required=True, help="key/value heads of every attention: 1 = multi-query"
    )
    parser.add_argument("--checkpoint", help="best, last, average or a step; default: the average if made, else best")
    own = parser.parse_args(arguments)
    set_up_jax()
    from transformer.checkpoint import Checkpoints
    from transformer.tools.convert import convert as convert_workdir

    checkpoints = Checkpoints(own.workdir)
    config = checkpoints.config(checkpoints.choose(own.checkpoint))
    model = dataclasses.replace(config.model, kv_heads=own.kv_heads)
    for kind in KINDS:
        same = dataclasses.replace(getattr(model, f"{kind}_attention"), kv_heads=None)
        model = dataclasses.replace(model, **{f"{kind}_attention": same})
    check(dataclasses.replace(config, model=model))
    convert_workdir(own.workdir, own.out, model, own.checkpoint)
    log.info("wrote %s; to train it on: --model.kv_heads %d --train.init_from %s", own.out, own.kv_heads, own.out)


def export(arguments: list[str]) -> None:
    """Write a trained model as a folder that another library loads."""
    parser = Parser("python -m transformer export", export.__doc__)
    parser.add_argument("workdir", help="the workdir of a training run")
    parser.add_argument("out", help="the folder to write; must be new or empty")
    parser.add_argument("--to", required=True, choices=["hf-marian"], help="hf-marian: transformers' MarianMTModel")
    parser.add_argument("--checkpoint", help="best, last, average or a step; default: the average if made, else best")
    own = parser.parse_args(arguments)
    from transformer.tools import hf_marian

    print(hf_marian.export(own.workdir, own.out, own.checkpoint))


def plan(arguments: list[str]) -> None:
    """Compile training and decoding for TPUs that are not here, and print what they would take."""
    parser = Parser("python -m transformer plan", plan.__doc__, add_help=False)
    parser.add_argument("--config", metavar="FILE", help="a config file, such as configs/wmt14_en_de.py")
    parser.add_argument("--topology", help="chips and how they are wired, such as v5e:16x16, v5p:4x4x4 or v6e:4x4")
    parser.add_argument("--mesh", metavar="D,F,T", help="devices along data, fsdp and tensor, such as 64,2,2")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    own, _, config = configured(parser, arguments)
    for name in ("config", "topology", "mesh"):
        if getattr(own, name) is None:
            raise UserError(f"--{name} is missing; {parser.prog} --help shows an example")
    sizes = own.mesh.split(",")
    if len(sizes) != 3 or not all(size.isdigit() and int(size) for size in sizes):
        raise UserError(f"--mesh {own.mesh}: give three numbers, devices along data, fsdp and tensor, such as 64,2,2")
    from transformer.tools import plan as planning

    result = planning.plan(config, own.topology, [int(size) for size in sizes])
    print(planning.to_json(result) if own.json else "\n".join(planning.lines(result)))


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
        print("python -m transformer VERB ...   (VERB --help tells more)\n")
        for name, verb in VERBS.items():
            print(f"  {name:10} {verb.__doc__}")
    elif arguments[0] in VERBS:
        VERBS[arguments[0]](arguments[1:])
    else:
        raise UserError(f"unknown verb {arguments[0]!r}; there are {', '.join(VERBS)}")


if __name__ == "__main__":
    run(main)
