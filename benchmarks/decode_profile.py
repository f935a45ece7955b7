"""Where the time of decoding goes: a traced run of ours, taken apart by what each operation of XLA is for.

    python benchmarks/decode_profile.py --workdir runs/decode_benchmark    # the model that decode.py has trained
    python benchmarks/decode_profile.py                                    # random weights, sources of 32 random pieces

A table of milliseconds a step, a column for each type. XLA joins neighbouring operations; what it joins counts where
the last of them belongs.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from side_by_side import Worker, answer_requests, log, machine

from transformer.command_line import Parser, config_file, override, run
from transformer.config import UserError, check, to_json
from transformer.data.tokenizer import Tokenizer

HERE = Path(__file__).resolve().parent
DTYPES = ("float32", "bfloat16", "int8")
QUICK = ("--model.d_model=64", "--model.d_ff=128", "--model.heads=4", "--data.vocab_size=1000")

BETWEEN, HOST, REST = "between operations", "host: nothing runs", "masks, embedding, residuals, copies"
OTHERS = "other programs: hypotheses (once)"
# What stands in an operation's name, by the scopes of the model; the first that fits counts.
PARTS = {
    "feed_forward": "feed-forward",
    "self_attention/attend": "attention over the cache",
    "cross_attention/attend": "attention over the source",
    "write_cache": "writing the cache",
    "_attention": "products of attention: query, key, value, output",
    "logits": "product with the vocabulary",
    "softmax": "softmax",
    "choose": "choice of beams",
    "norm": "norms",
}
# Programs other than the steps, which `proceed` holds.
PROGRAMS = {
    "begin": "encoder, keys and values of the source (once)",
    "rearrange": "smaller batch, cache collected (between stages)",
}
ORDER = (*PARTS.values(), REST, *PROGRAMS.values(), OTHERS, BETWEEN, HOST)


# ---- Taking a trace apart --------------------------------------------------------------------------------------------


class Span(NamedTuple):
    """Something that ran, in nanoseconds."""

    begin: float
    end: float
    part: str


def part_of(module: str, path: str, opcode: str) -> str:
    """What an operation is for. `path` is its name with the model's scopes, "" if XLA made it up."""
    if opcode in ("while", "conditional"):  # what is inside is told apart
        return BETWEEN
    if module != "jit_proceed":
        return PROGRAMS.get(module.removeprefix("jit_"), OTHERS)
    return next((part for scope, part in PARTS.items() if scope in path), REST)


def instructions(dump: Path, program: int) -> dict[str, tuple[str, str]]:
    """Path and opcode of each instruction of a program, by name, as XLA has written them down."""
    found = {}
    for file in dump.glob(f"module_{program:04d}.*after_optimizations.txt"):
        for line in file.read_text().splitlines():
            if made := re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = .*?\s([a-z][\w\-]*)\(", line):
                path = re.search(r'op_name="([^"]*)"', line)
                found[made[1]] = path[1] if path else "", made[2]
    return found


def spans(trace: Path, dump: Path) -> Iterator[Span]:
    """What ran in a trace: operations, and the programs they belong to."""
    from jax.profiler import ProfileData

    (file,) = trace.glob("**/*.xplane.pb")
    events = [
        (event, dict(event.stats))
        for plane in ProfileData.from_file(str(file)).planes
        for line in plane.lines
        if line.name != "python"
        for event in line.events
    ]
    # An operation that goes on after its thread was free has another event where it ends.
    ends = {stats["_c"]: event.end_ns for event, stats in events if event.name.startswith("end: ") and "_c" in stats}
    known: dict[int, dict[str, tuple[str, str]]] = {}
    programs: dict[tuple[int, int], list[float]] = {}
    for event, stats in events:
        if "hlo_op" not in stats:
            continue
        program = stats["program_id"]
        if program not in known:
            known[program] = instructions(dump, program)
            if stats["hlo_module"] == "jit_proceed" and not known[program]:
                raise RuntimeError(f"XLA wrote nothing down of program {program}, {stats['hlo_module']}")
        end = max(event.end_ns, ends.get(stats.get("_p"), 0))
        both = programs.setdefault((program, stats["run_id"]), [event.start_ns, end])
        both[:] = min(both[0], event.start_ns), max(both[1], end)
        path, opcode = known[program].get(stats["hlo_op"], ("", ""))
        yield Span(event.start_ns, end, part_of(stats["hlo_module"], path, opcode))
    for begin, end in programs.values():
        yield Span(begin, end, BETWEEN)


def shared_out(running: Iterable[Span]) -> Counter[str]:
    """Seconds of each part. Of spans that overlap the one that began last has the time: the innermost, if nested."""
    seconds: Counter[str] = Counter()
    # The programs' own spans begin with their first operation: the longer one first, so that it is the outer.
    todo = sorted(running, key=lambda span: (span.begin, -span.end))
    active: list[Span] = []  # by begin
    now = 0.0

    def pass_until(time: float) -> None:
        nonlocal now
        while active and now < time:
            last = active[-1]
            until = min(last.end, time)
            if until > now:
                seconds[last.part] += (until - now) / 1e9
                now = until
            if last.end <= now:
                active.pop()
        now = max(now, time)

    for span in todo:
        pass_until(span.begin)
        active.append(span)
    pass_until(max((span.end for span in todo), default=0.0))
    return seconds


# ---- The process that is traced --------------------------------------------------------------------------------------


def traced(dump: str, repeats: int, job: list, **settings: Any) -> tuple[str, Any]:
    """What answers: seconds of a decoding, its median without a trace, and of each part in a run with one."""
    import jax
    import systems

    decode, work = systems.ours(**settings), systems.Job(*job)
    decode(work)

    def answer(_: Any) -> dict[str, Any]:
        took = []
        for _ in range(repeats):
            began = time.perf_counter()
            decode(work)
            took.append(time.perf_counter() - began)
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # each call of a function would cost
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder, profiler_options=options):
                began = time.perf_counter()
                decode(work)
                whole = time.perf_counter() - began
            parts = shared_out(spans(Path(folder), Path(dump)))
        return {"took": statistics.median(took), "traced": whole, "parts": parts}

    return "ready", answer


