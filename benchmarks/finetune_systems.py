"""The systems that finetune.py compares, each in a process of its own.

    python benchmarks/finetune_systems.py SYSTEM '{"size": "minilm", "folder": "...", ...}'

`weights` writes a random BERT with a head for two classes, as a workdir of ours and as a folder of Hugging Face's. The
others read it. When one is ready, it tells its loss on the first batch, without dropout. A request is how often to go
through the batches. An answer has the seconds and the last loss.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import updates
from gpt_systems import network

SHAPES = {
    "minilm": {"encoder_layers": 6, "d_model": 384, "d_ff": 1536, "heads": 12},
    "small": {"encoder_layers": 2, "d_model": 64, "d_ff": 256, "heads": 4},
}
PIECES = {"minilm": 30_522, "small": 500}


def model_config(size: str, **changes: Any) -> Any:
    """The shape of all-minilm-l6-v2, or a toy, with a head for two classes."""
    from transformer.config import BERT

    shape = dataclasses.replace(BERT, head="sequence", labels=2, **SHAPES[size], **changes)
    return shape.with_vocabulary(PIECES[size])


def weights(size: str, folder: str, **_: Any) -> Any:
    """Random weights of BERT's initial distribution."""
    import jax

    from transformer.config import FinetuneConfig
    from transformer.model import build
    from transformer.tools.hf import bert_folder
    from transformer.tools.new_workdir import new_workdir

    config = FinetuneConfig(model_config(size))
    params = build(config.model).init(jax.random.key(0))
    progress = {"step": 0, "vocab_size": PIECES[size], "averaged_steps": [0]}
    new_workdir(f"{folder}/ours", params, config, progress=progress, files={})
    bert_folder.export(f"{folder}/ours", f"{folder}/huggingface")
    return {}, lambda request: {}


def labelled_batches(size: str, batch: int, lengths: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """Batches of single texts (see `data.labelled_rows`): in each, one row is as long as the batch, the others have
    three fifths of its length at least."""
    rng = np.random.default_rng(0)
    batches = []
    for length in lengths:
        of_rows = rng.integers(-(-3 * length // 5), length + 1, (batch, 1))
        of_rows[0] = length
        seen = np.arange(length) < of_rows
        text = np.where(seen, rng.integers(5, PIECES[size], (batch, length)), 0)
        label = rng.integers(1, 3, (batch, 1))
        arrays = {"text": text, "part": seen, "label": label}
        batches.append({name: array.astype(np.int32) for name, array in arrays.items()})
    return batches


def ours(
    size: str, folder: str, dtype: str, batch: int, lengths: Sequence[int], **_: Any
) -> tuple[dict[str, Any], Callable]:
    import jax

    import transformer
    from transformer.command_line import set_up_jax
    from transformer.config import FinetuneConfig
    from transformer.model import build
    from transformer.training.objectives import labelled

    set_up_jax()
    train, batches = FinetuneConfig().train, labelled_batches(size, batch, lengths)
    objective = labelled(build(model_config(size, dtype=dtype)), train)
    _, params = transformer.load(f"{folder}/ours")
    total, sums = jax.jit(lambda params, batch: objective.loss(params, batch, None))(params, batches[0])
    ready = {"loss": float(total / sums["weight"])}
    return ready, updates.ours(objective, train, batches, params)


def huggingface(
    size: str, folder: str, dtype: str, batch: int, lengths: Sequence[int], threads: int, device: str, **_: Any
) -> tuple[dict[str, Any], Callable]:
    """Parameters in float32, and autocast in bfloat16."""
    import torch

    if device == "cpu":
        updates.keep_memory()
    model = network("BertForSequenceClassification", folder, "float32", threads, device).eval()
    batches = [
        {name: torch.from_numpy(array).long().to(device) for name, array in their_names(arrays).items()}
        for arrays in labelled_batches(size, batch, lengths)
    ]

    def loss(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(**batch).loss

    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
        ready = {"loss": float(loss(batches[0]))}
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        (others if name.endswith("bias") or "LayerNorm" in name else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=1e-7, betas=(0.9, 0.999), eps=1e-6, fused=True)
    model.train()
    return ready, updates.pytorch(model, adam, loss, batches, device, dtype)


def their_names(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A batch of ours as arguments of their class."""
    mask = arrays["part"]
    return {
        "input_ids": arrays["text"],
        "attention_mask": mask,
        "token_type_ids": np.zeros_like(mask),
        "labels": arrays["label"][:, 0] - 1,
    }


SYSTEMS: dict[str, Callable[..., Any]] = {"weights": weights, "ours-train": ours, "huggingface-train": huggingface}

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(__file__))
    from side_by_side import answer_requests

    answer_requests(SYSTEMS[sys.argv[1]], json.loads(sys.argv[2]))
