"""Write translation models as folders for `ctranslate2.Translator`, and language models for `ctranslate2.Generator`.

CTranslate2 has the structure of our blocks. It keeps the matrices of query, key and value side by side in one array,
and has a bias in every norm, zero if ours has none. Positions are a table: sinusoids alternate there as here, because
the table is ours.

Its search divides scores by length^alpha; the paper's penalty, ((5 + length) / 6)^alpha, has no counterpart. It also
leaves PAD and BOS out of the softmax, while ours forbids them after it. So each of its log-probabilities is higher by
-log(1 - p(PAD) - p(BOS)), which is about twice the label smoothing, divided by the number of pieces.
"""

from __future__ import annotations

import errno
import filecmp
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from transformer.checkpoint import Checkpoint, Checkpoints, best_seed
from transformer.config import (
    BOS,
    EOS,
    KINDS,
    PAD,
    SPECIALS,
    UNK,
    Config,
    LanguageModelConfig,
    ModelConfig,
    UserError,
    require_task,
)
from transformer.data.vocabularies import ByteLevel
from transformer.files import local_path, new_folder, require_new, writing
from transformer.model import Params
from transformer.model.inputs import sinusoids
from transformer.packages import require
from transformer.tasks.vocabulary import vocabulary_in
from transformer.tools import ctranslate2_options as options_of
from transformer.tools.hf import fields
from transformer.tools.hf.folder import write
from transformer.tools.hf.names import Arrays, flat
from transformer.tools.model_card import About, about, files_about
from transformer.tools.tokenizer_files import cutting, names_in, refuse_twins, tokenizer_files, vocabulary_of

QUANTIZATIONS = ("float32", "float16", "int16", "int8", "int8_float16", "int8_float32")
"""Types of the stored matrices that need no further package."""
NEVER = -1e4
"""Bias of the logits of pieces that are never chosen: a number in float16, too, whose exponential is 0."""

# Fields that may have any value. Every other one must have its default.
_ANY_VALUE = (
    *(
        "encoder_layers",
        "decoder_layers",
        "d_model",
        "d_ff",
        "heads",
        "vocab_size",
        "dropout",
        "attention_dropout",
        "activation_dropout",
    ),
    *("attention_bias", "activation", "norm_eps", "norm_bias", "embedding_scale", "output_bias", "positions"),
    *("max_positions", "position_offset", "input_norm", "pre_norm", "tied_embeddings", "initializer", "kv_heads"),
    *("attention_kernel", "dtype", "d_k", "d_v", "values", "kv_sharing"),
    *(f"{kind}_attention.{name}" for kind in KINDS for name in ("kv_heads", "kv_sharing")),
)


def refuse_inexpressible(config: ModelConfig) -> None:
    """Raise `UserError` naming the first field that breaks a rule, or whose value CTranslate2 can't express."""
    needs = "CTranslate2 can't express it; ctranslate2 needs a model with"
    if not config.decoder_layers:
        raise UserError(
            f"model.decoder_layers = 0: {needs} a decoder; export an encoder alone with --to hf-bert or jax"
        )
    absent = () if config.encoder_layers else ("encoder_layers", "encoder_attention.", "cross_attention.")
    implied = {"attention_score": "unscaled"}
    fields.refuse_inexpressible(config, "CTranslate2", "ctranslate2", _ANY_VALUE, {}, implied=implied, ignored=absent)
    for kind in ("encoder", "decoder"):
        if (shared := config.attention(kind).kv_sharing) > 1 and getattr(config, f"{kind}_layers") > 1:
            own = getattr(config, f"{kind}_attention").kv_sharing
            name = "kv_sharing" if own is None else f"{kind}_attention.kv_sharing"
            raise UserError(f"model.{name} = {shared}: {needs} model.{name} = 1")
    if config.key_size != config.value_size:
        raise UserError(
            f"model.d_k = {config.d_k}, model.d_v = {config.d_v}: {needs} heads of one size, d_k equal to d_v"
        )


# ---- The model -------------------------------------------------------------------------------------------------------


