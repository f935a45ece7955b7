"""Hugging Face's GPT-2: names, bits and refusals; logits and generated text if torch and transformers are installed."""

import dataclasses
import json
import os
import random
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from hf_cases import complaint, flat, random_params, same_bits

import transformer
from transformer.checkpoint import Checkpoints
from transformer.config import GPT2, AttentionConfig, Config, LanguageModelConfig, ModelConfig, TextConfig
from transformer.data.vocabularies import ByteLevel, Bytes, Characters, SentencePiece
from transformer.model import build
from transformer.tools.hf.folder import read_arrays, write_arrays
from transformer.tools.hf.gpt2 import from_gpt2, gpt2_config, model_config, table, to_gpt2
from transformer.tools.hf.gpt2_folder import export, import_folder
from transformer.tools.hf.vocabulary import begins_texts, files_of, vocabulary_in
from transformer.tools.new_workdir import new_workdir
from transformer.training.warm_start import starting_point

CONFIG = dataclasses.replace(
    GPT2, decoder_layers=2, d_model=12, d_ff=20, heads=3, max_positions=16, vocab_size=270, dropout=0.0
)
WITHOUT_BIASES = dataclasses.replace(CONFIG, attention_bias=False, norm_bias=False, activation="gelu")
UNTIED = dataclasses.replace(CONFIG, tied_embeddings="none", decoder_layers=1, activation="swish", norm_eps=1e-3)
KINDS = pytest.mark.parametrize("config", [CONFIG, WITHOUT_BIASES, UNTIED], ids=["GPT-2's", "without biases", "untied"])
TEXT = np.array([[5, 0, 269, 5, 9, 2, 0], [0, 0, 1, 17, 100, 200, 3]])


# ---- Names -----------------------------------------------------------------------------------------------------------


@KINDS
def test_there_and_back_is_the_same_bit_for_bit(config: ModelConfig) -> None:
    params = flat(random_params(config))
    back = flat(from_gpt2(to_gpt2(random_params(config), config), config))
    zeros = {name: back.pop(name) for name in back.keys() - params.keys()}
    same_bits(back, params)
    assert bool(zeros) == (config is WITHOUT_BIASES) and not any(array.any() for array in zeros.values())


@pytest.mark.parametrize("config", [CONFIG, UNTIED], ids=["tied", "untied"])
def test_the_table_has_each_parameter_once_on_both_sides(config: ModelConfig) -> None:
    rows = table(config)
    assert sorted(row.ours for row in rows) == sorted(flat(build(config).abstract_params))
    assert len({row.theirs for row in rows}) == len(rows)


def test_query_key_and_value_are_side_by_side_and_matrices_not_transposed() -> None:
    params = random_params(CONFIG)
    state = to_gpt2(params, CONFIG)
    attention = params["decoder"]["layers"]["1"]["self_attention"]
    side_by_side = state["transformer.h.1.attn.c_attn.weight"]
    assert side_by_side.shape == (12, 36)
    for i, name in enumerate(("query", "key", "value")):
        np.testing.assert_array_equal(side_by_side[:, 12 * i : 12 * i + 12], attention[name].reshape(12, 12))
    np.testing.assert_array_equal(
        state["transformer.h.1.mlp.c_fc.weight"], flat(params)["decoder/layers/1/feed_forward/w1"]
    )
    assert "lm_head.weight" not in state


def test_names_without_a_prefix_masks_and_the_tied_head_are_read() -> None:
    params = random_params(CONFIG)
    state = to_gpt2(params, CONFIG, prefix="")
    assert {name.split(".")[0] for name in state} == {"h", "wte", "wpe", "ln_f"}
    more = {"h.0.attn.bias": np.ones((1, 1, 16, 16), bool), "h.1.attn.masked_bias": np.array(-1e4)}
    same_bits(flat(from_gpt2({**state, **more, "lm_head.weight": state["wte.weight"]}, CONFIG)), flat(params))


def test_16_bits_become_32() -> None:
    state = {name: array.astype(np.float16) for name, array in to_gpt2(random_params(CONFIG), CONFIG).items()}
    back = to_gpt2(from_gpt2(state, CONFIG), CONFIG)
    same_bits(back, {name: array.astype(np.float32) for name, array in state.items()})


