"""The program behind train.py, for any task."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformer.command_line import Parser, configured, set_up_jax, whole
from transformer.config import UserError, flatten, to_json, whole_number, with_micro_batches
from transformer.files import local, refuse_pipe
from transformer.memory import enough_memory
from transformer.packages import require
from transformer.tasks import TASKS

if TYPE_CHECKING:
    from transformer.training.task import RunnableTask

log = logging.getLogger("transformer")


def less_to_train(config: Any) -> str:
    """How a run of this config needs less memory."""
    fields = flatten(config)
    batch = next(name for name in ("tune.batch_rows", "train.batch_tokens") if name in fields)
    fix = (
        f"lower {batch} in a new run; or, for the same updates, raise train.accumulate (--batch auto finds how far) or "
        "set --train.remat True, with which a run can resume"
    )
    return f"{fix}; if this came while tokenising, set --data.workers 1" if "data.workers" in fields else fix


def train(arguments: Sequence[str]) -> None:
    """train.py: train; with --print-config or --dry-run only show what would run. Raises `UserError`."""
    options, rest, config = configured(_train_parser(), arguments)
    if config is None:
        raise UserError("--config is missing; for a first run: --config configs/quickstart.py")
    with enough_memory(less_to_train(config)):
        _run_as_given(options, rest, config)


def _run_as_given(options: argparse.Namespace, rest: Sequence[str], config: Any) -> None:
    """Train, or show what would run. `rest`: the arguments that changed the config."""
    if options.print_config:
        print(to_json(config), end="")
        return
    if not options.workdir:
        raise UserError("--workdir is missing; for a first run: --workdir runs/quickstart")
    require("training", "grain", "tensorboardX")  # before text is read: updates are not reached in a minute
    profile = _span(options.profile)
    if profile and not _can_hold_traces(options.workdir):
        raise UserError(
            f"--profile {options.profile}: traces can be written to a local workdir only, with a path in valid UTF-8"
        )
    if options.batch and any(argument.startswith("--train.accumulate") for argument in rest):
        raise UserError("--batch auto chooses train.accumulate itself; leave one of the two out")
    if options.dry_run and options.process not in (None, "0/1"):
        raise UserError("--dry-run is for a single process; leave out --process and --coordinator")
    if options.deterministic:  # JAX reads it when it finds its devices, below
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
    from transformer.training import processes

    processes.start(options.coordinator, options.process)
    task = TASKS[config.task]()
    with processes.all_or_none():
        task.check_cache(config)  # before JAX opens its own cache there
    set_up_jax()
    if options.deterministic:
        refuse_indeterminate(config)
    with processes.all_or_none():
        refuse_other_count(config.train.seeds, options.workdir)
    if config.train.seeds == 1:
        _run(task, config, options, profile)
    else:
        _run_seeds(task, config, options, profile)


def refuse_other_count(seeds: int, workdir: str) -> None:
    """Raise `UserError` if the workdir holds one run and several are to be trained, or the other way round."""
    from transformer.checkpoint import seeds_in
    from transformer.files import path_of

    if seeds == 1 and (found := seeds_in(workdir)):
        raise UserError(
            f"{workdir} holds the runs of {len(found)} seeds; give --train.seeds {len(found)}, or another --workdir"
        )
    if seeds > 1 and any((path_of(workdir) / name).exists() for name in ("config.json", "checkpoints")):
        raise UserError(f"{workdir} holds a single run; leave --train.seeds out, or use another --workdir")


def _run_seeds(
    task: type[RunnableTask], config: Any, options: argparse.Namespace, profile: tuple[int, int] | None
) -> None:
    """Train with several seeds, each in a folder of the workdir, and log a summary of their scores.

    The other seeds go on if the numbers of one are no longer finite; its error is raised at the end.
    """
    from transformer.checkpoint import seed_folder, seeds_in
    from transformer.tasks.seeds import summary
    from transformer.training import processes
    from transformer.training.loop import Diverged
    from transformer.training.workdir import refuse_conflict, refuse_no_workdir

    def of(seed: int) -> tuple[Any, argparse.Namespace]:
        """Config and options of one seed."""
        one = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed, seeds=1))
        return one, argparse.Namespace(**vars(options) | {"workdir": str(seed_folder(options.workdir, seed))})

    for name in config.movable:
        given = flatten(config)[name]
        for path in (given,) if isinstance(given, str) else given or ():
            refuse_pipe(path)
    broken: list[Diverged] = []
    first, count = config.train.seed, config.train.seeds
    with processes.all_or_none():
        # All seeds of a folder are scored together.
        for seed in sorted({*seeds_in(options.workdir), *range(first, first + count)}):
            as_stored, stored = _as_stored(task, *of(seed))
            if stored is None:
                refuse_no_workdir(str(seed_folder(options.workdir, seed)))
            else:
                refuse_conflict(stored, as_stored, seed_folder(options.workdir, seed))
    for seed in range(first, first + count):
        log.info("seed %d (%d of %d)", seed, seed - first + 1, count)
        one, folder = of(seed)
        try:
            _run(task, one, folder, profile)
        except Diverged as error:
            log.warning("seed %d: %s", seed, error)
            broken.append(error)
        if options.dry_run:
            return
    for line in summary(options.workdir, range(first, first + count)):
        log.info("%s", line)
    if broken:
        raise broken[0]


def _run(task: type[RunnableTask], config: Any, options: argparse.Namespace, profile: tuple[int, int] | None) -> None:
    """Train one run in the workdir, or try it."""
    from transformer.training import processes

    with processes.all_or_none():
        config, stored = _as_stored(task, config, options)
        task.check(config, options.workdir)
    if options.dry_run:
        _dry_run(task, config, stored, options)
    else:
        _train(task, config, stored, options, profile)


def _train_parser() -> Parser:
    parser = Parser("train.py", "Train a model. The same command again resumes the run.", add_help=False)
    parser.add_argument("--config", metavar="FILE", help="a config file, or the name of a ready one: quickstart")
    parser.add_argument("--workdir", metavar="DIR", help="folder for checkpoints, log and tokenizer; local or gs://")
    parser.add_argument("--print-config", action="store_true", help="print the complete config as JSON, and stop")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything, compile the largest shapes, run one update, save, restore, decode two sentences, "
        "print memory and a time estimate, and stop; does not change the workdir",
    )
    parser.add_argument(
        "--batch",
        choices=["auto"],
        help="auto: compile to find the fewest micro-batches (train.accumulate) that fit a device's memory",
    )
    parser.add_argument(
        "--profile", metavar="A:B", help="write a trace of updates A to B to WORKDIR/profile, for xprof or Perfetto"
    )
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="on a GPU: the same bits in each run, with slower kernels (not with model.attention_kernel cudnn); on a "
        "CPU with the same number of cores they are the same without this option",
    )
    process_options(parser)
    parser.add_argument(
        "--wait-minutes",
        type=whole(0),
        default=60,
        help="how long other processes wait for process 0 to tokenise (default 60)",
    )
    return parser


def _train(
    task: type[RunnableTask],
    config: Any,
    stored: Any,
    options: argparse.Namespace,
    profile: tuple[int, int] | None,
) -> None:
    """Train in the workdir, and lock it against other runs. `stored`: the config of the run there, or None."""
    from transformer.training import loop, processes
    from transformer.training.workdir import hold, refuse_other_config

    with contextlib.ExitStack() as stack:
        stack.enter_context(processes.fail_fast())
        lock = None
        stack.enter_context(enough_memory(less_to_train(config)))  # inside, so that the other processes get its message
        # They decide how often the processes wait for each other below.
        processes.agree({"--batch": options.batch, "whether a run is there": stored is not None})
        with processes.all_or_none():
            refuse_other_config(config, options.workdir)
            if processes.first():
                lock = stack.enter_context(hold(options.workdir))
        with processes.in_turn("the tokenizer and the tokenised text", 60.0 * options.wait_minutes):
            built = task.build(config, options.workdir)
            built.prepare()
        if options.batch and stored is None:
            built = fewest_micro_batches(built)
        loop.train(built, options.workdir, profile=profile, lock=lock)


def _dry_run(task: type[RunnableTask], config: Any, stored: Any, options: argparse.Namespace) -> None:
    """Try every part of a run once. Writes nothing in the workdir, but refuses it where a run would."""
    from transformer.training.fit import dry_run
    from transformer.training.workdir import refuse_held, refuse_other_config

    refuse_other_config(config, options.workdir)
    refuse_held(options.workdir)
    built = task.build(config, options.workdir)
    dry_run(fewest_micro_batches(built) if options.batch and stored is None else built, options.workdir)


def _as_stored(task: type[RunnableTask], config: Any, options: argparse.Namespace) -> tuple[Any, Any]:
    """`config` with the fields that a run keeps when it resumes, and the stored config of the run in the workdir, or
    None. Raises `UserError` if that is a run of another task."""
    stored = stored_config(options.workdir)
    if stored is None:
        return config, None
    if stored.task != config.task:
        raise UserError(
            f"{options.workdir} was trained with another config: task is {stored.task!r} there, {config.task!r} now. "
            "Use another --workdir"
        )
    config = task.resumed(config, stored)
    if options.batch:
        config = with_micro_batches(config, stored.train.accumulate)
    return config, stored


def refuse_indeterminate(config: Any) -> None:
    """Raise `UserError` if the model's attention kernel fails under deterministic operations."""
    import jax

    model = config.model
    if model.attention_kernel == "cudnn" and model.dtype == "bfloat16" and jax.default_backend() == "gpu":
        raise UserError(
            "--deterministic: cuDNN's attention fails under deterministic operations (seen with JAX 0.11); train with "
            "--model.attention_kernel plain, in a new workdir"
        )


