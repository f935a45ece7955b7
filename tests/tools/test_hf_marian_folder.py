"""Folders of Hugging Face's Marian, ours and Opus-MT's, in and out. Compared with transformers if it is installed."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hf_cases import complaint, flat, same_bits
from opus import ODD, SOURCE, TARGET, state_of, write_opus
from small_runs import LINES, translation_run

import transformer
from transformer.checkpoint import Checkpoints
from transformer.config import BOS, EOS, PAD, UNK
from transformer.data.tokenizer import Tokenizer
from transformer.inference.translator import Translator
from transformer.tools.hf.folder import read_arrays, write_arrays
from transformer.tools.hf.marian import NEVER
from transformer.tools.hf.marian_folder import export, import_folder

pytest.importorskip("safetensors", reason="needs safetensors")
SPECIAL = ("pad_token_id", "eos_token_id", "decoder_start_token_id")


@pytest.fixture(scope="module")
def opus(tmp_path_factory) -> Path:
    """A folder of Opus-MT's form. Outputs of this random model do not repeat themselves."""
    folder = tmp_path_factory.mktemp("opus") / "opus"
    write_opus(folder, no_repeat_ngram_size=1)
    return folder


@pytest.fixture(scope="module")
def imported(opus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("imported") / "run"
    import_folder(str(opus), str(folder))
    return folder


def changed(opus: Path, tmp_path: Path, **changes) -> Path:
    """A copy of the folder with other values in its config.json; None removes a field."""
    folder = Path(shutil.copytree(opus, tmp_path / "changed"))
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def content(folder: Path) -> dict:
    """The JSON files of a folder."""
    return {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}


# ---- Our own form ----------------------------------------------------------------------------------------------------


def test_our_own_export_comes_back_bit_for_bit(call, trained, tmp_path) -> None:
    out, back, again = tmp_path / "out", tmp_path / "back", tmp_path / "again"
    assert call("transformer", "export", trained, out, "--to", "hf-marian").code == 0
    done = call("transformer", "import", out, back, "--from", "hf-marian")
    assert (done.code, done.out, done.err) == (0, f"{back}\n", "")
    ours, theirs = Checkpoints(str(trained)).open(), Checkpoints(str(back)).open()
    same_bits(flat(ours.params()), flat(theirs.params()))
    assert ours.file("tokenizer.model") == theirs.file("tokenizer.model")
    assert ours.config.model == theirs.config.model
    assert theirs.config.decode.beam_size == ours.config.decode.beam_size
    assert call("transformer", "export", back, again, "--to", "hf-marian").code == 0
    assert content(again) == content(out)
    for name in ("model.safetensors", "source.spm", "target.spm"):
        assert (again / name).read_bytes() == (out / name).read_bytes()


def test_biases_that_were_trained_elsewhere_are_kept(trained, tmp_path) -> None:
    export(str(trained), str(tmp_path / "out"))
    state = dict(read_arrays(tmp_path / "out/model.safetensors"))
    name = "model.encoder.layers.0.self_attn.q_proj.bias"
    state[name] = state[name] + np.float32(0.5)
    write_arrays(tmp_path / "out/model.safetensors", state)
    import_folder(str(tmp_path / "out"), str(tmp_path / "back"))
    model, params = transformer.load(str(tmp_path / "back"))
    assert (model.config.attention_bias, model.config.output_bias, model.config.norm_eps) == (True, True, 1e-5)
    assert np.all(np.asarray(params["encoder"]["layers"]["0"]["self_attention"]["query_bias"]) == 0.5)


def test_the_page_of_an_export_names_what_differs(trained, imported, tmp_path) -> None:
    export(str(trained), str(tmp_path / "ours"))
    page = (tmp_path / "ours/README.md").read_text()
    for said in ("1e-05", "Length penalty", "--to ctranslate2", "starts with <s>", "U+200C", ">>de<<"):
        assert said in page
    export(str(imported), str(tmp_path / "opus"))
    page = (tmp_path / "opus/README.md").read_text()
    assert "--to ctranslate2" in page
    for said in ("1e-05", "Length penalty", "starts with <s>", "U+200C", ">>de<<"):
        assert said not in page


# ---- Opus-MT's form --------------------------------------------------------------------------------------------------


def test_the_config_is_read(imported) -> None:
    loaded = transformer.load(str(imported))
    model, decode = loaded.config.model, loaded.config.decode
    assert (model.activation, model.norm_eps, model.embedding_scale) == ("swish", 1e-5, True)
    assert (model.attention_bias, model.output_bias, model.positions) == (True, True, "sinusoidal")
    assert (model.d_model, model.d_ff, model.heads, model.encoder_layers, model.dropout) == (32, 64, 2, 1, 0.1)
    assert (decode.beam_size, decode.length_penalty, decode.length_normalization) == (3, 1.0, "fairseq")
    assert (decode.max_length, decode.max_source_length, decode.no_repeat_ngram) == (58, 63, 1)
    assert loaded.config.data.languages == ("en", "de")


def test_rows_have_our_order(opus, imported) -> None:
    model, params = loaded = transformer.load(str(imported))
    vocabulary, config = json.loads((opus / "vocab.json").read_text()), content(opus)["config.json"]
    state = read_arrays(opus / "model.safetensors")
    assert model.config.vocab_size == len(vocabulary) + 1
    order = np.concatenate([np.arange(16), np.arange(16)]).reshape(2, 16).T.ravel() + np.tile([0, 16], 16)
    table, bias = np.asarray(params["embedding"]["table"]), np.asarray(params["output_bias"])
    theirs = state["model.shared.weight"][:, order]  # sines and cosines alternate here
    special = {PAD: "<pad>", EOS: "</s>", UNK: "<unk>"}
    for i in range(model.config.vocab_size):
        if i != BOS:
            id = vocabulary[special.get(i) or loaded.tokenizer.piece(i)]
            assert np.array_equal(table[i], theirs[id])
            assert bias[i] == state["final_logits_bias"][0, id]
    assert np.array_equal(table[BOS], theirs[config["decoder_start_token_id"]])
    assert bias[BOS] == NEVER


def test_it_goes_out_as_it_came_in(opus, imported, tmp_path) -> None:
    export(str(imported), str(tmp_path / "out"))
    same_bits(dict(read_arrays(opus / "model.safetensors")), dict(read_arrays(tmp_path / "out/model.safetensors")))
    before, after = content(opus), content(tmp_path / "out")
    made = after.pop("generation_config.json")
    assert after == before
    assert (made["num_beams"], made["max_length"], made["suppress_tokens"]) == (3, 60, [96])
    for name in ("source.spm", "target.spm"):
        assert (opus / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_a_decoder_may_begin_with_a_piece_of_its_own_or_with_the_end(tmp_path) -> None:
    for start in (0, 95):
        write_opus(folder := tmp_path / f"opus{start}", decoder_start_token_id=start)
        import_folder(str(folder), str(tmp_path / f"run{start}"))
        model, params = loaded = transformer.load(str(tmp_path / f"run{start}"))
        table = np.asarray(params["embedding"]["table"])
        assert model.config.vocab_size == 97 + (start == 0)
        assert np.array_equal(table[BOS], table[EOS]) == (start == 0)
        assert not np.array_equal(table[BOS], table[PAD])
        assert loaded.tokenizer.encode([">>nl<<"]) != [[UNK]] or start == 95
        export(str(tmp_path / f"run{start}"), str(tmp_path / f"out{start}"))
        same_bits(*(dict(read_arrays(tmp_path / f"{name}{start}/model.safetensors")) for name in ("opus", "out")))


def test_pieces_that_theirs_never_generates_are_never_generated(opus, tmp_path) -> None:
    folder = changed(opus, tmp_path)
    options = {"bad_words_ids": [[96], [7]], "suppress_tokens": [8], "renormalize_logits": True, "max_length": 30}
    (folder / "generation_config.json").write_text(json.dumps(options))
    import_folder(str(folder), str(tmp_path / "run"))
    _, params = loaded = transformer.load(str(tmp_path / "run"))
    bias = np.asarray(params["output_bias"])
    never = [loaded.tokenizer.their_ids[i] for i in np.flatnonzero(bias == NEVER)]
    assert sorted(set(never)) == [7, 8, 96]
    assert np.count_nonzero(bias == NEVER) == 4  # bos, too
    assert loaded.config.decode.max_length == 28
    export(str(tmp_path / "run"), str(tmp_path / "out"))
    same_bits(dict(read_arrays(opus / "model.safetensors")), dict(read_arrays(tmp_path / "out/model.safetensors")))
    assert content(tmp_path / "out") == content(folder)


def test_old_files_hold_positions_and_other_names_of_the_table(opus, imported, tmp_path) -> None:
    folder = changed(opus, tmp_path)
    state = dict(read_arrays(opus / "model.safetensors"))
    angles = np.arange(64)[:, None] * 10_000.0 ** (-np.arange(0, 32, 2) / 32)
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
    state |= {f"model.{side}.embed_positions.weight": table for side in ("encoder", "decoder")}
    state["lm_head.weight"] = state.pop("model.shared.weight")
    write_arrays(folder / "model.safetensors", state)
    import_folder(str(folder), str(tmp_path / "run"))
    same_bits(flat(transformer.load(str(tmp_path / "run"))[1]), flat(transformer.load(str(imported))[1]))
    state["model.decoder.embed_positions.weight"] = table[:, ::-1].copy()
    state["model.decoder.embed_tokens.weight"] = state["lm_head.weight"] + 1
    write_arrays(folder / "model.safetensors", state)
    tied = "model.decoder.embed_tokens.weight"
    assert complaint(import_folder, str(folder), str(tmp_path / "no")).split("; ") == [
        f"the Marian model: lm_head.weight and {tied} are both our embedding/table, but differ",
        "model.decoder.embed_positions.weight is not the table of sinusoids",
    ]


# ---- A workdir like any other ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_is_evaluated_fine_tuned_averaged_and_exported(call, opus, imported, tmp_path) -> None:
    for name, lines in (("en", SOURCE), ("de", TARGET)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines * 4))
    text = [f"--data.{name} {tmp_path / side}" for name, side in (("source", "en"), ("target", "de"))]
    text += [f"--data.dev_{name} {tmp_path / side}" for name, side in (("source", "en"), ("target", "de"))]
    done = call("evaluate.py", *f"--workdir {imported} --source {tmp_path}/en --reference {tmp_path}/de --json".split())
    assert done.code == 0 and json.loads(done.out)["sentences"] == 20
    model = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 32, "d_ff": 64, "heads": 2, "activation": "swish"}
    model |= {"attention_bias": True, "output_bias": True, "norm_eps": 1e-5}
    options = " ".join([*text, *(f"--model.{name} {value}" for name, value in model.items())])
    options += " --train.steps 4 --train.eval_every 2 --train.batch_tokens 256 --train.peak_learning_rate 1e-2"
    start = f"--config configs/text_files.py --workdir {tmp_path}/tuned --train.init_from {imported} "
    done = call("train.py", *(start + options).split())
    assert done.code == 0, done.err
    assert call("transformer", "average", tmp_path / "tuned", "--last", "2").code == 0
    tuned = Translator.load(str(tmp_path / "tuned"))
    assert tuned.tokenizer.file == transformer.load(str(imported)).tokenizer.file
    # Training has changed the embedding of bos: an export gives it a piece of its own.
    assert call("transformer", "export", tmp_path / "tuned", tmp_path / "out", "--to", "hf-marian").code == 0
    vocabulary, config = (content(tmp_path / "out")[name] for name in ("vocab.json", "config.json"))
    assert (vocabulary["<s>"], config["vocab_size"]) == (97, 98)
    assert [config[name] for name in SPECIAL] == [96, 0, 97]
    assert call("transformer", "import", tmp_path / "out", tmp_path / "back", "--from", "hf-marian").code == 0
    back = Translator.load(str(tmp_path / "back"), config=tuned.config)
    same_bits(flat(tuned.params), flat(back.params))
    assert back.translate(SOURCE) == tuned.translate(SOURCE)


