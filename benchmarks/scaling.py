"""The tables of docs/scaling.md: training compiled for TPUs from one chip to 512, none of which need be here.

    pip install -e '.[plan]'
    python benchmarks/scaling.py --rows scaling.jsonl            # hours; goes on where it stopped
    python benchmarks/scaling.py --rows scaling.jsonl --tables   # what there is so far, as Markdown

Each row is one `python -m transformer plan`, in bfloat16. Strong scaling keeps the paper's batch of 25,000 tokens, weak
scaling 8,192 tokens a chip. What comes out is compiled and estimated by data sheets, not run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TOPOLOGIES = {
    "v5e": {1: "1x1", 8: "2x4", 64: "8x8", 256: "16x16"},
    "v6e": {1: "1x1", 8: "2x4", 64: "8x8", 256: "16x16"},
    "v5p": {1: "1x1x1", 8: "2x2x2", 64: "4x4x4", 512: "8x8x8"},
}
CONFIGS = {"base": "configs/wmt14_en_de.py", "big": "configs/wmt14_en_de_big.py"}
ROOT = Path(__file__).resolve().parents[1]
PAPER, EACH = 25_000, 8_192  # tokens a batch, and a chip


class Case(NamedTuple):
    model: str
    kind: str
    chips: int
    scaling: str

    def command(self) -> list[str]:
        # The paper's batch is 96 rows of 256 positions: 32 devices cut it evenly, more of them share the model, as far
        # as its 8 heads go; then some devices have rows of padding only.
        ways = max(min(self.chips, 32), self.chips // 8) if self.scaling == "strong" else self.chips
        tokens = PAPER if self.scaling == "strong" else EACH * self.chips
        plan = [sys.executable, "-m", "transformer", "plan", "--config", CONFIGS[self.model], "--json"]
        where = f"--topology={self.kind}:{TOPOLOGIES[self.kind][self.chips]}", f"--mesh={ways},1,{self.chips // ways}"
        # One chip takes the paper's batch in four parts.
        parts = 4 if self.chips == 1 and self.scaling == "strong" else 1
        sizes = f"--train.batch-tokens={tokens}", f"--train.accumulate={parts}", "--model.dtype=bfloat16"
        return [*plan, *where, *sizes]


def cases() -> Iterator[Case]:
    """All, those with fewer chips first."""
    sizes = sorted({chips for sizes in TOPOLOGIES.values() for chips in sizes})
    for chips in sizes:
        for kind, topologies in TOPOLOGIES.items():
            for model in CONFIGS:
                for scaling in ("strong", "weak"):
                    if chips in topologies:
                        yield Case(model, kind, chips, scaling)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="file of results, one JSON object a line")
    parser.add_argument("--tables", action="store_true", help="print the tables of what is there, and stop")
    own = parser.parse_args()
    lines = own.rows.read_text().splitlines() if own.rows.exists() else []
    found = {Case(*row["case"]): row for row in map(json.loads, lines)}
    if own.tables:
        print("\n".join(tables(found)))
        return
    for case in cases():
        if "error" in found.get(case, {"error": "not tried"}):
            done = subprocess.run(case.command(), capture_output=True, text=True, cwd=ROOT)
            failed = {"error": next(iter(done.stderr.splitlines()[::-1]), "no message")}
            with own.rows.open("a") as file:
                row = failed if done.returncode else json.loads(done.stdout.splitlines()[-1])
                file.write(json.dumps({"case": case, **row}) + "\n")
            print(*case, failed["error"] if done.returncode else "", flush=True)


def tables(found: dict[Case, dict]) -> Iterator[str]:
    """A table for each model and scaling."""
    for scaling, told in (
        ("strong", "the paper's 25,000 tokens a batch on all chips"),
        ("weak", "8,192 tokens a chip"),
    ):
        for model in CONFIGS:
            yield f"### The {model} model, {scaling} scaling: {told}\n"
            yield (
                "| chips | mesh (data, tensor) | GiB a chip | arithmetic | memory | links | step, at least | "
                "if nothing overlaps | tokens/s at most | paper's steps, at least |"
            )
            yield "|---|---|---|---|---|---|---|---|---|---|"
            for case in sorted(found, key=lambda case: (list(TOPOLOGIES).index(case.kind), case.chips)):
                if (case.scaling, case.model) == (scaling, model):
                    yield _row(case, found[case])
            yield ""


def _row(case: Case, row: dict) -> str:
    if "error" in row:
        return f"| {case.chips} {case.kind} | not compiled: {row['error'][:200]} |"
    update, mesh = row["update"], row["mesh"]
    times = [update["seconds"][name] for name in ("arithmetic", "memory", "links")]
    cells = (
        f"{case.chips} {case.kind}",
        f"{mesh['data']}, {mesh['tensor']}",
        f"{update['memory_gib']:.1f} of {update['limit_gib']:.0f}" + (" (does not fit)" if too_big(update) else ""),
        *(f"{1e3 * seconds:.2f} ms" for seconds in (*times, update["bound"], sum(times))),
        f"{row['tokens_per_s']:,.0f}",
        f"{24 * row['days']:.1f} h",
    )
    return f"| {' | '.join(cells)} |"


def too_big(update: dict) -> bool:
    return update["memory_gib"] > update["limit_gib"]


if __name__ == "__main__":
    main()
