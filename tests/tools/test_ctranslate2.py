"""CTranslate2: refusals; and where it is installed, log-probabilities, translations and alignments."""

from __future__ import annotations

import dataclasses
import random
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_cases import complaint, random_params
from small_runs import LINES, SEQUENCES, language_run, masked_run, run_readme, tokenizer, translation_run

from transformer.checkpoint import Checkpoints
from transformer.config import BASE, GPT2, AttentionConfig, DecodeConfig, ModelConfig, UserError
from transformer.data.vocabularies import Bytes, Characters, SentencePiece
from transformer.inference.generator import Generator
from transformer.inference.translator import Translator
from transformer.model import build
from transformer.tools import ctranslate2 as ours
from transformer.tools.formats import EXPORTS, VARIANTS, expressible

VOCABULARY = 37
PIECES = ["<pad>", "<s>", "</s>", "<unk>", *(f"piece{i}" for i in range(4, VOCABULARY))]


@pytest.fixture(scope="module")
def theirs():
    """The module `ctranslate2`; skips the test without it."""
    return pytest.importorskip("ctranslate2", reason="the comparison with CTranslate2 needs ctranslate2")


# ---- Refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"attention_score": "additive"},
        {"d_v": 96},
        {"kv_sharing": 2},
        {"encoder_attention": AttentionConfig(window=0)},
        {"decoder_attention": AttentionConfig(window=4)},
        {"cross_attention": AttentionConfig(window=4)},
        {"encoder_attention": AttentionConfig(kv_sharing=2)},
        {"decoder_attention": AttentionConfig(kv_sharing=3)},
        {"target_vocab_size": 50, "tied_embeddings": "target"},
        {"head": "token", "labels": 2},
    ],
)
def test_what_it_cannot_express_is_refused_by_name(change: dict) -> None:
    (name, value), *_ = change.items()
    name += next((f".{field}" for field, x in vars(value).items() if x is not None), "") if name in KINDS else ""
    said = complaint(ours.refuse_inexpressible, dataclasses.replace(BASE, **change))
    assert f"model.{name} = " in said and "CTranslate2 can't express it" in said


KINDS = ("encoder_attention", "decoder_attention", "cross_attention")


def test_an_encoder_alone_is_refused() -> None:
    assert "needs a model with a decoder" in complaint(
        ours.refuse_inexpressible, dataclasses.replace(BASE, decoder_layers=0)
    )


def test_sharing_is_refused_only_where_layers_share() -> None:
    for change in (
        {"cross_attention": AttentionConfig(kv_sharing=2)},
        {"kv_sharing": 2, "encoder_layers": 1, "decoder_layers": 1},
    ):
        ours.refuse_inexpressible(dataclasses.replace(BASE, **change))


