"""All that needs a GPU, in one call of at most nine minutes; on a CPU a toy.

    python benchmarks/gpu.py --text DATA        # DATA holds wmt_mini/ and newstest/
    python benchmarks/gpu.py --parts kernel     # some parts only
    python benchmarks/gpu.py --quick            # toy sizes, two minutes on a CPU

Each part is a process of its own with a time limit, and adds rows to results/gpu.jsonl as it goes. benchmarks/README.md
says what is measured and how.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gpu_runs
from gpu_workers import Settings
from rows import Rows
from side_by_side import HERE, environment

from transformer.command_line import Parser, run


class Run(NamedTuple):
    """One process of a part."""

    part: str
    limit: float | None
    """Seconds; None = all that are left."""
    more: Mapping[str, Any] = MappingProxyType({})
    """Further settings."""


def _training(limit: float, model: str, *systems: str) -> Run:
    return Run("training", limit, {"model": model, "systems": systems})


# One stage after the other; the runs of a stage at once. No time is measured where there are several.
STAGES: tuple[tuple[Run, ...], ...] = (
    (Run("products", 60),),
    (_training(110, "base", "ours", "pytorch-compile"),),
    (_training(130, "big", "ours", "pytorch-compile"),),
    (Run("kernel", 110), Run("deterministic", 110), Run("resume", 110)),
    (Run("decoding", 130),),
    (_training(70, "base", "ours-plain", "pytorch"),),
    (_training(80, "big", "ours-plain", "pytorch"),),
    (Run("wmt_mini", None),),
)
PARTS = tuple(dict.fromkeys(run.part for stage in STAGES for run in stage))
RESERVE = 140  # seconds that are kept for wmt_mini
LEAST = 25  # seconds; with less a run is not begun
SLOWER = 3  # times the limits, for toys on a CPU
SCRIPT = HERE / "gpu_parts.py"
# No time is measured there: XLA need not try out which product is fastest.
FLAGS = {"kernel": "--xla_gpu_autotune_level=0"}
UNSHOWN = ("part", "xla_flags", "seed", "versions", "command", "commit", "device", "date", "dev_bleu_signature")


class Bench:
    """The runs, their rows, and the processes that are alive."""

    def __init__(self, o: argparse.Namespace, folder: str):
        self.o, self.folder = o, folder
        self.began = time.monotonic()
        self.end = self.began + 60 * o.minutes
        self.failed = False
        self._known: dict[str, float] = {}
        self._processes: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self._preparation: subprocess.Popen | None = None

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.began:5.0f} s] {text}", flush=True)

    def settings(self, limit: float, more: Mapping[str, Any]) -> Settings:
        known = {"seed": self.o.seed, "quick": self.o.quick, "device": "cpu" if self.o.quick else "cuda"}
        return Settings(**known, limit=limit, folder=self.folder, text=self.o.text, known=self._known, **more)

    def start(self, run: Run, limit: float, stderr: Any) -> subprocess.Popen:
        """The process of a run, in a process group of its own."""
        settings = json.dumps(self.settings(limit, run.more)._asdict())
        command = [sys.executable, str(SCRIPT), run.part, settings]
        pipes = {"stdout": subprocess.PIPE, "stderr": stderr, "text": True, "start_new_session": True}
        process = subprocess.Popen(command, env=environment(XLA_FLAGS=self.flags(run.part)), **pipes)
        with self._lock:
            self._processes.add(process)
        return process

    def probe(self) -> dict[str, Any]:
        """What JAX sees, found by a process that gives the GPU back."""
        with self.stderr("probe") as stderr:
            process = self.start(Run("probe", 90), 90, stderr)
            timer = threading.Timer(90, kill, [process])
            timer.start()
            line = process.stdout.readline()
            timer.cancel()
            kill(process)
        if not line:
            self.show_end("probe")
            return {"backend": "none", "device": "unknown", "versions": {}}
        return json.loads(line)

    def open_rows(self, found: dict[str, Any]) -> None:
        self._rows = Rows(self.o.rows, device=found["device"], commit=self.o.commit)
        self._about = {"seed": self.o.seed, "quick": self.o.quick, "versions": found["versions"]}

    def flags(self, part: str) -> str:
        """XLA_FLAGS of a part."""
        return gpu_runs.xla_flags(FLAGS.get(part, "") if not self.o.quick else "")

    def add(self, row: dict[str, Any]) -> None:
        """Write a row, show it, and keep what later parts need to know."""
        with self._lock:
            self._rows.add({**row, "xla_flags": self.flags(row["part"]), **self._about})
            self.failed |= "failed" in row or row.get("ok") is False
            if row["part"] == "products" and "what" in row:
                figure = row.get("flops_per_s", row.get("bytes_per_s", 0.0))
                self._known[row["what"]] = max(figure, self._known.get(row["what"], 0.0))
            if row["part"] == "training" and row.get("system") == "ours" and "tokens_per_s" in row:
                self._known[f"training {row['model']}"] = row["tokens_per_s"]
            shown = {name: value for name, value in row.items() if name not in UNSHOWN and value is not None}
            self.say(f"{row['part']}: " + "  ".join(f"{name} {value}" for name, value in shown.items()))

    # ---- Runs --------------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def stderr(self, name: str) -> Iterator[Any]:
        """A file for what a run logs; it goes to the end of --log."""
        path = Path(self.folder) / f"{name}.log"
        with path.open("w") as file:
            yield file
        if self.o.log:
            with self._lock, open(self.o.log, "a") as log:
                log.write(f"---- {name}\n{path.read_text(errors='replace')}\n")

    def show_end(self, name: str) -> str:
        """Show the last lines that a run logged; the last of them."""
        lines = (Path(self.folder) / f"{name}.log").read_text(errors="replace").splitlines()
        lines = [line for line in lines if line.strip()][-12:]
        for line in lines:
            print(f"    {line[:300]}", flush=True)
        return lines[-1].strip()[:300] if lines else ""

    def do(self, run: Run, end: float) -> None:
        """A run until its limit, or this end; what goes wrong is a row, too."""
        row = {"part": run.part, **run.more}
        left = end - time.monotonic()
        limit = left if run.limit is None else min(run.limit * (SLOWER if self.o.quick else 1), left)
        if limit < min(LEAST, run.limit or LEAST):
            self.add({**row, "failed": "no time was left"})
            return
        name = "-".join([run.part, *(str(x) if isinstance(x, str) else "+".join(x) for x in run.more.values())])
        self.say(f"{name}: {limit:.0f} s at most")
        over = threading.Event()
        with self.stderr(name) as stderr:
            process = self.start(run, limit, stderr)
            timer = threading.Timer(limit, lambda: (over.set(), kill(process)))
            timer.start()
            count = 0
            for line in process.stdout:
                count += self.take(line)
            code = process.wait()
            timer.cancel()
            kill(process)
            with self._lock:
                self._processes.discard(process)
        if over.is_set():
            reason = f"stopped after its limit of {limit:.0f} s"
        elif code:
            reason = f"ended with {code}"
        else:
            reason = "" if count else "gave no row"
        if reason:
            last = self.show_end(name)
            self.add({**row, "failed": f"{reason}: {last}" if last else reason})

    def take(self, line: str) -> int:
        """Add the row that a run printed; 0 where the line is none."""
        try:
            row = json.loads(line)
        except ValueError:
            self.say(line.rstrip())
            return 0
        self.add(row)
        return 1

    def all(self) -> None:
        """All stages that are wanted. The preparation of the last part runs beside the others."""
        wanted = [[run for run in stage if run.part in self.o.parts] for stage in STAGES]
        models = ["base"] if self.o.quick else self.o.models  # a toy has one size
        wanted = [[run for run in stage if run.more.get("model", models[0]) in models] for stage in wanted]
        wanted = [stage for stage in wanted if stage]
        with self.stderr("preparation") as stderr:
            if "wmt_mini" in self.o.parts:
                wanted = self.prepare(wanted, stderr)
            for stage in wanted:
                keep = RESERVE if any(r.part == "wmt_mini" for r in wanted[-1]) and stage is not wanted[-1] else 0
                if self.o.quick:
                    keep = 0
                if stage[0].part == "wmt_mini" and self._preparation is not None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._preparation.wait(max(0.0, self.end - time.monotonic() - LEAST))
                with ThreadPoolExecutor(len(stage)) as pool:
                    try:
                        list(pool.map(lambda run, end=self.end - keep: self.do(run, end), stage))
                    except BaseException:
                        self.close()
                        raise

    def prepare(self, wanted: list[list[Run]], stderr: Any) -> list[list[Run]]:
        """Start preparing wmt_mini; the stages without it, and a row, where there is no text."""
        if not self.o.quick:
            files = [f"wmt_mini/{name}.{side}.gz" for name in gpu_runs.WEIGHTS for side in ("en", "de")]
            files += [f"newstest/newstest2013.en-de.{side}" for side in ("en", "de")]
            absent = [file for file in files if not self.o.text or not (Path(self.o.text) / file).is_file()]
            if absent:
                reason = f"--text {self.o.text}: {absent[0]} is not there" if self.o.text else "--text is not given"
                self.add({"part": "wmt_mini", "skipped": reason})
                return [stage for stage in wanted if stage[0].part != "wmt_mini"]
        if gpu_runs.missing(*gpu_runs.NEEDED) is None:
            self._preparation = gpu_runs.start_preparing(self.settings(0, {}), stderr)
            self._processes.add(self._preparation)
        return wanted

    def close(self) -> None:
        """End every process that is left."""
        with self._lock:
            for process in self._processes:
                kill(process)


def kill(process: subprocess.Popen) -> None:
    """End a process and all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def share_the_gpu(folder: str) -> None:
    """Set what all processes inherit: memory is taken as needed, and every cache lies in the temporary folder."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    os.environ["PYTHONUNBUFFERED"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ.setdefault("HOME", folder)
    caches = ("TRANSFORMER_CACHE", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "HF_HOME", "CUDA_CACHE_PATH")
    os.environ.update({name: f"{folder}/{name.lower()}" for name in caches})


def main(arguments: Sequence[str]) -> int:
    parser = Parser("benchmarks/gpu.py", __doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9, help="for all of it (default 9)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="only these")
    parser.add_argument("--models", nargs="+", choices=["base", "big"], default=["base", "big"], help="to be trained")
    parser.add_argument("--skip", nargs="+", choices=PARTS, default=[], help="all but these")
    parser.add_argument(
        "--text",
        metavar="DIR",
        default=os.environ.get("TRANSFORMER_DATA"),
        help="the folder of wmt_mini/ and newstest/ (default: $TRANSFORMER_DATA)",
    )
    parser.add_argument("--rows", default="results/gpu.jsonl", help="rows are added to this file")
    parser.add_argument("--log", metavar="FILE", help="what the parts log is added to this file")
    parser.add_argument("--commit", help="the commit that is measured (default: what git says)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="toy sizes; chosen by itself where JAX sees no GPU")
    o = parser.parse_args(arguments)
    o.parts = [name for name in o.parts if name not in o.skip]
    o.text = o.text and str(Path(o.text).resolve())
    folder = tempfile.mkdtemp(prefix="gpu-")
    share_the_gpu(folder)
    bench = Bench(o, folder)
    if o.quick:
        os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        found = bench.probe()
        bench.say(f"{found['device']}  {found['versions']}")
        if found["backend"] == "cpu" and not o.quick:
            bench.say("JAX sees no GPU: toy sizes, as with --quick")
            o.quick = True
            os.environ["JAX_PLATFORMS"] = "cpu"
        bench.open_rows(found)
        if found["backend"] == "none":
            bench.add({"part": "probe", "failed": "JAX does not start"})
        else:
            bench.all()
    finally:
        bench.close()
        shutil.rmtree(folder, ignore_errors=True)
    bench.say(f"{'something failed, see above' if bench.failed else 'done'}; rows in {o.rows}")
    return int(bench.failed)


if __name__ == "__main__":
    run(main)
