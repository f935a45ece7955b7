"""Byte Latent Transformers beside a byte model and a BPE model, at equal training FLOPs; the probe of case flips.

    python benchmarks/bytes.py --folder runs/bytes --rows results/bytes.jsonl        # about four hours on one core
    python benchmarks/bytes.py --only patches --folder runs/bytes --rows results/bytes.jsonl   # the picture's row alone
    python benchmarks/bytes.py --quick --folder /tmp/bytes --rows /tmp/bytes.jsonl   # a toy, a minute or two

Each model has a workdir in the folder. Runs that were stopped go on; what has a row is left out. docs/bytes.md tells
what came of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from algorithms import command
from rows import Rows
from side_by_side import HERE, log

from transformer.command_line import Parser, config_file, run
from transformer.config import ByteLatentConfig, flatten

ENTROPIES = "byte_entropy"
MODELS = {
    "bytes": "bytes_shakespeare",
    "static patches": "blt_static_shakespeare",
    "entropy patches": "blt_shakespeare",
    "BPE pieces": "bpe_shakespeare",
}
"""Name of a model -> its config in configs/."""
SHARES = (0.05, 0.1, 0.2, 0.5)
"""Shares of the letters whose case is flipped."""
PARTS = ("model", "flips", "patches")
SHOWN = 60  # most bytes of the line in the picture
TOY = {
    **{"model.encoder_layers": 1, "model.decoder_layers": 1, "model.d_model": 32, "model.d_ff": 64, "model.heads": 2},
    **{"model.latent.decoder_layers": 1, "model.latent.d_model": 64, "model.latent.d_ff": 64, "model.latent.heads": 2},
    **{"model.ngrams.rows": 64, "data.vocab_size": 300, "data.context": 32, "entropy.rows": 8},
    **{"train.steps": 4, "train.batch_tokens": 256, "train.eval_every": 4, "train.checkpoint_every": 4},
    **{"decode.max_extra_length": 4},
}


def config_of(name: str) -> Any:
    return config_file(str(HERE.parent / "configs" / f"{name}.py"))


def training_flops(config: Any) -> float:
    """FLOPs of a whole training by this config. Padding counts; so does the model of entropies, trained and run."""
    from transformer.training.flops import byte_latent_flops, update_flops

    data, rows = config.data, config.train.batch_tokens // config.data.context
    model = config.model.with_vocabulary(260 if data.pieces == "bytes" else data.vocab_size)
    if isinstance(config, ByteLatentConfig):
        entropies = training_flops(config_of(ENTROPIES)) if config.model.patches.by == "entropy" else 0.0
        return config.train.steps * byte_latent_flops(model, rows, data.context) + entropies
    return config.train.steps * update_flops(model, rows, 0, data.context)


def trained(name: str, folder: Path, quick: bool) -> Path:
    """The workdir of a config, trained to its end. Entropies come from the workdir of `ENTROPIES`."""
    config, workdir = config_of(name), folder / name
    options = ["--config", f"configs/{name}.py", "--workdir", str(workdir)]
    if isinstance(config, ByteLatentConfig) and config.model.patches.by == "entropy":
        options += ["--entropy.init_from", str(trained(ENTROPIES, folder, quick))]
    fields = flatten(config)
    toy = {field: value for field, value in TOY.items() if fields.get(field, 0) != 0} if quick else {}
    command("train.py", *options, *(f"--{field}={value}" for field, value in toy.items()))
    return workdir


# ---- Rows ------------------------------------------------------------------------------------------------------------
def models(o: argparse.Namespace, folder: Path, found: set[Any]) -> Iterator[dict[str, Any]]:
    """A row for each model: bits per byte of the development text."""
    from transformer.checkpoint import Checkpoints

    for model, name in MODELS.items():
        if ("model", model, None) in found:
            continue
        workdir = trained(name, folder, o.quick)
        result = json.loads(command("evaluate.py", "--workdir", str(workdir), "--json"))
        opened = Checkpoints(workdir).open("last")
        entries = (json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines())
        dev = [{"step": one["step"], "bits": one["dev_bits_per_byte"]} for one in entries if "dev_bits_per_byte" in one]
        yield {
            **{"part": "model", "model": model, "config": f"{name}.py", "seed": opened.config.train.seed},
            **{"updates": opened.progress["step"], "training_flops": training_flops(opened.config)},
            **{name: result[name] for name in ("checkpoint", "bits_per_byte", "bytes")},
            "dev": dev,
        }  # fmt: skip


def flips(o: argparse.Namespace, folder: Path, found: set[Any]) -> Iterator[dict[str, Any]]:
    """A row for each model and share of flipped letters: bits per byte of the development text so changed."""
    for model, name in MODELS.items():
        wanted = SHARES[-1:] if o.quick else SHARES
        if not (shares := [share for share in wanted if ("flips", model, share) not in found]):
            continue
        workdir = trained(name, folder, o.quick)
        unchanged = bits_of(workdir, 0.0)
        for share in shares:
            bits = bits_of(workdir, share)
            rise = round(bits - unchanged, 6)
            yield {"part": "flips", "model": model, "share": share, "bits_per_byte": bits, "rise": rise}


def bits_of(workdir: Path, share: float) -> float:
    """Bits per byte of the workdir's development text, with flipped letters."""
    from transformer.checkpoint import Checkpoints

    text = "".join(path.read_text(encoding="utf-8") for path in sorted((workdir / "sets").glob("dev.*.text")))
    context = Checkpoints(workdir).open().config.data.context  # as a stride: blocks do not overlap
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flipped.txt"
        path.write_text(flipped(text, share), encoding="utf-8")
        options = ["--workdir", str(workdir), "--text", str(path), "--stride", str(context), "--json"]
        return json.loads(command("evaluate.py", *options))["bits_per_byte"]