def test_mistakes_on_the_command_line(call, theirs, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = call("transformer", "export", trained, out, "--to", "hf-marian", "--quantization", "int8")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: --quantization int8: hf-marian has no such option; it is of ctranslate2 alone\n"
    done = call("transformer", "export", trained, out, "--to", "ctranslate2", "--quantization", "int4")
    assert done.code == 2 and "invalid choice: 'int4'" in done.err
    masked = masked_run(tmp_path / "masked", "masked")
    done = call("transformer", "export", masked, out, "--to", "ctranslate2")
    assert done.code == 2 and done.err.startswith(f"error: {masked}: its task is 'masked'")
    assert not out.exists()


def test_two_pieces_with_one_name_are_refused(theirs) -> None:
    model = build(SEQUENCES.with_vocabulary(VOCABULARY))
    twice = [*PIECES[:-1], "<unk>"]
    said = complaint(ours.spec_of, random_params(model.config), model.config, twice, (0, 1), 16)
    assert said.startswith("the tokenizer has two pieces named '<unk>': CTranslate2 can't tell them apart; export")


def test_numbers_beyond_a_type_are_refused(theirs) -> None:
    """They would become infinite."""
    model = build(SEQUENCES.with_vocabulary(VOCABULARY))
    params = random_params(model.config)
    params["embedding"]["table"][5, 1] = 70_000
    for quantization in ("float32", "int8"):
        ours._quantize(ours.spec_of(params, model.config, PIECES, (0, 1), 16), quantization)
    said = complaint(ours._quantize, ours.spec_of(params, model.config, PIECES, (0, 1), 16), "float16")
    assert said.startswith("--quantization float16: ") and "has numbers that are too large for it; give float32" in said


def test_a_model_that_the_disk_does_not_hold_is_not_sealed(theirs, tmp_path: Path, monkeypatch) -> None:
    save, draw = theirs.specs.TransformerSpec.save, random.Random(0)

    def lying(spec, folder: str) -> None:
        save(spec, folder)
        path = Path(folder) / "model.bin"
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1
        path.write_bytes(content)

    monkeypatch.setattr(theirs.specs.TransformerSpec, "save", lying)
    translation_run(tmp_path / "run")
    said = complaint(ours.export, str(tmp_path / "run"), str(tmp_path / "out"))
    assert "model.bin cannot be written (it does not hold what was written)" in said
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# ---- Log-probabilities -----------------------------------------------------------------------------------------------


TEXTS = [[5, 9, 30, 12], [7], [33, 6, 6, 21, 14, 8, 36, 11, 17]]
STARTS = [[8, 20, 4, 4], [35, 11, 7, 29, 10, 13, 22], [19, 5, 31]]
MOST = 9  # pieces of an output


def our_log_probs(config: ModelConfig, params, targets: list[list[int]]) -> np.ndarray:
    """Log-probabilities of all pieces at each position of the targets, given `TEXTS`, without pad and bos.

    All calls for a model have one shape.
    """

    def padded(lists: list[list[int]]) -> np.ndarray:
        return np.array([[*ids, *[0] * (2 * MOST - len(ids))] for ids in lists], np.int32)

    sources = [padded([[*text, 2] for text in TEXTS])] if config.encoder_layers else []
    model = build(dataclasses.replace(config, dtype="float32"))
    logits = jax.jit(model.apply)(params, *sources, padded(targets))
    return np.asarray(jax.nn.log_softmax(logits.at[:, :, :2].set(-jnp.inf)))


def named(ids) -> list[str]:
    return [PIECES[i] for i in ids]


def goes_on(log_probs_TV: np.ndarray, start: int, pieces: list[int]) -> bool:
    """Whether these pieces after `start` positions are the likeliest, with eos after those that are few."""
    likeliest = np.argmax(log_probs_TV[start:], axis=-1).tolist()
    return likeliest[: len(pieces)] == pieces and (len(pieces) == MOST or likeliest[len(pieces)] == 2)


def same_log_probs(theirs, folder: Path, config: ModelConfig) -> None:
    """Assert that CTranslate2 gives the log-probability of each piece of texts of several lengths, and goes on with the
    same pieces."""
    params = random_params(config)
    spec = ours.spec_of(params, config, PIECES, (0, 1), 40)
    spec.optimize()
    folder.mkdir()
    spec.save(str(folder))
    if not config.encoder_layers:
        return same_continuations(theirs, folder, config, params)
    translator, sources = theirs.Translator(str(folder), intra_threads=1), [named(text) for text in TEXTS]
    expected = our_log_probs(config, params, [[1, *start] for start in STARTS])
    found = translator.score_batch(sources, [named(start) for start in STARTS])
    for log_probs_TV, start, result in zip(expected, STARTS, found, strict=True):
        np.testing.assert_allclose(
            result.log_probs, log_probs_TV[np.arange(len(start) + 1), [*start, 2]], rtol=0, atol=1e-5
        )
    found = translator.translate_batch(sources, beam_size=1, max_decoding_length=MOST)
    outputs = [[PIECES.index(name) for name in result.hypotheses[0]] for result in found]
    expected = our_log_probs(config, params, [[1, *pieces] for pieces in outputs])
    assert all(goes_on(log_probs_TV, 0, pieces) for log_probs_TV, pieces in zip(expected, outputs, strict=True))


def same_continuations(theirs, folder: Path, config: ModelConfig, params) -> None:
    """The same for a decoder alone."""
    generator, starts = theirs.Generator(str(folder), intra_threads=1), [named(start) for start in STARTS]
    expected = our_log_probs(config, params, STARTS)
    for log_probs_TV, start, result in zip(expected, STARTS, generator.score_batch(starts), strict=True):
        wanted = log_probs_TV[np.arange(len(start) - 1), start[1:]]
        np.testing.assert_allclose(result.log_probs, wanted, rtol=0, atol=1e-5)
    found = generator.generate_batch(starts, max_length=MOST, sampling_topk=1, include_prompt_in_result=False)
    outputs = [result.sequences_ids[0] for result in found]
    expected = our_log_probs(config, params, [start + pieces for start, pieces in zip(STARTS, outputs, strict=True)])
    for log_probs_TV, start, pieces in zip(expected, STARTS, outputs, strict=True):
        assert goes_on(log_probs_TV, len(start) - 1, pieces)


SIZES = {"d_model": 16, "d_ff": 24, "heads": 4, "vocab_size": VOCABULARY, "max_positions": 40}
BASES = {
    "translation": dataclasses.replace(BASE, encoder_layers=2, decoder_layers=3, **SIZES),
    "language model": dataclasses.replace(GPT2, decoder_layers=2, **SIZES),
}
TOLD = [(kind, field) for kind in BASES for field in VARIANTS]


@pytest.mark.parametrize(("kind", "field"), TOLD, ids=[f"{kind}, {field}" for kind, field in TOLD])
def test_what_docs_formats_says_it_can_express_it_computes(theirs, kind: str, field: str, tmp_path: Path) -> None:
    """Each "yes" of the table."""
    changes = [change for change in VARIANTS[field] if expressible(EXPORTS["ctranslate2"], kind, change)]
    for number, change in enumerate(changes):
        same_log_probs(theirs, tmp_path / str(number), dataclasses.replace(BASES[kind], **change))


def drawn(seed: int) -> ModelConfig:
    """A random model that CTranslate2 can express."""
    draw = random.Random(seed)
    while True:
        heads = draw.choice((1, 2, 4, 6))
        size = draw.choice((None, 2, 4, 6))
        groups = [k for k in (1, 2, 3, heads) if heads % k == 0]
        config = ModelConfig(
            encoder_layers=draw.randrange(4),
            decoder_layers=draw.randrange(1, 4),
            d_model=heads * draw.choice((2, 4, 8)),
            d_ff=draw.choice((5, 16, 40)),
            heads=heads,
            vocab_size=VOCABULARY,
            kv_heads=draw.choice((None, *groups)),
            cross_attention=AttentionConfig(draw.choice((None, *groups)), draw.choice((None, 2, 3))),
            decoder_attention=AttentionConfig(draw.choice((None, *groups))),
            d_k=size,
            d_v=size,
            max_positions=40,
            **{
                name: draw.choice([change[name] for change in VARIANTS[name] if name in change])
                for name in (
                    *("positions", "activation", "pre_norm", "input_norm", "norm_eps", "norm_bias", "attention_bias"),
                    *("output_bias", "embedding_scale", "tied_embeddings", "attention_score", "values"),
                )
            },
        )
        try:
            ours.refuse_inexpressible(config)
        except UserError:
            continue
        return config


@pytest.mark.parametrize("seed", range(12))
def test_random_models_have_our_log_probabilities(theirs, seed: int, tmp_path: Path) -> None:
    same_log_probs(theirs, tmp_path / "out", drawn(seed))


def test_the_random_models_are_different() -> None:
    models = [drawn(seed) for seed in range(12)]
    assert len(set(models)) == 12
    for field in ("positions", "activation", "pre_norm", "attention_bias", "d_k", "heads", "attention_score", "values"):
        assert len({getattr(model, field) for model in models}) > 1, field


# ---- Folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learnt(theirs, tiny, tmp_path_factory) -> Path:
    """The workdir of a run that has learnt the corpus of `tiny`."""
    from transformer.jobs import train

    folder = tmp_path_factory.mktemp("learnt") / "run"
    options = ["--train.steps", "700", "--train.eval_every", "700", "--train.checkpoint_every", "700"]
    options += ["--train.peak_learning_rate", "0.005", "--train.warmup_steps", "100", "--model.pre_norm", "True"]
    options += ["--model.decoder_layers", "2", "--data.length_buckets", "1", "--train.accumulate", "1"]
    train(["--config", tiny.config, "--workdir", str(folder), *options])
    return folder


def exported(workdir: Path, folder: Path, **options) -> Path:
    return ours.export(str(workdir), str(folder), **options)


@pytest.fixture(scope="module")
def out(learnt: Path, tmp_path_factory) -> Path:
    return exported(learnt, tmp_path_factory.mktemp("exported") / "out")


@pytest.fixture(scope="module")
def lines(tiny) -> list[str]:
    return (tiny.folder / "train.en").read_text().splitlines()[:200]


def forbidden_before_the_softmax(workdir: Path, config: DecodeConfig) -> Translator:
    """Our translator, with pad and bos left out of the softmax, as theirs does."""
    loaded = Translator.load(str(workdir), config=config)
    model = build(dataclasses.replace(loaded.model.config, output_bias=True))
    bias_V = jnp.asarray(loaded.params.get("output_bias", jnp.zeros(model.config.vocab_size))).at[:2].set(ours.NEVER)
    return Translator(model, {**loaded.params, "output_bias": bias_V}, loaded.tokenizer, config)


def translations(theirs, folder: Path, lines: list[str], **options) -> list[tuple[str, float]]:
    """Text and score by CTranslate2, with the tokenizer of the folder."""
    import sentencepiece

    source, target = (
        sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{side}.spm")) for side in ("source", "target")
    )
    translator = theirs.Translator(str(folder), intra_threads=1)
    pieces = source.encode(lines, out_type=str)
    limits = {"min_decoding_length": 0, "max_decoding_length": 60}
    found = translator.translate_batch(pieces, **limits, return_scores=True, **options)
    return [(target.decode(one.hypotheses[0]), one.scores[0]) for one in found]


@pytest.mark.parametrize(
    ("beams", "normalization", "alpha"), [(4, "fairseq", 0.6), (4, "none", 0.0), (1, "fairseq", 1.0)]
)
def test_200_translations_are_ours(theirs, learnt, out, lines, beams: int, normalization: str, alpha: float) -> None:
    config = DecodeConfig(beam_size=beams, length_normalization=normalization, length_penalty=alpha)
    mine = [found[0] for found in forbidden_before_the_softmax(learnt, config).translate_n_best(lines)]
    found = translations(theirs, out, lines, beam_size=beams, length_penalty=alpha)
    assert len(set(lines)) > 190 and len({one.text for one in mine}) > 150
    same = [(one.score, score) for one, (text, score) in zip(mine, found, strict=True) if one.text == text]
    assert len(same) >= 198
    np.testing.assert_allclose(*zip(*same, strict=True), atol=1e-4)
    plain = Translator.load(str(learnt), config=config).translate(lines)
    assert sum(a == b for a, (b, _) in zip(plain, found, strict=True)) >= 198


def test_int8_keeps_bleu(theirs, learnt, tiny, lines, tmp_path, call) -> None:
    import sacrebleu

    folder = tmp_path / "int8"
    done = call("transformer", "export", learnt, folder, "--to", "ctranslate2", "--quantization", "int8")
    assert (done.code, done.out) == (0, f"{folder}\n")
    references = (tiny.folder / "train.de").read_text().splitlines()[:200]
    config = DecodeConfig(length_normalization="fairseq")
    mine = Translator.load(str(learnt), config=config).translate(lines)
    found = [text for text, _ in translations(theirs, folder, lines, beam_size=4, length_penalty=0.6)]
    scores = [sacrebleu.corpus_bleu(texts, [references]).score for texts in (mine, found)]
    assert scores[0] > 60 and abs(scores[0] - scores[1]) < 0.3
    assert (folder / "model.bin").stat().st_size < 0.4 * exported(learnt, tmp_path / "full").joinpath(
        "model.bin"
    ).stat().st_size


@pytest.mark.parametrize("quantization", ["float16", "int16", "int8_float16", "int8_float32"])
def test_other_quantisations_load(theirs, learnt, lines, quantization: str, tmp_path: Path) -> None:
    folder = exported(learnt, tmp_path / "out", quantization=quantization)
    config = DecodeConfig(length_normalization="fairseq")
    mine = Translator.load(str(learnt), config=config).translate(lines[:50])
    found = [text for text, _ in translations(theirs, folder, lines[:50], beam_size=4, length_penalty=0.6)]
    assert sum(a == b for a, b in zip(mine, found, strict=True)) >= 48


def test_its_attention_is_our_alignment(theirs, learnt, out, lines) -> None:
    model, params = Checkpoints(learnt).read(None, lambda opened: (opened.model, opened.params()))
    tokenizer = Translator.load(str(learnt)).tokenizer
    translator = theirs.Translator(str(out), intra_threads=1)
    for line in lines[:5]:
        (ids,) = tokenizer.encode([line])
        names = [tokenizer.piece(i) for i in ids]
        (found,) = translator.translate_batch([names], beam_size=1, return_attention=True)
        target = [next(i for i in range(tokenizer.vocab_size) if tokenizer.piece(i) == x) for x in found.hypotheses[0]]
        bound = model.bind(params)
        memory = bound.encode(jnp.array([[*ids, 2]]))
        weights = bound.decode(jnp.array([[1, *target]]), memory, want_weights=True)[2][-2]
        theirs_TS = np.array(found.attention[0])
        ours_TS = np.asarray(weights)[0].mean(axis=0)[: len(theirs_TS)]
        np.testing.assert_allclose(theirs_TS, ours_TS[:, : theirs_TS.shape[1]], atol=1e-5)


def test_the_readme_of_the_folder_runs(theirs, learnt, out, lines, monkeypatch) -> None:
    translate = run_readme(out, monkeypatch)["translate"]
    found = translate(["", *lines[:20]])
    alike = DecodeConfig(beam_size=2, length_normalization="fairseq")  # 2: as in the config of the run
    assert found == ["", *Translator.load(str(learnt), config=alike).translate(lines[:20])]


@pytest.mark.parametrize(
    ("constraints", "likely"),
    [
        ({"no_repeat_ngram": 2, "repetition_penalty": 1.3, "max_length": 9}, []),
        ({"min_length": 4}, [2]),
        ({"banned": ("Hund", "das Haus")}, tokenizer().encode(["Hund"], "target")[0]),
    ],
    ids=["penalties", "min_length", "banned"],
)
def test_the_readme_searches_as_the_config_says(
    theirs, constraints: dict, likely: list[int], tmp_path: Path, monkeypatch
) -> None:
    """A random model, in which some pieces are likely. A source that is too long loses its end."""

    def biased(config: ModelConfig) -> dict:
        params = random_params(config)
        params["output_bias"][likely] = 5
        return params

    monkeypatch.setattr("small_runs.random_params", biased)
    limits = {"max_source_length": 12, "max_extra_length": 0 if "max_length" in constraints else 20}
    model = dataclasses.replace(SEQUENCES, output_bias=True)
    workdir = translation_run(tmp_path / "run", model, **limits, **constraints, beam_size=1)
    mine = forbidden_before_the_softmax(workdir, Checkpoints(workdir).open().config.decode)
    translate = run_readme(exported(workdir, tmp_path / "out"), monkeypatch)["translate"]
    lines = [*LINES[:3], LINES[0] * 9]
    found = translate(lines)
    assert found == mine.translate(lines) and all(found)
    others = {"no_repeat_ngram_size": 0, "repetition_penalty": 1, "min_decoding_length": 0, "suppress_sequences": None}
    assert translate(lines, **others) != found  # the constraint counts


def test_what_the_search_lacks_is_told(theirs, tmp_path: Path) -> None:
    said = [
        exported(translation_run(tmp_path / f"run{i}", **options), tmp_path / f"out{i}")
        .joinpath("README.md")
        .read_text()
        for i, options in enumerate(({"sample": True, "min_p": 0.2, "top_k": 7}, {"length_normalization": "paper"}))
    ]
    assert "decode.min_p = 0.2 has no counterpart" in said[0] and '"sampling_topk": 7' in said[0]
    assert "((5 + length) / 6)^0.6, which has no counterpart" in said[1] and "(5 + length)" not in said[0]


def test_the_code_of_a_language_is_one_piece(theirs, tmp_path: Path, monkeypatch) -> None:
    """In a folder that was imported from Opus-MT's form; pieces of the other side have no "▁" in a text."""
    from opus import ODD, SOURCE, write_opus

    from transformer.tools.hf.marian_folder import import_folder

    write_opus(tmp_path / "opus", no_repeat_ngram_size=1)
    import_folder(str(tmp_path / "opus"), str(tmp_path / "run"))
    tokenizer = Translator.load(str(tmp_path / "run")).tokenizer
    names = run_readme(exported(tmp_path / "run", tmp_path / "out"), monkeypatch)
    for line in (*ODD, *SOURCE, ">>de<< " + SOURCE[0], "<< a >>de<<", ">>"):
        pieces = [name if name in tokenizer._names else "<unk>" for name in names["pieces_of"](line)]
        assert pieces == [tokenizer.piece(i) for i in tokenizer.encode([line])[0]], line
    ids = [*range(3, 40), 2]
    assert names["text_of"]([tokenizer.piece(i) for i in ids[:-1]]) == tokenizer.decode([ids])[0]


def test_a_ready_tokenizer_with_other_ids_goes_along(theirs, tmp_path: Path, monkeypatch) -> None:
    """SentencePiece's default ids, without pad: ours differ from the model's, and pieces go by their names."""
    import io

    import sentencepiece

    from transformer.data.tokenizer import Tokenizer

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 20), model_writer=model, model_type="bpe", vocab_size=60, minloglevel=2
    )
    pieces = Tokenizer(model.getvalue())
    assert pieces.vocab_size == 61
    workdir = translation_run(tmp_path / "run", pieces=pieces, beam_size=1)
    folder = exported(workdir, tmp_path / "out")
    mine = forbidden_before_the_softmax(workdir, DecodeConfig(beam_size=1, max_extra_length=6))
    translate = run_readme(folder, monkeypatch)["translate"]
    text = "the red cat ☃ sees"  # a character that no piece has
    assert translate([text])[0].startswith(mine.translate([text])[0])  # random: ours ends at its limit


