"""Hugging Face's BERT: names, bits and refusals; outputs of all heads if torch and transformers are installed."""

import dataclasses
import json

import numpy as np
import pytest
from hf_cases import complaint, flat, random_params, same_bits

from transformer.config import BERT, AttentionConfig, ModelConfig
from transformer.model import build
from transformer.tools.hf.bert import (
    CLASSES,
    bert_config,
    from_bert,
    head_of,
    labels_of,
    model_config,
    prefix_of,
    table,
    to_bert,
)
from transformer.tools.hf.folder import read_arrays

CONFIG = dataclasses.replace(
    BERT, encoder_layers=2, d_model=12, d_ff=20, heads=3, max_positions=16, vocab_size=40, dropout=0.0
)
CONFIGS = {
    head: dataclasses.replace(CONFIG, head=head, labels=5 if head in ("sequence", "token") else None)
    for head in CLASSES
}
HEADS = pytest.mark.parametrize("head", CONFIGS)
TEXT = np.array([[2, 0, 39, 5, 9, 3, 0], [2, 7, 1, 17, 30, 20, 3]])
TYPES = np.array([[0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0, 0]])
MASK = np.array([[1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]], bool)


# ---- Names -----------------------------------------------------------------------------------------------------------


@HEADS
@pytest.mark.parametrize("prefix", ["", "bert."])
def test_there_and_back_is_the_same_bit_for_bit(head: str, prefix: str) -> None:
    config, params = CONFIGS[head], random_params(CONFIGS[head])
    rows = table(config, prefix)
    assert sorted(row.ours for row in rows) == sorted(flat(params))
    assert len({row.theirs for row in rows}) == len(rows)
    state = to_bert(params, config, prefix)
    assert prefix_of(state) == prefix
    converted = from_bert(state, config)
    same_bits(flat(converted.params), flat(params))
    assert not converted.drawn and not converted.left_out


def test_matrices_are_transposed_and_heads_side_by_side() -> None:
    params = random_params(CONFIG)
    state = to_bert(params, CONFIG)
    layer = params["encoder"]["layers"]["1"]
    query = state["bert.encoder.layer.1.attention.self.query.weight"]
    for n in range(3):  # rows 4 n to 4 n + 3 are head n
        np.testing.assert_array_equal(query[4 * n : 4 * n + 4], layer["self_attention"]["query"][:, n].T)
    output = state["bert.encoder.layer.1.attention.output.dense.weight"]
    np.testing.assert_array_equal(output.T, layer["self_attention"]["output"].reshape(12, 12))
    np.testing.assert_array_equal(
        state["bert.encoder.layer.1.intermediate.dense.weight"].T, layer["feed_forward"]["w1"]
    )
    np.testing.assert_array_equal(state["cls.seq_relationship.weight"].T, params["next_sentence_head"]["w"])
    assert "cls.predictions.decoder.weight" not in state


def test_old_names_buffers_and_copies_of_tied_arrays_are_read() -> None:
    params = random_params(CONFIG)
    state = to_bert(params, CONFIG)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array
        for name, array in state.items()
    }
    assert len(old.keys() - state.keys()) == 2 * (2 * 2 + 2)
    more = {
        "bert.embeddings.position_ids": np.arange(16)[None],
        "cls.predictions.decoder.weight": state["bert.embeddings.word_embeddings.weight"],
        "cls.predictions.decoder.bias": state["cls.predictions.bias"],
    }
    same_bits(flat(from_bert(old | more, CONFIG).params), flat(params))
    more["cls.predictions.decoder.weight"] = more["cls.predictions.decoder.weight"] + 1
    assert "cls.predictions.decoder.weight and bert.embeddings.word_embeddings.weight differ" in complaint(
        from_bert, state | more, CONFIG
    )
    twice = state | {"bert.embeddings.LayerNorm.gamma": np.ones(12, np.float32)}
    assert "bert.embeddings.LayerNorm.weight is there twice" in complaint(from_bert, twice, CONFIG)


def test_a_file_may_hold_the_copies_of_tied_arrays_alone() -> None:
    params = random_params(CONFIG)
    state = to_bert(params, CONFIG)
    state["cls.predictions.decoder.weight"] = state.pop("bert.embeddings.word_embeddings.weight")
    state["cls.predictions.decoder.bias"] = state.pop("cls.predictions.bias")
    same_bits(flat(from_bert(state, CONFIG).params), flat(params))


