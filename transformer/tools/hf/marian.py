"""Convert our trained model to Hugging Face's `MarianMTModel` and back, by a table of names.

Of Hugging Face's models only Marian has the structure of the paper's: post-norm, sinusoids, one tied table, scaled
embeddings. Two differences are handled here. Marian always has biases in attention and output; they are zero if our
model has none. Marian's sinusoids have all sines before all cosines, ours alternate; so each axis over d_model is
permuted.

One difference remains: Marian's norms add 1e-5 to the variance (in its code, not in its config); ours add `norm_eps`,
by default 1e-6. At the variances of a post-norm model (about 1 or more) logits differ by about 1e-5. For closer logits,
set `module.eps = 1e-6` on each `torch.nn.LayerNorm` after loading.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from transformer.checkpoint import Checkpoint, Checkpoints
from transformer.config import (
    BOS,
    EOS,
    PAD,
    SPECIALS,
    Config,
    ModelConfig,
    require_translation,
)
from transformer.data.tokenizer import Tokenizer
from transformer.files import local_path, new_folder, require_new, writing
from transformer.model import Params
from transformer.packages import require
from transformer.tools.hf import fields
from transformer.tools.hf.folder import write, write_arrays
from transformer.tools.hf.names import (
    Arrays,
    Row,
    Sizes,
    flat,
    mismatches,
    nested,
    our_shape,
    refuse,
    their_shape,
    to_ours,
    to_theirs,
)
from transformer.tools.model_card import About, about, files_about

# The parameters of one layer; cross-attention is in the decoder only. Their matrices are (out, in), ours (in, out).
LAYER = (
    Row("self_attention/query", "self_attn.q_proj.weight", "DNH", "NHD"),
    Row("self_attention/key", "self_attn.k_proj.weight", "DNH", "NHD"),
    Row("self_attention/value", "self_attn.v_proj.weight", "DNH", "NHD"),
    Row("self_attention/output", "self_attn.out_proj.weight", "NHD", "DNH"),
    Row("self_attention_norm/scale", "self_attn_layer_norm.weight", "D", "D"),
    Row("self_attention_norm/bias", "self_attn_layer_norm.bias", "D", "D"),
    Row("cross_attention/query", "encoder_attn.q_proj.weight", "DNH", "NHD"),
    Row("cross_attention/key", "encoder_attn.k_proj.weight", "DNH", "NHD"),
    Row("cross_attention/value", "encoder_attn.v_proj.weight", "DNH", "NHD"),
    Row("cross_attention/output", "encoder_attn.out_proj.weight", "NHD", "DNH"),
    Row("cross_attention_norm/scale", "encoder_attn_layer_norm.weight", "D", "D"),
    Row("cross_attention_norm/bias", "encoder_attn_layer_norm.bias", "D", "D"),
    Row("feed_forward/w1", "fc1.weight", "DF", "FD"),
    Row("feed_forward/b1", "fc1.bias", "F", "F"),
    Row("feed_forward/w2", "fc2.weight", "FD", "DF"),
    Row("feed_forward/b2", "fc2.bias", "D", "D"),
    Row("feed_forward_norm/scale", "final_layer_norm.weight", "D", "D"),
    Row("feed_forward_norm/bias", "final_layer_norm.bias", "D", "D"),
)
# Added if our model has `attention_bias`.
BIASES = tuple(
    Row(f"{theirs}_attention/{ours}_bias", f"{prefix}_attn.{name}_proj.bias", axes, axes)
    for theirs, prefix in (("self", "self"), ("cross", "encoder"))
    for ours, name, axes in (("query", "q", "NH"), ("key", "k", "NH"), ("value", "v", "NH"), ("output", "out", "D"))
)
OUTPUT_BIAS = Row("output_bias", "final_logits_bias", "V", "1V")
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_new", "swish": "swish"}
SHARED = "model.shared.weight"
# Other names of the tied table. A model in memory has them; saved files don't.
TIED = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
# Marian computes these when it builds a model. They are never saved.
POSITIONS = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")
# Fields that may have any value. Every other field of the model must have its default, the paper's.
ANY_VALUE = (
    *("encoder_layers", "decoder_layers", "d_model", "d_ff", "heads", "vocab_size", "dropout", "max_positions"),
    *("initializer", "attention_kernel", "dtype", "attention_dropout", "attention_bias", "activation"),
    *("embedding_scale", "output_bias"),
)

_USE = """
Needs `pip install torch transformers sentencepiece`.

