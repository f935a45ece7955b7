"""python -m transformer VERB. The verbs are in `VERBS`, with a function for each."""

from __future__ import annotations

import dataclasses
import json
import logging
from functools import partial

from transformer.command_line import Parser, configured, evaluate_options, run, set_up_jax, whole
from transformer.config import (
    KINDS,
    AlgorithmConfig,
    ByteLatentConfig,
    Config,
    FinetuneConfig,
    LanguageModelConfig,
    MaskedConfig,
    ParsingConfig,
    UserError,
    check,
    require_task,
    whole_number,
)
from transformer.memory import enough_memory
from transformer.streams import plain
from transformer.verbs.attention import attention
from transformer.verbs.classification import predict
from transformer.verbs.decoding import workdir_first
from transformer.verbs.embedding import embed
from transformer.verbs.language_model import generate
from transformer.verbs.masked import fill
from transformer.verbs.page import page
from transformer.verbs.parsing import evalb, parse
from transformer.verbs.scoring import score
from transformer.verbs.translation import translate

log = logging.getLogger("transformer")

PLANNED = (Config, LanguageModelConfig, MaskedConfig)  # the tasks that `plan` knows
DESCRIBED = (*PLANNED, FinetuneConfig, ParsingConfig, AlgorithmConfig)
MORE_MEMORY = "this needs all parameters in memory: end other programs, or use a machine with more memory"


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
        print("\nDecoding and scoring of translations (default: the values in the workdir's config):\n")
        evaluate_options(Config(), ["--help"], parser.prog)
    workdir_first(parser, args, arguments, "--last 5")
    set_up_jax()
    from transformer.checkpoint import AVERAGE, Checkpoints
    from transformer.tasks import TASKS
    from transformer.tasks.averaging import average as average_checkpoints
    from transformer.tasks.scoring import average_translation

    found = Checkpoints(args.workdir)
    if found.complete(AVERAGE) and not found.states():
        raise UserError(f"{args.workdir}: holds an average alone, as of an imported model; nothing is left to average")
    task = found.read("last", lambda opened: opened.config.task)
    options = partial(evaluate_options, arguments=rest, program=parser.prog, options=parser.options())
    if task == Config.task:
        lines = average_translation(args.workdir, args.last, options)
    elif rest:
        raise UserError(f"{rest[0]}: the task of {args.workdir} has no such option; leave it out (it has --last)")
    else:
        lines = average_checkpoints(TASKS[task](), args.workdir, args.last)
    for line in lines:
        print(line, flush=True)


@enough_memory(MORE_MEMORY)
def describe(arguments: list[str]) -> None:
    """Print the parameters of a config, matrix by matrix, and the paper's count."""
    parser = Parser("python -m transformer describe", describe.__doc__, add_help=False)
    parser.add_argument("--config", metavar="FILE", help="a config file, such as configs/wmt14_en_de.py")
    parser.add_argument("--kv", action="store_true", help="instead, measure what sharing keys and values saves")
    parser.add_argument(
        "--attention",
        action="store_true",
        help="instead, count the parameters of attention, head by head, and the numbers of its pattern",
    )
    args, _, config = configured(parser, arguments)
    if config is None:
        raise UserError("--config is missing, such as --config configs/wmt14_en_de.py")
    if args.kv and args.attention:
        raise UserError("--kv and --attention print different tables; leave one of the two out")
    require_task(
        config,
        f"--config {args.config}",
        *((Config,) if args.kv else DESCRIBED if args.attention else (*DESCRIBED, ByteLatentConfig)),
    )
    from transformer.tools.describe import describe as lines

    if isinstance(config, FinetuneConfig):
        from transformer.tasks.tuning import from_start, with_head

        config = from_start(config, None)
        config = with_head(config, config.model.labels or 2)  # two, if the data decides
    if isinstance(config, ParsingConfig):
        from transformer.tasks.parsing import of_config

        config = of_config(config)
    if isinstance(config, AlgorithmConfig):
        from transformer.data.algorithms import algorithm_of
        from transformer.tasks.algorithm import completed

        config = completed(config, algorithm_of(config))
    if args.attention:
        from transformer.tools.attention_table import attention_table as lines
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
    from transformer.tools.formats import EXPORTS, QUANTIZATIONS

    parser = Parser("python -m transformer export", export.__doc__)
    parser.add_argument("workdir", help="the workdir of a training run")
    parser.add_argument("out", help="the folder to write; must be new or empty")
    parser.add_argument(
        "--to", required=True, choices=EXPORTS, help="; ".join(f"{name}: {one.what}" for name, one in EXPORTS.items())
    )
    parser.add_argument("--checkpoint", help="best, last, average or a step; default: the average if any, else best")
    parser.add_argument(
        "--quantization", choices=QUANTIZATIONS, help="for ctranslate2: type of the stored matrices; default: float32"
    )
    args = parser.parse_args(arguments)
    options = {} if args.quantization is None else {"quantization": args.quantization}
    if options and args.to != "ctranslate2":
        raise UserError(f"--quantization {args.quantization}: {args.to} has no such option; it is of ctranslate2 alone")
    _tell(plain(str(EXPORTS[args.to].write(args.workdir, args.out, args.checkpoint, **options))))


@enough_memory(MORE_MEMORY)
def import_(arguments: list[str]) -> None:
    """Read a model of another library from its folder, and write it as a workdir."""
    from transformer.tools.formats import IMPORTS

    parser = Parser("python -m transformer import", import_.__doc__)
    parser.add_argument("folder", help="the folder of the model, as save_pretrained wrote it")
    parser.add_argument("out", help="the workdir to write; must be new or empty")
    parser.add_argument(
        "--from",
        dest="library",
        required=True,
        choices=IMPORTS,
        help="; ".join(f"{name}: {one.what}" for name, one in IMPORTS.items()),
    )
    args = parser.parse_args(arguments)
    set_up_jax()
    IMPORTS[args.library].read(args.folder, args.out)
    _tell(plain(args.out))


def _tell(written: str) -> None:
    """Print the path that was written; log it if it can't be printed."""
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
    require_task(config, f"--config {args.config}", *((Config,) if args.only == "decoding" else PLANNED))
    sizes = [whole_number(size) for size in args.mesh.split(",")]
    if len(sizes) != 3 or not all(sizes):
        raise UserError(f"--mesh {args.mesh}: give three numbers, devices along data, fsdp and tensor, such as 64,2,2")
    from transformer.tools import plan as planning

    result = planning.plan(config, args.topology, sizes, args.only)
    print(json.dumps(result) if args.json else "\n".join(planning.lines(result)))


VERBS = {
    "translate": translate,
    "generate": generate,
    "score": score,
    "predict": predict,
    "parse": parse,
    "fill": fill,
    "embed": embed,
    "attention": attention,
    "page": page,
    "average": average,
    "describe": describe,
    "convert": convert,
    "export": export,
    "import": import_,
    "plan": plan,
    "evalb": evalb,
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
