"""Which initialisation takes off: fresh models measured, and the dev loss of trained ones, seed by seed.

    python benchmarks/initialization.py start                                # a minute or two
    python benchmarks/initialization.py seeds --seeds 0 1 2                  # ten minutes a seed on 2 cores
    python benchmarks/initialization.py seeds --seeds 0 1 2 --folder DIR     # keeps workdirs; again: goes on from them

benchmarks/README.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rows import Rows
from side_by_side import HERE, log
from trainings import Training, rows_of

from transformer.command_line import Parser, run
from transformer.config import BASE, BIG, ModelConfig, UserError

TINY = ModelConfig(encoder_layers=4, decoder_layers=4, d_model=128, d_ff=256, heads=4, dropout=0.2)
SIZES = {"tiny": TINY, "base": BASE, "big": BIG}
INITIALIZERS = get_args(get_type_hints(ModelConfig)["initializer"])
# Glorot's start, but the matrices of these names start as under "fairseq".
MIXED = {"fairseq-attention": ("query", "key", "value"), "fairseq-feed-forward": ("w1", "w2")}
CONFIG = HERE.parent / "configs" / "multi30k_en_de.py"
PIECES = 4_000


# ---- Fresh models ----------------------------------------------------------------------------------------------------
def start(o: argparse.Namespace, rows: Rows) -> Iterator[dict[str, Any]]:
    """Rows: what `fresh` finds, as means over the seeds."""
    for size, depth, initializer in itertools.product(o.sizes, o.depths, o.initializers):
        layers = {"encoder_layers": depth, "decoder_layers": depth, "pre_norm": o.pre_norm}
        model = dataclasses.replace(SIZES[size], **layers, initializer=initializer, dropout=0.0)
        found = [fresh(model, seed) for seed in o.seeds]
        row = {
            **{"part": "start", "size": size, "depth": depth, "initializer": initializer, "pre_norm": o.pre_norm},
            "seeds": o.seeds,
            **{name: float(f"{sum(one[name] for one in found) / len(found):.3g}") for name in found[0]},
        }
        rows.add(row)
        yield row


def fresh(model: ModelConfig, seed: int) -> dict[str, float]:
    """What a fresh model does to 16 pairs of 16 random pieces.

    `*_share`: the mean share of a sub-layer's output in the variance of its residual sum. `likeness`: the mean cosine
    between the encoder's outputs at two positions of a sentence. `loss`: in nats a piece. `gradient_*`: the norm of its
    gradient for all parameters of one layer.
    """
    import jax
    import jax.numpy as jnp

    from transformer.model import build

    built = build(model.with_vocabulary(PIECES))
    params = built.init(jax.random.key(seed))
    source, target = jax.random.randint(jax.random.key(seed + 1), (2, 16, 16), 4, PIECES)

    def loss(params: Any) -> Any:
        log_probs = jax.nn.log_softmax(built.apply(params, source, target[:, :-1]))
        return -jnp.take_along_axis(log_probs, target[:, 1:, None], axis=-1).mean()

    with recorded() as sums:
        built.apply(params, source, target)
    shares = [float(jnp.mean(y**2) / (jnp.mean(x**2) + jnp.mean(y**2))) for x, y, _ in sums]
    encoder, decoder = shares[: 2 * model.encoder_layers], shares[2 * model.encoder_layers :]
    groups = {
        "encoder_attention_share": encoder[::2],
        "decoder_self_attention_share": decoder[::3],
        "cross_attention_share": decoder[1::3],
        "feed_forward_share": encoder[1::2] + decoder[2::3],
    }
    memory_BSD = sums[2 * model.encoder_layers - 1][2]
    unit_BSD = memory_BSD / jnp.linalg.norm(memory_BSD, axis=-1, keepdims=True)
    cosines_BST = unit_BSD @ unit_BSD.swapaxes(1, 2)
    S = cosines_BST.shape[1]
    value, grads = jax.jit(jax.value_and_grad(loss))(params)

    def norm(stack: str, layer: int) -> float:
        leaves = jax.tree.leaves(grads[stack]["layers"][str(layer)])
        return float(jnp.sqrt(sum(jnp.sum(x**2) for x in leaves)))

    return {
        **{name: sum(group) / len(group) for name, group in groups.items()},
        "loss": float(value),
        "likeness": float((cosines_BST.sum((1, 2)) - S).mean() / (S * (S - 1))),
        "gradient_encoder_first": norm("encoder", 0),
        "gradient_encoder_last": norm("encoder", model.encoder_layers - 1),
        "gradient_decoder_first": norm("decoder", 0),
        "gradient_decoder_last": norm("decoder", model.decoder_layers - 1),
    }


@contextlib.contextmanager
def recorded() -> Iterator[list[tuple[Any, Any, Any]]]:
    """For each sub-layer that runs in the block: its input to the residual sum, its output, and the norm of the sum."""
    from transformer.model.stack import SublayerNorm

    sums: list[tuple[Any, Any, Any]] = []
    plain = SublayerNorm.leave

    def leave(self: SublayerNorm, x_BTD: Any, y_BTD: Any, key: Any) -> Any:
        z_BTD = plain(self, x_BTD, y_BTD, key)
        sums.append((x_BTD, y_BTD, z_BTD))
        return z_BTD

    SublayerNorm.leave = leave
    try:
        yield sums
    finally:
        SublayerNorm.leave = plain


# ---- Trained models --------------------------------------------------------------------------------------------------
def seeds(o: argparse.Namespace, rows: Rows) -> Iterator[dict[str, Any]]:
    """Rows: the evaluations of each training, as soon as they are there; `--jobs` trainings at a time."""
    with contextlib.ExitStack() as stack:
        folder = Path(o.folder or stack.enter_context(tempfile.TemporaryDirectory()))
        wanted = dict.fromkeys(itertools.product(o.sizes, o.depths, o.initializers, o.seeds))
        trainings = [training(o, rows, folder, *one) for one in wanted]
        yield from stack.enter_context(contextlib.closing(rows_of(trainings, o.jobs)))


def training(
    o: argparse.Namespace, rows: Rows, folder: Path, size: str, depth: int, initializer: str, seed: int
) -> Training:
    """The training of one model with one seed."""
    model = dataclasses.replace(SIZES[size], encoder_layers=depth, decoder_layers=depth)
    workdir = folder / f"{size}-{depth}-{initializer}-{seed}"
    start = [f"--train.init_from={mixed(o.config, workdir, model, initializer, seed)}"] if initializer in MIXED else []
    sizes = ("encoder_layers", "decoder_layers", "d_model", "d_ff", "heads", "dropout")
    fields = {
        **{f"model.{name}": getattr(model, name) for name in sizes},
        **{"model.initializer": "glorot" if start else initializer, "train.seed": seed, "train.steps": o.updates},
        **{"train.eval_every": o.eval_every, "train.eval_sentences": o.eval_sentences},
        "train.checkpoint_every": o.updates,
    }
    options = ["--config", o.config, *(f"--{name}={value}" for name, value in fields.items()), *start, *o.overrides]
    about = {"part": "seeds", "config": Path(o.config).name, "size": size, "depth": depth, "initializer": initializer}
    about |= {"seed": seed, "overrides": o.overrides}
    return Training(rows, workdir, options, about)


def mixed(config: str, workdir: Path, model: ModelConfig, initializer: str, seed: int) -> Path:
    """Save a fresh model, mixed as `MIXED` says, beside `workdir`, unless it is there. Returns its path."""
    import jax

    import transformer
    from transformer.command_line import config_file
    from transformer.data.sources import corpora
    from transformer.data.tokenizer import tokenizer

    path = workdir.with_name(f"{workdir.name}-start")
    if not path.exists():
        data = config_file(config).data
        pieces = tokenizer(data, corpora(data).train)
        ways = (dataclasses.replace(model, initializer=name) for name in ("glorot", "fairseq"))
        glorot, fairseq = (transformer.build(way.with_vocabulary(pieces.vocab_size)) for way in ways)
        key = jax.random.fold_in(jax.random.key(seed), 0)  # as a run of train.py begins
        params = jax.tree.map_with_path(
            lambda path, x, y: y if path[-1].key in MIXED[initializer] else x, glorot.init(key), fairseq.init(key)
        )
        transformer.save(path, glorot, params, pieces)
    return path


# ---- The command -----------------------------------------------------------------------------------------------------
def main(arguments: list[str]) -> None:
    parser = Parser("benchmarks/initialization.py", __doc__.splitlines()[0])
    parser.add_argument("part", choices=["start", "seeds"])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["tiny"])
    parser.add_argument("--depths", nargs="+", type=int, help="layers a side (default: 2 4 6 12 at the start, else 4)")
    parser.add_argument("--initializers", nargs="+", choices=(*INITIALIZERS, *MIXED), default=list(INITIALIZERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--pre-norm", action="store_true", help="start: of pre-norm models")
    parser.add_argument("--config", default=str(CONFIG), help="seeds: what is trained (default: Multi30k's)")
    parser.add_argument("--updates", type=int, default=1_000, help="seeds: updates of a training (default 1,000)")
    parser.add_argument("--eval-every", type=int, default=250, help="seeds: updates between evaluations (default 250)")
    parser.add_argument("--eval-sentences", type=int, default=50, help="seeds: for dev BLEU (default 50)")
    parser.add_argument("--jobs", type=int, default=1, help="seeds: trainings at a time (default 1)")
    parser.add_argument("--folder", metavar="DIR", help="seeds: keep workdirs there, and go on from them")
    parser.add_argument("--rows", default="results/initialization.jsonl", help="rows are added to this file")
    o, o.overrides = parser.parse_known_args(arguments)
    o.depths = o.depths or ([2, 4, 6, 12] if o.part == "start" else [4])
    if o.overrides and o.part == "start":
        raise UserError(f"unknown option {o.overrides[0]}; --help lists every option")
    if o.part == "start" and (unknown := [name for name in o.initializers if name in MIXED]):
        raise UserError(f"--initializers {unknown[0]}: is for `seeds` alone")
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # trainings share a GPU, with this process, too
    with contextlib.closing({"start": start, "seeds": seeds}[o.part](o, Rows(o.rows))) as rows:
        for row in rows:
            log("  ".join(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    run(main)