def test_our_parameters_must_fit() -> None:
    params = random_params(CONFIG)
    params["surplus"] = np.zeros(3)
    params["embedding"]["table"] = np.zeros((5, 12))
    del params["decoder"]["layers"]["1"]["feed_forward"]["b1"]
    assert complaint(to_gpt2, params, CONFIG) == (
        "our parameters: missing decoder/layers/1/feed_forward/b1; unknown surplus; "
        "embedding/table has shape (5, 12), not (270, 12)"
    )


def test_their_arrays_must_fit_and_all_that_is_wrong_is_told_at_once() -> None:
    state = to_gpt2(random_params(CONFIG), CONFIG)
    state["transformer.h.2.mlp.c_fc.bias"] = state.pop("transformer.h.0.mlp.c_fc.bias")
    state["transformer.h.9.attn.bias"] = np.ones(1)
    state["transformer.h.0.attn.c_attn.weight"] = state["transformer.h.0.attn.c_attn.weight"].T
    state["transformer.ln_f.bias"] = state["transformer.ln_f.bias"].astype(np.int8)
    state["transformer.wpe.weight"][3, 2] = np.nan
    state["lm_head.weight"] = state["transformer.wte.weight"] + 1
    assert complaint(from_gpt2, state, CONFIG).split("; ") == [
        "the GPT-2 model: lm_head.weight and transformer.wte.weight differ, but tie_word_embeddings says that they are "
        "equal",
        "missing transformer.h.0.mlp.c_fc.bias",
        "unknown transformer.h.2.mlp.c_fc.bias",
        "unknown transformer.h.9.attn.bias",
        "transformer.h.0.attn.c_attn.weight has shape (36, 12), not (12, 36)",
        "transformer.wpe.weight holds numbers that are not finite",
        "transformer.ln_f.bias is of type int8, not float32",
    ]
    assert "missing lm_head.weight" in complaint(from_gpt2, to_gpt2(random_params(CONFIG), CONFIG), UNTIED)


@pytest.mark.parametrize(
    "change",
    [
        {"encoder_layers": 1},
        {"pre_norm": False},
        {"positions": "rotary"},
        {"positions": "none"},
        {"embedding_scale": True},
        {"output_bias": True},
        {"kv_heads": 1},
        {"kv_sharing": 2},
        {"decoder_attention": AttentionConfig(window=3)},
        {"d_k": 8},
        {"d_v": 2},
    ],
)
def test_what_gpt2_cannot_express_is_refused(change: dict) -> None:
    config = dataclasses.replace(CONFIG, **change)
    for call in (to_gpt2, from_gpt2):
        told = complaint(call, {}, config)
        assert told.startswith(f"model.{next(iter(change))}") and "GPT-2 can't express it" in told


def test_a_default_spelt_out_is_no_other_model() -> None:
    spelt = dataclasses.replace(CONFIG, kv_heads=3, d_k=4, d_v=4, decoder_attention=AttentionConfig(3, 1))
    more = dataclasses.replace(spelt, dtype="bfloat16", position_offset=3, initializer="scaled", kv_sharing=1)
    params = random_params(CONFIG)
    same_bits(to_gpt2(params, more), to_gpt2(params, CONFIG))


# ---- Their config ----------------------------------------------------------------------------------------------------


@KINDS
def test_the_config_comes_back(config: ModelConfig) -> None:
    back = model_config(gpt2_config(config))
    assert back == dataclasses.replace(config, attention_bias=True, norm_bias=True)
    assert model_config({"model_type": "gpt2"}) == dataclasses.replace(GPT2, vocab_size=50_257)
    assert gpt2_config(dataclasses.replace(GPT2, vocab_size=50_257))["n_inner"] is None


def test_fields_that_cannot_be_expressed_are_all_named() -> None:
    fields = {
        "scale_attn_by_inverse_layer_idx": True,
        "add_cross_attention": True,
        "quantization_config": {"bits": 4},
        "embd_pdrop": 0.2,
        "activation_function": ["relu"],
        "n_layer": 2.5,
        "n_embd": "x",
        "layer_norm_epsilon": True,
        "tie_word_embeddings": 1,
    }
    told = complaint(model_config, {"model_type": "gpt2", **fields}, "x/config.json")
    assert told.startswith("x/config.json: ") and all(f"{name} = {value!r}" in told for name, value in fields.items())
    assert complaint(model_config, {"model_type": "bert"}) == (
        "config.json: model_type = 'bert': must be 'gpt2' for hf-gpt2"
    )
    assert "model.heads = 5: must divide" in complaint(model_config, {"model_type": "gpt2", "n_head": 5})


