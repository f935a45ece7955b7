"""Configuration: frozen dataclasses for the whole project, JSON in and out, and the rules they must obey.

Standard library only. `model/` and this file together can be copied into another project.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints


class UserError(Exception):
    """A user's mistake, told in one line: what is wrong, where, and the fix. Entry points print it and exit 2."""


class Interrupted(BaseException):
    """A signal asked the program to stop, and it has done so. Entry points print the message and exit with `code`.

    Like KeyboardInterrupt it is no error that others may catch.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.code = 128 + number


KINDS = ("encoder", "decoder", "cross")  # of attention


@dataclass(frozen=True)
class AttentionConfig:
    """One kind of attention, where it differs from the others."""

    kv_heads: int | None = None
    """Number of key/value heads; None = model.kv_heads."""
    kv_sharing: int | None = None
    """Neighbouring layers that use one set of keys and values; None = model.kv_sharing."""
    window: int | None = None
    """Attend only to positions at most this far away; None = no limit. A target position's place in the source is its
    own number."""


@dataclass(frozen=True)
class ModelConfig:
    """The architecture. The defaults are the base model of Vaswani et al. 2017 (Table 3)."""

    encoder_layers: int = 6
    """Number of encoder layers (the paper's N)."""
    decoder_layers: int = 6
    """Number of decoder layers (the paper's N)."""
    d_model: int = 512
    """Width of the residual stream."""
    d_ff: int = 2048
    """Inner width of the feed-forward sub-layer."""
    heads: int = 8
    """Number of query heads (the paper's h)."""
    kv_heads: int | None = None
    """Number of key/value heads: None = heads (multi-head), 1 = multi-query, in between = grouped-query."""
    kv_sharing: int = 1
    """Cross-layer attention (Brandon et al. 2024): so many neighbouring layers use one set of keys and values."""
    encoder_attention: AttentionConfig = field(default_factory=AttentionConfig)
    """Self-attention in the encoder."""
    decoder_attention: AttentionConfig = field(default_factory=AttentionConfig)
    """Self-attention in the decoder."""
    cross_attention: AttentionConfig = field(default_factory=AttentionConfig)
    """The decoder's attention over the encoder's output."""
    d_k: int | None = None
    """Size of one query and key head: None = d_model / heads."""
    d_v: int | None = None
    """Size of one value head: None = d_model / heads."""
    dropout: float = 0.1
    """Dropout rate on every sub-layer's output and on the sums of embeddings and positions (paper §5.4)."""
    positions: Literal["sinusoidal", "learned", "none"] = "sinusoidal"
    """Position encoding; 'learned' is row (E) of the paper's Table 3."""
    max_positions: int = 1024
    """Rows of a learned position table; unused otherwise."""
    pre_norm: bool = False
    """Normalise each sub-layer's input instead of its residual sum (and the stack's output once)."""
    tied_embeddings: Literal["all", "target", "none"] = "all"
    """Which matrices are one table: 'all' = source, target and output (paper §3.4), 'target' = target and output."""
    initializer: Literal["scaled", "glorot", "fairseq"] = "scaled"
    """Initial values of the matrices. 'scaled' = with variance 1 / fan-in, in the last matrix of each sub-layer divided
    by the number of sub-layers in the stack, as in GPT-2; 'glorot' = by Glorot and Bengio 2010, from which post-norm
    models may not take off; 'fairseq' = as fairseq's Transformer. See transformer/model/initializers.py."""
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
    """Source and target language codes, which 'phrases' and 'wmt14' need. With your own text they only say whether
    evaluate.py also prints the paper's compound-split BLEU: for en de."""
    source: tuple[str, ...] = ()
    """Training text, one sentence a line, as one or several files: plain, .gz, .tsv or .jsonl."""
    target: tuple[str, ...] = ()
    """Translations of `source`, line by line, as many files. Leave out for .tsv and .jsonl, which hold both sides."""
    weights: tuple[float, ...] = ()
    """How often each file of `source` is seen in an epoch (2 = twice, 0.5 = a fresh half each time); default 1 each."""
    fields: tuple[str, str] = ("source", "target")
    """Names of the two fields in .jsonl files, source and target; they must differ."""
    dev_source: str | None = None
    """Development set, source side; scored during training."""
    dev_target: str | None = None
    """Development set, reference side."""
    test_source: str | None = None
    """Test set, source side; what evaluate.py scores by default."""
    test_target: str | None = None
    """Test set, reference side."""
    phrases: int = 100_000
    """Number of generated training pairs (corpus 'phrases' only)."""
    tfds_dir: str | None = None
    """Folder of TFDS's data (corpus 'wmt14' only); None = TFDS's default."""
    vocab_size: int = 8_000
    """Pieces in the SentencePiece BPE vocabulary, shared by source and target."""
    tokenizer: str | None = None
    """A ready SentencePiece model to use instead of training one."""
    normalization: Literal["clean", "identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf"] = "clean"
    """How text is cleaned, in training and translating alike. 'clean' = sources by NFKC, with each white space as one
    space and without format characters such as zero-width spaces; targets by NFC and white space alone (see
    transformer/data/cleaning.py). 'identity' = not at all: every byte counts. The others are SentencePiece's rules, for
    both sides. A ready tokenizer, and a workdir that is there already, keep their own rule."""
    tokenizer_sentences: int = 2_000_000
    """At most this many lines a side train the tokenizer, taken evenly from the whole text."""
    max_length: int = 256
    """Training pairs with more pieces than this on a side, end of sentence included, are dropped and counted."""
    max_ratio: float = 9.0
    """Training pairs with more than so many times the pieces on one side as on the other are dropped and counted."""
    packing: bool = False
    """Several sentence pairs in a row, none of which sees another: one batch shape, and hardly any padding. For
    accelerators: on a CPU buckets are faster."""
    length_buckets: int = 8
    """Without packing: number of batch shapes; their lengths are chosen from the data to waste the least on padding."""
    cache_dir: str | None = None
    """Local folder of tokenised text and generated corpora; None = $TRANSFORMER_CACHE or ~/.cache/transformer."""
    workers: int = 0
    """Processes that tokenise; 0 = one a processor."""


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation (paper §5), evaluation during training, and checkpoints."""

    steps: int = 100_000
    """Number of updates."""
    batch_tokens: int = 25_000
    """At most this many source and this many target positions an update, end of sentence and padding included."""
    accumulate: int = 1
    """Micro-batches an update is cut into, one after the other, to save memory."""
    remat: bool = False
    """Save memory by computing each layer a second time for its gradient, a third more work."""
    peak_learning_rate: float | None = None
    """Learning rate at the end of warmup; None = the paper's d_model^-0.5 * warmup_steps^-0.5."""
    warmup_steps: int = 4_000
    """Updates of linear warmup before the inverse square root decay."""
    adam_b1: float = 0.9
    """Adam's first decay rate."""
    adam_b2: float = 0.98
    """Adam's second decay rate."""
    adam_eps: float = 1e-9
    """Adam's epsilon."""
    clip_norm: float | None = None
    """Clip the global gradient norm to this; None = no clipping (the paper does none)."""
    label_smoothing: float = 0.1
    """Probability taken from the reference piece and spread evenly over the whole vocabulary (paper §5.4)."""
    seed: int = 0
    """Seed of initialisation, data order and dropout."""
    log_every: int = 100
    """Updates between two lines of the log."""
    eval_every: int = 1_000
    """Updates between two evaluations on the development set (loss, perplexity, BLEU, samples)."""
    eval_sentences: int | None = None
    """Translate only the first so many development sentences during training; None = all."""
    checkpoint_every: int = 1_000
    """Updates between two checkpoints."""
    keep_last: int = 5
    """Number of newest checkpoints to keep. The best on dev BLEU is always kept as well."""
    keep_every: int | None = None
    """Archive: also keep every checkpoint whose step is a multiple of this."""
    patience: int | None = None
    """Stop after this many evaluations in a row without a better dev BLEU; None = never."""
    non_finite: Literal["stop", "skip", "rollback"] = "stop"
    """An update whose loss or gradient is not finite: 'stop' = end the run; 'skip' = change nothing and go on;
    'rollback' = go back to the last checkpoint, and leave that update out."""
    non_finite_limit: int = 20
    """The run ends after more than so many updates were skipped or left out."""
    init_from: str | None = None
    """Start from the parameters of another workdir's default checkpoint; its vocabulary must be the same. The default
    is, as everywhere, the average if one was made, else the best on dev BLEU: the best model that run has. This is
    meant: what an average lacks, its optimiser's state, isn't taken over in any case."""


@dataclass(frozen=True)
class MeshConfig:
    """How devices are arranged: data * fsdp * tensor = number of devices."""

    data: int = -1
    """Copies of the model, each with its share of the batch; -1 = all devices left over by the other axes."""
    fsdp: int = 1
    """Devices that share out parameters and optimiser state as well as the batch."""
    tensor: int = 1
    """Devices that share out heads, feed-forward width and vocabulary."""


@dataclass(frozen=True)
class DecodeConfig:
    """Beam search (paper §6.1), or sampling, and what is demanded of the output."""

    beam_size: int = 4
    """Hypotheses kept a sentence; 1 = greedy."""
    length_penalty: float = 0.6
    """Alpha of the length penalty."""
    length_normalization: Literal["paper", "fairseq", "none"] = "paper"
    """Hypothesis score = log-probability / penalty, the length counted with end of sentence:
    'paper' = ((5 + length) / 6)^alpha, 'fairseq' = length^alpha, 'none' = 1."""
    n_best: int = 1
    """Hypotheses given a sentence, where the output has room for several (--jsonl); a search has beam_size at most."""
    max_extra_length: int = 50
    """A translation has at most so many pieces more than its source."""
    max_length: int | None = None
    """A translation has at most so many pieces, whatever its source; None = no such limit."""
    min_length: int = 0
    """A translation has at least so many pieces, where the limits above allow it."""
    no_repeat_ngram: int = 0
    """No sequence of so many pieces occurs twice in a translation; 0 = no such rule."""
    banned: tuple[str, ...] = ()
    """Phrases that may not occur in a translation, as the tokenizer cuts them when they stand alone."""
    sample: bool = False
    """Draw n_best translations a sentence at random instead of searching for the best."""
    temperature: float = 1.0
    """Sampling: log-probabilities are divided by this; below 1 likely pieces become likelier."""
    top_k: int = 0
    """Sampling: draw from the so many likeliest pieces; 0 = from all."""
    top_p: float = 1.0
    """Sampling: draw from the likeliest pieces that together have this probability."""
    seed: int = 0
    """Sampling: the same seed and input give the same output."""
    max_source_length: int = 1024
    """Longer inputs, in pieces, are cut and reported."""
    batch_sentences: int = 64
    """At most so many sentences are decoded together, in each of the streams."""
    batch_tokens: int = 16_384
    """Source positions times beams decoded together, in each of the streams: a bound on memory."""
    streams: int = 0
    """So many batches are decoded side by side; 0 = one for each core, up to 8, on a CPU, and one elsewhere. Several
    devices share each batch, one at a time."""
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Type of products; 'auto' = bfloat16 on accelerators, the model's own on a CPU. 'int8': weights and what they are
    multiplied with as 8-bit integers, everything else in float32, on accelerators in bfloat16."""


@dataclass(frozen=True)
class Config:
    """One run: what `configs/*.py` hold and `workdir/config.json` records."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)


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
    except json.JSONDecodeError as error:
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


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type; an integer is also a float."""
    kinds = get_args(hint)
    if get_origin(hint) is Literal:
        return value in kinds
    if get_origin(hint) is tuple:
        kinds = kinds[:1] * len(value) if Ellipsis in kinds and isinstance(value, tuple) else kinds
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if kinds:
        return any(_fits(value, kind) for kind in kinds)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def check(config: Config) -> None:
    """Raise `UserError` naming the first field that breaks a rule."""
    m, d, t, mesh, decode = config.model, config.data, config.train, config.mesh, config.decode

    def require(holds: bool, name: str, rule: str) -> None:
        if not holds:
            raise UserError(f"{name} = {flatten(config)[name]!r}: {rule}")

    def types(section: Any, prefix: str) -> None:
        for name, hint in get_type_hints(type(section)).items():
            value = getattr(section, name)
            if dataclasses.is_dataclass(hint):
                types(value, f"{prefix}{name}.")
                continue
            if get_origin(hint) is Literal:
                rule = f"must be one of {', '.join(get_args(hint))}"
            else:
                rule = f"must be of type {hint.__name__ if hint in (int, float, str, bool) else hint}"
            require(_fits(value, hint), prefix + name, rule)
            require(not isinstance(value, float) or math.isfinite(value), prefix + name, "must be a finite number")

    types(config, "")
    for name in ("d_model", "d_ff", "heads", "max_positions", "encoder_layers", "decoder_layers"):
        require(getattr(m, name) >= 1, f"model.{name}", "must be at least 1")
    require(m.kv_sharing >= 1, "model.kv_sharing", "must be at least 1")
    optional = ["kv_heads", "d_k", "d_v"]
    optional += [f"{kind}_attention.{name}" for kind in KINDS for name in ("kv_heads", "kv_sharing")]
    for name in optional:
        value = flatten(m)[name]
        require(value is None or value >= 1, f"model.{name}", "must be at least 1, or None")
    if m.d_k is None or m.d_v is None:
        require(m.d_model % m.heads == 0, "model.heads", f"must divide model.d_model ({m.d_model}), or set d_k and d_v")
    for kind in KINDS:
        name, own = f"model.{kind}_attention", m.attention(kind)
        if getattr(m, f"{kind}_attention").kv_heads is None:
            require(m.heads % own.kv_heads == 0, "model.kv_heads", f"must divide model.heads ({m.heads})")
        else:
            require(m.heads % own.kv_heads == 0, f"{name}.kv_heads", f"must divide model.heads ({m.heads})")
        require(own.window is None or own.window >= 0, f"{name}.window", "must be 0 or more, or None")
    if m.positions == "sinusoidal":
        require(m.d_model % 2 == 0, "model.d_model", "must be even for sinusoidal positions")
    if m.positions == "learned":
        longest = max(d.max_length, decode.max_source_length + decode.max_extra_length + 1)
        require(
            m.max_positions >= longest,
            "model.max_positions",
            f"must be at least {longest}, the longest sentence that data.max_length and "
            "decode.max_source_length + decode.max_extra_length + 1 allow",
        )
    require(0 <= m.dropout < 1, "model.dropout", "must be at least 0 and below 1")

    require(
        d.corpus == "text" or d.languages is not None,
        "data.languages",
        f"must name source and target language for data.corpus = {d.corpus!r}, such as: en de",
    )
    require(not d.weights or len(d.weights) == len(d.source), "data.weights", "must be as many as data.source")
    require(all(w > 0 for w in d.weights), "data.weights", "must all be above 0")
    require(d.fields[0] != d.fields[1], "data.fields", "must be two names, that of the source and that of the target")
    require(d.vocab_size >= 8, "data.vocab_size", "must be at least 8")
    require(d.max_length >= 2, "data.max_length", "must be at least 2")
    require(d.max_ratio >= 1, "data.max_ratio", "must be at least 1")
    require(d.length_buckets >= 1, "data.length_buckets", "must be at least 1")
    require(d.tokenizer_sentences >= 1, "data.tokenizer_sentences", "must be at least 1")
    require(d.workers >= 0, "data.workers", "must be 0 or more")
    require(d.phrases >= 1, "data.phrases", "must be at least 1")

    for name in ("steps", "batch_tokens", "accumulate", "warmup_steps", "log_every", "eval_every", "checkpoint_every"):
        require(getattr(t, name) >= 1, f"train.{name}", "must be at least 1")
    for name, seed in (("train.seed", t.seed), ("decode.seed", decode.seed)):
        require(0 <= seed < 2**32, name, "must be 0 or more and below 2**32")  # JAX forgets what is above
    require(t.keep_last >= 1, "train.keep_last", "must be at least 1")
    require(t.non_finite_limit >= 1, "train.non_finite_limit", "must be at least 1")
    for name in ("keep_every", "patience", "eval_sentences"):
        require(getattr(t, name) is None or getattr(t, name) >= 1, f"train.{name}", "must be at least 1, or None")
    require(
        t.batch_tokens >= d.max_length * t.accumulate,
        "train.batch_tokens",
        f"must hold at least one sentence of data.max_length ({d.max_length}) pieces in each of its "
        f"{t.accumulate} micro-batches; raise it or lower data.max_length",
    )
    require(t.peak_learning_rate is None or t.peak_learning_rate > 0, "train.peak_learning_rate", "must be above 0")
    require(t.clip_norm is None or t.clip_norm > 0, "train.clip_norm", "must be above 0, or None")
    require(0 <= t.label_smoothing < 1, "train.label_smoothing", "must be at least 0 and below 1")
    for name in ("adam_b1", "adam_b2"):
        require(0 <= getattr(t, name) < 1, f"train.{name}", "must be at least 0 and below 1")
    require(t.adam_eps > 0, "train.adam_eps", "must be above 0")

    require(mesh.data == -1 or mesh.data >= 1, "mesh.data", "must be -1 or at least 1")
    for name in ("fsdp", "tensor"):
        require(getattr(mesh, name) >= 1, f"mesh.{name}", "must be at least 1")

    require(decode.beam_size >= 1, "decode.beam_size", "must be at least 1")
    require(decode.length_penalty >= 0, "decode.length_penalty", "must be 0 or more")
    require(decode.max_extra_length >= 0, "decode.max_extra_length", "must be 0 or more")
    require(decode.max_source_length >= 1, "decode.max_source_length", "must be at least 1")
    for name in ("batch_sentences", "batch_tokens", "n_best"):
        require(getattr(decode, name) >= 1, f"decode.{name}", "must be at least 1")
    if not decode.sample:
        require(decode.n_best <= decode.beam_size, "decode.n_best", f"at most decode.beam_size ({decode.beam_size})")
    require(decode.max_length is None or decode.max_length >= 1, "decode.max_length", "must be at least 1, or None")
    for name in ("min_length", "no_repeat_ngram", "top_k", "streams"):
        require(getattr(decode, name) >= 0, f"decode.{name}", "must be 0 or more")
    longest = decode.max_length
    require(
        longest is None or decode.min_length <= longest, "decode.min_length", f"at most decode.max_length ({longest})"
    )
    require(all(phrase.strip() for phrase in decode.banned), "decode.banned", "an empty phrase can't be banned")
    require(decode.temperature > 0, "decode.temperature", "must be above 0")
    require(0 < decode.top_p <= 1, "decode.top_p", "must be above 0 and at most 1")
