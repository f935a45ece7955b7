from __future__ import annotations

import dataclasses
import json
import runpy
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from transformer.config import (
    BASE,
    BIG,
    KINDS,
    RUNS,
    Config,
    DataConfig,
    DecodeConfig,
    EvaluateConfig,
    LanguageModelConfig,
    MaskedConfig,
    MeshConfig,
    ModelConfig,
    ParserConfig,
    ParsingConfig,
    PretrainConfig,
    TextConfig,
    TrainConfig,
    UserError,
    check,
    check_model,
    conflicts,
    differences,
    flatten,
    from_json,
    resumable,
    to_json,
)

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
# Other programs set these by name: you may add names, but not rename any.
FIXED = {
    "model": "encoder_layers decoder_layers d_model d_ff heads vocab_size kv_heads dropout",
    "train": "steps batch_tokens peak_learning_rate warmup_steps label_smoothing seed checkpoint_every eval_every "
    "patience init_from",
    "data": "source target dev_source dev_target vocab_size tokenizer",
    "decode": "beam_size length_penalty length_normalization max_extra_length max_source_length",
}


def changed(kind: Any = Config, /, **fields: Any) -> Any:
    """The default config of a task with changed fields, given as section__name=value."""

    def replace(node: Any, names: list[str], value: Any) -> Any:
        inner = replace(getattr(node, names[0]), names[1:], value) if names else value
        return dataclasses.replace(node, **{names[0]: inner}) if names else inner

    config = kind()
    for field, value in fields.items():
        config = replace(config, field.split("__"), value)
    return config


def test_the_fixed_field_names_exist() -> None:
    names = flatten(Config())
    assert [
        f"{section}.{name}"
        for section, all in FIXED.items()
        for name in all.split()
        if f"{section}.{name}" not in names
    ] == []


EVERY_TASK = pytest.mark.parametrize("kind", RUNS.values(), ids=RUNS)


@EVERY_TASK
def test_every_field_is_documented(kind: Any) -> None:
    sections = [getattr(kind(), field.name) for field in dataclasses.fields(kind)]
    for section in [*sections, kind().model.encoder_attention]:
        for field in dataclasses.fields(section):
            assert f"\n    {field.name}: " in type(section).__doc__, f"{type(section).__name__}.{field.name}"


def test_base_and_big_are_the_papers() -> None:
    # Table 3: N, d_model, d_ff, h, d_k, d_v, P_drop.
    def row(m: ModelConfig) -> tuple:
        return m.encoder_layers, m.decoder_layers, m.d_model, m.d_ff, m.heads, m.key_size, m.value_size, m.dropout

    assert row(BASE) == (6, 6, 512, 2048, 8, 64, 64, 0.1)
    assert row(BIG) == (6, 6, 1024, 4096, 16, 64, 64, 0.3)
    t = TrainConfig()
    assert (t.steps, t.batch_tokens, t.warmup_steps, t.peak_learning_rate) == (100_000, 25_000, 4_000, None)
    assert (t.adam_b1, t.adam_b2, t.adam_eps, t.label_smoothing) == (0.9, 0.98, 1e-9, 0.1)
    d = DecodeConfig()
    assert (d.beam_size, d.length_penalty, d.length_normalization, d.max_extra_length) == (4, 0.6, "paper", 50)
    assert d.max_source_length == 1024


def other(value: Any) -> Any:
    """Another value of the same type."""
    if value is None:
        return 5
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return ("a", "b") if isinstance(value, tuple) else value + "x"


@EVERY_TASK
def test_json_round_trip_of_every_field(kind: Any) -> None:
    default = kind()
    assert from_json(to_json(default)) == default
    for name, value in flatten(default).items():
        config = changed(kind, **{name.replace(".", "__"): other(value)})
        assert config != default
        again = from_json(to_json(config))
        assert again == config
        assert differences(default, again) == {name: (value, other(value))}