def test_banned_phrases_and_the_other_options_go_out_and_come_back(tmp_path, caplog) -> None:
    options = {"min_length": 3, "no_repeat_ngram": 2, "repetition_penalty": 1.5, "banned": ("km", "rot", "big dog")}
    workdir = translation_run(tmp_path / "run", **options, beam_size=2)
    export(str(workdir), str(tmp_path / "out"))
    made = content(tmp_path / "out")
    phrases = Translator.load(str(workdir)).tokenizer.encode(options["banned"], "target")
    assert made["generation_config.json"]["bad_words_ids"] == phrases
    assert {len(one) for one in phrases} > {1}
    import_folder(str(tmp_path / "out"), str(tmp_path / "back"))
    decode = transformer.load(str(tmp_path / "back")).config.decode
    assert sorted(decode.banned) == sorted(options["banned"]) and decode.min_length == 3 and not caplog.text


def test_sampling_goes_out(tmp_path) -> None:
    workdir = translation_run(tmp_path / "run", sample=True, temperature=0.7, top_k=9, top_p=0.9, min_p=0.1)
    export(str(workdir), str(tmp_path / "out"))
    made = content(tmp_path / "out")["generation_config.json"]
    expected = {"do_sample": True, "num_beams": 1, "temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.1}
    assert made == made | expected


def test_two_pieces_with_one_name_are_refused(tmp_path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=60,
        user_defined_symbols=["<pad>"],
        minloglevel=2,
    )
    workdir = translation_run(tmp_path / "run", pieces=Tokenizer(model.getvalue()))
    said = complaint(export, str(workdir), str(tmp_path / "out"))
    assert said.startswith("the tokenizer has two pieces named '<pad>': Marian can't tell them apart; export the model")
    assert not (tmp_path / "out").exists()


# ---- What is refused -------------------------------------------------------------------------------------------------


def test_all_fields_that_cannot_be_expressed_are_named_at_once(opus, tmp_path) -> None:
    wrong = {
        "activation_function": "tanh",
        "decoder_attention_heads": 4,
        "decoder_vocab_size": 50,
        "normalize_before": True,
        "normalize_embedding": True,
        "share_encoder_decoder_embeddings": False,
        "static_position_embeddings": False,
        "tie_word_embeddings": False,
        "dropout": 2,
        "eos_token_id": [0],
        "scale_embedding": "yes",
        "max_position_embeddings": 0,
        "encoder_layers": 1.5,
    }
    folder = changed(opus, tmp_path, **wrong)
    said = complaint(import_folder, str(folder), str(tmp_path / "run"))
    assert said.startswith(f"{folder / 'config.json'}: ")
    for name in wrong:
        assert name in said
    assert said.count(";") >= len(wrong) - 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "bart"}, "model_type = 'bart': must be 'marian' for hf-marian"),
        ({"d_model": 33, "encoder_attention_heads": 1, "decoder_attention_heads": 1}, "must be even for sinusoidal"),
        ({"length_penalty": -1.0, "num_beams": 0}, "num_beams = 0: must be a whole number, at least 1; length_penalty"),
        ({"max_length": "x"}, "max_length = 'x': must be a whole number, at least 3"),
        ({"bad_words_ids": [96]}, "bad_words_ids must be a list of lists of ids"),
        ({"pad_token_id": 3}, "pad_token_id = 3, but its id in vocab.json is 96; give the tokenizer of this model"),
        ({"vocab_size": 90, "decoder_vocab_size": 90}, "has 97 pieces, but config.json has vocab_size 90"),
        ({"decoder_start_token_id": 97}, "the id of start is 97: must be from 0 to 96"),
        ({"vocab_size": 2**31 - 1, "decoder_vocab_size": 2**31 - 1}, "but model.shared.weight has 97 rows"),
        ({"transformer_model": {"norm_eps": 1e-5}}, "config.json: transformer_model: model.attention_bias = None"),
        ({"max_new_tokens": 1}, "max_new_tokens = 1: must be a whole number, at least 2"),
        ({"renormalize_logits": "yes"}, "renormalize_logits = 'yes': must be true or false"),
        ({"d_ff": None, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}, "fc1.weight has shape (64, 32), not (32, 32)"),
    ],
)
def test_a_wrong_field_is_named(opus, tmp_path, changes: dict, said: str) -> None:
    assert said in complaint(import_folder, str(changed(opus, tmp_path, **changes)), str(tmp_path / "run"))


