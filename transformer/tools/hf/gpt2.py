"""Convert Hugging Face's `GPT2LMHeadModel` to our language model and back, by a table of names.

Both have the same structure, so the arrays are the same numbers in other shapes. Two things differ. Hugging Face keeps
the matrices of query, key and value side by side in one array. It always has biases in attention and norms; they are
zero if our model has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from transformer.config import ModelConfig
from transformer.model import Params
from transformer.tools.hf import fields
from transformer.tools.hf.fields import (
    checked,
    is_count,
    wrong_choice,
    wrong_counts,
    wrong_epsilon,
    wrong_rates,
    wrong_values,
)
from transformer.tools.hf.names import (
    Arrays,
    Row,
    Sizes,
    flat,
    mismatches,
    nested,
    our_shape,
    refuse,
    require_type,
    their_shape,
    to_ours,
    to_theirs,
    unusable,
)

# The parameters of one layer. Their class Conv1D has matrices of shape (in, out), as ours are. "name:part" is one of
# the three parts of an array, which are side by side along its last axis.
LAYER = (
    Row("self_attention/query", "attn.c_attn.weight:query", "DNH", "DNH"),
    Row("self_attention/key", "attn.c_attn.weight:key", "DNH", "DNH"),
    Row("self_attention/value", "attn.c_attn.weight:value", "DNH", "DNH"),
    Row("self_attention/query_bias", "attn.c_attn.bias:query", "NH", "NH"),
    Row("self_attention/key_bias", "attn.c_attn.bias:key", "NH", "NH"),
    Row("self_attention/value_bias", "attn.c_attn.bias:value", "NH", "NH"),
    Row("self_attention/output", "attn.c_proj.weight", "NHD", "NHD"),
    Row("self_attention/output_bias", "attn.c_proj.bias", "D", "D"),
    Row("self_attention_norm/scale", "ln_1.weight", "D", "D"),
    Row("self_attention_norm/bias", "ln_1.bias", "D", "D"),
    Row("feed_forward/w1", "mlp.c_fc.weight", "DF", "DF"),
    Row("feed_forward/b1", "mlp.c_fc.bias", "F", "F"),
    Row("feed_forward/w2", "mlp.c_proj.weight", "FD", "FD"),
    Row("feed_forward/b2", "mlp.c_proj.bias", "D", "D"),
    Row("feed_forward_norm/scale", "ln_2.weight", "D", "D"),
    Row("feed_forward_norm/bias", "ln_2.bias", "D", "D"),
)
OUTER = (
    Row("embedding/table", "wte.weight", "VD", "VD"),
    Row("positions", "wpe.weight", "PD", "PD"),
    Row("decoder/norm/scale", "ln_f.weight", "D", "D"),
    Row("decoder/norm/bias", "ln_f.bias", "D", "D"),
)
HEAD = Row("output_embedding/table", "lm_head.weight", "VD", "VD")  # equal to the embedding table if tied
PREFIX = "transformer."  # of all names but the head's, unless only the inner `GPT2Model` was saved
BUFFERS = ("attn.bias", "attn.masked_bias")  # of each layer: masks, which old versions saved

ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}
ACTIVATIONS |= {"silu": "swish", "swish": "swish"}
SIZES = {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1_024, "vocab_size": 50_257}
"""The sizes in their config, and the values that a config without them has."""
RATES = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
# Fields with the only value that our model can express.
FIXED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "pruned_heads": {},
    "quantization_config": None,
}
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Fields that do not change what the model computes.
_WITHOUT_EFFECT = (
    *("architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "n_ctx", "use_cache"),
    *("initializer_range", "reorder_and_upcast_attn", "gradient_checkpointing", "task_specific_params"),
    *("summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj"),
    *("_name_or_path", *SPECIAL_IDS),
)

# Fields of our model that may have any value. Every other one must have the value in `_EXPRESSIBLE`, or its default.
_ANY_VALUE = (
    *("decoder_layers", "d_model", "d_ff", "heads", "vocab_size", "attention_bias"),
    *("dropout", "attention_dropout", "activation_dropout"),
    *("activation", "norm_eps", "norm_bias", "max_positions", "position_offset", "tied_embeddings"),
    *("initializer", "attention_kernel", "dtype"),
)
_EXPRESSIBLE = {"encoder_layers": 0, "embedding_scale": False, "positions": "learned", "pre_norm": True}


# ---- Config ----------------------------------------------------------------------------------------------------------


def model_config(values: Mapping[str, Any], where: object = "config.json") -> ModelConfig:
    """The config of our model from the content of their config.json, called `where` in messages.

    Raises `UserError` that lists the fields that our model can't express, or whose value is wrong.
    """
    require_type(values, "gpt2", where)
    sizes = {name: values.get(name, default) for name, default in SIZES.items()}
    sizes["n_inner"] = values.get("n_inner") or 4 * (sizes["n_embd"] if is_count(sizes["n_embd"]) else 1)
    rates = {name: values.get(name, 0.1) for name in RATES}
    wrong = wrong_counts(sizes) + wrong_rates(rates)
    if rates["resid_pdrop"] != rates["embd_pdrop"]:
        wrong.append(
            f"embd_pdrop = {rates['embd_pdrop']!r}, resid_pdrop = {rates['resid_pdrop']!r}: our model has one rate for "
            "both; make them equal"
        )
    activation, eps = values.get("activation_function", "gelu_new"), values.get("layer_norm_epsilon", 1e-5)
    wrong += wrong_choice("activation_function", activation, ACTIVATIONS) + wrong_epsilon("layer_norm_epsilon", eps)
    tied = values.get("tie_word_embeddings", True)
    if not isinstance(tied, bool):
        wrong.append(f"tie_word_embeddings = {tied!r}: must be true or false")
    refuse(str(where), wrong + wrong_values(values, FIXED))
    model = ModelConfig(
        **_EXPRESSIBLE,
        decoder_layers=sizes["n_layer"],
        d_model=sizes["n_embd"],
        d_ff=sizes["n_inner"],
        heads=sizes["n_head"],
        vocab_size=sizes["vocab_size"],
        max_positions=sizes["n_positions"],
        dropout=float(rates["resid_pdrop"]),
        attention_dropout=float(rates["attn_pdrop"]),
        attention_bias=True,
        activation=ACTIVATIONS[activation],
        norm_eps=float(eps),
        tied_embeddings="all" if tied else "none",
        initializer="gpt2",
    )
    return checked(model, where)


def without_counterpart(values: Mapping[str, Any]) -> list[str]:
    """The fields of their config.json that have an unknown meaning, and so no effect here."""
    known = {*SIZES, "n_inner", *RATES, *FIXED, *_WITHOUT_EFFECT}
    known |= {"activation_function", "layer_norm_epsilon", "tie_word_embeddings"}
    return sorted(values.keys() - known)


def gpt2_config(model: ModelConfig) -> dict[str, Any]:
    """The fields of their config.json that describe our model."""
    theirs = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return {
        "model_type": "gpt2",
        "vocab_size": model.vocab_size,
        "n_positions": model.max_positions,
        "n_embd": model.d_model,
        "n_layer": model.decoder_layers,
        "n_head": model.heads,
        "n_inner": None if model.d_ff == 4 * model.d_model else model.d_ff,
        "activation_function": theirs[model.activation],
        "resid_pdrop": model.dropout,
        "embd_pdrop": model.dropout,
        "attn_pdrop": model.attention_dropout,
        "layer_norm_epsilon": model.norm_eps,
        "tie_word_embeddings": model.tied_embeddings != "none",
        **{name: value for name, value in FIXED.items() if isinstance(value, bool)},
        "dtype": "float32",
    }


def refuse_inexpressible(config: ModelConfig) -> None:
    """Raise `UserError` naming the first field that breaks a rule, or whose value GPT-2 can't express."""
    absent = ("encoder_attention.", "cross_attention.")  # a decoder alone has neither
    fields.refuse_inexpressible(config, "GPT-2", "hf-gpt2", _ANY_VALUE, _EXPRESSIBLE, ignored=absent)


