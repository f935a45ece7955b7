"""Configuration: frozen dataclasses for the whole project, JSON in and out, and the rules they must obey.

Standard library only. `model/` and this file together can be copied into another project.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

PAD, BOS, EOS, UNK = 0, 1, 2, 3
"""The special ids of every vocabulary."""


class UserError(ValueError):
    """A user's mistake, told in one line: what is wrong, where, and the fix. Entry points print it and exit 2.

    From Python it is a ValueError like any other.
    """


class Interrupted(BaseException):
    """A signal asked the program to stop, and it has done so. Entry points print the message and exit with `code`.

    Like KeyboardInterrupt it is no error that others may catch.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.code = 128 + number


@dataclass(frozen=True)
class Rule:
    """Bounds of a number, as part of its field's type; None = no such bound."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def broken(self, value: float) -> str | None:
        """What the value must be, where it is not. Numbers are used in float32: one too small for it counts as 0, one
        that is rounded to a bound lies there."""
        value = 0 if abs(value) < _SMALLEST else value
        if self.least is not None and not value >= self.least:
            return f"must be at least {self.least:,}"
        if self.above is not None and not value > self.above:
            return f"must be above {self.above:,}"
        if self.most is not None and not value <= self.most:
            return f"must be at most {self.most:,}"
        if self.below is not None and not (value if isinstance(value, int) else value * (1 + _ROUNDING)) < self.below:
            return f"must be below {self.below:,}"
        return None


_SMALLEST, _GREATEST, _ROUNDING = 1.18e-38, 3.4e38, 2**-24  # of float32, in which the numbers below are used
_INT32 = 2**31 - 1

Count = Annotated[int, Rule(least=1, most=_INT32)]
CountOrZero = Annotated[int, Rule(least=0, most=_INT32)]
Layers = Annotated[int, Rule(least=1, most=1_000)]
Length = Annotated[int, Rule(least=1, most=1_000_000)]
LengthOrZero = Annotated[int, Rule(least=0, most=1_000_000)]
Workers = Annotated[int, Rule(least=0, most=1_024)]
Seed = Annotated[int, Rule(least=0, below=2**32)]  # JAX forgets what is above
Share = Annotated[float, Rule(least=0, below=1)]
Positive = Annotated[float, Rule(above=0, most=_GREATEST)]

KINDS = ("encoder", "decoder", "cross")  # of attention


@dataclass(frozen=True)
class AttentionConfig:
    """One kind of attention, where it differs from the others."""

    kv_heads: Count | None = None
    """Number of key/value heads; None = model.kv_heads."""
    kv_sharing: Count | None = None
    """Neighbouring layers that use one set of keys and values; None = model.kv_sharing."""
    window: CountOrZero | None = None
    """Attend only to positions at most this far away; None = no limit. A target position's place in the source is its
    own number."""


@dataclass(frozen=True)
class ModelConfig:
    """The architecture. The defaults are the base model of Vaswani et al. 2017 (Table 3)."""

    encoder_layers: Layers = 6
    """Number of encoder layers (the paper's N)."""
    decoder_layers: Layers = 6
    """Number of decoder layers (the paper's N)."""
    d_model: Count = 512
    """Width of the residual stream."""
    d_ff: Count = 2048
    """Inner width of the feed-forward sub-layer."""
    heads: Count = 8
    """Number of query heads (the paper's h)."""
    kv_heads: Count | None = None
    """Number of key/value heads: None = heads (multi-head), 1 = multi-query, in between = grouped-query."""
    kv_sharing: Count = 1
    """Cross-layer attention (Brandon et al. 2024): so many neighbouring layers use one set of keys and values."""
    encoder_attention: AttentionConfig = field(default_factory=AttentionConfig)
    """Self-attention in the encoder."""
    decoder_attention: AttentionConfig = field(default_factory=AttentionConfig)
    """Self-attention in the decoder."""
    cross_attention: AttentionConfig = field(default_factory=AttentionConfig)
    """The decoder's attention over the encoder's output."""
    d_k: Count | None = None
    """Size of one query and key head: None = d_model / heads."""
    d_v: Count | None = None
    """Size of one value head: None = d_model / heads."""
    dropout: Annotated[float, Rule(least=0, most=0.999)] = 0.1
    """Dropout rate on every sub-layer's output and on the sums of embeddings and positions (paper §5.4)."""
    attention_dropout: Share = 0.0
    """Dropout rate on the weights of attention (BERT, GPT-2: 0.1)."""
    attention_bias: bool = False
    """Biases on the queries, keys, values and outputs of attention (BERT, GPT-2, Marian)."""
    activation: Literal["relu", "gelu", "gelu_tanh", "swish"] = "relu"
    """Of the feed-forward sub-layer: 'gelu' = with erf, as BERT; 'gelu_tanh' = its approximation, as GPT-2."""
    norm_eps: Positive = 1e-6
    """Added to the variance in each norm (BERT: 1e-12; GPT-2, Marian: 1e-5)."""
    norm_bias: bool = True
    """Norms shift as well as scale."""
    embedding_scale: bool = True
    """Multiply embeddings by the square root of d_model (paper §3.4). BERT and GPT-2 do not."""
    output_bias: bool = False
    """A bias on the logits of each piece."""
    positions: Literal["sinusoidal", "learned", "rotary", "none"] = "sinusoidal"
    """Position encoding; 'learned' is row (E) of the paper's Table 3; 'rotary' turns queries and keys of self-attention
    (Su et al. 2021)."""
    max_positions: Count = 1024
    """Rows of a learned position table; unused otherwise."""
    position_offset: LengthOrZero = 0
    """In training, the positions of each row begin at a random number from 0 to this, so that more of them are
    learned than the text is long."""
    pre_norm: bool = False
    """Normalise each sub-layer's input instead of its residual sum (and the stack's output once)."""
    tied_embeddings: Literal["all", "target", "none"] = "all"
    """Which matrices are one table: 'all' = source, target and output (paper §3.4), 'target' = target and output."""
    initializer: Literal["scaled", "glorot", "fairseq", "gpt2", "bert"] = "scaled"
    """Initial values of the matrices. 'scaled' = with variance 1 / fan-in, in the last matrix of each sub-layer divided
    by the number of sub-layers in the stack, as in GPT-2; 'glorot' = by Glorot and Bengio 2010, from which post-norm
    models may not take off; 'fairseq', 'gpt2', 'bert' = as these models. See transformer/model/initializers.py."""
    attention_kernel: Literal["plain", "cudnn"] = "plain"
    """'cudnn' = its fused kernel on NVIDIA GPUs, in bfloat16, wherever it does the same; elsewhere as 'plain'."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations and matrix products. Parameters, softmax, norms and loss stay float32."""

    @property
    def key_size(self) -> int:
        return self.d_k or self.d_model // self.heads

    @property
    def value_size(self) -> int:
        return self.d_v or self.d_model // self.heads

    def attention(self, kind: Literal["encoder", "decoder", "cross"]) -> AttentionConfig:
        """One kind of attention, with what it leaves open filled in."""
        own: AttentionConfig = getattr(self, f"{kind}_attention")
        return AttentionConfig(
            kv_heads=own.kv_heads or self.kv_heads or self.heads,
            kv_sharing=own.kv_sharing or self.kv_sharing,
            window=own.window,
        )


@dataclass(frozen=True)
class DataConfig:
    """Where the text comes from and how it is cut into pieces and batches."""

    corpus: Literal["text", "phrases", "wmt14"] = "text"
    """'text' = your own files; 'phrases' = generated numbers, dates, times, amounts, measures and names;
    'wmt14' = WMT14 through TFDS (downloads several GB)."""
    languages: tuple[str, str] | None = None
    """Source and target language codes, which 'phrases' and 'wmt14' need. With your own text they say how it is scored:
    evaluate.bleu_tokenize follows the target language, and for en de evaluate.py also prints the paper's compound-split
    BLEU."""
    source: tuple[str, ...] = ()
    """Training text, one sentence a line, as one or several files: plain, SGML, .tsv or .jsonl, packed or not."""
    target: tuple[str, ...] = ()
    """Translations of `source`, line by line, as many files. Leave out for .tsv and .jsonl, which hold both sides."""
    weights: tuple[Annotated[float, Rule(above=0, most=1_000)], ...] = ()
    """How often each file of `source` is seen in an epoch (2 = twice, 0.5 = a fresh half each time); default 1 each."""
    fields: tuple[str, str] = ("source", "target")
    """Names of the fields in .jsonl files, source and target, which must differ; a.b is the field b of an object a."""
    dev_source: str | None = None
    """Development set, source side; scored during training."""
    dev_target: str | None = None
    """Development set, reference side."""
    test_source: str | None = None
    """Test set, source side; what evaluate.py scores by default."""
    test_target: str | None = None
    """Test set, reference side."""
    phrases: Count = 100_000
    """Number of generated training pairs (corpus 'phrases' only)."""
    tfds_dir: str | None = None
    """Folder of TFDS's data (corpus 'wmt14' only); None = TFDS's default."""
    vocab_size: Annotated[int, Rule(least=8, most=_INT32)] = 8_000
    """Pieces in the SentencePiece BPE vocabulary, shared by source and target."""
    tokenizer: str | None = None
    """A ready SentencePiece model to use instead of training one."""
    normalization: Literal["clean", "identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf"] = "clean"
    """How text is cleaned, in training and translating alike. 'clean' = sources by NFKC, with each white space as one
    space and without format characters such as zero-width spaces; targets by NFC and white space alone (see
    transformer/data/cleaning.py). 'identity' = not at all: every byte counts. The others are SentencePiece's rules, for
    both sides. A ready tokenizer, and a workdir that is there already, keep their own rule."""
    tokenizer_sentences: Count = 2_000_000
    """At most this many lines a side train the tokenizer, taken evenly from the whole text."""
    max_length: Annotated[int, Rule(least=2, most=1_000_000)] = 256
    """Training pairs with more pieces than this on a side, end of sentence included, are dropped and counted."""
    max_ratio: Annotated[float, Rule(least=1, most=_GREATEST)] = 9.0
    """Training pairs with more than so many times the pieces on one side as on the other are dropped and counted."""
    packing: bool = False
    """Several sentence pairs in a row, none of which sees another: one batch shape, and hardly any padding. For
    accelerators: on a CPU buckets are faster."""
    length_buckets: Count = 8
    """Without packing: number of batch shapes; their lengths are chosen from the data to waste the least on padding."""
    cache_dir: str | None = None
    """Local folder of tokenised text and generated corpora; None = $TRANSFORMER_CACHE or ~/.cache/transformer."""
    workers: Workers = 0
    """Processes that tokenise; 0 = one a processor."""


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation (paper §5), evaluation during training, and checkpoints."""

    steps: Count = 100_000
    """Number of updates."""
    batch_tokens: Count = 25_000
    """At most this many source and this many target positions an update, end of sentence and padding included."""
    accumulate: Count = 1
    """Micro-batches an update is cut into, one after the other, to save memory."""
    remat: bool = False
    """Save memory by computing each layer a second time for its gradient, a third more work."""
    peak_learning_rate: Positive | None = None
    """Learning rate at the end of warmup; None = the paper's d_model^-0.5 * warmup_steps^-0.5."""
    warmup_steps: Count = 4_000
    """Updates of linear warmup before the inverse square root decay."""
    adam_b1: Share = 0.9
    """Adam's first decay rate."""
    adam_b2: Share = 0.98
    """Adam's second decay rate."""
    adam_eps: Positive = 1e-9
    """Adam's epsilon."""
    clip_norm: Positive | None = None
    """Clip the global gradient norm to this; None = no clipping (the paper does none)."""
    label_smoothing: Share = 0.1
    """Probability taken from the reference piece and spread evenly over the whole vocabulary (paper §5.4)."""
    seed: Seed = 0
    """Seed of initialisation, data order and dropout."""
    log_every: Count = 100
    """Updates between two lines of the log."""
    eval_every: Count = 1_000
    """Updates between two evaluations on the development set (loss, perplexity, BLEU, samples)."""
    eval_sentences: Count | None = None
    """Translate only the first so many development sentences during training; None = all."""
    checkpoint_every: Count = 1_000
    """Updates between two checkpoints."""
    keep_last: Count = 5
    """Number of newest checkpoints to keep. The best one (evaluate.metric) is always kept as well."""
    keep_every: Count | None = None
    """Archive: also keep every checkpoint whose step is a multiple of this."""
    patience: Count | None = None
    """Stop after this many evaluations in a row none of which was better (evaluate.metric); None = never."""
    non_finite: Literal["stop", "skip", "rollback"] = "stop"
    """An update whose loss or gradient is not finite: 'stop' = end the run; 'skip' = change nothing and go on;
    'rollback' = go back to the last checkpoint, and leave that update out."""
    non_finite_limit: Count = 20
    """The run ends after more than so many updates were skipped or left out."""
    init_from: str | None = None
    """Start from the parameters of another workdir's default checkpoint; its vocabulary must be the same. The default
    is, as everywhere, the average if one was made, else the best: the best model that run has (evaluate.metric). This
    is meant: what an average lacks, its optimiser's state, isn't taken over in any case."""


@dataclass(frozen=True)
class MeshConfig:
    """How devices are arranged: data * fsdp * tensor = number of devices."""

    data: Annotated[int, Rule(least=-1, most=_INT32)] = -1
    """Copies of the model, each with its share of the batch; -1 = all devices left over by the other axes."""
    fsdp: Count = 1
    """Devices that share out parameters and optimiser state as well as the batch."""
    tensor: Count = 1
    """Devices that share out heads, feed-forward width and vocabulary."""


@dataclass(frozen=True)
class DecodeConfig:
    """Beam search (paper §6.1), or sampling, and what is demanded of the output."""

    beam_size: Annotated[int, Rule(least=1, most=10_000)] = 4
    """Hypotheses kept a sentence; 1 = greedy."""
    length_penalty: Annotated[float, Rule(least=0, most=5)] = 0.6
    """Alpha of the length penalty."""
    length_normalization: Literal["paper", "fairseq", "none"] = "paper"
    """Hypothesis score = log-probability / penalty, the length counted with end of sentence:
    'paper' = ((5 + length) / 6)^alpha, 'fairseq' = length^alpha, 'none' = 1."""
    n_best: Annotated[int, Rule(least=1, most=10_000)] = 1
    """Hypotheses given a sentence, where the output has room for several (--jsonl); a search has beam_size at most."""
    max_extra_length: LengthOrZero = 50
    """A translation has at most so many pieces more than its source."""
    max_length: Length | None = None
    """A translation has at most so many pieces, whatever its source; None = no such limit."""
    min_length: LengthOrZero = 0
    """A translation has at least so many pieces, where the limits above allow it."""
    no_repeat_ngram: LengthOrZero = 0
    """No sequence of so many pieces occurs twice in a translation; 0 = no such rule."""
    banned: tuple[str, ...] = ()
    """Phrases that may not occur in a translation, as the tokenizer cuts them when they stand alone."""
    sample: bool = False
    """Draw n_best translations a sentence at random instead of searching for the best."""
    temperature: Annotated[float, Rule(least=1e-6, most=_GREATEST)] = 1.0
    """Sampling: log-probabilities are divided by this; below 1 likely pieces become likelier."""
    top_k: CountOrZero = 0
    """Sampling: draw from the so many likeliest pieces; 0 = from all."""
    top_p: Annotated[float, Rule(above=0, most=1)] = 1.0
    """Sampling: draw from the likeliest pieces that together have this probability."""
    seed: Seed = 0
    """Sampling: what draws depend on, with the number of the line. Rounding may differ in batches of other sizes."""
    max_source_length: Length = 1024
    """Longer inputs, in pieces, are cut and reported."""
    batch_sentences: Count = 64
    """At most so many sentences are decoded together, in each of the streams."""
    batch_tokens: Count = 16_384
    """Source positions times beams decoded together, in each of the streams: a bound on memory."""
    streams: Workers = 0
    """So many batches are decoded side by side; 0 = one for each core, up to 8, on a CPU, and one elsewhere. Several
    devices share each batch, one at a time."""
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Type of products; 'auto' = bfloat16 on accelerators, the model's own on a CPU. 'int8': weights and what they are
    multiplied with as 8-bit integers, everything else in float32, on accelerators in bfloat16."""


@dataclass(frozen=True)
class EvaluateConfig:
    """How translations are scored, and what judges checkpoints."""

    bleu_tokenize: Literal["auto", "13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "none"] = "auto"
    """sacreBLEU's tokeniser for BLEU. 'auto' = by the target language in data.languages: 'zh', 'ja-mecab', 'ko-mecab'
    for Chinese, Japanese and Korean, 'char' for Thai and others without spaces between words, else '13a'."""
    metric: Literal["bleu", "chrf", "loss"] = "bleu"
    """What judges checkpoints first, on the development set. Among equals the others count, in the order BLEU, chrF,
    loss."""


@dataclass(frozen=True)
class Config:
    """One run: what `configs/*.py` hold and `workdir/config.json` records."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


# The two models of the paper (Table 3). Big drops 0.3 of activations, except for English-French (0.1).
BASE = ModelConfig()
BIG = ModelConfig(d_model=1024, d_ff=4096, heads=16, dropout=0.3)

# Fields that may change when a run is resumed: none of them alters what an update computes.
RESUMABLE = (
    "model.initializer",
    "train.steps",
    "train.*_every",
    "train.remat",
    "train.keep_last",
    "train.patience",
    "train.eval_sentences",
    "train.non_finite*",
    "decode.*",
    "evaluate.*",
    "mesh.*",
    "data.cache_dir",
    "data.workers",
    "data.tfds_dir",
)

# Files that may lie elsewhere then, as many as they were: what is in them is compared.
MOVABLE = (
    "data.source",
    "data.target",
    "data.dev_source",
    "data.dev_target",
    "data.test_source",
    "data.test_target",
    "data.tokenizer",
)


def resumable(name: str) -> bool:
    """Whether the field of this dotted name may differ from the workdir's when training goes on."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in RESUMABLE)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted field name -> value, in declaration order."""
    flat = {}
    for f in dataclasses.fields(config):
        value, name = getattr(config, f.name), prefix + f.name
        flat |= flatten(value, name + ".") if dataclasses.is_dataclass(value) else {name: value}
    return flat


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted field name -> (old value, new value) for each field that differs."""
    before, after = flatten(old), flatten(new)
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}


def conflicts(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Those of the differences with which a run of the one can't go on as the other."""

    def may_change(name: str, before: Any, after: Any) -> bool:
        if name == "data.languages":  # of one's own text they only say how it is scored
            return old.data.corpus == new.data.corpus == "text"
        if name in MOVABLE:
            return type(before) is type(after) and (isinstance(before, str) or len(before) == len(after))
        return resumable(name)

    return {name: values for name, values in differences(old, new).items() if not may_change(name, *values)}


def to_json(config: Any) -> str:
    """The config as indented JSON, readable by `from_json`."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str, where: str = "config.json") -> Config:
    """The config that `to_json` wrote. Fields left out take their defaults; an unknown one is a `UserError`."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # of 6,000 digits, of 200,000 brackets
        raise UserError(f"{where}: not valid JSON ({error})") from None
    return _build(Config, values, where, "")


def _build(kind: Any, values: Any, where: str, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"{where}: '{prefix.rstrip('.') or 'config'}' must be an object")
    hints = get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UserError(f"{where}: unknown field '{prefix}{unknown[0]}'; was it written by a newer version?")
    built = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = _build(hints[name], value, where, f"{prefix}{name}.")
        elif isinstance(value, list):
            value = tuple(value)
        built[name] = value
    return kind(**built)


def check(config: Config) -> None:
    """Raise `UserError` naming the first field that breaks a rule."""
    check_fields(config)
    for relations in (_of_data, _of_training):
        _require(config, "", relations(config))
    check_model(config.model)
    check_decode(config.decode)


def check_model(model: ModelConfig) -> None:
    """Raise `UserError` naming the first field of a model that breaks a rule, whatever it is trained on."""
    check_fields(model, ModelConfig, "model.")
    _require(model, "model.", _of_model(model))


def check_decode(decode: DecodeConfig) -> None:
    """Raise `UserError` naming the first field of decoding that breaks a rule, whatever the model."""
    check_fields(decode, DecodeConfig, "decode.")
    _require(decode, "decode.", _of_decoding(decode))


# (whether it holds, name of a field, what it must be)
_Relations = Iterator[tuple[bool, str, str]]


def _of_model(m: ModelConfig) -> _Relations:
    if m.d_k is None or m.d_v is None:
        yield m.d_model % m.heads == 0, "heads", f"must divide model.d_model ({m.d_model}), or set d_k and d_v"
    for kind in KINDS:
        name = "kv_heads" if getattr(m, f"{kind}_attention").kv_heads is None else f"{kind}_attention.kv_heads"
        yield m.heads % m.attention(kind).kv_heads == 0, name, f"must divide model.heads ({m.heads})"
    if m.positions == "sinusoidal":
        yield m.d_model % 2 == 0, "d_model", "must be even for sinusoidal positions"
    if m.positions == "rotary":
        field = "d_model" if m.d_k is None else "d_k"
        yield m.key_size % 2 == 0, field, f"must give heads of an even size, not {m.key_size}, for rotary positions"
    if m.positions == "none":
        yield m.position_offset == 0, "position_offset", "must be 0 where model.positions is 'none'"
    if m.attention_dropout:
        kernel = m.attention_kernel
        yield kernel == "plain", "attention_kernel", f"must be 'plain' with model.attention_dropout, not {kernel!r}"


def _of_data(config: Config) -> _Relations:
    m, d, decode = config.model, config.data, config.decode
    if m.positions == "learned":
        longest = max(d.max_length + m.position_offset, decode.max_source_length + decode.max_extra_length + 1)
        yield (
            m.max_positions >= longest,
            "model.max_positions",
            f"must be at least {longest}, the longest sentence that data.max_length, model.position_offset and "
            "decode.max_source_length + decode.max_extra_length + 1 allow",
        )
    yield (
        d.corpus == "text" or d.languages is not None,
        "data.languages",
        f"must name source and target language for data.corpus = {d.corpus!r}, such as: en de",
    )
    yield not d.weights or len(d.weights) == len(d.source), "data.weights", "must be as many as data.source"
    yield d.fields[0] != d.fields[1], "data.fields", "must be two names, that of the source and that of the target"


def _of_training(config: Config) -> _Relations:
    t, length = config.train, config.data.max_length
    yield (
        t.batch_tokens >= length * t.accumulate,
        "train.batch_tokens",
        f"must hold at least one sentence of data.max_length ({length}) pieces in each of its "
        f"{t.accumulate} micro-batches; raise it or lower data.max_length",
    )
    yield config.mesh.data != 0, "mesh.data", "must be -1 or at least 1"


def _of_decoding(d: DecodeConfig) -> _Relations:
    if not d.sample:
        yield d.n_best <= d.beam_size, "n_best", f"must be at most decode.beam_size ({d.beam_size})"
    if d.max_length is not None:
        yield d.min_length <= d.max_length, "min_length", f"must be at most decode.max_length ({d.max_length})"
    yield all(phrase.strip() for phrase in d.banned), "banned", "must hold no empty phrase"


def _require(section: Any, prefix: str, relations: _Relations) -> None:
    for holds, name, rule in relations:
        if not holds:
            raise UserError(f"{prefix}{name} = {shown(flatten(section)[name])}: {rule}")


def check_fields(section: Any, kind: type = Config, prefix: str = "") -> None:
    """Raise `UserError` for the first field whose value is not of its type, or beyond its bounds.

    `prefix` stands before the names of the fields of a section.
    """
    if not isinstance(section, kind):
        what = f"{type(section).__name__} {shown(section)}"
        raise UserError(f"{prefix.rstrip('.') or 'config'}: must be a {kind.__name__}, not {what}")
    for name, hint in get_type_hints(kind, include_extras=True).items():
        value = getattr(section, name)
        if dataclasses.is_dataclass(hint):
            check_fields(value, hint, f"{prefix}{name}.")
        elif broken := _broken(value, hint):
            raise UserError(f"{prefix}{name} = {shown(value)}: {broken}")


def _broken(value: Any, hint: Any) -> str | None:
    """What a value of this type must be, where it is not; an integer is also a float."""
    kind, kinds = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return _broken(value, kinds[0]) or kinds[1].broken(value)
    if kind is Literal:
        return None if isinstance(value, str) and value in kinds else f"must be one of {', '.join(kinds)}"
    if kind in (UnionType, Union):
        broken = [_broken(value, one) for one in kinds]
        return None if None in broken else f"{broken[0]}, or None"
    if kind is tuple:
        kinds = kinds[:1] * len(value) if Ellipsis in kinds and isinstance(value, tuple) else kinds
        if not isinstance(value, tuple) or len(value) != len(kinds):
            return f"must be of type {_plain(hint)}"
        return next((broken for broken in map(_broken, value, kinds) if broken), None)
    if not isinstance(value, (int, float) if hint is float else hint) or (isinstance(value, bool) and hint is not bool):
        return f"must be of type {hint.__name__}"
    return None if not isinstance(value, float) or math.isfinite(value) else "must be a finite number"


def _plain(hint: Any) -> str:
    """A type hint as Python writes it, without bounds."""
    kinds = get_args(hint)
    if get_origin(hint) is Annotated:
        return _plain(kinds[0])
    if get_origin(hint) is tuple:
        return f"tuple[{', '.join('...' if kind is Ellipsis else _plain(kind) for kind in kinds)}]"
    return hint.__name__


def whole_number(text: str) -> int | None:
    """The number that up to 18 of the digits 0 to 9 spell; None for any other text, such as '²', which Python calls a
    digit, or 5,000 digits, which it does not read."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def shown(value: Any) -> str:
    """A value as a message shows it, whatever it is: cut where it is long."""
    try:
        text = repr(value)
    except Exception as error:  # a number of 6,000 digits; an object of the user's own
        return f"<{type(value).__name__} that cannot be shown: {error}>"
    return text if len(text) <= 200 else f"{text[:200]}..."
