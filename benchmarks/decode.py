"""Decoding speed of ours beside Hugging Face's Marian and CTranslate2, with the same weights.

    pip install -r benchmarks/requirements.txt
    python benchmarks/decode.py                 # trains the model on the first run, keeps all in --workdir
    python benchmarks/decode.py --variants      # ours alone: kinds of attention at growing output length
    python benchmarks/decode.py --quick         # a toy, for a smoke test

benchmarks/README.md says what is measured and how.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
import random
import runpy
import statistics
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from side_by_side import Worker, cpuinfo, environment, log, machine, require, show, take_turns

from transformer.command_line import Parser, config_file, override, run
from transformer.config import UserError, check, to_json
from transformer.data.phrases import corpus
from transformer.data.tokenizer import Tokenizer

HERE = Path(__file__).resolve().parent
Ids = list[list[int]]
REFERENCE = ("ours", "float32")
# (system, type) by device; the first is what the others are held against.
SYSTEMS = {
    "cpu": (
        *(REFERENCE, ("ours", "bfloat16"), ("ours", "int8")),
        *(("huggingface", "float32"), ("huggingface", "bfloat16"), ("ctranslate2", "float32"), ("ctranslate2", "int8")),
    ),
    "cuda": (("ours", "bfloat16"), ("huggingface", "bfloat16"), ("ctranslate2", "float16")),
}
PACKAGES = ("jax", "torch", "transformers", "ctranslate2")
SPREAD_LONGEST = 128  # no output of the spread comes near it
QUICK = {
    **{"model.encoder_layers": 2, "model.decoder_layers": 2, "model.d_model": 64, "model.d_ff": 128, "model.heads": 4},
    **{"data.vocab_size": 1_000, "train.steps": 700, "train.batch_tokens": 1_024, "train.peak_learning_rate": 0.005},
    **{"train.warmup_steps": 200, "train.eval_every": 700, "train.checkpoint_every": 700, "train.log_every": 100},
}


# ---- What is decoded: weights, carried over, and sentences ----------------------------------------------------------


def write_text(folder: Path, quick: bool) -> None:
    """Lines of one to eight generated phrases each: train, dev and test, both sides; of one each if `quick`.

    Of the test lines one in forty or so has an output of the fixed length.
    """
    most, *totals = (1, 20_000, 200, 6_000) if quick else (8, 400_000, 500, 60_000)
    part = folder.with_suffix(".part")
    part.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for split, total in zip(("train", "dev", "test"), totals, strict=True):
        made = itertools.islice(corpus.pairs(split, ("en", "de")), total)
        lines = []
        while several := list(itertools.islice(made, 1 + draw.randrange(most))):
            lines.append([" ".join(side) for side in zip(*several, strict=True)])
        for language, side in zip(("en", "de"), zip(*lines, strict=True), strict=True):
            (part / f"{split}.{language}").write_text("".join(f"{line}\n" for line in side), encoding="utf-8")
    part.rename(folder)


def prepare(options: Namespace, overrides: Sequence[str]) -> dict[str, str]:
    """Train and carry over, or take what the workdir has; the folders by name.

    Raises `UserError` if the workdir holds another model.
    """
    work = Path(options.workdir)
    folders = {name: str((work / name).resolve()) for name in ("first", "start", "run", "marian", "ctranslate2")}
    text, mark = work / "text", work / "made.json"
    recipe = (HERE / "model.py").read_text(encoding="utf-8")
    made = {"quick": options.quick, "overrides": list(overrides), "recipe": hashlib.sha256(recipe.encode()).hexdigest()}
    if mark.exists():
        if json.loads(mark.read_text()) != made:
            raise UserError(f"--workdir {work}: it holds a model made in another way; name another folder")
        return folders
    if not text.exists():
        write_text(text, options.quick)
    files = [
        argument
        for split, field in (("train", ""), ("dev", "dev_"))
        for side, language in (("source", "en"), ("target", "de"))
        for argument in (f"--data.{field}{side}", str(text / f"{split}.{language}"))
    ]
    log("training; the same command again goes on from the last checkpoint")
    train = "train.py", "--config", HERE / "model.py", *files
    start = []
    if not options.quick:
        first = (f"--{name}={value}" for name, value in runpy.run_path(str(HERE / "model.py"))["FIRST"].items())
        _call(*train, "--workdir", folders["first"], *first, *overrides)
        if not Path(folders["start"]).exists():
            _call(HERE / "systems.py", "deepen", json.dumps(folders))
        start = ["--train.init_from", folders["start"]]
    _call(*train, "--workdir", folders["run"], *start, *overrides)
    for name in ("marian", "ctranslate2"):
        if Path(folders[name]).exists():
            raise UserError(f"{folders[name]} is left from a run that broke off; remove it")
    _call(
        *("-m", "transformer", "export", folders["run"], folders["marian"]),
        *("--to", "hf-marian", "--checkpoint", "last"),
    )
    _call(HERE / "systems.py", "convert", json.dumps(folders))
    mark.write_text(json.dumps(made))
    return folders


def _call(*arguments: Any) -> None:
    if subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=HERE.parent, stdout=sys.stderr, env=environment()
    ).returncode:
        raise UserError(f"{' '.join(map(str, arguments[:3]))} failed, see above")


def sentences(bench: Bench, work: Path) -> tuple[Ids, Ids]:
    """Sources of the fixed length and of the spread, as pieces.

    Those of the fixed length are chosen so that our output, left free, has this length already: then nothing is cut
    off or spun out, and the systems can be held to the same output. Where two outputs are nearly as likely, rounding
    decides between them: so of the former those are taken that are furthest ahead of the second best, and of the
    spread the clearer of each two neighbours in length.
    """
    options, count, length = bench.options, max(bench.options.batches), bench.options.length
    pieces = Tokenizer.load(Path(bench.folders["run"]) / "tokenizer.model")
    sources, targets = (
        pieces.encode((work / "text" / f"test.{language}").read_text(encoding="utf-8").splitlines())
        for language in ("en", "de")
    )
    pool = sources[: 2 * max(2 * count, 32 if options.quick else 256)]
    # The references nearest to the length, ten times as many as needed; then our outputs nearest to it.
    near = sorted(range(len(pool), len(sources)), key=lambda i: abs(len(targets[i]) - length))[: 10 * count]
    asked = [*pool, *(sources[i] for i in near)]
    dtype, setting = SYSTEMS[options.device][0][1], candidates("margins", options.device, options.threads)[:2][-1]
    judge = bench.worker(("margins", dtype), setting)  # two hypotheses at least, to have a second
    found = judge.decode(asked, 64, max(options.beam, 2), 0, SPREAD_LONGEST)["outputs"]
    bench.close([judge])
    of_pool, of_near = found[: len(pool)], found[len(pool) :]
    by_length = sorted(range(len(pool)), key=lambda i: len(pool[i]))
    clearer = [max(two, key=lambda i: of_pool[i][1]) for two in zip(by_length[::2], by_length[1::2], strict=True)]
    order = sorted(range(len(near)), key=lambda k: (abs(len(of_near[k][0]) - length), -of_near[k][1]))[:count]
    exact = sum(len(of_near[k][0]) == length for k in order)
    log(f"{exact} of {count} sources of the fixed length have an output of {length} pieces when left free")
    return [sources[near[k]] for k in order], [pool[i] for i in sorted(clearer)]


# ---- The systems' processes -----------------------------------------------------------------------------------------


class Decoder(Worker):
    """One system in a process of its own, with one setting."""

    def __init__(self, name: str, environment: dict[str, str] | None = None, **settings: Any):
        super().__init__("systems.py", name, environment, **settings)

    def decode(self, sources: Ids, batch: int, beam: int, shortest: int, longest: int) -> dict[str, Any]:
        """{"outputs": pieces of each source, "seconds": ..., "peak_mib": ...}."""
        return self.ask([sources, batch, beam, shortest, longest])


ALONE = {"threads": 1}


def candidates(name: str, device: str, threads: int) -> list[dict[str, Any]]:
    """The settings a system is tried with; 'environment' is for its process. What uses one thread of several
    (`ALONE`) is for single sentences, where threads may cost more than they bring."""
    several = threads > 1
    if name in ("ours", "margins"):
        layouts = [{"streams": 1}, *[{"streams": threads}, {"streams": 1} | ALONE][: 2 * several]]
        return layouts if device == "cpu" else [{}]
    if name == "huggingface":
        passive = {"environment": {"OMP_WAIT_POLICY": "passive"}}
        waits = [{}, passive] + [ALONE] * several if device == "cpu" else [{}]
        return [{"attention": attention} | wait for wait in waits for attention in ("sdpa", "eager")]
    if name != "ctranslate2" or device != "cpu":
        return [{}]
    flags = next((line for line in cpuinfo() if line.startswith("flags")), "").split()
    instructions = [name for name, flag in (("AVX2", "avx2"), ("AVX512", "avx512f")) if flag in flags]
    products = [
        {"CT2_USE_MKL": "0"},
        {"CT2_USE_MKL": "1"},
        {"CT2_USE_MKL": "1", "CT2_USE_EXPERIMENTAL_PACKED_GEMM": "1"},
    ]
    tried = [{}] + [{"CT2_FORCE_CPU_ISA": isa} | product for isa in instructions for product in products]
    layouts = [{"inter_threads": 1}, *[{"inter_threads": threads}, {"inter_threads": 1} | ALONE][: 2 * several]]
    return [{"environment": env, **layout} for env in tried for layout in layouts]


def described(setting: dict[str, Any]) -> str:
    """A setting in words."""
    flat = {k: v for k, v in setting.items() if k != "environment"} | setting.get("environment", {})
    return " ".join(f"{k}={v}" for k, v in flat.items()) or "default"


class Bench:
    """The systems under measurement: for each and for each batch size the worker with the setting that was fastest."""

    def __init__(self, options: Namespace, folders: dict[str, str]):
        self.options, self.folders = options, folders
        self._workers: dict[str, Decoder] = {}
        self.chosen: dict[tuple[tuple[str, str], int], dict[str, Any]] = {}
        # Settings found before, on this machine and for these sizes.
        self._known = Path(options.workdir) / "settings.json"
        self._about = [machine(PACKAGES), options.threads, options.device, options.beam, options.length]
        if self._known.exists() and not options.tune:
            kept = json.loads(self._known.read_text())
            if kept["for"] == self._about:
                self.chosen = {((name, dtype), batch): own for name, dtype, batch, own in kept["chosen"]}

    @staticmethod
    def _key(system: tuple[str, str], setting: dict[str, Any]) -> str:
        return json.dumps([system, setting], sort_keys=True)

    def worker(self, system: tuple[str, str], setting: dict[str, Any]) -> Decoder:
        """The process of a system with a setting, started when first asked for."""
        key = self._key(system, setting)
        if key not in self._workers:
            name, dtype = system
            self._workers[key] = Decoder(name, **self.folders, **self.common(dtype) | setting)
        return self._workers[key]

    def common(self, dtype: str) -> dict[str, Any]:
        """What all processes are told."""
        return {"threads": self.options.threads, "device": self.options.device, "dtype": dtype}

    def close_others(self, wanted: dict[tuple[str, str], dict[str, Any]]) -> None:
        """End the processes but those of these systems with these settings: memory would not hold all."""
        kept = {self._key(system, setting) for system, setting in wanted.items()}
        self.close([worker for key, worker in self._workers.items() if key not in kept])

    def reference(self) -> Decoder:
        """The process that the others are held against, in the first of its settings."""
        o, system = self.options, SYSTEMS[self.options.device][0]
        return self.worker(system, candidates(system[0], o.device, o.threads)[0])

    def tune(self, system: tuple[str, str], sources: Ids) -> None:
        """Try each setting at each batch size for which none is known, keep the fastest, and say so."""
        o, (name, dtype) = self.options, system
        batches = [batch for batch in o.batches if (system, batch) not in self.chosen]
        if not batches:
            log(f"  {name} {dtype}: as found before (--tune looks again)")
            return
        tried = candidates(name, o.device, o.threads)
        if o.quick:
            tried = tried[:2]
        seconds: dict[tuple[int, int], float] = {}

        def tell(k: int, batches: Sequence[int], times: int) -> None:
            worker = self.worker(system, tried[k]) if batches else None
            for batch in batches:
                # Not counted: ours compiles, the others set up what they need for the size.
                worker.decode(sources[:batch], batch, o.beam, o.length, o.length)
                took = [
                    worker.decode(sources[:batch], batch, o.beam, o.length, o.length)["seconds"] for _ in range(times)
                ]
                seconds[k, batch] = min(*took, seconds.get((k, batch), math.inf))
            self.close([worker] if worker else [])

        def fits(setting: dict[str, Any], batch: int) -> bool:
            # One sentence can't be shared out; several are.
            side_by_side = setting.get("inter_threads", setting.get("streams", 1))
            return side_by_side <= batch and (batch == 1 or "threads" not in setting)

        if len(tried) > 1:
            for k, setting in enumerate(tried):
                tell(k, [batch for batch in batches if fits(setting, batch)], 2)
            # The two best of each size once more: noise shall not choose between them.
            again: dict[int, list[int]] = {}
            for batch in batches:
                of_batch = [k for k in range(len(tried)) if (k, batch) in seconds]
                for k in sorted(of_batch, key=lambda k: seconds[k, batch])[:2]:
                    again.setdefault(k, []).append(batch)
            for k, sizes in again.items():
                tell(k, sizes, 3)
        for batch in batches:
            of_batch = [k for k in range(len(tried)) if (k, batch) in seconds]
            best = min(of_batch, key=lambda k: seconds[k, batch], default=0)
            self.chosen[system, batch] = tried[best]
            if of_batch:
                worst = max(seconds[k, batch] for k in of_batch) / seconds[best, batch]
                log(f"  {name} {dtype}, batch {batch}: {described(tried[best])} ({worst:.2f} x as fast as the slowest)")

    def keep(self) -> None:
        """Write down the settings, for another run on this machine."""
        rows = [[*system, batch, setting] for (system, batch), setting in self.chosen.items()]
        self._known.write_text(json.dumps({"for": self._about, "chosen": rows}, indent=1))

    def close(self, workers: Sequence[Decoder] | None = None) -> None:
        """End these processes, or all."""
        for key, worker in list(self._workers.items()):
            if workers is None or worker in workers:
                worker.close()
                del self._workers[key]


# ---- Measuring ------------------------------------------------------------------------------------------------------


def agree(
    bench: Bench, systems: Sequence[tuple[str, str]], fixed: Ids, spread: Ids
) -> dict[tuple[tuple[str, str], str, str], float]:
    """Share of outputs that are ours, of each system, in each mode, with each setting it is timed with.

    Raises `UserError` where it is below --agree in float32, after telling all: then something is wrong, and no time
    counts. Other types round the weights; below --agree the times they stand for are marked as not counting.
    """
    o = bench.options
    jobs = [("spread", spread, 0, SPREAD_LONGEST), ("fixed", fixed, o.length, o.length)]
    batch = min(32, max(o.batches))
    shares: dict[tuple[tuple[str, str], str, str], float] = {}
    reference = bench.reference()
    expected = [reference.decode(sources, batch, o.beam, *lengths)["outputs"] for _, sources, *lengths in jobs]
    for system in systems:
        settings = [bench.chosen[system, size] for size in o.batches]
        for setting in [s for i, s in enumerate(settings) if s not in settings[:i]]:
            worker = bench.worker(system, setting)
            for (mode, sources, shortest, longest), outputs in zip(jobs, expected, strict=True):
                found = worker.decode(sources, batch, o.beam, shortest, longest)["outputs"]
                wrong = [n for n in map(len, found) if not shortest <= n <= longest]
                if wrong:
                    raise UserError(f"{' '.join(system)}: outputs of {wrong[0]} pieces in the mode '{mode}'")
                share = sum(a == b for a, b in zip(found, outputs, strict=True)) / len(found)
                shares[system, described(setting), mode] = share
                log(
                    f"  {' '.join(system)} ({described(setting)}): {share:.1%} of {len(found)} outputs are ours, {mode}"
                )
            bench.close([worker])  # all of them at once are more than the memory holds
    low = {
        key: f"{' '.join(key[0])} ({key[1]}), {key[2]}, {share:.1%}" for key, share in shares.items() if share < o.agree
    }
    if any(dtype == "float32" for (_, dtype), *_ in low):
        raise UserError(
            f"outputs differ from ours too often for times to be compared: {', '.join(low.values())}, below --agree "
            f"{o.agree:.0%}; look for what differs, or train longer (--train.steps and another --workdir)"
        )
    if low:
        log(f"below --agree {o.agree:.0%}, so that these times do not count: {', '.join(low.values())}")
    return shares


def measure(bench: Bench, systems: Sequence[tuple[str, str]], fixed: Ids, spread: Ids) -> Iterator[dict[str, Any]]:
    """Rows, a cell (mode and batch size) after the other; inside a cell the systems take turns."""
    o = bench.options
    shares = agree(bench, systems, fixed, spread)
    for batch, mode in itertools.product(o.batches, ("fixed", "spread")):
        if mode == "fixed":
            sources, lengths = (fixed * 4)[: max(batch, 4)], (o.length, o.length)
        else:
            sources, lengths = spread[: max(2 * batch, 8)], (0, SPREAD_LONGEST)
        wanted = {system: bench.chosen[system, batch] for system in systems}
        bench.close_others(wanted)
        workers = {system: bench.worker(system, setting) for system, setting in wanted.items()}
        runs = take_turns(workers, [sources, batch, o.beam, *lengths], o.repeats)
        ours = {dtype: speed(runs[name, dtype]) for name, dtype in systems if name == "ours"}
        for name, dtype in systems:
            setting = described(bench.chosen[(name, dtype), batch])
            share = shares[(name, dtype), setting, mode]
            yield {
                **{"system": name, "dtype": dtype, "mode": mode, "batch": batch, "beam": o.beam},
                "length": o.length if mode == "fixed" else None,
                **summary(runs[name, dtype]),
                "ours_is_times": {own: round(fast / speed(runs[name, dtype]), 2) for own, fast in ours.items()},
                "agreement": round(share, 4),
                "counts": share >= o.agree,
                "setting": setting,
            }


def speed(runs: Sequence[dict]) -> float:
    """Median target pieces a second."""
    return statistics.median(sum(map(len, answer["outputs"])) / answer["seconds"] for answer in runs)


def summary(runs: Sequence[dict]) -> dict[str, Any]:
    speeds = [sum(map(len, answer["outputs"])) / answer["seconds"] for answer in runs]
    return {
        "tokens_per_s": round(statistics.median(speeds), 1),
        "tokens_per_s_range": [round(min(speeds), 1), round(max(speeds), 1)],
        "peak_mib": round(max(answer["peak_mib"] for answer in runs)),
    }


def variants(options: Namespace, overrides: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of ours with random weights: multi-head, grouped-query, multi-query, layers that share keys and values."""
    config = override(config_file(str(HERE / "model.py")), overrides, "benchmarks/decode.py")
    kinds = {
        "MHA": {},
        "GQA": {"kv_heads": max(1, config.model.heads // 4)},
        "MQA": {"kv_heads": 1},
        "CLA2": {"kv_sharing": 2},
        "MQA+CLA2": {"kv_heads": 1, "kv_sharing": 2},
    }
    draw = random.Random(0)
    sources = [[draw.randrange(4, config.data.vocab_size) for _ in range(32)] for _ in range(options.variant_batch)]
    common = {"threads": options.threads, "device": options.device, "dtype": SYSTEMS[options.device][0][1]}
    workers = {}
    for kind in options.kinds or kinds:
        if kind not in kinds:
            raise UserError(f"--kinds {kind}: not one of {', '.join(kinds)}")
        fields = kinds[kind]
        own = dataclasses.replace(config, model=dataclasses.replace(config.model, **fields))
        check(own)
        workers[kind] = Decoder("ours", **common, config=to_json(own))
    for length in options.lengths:
        runs = take_turns(workers, [sources, len(sources), options.beam, length, length], options.repeats)
        for kind in workers:
            yield {
                **{"system": "ours", "variant": kind, "dtype": common["dtype"], "batch": len(sources)},
                **{"beam": options.beam, "mode": "fixed", "length": length},
                **summary(runs[kind]),
                "times_mha": round(speed(runs[kind]) / speed(runs["MHA"]), 3) if "MHA" in runs else None,
            }
    for worker in workers.values():
        worker.close()


# ---- The command ----------------------------------------------------------------------------------------------------

COLUMNS = {
    **{"mode": 7, "length": 6, "batch": 5, "beam": 4, "system": -12, "variant": -9, "dtype": -8, "tokens_per_s": 12},
    **{
        "tokens_per_s_range": 18,
        "ours_is_times": 16,
        "times_mha": 9,
        "peak_mib": 8,
        "agreement": 9,
        "counts": -6,
        "setting": -1,
    },
}


def main(arguments: list[str]) -> None:
    parser = Parser("benchmarks/decode.py", __doc__.splitlines()[0])
    parser.add_argument("--workdir", default="runs/decode_benchmark", help="weights and text are made and kept here")
    parser.add_argument("--batches", type=int, nargs="+", help="sentences at a time (default 1 8 32 128)")
    every = list(dict.fromkeys(name for systems in SYSTEMS.values() for name, _ in systems))
    parser.add_argument("--systems", nargs="+", choices=every, default=every, help="only these; ours is always there")
    parser.add_argument("--beam", type=int, default=4, help="beam size (default 4)")
    parser.add_argument("--length", type=int, help="pieces of every output in the fixed mode (default 48)")
    parser.add_argument("--repeats", type=int, help="timed runs of a system in a cell (default 5)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each system")
    parser.add_argument("--device", choices=list(SYSTEMS), default="cpu")
    parser.add_argument("--tune", action="store_true", help="look for the best settings again, though they are known")
    parser.add_argument("--agree", type=float, default=0.99, help="least share of equal outputs (default 0.99)")
    parser.add_argument("--variants", action="store_true", help="ours alone, kinds of attention at growing length")
    parser.add_argument("--kinds", nargs="+", help="with --variants: only these, such as MHA MQA+CLA2")
    parser.add_argument("--lengths", type=int, nargs="+", help="pieces of output with --variants (default 64 ... 512)")
    parser.add_argument("--variant-batch", type=int, help="sentences at a time with --variants (default 32)")
    parser.add_argument("--quick", action="store_true", help="a toy model and little work: a few minutes")
    parser.add_argument("--json", action="store_true", help="print one list of rows on standard output")
    options, overrides = parser.parse_known_args(arguments)
    quick = {"batches": [1, 4], "length": 10, "repeats": 1, "lengths": [8, 16], "variant_batch": 2}
    full = {"batches": [1, 8, 32, 128], "length": 48, "repeats": 5, "lengths": [64, 128, 256, 512], "variant_batch": 32}
    for name, value in (quick if options.quick else full).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    overrides = [*(f"--{name}={value}" for name, value in QUICK.items() if options.quick), *overrides]
    if not options.variants:
        require((*PACKAGES[1:], "safetensors"))
    log(machine(PACKAGES))
    if options.variants:
        rows = show(variants(options, overrides), COLUMNS, options.json)
    else:
        folders = prepare(options, overrides)
        systems = [system for system in SYSTEMS[options.device] if system[0] in ("ours", *options.systems)]
        bench = Bench(options, folders)
        try:
            fixed, spread = sentences(bench, Path(options.workdir))
            log(f"{options.threads} threads each; looking for each system's best setting")
            for system in systems:
                bench.tune(system, fixed)
                bench.keep()
            log("comparing outputs")
            rows = show(measure(bench, systems, fixed, spread), COLUMNS, options.json)
        finally:
            bench.close()
    if options.json:
        print(json.dumps(rows))
    else:
        print("medians of target pieces a second, bos and eos not counted; one run before each is left out")


if __name__ == "__main__":
    run(main)
