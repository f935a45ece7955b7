"""The tables of docs/scaling.md: training and decoding, compiled for TPUs from one chip to 512 that need not be here.

    pip install -e '.[plan]'
    python benchmarks/scaling.py --rows scaling.jsonl            # an hour or more on one core; goes on where it stopped
    python benchmarks/scaling.py --rows scaling.jsonl --tables   # what there is so far, as Markdown

Each row is one `python -m transformer plan`, training in bfloat16. Strong scaling keeps the paper's batch of 25,000
tokens, weak scaling gives each chip 8,192 tokens. What comes out is compiled and estimated by data sheets, not run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

# Pods of v5e and v6e end at 256 chips.
TOPOLOGIES = {
    "v5e": {1: "1x1", 8: "2x4", 64: "8x8", 256: "16x16"},
    "v5p": {1: "1x1x1", 64: "4x4x4", 512: "8x8x8"},
    "v6e": {1: "1x1", 256: "16x16"},
}
CONFIGS = {"base": "configs/wmt14_en_de.py", "big": "configs/wmt14_en_de_big.py"}
ROOT = Path(__file__).resolve().parents[1]
PAPER, EACH = 25_000, 8_192  # tokens a batch, and a chip
MESHES = ((64, 1, 1), (8, 8, 1), (8, 4, 2), (8, 1, 8))  # of the big model, on 64 v5e


class Case(NamedTuple):
    part: str
    """'strong', 'weak', 'meshes' or 'decoding'."""
    model: str
    kind: str
    chips: int
    mesh: str
    """Devices along data, fsdp and tensor."""

    def command(self) -> list[str]:
        plan = [sys.executable, "-m", "transformer", "plan", "--config", CONFIGS[self.model], "--json"]
        where = f"--topology={self.kind}:{TOPOLOGIES[self.kind][self.chips]}", f"--mesh={self.mesh}"
        if self.part == "decoding":
            return [*plan, *where, "--only=decoding"]
        tokens = EACH * self.chips if self.part == "weak" else PAPER
        # One chip takes the paper's batch in four parts.
        parts = 4 if self.chips == 1 and self.part == "strong" else 1
        sizes = f"--train.batch-tokens={tokens}", f"--train.accumulate={parts}", "--model.dtype=bfloat16"
        return [*plan, *where, "--only=training", *sizes]


def cases() -> list[Case]:
    """All; updates on one chip, which take longest to compile, last."""
    found = []
    for kind, topologies in TOPOLOGIES.items():
        for model in CONFIGS:
            found.append(Case("decoding", model, kind, 1, "1,1,1"))
            for chips in topologies:
                # The paper's batch is 96 rows of 256 positions: 32 devices cut it evenly, more of them share the model,
                # as far as its 8 heads go; then some devices have rows of padding only.
                ways = max(min(chips, 32), chips // 8)
                found.append(Case("strong", model, kind, chips, f"{ways},1,{chips // ways}"))
            for chips in (1, max(topologies)) if kind == "v5e" else (max(topologies),):
                found.append(Case("weak", model, kind, chips, f"{chips},1,1"))
        if kind == "v5e":
            found += [Case("meshes", "big", kind, 64, ",".join(map(str, mesh))) for mesh in MESHES]
    return sorted(found, key=lambda case: case.chips == 1 and case.part != "decoding")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="file of results, one JSON object a line")
    parser.add_argument("--tables", action="store_true", help="print the tables of what is there, and stop")
    o = parser.parse_args()
    lines = o.rows.read_text().splitlines() if o.rows.exists() else []
    found = {Case(*row["case"]): row for row in map(json.loads, lines)}
    if o.tables:
        print("\n".join(tables(found)))
        return
    for case in cases():
        if "error" in found.get(case, {"error": "not tried"}):
            row = tried(case)
            with o.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(*case, f"{row['seconds']:.0f} s", row.get("error", ""), flush=True)


def tried(case: Case) -> dict:
    """The plan of a case, or why there is none."""
    began = time.perf_counter()
    done = subprocess.run(case.command(), capture_output=True, text=True, cwd=ROOT)
    row = {"case": case, "seconds": time.perf_counter() - began}
    for package in ("jax", "libtpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):  # which the plan tells
            row[package] = metadata.version(package)
    if done.returncode:
        return row | {"error": reason(done.stderr, done.returncode)}
    return row | json.loads(done.stdout.splitlines()[-1])


def reason(stderr: str, code: int) -> str:
    """Why a command failed: its own line, or an exception's, among whatever libraries print."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    exceptions = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    return next(iter(errors[-1:] + exceptions[-1:]), f"exit code {code}")