def test_the_activation_of_a_config_without_one_is_that_of_marian(opus, tmp_path) -> None:
    import_folder(str(changed(opus, tmp_path, activation_function=None)), str(tmp_path / "run"))
    assert transformer.load(str(tmp_path / "run"))[0].config.activation == "gelu"


def test_what_has_no_counterpart_is_named_in_a_warning(call, opus, tmp_path) -> None:
    folder = changed(opus, tmp_path, early_stopping=True, encoder_layerdrop=0.1, made_up=3, bad_words_ids=[[1, 2]])
    done = call("transformer", "import", folder, tmp_path / "run", "--from", "hf-marian")
    assert done.code == 0
    assert "left out: encoder_layerdrop, made_up" in done.err
    assert "left out: early_stopping" in done.err
    assert "bad_words_ids or suppress_tokens [1, 2]: left out, no text has these pieces" in done.err


def test_a_folder_that_lacks_files_or_holds_wrong_ones_is_named(call, opus, tmp_path) -> None:
    def refused(name: str, new: object = None) -> str:
        """What import says if the file is missing, or is `new`."""
        folder = changed(opus, tmp_path)
        (folder / name).unlink()
        if new is not None:
            (folder / name).write_text(new if isinstance(new, str) else json.dumps(new))
        done = call("transformer", "import", folder, tmp_path / "run", "--from", "hf-marian")
        shutil.rmtree(folder)
        assert (done.code, done.out, done.err.count("\n"), (tmp_path / "run").exists()) == (2, "", 1, False)
        return done.err.replace(str(folder), "F")

    vocabulary = json.loads((opus / "vocab.json").read_text())
    assert refused("source.spm").startswith("error: F: holds no source.spm; give the folder with the tokenizer")
    assert "F/target.spm: not a SentencePiece model" in refused("target.spm", "x")
    assert "F/vocab.json: not valid JSON" in refused("vocab.json", "{")
    assert "the ids of its 97 pieces must be 0 to 96" in refused("vocab.json", vocabulary | {"e": 200})
    assert "the id of 'e' is '3': must be a whole number" in refused("vocab.json", vocabulary | {"e": "3"})
    renamed = {piece.replace("<unk>", "<UNK>"): i for piece, i in vocabulary.items()}
    assert "F/vocab.json: has no piece '<unk>', the unk_token" in refused("vocab.json", renamed)
    assert "separate_vocabs = true" in refused("tokenizer_config.json", {"separate_vocabs": True})
    assert "F: holds no model.safetensors" in refused("model.safetensors")
    assert "F: holds no config.json" in refused("config.json")
    folder = changed(opus, tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    done = call("transformer", "import", folder, tmp_path / "run", "--from", "hf-marian")
    assert "MarianMTModel.from_pretrained(folder).save_pretrained(new_folder)" in done.err


def test_all_that_is_wrong_in_the_arrays_is_named_at_once(opus, tmp_path) -> None:
    folder = changed(opus, tmp_path)
    state = dict(read_arrays(opus / "model.safetensors"))
    del state["final_logits_bias"]
    state["surplus"] = np.zeros(3, np.float32)
    state["model.encoder.layers.0.fc1.bias"][0] = np.inf
    state["model.encoder.layers.0.fc2.bias"] = np.zeros(32, np.int32)
    write_arrays(folder / "model.safetensors", state)
    assert complaint(import_folder, str(folder), str(tmp_path / "run")).split("; ") == [
        "the Marian model: missing final_logits_bias",
        "unknown surplus",
        "model.encoder.layers.0.fc1.bias holds numbers that are not finite",
        "model.encoder.layers.0.fc2.bias is of type int32, not float32",
    ]


def test_special_ids_of_generation_must_be_those_of_the_model(opus, tmp_path) -> None:
    folder = changed(opus, tmp_path)
    special = {"eos_token_id": [0], "pad_token_id": 96, "decoder_start_token_id": None}
    (folder / "generation_config.json").write_text(json.dumps(special))
    import_folder(str(folder), str(tmp_path / "same"))
    special = {"eos_token_id": [0, 5], "pad_token_id": 3, "decoder_start_token_id": 5}
    (folder / "generation_config.json").write_text(json.dumps(special))
    said = complaint(import_folder, str(folder), str(tmp_path / "run"))
    assert said.startswith(f"{folder}/generation_config.json: pad_token_id = 3, but config.json has 96, and our model")
    assert "eos_token_id = [0, 5], but config.json has 0" in said and "decoder_start_token_id = 5" in said


def test_ids_without_a_piece_are_never_read(opus, tmp_path, caplog) -> None:
    write_opus(folder := tmp_path / "opus", vocab_size=99, decoder_vocab_size=99)
    import_folder(str(folder), str(tmp_path / "run"))
    assert "the last 2 ids of the model have no piece in it" in caplog.text
    assert transformer.load(str(tmp_path / "run"))[0].config.vocab_size == 100


# ---- Against transformers --------------------------------------------------------------------------------------------


@pytest.fixture
def transformers():
    """The package; skips the test without it."""
    pytest.importorskip("torch", reason="the comparison with Hugging Face's Marian needs torch")
    return pytest.importorskip("transformers", reason="the comparison with Hugging Face's Marian needs transformers")


pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
SHAPES = {
    "as Opus-MT": {},
    "deeper": {"encoder_layers": 3, "decoder_layers": 2, "d_model": 48, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40},
    "gelu, not scaled": {"activation_function": "gelu", "scale_embedding": False},
    "relu, begins with </s>": {"activation_function": "relu", "decoder_start_token_id": 0},
}


def saved(transformers, folder: Path, **changes) -> Path:
    """A folder of Opus-MT's form whose model `MarianMTModel` made and saved, with random numbers."""
    import torch

    config = write_opus(folder, model=False, **changes)
    legacy = ("bad_words_ids", "num_beams", "max_length", "no_repeat_ngram_size", "renormalize_logits")
    options = {name: config.pop(name) for name in legacy if name in config}
    model = transformers.MarianMTModel(transformers.MarianConfig(**config))
    state = {name: torch.from_numpy(array) for name, array in state_of(config).items()}
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    model.generation_config = transformers.GenerationConfig.from_model_config(model.config)
    model.generation_config.update(**options)
    model.save_pretrained(folder)
    return folder


def both(transformers, folder: Path, workdir: Path):
    """Their model and tokenizer, and our translator."""
    import_folder(str(folder), str(workdir))
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder), Translator.load(str(workdir))


