"""The sections of a run's config besides the model: text, training, devices, decoding, scoring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from transformer.config.codec import Relations, check_fields, require
from transformer.config.numbers import (
    FLOAT32_MAX,
    INT32_MAX,
    Count,
    CountOrZero,
    Length,
    LengthOrZero,
    Positive,
    Rule,
    Seed,
    Share,
    Workers,
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
    """Training text, one sentence a line, as one or several files: plain, SGML, .tsv or .jsonl, compressed or not."""
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
    vocab_size: Annotated[int, Rule(least=8, most=INT32_MAX)] = 8_000
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
    max_ratio: Annotated[float, Rule(least=1, most=FLOAT32_MAX)] = 9.0
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

    data: Annotated[int, Rule(least=-1, most=INT32_MAX)] = -1
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
    temperature: Annotated[float, Rule(least=1e-6, most=FLOAT32_MAX)] = 1.0
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


def check_decode(decode: DecodeConfig) -> None:
    """Raise `UserError` naming the first field of decoding that breaks a rule, whatever the model."""
    check_fields(decode, DecodeConfig, "decode.")
    require(decode, "decode.", _of_decoding(decode))


def _of_decoding(d: DecodeConfig) -> Relations:
    if not d.sample:
        yield d.n_best <= d.beam_size, "n_best", f"must be at most decode.beam_size ({d.beam_size})"
    if d.max_length is not None:
        yield d.min_length <= d.max_length, "min_length", f"must be at most decode.max_length ({d.max_length})"
    yield all(phrase.strip() for phrase in d.banned), "banned", "must hold no empty phrase"
