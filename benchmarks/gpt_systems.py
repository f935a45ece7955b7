"""The systems that gpt.py compares, each in a process of its own.

    python benchmarks/gpt_systems.py SYSTEM '{"size": "124m", "folder": "...", ...}'

`weights` writes a random GPT-2, as a workdir of ours and as a folder of Hugging Face's. The others read it. A request
is how often to do the work. An answer has the seconds and what was found.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import updates

SMALL = {"decoder_layers": 2, "d_model": 64, "d_ff": 256, "heads": 4, "max_positions": 64}
PIECES = {"124m": 50_257, "small": 500}


def model_config(size: str, **changes: Any) -> Any:
    from transformer.config import GPT2

    return dataclasses.replace(GPT2, **(SMALL if size == "small" else {}), **changes).with_vocabulary(PIECES[size])


def weights(size: str, folder: str, **_: Any) -> Any:
    """Random weights of GPT-2's initial distribution."""
    import jax

    from transformer.config import LanguageModelConfig, TextConfig
    from transformer.model import build
    from transformer.tools.hf import gpt2_folder
    from transformer.tools.new_workdir import new_workdir

    config = LanguageModelConfig(model_config(size), TextConfig(context=16))
    params = build(config.model).init(jax.random.key(0))
    progress = {"step": 0, "vocab_size": PIECES[size], "averaged_steps": [0]}
    new_workdir(f"{folder}/ours", params, config, progress=progress, files={})
    gpt2_folder.export(f"{folder}/ours", f"{folder}/huggingface")
    return {}, lambda request: {}


def prompts(size: str, batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(4, PIECES[size] - 4, (batch, length)).astype(np.int32)


def training_rows(size: str, batch: int, length: int) -> np.ndarray:
    """Rows of one piece more than the model reads."""
    return prompts(size, batch, length + 1)


# ---- Ours ------------------------------------------------------------------------------------------------------------
def our_generation(
    size: str, folder: str, dtype: str, batch: int, prompt: int, length: int, **_: Any
) -> tuple[Any, Callable]:
    import transformer
    from transformer.command_line import set_up_jax
    from transformer.config import DecodeConfig
    from transformer.data.vocabularies import Characters
    from transformer.inference.generator import Generator
    from transformer.model import build
    from transformer.model.rounding import in_type

    set_up_jax()
    _, params = transformer.load(f"{folder}/ours")
    model, params = in_type(model_config(size), params, dtype)
    # Any vocabulary with as many pieces: the prompts are pieces already.
    vocabulary = Characters([chr(0x10000 + i) for i in range(PIECES[size] - 4)])
    one_stream = DecodeConfig(
        beam_size=1, max_extra_length=length, min_length=length, batch_sentences=batch, streams=1, length_penalty=0
    )
    generator = Generator(build(model), params, vocabulary, one_stream)
    ids = prompts(size, batch, prompt).tolist()

    def work(count: int) -> dict[str, Any]:
        began = time.perf_counter()
        found = dict(pair for _ in range(count) for pair in generator.search(ids))
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "tokens": [found[i][0].tokens[:length] for i in range(batch)]}

    work(1)
    return {}, work


def our_training(size: str, dtype: str, batch: int, length: int, **_: Any) -> tuple[Any, Callable]:
    from transformer.command_line import set_up_jax
    from transformer.config import LanguageModelConfig
    from transformer.model import build
    from transformer.training.objectives import causal

    set_up_jax()
    train, rows = LanguageModelConfig().train, training_rows(size, batch, length)
    arrays = {"text": rows[:, :-1], "next": rows[:, 1:], "predicted": np.ones_like(rows[:, 1:])}
    return {}, updates.ours(causal(build(model_config(size, dtype=dtype)), train), train, [arrays])


# ---- Hugging Face ----------------------------------------------------------------------------------------------------
def network(kind: str, folder: str, dtype: str, threads: int, device: str) -> Any:
    """The model of a folder: `kind` is a class of transformers."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    of_weights = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    return getattr(transformers, kind).from_pretrained(f"{folder}/huggingface", dtype=of_weights).to(device)


def their_generation(
    size: str, folder: str, dtype: str, batch: int, prompt: int, length: int, threads: int, device: str, **_: Any
) -> tuple[Any, Callable]:
    import torch

    model = network("GPT2LMHeadModel", folder, dtype, threads, device).eval()
    ids = torch.from_numpy(prompts(size, batch, prompt)).long().to(device)
    options = {"max_new_tokens": length, "min_new_tokens": length, "do_sample": False, "use_cache": True}
    # Ours never generates these, whatever the model: the vocabulary's special pieces.
    options |= {
        "pad_token_id": 0,
        "eos_token_id": 2,
        "suppress_tokens": [0, 1, 3],
        "attention_mask": torch.ones_like(ids),
    }

    def work(count: int) -> dict[str, Any]:
        began = time.perf_counter()
        with torch.inference_mode():
            for _ in range(count):
                found = model.generate(ids, **options)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "tokens": found[:, ids.shape[1] :].tolist()}

    work(1)
    return {}, work


def their_training(
    size: str, folder: str, dtype: str, batch: int, length: int, threads: int, device: str, **_: Any
) -> tuple[Any, Callable]:
    import torch

    if device == "cpu":
        updates.keep_memory()
    model = network("GPT2LMHeadModel", folder, "float32", threads, device).train()
    adam = torch.optim.AdamW(model.parameters(), lr=1e-7, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True)
    rows = torch.from_numpy(training_rows(size, batch, length)).long().to(device)

    def loss(rows: torch.Tensor) -> torch.Tensor:
        logits = model(rows[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())

    return {}, updates.pytorch(model, adam, loss, [rows], device, dtype)


SYSTEMS: dict[str, Callable[..., Any]] = {
    "weights": weights,
    "ours-generate": our_generation,
    "ours-train": our_training,
    "huggingface-generate": their_generation,
    "huggingface-train": their_training,
}

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(__file__))
    from side_by_side import answer_requests

    answer_requests(SYSTEMS[sys.argv[1]], json.loads(sys.argv[2]))
