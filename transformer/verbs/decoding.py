"""Shared by the verbs that decode: their options, and the translator or generator of the workdirs they name."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from transformer.command_line import Parser, decode_options, set_up_jax
from transformer.config import CONTINUING, RUNS, Config, DecodeConfig, UserError, require_workdir

if TYPE_CHECKING:
    from transformer.checkpoint import Checkpoint

log = logging.getLogger("transformer")


def parsed(
    parser: Parser, arguments: list[str], default: Any = None, others: str = "< in.txt > out.txt"
) -> tuple[Namespace, list[str]]:
    """The options of the parser and of all verbs that decode, and the remaining arguments.

    --help prints all options, with the decoding options of the config `default` (of translation), and stops. `others`:
    what follows the workdir in an example. Raises `UserError`.
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
        decode_options(Config() if default is None else default, ["--help"], parser.prog)
    workdir_first(parser, args, arguments, others)
    return args, rest


def workdir_first(parser: Parser, args: Namespace, arguments: list[str], others: str) -> None:
    """Raise `UserError` if the workdir is missing or an option of the config comes before it. The parser has none of
    these options, so it would take the option's value for the workdir."""
    sections = ("--data.", "--decode.", "--evaluate.")
    if not args.workdir or any(a.startswith(sections) for a in arguments[: arguments.index(args.workdir)]):
        raise UserError(f"the workdir comes first: {parser.prog} runs/quickstart {others}")


def loaded(
    parser: Parser,
    args: Namespace,
    rest: list[str],
    tasks: Sequence[str],
    adjusted: Callable[[DecodeConfig], DecodeConfig] = lambda options: options,
) -> tuple[list[Checkpoint], DecodeConfig, Any]:
    """The checkpoints that a command line names, the options of decoding, and the `Translator` or `Generator` of both.

    Raises `UserError` for a workdir of another task than `tasks`. `adjusted` gets the options before parameters are
    loaded; it returns them with changes, or raises. If training removes a checkpoint in the meantime, checkpoints are
    chosen anew.
    """
    set_up_jax()
    from transformer.checkpoint import Checkpoints, again

    def load() -> tuple[list[Checkpoint], DecodeConfig, Any]:
        chosen = []
        for workdir in (args.workdir, *args.ensemble):
            chosen.append(Checkpoints(workdir).open(args.checkpoint))
            log.info("using checkpoint %s of %s", chosen[-1].name, workdir)
            require_workdir(chosen[-1].config, workdir, *(RUNS[task] for task in tasks))
        options = adjusted(decode_options(chosen[0].config, rest, parser.prog, parser.options()))
        return chosen, options, _kind(chosen[0].config.task).of(chosen, options)

    return again(load)


def _kind(task: str) -> Any:
    """The class that decodes with the models of a task."""
    if task in [kind.task for kind in CONTINUING]:
        from transformer.inference.generator import Generator

        return Generator
    from transformer.inference.translator import Translator

    return Translator