# ---- The command -----------------------------------------------------------------------------------------------------


def sources_of(work: Path, batch: int, length: int) -> list[list[int]]:
    """Test sentences of the benchmark whose reference has about so many pieces."""
    pieces = Tokenizer.load(work / "run/tokenizer.model")
    sources, targets = (
        pieces.encode((work / f"text/test.{language}").read_text(encoding="utf-8").splitlines())
        for language in ("en", "de")
    )
    return [sources[i] for i in sorted(range(len(sources)), key=lambda i: abs(len(targets[i]) - length))[:batch]]


def steps(options: Namespace) -> int:
    """How many steps a search takes: the last one finds eos."""
    return options.length + 1


def rows(options: Namespace, found: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row for each type and part: milliseconds a step, and the share of the time."""
    for dtype, answer in found.items():
        parts = {**answer["parts"], HOST: max(0.0, answer["traced"] - sum(answer["parts"].values()))}
        for part in ORDER:
            if part in parts:
                share = parts[part] / sum(parts.values())
                milliseconds = 1e3 * share * answer["took"] / steps(options)
                yield {"dtype": dtype, "part": part, "share": round(share, 4), "ms_a_step": round(milliseconds, 3)}


def table(options: Namespace, found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The rows as Markdown, a column for each type."""
    cells = {(row["part"], row["dtype"]): row for row in rows(options, found)}
    size = f"{options.batch} sentences, beam {options.beam}, {options.length} pieces"
    yield f"| ms a step ({size}) | {' | '.join(found)} |"
    yield "|---|" + "---|" * len(found)
    for part in (part for part in ORDER if any((part, dtype) in cells for dtype in found)):
        of_part = [cells.get((part, dtype), {"ms_a_step": 0, "share": 0}) for dtype in found]
        texts = [f"{one['ms_a_step']:.2f} ({one['share']:.0%})" for one in of_part]
        yield f"| {part} | {' | '.join(texts)} |"
    whole = " | ".join(f"{1e3 * answer['took'] / steps(options):.2f}" for answer in found.values())
    yield f"| whole, without a trace | {whole} |"


def main(arguments: list[str]) -> None:
    parser = Parser("benchmarks/decode_profile.py", __doc__.splitlines()[0])
    parser.add_argument("--workdir", help="that of decode.py; without it weights are random")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--batch", type=int, default=32, help="sentences at a time (default 32)")
    parser.add_argument("--beam", type=int, default=4, help="beam size (default 4)")
    parser.add_argument("--length", type=int, default=48, help="pieces of every output (default 48)")
    parser.add_argument("--repeats", type=int, default=3, help="runs without a trace, whose median is told (default 3)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="a toy model, for a smoke test")
    parser.add_argument("--json", action="store_true", help="print one list of rows on standard output")
    options, overrides = parser.parse_known_args(arguments)
    if options.workdir:
        work = Path(options.workdir)
        if overrides or options.quick:
            what = overrides[0] if overrides else "--quick"
            raise UserError(f"{what}: not an option here, or not beside --workdir, whose model it is")
        if not (work / "run/tokenizer.model").exists():
            raise UserError(f"--workdir {work}: no model of benchmarks/decode.py there; run that first")
        weights, sources = {"run": str(work / "run")}, sources_of(work, options.batch, options.length)
    else:
        for argument in overrides:
            if argument.startswith("--") and not argument.startswith(("--model.", "--data.vocab_size")):
                raise UserError(f"{argument}: not an option; of the model --model.* and --data.vocab_size are")
        config = override(config_file(str(HERE / "model.py")), [*QUICK * options.quick, *overrides], parser.prog)
        check(config)
        draw = random.Random(0)
        sources = [[draw.randrange(4, config.data.vocab_size) for _ in range(32)] for _ in range(options.batch)]
        weights = {"config": to_json(config)}
    options.batch = len(sources)
    log(machine(("jax",)))
    job = [sources, options.batch, options.beam, options.length, options.length]
    found = {}
    for dtype in options.dtypes:
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={folder}/hlo --xla_dump_hlo_as_text"
            # What comes from a cache of compiled programs is not written down.
            variables = {"XLA_FLAGS": flags.strip(), "TRANSFORMER_CACHE": f"{folder}/cache"}
            settings = {"threads": options.threads, "device": "cpu", "dtype": dtype, "repeats": options.repeats}
            settings |= {"dump": f"{folder}/hlo", "job": job, **weights}
            worker = Worker("decode_profile.py", dtype, variables, **settings)
            stack.callback(worker.close)
            found[dtype] = worker.ask(None)
    if options.json:
        print(json.dumps(list(rows(options, found))))
    else:
        print("\n".join(table(options, found)))


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] in DTYPES:
        answer_requests(traced, json.loads(sys.argv[2]))
    else:
        run(main)
