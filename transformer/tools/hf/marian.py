"""Convert our translation model to Hugging Face's `MarianMTModel` and back, by a table of names.

Of Hugging Face's models only Marian has the structure of the paper's: post-norm, sinusoids, one tied table, scaled
embeddings. Two differences are handled here. Marian always has biases in attention and output; they are zero if our
model has none. Marian's sinusoids have all sines before all cosines, ours alternate; so each axis over d_model is
permuted.

One difference remains: Marian's norms add 1e-5 to the variance (in its code, not in its config); ours add `norm_eps`,
by default 1e-6. At the variances of a post-norm model (about 1 or more) logits differ by about 1e-5. For closer logits,
set `module.eps = 1e-6` on each `torch.nn.LayerNorm` after loading.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from transformer.config import BOS, EOS, PAD, Config, ModelConfig, UserError
from transformer.model import Params
from transformer.tools.hf import fields
from transformer.tools.hf.fields import checked, wrong_choice, wrong_counts, wrong_rates, wrong_values
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
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
ACTIVATIONS |= {"swish": "swish", "silu": "swish"}
SHARED = "model.shared.weight"
# Other names of the tied table. A model in memory has them; saved files don't.
TIED = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
# Marian computes these when it builds a model. They are never saved.
POSITIONS = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")
# Fields that may have any value. Every other field of the model must have its default, the paper's.
ANY_VALUE = (
    *("encoder_layers", "decoder_layers", "d_model", "d_ff", "heads", "vocab_size", "dropout", "max_positions"),
    *("initializer", "attention_kernel", "dtype", "attention_dropout", "attention_bias", "activation"),
    *("embedding_scale", "output_bias", "activation_dropout"),
)
EPS = 1e-5  # of Marian's norms
NEVER = -100.0
"""The output bias of a piece that is never generated. Its probability is zero in float32. A larger one would spoil the
loss with label smoothing, which counts the mean of the logits."""

_OF_SIDE = {"attention_heads": 16, "ffn_dim": 4_096}  # of encoder and decoder, which have the same here
# Fields of their config.json, with the values that a config without them has.
SIZES = {"encoder_layers": 12, "decoder_layers": 12, "d_model": 1_024, "vocab_size": 58_101}
SIZES |= {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in _OF_SIDE.items()}
RATES = {"dropout": 0.1, "attention_dropout": 0.0, "activation_dropout": 0.0}
SPECIAL_IDS = {"pad_token_id": 58_100, "eos_token_id": 0, "decoder_start_token_id": 58_100}
# Fields with the only value that our model can express. Transformers itself ignores some of the old ones.
FIXED = {
    "is_encoder_decoder": True,
    "share_encoder_decoder_embeddings": True,
    "tie_word_embeddings": True,
    "static_position_embeddings": True,
    "normalize_before": False,
    "normalize_embedding": False,
    "add_final_layer_norm": False,
    "is_decoder": False,
    "pruned_heads": {},
    "quantization_config": None,
}
_SPECIAL = {"pad": PAD, "eos": EOS, "start": BOS}
OURS = "transformer_model"
"""Field of their config.json in which an export keeps the fields of our model that Marian's config lacks."""
_KEPT = ("attention_bias", "output_bias", "norm_eps")
# Fields that have no effect here: on what the model computes, or if they have this value.
_WITHOUT_EFFECT = (
    *("architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "use_cache", "_name_or_path"),
    *("_num_labels", "id2label", "label2id", "num_labels", "classif_dropout", "classifier_dropout", "init_std"),
    *("add_bias_logits", "extra_pos_embeddings", "num_hidden_layers", "bos_token_id", "forced_eos_token_id"),
    *("gradient_checkpointing", "output_attentions", "output_hidden_states", "return_dict", "output_past"),
)
_IN_TRAINING = {"encoder_layerdrop": 0, "decoder_layerdrop": 0}


# ---- Config ----------------------------------------------------------------------------------------------------------


def model_config(values: Mapping[str, Any], where: object = "config.json") -> ModelConfig:
    """The config of our model from the content of their config.json, called `where` in messages.

    Its vocab_size is theirs. Raises `UserError` that lists the fields that our model can't express, or whose value is
    wrong.
    """
    require_type(values, "marian", where)
    sizes = {name: values.get(name, default) for name, default in SIZES.items()}
    rates = {name: values.get(name, default) for name, default in RATES.items()}
    wrong = wrong_counts(sizes | {"max_position_embeddings": values.get("max_position_embeddings", 1_024)})
    for name in _OF_SIDE:
        encoder, decoder = sizes[f"encoder_{name}"], sizes[f"decoder_{name}"]
        if encoder != decoder:
            wrong.append(f"encoder_{name} = {encoder!r}, decoder_{name} = {decoder!r}: our model has one for both")
    if (other := values.get("decoder_vocab_size")) not in (None, sizes["vocab_size"]):
        wrong.append(f"decoder_vocab_size = {other!r}: our model has one vocabulary, of {sizes['vocab_size']!r} pieces")
    activation, scaled = values.get("activation_function", "gelu"), values.get("scale_embedding", False)
    wrong += wrong_rates(rates) + wrong_choice("activation_function", activation, ACTIVATIONS)
    for name, default in SPECIAL_IDS.items():
        if type(i := values.get(name, default)) is not int:
            wrong.append(f"{name} = {i!r}: must be one id")
    if not isinstance(scaled, bool):
        wrong.append(f"scale_embedding = {scaled!r}: must be true or false")
    refuse(str(where), wrong + wrong_values(values, FIXED))
    model = ModelConfig(
        encoder_layers=sizes["encoder_layers"],
        decoder_layers=sizes["decoder_layers"],
        d_model=sizes["d_model"],
        d_ff=sizes["encoder_ffn_dim"],
        heads=sizes["encoder_attention_heads"],
        vocab_size=sizes["vocab_size"],
        dropout=float(rates["dropout"]),
        attention_dropout=float(rates["attention_dropout"]),
        activation_dropout=float(rates["activation_dropout"]),
        attention_bias=True,
        activation=ACTIVATIONS[activation],
        norm_eps=EPS,
        embedding_scale=scaled,
        output_bias=True,
    )
    return checked(model, where)


def without_counterpart(values: Mapping[str, Any]) -> list[str]:
    """The fields of their config.json that have an unknown meaning, and so no effect here."""
    known = {*SIZES, *RATES, *SPECIAL_IDS, *FIXED, *_WITHOUT_EFFECT, OURS}
    known |= {"activation_function", "scale_embedding", "decoder_vocab_size", "max_position_embeddings"}
    known |= {name for name, value in _IN_TRAINING.items() if values.get(name) == value}
    return sorted(values.keys() - known)


def special_ids(values: Mapping[str, Any]) -> dict[str, int]:
    """The ids of "pad", "eos" and "start", the piece that the decoder begins with."""
    pad, eos, start = (values.get(name, default) for name, default in SPECIAL_IDS.items())
    return {"pad": pad, "eos": eos, "start": start}


def refuse_more_pieces(model: ModelConfig, state: Arrays, where: object = "config.json") -> None:
    """Raise `UserError` if the config, called `where`, has more pieces than the tied table in `state` has rows."""
    for name in (SHARED, *TIED):
        if name in state and state[name].shape[:1] < (model.vocab_size,):
            rows = len(np.atleast_1d(state[name]))
            raise UserError(
                f"{where}: vocab_size = {model.vocab_size}, but {name} has {rows} rows; copy both files again"
            )


def with_options_of(
    model: ModelConfig, values: Mapping[str, Any], state: Arrays, where: object = "config.json"
) -> ModelConfig:
    """The config of a model whose folder an export of ours wrote: `model` with the options that it kept in the content
    of their config.json, called `where` in messages.

    It stays as it is if biases have been trained since, which the model of the export lacked.
    """
    kept = values.get(OURS)
    if not isinstance(kept, dict):
        return model
    ours = fields.checked(
        ModelConfig(**{**vars(model), **{name: kept.get(name) for name in _KEPT}}), f"{where}: {OURS}"
    )
    lacking = [name for name, _ in _zeros(table(ours), _sizes(ours, model.vocab_size))]
    return model if any(np.any(state.get(name, 0)) for name in lacking) else ours


def marian_config(config: Config, vocab_size: int, special: Mapping[str, int] = _SPECIAL) -> dict[str, Any]:
    """The config.json of a `MarianMTModel`. `special`: as in `special_ids`."""
    m = config.model
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("attention_heads", m.heads), ("ffn_dim", m.d_ff), ("layerdrop", 0.0))
    }
    theirs = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
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
        "activation_function": theirs[m.activation],
        "dropout": m.dropout,
        "attention_dropout": m.attention_dropout,
        "activation_dropout": m.activation_dropout,
        "scale_embedding": m.embedding_scale,
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
        "max_position_embeddings": max(longest(config), config.data.max_length),
        **ids_of(special),
        "forced_eos_token_id": None,  # the default is id 0
        "dtype": "float32",
        OURS: {name: getattr(m, name) for name in _KEPT},
    }