# ---- Folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder as `GPT2LMHeadModel.save_pretrained` writes it, without a tokenizer. Don't write to it."""
    pytest.importorskip("safetensors", reason="needs safetensors")
    folder = tmp_path_factory.mktemp("gpt2")
    write_arrays(folder / "model.safetensors", to_gpt2(random_params(CONFIG), CONFIG))
    fields = {"bos_token_id": 7, "eos_token_id": 8, "pad_token_id": None, "use_cache": True, "task_specific_params": {}}
    (folder / "config.json").write_text(json.dumps(gpt2_config(CONFIG) | fields))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "folder"))


def test_import_then_export_gives_back_names_and_bits(made: Path, tmp_path: Path, call) -> None:
    workdir, out = tmp_path / "run", tmp_path / "out"
    done = call("transformer", "import", made, workdir, "--from", "hf-gpt2")
    assert (done.code, done.out) == (0, f"{workdir}\n")
    assert (
        "no tokenizer.json, and no vocab.json with merges.txt: the model is imported without a vocabulary" in done.err
    )
    model, params = transformer.load(str(workdir))
    same_bits(flat(params), flat(random_params(CONFIG)))
    assert model.apply(params, TEXT).shape == (2, 7, 270)
    opened = Checkpoints(workdir).open()
    assert (opened.name, opened.config.task, opened.config.data.context) == ("average", "language_model", 16)
    assert (opened.config.model, opened.progress["trainable"]) == (CONFIG, False)

    done = call("transformer", "export", workdir, out, "--to", "hf-gpt2")
    assert (done.code, done.out) == (0, f"{out}\n")
    assert (out / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()
    before, after = (json.loads((where / "config.json").read_text()) for where in (made, out))
    assert after.pop("architectures") == ["GPT2LMHeadModel"]
    assert after == {name: x for name, x in before.items() if name not in ("use_cache", "task_specific_params")}
    done = call("transformer", "generate", workdir, "--prompt", "a")
    assert done.code == 2 and done.err.splitlines()[-1].endswith("or import the model again, with its tokenizer")
    done = call("transformer", "export", workdir, out, "--to", "hf-gpt2")
    assert done.code == 2 and "name a new one" in done.err
    assert call("transformer", "import", made, workdir, "--from", "hf-gpt2").code == 2


def test_the_names_of_an_inner_model_come_back_without_prefix(folder: Path, tmp_path: Path, call) -> None:
    write_arrays(folder / "model.safetensors", to_gpt2(random_params(CONFIG), CONFIG, prefix=""))
    import_folder(str(folder), str(tmp_path / "run"))
    export(str(tmp_path / "run"), str(tmp_path / "out"))
    assert (tmp_path / "out/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == ["GPT2Model"]


def test_a_run_can_start_from_an_imported_model(made: Path, tmp_path: Path) -> None:
    import_folder(str(made), str(tmp_path / "run"))
    train = dataclasses.replace(LanguageModelConfig().train, init_from=str(tmp_path / "run"))
    config = LanguageModelConfig(CONFIG, TextConfig(context=16), train)
    assert starting_point(config, build(CONFIG).abstract_params).name == "average"
    other = dataclasses.replace(config, model=dataclasses.replace(CONFIG, heads=6))
    assert "--model.heads is 3 there, 6 here" in complaint(starting_point, other, build(other.model).abstract_params)


def test_shards_are_read(folder: Path, tmp_path: Path) -> None:
    state = read_arrays(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        write_arrays(folder / file, {name: state[name] for name in names if places[name] == file})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    import_folder(str(folder), str(tmp_path / "run"))
    same_bits(flat(transformer.load(str(tmp_path / "run"))[1]), flat(random_params(CONFIG)))
    for wrong, told in (
        ({"weight_map": {**places, "x": places[names[0]]}}, f"{index}: x: not in the file that 'weight_map' names"),
        ({"weight_map": {**places, "x": "../x"}}, f"{index}: 'weight_map' must name a file of this folder"),
        ([], f"{index}: must hold a JSON object, not a list"),
    ):
        index.write_text(json.dumps(wrong))
        assert complaint(import_folder, str(folder), str(tmp_path / "other")).startswith(told)


def test_bad_folders_are_refused_in_one_line(folder: Path, tmp_path: Path, call) -> None:
    out, file, config = tmp_path / "run", folder / "model.safetensors", folder / "config.json"

    def told() -> str:
        done = call("transformer", "import", folder, out, "--from", "hf-gpt2")
        assert (done.code, done.out, out.exists()) == (2, "", False)
        return done.err.splitlines()[-1]

    content = file.read_bytes()
    (folder / "pytorch_model.bin").touch()
    for cut in (content[:-1], content[:100], b""):
        file.write_bytes(cut)
        assert f"{file}: not a safetensors file, or a damaged one" in told()
    file.unlink()
    assert "holds pytorch_model.bin, which can run code when it is read" in told() and "save_pretrained" in told()
    assert len(call("transformer", "import", folder, out, "--from", "hf-gpt2").err.splitlines()) == 1
    (folder / "pytorch_model.bin").unlink()
    assert f"{folder}: holds no model.safetensors; give the folder that save_pretrained wrote" in told()
    (folder / "tf_model.h5").touch()
    assert f"{folder}: holds tf_model.h5, but no model.safetensors; give the model in PyTorch's form" in told()
    file.write_bytes(content)
    values = config.read_text()
    for wrong, expected in (
        (values.replace("270", "271"), "transformer.wte.weight has shape (270, 12), not (271, 12)"),
        (values.replace('"n_positions": 16', '"n_positions": 1'), "data.context = 1: must be at least 2"),
        ("{", f"{config}: not valid JSON"),
        ("3", f"{config}: must hold a JSON object, not a int"),
    ):
        config.write_text(wrong)
        assert expected in told()
    config.unlink()
    assert f"{folder}: holds no config.json" in told()
    shutil.rmtree(folder)
    assert f"{folder}: no such folder" in told()
    folder.write_bytes(b"PK")
    assert f"{folder}: is a file; give the folder of a model" in told()
    assert "--from" in call("transformer", "import", folder, out).err
    assert "'onnx'" in call("transformer", "import", folder, out, "--from", "onnx").err


def test_fields_of_unknown_meaning_are_named(folder: Path, tmp_path: Path, call) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "attn_logit_cap": 30, "rope": 1}))
    done = call("transformer", "import", folder, tmp_path / "run", "--from", "hf-gpt2")
    assert done.code == 0
    assert "these fields have no counterpart here and are left out: attn_logit_cap, rope" in done.err