def same_search(transformers, folder: Path, translator: Translator, sentences: list[str]) -> None:
    """Our translations are theirs, with the same scores.

    Their search with beams drops hypotheses that end outside the best continuations. Where it thus finds another
    translation, their own model must give ours a better score.
    """
    import torch

    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer, generation = transformers.AutoTokenizer.from_pretrained(folder), model.generation_config
    beams, alpha = generation.num_beams or 1, 1.0 if generation.length_penalty is None else generation.length_penalty
    ours = [found[0] for found in translator.translate_n_best(sentences)]
    batch = tokenizer(list(sentences), return_tensors="pt", padding=True)
    options = {"early_stopping": "never"} if beams > 1 else {}
    with torch.inference_mode():
        found = model.generate(**batch, **options, return_dict_in_generate=True, output_scores=True)
    texts = tokenizer.batch_decode(found.sequences, skip_special_tokens=True)
    ids = [tokenizer.convert_tokens_to_ids([translator.tokenizer.piece(i) for i in one.tokens]) for one in ours]
    config = model.config
    targets = padded([[config.decoder_start_token_id, *row, config.eos_token_id] for row in ids], config.pad_token_id)
    with torch.no_grad():
        logits = model(**batch, decoder_input_ids=torch.from_numpy(targets[:, :-1])).logits
    if generation.renormalize_logits:
        logits[..., config.pad_token_id] = -torch.inf
    log_probs = logits.log_softmax(-1).numpy()
    sums = [sum(log_probs[b, t, i] for t, i in enumerate(row)) for b, row in enumerate([*r, 0] for r in ids)]
    scores = [total / (len(row) + 1) ** alpha for total, row in zip(sums, ids, strict=True)]
    np.testing.assert_allclose([one.score for one in ours], scores, atol=1e-5, rtol=0)
    same = [one.text == text for one, text in zip(ours, texts, strict=True)]
    assert len(set(texts)) > 2
    if beams == 1:
        assert all(same)
        return
    assert any(same)
    for one, text, score in zip(ours, texts, found.sequences_scores.tolist(), strict=True):
        if len(one.tokens) + 2 < generation.max_length:  # at its limit, theirs counts the end as certain
            assert one.score > score + 1e-5 if one.text != text else abs(one.score - score) < 1e-5


