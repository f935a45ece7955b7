"""`export --to jax`: the folder gives our numbers and texts in a process that has neither this package nor Flax."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hf_cases import random_params
from small_runs import (
    DECODER,
    LINES,
    SEQUENCES,
    labelled_run,
    language_run,
    masked_run,
    random_ids,
    run_readme,
    tokenizer,
    translation_run,
    write_run,
)

from transformer.checkpoint import Checkpoints
from transformer.config import AttentionConfig, Config, DecodeConfig, ModelConfig, ParsingConfig
from transformer.data.labels import Labels
from transformer.data.vocabularies import Bytes, Characters
from transformer.inference.generator import Generator
from transformer.inference.strategy import strategy
from transformer.inference.translator import Translator
from transformer.model import build
from transformer.tools import jax_export
from transformer.tools.formats import VARIANTS
from transformer.tools.hf.names import flat

for module in ("flatbuffers", "safetensors"):
    pytest.importorskip(module, reason=f"export --to jax needs {module}")
from jax import export  # noqa: E402

pytestmark = pytest.mark.slow  # it compiles much


@pytest.fixture
def alone(environment, tmp_path: Path):
    """`alone(folder, arrays, function, lines)`: what the folder gives, in such a process (see alone.py)."""

    def alone(folder: Path, arrays, function: str | None = None, lines=()) -> tuple[list[np.ndarray], list]:
        asked = {"arrays": [np.asarray(x).tolist() for x in arrays], "function": function, "lines": list(lines)}
        done = subprocess.run(
            [
                os.environ.get("TRANSFORMER_ALONE", sys.executable),
                str(Path(__file__).with_name("alone.py")),
                str(folder),
            ],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            env={**environment, "PYTHONPATH": ""},
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found = json.loads(done.stdout)
        return [np.array(x, np.float32) for x in found["forward"]], found.get("results")

    return alone


@pytest.fixture
def short(monkeypatch) -> None:
    """Few and small programs, so that the test is quick."""
    monkeypatch.setattr(jax_export, "ROWS", (1, 4))
    monkeypatch.setattr(jax_export, "LENGTHS", (8, 16))


def ours(workdir: Path, *arrays, **more) -> list[np.ndarray]:
    model, params = Checkpoints(workdir).read(None, lambda opened: (opened.model, opened.params()))
    return [np.asarray(x) for x in jax.tree.leaves(jax.jit(model.apply)(params, *arrays, **more))]


def close(found: list[np.ndarray], expected: list[np.ndarray], atol: float = 2e-5) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=atol)


# ---- Folders ---------------------------------------------------------------------------------------------------------


def test_translations_are_ours(call, alone, trained: Path, tiny, short, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    done = call("transformer", "export", trained, folder, "--to", "jax")
    assert (done.code, done.out) == (0, f"{folder}\n")
    lines = ["", *(tiny.folder / "test.en").read_text().splitlines()[:9], "  "]
    rng = np.random.default_rng(0)
    source_BS, target_BT = (random_ids(rng, 3, n, size=400) for n in (7, 5))
    source_BS[1, 4:] = target_BT[1, 3:] = 0
    logits, texts = alone(folder, [source_BS, target_BT], "translate", lines)
    close(logits, ours(trained, source_BS, target_BT))
    assert texts == Translator.load(str(trained)).translate(lines) and any(texts)
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("forward.jax", "search_1x8.jax", "search_4x8.jax", "search_1x16.jax", "search_4x16.jax"),
        *("MODEL_CARD.md", "README.md", "loader.py", "programs.json", "model.safetensors", "source.spm", "target.spm"),
    }
    assert (folder / "loader.py").read_bytes() == Path(jax_export.__file__).with_name("jax_loader.py").read_bytes()
    for path in folder.glob("*.jax"):
        assert export.deserialize(bytearray(path.read_bytes())).platforms == ("cpu", "cuda", "tpu")


def test_constraints_and_n_best_go_along(alone, short, tmp_path: Path) -> None:
    """Random parameters; a ready tokenizer whose ids are not ours; scores, too."""
    decode = {"n_best": 3, "min_length": 2, "no_repeat_ngram": 2, "banned": ("Haus",), "repetition_penalty": 1.3}
    workdir = translation_run(tmp_path / "run", **decode)
    folder = jax_export.write_folder(str(workdir), str(tmp_path / "out"))
    ids = tokenizer().encode(LINES)
    (program,) = [line for line in (folder / "README.md").read_text().splitlines() if line.startswith("def translate")]
    assert program == "def translate(lines):"
    ids = [line[:16] for line in ids]
    _, found = alone(folder, [[[5, 2]], [[1]]], "search", ids)
    expected = dict(Translator.load(str(workdir)).search(ids))
    for i, pairs in enumerate(found):
        tokens, scores = expected[i]
        assert [pair[0] for pair in pairs] == tokens[:3]
        np.testing.assert_allclose([pair[1] for pair in pairs], scores[:3], atol=1e-4)


def test_more_pieces_than_learned_positions_are_refused(tmp_path: Path, monkeypatch) -> None:
    """JAX itself would take the last position for them, silently."""
    model = dataclasses.replace(DECODER, positions="learned", max_positions=30)
    workdir = language_run(tmp_path / "run", Bytes(), model)
    monkeypatch.setattr(jax_export, "_searches", lambda *_: {})
    folder = jax_export.write_folder(str(workdir), str(tmp_path / "out"))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "loader", raising=False)
    import loader

    close([np.asarray(loader.forward(np.ones((2, 30), np.int32)))], ours(workdir, np.ones((2, 30), np.int32)))
    with pytest.raises(ValueError, match="a row has 31 ids; this model has learned only 30 positions"):
        loader.forward(np.ones((2, 31), np.int32))
    monkeypatch.delitem(sys.modules, "loader")


def test_the_code_of_a_language_is_one_piece(short, tmp_path: Path, monkeypatch) -> None:
    """In a folder that was imported from Opus-MT's form."""
    from opus import ODD, SOURCE, write_opus

    from transformer.tools.hf.marian_folder import import_folder

    write_opus(tmp_path / "opus", no_repeat_ngram_size=1)
    import_folder(str(tmp_path / "opus"), str(tmp_path / "run"))
    folder = jax_export.write_folder(str(tmp_path / "run"), str(tmp_path / "out"))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "loader", raising=False)
    names, tokenizer = run_readme(folder, monkeypatch), Translator.load(str(tmp_path / "run")).tokenizer
    for line in (*ODD, *SOURCE, ">>de<< " + SOURCE[0]):
        ids = [names["ids"].get(piece, 3) for piece in names["pieces_of"](line)]
        assert ids == tokenizer.encode([line])[0], line
    monkeypatch.delitem(sys.modules, "loader")