def test_only_a_language_model_becomes_gpt2(tmp_path: Path, call) -> None:
    translation = Config(model=dataclasses.replace(CONFIG, encoder_layers=1, decoder_layers=1, vocab_size=9))
    language_model = LanguageModelConfig(dataclasses.replace(CONFIG, vocab_size=9), TextConfig(context=16))
    for config, kind in ((translation, "hf-gpt2"), (language_model, "hf-marian")):
        workdir = tmp_path / config.task
        progress = {"step": 1, "vocab_size": 9}
        new_workdir(str(workdir), random_params(config.model), config, progress=progress, files={})
        done = call("transformer", "export", workdir, tmp_path / "out", "--to", kind)
        other = (language_model if config is translation else translation).task
        told = f"{workdir}: its task is '{config.task}'; give one of the task '{other}'"
        assert done.code == 2 and done.err.splitlines()[-1] == f"error: {told}"
    assert not (tmp_path / "out").exists()


def test_the_options_of_the_search_go_out(tmp_path: Path, call) -> None:
    from small_runs import language_run

    options = {"min_length": 3, "no_repeat_ngram": 2, "repetition_penalty": 1.5, "banned": ("a", "bc"), "beam_size": 2}
    workdir = language_run(tmp_path / "run", Bytes(), CONFIG, length_penalty=0.5, **options)
    assert call("transformer", "export", workdir, tmp_path / "out", "--to", "hf-gpt2").code == 0
    made = json.loads((tmp_path / "out/generation_config.json").read_text())
    expected = {"min_new_tokens": 3, "no_repeat_ngram_size": 2, "repetition_penalty": 1.5, "length_penalty": 0.5}
    assert made == made | expected | {"bad_words_ids": [[101], [102, 103]], "num_beams": 2, "do_sample": False}


