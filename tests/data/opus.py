"""A folder of the form of Opus-MT: a random Marian, two SentencePiece models, and a vocab.json with other ids."""

import io
import json
from pathlib import Path

import numpy as np
import sentencepiece

from transformer.tools.hf.folder import write_arrays

SOURCE = (
    "The cat sees a bird in the garden.",
    "A dog runs through the old town, and the children laugh!",
    "Why does the small house have seven windows?",
    "On Monday we buy bread, butter and 12 eggs.",
    "The river is wide; the bridge is narrow.",
)
TARGET = (
    "Die Katze sieht einen Vogel im Garten.",
    "Ein Hund läuft durch die alte Stadt, und die Kinder lachen!",
    "Warum hat das kleine Haus sieben Fenster?",
    "Am Montag kaufen wir Brot, Butter und 12 Eier.",
    "Der Fluss ist breit; die Brücke ist schmal.",
)
CODES = (">>de<<", ">>nl<<")
# Unusual texts: spaces of all kinds, a code of a language, special pieces as text, other scripts, decomposed letters.
ODD = (
    "",
    " ",
    "  two  spaces ",
    "\u00a0no\u2003break\u00a0",
    "ＦＵＬＬ ﬁve ²",
    "u\u0308ber",
    "漢字 and ☃☃ snow",
    ">>de<< The cat",
    ">>xx<<unknown code",
    ">>de<<",
    "the >>de<< inside",
    "<< >> <<",
    "▁▁ meta ▁",
    "a\tb\u200bc",
    "THE CAT",
    "Ä ä Straße",
)


def spm(lines: tuple[str, ...], **options) -> bytes:
    """A SentencePiece model of these lines, with SentencePiece's default ids and rule."""
    model = io.BytesIO()
    options = {"model_type": "unigram", "vocab_size": 70, "hard_vocab_limit": False, "minloglevel": 2, **options}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines * 4), model_writer=model, **options)
    return model.getvalue()


def vocabulary(models: dict[str, bytes]) -> dict[str, int]:
    """The vocab.json of two models: </s> 0, <unk> 1, the pieces of both, the codes of languages, <pad> last."""
    names = []
    for model in models.values():
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        names += [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    # Two are missing, as if they were cut off.
    pieces = sorted(set(names) - {"</s>", "<unk>", "<s>", "rd", "▁sie"})
    np.random.default_rng(1).shuffle(pieces)
    return {piece: i for i, piece in enumerate(["</s>", "<unk>", *pieces, *CODES, "<pad>"])}


def config_json(size: int, **changes) -> dict:
    """The config.json of Opus-MT as old versions of transformers wrote it, for a tiny model."""
    sizes = {"attention_heads": 2, "ffn_dim": 64, "layerdrop": 0.0, "layers": 1}
    return {
        "activation_dropout": 0.0,
        "activation_function": "swish",
        "add_bias_logits": False,
        "add_final_layer_norm": False,
        "architectures": ["MarianMTModel"],
        "attention_dropout": 0.0,
        "bad_words_ids": [[size - 1]],
        "bos_token_id": 0,
        "classif_dropout": 0.0,
        "classifier_dropout": 0.0,
        "d_model": 32,
        **{f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sizes.items()},
        "decoder_start_token_id": size - 1,
        "decoder_vocab_size": size,
        "dropout": 0.1,
        "eos_token_id": 0,
        "extra_pos_embeddings": 0,
        "forced_eos_token_id": 0,
        "id2label": {"0": "LABEL_0"},
        "init_std": 0.02,
        "is_encoder_decoder": True,
        "label2id": {"LABEL_0": 0},
        "max_length": 60,
        "max_position_embeddings": 64,
        "model_type": "marian",
        "normalize_before": False,
        "normalize_embedding": False,
        "num_beams": 3,
        "num_hidden_layers": changes.get("encoder_layers", 1),
        "pad_token_id": size - 1,
        "scale_embedding": True,
        "share_encoder_decoder_embeddings": True,
        "static_position_embeddings": True,
        "transformers_version": "4.22.0.dev0",
        "use_cache": True,
        "vocab_size": size,
        **changes,
    }


def state_of(config: dict) -> dict[str, np.ndarray]:
    """Random arrays with the names and shapes of `MarianMTModel`; the row of padding is zero, as in Opus-MT."""
    rng = np.random.default_rng(0)
    D, F, V = config["d_model"], config["encoder_ffn_dim"], config["vocab_size"]
    shapes = {"model.shared.weight": (V, D), "final_logits_bias": (1, V)}
    for side in ("encoder", "decoder"):
        for i in range(config[f"{side}_layers"]):
            layer = f"model.{side}.layers.{i}"
            for kind in ("self_attn", "encoder_attn")[: 1 if side == "encoder" else 2]:
                for name in ("q", "k", "v", "out"):
                    shapes |= {f"{layer}.{kind}.{name}_proj.weight": (D, D), f"{layer}.{kind}.{name}_proj.bias": (D,)}
                shapes |= {f"{layer}.{kind}_layer_norm.{part}": (D,) for part in ("weight", "bias")}
            shapes |= {f"{layer}.fc1.weight": (F, D), f"{layer}.fc1.bias": (F,)}
            shapes |= {f"{layer}.fc2.weight": (D, F), f"{layer}.fc2.bias": (D,)}
            shapes |= {f"{layer}.final_layer_norm.{part}": (D,) for part in ("weight", "bias")}

    def random(name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Large enough that outputs are varied, and small enough that float32 keeps logits within 1e-5."""
        scale = 0.12 if len(shape) > 1 and "shared" not in name else 0.3
        return (rng.normal(size=shape) * scale + name.endswith("layer_norm.weight")).astype(np.float32)

    state = {name: random(name, shape) for name, shape in shapes.items()}
    state["final_logits_bias"][0, config["eos_token_id"]] = 3  # outputs end
    state["model.shared.weight"][config["pad_token_id"]] = 0
    state["final_logits_bias"][:, config["pad_token_id"]] = 0
    return state


def write_opus(folder: Path, *, model: bool = True, **changes) -> dict:
    """Write the folder; without `model` only its tokenizer. Returns its config.json. `changes`: other values in it."""
    folder.mkdir()
    models = {"source": spm(SOURCE), "target": spm(TARGET)}
    for side, content in models.items():
        (folder / f"{side}.spm").write_bytes(content)
    ids = vocabulary(models)
    (folder / "vocab.json").write_text(json.dumps(ids))
    names = {"source_lang": "en", "target_lang": "de", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**names, "model_max_length": 64}))
    config = config_json(len(ids), **changes)
    (folder / "config.json").write_text(json.dumps(config))
    if model:
        write_arrays(folder / "model.safetensors", state_of(config))
    return config