def test_a_config_of_before_languages_could_be_left_out_is_read() -> None:
    values = json.loads(to_json(Config()))
    values["data"]["languages"] = ["en", "de"]
    assert from_json(json.dumps(values)) == changed(data__languages=("en", "de"))


def test_json_fields_left_out_take_their_defaults() -> None:
    assert from_json('{"train": {"steps": 7}}') == changed(train__steps=7)
    assert from_json("{}") == Config()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"train": {"stps": 1}}', "unknown field 'train.stps'"),
        ('{"trian": {}}', "unknown field 'trian'"),
        ('{"train": 3}', "'train' must be an object"),
        ("[]", "'config' must be an object"),
        ('{"train": {', "not valid JSON"),
    ],
)
def test_bad_json_is_told_in_one_line(text: str, told: str) -> None:
    with pytest.raises(UserError) as error:
        from_json(text, "runs/x/config.json")
    assert str(error.value).startswith("runs/x/config.json: ")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        # types: the command line checks them by itself, a config file does not
        ("train__steps", "100"),
        ("train__steps", 1.5),
        ("train__steps", True),
        ("train__steps", None),
        ("train__patience", 2.0),
        ("train__clip_norm", "1"),
        ("model__pre_norm", 1),
        ("model__pre_norm", "no"),
        ("data__source", "train.en"),
        ("data__source", ["train.en"]),
        ("data__source", (1,)),
        ("data__dev_source", 3),
        ("data__languages", ("en",)),
        ("data__languages", ("en", "de", "fr")),
        # choices
        ("model__positions", "alibi"),
        ("model__tied_embeddings", "some"),
        ("model__dtype", "float16"),
        ("model__attention_kernel", "flash"),
        ("data__corpus", "wmt15"),
        ("data__normalization", "nfc"),
        ("decode__length_normalization", "google"),
        # the model
        ("model__d_model", 0),
        ("model__d_ff", 0),
        ("model__heads", 0),
        ("model__max_positions", 0),
        ("model__encoder_layers", 0),
        ("model__decoder_layers", 0),
        ("model__kv_heads", 0),
        ("model__kv_heads", 3),
        ("model__d_k", 0),
        ("model__d_v", 0),
        ("model__heads", 7),
        ("model__dropout", -0.1),
        ("model__dropout", 1.0),
        # the data
        ("data__weights", (1.0,)),
        ("data__vocab_size", 7),
        ("data__max_length", 1),
        ("data__max_ratio", 0.9),
        ("data__length_buckets", 0),
        ("data__tokenizer_sentences", 0),
        ("data__workers", -1),
        ("data__phrases", 0),
        ("data__fields", ("text", "text")),
        ("data__fields", ("text",)),
        # training
        ("train__steps", 0),
        ("train__batch_tokens", 0),
        ("train__batch_tokens", 255),
        ("train__accumulate", 0),
        ("train__warmup_steps", 0),
        ("train__log_every", 0),
        ("train__eval_every", 0),
        ("train__checkpoint_every", 0),
        ("train__keep_last", 0),
        ("train__keep_every", 0),
        ("train__patience", 0),
        ("train__r_drop", -1.0),
        ("train__ema_decay", 1.0),
        ("train__stop_at", float("nan")),
        ("train__eval_sentences", 0),
        ("train__peak_learning_rate", 0.0),
        ("train__peak_learning_rate", float("nan")),
        ("train__clip_norm", 0.0),
        ("train__label_smoothing", -0.1),
        ("train__label_smoothing", 1.0),
        ("train__adam_b1", 1.0),
        ("train__adam_b2", -0.1),
        ("train__adam_eps", 0.0),
        ("train__seed", -1),
        ("train__seed", 2**32),
        ("train__non_finite", "ignore"),
        ("train__non_finite_limit", 0),
        # the mesh
        ("mesh__data", 0),
        ("mesh__data", -2),
        ("mesh__fsdp", 0),
        ("mesh__tensor", 0),
        # decoding
        ("decode__beam_size", 0),
        ("decode__length_penalty", -0.1),
        ("decode__max_extra_length", -1),
        ("decode__max_source_length", 0),
        ("decode__batch_tokens", 0),
        ("decode__batch_sentences", 0),
        ("decode__n_best", 0),
        ("decode__n_best", 1.5),
        ("decode__max_length", 0),
        ("decode__min_length", -1),
        ("decode__no_repeat_ngram", -1),
        ("decode__banned", "the"),
        ("decode__banned", (3,)),
        ("decode__sample", 1),
        ("decode__temperature", 0.0),
        ("decode__temperature", float("nan")),
        ("decode__top_k", -1),
        ("decode__top_p", 0.0),
        ("decode__top_p", 1.1),
        ("decode__seed", -1),
        ("decode__seed", 2**32),
        ("decode__streams", -1),
        ("decode__dtype", "float16"),
        # numbers beyond the arithmetic that they meet
        ("model__d_model", 2**31),
        ("model__encoder_layers", 2 * 10**9),
        ("model__decoder_layers", 1_001),
        ("data__max_length", 10**20),
        ("data__weights", (1e9,)),
        ("data__max_ratio", 1e39),
        ("data__workers", 10**9),
        ("train__warmup_steps", 10**13),
        ("train__steps", 2**31),
        ("train__peak_learning_rate", 1e39),
        ("train__adam_eps", 1e-46),
        ("train__clip_norm", 10**100),
        ("mesh__fsdp", 2**31),
        ("decode__max_extra_length", 3 * 10**9),
        ("decode__max_source_length", 10**7),
        ("decode__top_k", 10**12),
        ("decode__temperature", 1e-30),
        ("decode__length_penalty", 1e3),
        ("decode__beam_size", 10**6),
        # values that float32, or the 16 bits of dropout, round to 1
        *((f"train__{name}", 1 - 1e-9) for name in ("adam_b1", "adam_b2", "label_smoothing")),
        *((f"model__{of}dropout", rate) for rate in (1 - 1e-9, 0.9999) for of in ("", "attention_", "activation_")),
        ("evaluate__bleu_tokenize", "flores200"),
        ("evaluate__metric", "ter"),
        # each kind of attention
        ("model__kv_sharing", 0),
        *((f"model__{kind}_attention__{name}", 0) for kind in KINDS for name in ("kv_heads", "kv_sharing")),
        *((f"model__{kind}_attention__{name}", "1") for kind in KINDS for name in ("kv_heads", "kv_sharing", "window")),
        *((f"model__{kind}_attention__kv_heads", 3) for kind in KINDS),
        *((f"model__{kind}_attention__window", -1) for kind in KINDS),
    ],
)
def test_check_names_the_field_and_its_value(name: str, value: Any) -> None:
    with pytest.raises(UserError) as error:
        check(changed(**{name: value}))
    assert str(error.value).startswith(f"{name.replace('__', '.')} = {value!r}: must ")
    assert "\n" not in str(error.value)


