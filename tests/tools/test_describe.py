"""Parameter tables: GPT-2's and GPT-3's published counts, and tables that add up to the real parameters."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

import transformer
from transformer.command_line import config_file
from transformer.config import (
    BERT,
    GPT2,
    AttentionConfig,
    Config,
    DataConfig,
    LanguageModelConfig,
    MaskedConfig,
    ModelConfig,
    PretrainConfig,
    TextConfig,
    TrainConfig,
    UserError,
)
from transformer.tools.attention_table import attention_table, parameter_shapes, pattern, present
from transformer.tools.describe import describe, vocabulary_size

SMALL = dataclasses.replace(GPT2, decoder_layers=3, d_model=8, d_ff=12, heads=4, max_positions=32)


def numbers(line: str) -> list[int]:
    """The whole numbers of a line; 12 for "12 x 3"."""
    words = [word.strip(",;:").replace(",", "") for word in line.split()]
    return [int(word) for word in words if word.lstrip("-").isdigit()]


def test_gpt2_has_its_published_number_of_parameters() -> None:
    config = config_file("configs/gpt2_124m.py")
    shapes = parameter_shapes(config.model)
    assert sum(map(math.prod, shapes.values())) == 124_439_808
    # Without biases in norms and attention, as in nanoGPT; and the table of positions alone.
    assert math.prod(shapes["positions"]) == 1_024 * 768
    assert numbers(list(describe(config))[-1]) == [124_439_808]


@pytest.mark.slow
def test_gpt3s_attention_is_counted_as_in_the_lecture() -> None:
    lines = list(attention_table(config_file("configs/gpt3.py")))
    title, _, *matrices, together, biases, unfactored = lines[:9]
    assert title == "decoder self-attention: 96 blocks of 96 heads, d_model 12,288"
    assert [line.split()[0] for line in matrices] == ["query", "key", "value-down", "value-up"]
    for line in matrices:
        *shape, of_head, heads, of_block, blocks, total = numbers(line)
        assert sorted(shape) == [128, 12_288] and (heads, blocks) == (96, 96)
        assert (of_head, of_block, total) == (1_572_864, 96 * 1_572_864, 96 * 96 * 1_572_864)
    assert numbers(together) == [6_291_456, 603_979_776, 57_982_058_496]
    assert numbers(biases) == [96 * 4 * 12_288]
    assert "150,994,944; value-down and value-up have 3,145,728, 48 times fewer" in unfactored
    share = {line[:36].strip(): line[36:].split() for line in lines[11:]}
    assert share["attention"] == ["57,982,058,496", "33.10%"]
    assert share["all matrices"] == ["175,181,291,520", "100.00%"]
    contexts = [numbers(line) for line in lines[-5:]]
    assert [row[0] for row in contexts] == [512, 1_024, 2_048, 4_096, 8_192]
    assert contexts[2] == [2_048, 2_048**2, 2_048 * 2_049 // 2, 96 * 2_048**2, 96**2 * 2_048**2]
    assert contexts[3][1] == 4 * contexts[2][1]


VARIANTS = {
    "a decoder": LanguageModelConfig(SMALL, TextConfig(vocab_size=300, context=16)),
    "without biases": LanguageModelConfig(
        dataclasses.replace(SMALL, attention_bias=False, norm_bias=False, tied_embeddings="none", output_bias=True),
        TextConfig(pieces="bytes", context=16),
    ),
    "shared keys and values": LanguageModelConfig(
        dataclasses.replace(SMALL, kv_heads=2, kv_sharing=2, d_k=6, d_v=5, vocab_size=20),
        TextConfig(context=16),
    ),
    "translation": Config(
        ModelConfig(encoder_layers=2, decoder_layers=3, d_model=8, d_ff=12, heads=2, tied_embeddings="target"),
        DataConfig(vocab_size=30, max_length=16),
    ),
    "an encoder alone": MaskedConfig(
        dataclasses.replace(BERT, encoder_layers=3, d_model=8, d_ff=12, heads=2, max_positions=32),
        PretrainConfig(vocab_size=40, context=16),
    ),
    "a tagger": MaskedConfig(
        dataclasses.replace(BERT, encoder_layers=1, d_model=8, d_ff=12, heads=2, head="token", labels=5),
        PretrainConfig(vocab_size=50, context=16),
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_tables_add_up_to_the_real_parameters(name: str) -> None:
    config = VARIANTS[name]
    size = vocabulary_size(config)
    sizes = {"a decoder": 300, "without biases": 260, "shared keys and values": 20, "translation": 30}
    assert size == (sizes | {"an encoder alone": 40, "a tagger": 50})[name]
    shapes = parameter_shapes(config.model.with_vocabulary(size))
    lines = list(attention_table(config))
    there = sum(
        math.prod(shape) for path, shape in shapes.items() if "_attention/" in path and not path.endswith("bias")
    )
    matrices = [numbers(line) for line in lines if line.startswith(("query", "key", "value-"))]
    for *_, of_head, heads, of_block, blocks, total in matrices:
        assert of_head * heads == of_block and of_block * blocks == total
    assert sum(row[-1] for row in matrices) == there
    first = next(i for i, line in enumerate(lines) if line.startswith("the whole model"))
    last = lines.index("", first)
    whole = {line[:36].strip(): numbers(line[36:])[0] for line in lines[first + 1 : last]}
    assert whole["attention"] == there and whole["parameters"] == sum(map(math.prod, shapes.values()))
    parts = [whole[part] for part in whole if part not in ("parameters", "all matrices")]
    assert sum(parts) == whole["parameters"]
    if name in ("an encoder alone", "a tagger"):
        assert whole["heads"] == {"an encoder alone": 2 * 8 * 8 + 8 * 2, "a tagger": 8 * 5}[name]
        assert ("output" in whole or "output (the embedding's numbers)" in whole) == (name == "an encoder alone")
    kinds = present(config.model)
    assert len(matrices) == 4 * len(kinds) and len(kinds) == (3 if name == "translation" else 1)


def test_a_shared_matrix_is_counted_once() -> None:
    lines = [line.split() for line in attention_table(VARIANTS["shared keys and values"])]
    rows = {line[0]: line[1:] for line in lines if line and line[0] in ("query", "key", "value-down", "value-up")}
    # Of 3 blocks in pairs, 2 have their own keys and values; of 4 heads in pairs, 2.
    assert rows["query"] == ["8", "x", "6", "48", "4", "192", "3", "576"]
    assert rows["key"] == ["8", "x", "6", "48", "2", "96", "2", "192"]
    assert rows["value-down"] == ["8", "x", "5", "40", "2", "80", "2", "160"]
    assert rows["value-up"] == ["5", "x", "8", "40", "4", "160", "3", "480"]


@pytest.mark.parametrize("window", [None, 0, 2, 50])
@pytest.mark.parametrize("kind", ["encoder", "decoder", "cross"])
def test_the_pattern_counts_what_the_masks_allow(kind: str, window: int | None) -> None:
    queries, keys = 7, 7 if kind != "cross" else 5
    allowed = [
        (t, s)
        for t in range(queries)
        for s in range(keys)
        if not (kind == "decoder" and s > t) and (window is None or abs(t - s) <= window)
    ]
    assert pattern(kind, queries, keys, window) == len(allowed)


def test_characters_are_counted_in_the_text(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TRANSFORMER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("abca\n" * 40)
    data = TextConfig(text=(str(tmp_path / "text.txt"),), pieces="characters", context=16)
    assert vocabulary_size(LanguageModelConfig(SMALL, data)) == 4 + 4
    with pytest.raises(UserError, match="missing"):
        vocabulary_size(LanguageModelConfig(SMALL, dataclasses.replace(data, text=(str(tmp_path / "missing"),))))
    (tmp_path / "characters.json").write_text(json.dumps({"characters": "xyz"}))
    data = dataclasses.replace(data, tokenizer=str(tmp_path / "characters.json"))
    assert vocabulary_size(LanguageModelConfig(SMALL, data)) == 4 + 3


def test_pieces_of_a_tokenizer_and_of_a_start(trained) -> None:
    size = transformer.Tokenizer.load(trained / "tokenizer.model").vocab_size
    assert vocabulary_size(Config(data=DataConfig(tokenizer=str(trained / "tokenizer.model")))) == size != 8_000
    assert vocabulary_size(Config(train=TrainConfig(init_from=str(trained)))) == size
    with pytest.raises(UserError, match=r"^nowhere: cannot be read"):
        vocabulary_size(Config(data=DataConfig(tokenizer="nowhere")))


def test_on_the_command_line(call) -> None:
    few = ("--model.decoder_layers", 1, "--model.d_model", 24, "--model.heads", 2, "--model.vocab_size", 50)
    done = call("transformer", "describe", "--attention", "--config", "gpt2_124m", *few)
    assert done.code == 0 and done.out.startswith("decoder self-attention: 1 blocks of 2 heads, d_model 24\n")
    done = call("transformer", "describe", "--config", "gpt2_124m", *few)
    assert done.code == 0 and "decoder/layers/*/self_attention/query" in done.out
    done = call("transformer", "describe", "--attention", "--kv", "--config", "gpt2_124m")
    assert done.code == 2 and "--kv and --attention print different tables" in done.err
    done = call("transformer", "describe", "--kv", "--config", "gpt2_124m")
    assert done.code == 2 and "its task is 'language_model'; give one of the task 'translation'" in done.err
    windowed = AttentionConfig(window=3)
    config = LanguageModelConfig(dataclasses.replace(SMALL, decoder_attention=windowed), TextConfig(context=16))
    assert any("window 3" in line for line in attention_table(config))