def padded(rows: list[list[int]], pad: int) -> np.ndarray:
    return np.array([row + [pad] * (max(map(len, rows)) - len(row)) for row in rows])


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_their_logits_are_ours(transformers, tmp_path, changes: dict) -> None:
    import torch

    model, theirs, ours = both(transformers, saved(transformers, tmp_path / "opus", **changes), tmp_path / "run")
    tokenizer = ours.tokenizer
    sources = [[*ids, EOS] for ids in tokenizer.encode(SOURCE)]
    targets = padded([[BOS, *ids] for ids in tokenizer.encode(TARGET, "target")], UNK)
    logits = np.asarray(ours.model.apply(ours.params, padded(sources, PAD), targets))
    batch = theirs(list(SOURCE), return_tensors="pt", padding=True)
    with torch.inference_mode():
        given = torch.from_numpy(np.array(tokenizer.their_ids)[targets])
        expected = model(**batch, decoder_input_ids=given).logits.numpy()[..., tokenizer.their_ids]
    assert np.abs(expected).max() > 3
    without_bos = np.arange(logits.shape[-1]) != BOS
    np.testing.assert_allclose(logits[..., without_bos], expected[..., without_bos], atol=1e-5, rtol=0)
    assert np.all(logits[..., BOS] < -80)