# ---- Vocabularies ----------------------------------------------------------------------------------------------------

DRAW = random.Random(0)
WORDS = ["".join(DRAW.choices("abcdefghé", k=DRAW.randint(2, 6))) for _ in range(40)]
LINES = ["  " * DRAW.randint(0, 3) + " ".join(DRAW.choices(WORDS, k=8)) for _ in range(200)]
SAMPLES = ["", " ", "\n\n a", *LINES[:20], "\n".join(LINES[20:40]), "  é▁日 </s><pad>\t\r\n x  y", "hello, world!"]


def pairs(folder: Path) -> list[str]:
    """Write vocab.json and merges.txt of a byte-level BPE without `tokenizers`. Returns its pieces."""
    from transformer.data.vocabularies import BYTE_SYMBOLS

    merges = [("a", "b"), ("c", "d"), ("Ġ", "ab"), ("ab", "cd")]
    pieces = [*BYTE_SYMBOLS, *(a + b for a, b in merges), "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return pieces


def test_vocab_and_merges_are_read(folder: Path, tmp_path: Path, call) -> None:
    pytest.importorskip("tokenizers")
    pieces = pairs(folder)
    (folder / "added_tokens.json").write_text(json.dumps({"[PAD]": len(pieces)}))
    done = call("transformer", "import", folder, tmp_path / "run", "--from", "hf-gpt2")
    assert done.code == 0 and "the last 8 ids of the model have no piece in its tokenizer" in done.err
    vocabulary = ByteLevel((tmp_path / "run/tokenizer.json").read_bytes())
    assert vocabulary.pieces(vocabulary.encode(" abcd abab")) == ["Ġab", "cd", "Ġab", "ab"]
    assert (vocabulary.begin, vocabulary.end, vocabulary.banned) == (260, 260, tuple(range(261, 270)))
    assert vocabulary.size == 270 and vocabulary.pieces([261, 262]) == ["[PAD]", "<|unused_262|>"]
    call("transformer", "export", tmp_path / "run", tmp_path / "out", "--to", "hf-gpt2")
    assert vocabulary_in(tmp_path / "out").file == vocabulary.file
    (tmp_path / "a.txt").write_text("abcd abab\n")
    done = call("evaluate.py", "--workdir", tmp_path / "run", "--text", tmp_path / "a.txt", "--json")
    assert done.code == 0 and json.loads(done.out)["perplexity"] > 1, done.err

    config = folder / "config.json"
    config.write_text(config.read_text().replace("270", "261"))
    done = call("transformer", "import", folder, tmp_path / "other", "--from", "hf-gpt2")
    assert done.code == 2 and "its tokenizer has 262 pieces, but config.json has vocab_size 261" in done.err
    config.write_text(config.read_text().replace("261", "2000000000"))
    done = call("transformer", "import", folder, tmp_path / "other", "--from", "hf-gpt2")
    assert done.code == 2 and "wte.weight has shape (270, 12), not (2000000000, 12)" in done.err
    (folder / "added_tokens.json").write_text(json.dumps({"[PAD]": 262}))
    assert "the id of the added piece '[PAD]' does not follow the others" in complaint(vocabulary_in, folder)
    (folder / "merges.txt").write_bytes(b"\xff")
    assert "merges.txt: cannot be read" in complaint(vocabulary_in, folder)


ADDED, VOCAB = "added_tokens.json", "vocab.json"


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        (ADDED, '{"[PAD]": "261"}', "the id of '[PAD]' is '261': must be a whole number"),
        (ADDED, '{"[PAD]": null}', "the id of '[PAD]' is None: must be a whole number"),
        (VOCAB, '{"a": [1]}', "the id of 'a' is [1]: must be a whole number"),
        (VOCAB, '{"a\\ud800": 1}', "holds half a surrogate pair"),
        ("merges.txt", None, "cannot be read (Is a directory)"),
        ("tokenizer.json", None, "cannot be read (Is a directory)"),
        ("tokenizer.json", "a pipe", "not a regular file"),
        ("config.json", "a pipe", "not a regular file"),
        ("characters.json", None, "cannot be read (Is a directory)"),
        ("model.safetensors", "of complex numbers", "a is of type C64, which is not read"),
    ],
)
def test_what_is_wrong_in_a_folder_is_named(folder: Path, tmp_path: Path, file: str, content, told: str) -> None:
    pairs(folder)
    if file == "characters.json":
        (folder / "tokenizer_config.json").write_text(json.dumps({"transformer_vocabulary": file}))
    (folder / file).unlink(missing_ok=True)
    if content is None:
        (folder / file).mkdir()
    elif content == "a pipe":
        os.mkfifo(folder / file)
    elif content == "of complex numbers":
        header = b'{"a": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}'
        (folder / file).write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    else:
        (folder / file).write_text(content)
    assert complaint(import_folder, str(folder), str(tmp_path / "run")).startswith(f"{folder / file}: {told}")


