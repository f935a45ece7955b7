"""The command lines of train.py and evaluate.py."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from transformer.command_line import Parser, configured, evaluate_options, set_up_jax, whole
from transformer.config import Config, UserError, to_json, whole_number, with_micro_batches
from transformer.files import unchanged
from transformer.memory import enough_memory
from transformer.streams import print_json
from transformer.tasks import TASKS

log = logging.getLogger("transformer")


SMALLER = (
    "lower train.batch_tokens in a new run; or, for the same updates, raise train.accumulate (--batch auto finds how "
    "far) or set --train.remat True, which a run may go on with; if it came while tokenising, set --data.workers 1"
)
LESS = "give lower --decode.batch_tokens, --decode.batch_sentences or --decode.streams"


@enough_memory(SMALLER)
def train(arguments: Sequence[str]) -> None:
    """train.py: train, or with --print-config or --dry-run only show what would run."""
    options, rest, config = configured(_train_parser(), arguments)
    if config is None:
        raise UserError("--config is missing; for a first run: --config configs/quickstart.py")
    if options.print_config:
        print(to_json(config), end="")
        return
    if not options.workdir:
        raise UserError("--workdir is missing; for a first run: --workdir runs/quickstart")
    profile = _span(options.profile)
    if profile and "://" in options.workdir:
        raise UserError(f"--profile {options.profile}: traces can be written to a local workdir only")
    if options.batch and any(argument.startswith("--train.accumulate") for argument in rest):
        raise UserError("--batch auto chooses train.accumulate itself; leave one of the two out")
    if options.dry_run and options.process not in (None, "0/1"):
        raise UserError("--dry-run is for a single process; leave out --process and --coordinator")
    if options.deterministic:  # read when JAX looks for its devices, which is later
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
    from transformer.training import processes

    processes.start(options.coordinator, options.process)
    set_up_jax()
    if options.deterministic:
        refuse_indeterminate(config)
    task = TASKS[config.task]()
    with processes.all_or_none():
        task.check(config, options.workdir)
    if options.dry_run:
        from transformer.training.fit import dry_run

        made = task.build(config)
        dry_run(fitting(made) if options.batch else made, options.workdir)
    else:
        _train(task, config, options, profile)


def _train_parser() -> Parser:
    parser = Parser("train.py", "Train a model, or go on with one: the same command again resumes.", add_help=False)
    parser.add_argument("--config", metavar="FILE", help="a config file, such as configs/quickstart.py")
    parser.add_argument("--workdir", metavar="DIR", help="where checkpoints, log and tokenizer go; local or gs://")
    parser.add_argument("--print-config", action="store_true", help="print what would run, as JSON, and stop")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything, compile the largest shapes, take one step, save, restore, decode two sentences, "
        "print memory and a time estimate, and stop; the workdir stays untouched",
    )
    parser.add_argument(
        "--batch",
        choices=["auto"],
        help="auto: as few micro-batches (train.accumulate) as fit a device's memory, found by compiling",
    )
    parser.add_argument(
        "--profile", metavar="A:B", help="write a trace of updates A to B to WORKDIR/profile, for xprof or Perfetto"
    )
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="on a GPU: the same bits each time, by slower kernels (not with model.attention_kernel cudnn); on a CPU "
        "they are the same anyway, with the same number of cores",
    )
    _process_options(parser)
    parser.add_argument(
        "--wait-minutes",
        type=whole(0),
        default=60,
        help="how long the others wait for process 0 to tokenise (default 60)",
    )
    return parser


def _train(task: Any, config: Any, options: argparse.Namespace, profile: tuple[int, int] | None) -> None:
    """Train in the workdir, which no other run may use meanwhile."""
    from transformer.training import loop, processes
    from transformer.training.start import hold, refuse_other_config

    with contextlib.ExitStack() as stack:
        stack.enter_context(processes.fail_fast())
        lock = None
        stack.enter_context(enough_memory(SMALLER))  # inside, as the other processes are to be told
        there = config_there(options.workdir)
        if there is not None and type(there) is type(config):
            config = task.resumed(config, there)
        found = there is not None and options.batch
        if found:
            config = with_micro_batches(config, there.train.accumulate)
        with processes.all_or_none():
            refuse_other_config(config, options.workdir)
            if processes.first():
                lock = stack.enter_context(hold(options.workdir))
        with processes.in_turn("the tokenizer and the tokenised text", 60.0 * options.wait_minutes):
            made = task.build(config, options.workdir)
            made.prepare()
        if options.batch and not found:
            made = fitting(made)
        loop.train(made, options.workdir, profile=profile, lock=lock)


def refuse_indeterminate(config: Any) -> None:
    """Raise `UserError` where a model's kernel fails under deterministic operations."""
    import jax

    model = config.model
    if model.attention_kernel == "cudnn" and model.dtype == "bfloat16" and jax.default_backend() == "gpu":
        raise UserError(
            "--deterministic: cuDNN's attention fails under deterministic operations (seen with JAX 0.11); train with "
            "--model.attention_kernel plain, in a new workdir"
        )


