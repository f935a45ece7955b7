"""What the first call of `Translator.translate` in a process takes: its compilations.

    python benchmarks/first_call.py runs/quickstart --rows results/first_call.jsonl

Translates the first lines of the workdir's development set, twice. CPU seconds are those of the whole process, so other
programs on the machine matter less than for the time that passes.
"""

from __future__ import annotations

import hashlib
import resource
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rows import Rows

from transformer.command_line import Parser, run, whole
from transformer.streams import print_json


def measure(workdir: str, sentences: int) -> dict[str, Any]:
    """A row: seconds of the first and of the second call, CPU seconds, and the number of programs compiled."""
    import jax

    from transformer.inference.translator import Translator

    programs: list[str] = []

    def listen(event: str, *_: Any, **__: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            programs.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    lines = (Path(workdir) / "sets" / "dev.source").read_text(encoding="utf-8").split("\n")[:sentences]
    translator = Translator.load(workdir)
    row: dict[str, Any] = {"part": "first call", "sentences": len(lines)}
    programs.clear()
    for call in ("first", "second"):
        began, cpu = time.monotonic(), cpu_seconds()
        found = translator.translate(lines)
        row |= {f"{call}_s": round(time.monotonic() - began, 2), f"{call}_cpu_s": round(cpu_seconds() - cpu, 2)}
        row[f"{call}_programs"] = len(programs)
        programs.clear()
    return row | {"output_sha256": hashlib.sha256("\n".join(found).encode()).hexdigest()[:12]}


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main(arguments: list[str]) -> None:
    """Measure the first call of `translate`."""
    parser = Parser("python benchmarks/first_call.py", main.__doc__)
    parser.add_argument("workdir", help="the workdir of a training run, with a development set")
    parser.add_argument("--sentences", type=whole(1), default=200, help="how many (default 200)")
    parser.add_argument("--rows", help="add the row to this file")
    args = parser.parse_args(arguments)
    row = measure(args.workdir, args.sentences)
    if args.rows:
        row = Rows(args.rows).add(row)
    print_json(row)


if __name__ == "__main__":
    run(main)
