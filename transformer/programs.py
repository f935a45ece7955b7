"""The programs of an installed package: transformer-train, transformer-evaluate and transformer."""

import signal


def train() -> None:
    """Train a model, or go on with one."""
    _end_at_once()
    from transformer.command_line import ask_for_huge_pages, run

    ask_for_huge_pages()
    from transformer.jobs import train

    run(train, interrupted="interrupted; the same command goes on from the last checkpoint")


def evaluate() -> None:
    """Score a trained model."""
    _end_at_once()
    from transformer.command_line import run
    from transformer.evaluation import evaluate

    run(evaluate)


def transformer() -> None:
    """Run a verb such as `translate`; --help names them all."""
    _end_at_once()
    from transformer.__main__ import main
    from transformer.command_line import run

    run(main)


def _end_at_once() -> None:
    """From now on, Ctrl-C ends the process without a traceback, until `run` begins and after it has ended."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