def test_labels_count_only_where_the_head_has_some() -> None:
    values = bert_config(CONFIG) | {"num_labels": 0, "id2label": None}
    assert model_config(values, "pretraining") == CONFIG
    assert "num_labels = 0: must be a whole number, at least 1" in complaint(model_config, values, "sequence")


def test_names_of_labels() -> None:
    model = dataclasses.replace(CONFIG, head="sequence", labels=2)
    assert labels_of({}, model).names == labels_of({"id2label": None}, model).names == ("LABEL_0", "LABEL_1")
    assert labels_of({"id2label": {"1": "a", "0": "b"}}, model).names == ("b", "a")
    for wrong in (["a", "b"], "ab", 5, {"0": "a"}, {"a": "b", "b": "c"}, {"0": None, "1": "b"}, {"0": "", "1": "b"}):
        assert "id2label: must map each output to a name" in complaint(labels_of, {"id2label": wrong}, model)


def test_missing_heads_are_drawn_anew_and_named() -> None:
    whole = random_params(CONFIG)
    state = {name: array for name, array in to_bert(whole, CONFIG).items() if "cls." not in name}
    converted = from_bert(state, CONFIG)
    assert all(name.startswith("cls.") for name in converted.drawn) and len(converted.drawn) == 7
    assert converted.drawn == [row.theirs for row in table(CONFIG)[-7:]]
    found, before = flat(converted.params), flat(whole)
    drawn = {row.ours for row in table(CONFIG)[-7:]}
    same_bits(*({name: x for name, x in params.items() if name not in drawn} for params in (found, before)))
    assert (found["masked_norm/scale"] == 1).all() and not found["output_bias"].any()
    assert 0.01 < found["masked_head/w"].std() < 0.025  # truncated normal, 0.02
    # A part of a head is a damaged file.
    state["cls.predictions.bias"] = np.zeros(40, np.float32)
    assert "missing cls.predictions.transform.dense.weight; " in complaint(from_bert, state, CONFIG)


def test_a_pooler_that_the_head_lacks_is_left_out_and_other_heads_are_refused() -> None:
    state = to_bert(random_params(CONFIG), CONFIG)
    of_masked = {name: array for name, array in state.items() if "seq_relationship" not in name}
    converted = from_bert(of_masked, CONFIGS["masked"])
    assert converted.left_out == ["bert.pooler.dense.weight", "bert.pooler.dense.bias"] and not converted.drawn
    told = complaint(from_bert, state, CONFIGS["sequence"])
    assert "unknown cls.predictions.bias" in told and "unknown cls.seq_relationship.weight" in told


def test_the_arrays_decide_on_the_head() -> None:
    for head, config in CONFIGS.items():
        state = to_bert(random_params(config), config, "" if head == "none" else "bert.")
        assert head_of(bert_config(config), state) == head
        if head in ("none", "masked", "pretraining"):
            assert head_of({}, state) == head
        else:
            told = complaint(head_of, {"architectures": ["BertModel"]}, state, "x/config.json")
            assert told.startswith("x/config.json: architectures = ['BertModel']: must name BertForSequence")
    # The weights of the original BERT have both heads, and the class with one of them in config.json.
    both = to_bert(random_params(CONFIG), CONFIG)
    assert head_of({"architectures": ["BertForMaskedLM"]}, both) == "pretraining"
    assert head_of({"architectures": ["BertForTokenClassification"]}, {"bert.pooler.dense.bias": 0}) == "token"


def test_16_bits_become_32() -> None:
    state = {name: array.astype(np.float16) for name, array in to_bert(random_params(CONFIG), CONFIG).items()}
    back = to_bert(from_bert(state, CONFIG).params, CONFIG)
    same_bits(back, {name: array.astype(np.float32) for name, array in state.items()})