def spec_of(params: Params, config: ModelConfig, pieces: Sequence[str], never: Sequence[int], positions: int) -> Any:
    """The model as a specification of CTranslate2's, complete but for the quantisation: a `TransformerSpec`, or a
    `TransformerDecoderModelSpec` of a decoder alone.

    `pieces`: the name of each id. `never`: ids that are never chosen. `positions`: the most positions of a text, where
    they are not learned. Raises `UserError` naming the first field that CTranslate2 can't express, and if two pieces
    have one name.
    """
    import ctranslate2

    refuse_inexpressible(config)
    refuse_twins(pieces, "CTranslate2")
    specs = ctranslate2.specs.transformer_spec
    arrays = flat(params)
    options = {"pre_norm": config.pre_norm, "layernorm_embedding": config.input_norm}
    options["activation"] = _activation(config)
    # Our alignment: the last layer but one, averaged over its heads.
    aligned = {"alignment_layer": -2 if config.decoder_layers > 1 else -1, "alignment_heads": 0}
    alone = not config.encoder_layers
    decoder = specs.TransformerDecoderSpec(
        *(config.decoder_layers, config.heads), with_encoder_attention=not alone, **aligned, **options
    )
    names = ("embedding", "positions", "input_norm")
    if not alone:
        names = ("target_embedding", "target_positions", "target_norm")
        encoder = specs.TransformerEncoderSpec(config.encoder_layers, config.heads, **options)
        inputs = ("embedding", "source_positions", "source_norm")
        _fill(encoder, encoder.embeddings[0], "encoder", arrays, config, inputs, positions)
    _fill(decoder, decoder.embeddings, "decoder", arrays, config, names, positions)
    _fill_output(decoder.projection, arrays, never)
    if alone:
        spec = specs.TransformerDecoderModelSpec(decoder)
        spec.register_vocabulary(list(pieces))
    else:
        spec = specs.TransformerSpec(encoder, decoder)
        spec.register_source_vocabulary(list(pieces))
        spec.register_target_vocabulary(list(pieces))
        spec.config.add_source_eos = True
    spec.config.layer_norm_epsilon = config.norm_eps
    spec.validate()
    return spec


def _activation(config: ModelConfig) -> Any:
    from ctranslate2.specs.common_spec import Activation

    theirs = {"relu": "RELU", "gelu": "GELU", "gelu_tanh": "GELUTanh", "swish": "SWISH"}
    return Activation[theirs[config.activation]]


def _fill(
    stack: Any, embeddings: Any, kind: str, arrays: Arrays, config: ModelConfig, inputs: Sequence[str], positions: int
) -> None:
    """Fill in a stack and its input. `inputs`: our names of its embedding, its learned positions and its first norm."""
    embedding, learned, first_norm = inputs
    embeddings.weight = np.array(arrays.get(f"{embedding}/table", arrays["embedding/table"]), order="C")
    stack.scale_embeddings = config.embedding_scale
    if config.positions != "rotary":
        stack.position_encodings.encodings = _table(arrays.get(learned), config, positions)
    if config.input_norm:
        _norm(stack.layernorm_embedding, first_norm, arrays)
    if config.pre_norm:
        _norm(stack.layer_norm, f"{kind}/norm", arrays)
    shared = config.attention("cross").kv_sharing
    for i, layer in enumerate(stack.layer):
        ours = f"{kind}/layers/{i}"
        layer.self_attention = _attention(f"{ours}/self_attention", kind, arrays, config)
        if kind == "decoder" and config.encoder_layers:
            owner = f"{kind}/layers/{i // shared * shared}/cross_attention"
            layer.attention = _attention(f"{ours}/cross_attention", "cross", arrays, config, owner)
        _linear(layer.ffn.linear_0, _matrix(arrays[f"{ours}/feed_forward/w1"]), arrays[f"{ours}/feed_forward/b1"])
        _linear(layer.ffn.linear_1, _matrix(arrays[f"{ours}/feed_forward/w2"]), arrays[f"{ours}/feed_forward/b2"])
        _norm(layer.ffn.layer_norm, f"{ours}/feed_forward_norm", arrays)


def _table(learned: np.ndarray | None, config: ModelConfig, positions: int) -> np.ndarray:
    """The table that is added to the embeddings."""
    if config.positions == "learned":
        return learned
    if config.positions == "none":
        return np.zeros((positions, config.d_model), np.float32)
    return np.asarray(sinusoids(jnp.arange(positions)[None], config.d_model)[0])


def _attention(ours: str, kind: str, arrays: Arrays, config: ModelConfig, owner: str | None = None) -> Any:
    """The attention with our name `ours`. `owner`: the one that has its key and value matrices, if another one does."""
    from ctranslate2.specs.attention_spec import MultiHeadAttentionSpec

    kv_heads, of_stack = config.attention(kind).kv_heads, kind != "cross"
    spec = MultiHeadAttentionSpec(
        self_attention=of_stack,
        num_heads_kv=kv_heads if kv_heads < config.heads else None,
        head_dim=config.key_size,
        rotary_dim=0 if of_stack and config.positions == "rotary" else None,  # 0 = all dimensions
        rotary_interleave=False,
    )
    if config.attention_score == "unscaled":
        spec.queries_scale = 1.0
    owner = owner or ours
    value = "value" if f"{owner}/value" in arrays else "key"  # model.values = "keys"
    names = (f"{ours}/query", f"{owner}/key", f"{owner}/{value}")
    matrices = [_matrix(arrays[name]) for name in names]
    biases = [arrays[f"{name}_bias"].reshape(-1) for name in names] if config.attention_bias else []
    for linear, part in zip(spec.linear[:-1], [slice(3)] if of_stack else [slice(1), slice(1, 3)], strict=True):
        _linear(linear, np.concatenate(matrices[part]), np.concatenate(biases[part]) if biases else None)
    output_DX = arrays[f"{ours}/output"].reshape(-1, config.d_model).T
    _linear(spec.linear[-1], output_DX, arrays.get(f"{ours}/output_bias"))
    _norm(spec.layer_norm, f"{ours}_norm", arrays)
    return spec