def test_their_tokens_are_ours(transformers, opus, imported) -> None:
    theirs = transformers.MarianTokenizer.from_pretrained(opus)
    ours = transformer.load(str(imported)).tokenizer
    for line in (*ODD, *SOURCE, *TARGET):
        for side, ids in (("source", theirs(line)["input_ids"]), ("target", theirs(text_target=line)["input_ids"])):
            given = [*ours.encode([line], side)[0], EOS]
            assert [ours.their_ids[i] for i in given] == ids, (side, line)
            assert theirs.decode(ids, skip_special_tokens=True) == ours.decode([given])[0], (side, line)


OPTIONS = {
    "beams": {"no_repeat_ngram_size": 1},
    "greedy": {"num_beams": 1, "no_repeat_ngram_size": 1},
    "shorter": {"length_penalty": 0.3, "no_repeat_ngram_size": 1},
    "renormalized": {"renormalize_logits": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_their_beams_are_ours(transformers, tmp_path, options: dict) -> None:
    folder = saved(transformers, tmp_path / "opus", **options)
    import_folder(str(folder), str(tmp_path / "run"))
    translator = Translator.load(str(tmp_path / "run"))
    same_search(transformers, folder, translator, [*SOURCE, *(line for line in ODD if line.strip())])


def test_a_trained_import_goes_out_to_auto_classes(transformers, imported, tmp_path) -> None:
    """As after fine-tuning: bos and padding are no longer one row."""
    model, params = loaded = transformer.load(str(imported))
    table = np.array(params["embedding"]["table"])
    table[[BOS, PAD]] += np.random.default_rng(0).normal(size=(2, 32)).astype(np.float32) * 0.3
    params = {**params, "embedding": {"table": table}}
    transformer.save(str(tmp_path / "tuned"), model, params, loaded.tokenizer, config=loaded.config)
    export(str(tmp_path / "tuned"), str(tmp_path / "out"))
    _, report = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    same_search(transformers, tmp_path / "out", Translator.load(str(tmp_path / "tuned")), [*SOURCE, "h", "a 12"])


def test_an_export_of_ours_works_as_it_lies(transformers, trained, tmp_path) -> None:
    """AutoTokenizer gives our pieces, also of unusual text, and `generate` our translations."""
    export(str(trained), str(tmp_path / "out"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert type(tokenizer) is transformers.MarianTokenizer
    translator = Translator.load(str(trained))
    ours = translator.tokenizer
    for line in (*ODD, "</s> <pad> <s>", *(trained / "sets/test.source").read_text().splitlines()[:20]):
        if line.startswith(">>"):  # for MarianTokenizer the code of a language
            continue
        for side, ids in (
            ("source", tokenizer(line)["input_ids"]),
            ("target", tokenizer(text_target=line)["input_ids"]),
        ):
            assert ids == [*ours.encode([line], side)[0], EOS], (side, line)
            assert tokenizer.decode(ids, skip_special_tokens=True) == ours.decode([ids])[0].strip()
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    assert model.generation_config.num_beams == translator.config.beam_size
    assert model.generation_config.max_length == 30 + 5 + 2