def fitting(task: Any) -> Any:
    """The task with as many micro-batches as memory asks for."""
    from transformer.training.fit import accumulation

    task.prepare()
    return task.cut_into(accumulation(task.cut_into))


def config_there(workdir: str) -> Any:
    """The config of the run in a workdir; None if there is none, or nothing readable."""
    from transformer.checkpoint import Checkpoints
    from transformer.training.start import config_of

    with contextlib.suppress(UserError):
        return config_of(Checkpoints(workdir))
    return None


def _span(text: str | None) -> tuple[int, int] | None:
    """'10:15' as two numbers."""
    if text is None:
        return None
    numbers = [whole_number(number) for number in text.split(":")]
    if len(numbers) != 2 or None in numbers or not 1 <= numbers[0] <= numbers[1]:
        raise UserError(f"--profile {text}: give the first and the last update, such as 10:15")
    return numbers[0], numbers[1]


def _process_options(parser: Parser) -> None:
    parser.add_argument(
        "--process",
        metavar="I/N",
        help="this is process I of N (from 0) that work together; jobs of SLURM, Cloud TPU and GKE need not say so",
    )
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="where they meet: a free port of process 0's host")


@enough_memory(LESS)
def evaluate(arguments: Sequence[str]) -> None:
    """evaluate.py: translate a test set and score it."""
    parser = Parser("evaluate.py", "Translate a test set by beam search and score it with sacreBLEU.", add_help=False)
    parser.add_argument("--workdir", metavar="DIR", help="the workdir of a training run")
    parser.add_argument(
        "--source", metavar="FILE", help="sentences to translate; default: the config's test set, else dev"
    )
    parser.add_argument(
        "--reference",
        metavar="FILE",
        action="append",
        default=[],
        help="their reference translations, line by line; may be repeated, for several references of each sentence; "
        "left out if the source is a .tsv or .jsonl with both sides",
    )
    parser.add_argument(
        "--checkpoint", help="best, last, average or a step; default: the average if made, else the best"
    )
    parser.add_argument("--against", metavar="DIR", help="another workdir: sacreBLEU's paired bootstrap of the two")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    _process_options(parser)
    parser.add_argument("-h", "--help", action="store_true", help="show this and stop")
    options, rest = parser.parse_known_args(arguments)
    if options.help:
        parser.print_help()
        print("\nDecoding and scoring, by default as in the workdir's config:\n")
        evaluate_options(Config(), ["--help"], "evaluate.py")
    if not options.workdir:
        raise UserError("--workdir is missing")
    from transformer.tasks.sets import check_given
    from transformer.training import processes

    check_given(options.source, options.reference)
    processes.start(options.coordinator, options.process)
    set_up_jax()
    there = config_there(options.workdir)
    task = TASKS[Config.task if there is None else there.task]()
    with unchanged(options.workdir) as check:
        result = task.score(
            options.workdir,
            source=options.source,
            references=options.reference,
            checkpoint=options.checkpoint,
            against=options.against,
            options=lambda config: evaluate_options(config, rest, "evaluate.py", parser.options()),
        )
        if processes.first():
            _hand_over(result, list(task.lines_of(result)), options.workdir, check, as_json=options.json)


def _hand_over(
    result: dict[str, Any], lines: Sequence[str], workdir: str, check: Callable[[], None], *, as_json: bool
) -> None:
    """Print a result, or its lines, and store it in the workdir. Neither is lost where the other fails; `check` is as
    for `store`."""
    from transformer.tasks.scoring import store

    printed = False
    try:
        if as_json:
            print_json(result)
        else:
            print("\n".join(lines))
        sys.stdout.flush()
        printed = True
    finally:
        stored = store(workdir, result, check)
        if stored and not printed:
            log.info("the scores are stored in %s/scores.jsonl", workdir)
        for line in () if stored or printed else lines:
            log.info("%s", line)
