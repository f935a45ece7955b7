"""Write a model as a folder of compiled-to-be programs that jax alone runs: on a CPU, an NVIDIA GPU or a TPU.

    forward.jax            the forward pass, for arrays of any sizes
    search_16x128.jax ...  the search for translations, or the generation of text, for up to 16 texts of up to 128 ids
    programs.json          what the programs take, and which searches there are
    model.safetensors      the parameters, by our names
    loader.py              runs them: `forward` and `search`
    source.spm ...         the tokenizer

The programs are those of `Translator` and `Generator`, so their results are the same. `jax.export` stores them; jax
promises that later versions read them for six months at least.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export

from transformer.checkpoint import Checkpoint, Checkpoints, best_seed
from transformer.config import EOS, PAD, UNK, ByteLatentConfig, Config, LanguageModelConfig, ModelConfig, UserError
from transformer.data.labels import FILE as LABELS
from transformer.files import local_path, new_folder, require_new, writing
from transformer.inference.beam_search import hypotheses
from transformer.inference.classifier import labels_in
from transformer.inference.context import Prompts
from transformer.inference.programs import Strategy, begin, proceed
from transformer.inference.strategy import generation, strategy
from transformer.model import Model, build
from transformer.packages import require
from transformer.tasks.vocabulary import vocabulary_in
from transformer.tools.hf.bert import with_scale
from transformer.tools.hf.folder import write, write_arrays
from transformer.tools.hf.names import flat, nested
from transformer.tools.model_card import About, about, files_about
from transformer.tools.tokenizer_files import cutting, tokenizer_files, vocabulary_of

PLATFORMS = ("cpu", "cuda", "tpu")
ROWS, LENGTHS = (1, 16), (32, 128)
"""Texts of a search, and ids of each."""


class Program(NamedTuple):
    """A function to export, and its arguments after the parameters."""

    function: Callable[..., Any]
    arguments: tuple[jax.ShapeDtypeStruct, ...]


class _Opened(NamedTuple):
    """What an export needs of a checkpoint."""

    params: dict[str, np.ndarray]
    programs: dict[str, Program]
    listed: dict[str, Any]
    """programs.json"""
    files: dict[str, Any]
    about: About
    use: str


def write_folder(workdir: str, out: str, checkpoint: str | None = None) -> Path:
    """Write a checkpoint of any task as such a folder. `checkpoint` as in `transformer.load`.

    Raises `UserError` if a package is missing, if `out` is not a new or empty folder, and if a parameter is not finite.
    """
    require("export --to jax", "safetensors", "flatbuffers")
    require_new(folder := local_path("OUT", out))
    opened = Checkpoints(best_seed(workdir)).read(checkpoint, _open)
    with writing(folder), new_folder(folder) as building:
        for name, content in (opened.files | files_about(opened.about, "jax", opened.use)).items():
            write(building / name, content)
        write(building / "loader.py", Path(__file__).with_name("jax_loader.py").read_bytes())
        write(building / "programs.json", opened.listed)
        write_arrays(building / "model.safetensors", opened.params, {"format": "transformer"})
        for name, program in opened.programs.items():
            write(building / f"{name}.jax", serialized(program, opened.params))
    return folder


def serialized(program: Program, params: Mapping[str, np.ndarray]) -> bytes:
    """The program as bytes, for all of `PLATFORMS`."""
    abstract = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in params.items()}
    exported = export.export(jax.jit(program.function), platforms=PLATFORMS)(abstract, *program.arguments)
    return bytes(exported.serialize())


def _open(opened: Checkpoint) -> _Opened:
    config = opened.config
    if isinstance(config, ByteLatentConfig):
        where = opened.path.parent.parent
        raise UserError(f"{where}: the task {config.task!r} has no programs for jax; give --to safetensors")
    params = opened.finite_params()
    # The plain kernel, since the programs must run everywhere.
    architecture = dataclasses.replace(
        config.model.with_vocabulary(opened.progress["vocab_size"]), attention_kernel="plain"
    )
    model = build(architecture)
    if opened.has(LABELS):
        params = with_scale(params, labels_in(opened))
    program, names = forward(model)
    searches = _searches(opened, model)
    programs = {"forward": program} | {f"search_{rows}x{length}": one for (rows, length), one in searches.items()}
    listed = {"forward": names, "search": [list(shape) for shape in searches]}
    listed["positions"] = architecture.max_positions if architecture.positions == "learned" else None
    listed |= _vocabulary(opened) if searches else {}
    use = _usage(opened, architecture, searches)
    return _Opened(flat(params), programs, listed, tokenizer_files(opened), about(opened), use)


# ---- The forward pass ------------------------------------------------------------------------------------------------


def forward(model: Model) -> tuple[Program, list[str]]:
    """The forward pass for arrays of any sizes, and the names of its arrays."""
    B, S, T = export.symbolic_shape("B, S, T")

    def ids(*shape: Any, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    def run(params: Mapping[str, Array], *arrays: Array) -> Any:
        return model.apply(nested(params), *arrays)

    def parse(params: Mapping[str, Array], source_BS: Array, target_BT: Array, *words: Array) -> Any:
        return model.apply(nested(params), source_BS, target_BT, words=words)

    def encode(params: Mapping[str, Array], tokens_BT: Array, mask_BT: Array, types_BT: Array | None = None) -> Any:
        return model.apply(nested(params), tokens_BT, types_BT=types_BT, mask_BT=mask_BT)

    c = model.config
    if c.hard_attention:
        arrays = ids(B, S), ids(B, T), ids(B, S, dtype=jnp.bool_), ids(B, T)
        return Program(parse, arrays), ["source_BS", "target_BT", "begins_BS", "passed_BT"]
    if c.encoder_layers and c.decoder_layers:
        return Program(run, (ids(B, S), ids(B, T))), ["source_BS", "target_BT"]
    if c.decoder_layers:
        return Program(run, (ids(B, T),)), ["tokens_BT"]
    names, arrays = ["tokens_BT", "mask_BT"], (ids(B, T), ids(B, T, dtype=jnp.bool_))
    if c.token_types:
        names, arrays = [*names, "types_BT"], (*arrays, ids(B, T))
    return Program(encode, arrays), names


# ---- The search ------------------------------------------------------------------------------------------------------


def _searches(opened: Checkpoint, model: Model) -> dict[tuple[int, int], Program]:
    """Map (texts, ids of each) to a search; empty if the task has none, or the model no vocabulary."""
    config = opened.config
    if isinstance(config, Config):
        decode = config.decode
        lengths = _fitting(min(decode.max_source_length, LENGTHS[-1]))
        decoding = strategy(decode, vocabulary_in(opened))
        make = translations
    elif isinstance(config, LanguageModelConfig) and (vocabulary := vocabulary_of(opened)) is not None:
        decode = config.decode
        lengths = _fitting(min(context(config, model.config) - new_pieces(config, model.config), LENGTHS[-1]))
        decoding = generation(decode, vocabulary)
        make = continuations
    else:
        return {}
    return {(rows, length): make(model, decoding, config, rows, length) for rows in ROWS for length in lengths}


def _fitting(longest: int) -> list[int]:
    """The lengths of the searches: those of `LENGTHS` below `longest`, and this."""
    return [*(length for length in LENGTHS if length < longest), longest]


def context(config: LanguageModelConfig, model: ModelConfig) -> int:
    """The most pieces that a language model sees at once."""
    return min(config.data.context, model.max_positions if model.positions == "learned" else config.data.context)


def new_pieces(config: LanguageModelConfig, model: ModelConfig) -> int:
    """The most pieces of a continuation: as in the config, but at most half the context."""
    d = config.decode
    wanted = d.max_extra_length if d.max_length is None else min(d.max_extra_length, d.max_length)
    return max(1, min(wanted, context(config, model) // 2))


def translations(model: Model, decoding: Strategy, config: Config, rows: int, length: int) -> Program:
    """The search for translations of sources of at most `length` pieces, to which it appends eos."""
    d = config.decode
    most = length + d.max_extra_length if d.max_length is None else min(length + d.max_extra_length, d.max_length)

    def run(params: Mapping[str, Array], tokens_BS: Array, lengths_B: Array, seed: Array, first: Array) -> Any:
        lengths_B1, at_S = lengths_B[:, None], jnp.arange(length + 1)
        padded_BS = jnp.pad(tokens_BS, ((0, 0), (0, 1)))
        source_BS = jnp.where(at_S < lengths_B1, padded_BS, jnp.where(at_S == lengths_B1, EOS, PAD))
        source_BS = jnp.where(lengths_B1 > 0, source_BS, PAD)
        limit_B = jnp.where(lengths_B > 0, jnp.minimum(lengths_B + d.max_extra_length, most) + 1, 0)
        return _decode(model, nested(params), source_BS, limit_B, decoding, most + 1, seed, first)

    return Program(run, _arguments(rows, length))


def continuations(model: Model, decoding: Strategy, config: LanguageModelConfig, rows: int, length: int) -> Program:
    """The generation of texts that go on from prompts of at most `length` pieces."""
    most = new_pieces(config, model.config)

    def run(params: Mapping[str, Array], tokens_BP: Array, lengths_B: Array, seed: Array, first: Array) -> Any:
        limit_B = jnp.where(lengths_B > 0, most, 0)
        return _decode(model, nested(params), Prompts(tokens_BP, lengths_B), limit_B, decoding, most, seed, first)

    return Program(run, _arguments(rows, length))


def _arguments(rows: int, length: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The arguments of a search: tokens, lengths, the seed, and the number of the first text."""
    shapes = ((rows, length), jnp.int32), ((rows,), jnp.int32), ((), jnp.uint32), ((), jnp.int32)
    return tuple(jax.ShapeDtypeStruct(*shape) for shape in shapes)