def _fill_output(projection: Any, arrays: Arrays, never: Sequence[int]) -> None:
    tables = (arrays.get(f"{name}/table") for name in ("output_embedding", "target_embedding", "embedding"))
    table_VD = next(table for table in tables if table is not None)
    bias_V = np.array(arrays.get("output_bias", np.zeros(len(table_VD))), np.float32)
    bias_V[list(never)] = NEVER
    _linear(projection, table_VD, bias_V if bias_V.any() else None)


def _matrix(matrix: np.ndarray) -> np.ndarray:
    """Our matrix (in, out), where the outputs may be heads and their coordinates, as (out, in)."""
    return matrix.reshape(len(matrix), -1).T


def _linear(spec: Any, matrix_ED: np.ndarray, bias_E: np.ndarray | None) -> None:
    spec.weight = np.array(matrix_ED, np.float32, order="C")  # a copy: quantisation writes into it
    if bias_E is not None:
        spec.bias = np.array(bias_E, np.float32, order="C")


def _norm(spec: Any, ours: str, arrays: Arrays) -> None:
    spec.gamma = arrays[f"{ours}/scale"]
    spec.beta = arrays.get(f"{ours}/bias", np.zeros_like(spec.gamma))


# ---- The folder ------------------------------------------------------------------------------------------------------


class _Opened(NamedTuple):
    """What an export needs of a checkpoint."""

    spec: Any
    files: dict[str, Any]
    """The tokenizer: file name -> content, bytes or JSON."""
    about: About
    use: str
    """How to use the folder, in Markdown."""


def export(workdir: str, out: str, checkpoint: str | None = None, quantization: str = "float32") -> Path:
    """Write a checkpoint as a folder for `ctranslate2.Translator`, or of a language model for `ctranslate2.Generator`.

    `checkpoint` as in `transformer.load`; `quantization`: one of `QUANTIZATIONS`. Raises `UserError` if ctranslate2 is
    missing, if `out` is not a new or empty folder, and as `spec_of` does.
    """
    require("export --to ctranslate2", "ctranslate2")
    require_new(folder := local_path("OUT", out))
    opened = Checkpoints(best_seed(workdir)).read(checkpoint, _open)
    _quantize(opened.spec, quantization)
    with writing(folder), new_folder(folder) as building:
        for name, content in (opened.files | files_about(opened.about, "ctranslate2", opened.use)).items():
            write(building / name, content)
        _save(opened.spec, building)
    return folder


def _quantize(spec: Any, quantization: str) -> None:
    """Give the numbers of a model another type. Raises `UserError` if one is too large for it."""
    with np.errstate(over="ignore"):
        spec.optimize(quantization)
    arrays = {name: value.numpy() for name, value in spec.variables().items() if not isinstance(value, str)}
    if wrong := [name for name, x in arrays.items() if x.dtype.kind == "f" and not np.isfinite(x).all()]:
        raise UserError(
            f"--quantization {quantization}: {wrong[0]} has numbers that are too large for it; give float32, or int8"
        )


def _save(spec: Any, folder: Path) -> None:
    """Save a model twice. Raises `OSError` if the files differ: then the disk does not hold what was written."""
    with tempfile.TemporaryDirectory(dir=folder) as again:
        for place in (folder, again):
            spec.save(str(place))
        for path in Path(again).iterdir():
            if not filecmp.cmp(path, folder / path.name, shallow=False):
                raise OSError(errno.EIO, "it does not hold what was written", str(folder / path.name))


def _open(opened: Checkpoint) -> _Opened:
    config = opened.config
    require_task(config, opened.path.parent.parent, Config, LanguageModelConfig)
    model = config.model.with_vocabulary(opened.progress["vocab_size"])
    refuse_inexpressible(model)  # before the arrays are read
    of_kind = _translation if isinstance(config, Config) else _generation
    pieces, names, never, positions, use = of_kind(opened, model)
    spec = spec_of(opened.finite_params(), model, pieces, never, positions)
    for field, name in names.items():
        setattr(spec.config, field, name)
    return _Opened(spec, tokenizer_files(opened), about(opened), use)


