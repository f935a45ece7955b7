"""Convert Hugging Face's BERT, with five kinds of heads, to our encoder alone and back, by a table of names.

Both have the same structure, so the arrays are the same numbers. Their matrices have the shape (out, in), ours (in,
out).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from transformer.config import LABEL_HEADS, MASKED_HEADS, POOLED_HEADS, ModelConfig, UserError
from transformer.data.labels import Labels, marks_spans
from transformer.model import Params, build
from transformer.tools.hf import fields
from transformer.tools.hf.fields import checked, wrong_choice, wrong_counts, wrong_epsilon, wrong_rates, wrong_values
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

# The parameters of one layer.
LAYER = (
    Row("self_attention/query", "attention.self.query.weight", "DNH", "NHD"),
    Row("self_attention/query_bias", "attention.self.query.bias", "NH", "NH"),
    Row("self_attention/key", "attention.self.key.weight", "DNH", "NHD"),
    Row("self_attention/key_bias", "attention.self.key.bias", "NH", "NH"),
    Row("self_attention/value", "attention.self.value.weight", "DNH", "NHD"),
    Row("self_attention/value_bias", "attention.self.value.bias", "NH", "NH"),
    Row("self_attention/output", "attention.output.dense.weight", "NHD", "DNH"),
    Row("self_attention/output_bias", "attention.output.dense.bias", "D", "D"),
    Row("self_attention_norm/scale", "attention.output.LayerNorm.weight", "D", "D"),
    Row("self_attention_norm/bias", "attention.output.LayerNorm.bias", "D", "D"),
    Row("feed_forward/w1", "intermediate.dense.weight", "DF", "FD"),
    Row("feed_forward/b1", "intermediate.dense.bias", "F", "F"),
    Row("feed_forward/w2", "output.dense.weight", "FD", "DF"),
    Row("feed_forward/b2", "output.dense.bias", "D", "D"),
    Row("feed_forward_norm/scale", "output.LayerNorm.weight", "D", "D"),
    Row("feed_forward_norm/bias", "output.LayerNorm.bias", "D", "D"),
)
EMBEDDINGS = (
    Row("embedding/table", "embeddings.word_embeddings.weight", "VD", "VD"),
    Row("positions", "embeddings.position_embeddings.weight", "PD", "PD"),
    Row("token_types", "embeddings.token_type_embeddings.weight", "RD", "RD"),
    Row("input_norm/scale", "embeddings.LayerNorm.weight", "D", "D"),
    Row("input_norm/bias", "embeddings.LayerNorm.bias", "D", "D"),
)
POOLER = (Row("pooler/w", "pooler.dense.weight", "DE", "ED"), Row("pooler/bias", "pooler.dense.bias", "E", "E"))
MASKED = (
    Row("masked_head/w", "cls.predictions.transform.dense.weight", "DE", "ED"),
    Row("masked_head/bias", "cls.predictions.transform.dense.bias", "E", "E"),
    Row("masked_norm/scale", "cls.predictions.transform.LayerNorm.weight", "D", "D"),
    Row("masked_norm/bias", "cls.predictions.transform.LayerNorm.bias", "D", "D"),
    Row("output_bias", "cls.predictions.bias", "V", "V"),
)
NEXT_SENTENCE = (
    Row("next_sentence_head/w", "cls.seq_relationship.weight", "DS", "SD"),
    Row("next_sentence_head/bias", "cls.seq_relationship.bias", "S", "S"),
)
LABELS = (
    Row("label_head/w", "classifier.weight", "DL", "LD"),
    Row("label_head/bias", "classifier.bias", "L", "L"),
)
PREFIX = "bert."  # of all names but the heads', unless a `BertModel` was saved
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")  # which old versions saved
# Other names of tied arrays, which a saved file may hold.
TIED = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}

CLASSES = {
    "none": "BertModel",
    "pretraining": "BertForPreTraining",
    "masked": "BertForMaskedLM",
    "sequence": "BertForSequenceClassification",
    "token": "BertForTokenClassification",
}
"""Their class for each head of ours."""
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
ACTIVATIONS |= {"silu": "swish", "swish": "swish"}
SIZES = {
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3_072,
    "vocab_size": 30_522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}
"""The sizes in their config, and the values that a config without them has."""
RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob")
# Fields with the only value that our model can express.
FIXED = {
    "is_decoder": False,
    "add_cross_attention": False,
    "position_embedding_type": "absolute",
    "pruned_heads": {},
    "quantization_config": None,
}
KEPT = ("id2label", "label2id", "problem_type", "pad_token_id", "finetuning_task")
"""Fields that an export writes as an import read them."""
# Fields that do not change what the model computes.
_WITHOUT_EFFECT = (
    *("architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "use_cache", "initializer_range"),
    *("gradient_checkpointing", "bos_token_id", "eos_token_id", "chunk_size_feed_forward", "_name_or_path"),
)

# Fields of our model that may have any value. Every other one must have the value in `_EXPRESSIBLE`, or its default.
_ANY_VALUE = (
    *("encoder_layers", "d_model", "d_ff", "heads", "vocab_size", "activation", "dropout", "attention_dropout"),
    *("activation_dropout", "norm_eps", "max_positions", "position_offset", "token_types", "head", "labels"),
    *("initializer", "attention_kernel", "dtype"),
)
_EXPRESSIBLE = {
    "decoder_layers": 0,
    "attention_bias": True,
    "embedding_scale": False,
    "positions": "learned",
    "input_norm": True,
    "output_bias": True,
}


# ---- Config ----------------------------------------------------------------------------------------------------------


def head_of(values: Mapping[str, Any], names: Arrays, where: object = "config.json") -> str:
    """The head of our model for a file with arrays of these names: what the arrays are part of, else what
    `architectures` names, else none. Raises `UserError` if neither says whether a classifier sees texts or pieces."""
    listed = values.get("architectures")
    named = next((head for head, name in CLASSES.items() if isinstance(listed, list) and name in listed), "none")

    def holds(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in names)

    if holds("cls.seq_relationship."):
        return "pretraining"
    if holds("cls.predictions."):
        return "pretraining" if named == "pretraining" else "masked"
    if holds("classifier.") and named not in LABEL_HEADS:
        wanted = " or ".join(CLASSES[head] for head in LABEL_HEADS)
        raise UserError(f"{where}: architectures = {listed!r}: must name {wanted} for a file with a classifier")
    return named


def model_config(values: Mapping[str, Any], head: str, where: object = "config.json") -> ModelConfig:
    """The config of our model with this head from the content of their config.json, called `where` in messages.

    Raises `UserError` that lists the fields that our model can't express, or whose value is wrong.
    """
    require_type(values, "bert", where)
    sizes = {name: values.get(name, default) for name, default in SIZES.items()}
    rates = {name: values.get(name, 0.1) for name in RATES}
    wrong = wrong_counts(sizes) + wrong_rates(rates)
    if (of_labels := values.get("classifier_dropout")) not in (None, rates["hidden_dropout_prob"]):
        wrong.append(
            f"classifier_dropout = {of_labels!r}, hidden_dropout_prob = {rates['hidden_dropout_prob']!r}: our model "
            "has one rate for both; make them equal"
        )
    activation, eps = values.get("hidden_act", "gelu"), values.get("layer_norm_eps", 1e-12)
    wrong += wrong_choice("hidden_act", activation, ACTIVATIONS) + wrong_epsilon("layer_norm_eps", eps)
    if head in MASKED_HEADS and values.get("tie_word_embeddings", True) is not True:
        wrong.append("tie_word_embeddings: our model can't express it; it must be true")
    labels = None
    if head in LABEL_HEADS:
        names = values.get("id2label")
        labels = len(names) if isinstance(names, Mapping) else values.get("num_labels", 2)
        wrong += wrong_counts({"num_labels": labels})
    refuse(str(where), wrong + wrong_values(values, FIXED))
    model = ModelConfig(
        **_EXPRESSIBLE,
        encoder_layers=sizes["num_hidden_layers"],
        d_model=sizes["hidden_size"],
        d_ff=sizes["intermediate_size"],
        heads=sizes["num_attention_heads"],
        vocab_size=sizes["vocab_size"],
        max_positions=sizes["max_position_embeddings"],
        token_types=sizes["type_vocab_size"],
        dropout=float(rates["hidden_dropout_prob"]),
        attention_dropout=float(rates["attention_probs_dropout_prob"]),
        activation=ACTIVATIONS[activation],
        norm_eps=float(eps),
        head=head,
        labels=labels,
        initializer="bert",
    )
    return checked(model, where)


def without_counterpart(values: Mapping[str, Any]) -> list[str]:
    """The fields of their config.json that have an unknown meaning, and so no effect here."""
    known = {*SIZES, *RATES, *FIXED, *KEPT, *_WITHOUT_EFFECT, "classifier_dropout", "hidden_act", "layer_norm_eps"}
    return sorted(values.keys() - known - {"num_labels", "tie_word_embeddings"})


def bert_config(model: ModelConfig) -> dict[str, Any]:
    """The fields of their config.json that describe our model."""
    theirs = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    labels = {str(i): f"LABEL_{i}" for i in range(model.labels or 0)}
    return {
        "architectures": [CLASSES[model.head]],
        "model_type": "bert",
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "num_hidden_layers": model.encoder_layers,
        "num_attention_heads": model.heads,
        "intermediate_size": model.d_ff,
        "hidden_act": theirs[model.activation],
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
        "classifier_dropout": None,
        "max_position_embeddings": model.max_positions,
        "type_vocab_size": model.token_types,
        "layer_norm_eps": model.norm_eps,
        **{name: value for name, value in FIXED.items() if isinstance(value, bool)},
        "tie_word_embeddings": True,
        "dtype": "float32",
        **({"id2label": labels, "label2id": {name: int(i) for i, name in labels.items()}} if labels else {}),
    }


def labels_of(values: Mapping[str, Any], model: ModelConfig, where: object = "config.json") -> Labels | None:
    """What the outputs of a head for labels mean, by their config.json; None of another head.

    A single output is a number. Raises `UserError` if a text may have several labels (ours have one), and if id2label
    does not name each output.
    """
    if model.head not in LABEL_HEADS:
        return None
    if values.get("problem_type") == "multi_label_classification":
        raise UserError(f"{where}: problem_type = 'multi_label_classification': our heads give each text one label")
    given = values.get("id2label") or {str(i): f"LABEL_{i}" for i in range(model.labels)}
    names = [given.get(str(i)) for i in range(model.labels)] if isinstance(given, Mapping) else [None]
    if not all(isinstance(name, str) and name and "\t" not in name for name in names):
        raise UserError(f'{where}: id2label: must map each output to a name without tabs, as {{"0": "a", "1": "b"}}')
    if len(set(names)) < len(names):
        raise UserError(f"{where}: id2label: two labels have the same name; give each another one")
    if model.head == "token":
        spans = marks_spans(names)
        return Labels("tags", "f1" if spans else "accuracy", tuple(names), "O" if "O" in names else names[0])
    if values.get("problem_type") == "regression" and len(names) > 1:
        raise UserError(f"{where}: problem_type = 'regression' with {len(names)} outputs: our head gives one number")
    if len(names) == 1:
        return Labels("regression", "pearson", pairs=None)
    return Labels("classes", "accuracy", tuple(names), names[0], pairs=None)


def fields_of(labels: Labels) -> dict[str, Any]:
    """The fields of their config.json that describe labels."""
    if labels.kind == "regression":
        return {"problem_type": "regression"}
    names = {
        "id2label": {str(i): name for i, name in enumerate(labels.names)},
        "label2id": {name: i for i, name in enumerate(labels.names)},
    }
    return names | ({"problem_type": "single_label_classification"} if labels.kind == "classes" else {})


def with_scale(params: Params, labels: Labels) -> Params:
    """The parameters with a head whose output is the number itself: theirs has no scale."""
    head = params.get("label_head")
    if head is None or (labels.mean, labels.scale) == (0.0, 1.0):
        return params
    return {**params, "label_head": {"w": head["w"] * labels.scale, "bias": head["bias"] * labels.scale + labels.mean}}


def refuse_inexpressible(config: ModelConfig) -> None:
    """Raise `UserError` naming the first field that breaks a rule, or whose value BERT can't express."""
    absent = ["decoder_attention.", "cross_attention."]  # an encoder alone has neither
    if config.head not in MASKED_HEADS:  # so it has no output
        absent += ["tied_embeddings", "output_bias"]
    if config.tied_embeddings == "target":  # the same as "all" without a decoder
        absent.append("tied_embeddings")
    fields.refuse_inexpressible(config, "BERT", "hf-bert", _ANY_VALUE, _EXPRESSIBLE, ignored=tuple(absent))
    if not config.token_types:
        raise UserError("model.token_types = 0: BERT can't express it; hf-bert needs a model with at least 1")