def _decode(
    model: Model,
    params: Mapping[str, Any],
    source: Array | Prompts,
    limit_B: Array,
    decoding: Strategy,
    most: int,
    seed: Array,
    first: Array,
) -> dict[str, Array]:
    """The whole search in one program, with a cache for `most` pieces."""
    if decoding.sampler is not None:
        sampler = dataclasses.replace(decoding.sampler, key=jax.random.key(seed))
        decoding = dataclasses.replace(decoding, sampler=sampler)
    rows, options = len(limit_B), decoding.options
    given = {"number_B": first + jnp.arange(rows, dtype=jnp.int32)}
    shape = {"length": most, "stage": most, "penalized": decoding.repetition_penalty is not None}
    state = begin((params,), source, limit_B, given, options, models=(model,), **shape)
    beams, _ = proceed((params,), *state, decoding, 0, most, models=(model,))
    found = hypotheses(beams, options)
    names = {"tokens": found.tokens_BML, "lengths": found.lengths_BM, "scores": found.scores_BM}
    return {name: x[:, : options.n_best] for name, x in names.items()}


# ---- How to use it ---------------------------------------------------------------------------------------------------


def _vocabulary(opened: Checkpoint) -> dict[str, Any]:
    """What the README's programs must know of the vocabulary, for programs.json."""
    config = opened.config
    if isinstance(config, Config):
        tokenizer = vocabulary_in(opened)
        return {"end": EOS, "unknown": UNK, "pieces": [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]}
    vocabulary = vocabulary_of(opened)
    first = [vocabulary.begin] if config.data.documents != "none" else []
    return {"end": vocabulary.end, "first": first, "begin": vocabulary.begin}