@EVERY_TASK
def test_check_knows_the_type_of_every_field(kind: Any) -> None:
    for name in flatten(kind()):
        for wrong in ({}, [1], b"x"):  # no field has this type
            with pytest.raises(UserError) as error:
                check(changed(kind, **{name.replace(".", "__"): wrong}))
            assert str(error.value).startswith(f"{name} = {wrong!r}: must be "), name


@EVERY_TASK
def test_every_number_has_bounds(kind: Any) -> None:
    extremes = {int: (2**60, 10**6_000), float: (1e300, float("inf"), 10**6_000), type(None): (10**6_000,)}
    for name, value in flatten(kind()).items():
        for far in extremes.get(type(value), ()):
            for extreme in (far, -far):
                with pytest.raises(UserError, match=rf"^{name} = .*: must be ") as error:
                    check(changed(kind, **{name.replace(".", "__"): extreme}))
                assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (changed(model__d_model=33, model__heads=1), "model.d_model"),  # sinusoids are pairs
        (changed(model__positions="learned", model__max_positions=1074), "model.max_positions"),
        (changed(model__positions="learned", decode__max_source_length=2000), "model.max_positions"),
        (changed(model__positions="learned", model__max_positions=1500, data__max_length=1501), "model.max_positions"),
        (
            changed(model__positions="learned", model__max_positions=1075, model__position_offset=820),
            "model.max_positions",
        ),
        (changed(model__positions="none", model__position_offset=1), "model.position_offset"),
        (changed(model__hard_attention=True), "model.hard_attention"),
        (changed(model__positions="rotary", model__d_k=7), "model.d_k"),
        (changed(model__positions="rotary", model__d_model=24), "model.d_model"),
        (changed(model__attention_dropout=0.1, model__attention_kernel="cudnn"), "model.attention_kernel"),
        (changed(train__accumulate=100, train__batch_tokens=25_599), "train.batch_tokens"),
        (changed(data__corpus="wmt14"), "data.languages"),
        (changed(data__source=("a",), data__weights=(0.0,)), "data.weights"),
        (changed(data__source=("a", "b"), data__weights=(1.0,)), "data.weights"),
        (changed(model__d_k=48, model__heads=7), "model.heads"),  # d_v is still d_model / heads
        (changed(decode__n_best=5), "decode.n_best"),  # a beam of 4 gives at most 4
        (changed(decode__min_length=9, decode__max_length=8), "decode.min_length"),
        (changed(decode__banned=("the", " ")), "decode.banned"),
    ],
)
def test_check_of_fields_that_depend_on_each_other(config: Config, field: str) -> None:
    with pytest.raises(UserError, match=rf"^{field} = "):
        check(config)


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(model=BIG),
        changed(model__d_k=48, model__d_v=50, model__heads=7),
        changed(model__kv_heads=1),
        changed(model__positions="learned", model__max_positions=1075),
        changed(model__positions="none", model__d_model=33, model__heads=1),
        changed(train__accumulate=100, train__batch_tokens=25_600),
        changed(data__source=("a", "b"), data__weights=(1, 0.5)),
        changed(train__peak_learning_rate=1, mesh__data=8, model__dropout=0),
        changed(decode__n_best=50, decode__sample=True),
        changed(decode__min_length=8, decode__max_length=8, decode__top_p=1, decode__banned=("a b",)),
        changed(model__kv_heads=3, **{f"model__{kind}_attention__kv_heads": 2 for kind in KINDS}),
        changed(model__decoder_attention__window=0, model__decoder_attention__kv_sharing=9),
    ],
)
def test_check_accepts(config: Config) -> None:
    check(config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_are_sound_and_survive_json(path: Path) -> None:
    config = runpy.run_path(str(path))["config"]
    check(config)
    assert from_json(to_json(config)) == config
    # Standard JSON only: no NaN, no infinity.
    json.loads(to_json(config), parse_constant=lambda name: pytest.fail(name))


# ---- Language models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model__encoder_layers", 1),
        ("model__decoder_layers", 0),
        ("model__max_positions", 1_023),
        ("model__position_offset", 1),
        ("train__batch_tokens", 1_023),
        ("train__accumulate", 33),
        ("mesh__data", 0),
        ("data__text", "a.txt"),
        ("data__dev_share", 1.0),
        ("data__dev_share", -0.1),
        ("data__documents", "lines"),
        ("data__pieces", "words"),
        ("data__vocab_size", 260),
        ("data__context", 1),
        ("data__context", 10**7),
        ("data__tokenizer_lines", 0),
        ("data__workers", -1),
        ("decode__temperature", 0.0),
    ],
)
def test_check_of_a_language_model_names_the_field(name: str, value: Any) -> None:
    with pytest.raises(UserError) as error:
        check(changed(LanguageModelConfig, **{name: value}))
    field = {"model.position_offset": "model.max_positions", "train.accumulate": "train.batch_tokens"}
    named = field.get(name.replace("__", "."), name.replace("__", "."))
    assert str(error.value).startswith(f"{named} = ") and ": must " in str(error.value)