def flipped(text: str, share: float, seed: int = 0) -> str:
    """The text, with upper case for lower case and the other way round, in this share of its letters at random."""
    draw = random.Random(seed)
    return "".join(c.swapcase() if c.isascii() and c.isalpha() and draw.random() < share else c for c in text)


def patches(o: argparse.Namespace, folder: Path, found: set[Any]) -> Iterator[dict[str, Any]]:
    """One row: a line of the development text, the entropy of each byte, and where patches begin in it.

    There is another one once the entropies are those of a model that is trained to its end.
    """
    if ("patches", None, None) in found:
        return
    import jax.numpy as jnp

    from transformer.checkpoint import Checkpoints
    from transformer.model.patches import ended, entropies
    from transformer.tasks.byte_latent import ByteLatentTask

    config = config_of(MODELS["entropy patches"])
    start = Checkpoints(o.entropies or trained(ENTROPIES, folder, o.quick)).open()
    entropy = dataclasses.replace(config.entropy, init_from=str(start.path.parent.parent))
    task = ByteLatentTask.build(dataclasses.replace(config, entropy=entropy))
    chosen = task.config.model.patches
    tokens = jnp.asarray(task._development.tokens[: config.data.context], jnp.int32)[None]
    entropy_BT = entropies(start.model.apply(start.params(), tokens))
    text = task.pieces.decode(tokens[0])
    shown = max((line for line in text.split("\n")[1:-1] if len(line) <= SHOWN), key=len)
    first = text.index(shown)
    static = dataclasses.replace(chosen, by="static")
    cut = {}
    for name, how in (("begins", chosen), ("static", static)):
        given = None if how is static else entropy_BT
        done = ended(how, given, jnp.arange(tokens.shape[1])[None], chosen.threshold, jnp.zeros(1, jnp.int32))[0]
        numbers = [0, *done.tolist()]  # of the patch of each byte
        cut[name] = [i for i in range(len(shown)) if numbers[first + i] > numbers[first + i - 1]]
    # The entropy of a byte is that of its prediction, from the bytes before it.
    values = [round(float(x), 3) for x in entropy_BT[0, first - 1 : first - 1 + len(shown)]]
    about = {"part": "patches", "updates": start.progress["step"], "threshold": round(chosen.threshold, 4)}
    yield {**about, "text": shown, "entropies": values, **cut}


def main(arguments: list[str]) -> None:
    parser = Parser("benchmarks/bytes.py", (__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", required=True, help="where the workdirs go")
    parser.add_argument("--rows", required=True, metavar="FILE", help="rows are added to this file")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="which rows (default: all)")
    parser.add_argument(
        "--entropies", metavar="DIR", help="workdir of the model of entropies in the picture (default: trained here)"
    )
    parser.add_argument("--quick", action="store_true", help="a toy, to see that everything runs")
    o = parser.parse_args(arguments)
    rows, path = Rows(o.rows), Path(o.rows)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    least = 0 if o.quick or o.entropies else config_of(ENTROPIES).train.steps
    kept = [row for row in map(json.loads, lines) if row["part"] != "patches" or row["updates"] >= least]
    found = {(row["part"], row.get("model"), row.get("share")) for row in kept}
    folder = Path(o.folder).absolute()
    for part, make in {"patches": patches, "model": models, "flips": flips}.items():
        for row in make(o, folder, found) if part in o.only else ():
            row = rows.add(row)
            log("  ".join(f"{name} {value}" for name, value in row.items() if name not in ("dev", "entropies")))


if __name__ == "__main__":
    run(main)
