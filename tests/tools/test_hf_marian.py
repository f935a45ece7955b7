"""Hugging Face's Marian: names in both directions; outputs and gradients if torch and transformers are installed."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece

from transformer.checkpoint import Checkpoints
from transformer.config import AttentionConfig, Config, DecodeConfig, ModelConfig, UserError
from transformer.data.tokenizer import Tokenizer
from transformer.inference.translator import Translator
from transformer.model import build
from transformer.tasks.loading import load
from transformer.tools.hf.marian import (
    SHARED,
    TIED,
    from_marian,
    marian_config,
    table,
    to_marian,
)
from transformer.tools.hf.marian_folder import export

VOCABULARY = 13
CONFIG = ModelConfig(encoder_layers=2, decoder_layers=3, d_model=16, d_ff=24, heads=4, dropout=0.0)
# All options that Marian supports.
OPTIONS = dataclasses.replace(
    CONFIG, attention_bias=True, output_bias=True, activation="swish", embedding_scale=False, norm_eps=1e-5
)
SOURCE = np.array([[5, 7, 11, 4, 9, 2], [8, 3, 2, 0, 0, 0], [6, 12, 10, 5, 2, 0]])
TARGET = np.array([[1, 9, 4, 7, 12], [1, 6, 0, 0, 0], [1, 3, 8, 5, 0]])


def random_params(config):
    """Every parameter random: zeros and ones would hide mistakes."""
    rng = np.random.default_rng(0)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.asarray(rng.normal(size=x.shape) * 0.3 + (path[-1].key == "scale"), x.dtype),
        build(config.with_vocabulary(VOCABULARY)).abstract_params,
    )


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


BOTH = pytest.mark.parametrize("config", [CONFIG, OPTIONS], ids=["the paper's", "options"])


def complaint(call, *arguments) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def flat(tree):
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


# ---- Names ----------------------------------------------------------------------------------------------------------


@BOTH
def test_there_and_back_is_the_same_bit_for_bit(config) -> None:
    params = random_params(config)
    back = flat(from_marian(to_marian(params, config, VOCABULARY), config, VOCABULARY))
    ours = flat(params)
    assert list(back) == list(ours)
    for name in ours:
        assert np.array_equal(back[name], ours[name]), name


@BOTH
def test_the_table_has_each_parameter_once_on_both_sides(config) -> None:
    rows = table(config)
    leaves = jax.tree_util.tree_leaves_with_path(build(config.with_vocabulary(VOCABULARY)).abstract_params)
    assert sorted(row.ours for row in rows) == sorted("/".join(k.key for k in path) for path, _ in leaves)
    assert len({row.theirs for row in rows}) == len(rows)


def test_our_parameters_must_fit() -> None:
    params = jax.tree.map(lambda x: np.zeros(x.shape), build(CONFIG.with_vocabulary(VOCABULARY)).abstract_params)
    params["surplus"] = np.zeros(3)
    params["embedding"]["table"] = np.zeros((5, 16))
    del params["decoder"]["layers"]["2"]["feed_forward"]["b1"]
    assert complaint(to_marian, params, CONFIG, VOCABULARY) == (
        "our parameters: missing decoder/layers/2/feed_forward/b1; unknown surplus; "
        "embedding/table has shape (5, 16), not (13, 16)"
    )


def test_their_parameters_must_fit_and_all_that_is_wrong_is_told_at_once(params) -> None:
    state = to_marian(params, CONFIG, VOCABULARY)
    state["model.decoder.layers.3.fc1.weight"] = state.pop("model.decoder.layers.0.fc1.weight")
    state["model.encoder.layers.0.fc2.weight"] = state["model.encoder.layers.0.fc2.weight"].T
    state["model.encoder.layers.1.self_attn.v_proj.bias"][3] = 1e-9
    state["final_logits_bias"][0, 5] = -1
    state["lm_head.weight"] = state[SHARED] + 1
    state["model.encoder.embed_positions.weight"] = np.zeros((8, 16), np.float32)
    assert complaint(from_marian, state, CONFIG, VOCABULARY).split("; ") == [
        "the Marian model: missing model.decoder.layers.0.fc1.weight",
        "unknown model.decoder.layers.3.fc1.weight",
        "model.encoder.layers.0.fc2.weight has shape (24, 16), not (16, 24)",
        "lm_head.weight and model.shared.weight are both our embedding/table, but differ",
        "model.encoder.embed_positions.weight is not the table of sinusoids",
        "model.encoder.layers.1.self_attn.v_proj.bias is not zero, and our model has no such bias",
        "final_logits_bias is not zero, and our model has no such bias",
    ]


def test_a_name_matched_twice_is_told(params, monkeypatch) -> None:
    rows = table(CONFIG)
    monkeypatch.setattr("transformer.tools.hf.marian.table", lambda _: [*rows, rows[3]._replace(theirs="x")])
    assert f"{rows[3].ours} is matched 2 times" in complaint(to_marian, params, CONFIG, VOCABULARY)


@pytest.mark.parametrize(
    "change",
    [
        {"pre_norm": True},
        {"positions": "learned"},
        {"positions": "none"},
        {"positions": "rotary"},
        {"norm_bias": False},
        {"norm_eps": 1e-12},
        {"position_offset": 3},
        {"tied_embeddings": "target"},
        {"tied_embeddings": "none"},
        {"kv_heads": 2},
        {"kv_sharing": 2},
        {"cross_attention": AttentionConfig(kv_heads=1)},
        {"decoder_attention": AttentionConfig(kv_sharing=3)},
        {"encoder_attention": AttentionConfig(window=0)},
        {"d_k": 8},
        {"d_v": 2},
    ],
)
def test_what_marian_cannot_express_is_refused(change: dict) -> None:
    config = dataclasses.replace(CONFIG, **change)
    params = build(config.with_vocabulary(VOCABULARY)).init(jax.random.key(0))
    for call in (to_marian, from_marian):
        said = complaint(call, params, config, VOCABULARY)
        assert said.startswith(f"model.{next(iter(change))}")
        assert "Marian can't express it" in said


def test_a_config_that_breaks_a_rule_is_named(params) -> None:
    config = dataclasses.replace(CONFIG, heads="x")
    for call in (to_marian, from_marian):
        assert complaint(call, params, config, VOCABULARY).startswith("model.heads = 'x': must be of type int")


def test_a_default_spelt_out_is_no_other_model(params) -> None:
    config = dataclasses.replace(
        CONFIG, kv_heads=4, d_k=4, d_v=4, cross_attention=AttentionConfig(4, 1), dtype="bfloat16", dropout=0.3,
        attention_kernel="cudnn", initializer="glorot",
    )  # fmt: skip
    assert to_marian(params, config, VOCABULARY).keys() == to_marian(params, CONFIG, VOCABULARY).keys()


# ---- The folder -----------------------------------------------------------------------------------------------------


def test_export_writes_a_folder(call, trained, tmp_path) -> None:
    load_file = pytest.importorskip("safetensors.numpy", reason="needs safetensors").load_file
    done = call("transformer", "export", trained, tmp_path / "out", "--to", "hf-marian", "--checkpoint", "last")
    assert (done.code, done.out) == (0, f"{tmp_path / 'out'}\n")
    config = json.loads((tmp_path / "out/config.json").read_text())
    expected = {"decoder_start_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "scale_embedding": True}
    assert expected.items() <= config.items()
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["num_beams"] == 2
    pieces = Tokenizer.load(trained / "tokenizer.model")
    assert (tmp_path / "out/source.spm").read_bytes() == pieces.model
    # Both sides have our cleaning rules.
    for side in ("source", "target"):
        theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / f"out/{side}.spm"))
        for line in (" the\u00a0red  cat\u200b ", "\uff28u\ufb01 10\u00b2"):
            assert [theirs.encode(line)] == pieces.encode([line], side)
    vocabulary = json.loads((tmp_path / "out/vocab.json").read_text())
    assert vocabulary == {pieces.piece(i): i for i in range(pieces.vocab_size)}

    state = load_file(tmp_path / "out/model.safetensors")
    back = flat(from_marian(state, Checkpoints(trained).at(120).config.model, pieces.vocab_size))
    for name, array in flat(load(str(trained), "last")[1]).items():
        assert np.array_equal(back[name], array), name

    again = call("transformer", "export", trained, tmp_path / "out", "--to", "hf-marian")
    assert (again.code, again.out) == (2, "")
    assert "name a new one" in again.err


def test_mistakes_on_the_command_line(call, monkeypatch, trained, tmp_path) -> None:
    out = tmp_path / "out"
    assert "--to" in call("transformer", "export", trained, out).err
    assert "'onnx'" in call("transformer", "export", trained, out, "--to", "onnx").err
    monkeypatch.chdir(tmp_path)
    for there in ("foo://x", "gs://x"):
        done = call("transformer", "export", trained, there, "--to", "hf-marian")
        assert (done.code, done.err) == (
            2,
            f"error: OUT {there}: give a local path (with ./ before a name that contains ://)\n",
        )
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    done = call("transformer", "export", trained, out, "--to", "hf-marian")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "pip install 'transformer[hf]'" in done.err
    assert not out.exists()


# ---- Against transformers -------------------------------------------------------------------------------------------


@pytest.fixture
def marian():
    """The module `transformers`; skips the test without it."""
    pytest.importorskip("torch", reason="the comparison with Hugging Face's Marian needs torch")
    pytest.importorskip("transformers", reason="the comparison with Hugging Face's Marian needs transformers")
    import transformers

    return transformers


def theirs(marian, params, model_config=CONFIG):
    """A `MarianMTModel` that holds `params`."""
    import torch

    config = Config(model=model_config, decode=DecodeConfig(max_source_length=60, max_extra_length=3))
    model = marian.MarianMTModel(marian.MarianConfig(**marian_config(config, VOCABULARY))).eval()
    state = {name: torch.from_numpy(array) for name, array in to_marian(params, model_config, VOCABULARY).items()}
    left = model.load_state_dict(state, strict=False)
    assert left.unexpected_keys == []
    assert set(left.missing_keys) <= {
        *TIED,
        *(f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder")),
    }
    return model


def their_logits(model, source, target):
    import torch

    source, target = torch.from_numpy(source), torch.from_numpy(target)
    return model(input_ids=source, attention_mask=source != 0, decoder_input_ids=target).logits


@BOTH
@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "swish"])
def test_their_logits_are_ours(marian, config, activation) -> None:
    config = dataclasses.replace(config, activation=activation)
    params = random_params(config)
    ours = build(config.with_vocabulary(VOCABULARY)).apply(params, SOURCE, TARGET)
    logits = their_logits(theirs(marian, params, config), SOURCE, TARGET).detach().numpy()
    np.testing.assert_allclose(logits[TARGET != 0], np.asarray(ours)[TARGET != 0], atol=1e-4, rtol=0)
    assert np.abs(logits).max() > 1


def test_a_model_in_memory_comes_back(marian, params) -> None:
    state = theirs(marian, params).state_dict()
    assert {*TIED} <= {*state}
    back = flat(from_marian(state, CONFIG, VOCABULARY))
    for name, array in flat(params).items():
        assert np.array_equal(back[name], array), name


def test_their_gradients_are_ours(marian, params) -> None:
    import torch

    weights = (TARGET != 0).astype(np.float32)

    def loss(params):
        log_probs = jax.nn.log_softmax(build(CONFIG.with_vocabulary(VOCABULARY)).apply(params, SOURCE, TARGET))
        return -(log_probs[..., 4] * weights).sum()

    ours = flat(jax.grad(loss)(params))
    model = theirs(marian, params)
    (-(their_logits(model, SOURCE, TARGET).log_softmax(-1)[..., 4] * torch.from_numpy(weights)).sum()).backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    # Marian also has gradients for biases that our model does not have.
    zeros = {name for name, array in to_marian(params, CONFIG, VOCABULARY).items() if not array.any()}
    gradients |= {name: np.zeros(model.state_dict()[name].shape, np.float32) for name in zeros}
    back = flat(from_marian(gradients, CONFIG, VOCABULARY))
    for name, array in ours.items():
        scale = np.abs(array).max()
        if name == "['embedding']['table']":  # torch ignores the row of padding as an input
            array, back[name] = array[1:], back[name][1:]
        np.testing.assert_allclose(back[name] / scale, array / scale, atol=1e-3, rtol=0, err_msg=name)


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
def test_an_exported_folder_loads_and_translates_as_we_do(marian, trained, tmp_path) -> None:
    pytest.importorskip("safetensors", reason="needs safetensors")
    import torch

    folder = export(str(trained), str(tmp_path / "out"))
    model, report = marian.MarianMTModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    pieces = marian.MarianTokenizer.from_pretrained(folder)
    sentences = (trained / "sets/test.source").read_text().splitlines()[:8]
    batch = pieces(sentences, return_tensors="pt", padding=True)
    ours = Tokenizer.load(trained / "tokenizer.model").encode(sentences)
    assert [[i for i in row if i] for row in batch["input_ids"].tolist()] == [[*row, 2] for row in ours]
    # Greedy: with beams, theirs drops a hypothesis that ends outside the best beam_size continuations; ours keeps it.
    translator = Translator.load(str(trained), config=DecodeConfig(beam_size=1, max_extra_length=20))
    with torch.inference_mode():
        found = model.generate(**batch, num_beams=1, max_length=20)
    texts = pieces.batch_decode(found, skip_special_tokens=True)
    # Only ten words: length limits differ, and this hardly trained model does not stop by itself.
    assert [text.split()[:10] for text in texts] == [text.split()[:10] for text in translator.translate(sentences)]