def test_a_tokenizer_without_its_package_is_refused(folder: Path, tmp_path: Path, monkeypatch) -> None:
    pairs(folder)
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    assert "pip install" in complaint(import_folder, str(folder), str(tmp_path / "run"))


@pytest.fixture(scope="module")
def vocabularies() -> dict[str, object]:
    from transformer.data.tokenizer import Tokenizer

    model = Tokenizer.train(LINES, vocab_size=340, running=True).model
    return {"characters": Characters("".join(LINES) + "\n"), "bytes": Bytes(), "sentencepiece": SentencePiece(model)}


@pytest.mark.parametrize("kind", ["characters", "bytes", "sentencepiece"])
def test_our_vocabularies_go_out_and_come_back(vocabularies, kind: str, tmp_path: Path) -> None:
    vocabulary = vocabularies[kind]
    for name, content in files_of(vocabulary, 16, begins=False).items():
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / name).write_bytes(content)
    assert vocabulary_in(tmp_path).file == vocabulary.file
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs.encode_special_tokens = True
    assert theirs.get_vocab_size() == vocabulary.size
    for text in SAMPLES:
        ids = theirs.encode(text).ids
        assert ids == vocabulary.encode(text).tolist(), text
        if kind != "characters" or not vocabulary.missing(text):
            assert theirs.decode(ids) == text


@pytest.mark.parametrize("kind", ["characters", "bytes", "sentencepiece", "byte level"])
def test_documents_and_context_go_out_and_come_back(vocabularies, kind: str, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    if kind == "byte level":
        pairs(tmp_path)
    vocabulary = vocabulary_in(tmp_path) if kind == "byte level" else vocabularies[kind]
    config = dataclasses.replace(CONFIG, vocab_size=vocabulary.size, max_positions=64)
    progress, files = {"step": 1, "vocab_size": config.vocab_size}, dict([vocabulary.file])
    run = LanguageModelConfig(config, TextConfig(context=32, documents="files"))
    new_workdir(str(tmp_path / "run"), random_params(config), run, progress=progress, files=files)
    out = export(str(tmp_path / "run"), str(tmp_path / "out"))
    theirs = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
    theirs.encode_special_tokens = True
    for text in SAMPLES:
        assert theirs.encode(text).ids == [vocabulary.begin, *vocabulary.encode(text)], text
    assert json.loads((out / "config.json").read_text())["n_positions"] == 64
    assert json.loads((out / "generation_config.json").read_text())["max_length"] == 32
    assert json.loads((out / "tokenizer_config.json").read_text())["model_max_length"] == 32
    import_folder(str(out), str(tmp_path / "back"))
    data = Checkpoints(tmp_path / "back").open().config.data
    assert (data.context, data.documents) == (32, "blank_lines")
    ours, back = (transformer.Generator.load(str(tmp_path / name)) for name in ("run", "back"))
    assert (back.context, back.documents) == (32, True) == (ours.context, ours.documents)
    assert back.score(["ab cd"]) == ours.score(["ab cd"])
    assert back.score(["ab cd"])[0].log_probs[0] is not None
    export(str(tmp_path / "back"), str(tmp_path / "again"))
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes(), name


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "x"}}, {"Sequence": {"id": "A"}}],
    "special_tokens": {"x": {"ids": [1]}},
}