def ids_of(special: Mapping[str, int]) -> dict[str, int]:
    """The special ids, by the names of their fields in config.json."""
    names = {"pad": "pad_token_id", "start": "bos_token_id", "eos": "eos_token_id"}
    return {field: special[name] for name, field in names.items()} | {"decoder_start_token_id": special["start"]}


def longest(config: Config) -> int:
    """The most positions that decoding needs: of an output with the piece before it, or of a source with its end."""
    d = config.decode
    output = d.max_source_length + d.max_extra_length
    return max(output if d.max_length is None else min(output, d.max_length), d.max_source_length) + 1


# ---- Arrays ----------------------------------------------------------------------------------------------------------


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


def to_marian(
    params: Params, config: ModelConfig, vocab_size: int, ids: Sequence[int] | None = None
) -> dict[str, np.ndarray]:
    """The state dict of a `MarianMTModel`, float32, as in a saved file: the tied table once, no position tables.

    `vocab_size`: of their model. `ids`: their id of each of our pieces; None = the same. A BOS that has the id of
    another piece is left out. Raises `UserError` naming the first field of `config` that Marian can't express, or every
    parameter that is missing, unknown or of the wrong shape.
    """
    refuse_inexpressible(config)
    theirs = np.arange(vocab_size) if ids is None else np.asarray(ids)
    rows, sizes = table(config), _sizes(config, len(theirs))
    ours = flat(params)
    refuse("our parameters", mismatches(ours, [(row.ours, our_shape(row, sizes)) for row in rows]))
    kept = np.array([i for i, id in enumerate(theirs) if i != BOS or np.sum(theirs == id) == 1])

    def placed(array: np.ndarray, row: Row) -> np.ndarray:
        if "V" not in row.our_axes:
            return array
        new = np.zeros((vocab_size, *array.shape[1:]), array.dtype)  # V is the first axis of all our arrays
        new[theirs[kept]] = array[kept]
        return new

    order, sizes = _order(config.d_model), _sizes(config, vocab_size)
    state = {row.theirs: to_theirs(placed(ours[row.ours], row), row, sizes, order) for row in rows}
    return state | {name: np.zeros(shape, np.float32) for name, shape in _zeros(rows, sizes)}