def test_configs_of_language_models_that_are_sound() -> None:
    for fields in (
        {},
        {"data__pieces": "bytes", "data__vocab_size": 8},
        {"data__tokenizer": "a.model", "data__vocab_size": 8},
        {"data__context": 512, "model__position_offset": 512},
        {"model__positions": "rotary", "data__context": 5_000},
        {"train__accumulate": 32},
        {"decode__n_best": 9},  # samples
    ):
        check(changed(LanguageModelConfig, **fields))


def test_a_model_may_lack_an_encoder_but_not_for_translation() -> None:
    check_model(ModelConfig(encoder_layers=0))
    with pytest.raises(UserError, match=r"^model\.encoder_layers = 0: must be at least 1: translation"):
        check(changed(model__encoder_layers=0))


def test_a_model_may_lack_a_decoder_but_only_for_a_task_without_one() -> None:
    check_model(ModelConfig(decoder_layers=0))
    for config, task in ((changed, "translation"), (partial(changed, LanguageModelConfig), "a language model")):
        with pytest.raises(UserError, match=rf"^model\.decoder_layers = 0: must be at least 1: {task}"):
            check(config(model__decoder_layers=0))
    with pytest.raises(UserError, match=r"^model\.decoder_layers = 0: .* where model.encoder_layers is 0$"):
        check_model(ModelConfig(encoder_layers=0, decoder_layers=0))