def test_what_does_not_fit_is_told_at_once() -> None:
    params = random_params(CONFIG)
    params["surplus"] = np.zeros(3)
    params["embedding"]["table"] = np.zeros((5, 12))
    del params["encoder"]["layers"]["1"]["feed_forward"]["b1"]
    assert complaint(to_bert, params, CONFIG) == (
        "our parameters: missing encoder/layers/1/feed_forward/b1; unknown surplus; "
        "embedding/table has shape (5, 12), not (40, 12)"
    )
    state = to_bert(random_params(CONFIG), CONFIG)
    state["bert.encoder.layer.2.output.dense.bias"] = state.pop("bert.encoder.layer.0.output.dense.bias")
    state["qa_outputs.weight"] = np.zeros((2, 12), np.float32)
    state["bert.encoder.layer.0.intermediate.dense.weight"] = state["bert.encoder.layer.0.intermediate.dense.weight"].T
    state["bert.pooler.dense.bias"] = state["bert.pooler.dense.bias"].astype(np.int8)
    state["bert.embeddings.position_embeddings.weight"][3, 2] = np.nan
    assert complaint(from_bert, state, CONFIG).split("; ") == [
        "the BERT model: missing bert.encoder.layer.0.output.dense.bias",
        "unknown bert.encoder.layer.2.output.dense.bias",
        "unknown qa_outputs.weight",
        "bert.encoder.layer.0.intermediate.dense.weight has shape (12, 20), not (20, 12)",
        "bert.embeddings.position_embeddings.weight holds numbers that are not finite",
        "bert.pooler.dense.bias is of type int8, not float32",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"pre_norm": True},
        {"positions": "rotary"},
        {"embedding_scale": True},
        {"attention_bias": False},
        {"norm_bias": False},
        {"input_norm": False},
        {"output_bias": False},
        {"tied_embeddings": "none"},
        {"token_types": 0},
        {"kv_heads": 1},
        {"kv_sharing": 2},
        {"encoder_attention": AttentionConfig(window=3)},
        {"d_k": 8},
        {"d_v": 2},
    ],
)
def test_what_bert_cannot_express_is_refused(change: dict) -> None:
    config = dataclasses.replace(CONFIG, **change)
    for call in (to_bert, from_bert):
        told = complaint(call, {}, config)
        assert told.startswith(f"model.{next(iter(change))}") and "BERT can't express it" in told


def test_a_default_spelt_out_is_no_other_model() -> None:
    spelt = dataclasses.replace(CONFIG, kv_heads=3, d_k=4, d_v=4, decoder_attention=AttentionConfig(1, 1, 4))
    more = dataclasses.replace(
        spelt, dtype="bfloat16", position_offset=3, initializer="scaled", tied_embeddings="target"
    )
    same_bits(to_bert(random_params(CONFIG), more), to_bert(random_params(CONFIG), CONFIG))
    labels = dataclasses.replace(CONFIGS["token"], tied_embeddings="none", output_bias=False)
    same_bits(
        to_bert(random_params(CONFIGS["token"]), labels), to_bert(random_params(CONFIGS["token"]), CONFIGS["token"])
    )


# ---- Their config ----------------------------------------------------------------------------------------------------


@HEADS
def test_the_config_comes_back(head: str) -> None:
    config = CONFIGS[head]
    assert model_config(json.loads(json.dumps(bert_config(config))), head) == config
    assert model_config({"model_type": "bert"}, "pretraining") == dataclasses.replace(BERT, vocab_size=30_522)


def test_fields_that_cannot_be_expressed_are_all_named() -> None:
    fields = {
        "is_decoder": True,
        "position_embedding_type": "relative_key",
        "quantization_config": {"bits": 4},
        "classifier_dropout": 0.2,
        "hidden_act": ["relu"],
        "num_hidden_layers": 2.5,
        "hidden_size": "x",
        "layer_norm_eps": True,
        "attention_probs_dropout_prob": 2,
    }
    told = complaint(model_config, {"model_type": "bert", **fields}, "none", "x/config.json")
    assert told.startswith("x/config.json: ") and all(f"{name} = {value!r}" in told for name, value in fields.items())
    assert complaint(model_config, {"model_type": "roberta"}, "none") == (
        "config.json: model_type = 'roberta': must be 'bert' for hf-bert"
    )
    assert "model.heads = 5: must divide" in complaint(
        model_config, {"model_type": "bert", "num_attention_heads": 5}, "none"
    )
    untied = {"model_type": "bert", "tie_word_embeddings": False}
    assert "tie_word_embeddings: our model can't express it" in complaint(model_config, untied, "masked")
    assert model_config(untied, "none").head == "none"