def _usage(opened: Checkpoint, model: ModelConfig, searches: Mapping[tuple[int, int], Program]) -> str:
    """README.md: the forward pass, then the search."""
    inside = _FORWARD["both" if model.encoder_layers and model.decoder_layers else model.head]
    if model.decoder_layers and not model.encoder_layers:
        inside = _FORWARD["decoder"]
    if model.hard_attention:
        inside = _FORWARD["hard"]
    text = _USE.format(version=jax.__version__, forward=inside.strip())
    if not searches:
        return text
    config, d = opened.config, opened.config.decode
    kind = f"samples with temperature {d.temperature:g}" if d.sample else f"beam search with a beam of {d.beam_size}"
    if isinstance(config, Config):
        return text + _TRANSLATE.format(kind=kind, shapes=_shapes(searches), cutting=cutting(vocabulary_in(opened)))
    return text + _GENERATE.format(kind=kind, shapes=_shapes(searches), new=new_pieces(config, model))


def _shapes(searches: Mapping[tuple[int, int], Program]) -> str:
    return ", ".join(f"{rows} x {length}" for rows, length in searches)


_USE = """
Needs `pip install jax flatbuffers`; for a GPU or a TPU `jax[cuda13]` or `jax[tpu]`. Written with jax {version}:
jax promises that it reads such programs for six months after that, and usually does for longer.

```python
import numpy as np
from loader import ABOUT, forward, search  # loader.py of this folder

{forward}
```
"""
_ENCODER = """
tokens_BT = np.array([[2, 7, 8, 3], [2, 9, 3, 0]], np.int32)  # ids; rows are filled up with any id
mask_BT = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], bool)  # True = a piece, False = filled up
types_BT = np.zeros_like(tokens_BT)  # 1 = pieces of the second text of a pair
arrays = {{"tokens_BT": tokens_BT, "mask_BT": mask_BT, "types_BT": types_BT}}
{} = forward(*(arrays[name] for name in ABOUT["forward"]))
"""
_FORWARD = {
    "both": """
source_BS = np.array([[7, 8, 2], [9, 2, 0]], np.int32)  # ids with eos, filled up with 0
target_BT = np.array([[1, 5], [1, 0]], np.int32)  # ids after bos
logits_BTV = forward(source_BS, target_BT)
""",
    "hard": """
source_BS = np.array([[2, 7, 8, 3], [2, 9, 3, 0]], np.int32)  # ids, filled up with 0
target_BT = np.array([[1, 6, 4], [1, 0, 0]], np.int32)  # symbols after bos: 4 stands for the next word
begins_BS = np.array([[0, 1, 1, 0], [0, 1, 0, 0]], bool)  # True = the first piece of a word
passed_BT = np.cumsum(target_BT == 4, axis=1, dtype=np.int32)  # the number of words that the target has passed
logits_BTV = forward(source_BS, target_BT, begins_BS, passed_BT)
""",
    "decoder": """
tokens_BT = np.array([[5, 6, 7]], np.int32)  # ids
logits_BTV = forward(tokens_BT)  # of the piece after each
""",
    "none": _ENCODER.format("states_BTD, pooled_BD"),
    "masked": _ENCODER.format("logits_BTV"),
    "pretraining": _ENCODER.format("logits_BTV, next_sentence_B2"),
    "sequence": _ENCODER.format("outputs_BL") + "# labels.json names them; a single output is a number\n",
    "token": _ENCODER.format("outputs_BTL") + "# labels.json names them\n",
}
_TRANSLATE = """
Translate, with `pip install sentencepiece`:

```python
import sentencepiece

source, target = (sentencepiece.SentencePieceProcessor(model_file=f"{{side}}.spm") for side in ("source", "target"))
ids = {{piece: i for i, piece in enumerate(ABOUT["pieces"])}}


{cutting}


def translate(lines):
    texts = [[ids.get(piece, ABOUT["unknown"]) for piece in pieces_of(line)] for line in lines]
    return [text_of([ABOUT["pieces"][i] for i in found[0][0]]) if found else "" for found in search(texts)]
```

This is {kind}. Its programs take (texts x ids): {shapes}. `search` chooses among them.
"""
_GENERATE = """
Continue texts, with `pip install tokenizers`:

```python
import tokenizers

tokenizer = tokenizers.Tokenizer.from_file("tokenizer.json")
tokenizer.encode_special_tokens = True  # "</s>" in a text is text


def generate(prompts, seed=0):
    texts = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
    texts = [ABOUT["first"] + text or [ABOUT["begin"]] for text in texts]
    return [tokenizer.decode(found[0][0]) if found else "" for found in search(texts, seed)]
```

This is {kind}, of at most {new} new pieces. Its programs take (texts x ids): {shapes}. `search` chooses among them.
"""