def test_what_may_change_when_a_language_model_goes_on() -> None:
    old = LanguageModelConfig(data=TextConfig(text=("a.txt", "b.txt"), dev_text=("c.txt",)))

    def now(**fields: Any) -> set[str]:
        new = dataclasses.replace(old, data=dataclasses.replace(old.data, **fields))
        return set(conflicts(old, new))

    assert now(text=("x/a.txt", "x/b.txt"), dev_text=("d.txt",), cache_dir="c", workers=3, dev_share=0.2) == set()
    assert now(text=("a.txt",)) == {"data.text"}
    assert now(dev_text=(), dev_share=0.2) == {"data.dev_text", "data.dev_share"}
    assert now(context=512, documents="files", pieces="bytes") == {"data.context", "data.documents", "data.pieces"}
    assert conflicts(Config(), old) == {"task": ("translation", "language_model")}


def test_a_parser_may_go_on_with_other_rules_of_scoring() -> None:
    old, rules = ParsingConfig(), ParserConfig(parameters="a.prm")
    assert not conflicts(old, dataclasses.replace(old, parser=rules))
    assert set(conflicts(old, dataclasses.replace(old, parser=ParserConfig(encoder_rate=0.5)))) == {
        "parser.encoder_rate"
    }


# ---- Masked language models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model__decoder_layers", 1),
        ("model__max_positions", 127),
        ("train__batch_tokens", 127),
        ("data__context", 513),
        ("data__context", 4),
        ("data__document_lines", 1),
        ("data__pieces", "characters"),
        ("data__duplicates", 0),
        ("data__short_share", 1.1),
        ("data__mask_share", 0.0),
        ("data__mask_share", 1.0),
        ("data__max_masked", 0),
    ],
)
def test_check_of_a_masked_language_model_names_the_field(name: str, value: Any) -> None:
    with pytest.raises(UserError) as error:
        check(changed(MaskedConfig, model__head="none", **{name: value}))
    named = "model.max_positions" if value == 513 else name.replace("__", ".")
    assert str(error.value).startswith(f"{named} = ") and ": must " in str(error.value)


