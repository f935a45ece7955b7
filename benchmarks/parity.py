"""The largest differences between our outputs and Hugging Face's, of the same parameters: GPT-2, BERT's heads, vectors.

    pip install torch transformers sentence-transformers
    python benchmarks/parity.py --rows results/parity.jsonl --minilm FOLDER     # FOLDER: see docs/bert.md
    python benchmarks/parity.py --rows results/parity.jsonl --parts gpt2

Of GPT-2 in several shapes and of each head of BERT: their random model read by us, and our random model read by them.
Of the real weights of all-minilm-l6-v2: the states, and the vectors of texts beside sentence-transformers'.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rows import Rows
from side_by_side import log

import transformer
from transformer.command_line import Parser, run
from transformer.config import BERT, GPT2, ModelConfig
from transformer.tools.hf import gpt2
from transformer.tools.hf.bert import CLASSES, bert_config, from_bert, model_config, to_bert
from transformer.tools.hf.bert_folder import import_folder
from transformer.tools.hf.folder import read_arrays

SHAPE = dataclasses.replace(
    BERT, encoder_layers=4, d_model=128, d_ff=512, heads=4, max_positions=64, vocab_size=1_000, dropout=0.0
)
TEXTS = [
    "A cat sits on the mat.",
    "Naïve café, 日本!",
    "What is the capital of France?",
    "unbelievably " * 300,
    "The quick brown fox jumps over the lazy dog, and nobody knows why it does so again and again.",
]


def random_batch(rows: int = 4, length: int = 48) -> dict[str, np.ndarray]:
    """Ids, token types and a mask, with Hugging Face's names."""
    rng = np.random.default_rng(0)
    ids = rng.integers(5, SHAPE.vocab_size, (rows, length))
    types = (np.arange(length) >= rng.integers(5, length, (rows, 1))).astype(int)
    mask = np.arange(length) < rng.integers(length // 2, length + 1, (rows, 1))
    return {"input_ids": ids, "token_type_ids": types, "attention_mask": mask.astype(int)}


def difference(params: Any, config: ModelConfig, model: Any, batch: dict[str, np.ndarray]) -> dict[str, float]:
    """The largest difference of our outputs and theirs where there are pieces, and the largest output."""
    import torch

    mask = batch["attention_mask"] != 0
    ours = transformer.build(config).apply(params, batch["input_ids"], types_BT=batch["token_type_ids"], mask_BT=mask)
    with torch.inference_mode():
        found = model.eval()(**{name: torch.from_numpy(x) for name, x in batch.items()})
    names = ("last_hidden_state", "pooler_output", "logits", "prediction_logits", "seq_relationship_logits")
    theirs = [found[name].numpy() for name in names if name in found]
    pairs = list(zip(ours if isinstance(ours, tuple) else (ours,), theirs, strict=True))
    where = [mask if y.ndim == 3 else slice(None) for _, y in pairs]
    apart = max(float(np.abs(np.asarray(x)[seen] - y[seen]).max()) for (x, y), seen in zip(pairs, where, strict=True))
    return {
        "largest_difference": float(f"{apart:.2g}"),
        "largest_output": round(float(max(abs(y).max() for _, y in pairs)), 2),
    }


GPT2_SHAPES = {
    "GPT-2, 4 layers, 128 wide": {},
    "GPT-2, 1 layer, 1 head": {"decoder_layers": 1, "heads": 1},
    "GPT-2, untied, swish": {"tied_embeddings": "none", "activation": "swish"},
    "GPT-2, 12 layers, 768 wide": {"decoder_layers": 12, "d_model": 768, "d_ff": 3_072, "heads": 12},
}


def gpt2s() -> Iterator[dict[str, Any]]:
    """Rows of GPT-2's logits, both ways."""
    import jax
    import torch
    import transformers

    ids = random_batch()["input_ids"]
    small = {"decoder_layers": 4, "d_model": 128, "d_ff": 512, "heads": 4, "max_positions": 64, "dropout": 0.0}
    for name, shape in GPT2_SHAPES.items():
        config = dataclasses.replace(GPT2, **small | shape, vocab_size=SHAPE.vocab_size)
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**gpt2.gpt2_config(config)))
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            theirs = gpt2.from_gpt2(read_arrays(Path(folder) / "model.safetensors"), config)
        ours = jax.tree.map(np.asarray, transformer.build(config).init(jax.random.key(1)))
        for whose, params in (("theirs", theirs), ("ours", ours)):
            if whose == "ours":
                state = gpt2.to_gpt2(ours, config)
                model.load_state_dict({key: torch.from_numpy(x) for key, x in state.items()}, strict=False)
                model.tie_weights()
            with torch.inference_mode():
                expected = model.eval()(torch.from_numpy(ids)).logits.numpy()
            found = np.asarray(transformer.build(config).apply(params, ids))
            yield {
                **{"part": "logits", "model": name, "head": "next piece", "parameters": whose},
                "largest_difference": float(f"{np.abs(found - expected).max():.2g}"),
                "largest_output": round(float(np.abs(expected).max()), 2),
            }


