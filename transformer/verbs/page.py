"""python -m transformer page."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformer.command_line import Parser, decode_options, set_up_jax
from transformer.config import (
    Config,
    DecodeConfig,
    FinetuneConfig,
    LanguageModelConfig,
    MaskedConfig,
    ParsingConfig,
    UserError,
    require_task,
    whole_number,
)
from transformer.evaluation import LESS_TO_DECODE
from transformer.memory import enough_memory
from transformer.packages import require
from transformer.verbs.decoding import workdir_first

if TYPE_CHECKING:
    from transformer.checkpoint import Checkpoint

log = logging.getLogger("transformer")

_PROGRAM = "python -m transformer page"
_TOLD = (
    "Serves the page and its API, and prints the address when it is ready. Ctrl-C or SIGTERM ends it, after the "
    "requests that have begun. docs/page.md describes both."
)


def _port(text: str) -> int:
    """An argparse type."""
    number = whole_number(text)
    if number is None or not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, from 0 to 65535; 0 = a free one")
    return number


@enough_memory(LESS_TO_DECODE)
def page(arguments: list[str]) -> None:
    """Serve a page that shows what a model does: pieces, beams as a tree, attention; and an API."""
    parser = Parser(_PROGRAM, page.__doc__, epilog=_TOLD, add_help=False)
    parser.add_argument("workdir", nargs="?", help="the workdir of a training run; of several seeds, the best is used")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default 127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=_port, default=8000, help="default 8000; 0 = a free one")
    parser.add_argument("--checkpoint", help="best, last, average or a step; default: the average if any, else best")
    parser.add_argument("-h", "--help", action="store_true", help="show this help and stop")
    args, rest = parser.parse_known_args(arguments)
    if args.help:
        parser.print_help()
        print("\nDecoding (default: the values in the workdir's config):\n")
        decode_options(Config(), ["--help"], parser.prog)
    workdir_first(parser, args, arguments, "--port 8000")
    require(_PROGRAM, "starlette", "uvicorn")
    from transformer.tools.page.server import address_of, hosts_of, listening, serve, server

    with listening(args.host, args.port) as bound:
        set_up_jax()
        from transformer.checkpoint import Checkpoints, best_seed
        from transformer.tools.page.app import application
        from transformer.tools.page.kinds import kind_of
        from transformer.tools.page.line import Line

        def opened(checkpoint: Checkpoint) -> tuple[Any, dict[str, Any]]:
            log.info("using checkpoint %s of %s", checkpoint.name, args.workdir)
            return kind_of(checkpoint, _options(checkpoint.config, args.workdir, rest, parser.options()))

        kind, model = Checkpoints(best_seed(args.workdir)).read(args.checkpoint, opened)
        model["name"] = Path(os.path.abspath(args.workdir)).name
        kind.warm_up()
        app = application(kind.endpoints, model, hosts_of(bound, args.host), Line())
        serve(server(app, lambda: print(address_of(bound, args.host), flush=True)), bound)


def _options(config: Any, workdir: str, rest: list[str], options: Sequence[str]) -> DecodeConfig | None:
    """The options of the search; None if the model has none. Raises `UserError` for a model that has no page."""
    require_task(config, workdir, Config, LanguageModelConfig, MaskedConfig, FinetuneConfig, ParsingConfig)
    if isinstance(config, Config | LanguageModelConfig | ParsingConfig):
        return decode_options(config, rest, _PROGRAM, options)
    if rest:
        raise UserError(f"{rest[0]}: the task {config.task!r} has no such option; leave it out")
    return None