def _translation(opened: Checkpoint, model: ModelConfig) -> tuple[Any, ...]:
    """Pieces, names of the special ones, ids that are never chosen, number of positions, and how to use the folder."""
    tokenizer, c = vocabulary_in(opened), opened.config
    pieces = [tokenizer.piece(i) for i in range(model.vocab_size)]
    longest = c.decode.max_source_length + c.decode.max_extra_length + 1
    positions = max(longest, c.data.max_length)
    if model.positions == "learned":
        positions = min(positions, model.max_positions)
    phrases = tokenizer.encode(c.decode.banned, "target") if c.decode.banned else []
    banned = [[pieces[i] for i in phrase] for phrase in phrases]
    names = {"bos_token": SPECIALS[BOS], "eos_token": SPECIALS[EOS], "unk_token": SPECIALS[UNK]}
    names["decoder_start_token"] = SPECIALS[BOS]
    options = options_of.for_translation(c, positions, banned)
    lines = options_of.without_counterpart(c.decode)
    lines.append(
        f"- A source has at most {options['max_input_length'] - 1} pieces; what is longer loses its end. A translation "
        f"has at most {options['max_decoding_length']}; the exported model's search stops {c.decode.max_extra_length} "
        "pieces beyond the length of the source."
    )
    use = _TRANSLATE.format(cutting=cutting(tokenizer), options=_rows(options), lines="\n".join(lines))
    return pieces, names, (PAD, BOS), positions, use


def _generation(opened: Checkpoint, model: ModelConfig) -> tuple[Any, ...]:
    """The same of a language model."""
    vocabulary = vocabulary_of(opened)
    if vocabulary is None:
        raise UserError(f"{opened.path}: has no vocabulary; import the model again, with its tokenizer")
    tokenizer_json = tokenizer_files(opened)["tokenizer.json"]
    pieces = names_in(tokenizer_json, model.vocab_size)
    begin, end = pieces[vocabulary.begin], pieces[vocabulary.end]
    names = {"bos_token": begin, "eos_token": end, "unk_token": end if isinstance(vocabulary, ByteLevel) else "<unk>"}
    first = [begin] if opened.config.data.documents != "none" else []
    longest = model.max_positions if model.positions == "learned" else opened.config.data.context
    banned = [[pieces[i] for i in vocabulary.encode(phrase)] for phrase in opened.config.decode.banned]
    options = options_of.for_generation(opened.config, model, banned)
    lines = "".join(f"{line}\n" for line in options_of.without_counterpart(opened.config.decode))
    use = _GENERATE.format(longest=longest, begin=begin, first=first, options=_rows(options), lines=lines)
    return pieces, names, vocabulary.banned, longest, use


def _rows(options: dict[str, Any]) -> str:
    """The options as rows of Python."""
    return "\n".join(f'        "{name}": {value!r},' for name, value in options.items())


_TRANSLATE = """
Needs `pip install ctranslate2 sentencepiece`.

```python
import ctranslate2
import sentencepiece

translator = ctranslate2.Translator(".")
source, target = (sentencepiece.SentencePieceProcessor(model_file=f"{{side}}.spm") for side in ("source", "target"))


{cutting}


def translate(lines, **others):
    options = {{
{options}
    }}
    results = translator.translate_batch([pieces_of(line) for line in lines], **options | others)
    return [text_of(result.hypotheses[0]) for result in results]
```

- `</s>` at the end of a source, and the start of the output, are set by the folder itself.
{lines}
- `translate_batch(..., return_attention=True)` gives the attention of the last layer but one, averaged over its heads:
  the alignment that `python -m transformer score` prints.
"""
_GENERATE = """
Needs `pip install ctranslate2 tokenizers`.

```python
import ctranslate2
import tokenizers

generator = ctranslate2.Generator(".")
tokenizer = tokenizers.Tokenizer.from_file("tokenizer.json")
tokenizer.encode_special_tokens = True  # "</s>" in a text is text


def generate(prompts, **others):
    options = {{
{options}
    }}
    starts = [{first!r} + tokenizer.encode(prompt, add_special_tokens=False).tokens for prompt in prompts]
    starts = [start or [{begin!r}] for start in starts]
    # One at a time: in a batch with a prompt of one piece, CTranslate2 gives back parts of the other prompts.
    results = generator.generate_batch(starts, include_prompt_in_result=False, max_batch_size=1, **options | others)
    return [tokenizer.decode(result.sequences_ids[0]) for result in results]
```

The options are those of the exported model; others: `generate(["Once"], max_length=20, sampling_temperature=0.8)`. A
prompt and its continuation have at most {longest} pieces together.
{lines}"""