# ---- Arrays ----------------------------------------------------------------------------------------------------------


class Converted(NamedTuple):
    """A model of theirs as ours."""

    params: dict[str, Any]
    """Our nested parameters, float32."""
    drawn: list[str]
    """Names of their arrays of heads that the file lacks: our initial values, from a fixed seed."""
    left_out: list[str]
    """Names of their arrays that belong to a pooler that this head does not have."""


def parts(config: ModelConfig, prefix: str) -> list[list[Row]]:
    """The rows of the pooler and of each head of a model, which a file has or lacks as a whole."""
    pooler = [row._replace(theirs=prefix + row.theirs) for row in POOLER]
    return [
        *([pooler] if config.head in POOLED_HEADS else []),
        *([[*MASKED]] if config.head in MASKED_HEADS else []),
        *([[*NEXT_SENTENCE]] if config.head == "pretraining" else []),
        *([[*LABELS]] if config.head in LABEL_HEADS else []),
    ]


def table(config: ModelConfig, prefix: str = PREFIX) -> list[Row]:
    """One row for each parameter of a BERT of this shape."""
    rows = [row._replace(theirs=prefix + row.theirs) for row in EMBEDDINGS]
    for i in range(config.encoder_layers):
        of_layer = f"{prefix}encoder.layer.{i}."
        rows += [row._replace(ours=f"encoder/layers/{i}/{row.ours}", theirs=of_layer + row.theirs) for row in LAYER]
    return rows + [row for part in parts(config, prefix) for row in part]