def test_what_a_masked_language_model_needs() -> None:
    few = {"data__pieces": "sentencepiece", "data__vocab_size": 261}
    with pytest.raises(UserError, match=r"^data\.vocab_size = 261: must be at least 262 with byte pieces"):
        check(changed(MaskedConfig, **few))
    for fields in (
        {"data__context": 512},
        {"model__positions": "rotary", "data__context": 600},
        {"model__head": "token"},
    ):
        check(changed(MaskedConfig, **fields))
    check(changed(MaskedConfig, **few, data__tokenizer="a.model"))
    # Only training needs the heads.
    MaskedConfig().check_training()
    alone = changed(MaskedConfig, model__head="masked", model__token_types=0)
    changed(MaskedConfig, data__next_sentence=False).check_training()
    dataclasses.replace(alone, data=PretrainConfig(next_sentence=False)).check_training()
    with pytest.raises(UserError, match=r"^model\.head = 'masked': must be 'pretraining' to train with data\.next"):
        alone.check_training()


@EVERY_TASK
def test_the_tasks_that_score_all_of_their_development_text_say_so(kind: Any) -> None:
    config = kind()
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, eval_sentences=5))
    if config.task in ("language_model", "byte_latent", "masked", "algorithm"):
        with pytest.raises(UserError, match=r"train.eval_sentences = 5: must be None: this task is always evaluated"):
            check(config)
    else:
        check(config)


def test_bert_is_trained_as_published() -> None:
    t, d = MaskedConfig().train, PretrainConfig()
    assert (t.adam_b1, t.adam_b2, t.adam_eps, t.weight_decay, t.clip_norm) == (0.9, 0.999, 1e-6, 0.01, 1.0)
    assert (t.peak_learning_rate, t.warmup_steps, t.steps, t.schedule) == (1e-4, 10_000, 1_000_000, "linear")
    assert (t.batch_tokens, t.label_smoothing) == (256 * d.context, 0.0)
    assert (d.mask_share, d.max_masked, d.short_share, d.duplicates, d.whole_words) == (0.15, 20, 0.1, 10, False)


def test_what_may_change_when_a_masked_language_model_goes_on() -> None:
    old = MaskedConfig(data=PretrainConfig(text=("a.txt",), unpaired_text=("b.txt",), dev_text=("c.txt",)))

    def now(**fields: Any) -> set[str]:
        return set(conflicts(old, dataclasses.replace(old, data=dataclasses.replace(old.data, **fields))))

    assert now(text=("x/a.txt",), unpaired_text=("x/b.txt",), cache_dir="c", dev_share=0.2) == set()
    assert now(unpaired_text=(), static_masks=True) == {"data.unpaired_text", "data.static_masks"}


def test_the_ready_gpts_are_the_published_ones() -> None:
    def row(m: ModelConfig) -> tuple:
        return m.decoder_layers, m.d_model, m.d_ff, m.heads, m.key_size, m.max_positions, m.dropout, m.norm_eps

    configs = Path(__file__).parents[1] / "configs"
    small, large = (runpy.run_path(str(configs / f"{name}.py"))["config"] for name in ("gpt2_124m", "gpt3"))
    assert row(small.model) == (12, 768, 3_072, 12, 64, 1_024, 0.1, 1e-5)
    assert row(large.model)[:6] == (96, 12_288, 49_152, 96, 128, 2_048)
    assert small.model.vocab_size == large.model.vocab_size == 50_257
    assert small.train.batch_tokens == 491_520 and large.train.batch_tokens == 3_145_728


