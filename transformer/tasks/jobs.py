"""The command lines of train.py and evaluate.py."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from transformer.command_line import Parser, configured, evaluate_options, set_up_jax, whole
from transformer.config import Config, UserError, to_json, whole_number
from transformer.data.folder import writable_cache_dir
from transformer.files import unchanged
from transformer.memory import enough_memory
from transformer.streams import print_json

if TYPE_CHECKING:
    from transformer.tasks.translation import Translation

log = logging.getLogger("transformer")


SMALLER = (
    "lower train.batch_tokens in a new run; or, for the same updates, raise train.accumulate (--batch auto finds how "
    "far) or set --train.remat True, which a run may go on with; if it came while tokenising, set --data.workers 1"
)
LESS = "give lower --decode.batch_tokens, --decode.batch_sentences or --decode.streams"


@enough_memory(SMALLER)
def train(arguments: Sequence[str]) -> None:
    """train.py: train, or with --print-config or --dry-run only show what would run."""
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
    own, rest, config = configured(parser, arguments)
    if config is None:
        raise UserError("--config is missing; for a first run: --config configs/quickstart.py")
    if own.print_config:
        print(to_json(config), end="")
        return
    if not own.workdir:
        raise UserError("--workdir is missing; for a first run: --workdir runs/quickstart")

    profile = _span(own.profile)
    if profile and "://" in own.workdir:
        raise UserError(f"--profile {own.profile}: traces can be written to a local workdir only")
    if own.batch and any(argument.startswith("--train.accumulate") for argument in rest):
        raise UserError("--batch auto chooses train.accumulate itself; leave one of the two out")
    if own.dry_run and own.process not in (None, "0/1"):
        raise UserError("--dry-run is for a single process; leave out --process and --coordinator")
    if own.deterministic:  # read when JAX looks for its devices, which is later
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
    from transformer.training import processes

    processes.start(own.coordinator, own.process)
    with processes.all_or_none(), writable_cache_dir(config.data):
        pass  # one that can't be made is told before anything begins
    set_up_jax()
    if own.deterministic:
        refuse_indeterminate(config)
    from transformer.tasks.judges import check_scoring
    from transformer.tasks.translation import Translation, cut_into
    from transformer.tasks.vocabulary import vocabulary
    from transformer.training import loop
    from transformer.training.fit import dry_run
    from transformer.training.start import check_start, hold, refuse_other_config

    with processes.all_or_none():
        check_start(config, own.workdir, vocabulary(config, own.workdir))
        check_scoring(config)
    if own.dry_run:
        task = Translation.build(config)
        if own.batch:
            task = fitting(task)
        dry_run(task, own.workdir)
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(processes.together())
        lock = None
        stack.enter_context(enough_memory(SMALLER))  # inside, as the other processes are to be told
        config = with_rule_of(own.workdir, config)
        kept = accumulation_of(own.workdir) if own.batch else None
        if kept is not None:
            config = cut_into(config, kept)
        with processes.all_or_none():
            refuse_other_config(config, own.workdir)
            if processes.first():
                lock = stack.enter_context(hold(own.workdir))
        with processes.in_turn("the tokenizer and the tokenised text", 60.0 * own.wait_minutes):
            task = Translation.build(config, own.workdir)
            task.prepare()
        if own.batch and kept is None:
            task = fitting(task)
        loop.train(task, own.workdir, profile=profile, lock=lock)


def refuse_indeterminate(config: Config) -> None:
    """Raise `UserError` where a model's kernel fails under deterministic operations."""
    import jax

    model = config.model
    if model.attention_kernel == "cudnn" and model.dtype == "bfloat16" and jax.default_backend() == "gpu":
        raise UserError(
            "--deterministic: cuDNN's attention fails under deterministic operations (seen with JAX 0.11); train with "
            "--model.attention_kernel plain, in a new workdir"
        )


def fitting(task: Translation) -> Translation:
    """The task with as many micro-batches as memory asks for."""
    from transformer.training.fit import accumulation

    task.prepare()
    return task.cut_into(accumulation(task.cut_into))


def with_rule_of(workdir: str, config: Config) -> Config:
    """The config, for a run that may go on. Where "identity" was the default when the workdir was made, and the config
    has the default of today, "identity" stays."""
    from transformer.checkpoint import Checkpoints
    from transformer.training.start import config_of

    with contextlib.suppress(UserError):
        there = config_of(Checkpoints(workdir))
        if there is not None and (there.data.normalization, config.data.normalization) == ("identity", "clean"):
            log.info("%s keeps data.normalization 'identity', with which it was begun", workdir)
            return dataclasses.replace(config, data=dataclasses.replace(config.data, normalization="identity"))
    return config


def accumulation_of(workdir: str) -> int | None:
    """How many micro-batches the run in a workdir has; None if there is none, or nothing readable."""
    from transformer.checkpoint import Checkpoints
    from transformer.training.start import config_of

    with contextlib.suppress(UserError):
        if (there := config_of(Checkpoints(workdir))) is not None:
            return there.train.accumulate
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
    own, rest = parser.parse_known_args(arguments)
    if own.help:
        parser.print_help()
        print("\nDecoding and scoring, by default as in the workdir's config:\n")
        evaluate_options(Config(), ["--help"], "evaluate.py")
    if not own.workdir:
        raise UserError("--workdir is missing")
    from transformer.tasks.sets import check_given
    from transformer.training import processes

    check_given(own.source, own.reference)

    processes.start(own.coordinator, own.process)
    set_up_jax()
    from transformer.tasks.scoring import evaluate_workdir

    with unchanged(own.workdir) as check:
        result = evaluate_workdir(
            own.workdir,
            source=own.source,
            references=own.reference,
            checkpoint=own.checkpoint,
            against=own.against,
            options=lambda config: evaluate_options(config, rest, "evaluate.py", parser.options()),
        )
        if processes.first():
            _hand_over(result, own.workdir, check, as_json=own.json)


def _hand_over(result: dict[str, Any], workdir: str, check: Callable[[], None], *, as_json: bool) -> None:
    """Print a result and store it in the workdir. Neither is lost where the other fails; `check` is as for `store`."""
    from transformer.tasks.scoring import lines_of, store

    printed = False
    try:
        if as_json:
            print_json(result)
        else:
            print("\n".join(lines_of(result)))
        sys.stdout.flush()
        printed = True
    finally:
        stored = store(workdir, result, check)
        if stored and not printed:
            log.info("the scores are stored in %s/scores.jsonl", workdir)
        for line in () if stored or printed else lines_of(result):
            log.info("%s", line)