def to_bert(params: Params, config: ModelConfig, prefix: str = PREFIX) -> dict[str, np.ndarray]:
    """The state dict of their class for this head (see `CLASSES`), float32, as in a saved file.

    Raises `UserError` naming the first field of `config` that BERT can't express, or every parameter that is missing,
    unknown or of the wrong shape.
    """
    refuse_inexpressible(config)
    rows, sizes, ours = table(config, prefix), _sizes(config), flat(params)
    refuse("our parameters", mismatches(ours, [(row.ours, our_shape(row, sizes)) for row in rows]))
    return {row.theirs: to_theirs(ours[row.ours], row, sizes) for row in rows}


def from_bert(state: Arrays, config: ModelConfig) -> Converted:
    """Our parameters from the state dict of any of their classes in `CLASSES`.

    `config` as `model_config` returns it. Skips buffers, and reads gamma and beta of old versions. Of tied arrays the
    file may hold either one, or both. A head or a pooler that the file lacks as a whole gets our initial values. Raises
    `UserError` with all that is wrong in `state`: arrays that are missing, unknown, of the wrong shape or type, or not
    finite, and copies that differ from the array that they are tied to.
    """
    refuse_inexpressible(config)
    prefix, sizes = prefix_of(state), _sizes(config)
    rows = table(config, prefix)
    state = {name: array for name, array in state.items() if name.removeprefix(prefix) not in BUFFERS}
    twice = [modern(name) for name in state if name != modern(name) and modern(name) in state]
    state = {modern(name): array for name, array in state.items()}
    copies = {name: state.pop(name) for name in TIED if config.head in MASKED_HEADS and name in state}
    wrong = [f"{name} is there twice, once by its old name" for name in twice]
    for name, copy in copies.items():
        original = TIED[name] if TIED[name].startswith("cls.") else prefix + TIED[name]
        if not np.array_equal(copy, state.setdefault(original, copy)):
            wrong.append(f"{name} and {original} differ, but tie_word_embeddings says that they are equal")
    left_out = [prefix + row.theirs for row in POOLER if prefix + row.theirs in state]
    if config.head in POOLED_HEADS:
        left_out = []
    state = {name: array for name, array in state.items() if name not in left_out}
    drawn = [row for part in parts(config, prefix) for row in part if not any(one.theirs in state for one in part)]
    kept = [row for row in rows if row not in drawn]
    wrong += mismatches(state, [(row.theirs, their_shape(row, sizes)) for row in kept])
    wrong += unusable({row.theirs: state[row.theirs] for row in kept if row.theirs in state})
    refuse("the BERT model", wrong)
    params = {row.ours: to_ours(np.asarray(state[row.theirs], np.float32), row, sizes) for row in kept}
    params |= initial(config, [row.ours for row in drawn])
    return Converted(nested(params), [row.theirs for row in drawn], left_out)


def initial(config: ModelConfig, names: list[str]) -> dict[str, np.ndarray]:
    """The initial values of these parameters. XLA leaves out the others, so a large model costs nothing."""

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        leaves = jax.tree_util.tree_leaves_with_path(build(config).init(key))
        return {name: x for keys, x in leaves if (name := "/".join(key.key for key in keys)) in names}

    return {name: np.asarray(x) for name, x in jax.jit(draw)(jax.random.key(0)).items()} if names else {}


def prefix_of(state: Arrays) -> str:
    """The prefix of the names in a state dict: that of a class with a head, or none, as of a `BertModel`."""
    return PREFIX if any(name.startswith(PREFIX) for name in state) else ""


def modern(name: str) -> str:
    """The name of an array today: old versions called the parameters of norms gamma and beta."""
    for old, new in OLD_NAMES.items():
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return name


def _sizes(config: ModelConfig) -> Sizes:
    c = config
    sizes = {"V": c.vocab_size, "D": c.d_model, "E": c.d_model, "F": c.d_ff, "P": c.max_positions, "R": c.token_types}
    return sizes | {"N": c.heads, "H": c.d_model // c.heads, "S": 2, "L": c.labels or 0}