VOCABULARIES = {"characters": Characters("".join(LINES)), "bytes": Bytes()}


@pytest.mark.parametrize("kind", ["characters", "bytes", "sentencepiece"])
def test_a_language_model_goes_on_as_ours(theirs, kind: str, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("tokenizers")
    if kind == "sentencepiece":
        from transformer.data.tokenizer import Tokenizer

        vocabulary = SentencePiece(Tokenizer.train(LINES * 20, vocab_size=340, running=True).model)
    else:
        vocabulary = VOCABULARIES[kind]
    workdir = language_run(tmp_path / "run", vocabulary, max_extra_length=8, beam_size=1)
    folder = exported(workdir, tmp_path / "out")
    generate = run_readme(folder, monkeypatch)["generate"]
    prompts = ["the red", "", "a </s> in"]
    mine = Generator.load(str(workdir), config=DecodeConfig(beam_size=1, max_extra_length=8))
    found = generate(prompts)  # with the options of the config
    assert found == mine.generate(prompts) and any(found)


def test_without_the_package_it_says_what_to_install(call, trained: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    done = call("transformer", "export", trained, tmp_path / "out", "--to", "ctranslate2")
    wanted = "export --to ctranslate2 needs ctranslate2, which is not installed: pip install 'transformer[ctranslate2]'"
    assert (done.code, done.err.splitlines()[-1]) == (2, f"error: {wanted}")