# ---- Arrays ----------------------------------------------------------------------------------------------------------


def table(config: ModelConfig, prefix: str = PREFIX) -> list[Row]:
    """One row for each parameter of a GPT-2 of this shape. Without biases, our model lacks some of them."""
    rows = [row._replace(theirs=prefix + row.theirs) for row in OUTER]
    for i in range(config.decoder_layers):
        rows += [
            row._replace(ours=f"decoder/layers/{i}/{row.ours}", theirs=f"{prefix}h.{i}.{row.theirs}") for row in LAYER
        ]
    return rows + [HEAD] * (config.tied_embeddings == "none")


def to_gpt2(params: Params, config: ModelConfig, prefix: str = PREFIX) -> dict[str, np.ndarray]:
    """The state dict of a `GPT2LMHeadModel`, float32, as in a saved file: without the head if it is tied.

    Raises `UserError` naming the first field of `config` that GPT-2 can't express, or every parameter that is missing,
    unknown or of the wrong shape.
    """
    refuse_inexpressible(config)
    rows, sizes = table(config, prefix), _sizes(config)
    lacking = {row.ours for row in rows if _is_bias_without(config, row.ours)}
    ours = flat(params)
    expected = [(row.ours, our_shape(row, sizes)) for row in rows if row.ours not in lacking]
    refuse("our parameters", mismatches(ours, expected))
    parts = {
        row.theirs: np.zeros(their_shape(row, sizes), np.float32)
        if row.ours in lacking
        else to_theirs(ours[row.ours], row, sizes)
        for row in rows
    }
    joined: dict[str, list[np.ndarray]] = {}
    for name, part in parts.items():
        joined.setdefault(name.partition(":")[0], []).append(part)
    return {name: x[0] if len(x) == 1 else np.concatenate(x, axis=-1) for name, x in joined.items()}


