"""What it costs to read a checkpoint back before it is sealed.

    python benchmarks/saving.py --rows results/saving.jsonl     # the paper's base model; a minute or two
    python benchmarks/saving.py --quick                         # a toy, for a smoke test

benchmarks/README.md says what is measured and how.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rows import Rows
from side_by_side import log

from transformer.command_line import Parser, run, set_up_jax, whole
from transformer.config import BASE, Config, ModelConfig, to_json
from transformer.streams import print_json

TOY = ModelConfig(encoder_layers=1, decoder_layers=1, d_model=32, d_ff=64, heads=2)


def measure(model: ModelConfig, vocab_size: int, folder: str, repeats: int) -> dict[str, Any]:
    """A row: seconds from the call of `save` to the sealed checkpoint, with and without reading it back.

    The two take turns, after one save of each that does not count. `held_s`: how long training waits for `save`.
    """
    import jax

    from transformer.checkpoint import Checkpoints
    from transformer.model import build
    from transformer.training.optimizer import optimizer
    from transformer.training.step import init_state

    tx = optimizer(Config().train, model.d_model)
    state = jax.jit(lambda: init_state(build(model.with_vocabulary(vocab_size)).init, tx, 0))()
    items = jax.block_until_ready({"params": state.params, "optimizer": state.optimizer})
    files = {"config.json": to_json(Config(model=model)).encode(), "tokenizer.model": b"-"}
    checkpoints = Checkpoints(folder)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    held = []
    for step in range(1, 2 * (repeats + 1) + 1):
        read_back = step % 2 == 1
        with contextlib.nullcontext() if read_back else not_read_back():
            began = time.monotonic()
            checkpoints.save(step, items, progress={"step": step, "vocab_size": vocab_size}, files=files, keep_last=1)
            held.append(time.monotonic() - began)
            checkpoints.wait()
            seconds[read_back].append(time.monotonic() - began)
        log(f"save {step}: {seconds[read_back][-1]:.2f} s{'' if read_back else ' without reading back'}")
    with_it, without = seconds[True][1:], seconds[False][1:]
    return {
        "part": "saving",
        "mib": round(sum(x.nbytes for x in jax.tree.leaves(items)) / 2**20),
        **{"held_s": round(statistics.median(held[2:]), 3), "save_s": round(statistics.median(with_it), 3)},
        "save_s_range": [round(min(with_it), 3), round(max(with_it), 3)],
        "save_without_read_back_s": round(statistics.median(without), 3),
        "save_without_read_back_s_range": [round(min(without), 3), round(max(without), 3)],
        "times": round(statistics.median(with_it) / statistics.median(without), 3),
    }


@contextlib.contextmanager
def not_read_back() -> Iterator[None]:
    """A block in which checkpoints are sealed unread."""
    from transformer.checkpoint.saving import Saving

    read_back, Saving._read_back = Saving._read_back, lambda saving: None
    try:
        yield
    finally:
        Saving._read_back = read_back


def main(arguments: list[str]) -> None:
    parser = Parser("benchmarks/saving.py", "What it costs to read a checkpoint back before it is sealed.")
    parser.add_argument("--vocab-size", type=whole(8), default=37_000, help="pieces (default 37,000, as in the paper)")
    parser.add_argument("--repeats", type=whole(1), default=5, help="saves of each kind that count (default 5)")
    parser.add_argument("--folder", metavar="DIR", help="the disk to save on; default: that of temporary files")
    parser.add_argument("--quick", action="store_true", help="a toy")
    parser.add_argument("--rows", metavar="FILE", help="append the row to this file, with what it was measured on")
    o = parser.parse_args(arguments)
    set_up_jax()
    model, vocab_size = (TOY, 100) if o.quick else (BASE, o.vocab_size)
    with tempfile.TemporaryDirectory(dir=o.folder, prefix="saving-") as folder:
        row = measure(model, vocab_size, folder, o.repeats)
    row = {**row, "model": "toy" if o.quick else "base", "pieces": vocab_size, "repeats": o.repeats}
    print_json(Rows(o.rows).add(row) if o.rows else row)


if __name__ == "__main__":
    run(main)