def heads() -> Iterator[dict[str, Any]]:
    """Rows of all heads, both ways."""
    import jax
    import torch
    import transformers

    batch = random_batch()
    for head, name in CLASSES.items():
        config = dataclasses.replace(SHAPE, head=head, labels=5 if head in ("sequence", "token") else None)
        about = {"part": "logits", "model": "BERT, 4 layers, 128 wide", "head": head}
        torch.manual_seed(0)
        model = getattr(transformers, name)(transformers.BertConfig(**bert_config(config)))
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            state = read_arrays(Path(folder) / "model.safetensors")
        config = model_config(bert_config(config), head)
        params = from_bert(state, config).params
        yield {**about, "parameters": "theirs", **difference(params, config, model, batch)}
        ours = jax.tree.map(np.asarray, transformer.build(config).init(jax.random.key(1)))
        state = to_bert(ours, config, "" if head == "none" else "bert.")
        model.load_state_dict({key: torch.from_numpy(x) for key, x in state.items()}, strict=False)
        model.tie_weights()
        yield {**about, "parameters": "ours", **difference(ours, config, model, batch)}


def vectors(folder: str) -> Iterator[dict[str, Any]]:
    """Rows of the real weights of all-minilm-l6-v2."""
    import sentence_transformers
    import transformers

    with tempfile.TemporaryDirectory() as workdir:
        import_folder(folder, f"{workdir}/run")
        model, params = transformer.load(f"{workdir}/run")
        embedder = transformer.Embedder.load(f"{workdir}/run")
        about = {"model": "all-minilm-l6-v2", "parameters": "theirs"}
        theirs = transformers.BertModel.from_pretrained(folder)
        yield {"part": "states", **about, **difference(params, model.config, theirs, random_batch())}
        ours = embedder.embed(TEXTS, normalize=True)
        expected = sentence_transformers.SentenceTransformer(folder, device="cpu").encode(TEXTS)
        apart = float(np.abs(ours - expected).max())
        version = sentence_transformers.__version__
        yield {
            **{"part": "vectors", **about, "beside": f"sentence-transformers {version}", "texts": len(TEXTS)},
            **{"largest_difference": float(f"{apart:.2g}"), "largest_output": round(float(np.abs(expected).max()), 2)},
        }


PARTS = {"gpt2": gpt2s, "bert": heads}


def main(arguments: list[str]) -> None:
    parser = Parser("benchmarks/parity.py", (__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", metavar="FILE", required=True, help="rows are added to this file")
    parser.add_argument("--minilm", metavar="FOLDER", help="the folder of all-minilm-l6-v2; without: random models")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    o = parser.parse_args(arguments)
    rows = Rows(o.rows)
    parts = [PARTS[name]() for name in o.parts] + ([vectors(o.minilm)] if o.minilm else [])
    for one in itertools.chain.from_iterable(parts):
        log("  ".join(f"{name} {value}" for name, value in rows.add({**one, "seed": 0}).items()))


if __name__ == "__main__":
    run(main)