@pytest.mark.parametrize(
    ("processor", "begins"),
    [
        (None, False),
        ([], False),
        ({"type": "ByteLevel"}, False),
        ({"type": "Sequence", "processors": 3}, False),
        (TEMPLATE | {"single": []}, False),
        (TEMPLATE | {"single": [{"Sequence": {"id": "A"}}]}, False),
        (TEMPLATE | {"special_tokens": 5}, False),
        (TEMPLATE | {"special_tokens": {"x": {"ids": [9]}}}, False),
        (TEMPLATE, True),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, TEMPLATE]}, True),
    ],
)
def test_whether_a_tokenizer_begins_texts(processor: object, begins: bool, tmp_path: Path) -> None:
    assert not begins_texts(tmp_path, Bytes())
    (tmp_path / "tokenizer.json").write_text(json.dumps({"post_processor": processor}))
    assert begins_texts(tmp_path, Bytes()) == begins


RUN = """
import dataclasses
from transformer.config import GPT2, LanguageModelConfig, TextConfig, TrainConfig

small = dict(decoder_layers=2, d_model=12, d_ff=20, heads=3, max_positions=16)
config = LanguageModelConfig(
    dataclasses.replace(GPT2, **small),
    TextConfig(text=("{folder}/text.txt",), context=16, workers=1),
    TrainConfig(steps=2, batch_tokens=64, peak_learning_rate=1e-6, warmup_steps=1, label_smoothing=0.0),
)
"""


@pytest.mark.slow
def test_training_goes_on_from_an_exported_and_imported_model(tmp_path: Path, call) -> None:
    vocabulary = Bytes()
    config = dataclasses.replace(CONFIG, vocab_size=vocabulary.size)
    first, folder, start, on = (tmp_path / name for name in ("first", "folder", "start", "on"))
    progress = {"step": 1, "vocab_size": vocabulary.size}
    of_run = LanguageModelConfig(config, TextConfig(context=16))
    new_workdir(str(first), random_params(config), of_run, progress=progress, files=dict([vocabulary.file]))
    assert call("transformer", "export", first, folder, "--to", "hf-gpt2").code == 0
    assert call("transformer", "import", folder, start, "--from", "hf-gpt2").code == 0
    (tmp_path / "text.txt").write_text("to be, or not to be: that is the question\n" * 40)
    (tmp_path / "run.py").write_text(RUN.format(folder=tmp_path))
    train = ("train.py", "--config", tmp_path / "run.py")
    done = call(*train, "--workdir", start)
    assert done.code == 2 and f"{start} is not a workdir of train.py" in done.err
    done = call(*train, "--workdir", on, "--train.init_from", start)
    assert done.code == 0, done.err
    assert f"starting from the parameters of {start}/checkpoints/average" in done.err
    before, after = flat(random_params(config)), flat(transformer.load(str(on))[1])
    assert 0 < max(np.abs(after[name] - before[name]).max() for name in before) < 1e-5
    assert Checkpoints(on).open().file("bytes.json") == vocabulary.file[1]


# ---- Against transformers --------------------------------------------------------------------------------------------

SHAPES = {
    "one layer": {"decoder_layers": 1, "d_model": 8, "d_ff": 32, "heads": 1},
    "wide heads": {"d_model": 24, "d_ff": 24, "heads": 2, "activation": "relu"},
    "deep": {"decoder_layers": 6, "d_model": 48, "d_ff": 192, "heads": 6, "vocab_size": 1_000, "max_positions": 64},
    "untied": {"tied_embeddings": "none", "activation": "swish", "norm_eps": 1e-3},
    "without biases": {"attention_bias": False, "norm_bias": False, "activation": "gelu"},
}


@pytest.fixture
def theirs():
    """The module `transformers`; skips the test without it."""
    pytest.importorskip("torch", reason="the comparison with Hugging Face's GPT-2 needs torch")
    return pytest.importorskip("transformers", reason="the comparison with Hugging Face's GPT-2 needs transformers")


def their_logits(model, text: np.ndarray) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return model.eval()(torch.from_numpy(text)).logits.numpy()


