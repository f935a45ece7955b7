"""The programs of an installed package: transformer-train, transformer-evaluate and transformer."""

from transformer.command_line import run


def train() -> None:
    """Train a model, or go on with one."""
    from transformer.jobs import train

    run(train, interrupted="interrupted; the same command goes on from the last checkpoint")


def evaluate() -> None:
    """Score a trained model."""
    from transformer.evaluation import evaluate

    run(evaluate)


def transformer() -> None:
    """Run a verb such as `translate`; --help names them all."""
    from transformer.__main__ import main

    run(main)
