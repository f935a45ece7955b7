"""Decoding speed of ours beside Hugging Face's Marian and CTranslate2, with the same weights.

    pip install -r benchmarks/requirements.txt
    python benchmarks/decode.py                 # trains the model on the first run, keeps all in --workdir
    python benchmarks/decode.py --variants      # ours alone: kinds of attention at growing output length
    python benchmarks/decode.py --quick         # a toy, for a smoke test

benchmarks/README.md says what is measured and how.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import statistics
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from decode_tuning import PACKAGES, SYSTEMS, Bench, Decoder, candidates, described
from decode_workdir import prepare
from side_by_side import HERE, log, machine, require, show, take_turns
from systems import Ids

from transformer.command_line import Parser, config_file, override, run
from transformer.config import UserError, check, to_json
from transformer.data.tokenizer import Tokenizer

SPREAD_LONGEST = 128  # no output of the spread comes near it
QUICK = {
    **{"model.encoder_layers": 2, "model.decoder_layers": 2, "model.d_model": 64, "model.d_ff": 128, "model.heads": 4},
    **{"data.vocab_size": 1_000, "train.steps": 700, "train.batch_tokens": 1_024, "train.peak_learning_rate": 0.005},
    **{"train.warmup_steps": 200, "train.eval_every": 700, "train.checkpoint_every": 700, "train.log_every": 100},
}


# ---- What is decoded ------------------------------------------------------------------------------------------------


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
                "ours_is_times": {kind: round(fast / speed(runs[name, dtype]), 2) for kind, fast in ours.items()},
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
        variant = dataclasses.replace(config, model=dataclasses.replace(config.model, **fields))
        check(variant)
        workers[kind] = Decoder("ours", **common, config=to_json(variant))
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