@pytest.mark.parametrize("shape", SHAPES)
def test_their_logits_are_ours(theirs, shape: str, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, **SHAPES[shape])
    params = random_params(config)
    new_workdir(
        *(str(tmp_path / "run"), params, LanguageModelConfig(config, TextConfig(context=16))),
        progress={"step": 1, "vocab_size": config.vocab_size},
        files={},
    )
    folder = export(str(tmp_path / "run"), str(tmp_path / "out"))
    model, report = theirs.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    ours = np.asarray(build(config).apply(params, TEXT))
    np.testing.assert_allclose(their_logits(model, TEXT), ours, atol=1e-5, rtol=0)
    assert np.abs(ours).max() > 0.3


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "GPT2Model"])
@pytest.mark.parametrize("shape", ["one layer", "deep", "untied"])
def test_our_logits_are_theirs_and_their_bits_come_back(theirs, kind: str, shape: str, tmp_path: Path) -> None:
    import torch

    config = gpt2_config(dataclasses.replace(CONFIG, **SHAPES[shape]))
    torch.manual_seed(0)
    model = getattr(theirs, kind)(theirs.GPT2Config(**config, bos_token_id=1, eos_token_id=1))
    with torch.no_grad():
        for name, x in model.named_parameters():
            x.copy_(torch.randn_like(x) * 0.1 + ("ln" in name and "weight" in name))
    model.save_pretrained(tmp_path / "theirs")
    if kind == "GPT2Model" and shape == "untied":
        assert "missing lm_head.weight" in complaint(import_folder, str(tmp_path / "theirs"), str(tmp_path / "run"))
        return
    import_folder(str(tmp_path / "theirs"), str(tmp_path / "run"))
    model = theirs.GPT2LMHeadModel.from_pretrained(tmp_path / "theirs")
    built, params = transformer.load(str(tmp_path / "run"))
    np.testing.assert_allclose(built.apply(params, TEXT), their_logits(model, TEXT), atol=1e-5, rtol=0)
    folder = export(str(tmp_path / "run"), str(tmp_path / "out"))
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "theirs/model.safetensors").read_bytes()
    before, after = (json.loads((where / "config.json").read_text()) for where in (tmp_path / "theirs", folder))
    assert after.items() <= before.items()
    without = before.keys() - after.keys()
    assert all(name.startswith("summary_") for name in without - {*LEFT_OUT}), without


LEFT_OUT = ("initializer_range", "reorder_and_upcast_attn", "transformers_version", "use_cache")


@pytest.mark.parametrize("documents", ["none", "blank_lines"])
@pytest.mark.parametrize("kind", ["characters", "bytes", "sentencepiece", "byte level"])
def test_an_exported_model_generates_text(theirs, vocabularies, kind: str, documents: str, tmp_path: Path) -> None:
    import torch

    if kind == "byte level":
        pairs(tmp_path)
        vocabulary = vocabulary_in(tmp_path)
    else:
        vocabulary = vocabularies[kind]
    config = dataclasses.replace(CONFIG, vocab_size=vocabulary.size, max_positions=64)
    params = random_params(config)
    new_workdir(
        *(str(tmp_path / "run"), params, LanguageModelConfig(config, TextConfig(context=64, documents=documents))),
        progress={"step": 1, "vocab_size": config.vocab_size},
        files=dict([vocabulary.file]),
    )
    folder = export(str(tmp_path / "run"), str(tmp_path / "out"))
    model, pieces = theirs.AutoModelForCausalLM.from_pretrained(folder), theirs.AutoTokenizer.from_pretrained(folder)
    first = [vocabulary.begin] if documents != "none" else []
    for text in SAMPLES:
        assert pieces(text)["input_ids"] == first + vocabulary.encode(text).tolist(), text
    prompt = "ab cd\nefg"
    found = model.generate(**pieces(prompt, return_tensors="pt"), do_sample=False, max_new_tokens=12)[0].tolist()
    forward, ids = jax.jit(build(config).apply), first + vocabulary.encode(prompt).tolist()
    assert found[: len(ids)] == ids
    for _ in range(12):
        logits = np.array(forward(params, np.array([ids + [0] * (64 - len(ids))]))[0, len(ids) - 1])
        logits[list(vocabulary.banned)] = -np.inf
        ids.append(int(logits.argmax()))
        if ids[-1] == vocabulary.end:
            break
    assert found == ids
    assert pieces.decode(found, skip_special_tokens=True) == vocabulary.decode(ids)
    assert (pieces.bos_token_id, pieces.eos_token_id) == (vocabulary.begin, vocabulary.end)
    torch.manual_seed(0)
    assert len(model.generate(**pieces(prompt, return_tensors="pt"), max_length=40)[0]) <= 40  # it samples by default