# ---- Tables ----------------------------------------------------------------------------------------------------------


def tables(found: Mapping[Case, dict]) -> Iterator[str]:
    """A table for each model and kind of scaling, one of meshes, one of decoding; what the plans warn of below each."""
    for part, title in {
        "strong": "strong scaling: the paper's 25,000 tokens a side on all chips",
        "weak": "weak scaling: 8,192 tokens a side on each chip",
        "meshes": "other meshes at the paper's batch",
    }.items():
        for model in CONFIGS:
            rows = {case: row for case, row in found.items() if (case.part, case.model) == (part, model)}
            if part == "meshes":  # beside the one of strong scaling
                same = {case[1:4] for case in rows}
                rows |= {case: row for case, row in found.items() if case.part == "strong" and case[1:4] in same}
            if rows:
                yield f"### The {model} model, {title}\n"
                yield from _table(WEAK if part == "weak" else TRAINING, training_cells, rows)
    rows = {case: row for case, row in found.items() if case.part == "decoding"}
    if rows:
        yield "### Decoding\n"
        yield from _table(DECODING, decoding_cells, rows)


TRAINING = (
    *("chips", "mesh", "rows (empty)", "GiB a chip", "arithmetic", "memory", "links", "sent a chip"),
    *("update, at least", "nothing overlaps", "tokens/s, at most", "paper's updates, at least"),
)
WEAK = *TRAINING[:-1], "tokens/s a chip"
DECODING = (
    *("model", "chip", "GiB", "encoding", "arithmetic of a step", "memory", "step, at least", "pieces/s a chip"),
)


def _table(columns: tuple[str, ...], cells: Callable, rows: Mapping[Case, dict]) -> Iterator[str]:
    yield _line(columns)
    yield "|" + "---|" * len(columns)
    kinds, warned = list(TOPOLOGIES), []
    for case in sorted(rows, key=lambda case: (kinds.index(case.kind), case.model, case.chips)):
        row = rows[case]
        begin = cells(case, row)
        yield _line((*begin, *("" for _ in columns[len(begin) :])))
        warned += [f"{case.chips} {case.kind}, mesh {case.mesh}: {told}" for told in row.get("warnings", ())]
    yield ""
    for told in warned:
        yield f"- {told}"
    if warned:
        yield ""


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def training_cells(case: Case, row: dict) -> tuple[str, ...]:
    begin = f"{case.chips} {case.kind}", case.mesh.replace(",", ", ")
    if "error" in row:
        return *begin, f"not compiled: {row['error'][:200]}"
    update, batch = row["update"], row["batch"]
    empty = 1 - batch["rows"] / batch["compiled_rows"]
    parts = f" in {batch['micro_batches']}" if batch["micro_batches"] > 1 else ""
    begin += f"{batch['compiled_rows']}{parts} ({empty:.0%})", memory(update)
    if "seconds" not in update:
        return begin
    sent: Counter[str] = Counter()
    for one in update["collectives"]:
        sent[one["kind"]] += one["sent"] / 2**20
    times = [update["seconds"][name] for name in ("arithmetic", "memory", "links")]
    return (
        *begin,
        *map(milliseconds, times),
        ", ".join(f"{kind} {mib:,.0f} MiB" for kind, mib in sent.most_common() if mib >= 1) or "nothing",
        *map(milliseconds, (update["bound"], sum(times))),
        f"{row['tokens_per_s']:,.0f}",
        f"{row['tokens_per_s'] / case.chips:,.0f}" if case.part == "weak" else f"{24 * row['days']:.2f} h",
    )


def decoding_cells(case: Case, row: dict) -> tuple[str, ...]:
    begin = case.model, case.kind
    if "error" in row:
        return *begin, f"not compiled: {row['error'][:200]}"
    step, encoding = row["decoding"], row["encoding"]
    if "pieces_per_s" not in step:
        return *begin, memory(step)
    return (
        *(*begin, memory(step), milliseconds(encoding["bound"])),
        *(milliseconds(step["seconds"][name]) for name in ("arithmetic", "memory")),
        *(milliseconds(step["bound"]), f"{step['pieces_per_s']:,.0f}"),
    )


def memory(part: dict) -> str:
    return f"{part['memory_gib']:.1f} of {part['limit_gib']:.0f}" + ("" if part["fits"] else " (does not fit)")


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms"


if __name__ == "__main__":
    main()