```python
from transformers import MarianMTModel, MarianTokenizer

model, tokenizer = MarianMTModel.from_pretrained("."), MarianTokenizer.from_pretrained(".")
outputs = model.generate(**tokenizer(["A sentence."], return_tensors="pt"))
print(tokenizer.batch_decode(outputs, skip_special_tokens=True))
```
"""


def table(config: ModelConfig) -> list[Row]:
    """One row for each parameter of a model with this config."""
    rows = [Row("embedding/table", SHARED, "VD", "VD")] + [OUTPUT_BIAS] * config.output_bias
    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        for i in range(layers):
            rows += [
                row._replace(ours=f"{side}/layers/{i}/{row.ours}", theirs=f"model.{side}.layers.{i}.{row.theirs}")
                for row in LAYER + BIASES * config.attention_bias
                if side == "decoder" or not row.ours.startswith("cross")
            ]
    return rows


def to_marian(params: Params, config: ModelConfig, vocab_size: int) -> dict[str, np.ndarray]:
    """The state dict of a `MarianMTModel`, float32, as in a saved file: the tied table once, no position tables.

    Raises `UserError` naming the first field of `config` that Marian can't express, or every parameter that is missing,
    unknown or of the wrong shape.
    """
    refuse_inexpressible(config)
    rows, sizes = table(config), _sizes(config, vocab_size)
    ours = flat(params)
    refuse("our parameters", mismatches(ours, [(row.ours, our_shape(row, sizes)) for row in rows]))
    order = _order(config.d_model)
    state = {row.theirs: to_theirs(ours[row.ours], row, sizes, order) for row in rows}
    return state | {name: np.zeros(shape, np.float32) for name, shape in _zeros(rows, sizes)}


def from_marian(state: Arrays, config: ModelConfig, vocab_size: int) -> dict[str, Any]:
    """Our nested parameters from the state dict of a `MarianMTModel`, saved or in memory: the inverse of `to_marian`.

    Raises `UserError` naming the first field of `config` that Marian can't express, or all that is wrong in `state`:
    arrays that are missing, unknown or of the wrong shape, copies of the tied table that differ, non-zero biases that
    our model does not have, and position tables that are not the sinusoids.
    """
    refuse_inexpressible(config)
    rows, sizes = table(config), _sizes(config, vocab_size)
    state = {name: np.asarray(array, np.float32) for name, array in state.items()}
    computed = {name: state.pop(name) for name in (*TIED, *POSITIONS) if name in state}
    wrong = mismatches(state, [(row.theirs, their_shape(row, sizes)) for row in rows] + _zeros(rows, sizes))
    for name, array in computed.items():
        if name in TIED and SHARED in state and not np.array_equal(array, state[SHARED]):
            wrong.append(f"{name} and {SHARED} are both our embedding/table, but differ")
        if name in POSITIONS and not (array.shape[1:] == (config.d_model,) and _is_sinusoidal(array)):
            wrong.append(f"{name} is not the table of sinusoids")
    wrong += [
        f"{name} is not zero, and our model has no such bias"
        for name, _ in _zeros(rows, sizes)
        if np.any(state.get(name, 0))
    ]
    refuse("the Marian model", wrong)
    order = _order(config.d_model)
    return nested({row.ours: to_ours(state[row.theirs], row, sizes, order) for row in rows})


def refuse_inexpressible(config: ModelConfig) -> None:
    """Raise `UserError` naming the first field that breaks a rule, or whose value Marian can't express."""
    fields.refuse_inexpressible(config, "Marian", "hf-marian", ANY_VALUE, {}, implied={"norm_eps": 1e-5})


def marian_config(config: Config, vocab_size: int) -> dict[str, Any]:
    """The config.json of a `MarianMTModel`."""
    m = config.model
    longest = config.decode.max_source_length + config.decode.max_extra_length + 1
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("attention_heads", m.heads), ("ffn_dim", m.d_ff), ("layerdrop", 0.0))
    }
    return {
        "architectures": ["MarianMTModel"],
        "model_type": "marian",
        "is_encoder_decoder": True,
        "vocab_size": vocab_size,
        "decoder_vocab_size": vocab_size,
        "d_model": m.d_model,
        "encoder_layers": m.encoder_layers,
        "decoder_layers": m.decoder_layers,
        **sides,
        "activation_function": ACTIVATIONS[m.activation],
        "dropout": m.dropout,
        "attention_dropout": m.attention_dropout,
        "activation_dropout": 0.0,
        "scale_embedding": m.embedding_scale,
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
        "max_position_embeddings": max(longest, config.data.max_length),
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "decoder_start_token_id": BOS,
        "forced_eos_token_id": None,  # the default is id 0
        "dtype": "float32",
    }