# ---- Outputs ---------------------------------------------------------------------------------------------------------

SHAPES = {
    "one layer": {"encoder_layers": 1, "d_model": 8, "d_ff": 32, "heads": 1},
    "wide heads, relu": {"d_model": 24, "d_ff": 24, "heads": 2, "activation": "relu", "norm_eps": 1e-5},
    "deep": {"encoder_layers": 6, "d_model": 48, "d_ff": 192, "heads": 6, "vocab_size": 1_000, "max_positions": 64},
    "tanh-gelu, three types": {"activation": "gelu_tanh", "token_types": 3},
}


@pytest.fixture
def theirs():
    """The module `transformers`; skips the test without it."""
    pytest.importorskip("torch", reason="the comparison with Hugging Face's BERT needs torch")
    return pytest.importorskip("transformers", reason="the comparison with Hugging Face's BERT needs transformers")


def their_outputs(model, text: np.ndarray, types: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """The outputs of their model in the order of ours."""
    import torch

    arrays = {"input_ids": text, "token_type_ids": types, "attention_mask": mask.astype(int)}
    with torch.inference_mode():
        found = model.eval()(**{name: torch.from_numpy(x) for name, x in arrays.items()})
    names = ("last_hidden_state", "pooler_output", "logits", "prediction_logits", "seq_relationship_logits")
    return [found[name].numpy() for name in names if name in found]


def our_outputs(config: ModelConfig, params: dict) -> list[np.ndarray]:
    found = build(config).apply(params, TEXT, types_BT=TYPES, mask_BT=MASK)
    return [np.asarray(x) for x in (found if isinstance(found, tuple) else (found,))]


def assert_same(ours: list[np.ndarray], theirs: list[np.ndarray], head: str) -> None:
    """Equal within 1e-5 where the mask is True."""
    assert len(ours) == len(theirs) > 0
    for x, y in zip(ours, theirs, strict=True):
        seen = MASK if x.ndim == 3 else slice(None)
        np.testing.assert_allclose(x[seen], y[seen], atol=1e-5, rtol=0, err_msg=head)
        assert np.abs(y).max() > 0.1


def prefix(head: str) -> str:
    """The prefix of the names of their class."""
    return "" if head == "none" else "bert."


@HEADS
@pytest.mark.parametrize("shape", SHAPES)
def test_their_outputs_are_ours(theirs, head: str, shape: str) -> None:
    """Their model with our arrays: none is missing or left over, and the outputs are equal."""
    import torch

    config = dataclasses.replace(CONFIGS[head], **SHAPES[shape])
    params = random_params(config)
    model = getattr(theirs, CLASSES[head])(theirs.BertConfig(**bert_config(config)))
    state = {name: torch.from_numpy(x) for name, x in to_bert(params, config, prefix(head)).items()}
    missing, unknown = model.load_state_dict(state, strict=False)
    assert not unknown and all("cls.predictions.decoder" in name for name in missing)
    model.tie_weights()
    assert_same(our_outputs(config, params), their_outputs(model, TEXT, TYPES, MASK), head)


@HEADS
@pytest.mark.parametrize("shape", ["one layer", "deep"])
def test_our_outputs_are_theirs_and_their_bits_come_back(theirs, head: str, shape: str, tmp_path) -> None:
    import torch

    fields = bert_config(dataclasses.replace(CONFIGS[head], **SHAPES[shape]))
    torch.manual_seed(0)
    model = getattr(theirs, CLASSES[head])(theirs.BertConfig(**fields))
    with torch.no_grad():
        for name, x in model.named_parameters():
            x.copy_(torch.randn_like(x) * 0.1 + ("LayerNorm.weight" in name))
    model.save_pretrained(tmp_path)
    state = read_arrays(tmp_path / "model.safetensors")
    values = json.loads((tmp_path / "config.json").read_text())
    assert head_of(values, state) == head
    config = model_config(values, head)
    params = from_bert(state, config).params
    assert_same(our_outputs(config, params), their_outputs(model, TEXT, TYPES, MASK), head)
    same_bits(to_bert(params, config, prefix_of(state)), state)
    assert bert_config(config).items() <= values.items()