def test_too_long_a_text_is_told(short, tmp_path: Path, monkeypatch) -> None:
    folder = jax_export.write_folder(str(translation_run(tmp_path / "run")), str(tmp_path / "out"))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "loader", raising=False)
    import loader

    with pytest.raises(ValueError, match=r"a text has 17 ids; the programs in .* take \[\[1, 8\], .* \(texts, ids\)"):
        loader.search([[5], [5] * 17])
    assert loader.search([]) == [] and loader.search([[]]) == [[]]
    monkeypatch.delitem(sys.modules, "loader")


VOCABULARIES = {"characters": Characters("".join(LINES)), "bytes": Bytes()}
SAMPLING = {"sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "seed": 5}


@pytest.mark.parametrize(("kind", "decode"), [("characters", {"beam_size": 2}), ("bytes", SAMPLING)])
def test_texts_go_on_as_ours(alone, short, kind: str, decode: dict, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    workdir = language_run(tmp_path / "run", VOCABULARIES[kind], max_extra_length=6, **decode)
    folder = jax_export.write_folder(str(workdir), str(tmp_path / "out"))
    prompts = ["the red", "", "a </s> in", "dog", "the cat"]
    tokens_BT = random_ids(np.random.default_rng(0), 2, 11, size=30)
    config = DecodeConfig(max_extra_length=6, **{**decode, "seed": 0})  # the loader's seed is 0
    logits, texts = alone(folder, [tokens_BT], "generate", prompts)
    close(logits, ours(workdir, tokens_BT))
    assert texts == Generator.load(str(workdir), config=config).generate(prompts) and any(texts)


def test_a_language_model_without_a_vocabulary_has_the_forward_pass(alone, tmp_path: Path) -> None:

    from transformer.config import LanguageModelConfig, TextConfig

    config = LanguageModelConfig(DECODER.with_vocabulary(30), TextConfig(context=24))
    workdir = write_run(tmp_path / "run", config, {})
    folder = jax_export.write_folder(str(workdir), str(tmp_path / "out"))
    tokens_BT = random_ids(np.random.default_rng(0), 2, 5, size=30)
    close(alone(folder, [tokens_BT])[0], ours(workdir, tokens_BT))
    assert json.loads((folder / "programs.json").read_text()) == {
        "forward": ["tokens_BT"],
        "search": [],
        "positions": None,
    }


def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, mask and types of three rows of an encoder."""
    tokens_BT = random_ids(np.random.default_rng(1), 3, 9, size=50)
    mask_BT = np.arange(9) < np.array([9, 4, 6])[:, None]
    return tokens_BT, mask_BT, (np.arange(9) > 3).astype(np.int32) * np.ones((3, 1), np.int32)


@pytest.mark.parametrize("head", ["none", "masked", "pretraining"])
def test_an_encoder_gives_our_outputs(alone, head: str, tmp_path: Path) -> None:
    workdir = masked_run(tmp_path / "run", head)
    folder = jax_export.write_folder(str(workdir), str(tmp_path / "out"))
    tokens_BT, mask_BT, types_BT = rows()
    found, _ = alone(folder, [tokens_BT, mask_BT, types_BT])
    close(found, ours(workdir, tokens_BT, types_BT=types_BT, mask_BT=mask_BT))
    assert (folder / "tokenizer.json").exists()


def test_labels_and_the_scale_of_numbers_go_along(alone, tmp_path: Path) -> None:
    labels = Labels("regression", "pearson", pairs=False, mean=2.5, scale=1.5)
    workdir = labelled_run(tmp_path / "run", labels)
    folder = jax_export.write_folder(str(workdir), str(tmp_path / "out"))
    tokens_BT, mask_BT, types_BT = rows()
    found, _ = alone(folder, [tokens_BT, mask_BT, types_BT])
    (raw,) = ours(workdir, tokens_BT, types_BT=types_BT, mask_BT=mask_BT)
    close(found, [raw * 1.5 + 2.5], 5e-5)
    assert (folder / "labels.json").read_bytes() == labels.file[1]


def test_a_parser_reads_its_words(alone, tmp_path: Path) -> None:
    config = ModelConfig(1, 2, 16, 24, 2, vocab_size=23, head="token", labels=3, hard_attention=True)
    workdir = write_run(tmp_path / "run", ParsingConfig(config), {})
    folder = jax_export.write_folder(str(workdir), str(tmp_path / "out"))
    rng = np.random.default_rng(0)
    for S, T in ((5, 3), (8, 9)):
        ids = random_ids(rng, 2, S, size=23), random_ids(rng, 2, T, size=23)
        words = rng.random((2, S)) < 0.5, np.cumsum(rng.random((2, T)) < 0.5, axis=1).astype(np.int32)
        close(alone(folder, [*ids, *words])[0], ours(workdir, *ids, words=words))


# ---- Random models ---------------------------------------------------------------------------------------------------


def drawn(seed: int) -> ModelConfig:
    """A random encoder-decoder, with any of the variants."""
    draw = random.Random(seed)
    heads = draw.choice((1, 2, 4))
    pick = {
        name: draw.choice([change[name] for change in VARIANTS[name] if name in change])
        for name in (
            *("activation", "pre_norm", "input_norm", "norm_bias", "attention_bias", "output_bias", "embedding_scale"),
            *("tied_embeddings", "attention_score", "dtype"),
        )
    }
    return ModelConfig(
        encoder_layers=draw.randrange(1, 3),
        decoder_layers=draw.randrange(1, 4),
        d_model=8 * heads,
        d_ff=draw.choice((5, 16)),
        heads=heads,
        vocab_size=23,
        kv_sharing=draw.choice((1, 2)),
        encoder_attention=AttentionConfig(window=draw.choice((None, 2))),
        cross_attention=AttentionConfig(kv_heads=draw.choice((None, 1))),
        d_v=draw.choice((None, 6)),
        positions=draw.choice(("sinusoidal", "learned", "rotary", "none")),
        max_positions=40,
        **pick,
    )


def run_exported(program: jax_export.Program, params, *arrays):
    """The program, after it has been stored as bytes and read again."""
    content = jax_export.serialized(program, params)
    return jax.jit(export.deserialize(bytearray(content)).call)(params, *arrays)


@pytest.mark.parametrize("seed", range(3))
def test_random_models_have_our_logits_and_outputs(seed: int) -> None:
    config = drawn(seed)
    model, params = build(config), random_params(config)
    program, names = jax_export.forward(model)
    assert names == ["source_BS", "target_BT"]
    rng = np.random.default_rng(seed)
    atol = 2e-5 if config.dtype == "float32" else 0.05
    for S, T in ((5, 3), (8, 9)):
        source_BS, target_BT = random_ids(rng, 2, S, size=23), random_ids(rng, 2, T, size=23)
        found = run_exported(program, flat(params), source_BS, target_BT)
        close([np.asarray(found)], [np.asarray(jax.jit(model.apply)(params, source_BS, target_BT))], atol)
    decode = DecodeConfig(beam_size=2, max_extra_length=4)
    search = jax_export.translations(model, strategy(decode, None), Config(config, decode=decode), 3, 8)
    lines = [random_ids(rng, n, size=23).tolist() for n in (8, 3)]
    tokens_BS = np.zeros((3, 8), np.int32)
    for row, line in enumerate(lines):
        tokens_BS[row, : len(line)] = line
    found = run_exported(search, flat(params), tokens_BS, np.array([8, 3, 0], np.int32), np.uint32(0), np.int32(0))
    assert found["lengths"][2, 0] == 0  # an empty row gives nothing
    if config.dtype == "float32":
        for i, (tokens, scores) in Translator(model, params, None, decode).search(lines):
            ids = found["tokens"][i, 0, : int(found["lengths"][i, 0])].tolist()
            assert [x for x in ids if x != 2] == tokens[0]
            np.testing.assert_allclose(found["scores"][i, 0], scores[0], atol=1e-4)


def test_the_kernel_of_one_device_is_not_stored(tmp_path: Path, monkeypatch) -> None:
    def asked(*_) -> bool:
        raise AssertionError("the kernel depends on the device")

    monkeypatch.setattr("transformer.model.attention.fusible", asked)
    model = dataclasses.replace(SEQUENCES, attention_kernel="cudnn", dtype="bfloat16")
    workdir = translation_run(tmp_path / "run", model)
    opened = Checkpoints(workdir).read(None, jax_export._open)
    assert jax_export.serialized(opened.programs["forward"], opened.params)


def test_half_the_context_is_for_new_pieces() -> None:
    from transformer.config import LanguageModelConfig, TextConfig

    def new(context: int, **decode) -> int:
        config = LanguageModelConfig(DECODER, TextConfig(context=context), decode=DecodeConfig(**decode))
        return jax_export.new_pieces(config, DECODER)

    assert [new(100), new(60), new(60, max_length=7), new(2, max_length=1), new(60, max_extra_length=0)] == [
        50,
        30,
        7,
        1,
        1,
    ]


def test_without_the_package_it_says_what_to_install(call, trained: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    done = call("transformer", "export", trained, tmp_path / "out", "--to", "jax")
    wanted = "export --to jax needs flatbuffers, which is not installed: pip install 'transformer[jax]'"
    assert (done.code, done.err.splitlines()[-1]) == (2, f"error: {wanted}")
    assert os.listdir(tmp_path) == []
