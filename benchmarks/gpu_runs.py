"""The parts of gpu.py that train whole runs: the same bits twice, SIGTERM and resume, the base model on wmt_mini.

python benchmarks/gpu_runs.py train WORKDIR CONFIG.json      goes on with a run, as train.py does, without tyro
python benchmarks/gpu_runs.py prepare CONFIG.json            tokenizer and tokens, at low priority
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from gpu_workers import MEASURING, Emit, Settings, Timed, at_once, missing
from side_by_side import HERE, environment, log
from train_systems import SMALL, sha256_of

from transformer.config import (
    BASE,
    Config,
    DataConfig,
    DecodeConfig,
    Interrupted,
    ModelConfig,
    TrainConfig,
    UserError,
    from_json,
    to_json,
)

# How often each file of wmt_mini is seen in an epoch: the development set is news.
WEIGHTS = {"tatoeba": 1.0, "europarl": 2.0, "ted": 2.0, "chat": 1.0, "news": 3.0}
DEV_LINES, DEV_WORDS = 256, 30  # so many lines of newstest2013 whose source has at most so many words
NEEDED = ("grain", "tensorboardX", "sentencepiece", "sacrebleu")
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


# ---- The same bits ---------------------------------------------------------------------------------------------------
def deterministic(s: Settings, emit: Emit) -> None:
    """Updates of a small packed model by two processes, with deterministic operations and without."""
    model, rows, length, updates = ("small", 4, 32, 4) if s.quick else ("base", 32, 256, 30)
    changes = {"encoder_layers": 1, "decoder_layers": 1}
    settings = {"model": model, "rows": rows, "length": length, "vocab_size": 1_000 if s.quick else 8_000}
    settings |= {"dtype": "bfloat16", "packed": True, "seed": s.seed, "device": s.device, "threads": s.threads}

    def trained(flags: str, kernel: str, twin: int) -> str:
        # A cache of its own: each process compiles, and chooses its kernels, by itself.
        folder = f"{s.folder}/deterministic/{len(flags)}-{kernel}-{twin}"
        variables = {"TRANSFORMER_CACHE": folder, "XLA_FLAGS": xla_flags(flags)}
        with_digest = settings | {"digest": True, "changes": changes | {"attention_kernel": kernel}}
        worker = Timed("train_systems.py", "ours", s.end - MEASURING, variables, **with_digest)
        digest = worker.ask(updates)["sha256"]
        worker.close()
        return digest

    def failed(key: tuple[str, str, int], reason: str) -> None:
        reasons.setdefault(key[:2], reason)

    reasons: dict[tuple[str, str], str] = {}
    kinds = [(DETERMINISTIC, "plain"), ("", "cudnn")]
    starts = {(*kind, twin): lambda k=(*kind, twin): trained(*k) for kind in kinds for twin in range(2)}
    found = at_once(starts, failed)
    for flags, kernel in kinds:
        row = {"part": "deterministic", "flag": bool(flags), "kernel": kernel, "updates": updates, "model": model}
        row |= changes
        if (flags, kernel) in reasons:
            emit({**row, "failed": reasons[flags, kernel]})
            continue
        first, second = (found[flags, kernel, twin] for twin in range(2))
        emit({**row, "equal": first == second, **({"ok": first == second} if flags else {}), "sha256": first[:16]})


def xla_flags(more: str) -> str:
    return f"{os.environ.get('XLA_FLAGS', '')} {more}".strip()


# ---- A run in a process of its own -----------------------------------------------------------------------------------
def train(workdir: str, config: str) -> None:
    """Start a run, or go on with it."""
    from transformer.command_line import set_up_jax
    from transformer.tasks.translation import Translation
    from transformer.training import loop
    from transformer.training.workdir import hold

    set_up_jax()
    with hold(workdir):
        task = Translation.build(from_json(Path(config).read_text()), workdir)
        task.prepare()
        loop.train(task, workdir)


def prepare(config: str) -> None:
    """Tokenizer and tokens of a run, made ahead of it."""
    from transformer.tasks.translation import Translation

    os.nice(10)
    Translation.build(from_json(Path(config).read_text())).prepare()


def write_toy(folder: Path, **lines: int) -> None:
    """Text of a made-up language: each word has one translation, in the same order."""
    draw = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = ["".join(draw.choice(syllables) for _ in range(draw.randint(1, 3))) for _ in range(200)]
    others = {word: "".join(draw.choice(syllables) for _ in range(draw.randint(1, 3))) for word in words}
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in lines.items():
        sentences = [[draw.choice(words) for _ in range(draw.randint(3, 12))] for _ in range(count)]
        (folder / f"{name}.en").write_text("".join(" ".join(one) + "\n" for one in sentences))
        (folder / f"{name}.de").write_text("".join(" ".join(map(others.get, one)) + "\n" for one in sentences))


def resume(s: Settings, emit: Emit) -> None:
    """A run that is stopped by SIGTERM and goes on ends with the bits of one that was never stopped."""
    import jax

    if reason := missing(*NEEDED):
        emit({"part": "resume", "skipped": reason})
        return
    jax.config.update("jax_platforms", "cpu")  # in this process, which only compares
    folder = Path(s.folder) / "resume"
    write_toy(folder, train=4_000)
    steps = 80 if s.quick else 600
    data = {"source": (f"{folder}/train.en",), "target": (f"{folder}/train.de",), "vocab_size": 600, "max_length": 64}
    # Heads of 64.
    sizes = SMALL | ({"encoder_layers": 1, "decoder_layers": 1} if s.quick else {"d_model": 256, "d_ff": 1024})
    config = Config(
        model=ModelConfig(**sizes, dtype="bfloat16"),
        data=DataConfig(**data, packing=True, workers=1),
        train=TrainConfig(steps=steps, batch_tokens=2_048, seed=s.seed, log_every=5, checkpoint_every=steps),
    )
    path = folder / "config.json"
    path.write_text(to_json(config))
    end = s.end - MEASURING

    def start(name: str) -> subprocess.Popen:
        command = [sys.executable, str(HERE / "gpu_runs.py"), "train", str(folder / name), str(path)]
        return subprocess.Popen(command, env=environment(XLA_FLAGS=xla_flags(DETERMINISTIC)), stdout=sys.stderr)

    whole, broken = start("whole"), start("broken")
    stopped_at = reached(folder / "broken" / "metrics.jsonl", steps // 3, broken, end)
    began = time.monotonic()
    broken.send_signal(signal.SIGTERM)
    code = ended(broken, end)
    seconds = time.monotonic() - began
    codes = {"exit_code": code, "exit_code_again": ended(start("broken"), end), "exit_code_whole": ended(whole, end)}
    row = {"part": "resume", "updates": steps, "asked_at": stopped_at, "seconds_to_stop": round(seconds, 2), **codes}
    if list(codes.values()) != [128 + signal.SIGTERM, 0, 0]:
        emit({**row, "failed": "a run ended otherwise than it should"})
        return
    first, second = (last_params(folder / name, steps) for name in ("whole", "broken"))
    emit({**row, "equal": first == second, "ok": first == second, "sha256": first[:16]})


def last_params(workdir: Path, step: int) -> str:
    from transformer.checkpoint import Checkpoints

    return sha256_of(Checkpoints(str(workdir)).at(step).params())


def ended(process: subprocess.Popen, end: float) -> int:
    """What a process exits with. Raises `UserError` where it has not ended in time."""
    try:
        return process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise UserError("a run did not end in time") from None


def reached(metrics: Path, step: int, process: subprocess.Popen, end: float) -> int:
    """Wait until a run has logged this step; the last step that it has logged then."""
    while time.monotonic() < end:
        steps = [entry["step"] for entry in entries(metrics)]
        if steps and steps[-1] >= step:
            return steps[-1]
        if process.poll() is not None:
            raise UserError(f"the run ended by itself with {process.returncode}, before update {step}")
        time.sleep(0.05)
    raise UserError(f"the run did not come to update {step} in time")


def entries(metrics: Path) -> list[dict[str, Any]]:
    """The whole lines of a log that may be growing."""
    if not metrics.exists():
        return []
    return [json.loads(line) for line in metrics.read_text().split("\n")[:-1]]


# ---- wmt_mini --------------------------------------------------------------------------------------------------------
def wmt_config(s: Settings) -> Config:
    """The run on wmt_mini, or on a made-up language if quick; writes the text that it needs."""
    folder = Path(s.folder) / "wmt_mini"
    if s.quick:
        write_toy(folder, train=2_000, dev=20)
        sides = {"source": (f"{folder}/train.en",), "target": (f"{folder}/train.de",)}
    else:
        text = Path(s.text)
        folder.mkdir(exist_ok=True)
        dev = [
            (text / "newstest" / f"newstest2013.en-de.{side}").read_text("utf-8").split("\n") for side in ("en", "de")
        ]
        chosen = [pair for pair in zip(*dev, strict=True) if 0 < len(pair[0].split()) <= DEV_WORDS][:DEV_LINES]
        for side, lines in zip(("en", "de"), zip(*chosen, strict=True), strict=True):
            (folder / f"dev.{side}").write_text("".join(line + "\n" for line in lines), "utf-8")
        names = {"source": "en", "target": "de"}
        sides = {k: tuple(str(text / "wmt_mini" / f"{w}.{v}.gz") for w in WEIGHTS) for k, v in names.items()}
        sides["weights"] = tuple(WEIGHTS.values())
    model = SMALL | {"dropout": 0.1, "encoder_layers": 1, "decoder_layers": 1} if s.quick else {"dropout": 0.2}
    train = {"steps": 100_000, "batch_tokens": 25_000, "warmup_steps": 1_000, "peak_learning_rate": 1e-3}
    train |= {"log_every": 100, "eval_every": 800, "checkpoint_every": 800}
    if s.quick:
        train = {"steps": 60, "batch_tokens": 1_024, "warmup_steps": 20, "peak_learning_rate": 5e-3}
        train |= {"log_every": 10, "eval_every": 30, "checkpoint_every": 30}
    data = {"vocab_size": 600 if s.quick else 16_000, "max_length": 64 if s.quick else 128, "workers": 4}
    # All development sentences in one batch: the fewest programs to compile.
    decode = {"batch_sentences": DEV_LINES, "batch_tokens": 2**20, "max_source_length": 128, "max_extra_length": 16}
    return Config(
        model=dataclasses.replace(BASE, **model, dtype="bfloat16", attention_kernel="cudnn"),
        data=DataConfig(**data, **sides, packing=True, dev_source=f"{folder}/dev.en", dev_target=f"{folder}/dev.de"),
        train=TrainConfig(**train, seed=s.seed, keep_last=1, eval_sentences=20 if s.quick else DEV_LINES),
        decode=DecodeConfig(**decode),
    )


def start_preparing(s: Settings, stderr: Any) -> subprocess.Popen:
    """A process that prepares the run, on CPUs and at low priority."""
    path = Path(s.folder) / "wmt_mini.json"
    path.write_text(to_json(wmt_config(s)))
    command = [sys.executable, str(HERE / "gpu_runs.py"), "prepare", str(path)]
    cpu = environment(JAX_PLATFORMS="cpu")
    return subprocess.Popen(command, env=cpu, stdout=stderr, stderr=stderr, start_new_session=True)


def wmt_mini(s: Settings, emit: Emit) -> None:
    """Train until the time is nearly over; a row for each evaluation."""
    if reason := missing(*NEEDED):
        emit({"part": "wmt_mini", "skipped": reason})
        return
    about = {"part": "wmt_mini", "model": "small" if s.quick else "base"}
    workdir, began = Path(s.folder) / "wmt_mini" / "run", time.time()
    # The signal ends the run in order; a checkpoint takes some seconds.
    ending = threading.Timer(max(1.0, s.limit - 20), os.kill, (os.getpid(), signal.SIGTERM))
    ending.daemon = True
    ending.start()
    done, sent = threading.Event(), set()

    def follow() -> None:
        while not done.wait(1):
            tell()

    def tell() -> None:
        for entry in entries(workdir / "metrics.jsonl"):
            if "dev_bleu" in entry and entry["step"] not in sent:
                sent.add(entry["step"])
                kept = ("step", "loss", "tokens_per_second", "mfu", "dev_loss", "dev_bleu", "dev_bleu_signature")
                row = {name: entry[name] for name in kept if name in entry}
                minutes = round((entry["time"] - began) / 60, 2)
                emit({**about, "minutes": minutes, **row})

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        train(str(workdir), f"{s.folder}/wmt_mini.json")
    except Interrupted as error:
        log(str(error))
    finally:
        ending.cancel()
        done.set()
        follower.join()
        tell()
    for last in entries(workdir / "metrics.jsonl")[-1:]:
        minutes = round((last["time"] - began) / 60, 2)
        emit({**about, "what": "end", "minutes": minutes, "step": last["step"], "loss": last.get("loss")})
    if not sent:
        raise UserError("the time was over before the first evaluation")


if __name__ == "__main__":
    from transformer.command_line import run

    run(lambda arguments: {"train": train, "prepare": prepare}[arguments[0]](*arguments[1:]))