def from_marian(
    state: Arrays, config: ModelConfig, vocab_size: int, ids: Sequence[int] | None = None
) -> dict[str, Any]:
    """Our nested parameters from the state dict of a `MarianMTModel`, saved or in memory: the inverse of `to_marian`.

    A BOS that has the id of another piece gets its embedding, and the output bias `NEVER`. Raises `UserError` naming
    the first field of `config` that Marian can't express, or all that is wrong in `state`: arrays that are missing,
    unknown, of the wrong shape or type or not finite, copies of the tied table that differ, non-zero biases that our
    model does not have, and position tables that are not the sinusoids.
    """
    refuse_inexpressible(config)
    rows, sizes = table(config), _sizes(config, vocab_size)
    state = {name: np.asarray(array) for name, array in state.items()}
    positions = {name: state.pop(name) for name in POSITIONS if name in state}
    tied = {name: state.pop(name) for name in (SHARED, *TIED) if name in state}
    state |= {SHARED: next(iter(tied.values()))} if tied else {}
    expected = [(row.theirs, their_shape(row, sizes)) for row in rows] + _zeros(rows, sizes)
    wrong = mismatches(state, expected) + unusable({name: state[name] for name, _ in expected if name in state})
    first = next(iter(tied), SHARED)
    wrong += [
        f"{name} and {first} are both our embedding/table, but differ"
        for name, array in tied.items()
        if not np.array_equal(array, tied[first])
    ]
    for name, array in positions.items():
        if not (array.shape[1:] == (config.d_model,) and _is_sinusoidal(array)):
            wrong.append(f"{name} is not the table of sinusoids")
    wrong += [
        f"{name} is not zero, and our model has no such bias"
        for name, _ in _zeros(rows, sizes)
        if np.any(state.get(name, 0))
    ]
    refuse("the Marian model", wrong)
    order = _order(config.d_model)
    params = {row.ours: to_ours(np.asarray(state[row.theirs], np.float32), row, sizes, order) for row in rows}
    if ids is not None:
        params |= {row.ours: params[row.ours][np.asarray(ids)] for row in rows if "V" in row.our_axes}
        if len(ids) > vocab_size:
            params[OUTPUT_BIAS.ours][BOS] = NEVER
    return nested(params)


def refuse_inexpressible(config: ModelConfig) -> None:
    """Raise `UserError` naming the first field that breaks a rule, or whose value Marian can't express."""
    fields.refuse_inexpressible(config, "Marian", "hf-marian", ANY_VALUE, {}, implied={"norm_eps": EPS})


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
    error = 1e-3 if table_PD.dtype == np.float16 else 1e-6
    return np.allclose(table_PD, np.concatenate([np.sin(angles), np.cos(angles)], axis=1), rtol=0, atol=error)
