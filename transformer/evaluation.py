"""The program behind evaluate.py, for any task."""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

from transformer.command_line import Parser, evaluate_options, set_up_jax, whole
from transformer.config import Config, UserError
from transformer.files import unchanged
from transformer.jobs import process_options, stored_config
from transformer.memory import enough_memory
from transformer.streams import print_json
from transformer.tasks import TASKS

log = logging.getLogger("transformer")

LESS_TO_DECODE = "give lower --decode.batch_tokens, --decode.batch_sentences or --decode.streams"
LESS_TO_SEARCH = f"{LESS_TO_DECODE}; for a single sentence, fewer hypotheses: --decode.beam_size, --decode.n_best"


def _parser() -> Parser:
    parser = Parser("evaluate.py", "Score a trained model on a test set.", add_help=False)
    parser.add_argument("--workdir", metavar="DIR", help="the workdir of a training run")
    parser.add_argument(
        "--source", metavar="FILE", help="sentences to translate; default: the config's test set, else dev"
    )
    parser.add_argument(
        "--reference",
        metavar="FILE",
        action="append",
        default=[],
        help="reference translations of --source, line by line; repeat it for several references a sentence; leave it "
        "out if the source is a .tsv or .jsonl with both sides",
    )
    parser.add_argument(
        "--checkpoint", help="best, last, average or a step; default: the average if any, else the best"
    )
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="labelled texts or trees to score a fine-tuned encoder or a parser on; default: as for --source; columns "
        "of labelled texts are those of the training files, or --data.text NAME, --data.second NAME (for pairs), "
        "--data.label NAME",
    )
    parser.add_argument("--text", metavar="FILE", help="text to score a language model on; default: as for --source")
    parser.add_argument(
        "--stride",
        type=whole(1),
        metavar="N",
        help="a language model's sliding perplexity: each block begins N pieces after the one before it",
    )
    parser.add_argument("--against", metavar="DIR", help="another workdir: sacreBLEU's paired bootstrap test of both")
    parser.add_argument(
        "--breakdown",
        action="store_true",
        help="where translations go wrong: BLEU by length of the source, copied words, repetitions, wrong words",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    process_options(parser)
    parser.add_argument("-h", "--help", action="store_true", help="show this help and stop")
    return parser


@enough_memory(LESS_TO_SEARCH)
def evaluate(arguments: Sequence[str]) -> None:
    """evaluate.py: score a trained model on a test set. Raises `UserError`."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if options.help:
        parser.print_help()
        print("\nDecoding and scoring (default: the values in the workdir's config):\n")
        evaluate_options(Config(), ["--help"], "evaluate.py")
    if not options.workdir:
        raise UserError("--workdir is missing")
    from transformer.tasks.sets import check_given
    from transformer.training import processes

    processes.start(options.coordinator, options.process)
    set_up_jax()
    stored = _config_to_score(options.workdir)
    task = TASKS[Config.task if stored is None else stored.task]()
    given = {
        "source": options.source,
        "references": options.reference,
        "checkpoint": options.checkpoint,
        "data": options.data,
        "text": options.text,
        "stride": options.stride,
        "against": options.against,
        "breakdown": options.breakdown,
        "options": lambda config: evaluate_options(config, rest, "evaluate.py", parser.options()),
    }
    given = _accepted(task.score, given, rest, options.workdir)
    check_given(options.source, options.reference)
    with unchanged(options.workdir) as check:
        result = task.score(options.workdir, **given)
        if processes.first():
            _print_and_store(result, list(task.lines_of(result)), options.workdir, check, as_json=options.json)


def _config_to_score(workdir: str) -> Any:
    """The config of the run in a workdir, of those in its folders seed-N, or of an imported model; None without any."""
    from transformer.checkpoint import AVERAGE, Checkpoints, seed_folder, seeds_in

    if stored := stored_config(workdir):
        return stored
    with contextlib.suppress(UserError):
        seeds = seeds_in(workdir)
        return stored_config(seed_folder(workdir, seeds[0])) if seeds else Checkpoints(workdir).open(AVERAGE).config
    return None


def _accepted(score: Callable[..., Any], given: dict[str, Any], rest: Sequence[str], workdir: str) -> dict[str, Any]:
    """The options that a task's `score` has. Raises `UserError` if the command line gives another one.

    `rest`: the arguments that the entry "options" applies to a config.
    """
    parameters = inspect.signature(score).parameters
    for name in given.keys() - parameters.keys():
        if rest if name == "options" else given[name]:
            option = rest[0] if name == "options" else f"--{name.removesuffix('s')}"
            known = [f"--{name.removesuffix('s')}" for name in parameters if name in given and name != "options"]
            raise UserError(
                f"{option}: the task of {workdir} has no such option; leave it out (it has {', '.join(known)})"
            )
    return {name: value for name, value in given.items() if name in parameters}


def _print_and_store(
    result: dict[str, Any], lines: Sequence[str], workdir: str, check: Callable[[], None], *, as_json: bool
) -> None:
    """Print a result (as JSON, or `lines`) and store it in the workdir. If one fails, the other still happens; if both
    fail, the log gets the lines. `check`: see `store`."""
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