def test_shakespeare_is_found_compressed_or_not(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRANSFORMER_DATA", str(tmp_path))
    (tmp_path / "tiny_shakespeare").mkdir()
    for name in ("input.txt", "input.txt.gz"):
        (tmp_path / "tiny_shakespeare" / name).write_text("")
        for config in ("shakespeare_char", "shakespeare_10m"):
            found = runpy.run_path(str(Path(__file__).parents[1] / "configs" / f"{config}.py"))["config"]
            assert found.data.text == (str(tmp_path / "tiny_shakespeare" / name),)


# ---- Going on -------------------------------------------------------------------------------------------------------


RESUMABLE = {
    "model.initializer",
    *(
        "train.steps",
        "train.seeds",
        "train.log_every",
        "train.eval_every",
        "train.checkpoint_every",
        "train.keep_every",
    ),
    *(
        "train.non_finite",
        "train.non_finite_limit",
        "train.keep_last",
        "train.patience",
        "train.stop_at",
        "train.remat",
        "train.eval_sentences",
        "data.cache_dir",
        "data.workers",
        "data.tfds_dir",
    ),
    *(f"mesh.{field.name}" for field in dataclasses.fields(MeshConfig)),
    *(f"decode.{field.name}" for field in dataclasses.fields(DecodeConfig)),
    *(f"evaluate.{field.name}" for field in dataclasses.fields(EvaluateConfig)),
}


def test_only_what_changes_no_update_may_change_when_a_run_goes_on() -> None:
    assert {name for name in flatten(Config()) if resumable(name)} == RESUMABLE


def test_a_config_of_an_earlier_version_has_no_section_evaluate() -> None:
    values = json.loads(to_json(changed(train__seed=3)))
    del values["evaluate"]
    assert from_json(json.dumps(values)) == changed(train__seed=3)


def test_differences_name_both_values() -> None:
    one, two = Config(), Config(data=DataConfig(vocab_size=9), train=TrainConfig(seed=4))
    assert differences(one, two) == {"data.vocab_size": (8_000, 9), "train.seed": (0, 4)}
    assert differences(two, two) == {}


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """Config of another task, composed of other sections."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)

    task = "another"
    movable = ()

    def relations(self):
        yield self.train.steps != 8, "train.steps", "must not be 8"

    def may_become(self, other, name: str) -> bool:
        return name == "train.seed" and other.train.seed == 1


def test_a_config_of_another_task_is_read_compared_and_checked(monkeypatch) -> None:
    monkeypatch.setitem(RUNS, "another", TaskConfig)
    config = TaskConfig(train=TrainConfig(steps=7))
    assert json.loads(to_json(config))["task"] == "another" and from_json(to_json(config)) == config
    assert differences(TaskConfig(), config) == {"train.steps": (100_000, 7)}
    check(config)
    for steps, rule in ((0, "must be at least 1"), (8, "must not be 8")):
        with pytest.raises(UserError, match=rf"^train\.steps = {steps}: {rule}$"):
            check(TaskConfig(train=TrainConfig(steps=steps)))
    with pytest.raises(UserError, match=r"^model\.heads = 8: must divide model\.d_model \(30\)"):
        check(TaskConfig(model=ModelConfig(d_model=30)))
    with pytest.raises(UserError, match=r"^config\.json: unknown field 'data'"):
        from_json(json.dumps({**json.loads(to_json(Config())), "task": "another"}))
    assert conflicts(Config(), TaskConfig()) == {"task": ("translation", "another")}
    assert conflicts(TaskConfig(), TaskConfig(train=TrainConfig(steps=7, seed=1))) == {}
    assert set(conflicts(TaskConfig(), TaskConfig(train=TrainConfig(seed=2)))) == {"train.seed"}


def test_a_config_without_a_task_is_one_of_translation() -> None:
    values = json.loads(to_json(changed(train__seed=3)))
    assert values.pop("task") == "translation" and from_json(json.dumps(values)) == changed(train__seed=3)
    for wrong in ("parse", None, 3, ["translation"]):
        with pytest.raises(
            UserError,
            match=r"^config\.json: task = .*: must be one of translation, language_model, masked, labels, pars",
        ):
            from_json(json.dumps({**values, "task": wrong}))