def from_gpt2(state: Arrays, config: ModelConfig) -> dict[str, Any]:
    """Our nested parameters, float32, from the state dict of a `GPT2LMHeadModel` or a `GPT2Model`.

    `config` as `model_config` returns it, with all biases. Skips the masks of old versions, and the head if it is
    tied. Raises `UserError` with all that is wrong in `state`: arrays that are missing, unknown, of the wrong shape or
    type, or not finite, and a tied head that differs from the embedding table.
    """
    refuse_inexpressible(config)
    prefix = prefix_of(state)
    rows, sizes = table(config, prefix), _sizes(config)
    skipped = {f"{prefix}h.{i}.{name}" for i in range(config.decoder_layers) for name in BUFFERS}
    state = {name: array for name, array in state.items() if name not in skipped}
    wrong = []
    if config.tied_embeddings != "none" and HEAD.theirs in state:
        head, name = state.pop(HEAD.theirs), prefix + OUTER[0].theirs
        if not np.array_equal(head, state.get(name, head)):
            wrong.append(f"{HEAD.theirs} and {name} differ, but tie_word_embeddings says that they are equal")
    shapes = _shapes(rows, sizes)
    wrong += mismatches(state, shapes)
    wrong += unusable({name: state[name] for name, _ in shapes if name in state})
    refuse("the GPT-2 model", wrong)
    parts = {}
    for row in rows:
        name, _, part = row.theirs.partition(":")
        array = np.asarray(state[name], np.float32)
        if part:
            array = np.split(array, 3, axis=-1)[("query", "key", "value").index(part)]
        parts[row.ours] = to_ours(array, row, sizes)
    return nested(parts)


def prefix_of(state: Arrays) -> str:
    """The prefix of the names in a state dict: that of a `GPT2LMHeadModel`, or none, as of a `GPT2Model`."""
    return PREFIX if any(name.startswith(PREFIX) for name in state) else ""


def _sizes(config: ModelConfig) -> Sizes:
    c = config
    sizes = {"V": c.vocab_size, "D": c.d_model, "F": c.d_ff, "P": c.max_positions}
    return sizes | {"N": c.heads, "H": c.d_model // c.heads}


def _is_bias_without(config: ModelConfig, name: str) -> bool:
    """Whether the parameter is a bias that a model of this config lacks."""
    of_norm = name.endswith("norm/bias")
    return (of_norm and not config.norm_bias) or (name.endswith("_bias") and not config.attention_bias)


def _shapes(rows: Iterable[Row], sizes: Sizes) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of their arrays."""
    shapes = {}
    for row in rows:
        name, _, part = row.theirs.partition(":")
        *outer, last = their_shape(row, sizes)
        shapes[name] = (*outer, 3 * last if part else last)
    return list(shapes.items())