def fewest_micro_batches(task: RunnableTask) -> RunnableTask:
    """The task with the fewest micro-batches that fit memory."""
    from transformer.training.fit import accumulation

    task.prepare()
    return task.cut_into(accumulation(task.cut_into))


def stored_config(workdir: Any) -> Any:
    """The config of the run in a workdir; None if there is none or it can't be read."""
    from transformer.checkpoint import Checkpoints
    from transformer.training.workdir import config_of

    with contextlib.suppress(UserError):
        return config_of(Checkpoints(workdir))
    return None


def _span(text: str | None) -> tuple[int, int] | None:
    """'10:15' as two numbers. Raises `UserError` for anything else."""
    if text is None:
        return None
    numbers = [whole_number(number) for number in text.split(":")]
    if len(numbers) != 2 or None in numbers or not 1 <= numbers[0] <= numbers[1]:
        raise UserError(f"--profile {text}: give the first and the last update, such as 10:15")
    return numbers[0], numbers[1]


def _can_hold_traces(workdir: str) -> bool:
    """Whether JAX's profiler can write to this folder."""
    try:
        return local(workdir) and os.fsencode(workdir) == workdir.encode()
    except UnicodeEncodeError:
        return False


def process_options(parser: Parser) -> None:
    """Add the options that say which process of a run this is."""
    parser.add_argument(
        "--process",
        metavar="I/N",
        help="number of this process (from 0) and of all; not needed in jobs of SLURM, Cloud TPU and GKE",
    )
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="a free port on the host of process 0")