def generation_config(config: Config) -> dict[str, Any]:
    """The generation_config.json: those options of our beam search that theirs has.

    Theirs can only divide by length^alpha ('fairseq'); the paper's penalty is replaced by that one with the same alpha.
    """
    d = config.decode
    return {
        "num_beams": d.beam_size,
        "length_penalty": 0.0 if d.length_normalization == "none" else d.length_penalty,
        "max_length": d.max_source_length + d.max_extra_length + 1,
        "suppress_tokens": [PAD, BOS],
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "decoder_start_token_id": BOS,
    }


def export(workdir: str, out: str, checkpoint: str | None = None) -> Path:
    """Write a checkpoint as a folder for `MarianMTModel.from_pretrained` and `MarianTokenizer.from_pretrained`.

    `checkpoint` as in `transformer.load`. Needs the package safetensors, but neither torch nor transformers. Raises
    `UserError` if safetensors is missing, if `out` is not a new or empty folder, and as `to_marian` does.
    """
    require("export --to hf-marian", "safetensors")
    require_new(folder := local_path("OUT", out))
    config, state, pieces, known = Checkpoints(workdir).read(checkpoint, _state)
    vocab_size = pieces.vocab_size
    with writing(folder), new_folder(folder) as building:
        for side in ("source", "target"):
            write(building / f"{side}.spm", pieces.model_of(side))
        for name, content in files_about(known, "hf-marian", _USE).items():
            write(building / name, content)
        write(building / "vocab.json", {pieces.piece(i): i for i in range(vocab_size)})
        write(
            building / "tokenizer_config.json",
            {"tokenizer_class": "MarianTokenizer"}
            | dict(zip(("source_lang", "target_lang"), config.data.languages or (), strict=False))
            | dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIALS, strict=True)),
        )
        write(building / "generation_config.json", generation_config(config))
        write_arrays(building / "model.safetensors", state)
        write(building / "config.json", marian_config(config, vocab_size))
    return folder


def _state(opened: Checkpoint) -> tuple[Config, dict[str, np.ndarray], Tokenizer, About]:
    """The config of a checkpoint, its state dict for Marian, its tokenizer, and what its card tells."""
    config = opened.config
    require_translation(config, opened.path.parent.parent)
    refuse_inexpressible(config.model)  # before the arrays are read
    state = to_marian(opened.finite_params(), config.model, opened.progress["vocab_size"])
    return config, state, Tokenizer(opened.file("tokenizer.model")), about(opened)


def _sizes(config: ModelConfig, vocab_size: int) -> Sizes:
    c = config
    return {"V": vocab_size, "D": c.d_model, "F": c.d_ff, "N": c.heads, "H": c.d_model // c.heads}


def _zeros(rows: Iterable[Row], sizes: Sizes) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the biases that Marian has and our model does not."""
    ours = {row.theirs for row in rows}
    projections = [row.theirs for row in rows if "N" in row.their_axes and row.theirs.endswith("weight")]
    biases = [(name.removesuffix("weight") + "bias", (sizes["D"],)) for name in projections]
    biases.append((OUTPUT_BIAS.theirs, their_shape(OUTPUT_BIAS, sizes)))
    return [(name, shape) for name, shape in biases if name not in ours]


def _order(d_model: int) -> np.ndarray:
    """For each of their model dimensions the index of ours: first the sines, then the cosines (paper §3.5)."""
    return np.concatenate([np.arange(0, d_model, 2), np.arange(1, d_model, 2)])


def _is_sinusoidal(table_PD: np.ndarray) -> bool:
    """Whether this is Marian's table of sinusoids. Computed in float64, like theirs: float32 errs by up to 1e-4."""
    length, d_model = table_PD.shape
    angles = np.arange(length)[:, None] * 10_000.0 ** (-np.arange(0, d_model, 2) / d_model)
    return np.allclose(table_PD, np.concatenate([np.sin(angles), np.cos(angles)], axis=1), rtol=0, atol=1e-6)
