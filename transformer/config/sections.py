"""Sections of a run's config other than the model: data, training, device mesh, decoding, evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .codec import Relations, check_fields, require
from .documentation import documented
from .numbers import (
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


@documented
@dataclass(frozen=True)
class DataConfig:
    """Where the text comes from, and how it is split into pieces and batches."""

    corpus: Literal["text", "phrases", "wmt14"] = "text"
    """'text' = your own files; 'phrases' = generated numbers, dates, times, amounts, measures and names;
    'wmt14' = WMT14 through TFDS (downloads several GB)."""
    languages: tuple[str, str] | None = None
    """Source and target language codes; required for 'phrases' and 'wmt14'. For your own text they only affect
    scoring: evaluate.bleu_tokenize follows the target language, and for en de evaluate.py also prints the paper's
    compound-split BLEU."""
    source: tuple[str, ...] = ()
    """Training text, one sentence per line, in one or several files: plain text, SGML, .tsv or .jsonl, compressed or
    not."""
    target: tuple[str, ...] = ()
    """Translations of `source`, line by line, in the same number of files. Leave out for .tsv and .jsonl files, which
    hold both sides."""
    weights: tuple[Annotated[float, Rule(least=1e-6, most=1_000)], ...] = ()
    """How often each file of `source` is read per epoch (2 = twice, 0.5 = a different half each epoch); default: 1
    for each file."""
    fields: tuple[str, str] = ("source", "target")
    """Names of the source and target fields in .jsonl files, which must differ; a.b is field b of object a."""
    dev_source: str | None = None
    """Development set, source side; training scores it regularly."""
    dev_target: str | None = None
    """Development set, reference side."""
    test_source: str | None = None
    """Test set, source side; evaluate.py scores this set by default."""
    test_target: str | None = None
    """Test set, reference side."""
    phrases: Count = 100_000
    """Number of generated training pairs (corpus 'phrases' only)."""
    tfds_dir: str | None = None
    """Folder of the TFDS data (corpus 'wmt14' only); None = TFDS's default."""
    vocab_size: Annotated[int, Rule(least=8, most=INT32_MAX)] = 8_000
    """Number of pieces in the SentencePiece BPE vocabulary, which source and target share."""
    tokenizer: str | None = None
    """File of an existing SentencePiece model; None = train a new one."""
    normalization: Literal["clean", "identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf"] = "clean"
    """How text is normalised, in training and in translation. 'clean' = sources: NFKC, each run of white space as one
    space, no format characters such as zero-width spaces; targets: NFC and white space only (see
    transformer/data/cleaning.py). 'identity' = no change. The others are rules of SentencePiece, for both sides. An
    existing tokenizer or workdir keeps its own rule."""
    tokenizer_sentences: Count = 2_000_000
    """Train the tokenizer on at most this many lines per side, sampled evenly from the whole text."""
    max_length: Annotated[int, Rule(least=2, most=1_000_000)] = 256
    """Drop and count training pairs with more pieces than this on either side, end of sentence included."""
    bpe_dropout: Share = 0.0
    """BPE dropout (Provilkov et al. 2020, who use 0.1): each epoch cuts the training text anew, and each merge of two
    pieces is left out with this probability. 0 = off."""
    max_ratio: Annotated[float, Rule(least=1, most=FLOAT32_MAX)] = 9.0
    """Drop and count training pairs in which one side has more than this many times the pieces of the other."""
    packing: bool = False
    """Put several sentence pairs into one row; no pair attends to another. This gives one batch shape and almost no
    padding. Use it on accelerators; on a CPU length buckets are faster."""
    length_buckets: Count = 8
    """Without packing: number of batch shapes. Their lengths are chosen from the data to minimise padding."""
    cache_dir: str | None = None
    """Local folder for tokenised text and generated corpora; None = $TRANSFORMER_CACHE or ~/.cache/transformer."""
    workers: Workers = 0
    """Number of processes that tokenise; 0 = one per processor core."""


@documented
@dataclass(frozen=True)
class TextConfig:
    """Where the text of a language model comes from, and how it is split into pieces and rows."""

    text: tuple[str, ...] = ()
    """Training text: one or several files, plain or compressed."""
    dev_text: tuple[str, ...] = ()
    """Development text, in one or several files; training scores it regularly."""
    test_text: tuple[str, ...] = ()
    """Test text, in one or several files; evaluate.py scores it by default."""
    dev_share: Share = 0.1
    """Without dev_text: this last share of the training text (of its characters or documents) is the development text
    and not trained on. 0 = no development text."""
    documents: Literal["none", "blank_lines", "files"] = "none"
    """What a document is; no piece sees another document. 'none' = the files are one running text, which is cut into
    windows; 'blank_lines' = blank lines separate documents; 'files' = each file is a document."""
    pieces: Literal["characters", "bytes", "sentencepiece"] = "sentencepiece"
    """What text is split into: the characters of the training text, the 256 bytes of UTF-8, or the pieces of a new
    SentencePiece BPE vocabulary. Without effect if `tokenizer` is given."""
    tokenizer: str | None = None
    """File of an existing vocabulary: a SentencePiece model with byte pieces, a tokenizer.json of Hugging Face with
    byte-level BPE (needs the package tokenizers), or the characters.json of a workdir."""
    vocab_size: Annotated[int, Rule(least=8, most=INT32_MAX)] = 8_000
    """Number of pieces in a new SentencePiece vocabulary."""
    tokenizer_lines: Count = 2_000_000
    """Train the SentencePiece vocabulary on at most this many lines, sampled evenly from the whole text."""
    context: Annotated[int, Rule(least=2, most=1_000_000)] = 1024
    """Number of pieces in a row: the most that the model sees at once. Longer documents are cut."""
    cache_dir: str | None = None
    """Local folder for tokenised text; None = $TRANSFORMER_CACHE or ~/.cache/transformer."""
    workers: Workers = 0
    """Number of processes that tokenise; 0 = one per processor core."""


@documented
@dataclass(frozen=True)
class PretrainConfig:
    """Where the text of a masked language model comes from, and how it becomes rows of masked pieces.

    Each line is a sentence. The defaults of pairs and masks are those of BERT (create_pretraining_data.py).
    """

    text: tuple[str, ...] = ()
    """Training text: one or several files, plain or compressed. Blank lines separate documents."""
    unpaired_text: tuple[str, ...] = ()
    """More training text, for masked pieces alone: neighbouring lines need not belong together."""
    dev_text: tuple[str, ...] = ()
    """Development text, in one or several files; training scores it regularly."""
    test_text: tuple[str, ...] = ()
    """Test text, in one or several files; evaluate.py scores it by default."""
    dev_share: Share = 0.05
    """Without dev_text: this last share of the documents in `text` is the development text and not trained on. 0 = no
    development text."""
    document_lines: Annotated[int, Rule(least=2, most=INT32_MAX)] | None = None
    """Cut documents into runs of at most this many lines, for files that have no blank lines between documents; None =
    don't cut."""
    pieces: Literal["wordpiece", "sentencepiece"] = "wordpiece"
    """What text is split into: the pieces of a new WordPiece (needs the package tokenizers) or SentencePiece BPE
    vocabulary. Without effect if `tokenizer` is given."""
    tokenizer: str | None = None
    """File of an existing vocabulary: a vocab.txt or tokenizer.json with WordPiece, as BERT has it (needs the package
    tokenizers), or a SentencePiece model."""
    vocab_size: Annotated[int, Rule(least=8, most=INT32_MAX)] = 8_000
    """Number of pieces in a new vocabulary, special pieces included."""
    lower_case: bool = True
    """Fold upper and lower case; with WordPiece also remove accents. Without effect if `tokenizer` is given."""
    tokenizer_lines: Count = 2_000_000
    """Train the vocabulary on at most this many lines, sampled evenly from the whole text."""
    context: Annotated[int, Rule(least=5, most=1_000_000)] = 128
    """Number of pieces in a row, [CLS] and [SEP] included. Longer pairs are cut."""
    next_sentence: bool = True
    """Train on pairs of texts, too: does the second follow the first in its document? Otherwise rows are filled with
    neighbouring sentences of one document."""
    duplicates: Annotated[int, Rule(least=1, most=1_000)] = 10
    """Number of times that pairs are drawn from the text. An epoch has the rows of all of them."""
    short_share: Annotated[float, Rule(least=0, most=1)] = 0.1
    """Share of documents whose pairs have a random length, from 2 pieces on."""
    mask_share: Annotated[float, Rule(above=0, below=1)] = 0.15
    """Share of the pieces of a row that are predicted. Of these, 80 % are replaced by [MASK], 10 % by random pieces."""
    max_masked: Count = 20
    """Maximum number of predicted pieces in a row."""
    whole_words: bool = False
    """Predict all pieces of a word together."""
    static_masks: bool = False
    """Mask the same pieces in every epoch. By default each epoch masks others."""
    cache_dir: str | None = None
    """Local folder for tokenised text; None = $TRANSFORMER_CACHE or ~/.cache/transformer."""


@documented
@dataclass(frozen=True)
class TrainConfig:
    """Optimisation (paper §5), evaluation during training, and checkpoints."""

    steps: Count = 100_000
    """Number of updates."""
    batch_tokens: Count = 25_000
    """Maximum number of source positions, and of target positions, per update; end of sentence and padding count."""
    accumulate: Count = 1
    """Number of micro-batches per update, computed one after the other to save memory (gradient accumulation)."""
    remat: bool = False
    """Save memory by recomputing each layer in the backward pass (rematerialisation), for a third more work."""
    peak_learning_rate: Positive | None = None
    """Learning rate at the end of warmup; None = the paper's d_model^-0.5 * warmup_steps^-0.5."""
    warmup_steps: Count = 4_000
    """Number of updates of linear warmup before the decay."""
    schedule: Literal["inverse_sqrt", "linear", "cosine"] = "inverse_sqrt"
    """Decay of the learning rate after the warmup: 'inverse_sqrt' = with the inverse square root of the update (paper
    §5.3); 'linear' (BERT) and 'cosine' (GPT) = to a floor, where it stays."""
    decay_steps: Count | None = None
    """Update at which a linear or cosine decay reaches its floor. Set it with these schedules."""
    final_learning_rate: Share = 0.0
    """Floor of a linear or cosine decay, as a share of the peak."""
    adam_b1: Share = 0.9
    """Adam's beta1, the decay rate of the first moment."""
    adam_b2: Share = 0.98
    """Adam's beta2, the decay rate of the second moment."""
    adam_eps: Positive = 1e-9
    """Adam's epsilon."""
    weight_decay: Annotated[float, Rule(least=0, most=1)] = 0.0
    """AdamW's weight decay (Loshchilov and Hutter 2019): an update also subtracts learning rate * this * weight. Biases
    and norms are left out."""
    clip_norm: Positive | None = None
    """Clip the global gradient norm to this; None = no clipping, as in the paper."""
    label_smoothing: Share = 0.1
    """Probability taken from the reference piece and spread evenly over the whole vocabulary (paper §5.4)."""
    r_drop: Annotated[float, Rule(least=0, most=100)] = 0.0
    """Weight of R-Drop (Liang et al. 2021, alpha; they use 5): each batch is read twice, with other dropout, and the
    divergence of the two distributions of each piece, or label, is added to the loss. For translation and for
    fine-tuning on classes or tags; 0 = off."""
    ema_decay: Share = 0.0
    """Decay of an exponential moving average of the parameters, such as 0.999 (Marian: exponential-smoothing). The
    average is what is evaluated, saved and exported. 0 = off."""
    seed: Seed = 0
    """Seed of initialisation, data order and dropout."""
    seeds: Annotated[int, Rule(least=1, most=1_000)] = 1
    """Number of runs with the seeds from `seed` on, each in a folder seed-N of the workdir, and a summary of their
    scores; 1 = one run, in the workdir itself."""
    log_every: Count = 100
    """Updates between two log lines."""
    eval_every: Count = 1_000
    """Updates between two evaluations on the development set (loss, perplexity, BLEU, samples)."""
    eval_sentences: Count | None = None
    """Evaluate on only this many development sentences during training, the first ones; None = all.
    Not for language models, BERT and algorithms, which always take all."""
    checkpoint_every: Count = 1_000
    """Updates between two checkpoints."""
    keep_last: Count = 5
    """Number of newest checkpoints to keep. The best checkpoint (evaluate.metric) is always kept, too."""
    keep_every: Count | None = None
    """Also keep every checkpoint whose step is a multiple of this; None = no such archive."""
    patience: Count | None = None
    """Stop after this many evaluations in a row without a new best score (evaluate.metric); None = never."""
    stop_at: Annotated[float, Rule(least=-1_000_000, most=1_000_000)] | None = None
    """Stop once the first score that judges checkpoints (evaluate.metric) is this good, such as 1.0 for exact matches;
    None = never."""
    non_finite: Literal["stop", "skip", "rollback"] = "stop"
    """What to do when the loss or gradient of an update is not finite: 'stop' = end the run; 'skip' = leave the
    parameters unchanged and go on; 'rollback' = return to the last checkpoint and leave this update out."""
    non_finite_limit: Count = 20
    """End the run when more than this many updates were skipped or left out."""
    init_from: str | None = None
    """Start from the parameters of another workdir's default checkpoint; its vocabulary must be the same. The default
    checkpoint is the average if there is one, else the best (evaluate.metric). The optimiser's state is not taken
    over, so the average, which has none, serves as well."""


@documented
@dataclass(frozen=True)
class MeshConfig:
    """The device mesh: data * fsdp * tensor = number of devices."""

    data: Annotated[int, Rule(least=-1, most=INT32_MAX)] = -1
    """Data parallelism: number of model copies, each with a part of the batch; -1 = all devices that the other axes
    leave."""
    fsdp: Count = 1
    """Fully sharded data parallelism: number of devices that split parameters, optimiser state and batch."""
    tensor: Count = 1
    """Tensor parallelism: number of devices that split heads, feed-forward width and vocabulary."""


@documented
@dataclass(frozen=True)
class DecodeConfig:
    """Beam search (paper §6.1) or sampling, and constraints on the output."""

    beam_size: Annotated[int, Rule(least=1, most=10_000)] = 4
    """Number of hypotheses kept per sentence; 1 = greedy search."""
    length_penalty: Annotated[float, Rule(least=0, most=5)] = 0.6
    """Alpha of the length penalty."""
    length_normalization: Literal["paper", "fairseq", "none"] = "paper"
    """Score of a hypothesis = log-probability / penalty; its length includes end of sentence.
    'paper' = ((5 + length) / 6)^alpha, 'fairseq' = length^alpha, 'none' = 1."""
    n_best: Annotated[int, Rule(least=1, most=10_000)] = 1
    """Number of hypotheses returned per sentence, if the output format holds several (--jsonl); beam search allows at
    most beam_size."""
    max_extra_length: LengthOrZero = 50
    """Maximum number of pieces by which a translation may exceed its source; in a language model, maximum number of
    new pieces."""
    max_length: Length | None = None
    """Maximum number of pieces of an output, for any source or prompt; None = no such limit."""
    min_length: LengthOrZero = 0
    """Minimum number of pieces of an output; the limits above take precedence."""
    no_repeat_ngram: LengthOrZero = 0
    """Forbid that any sequence of this many pieces occurs twice in an output; 0 = off."""
    repetition_penalty: Annotated[float, Rule(above=0, most=FLOAT32_MAX)] = 1.0
    """Make pieces of the output so far less likely, and those of a language model's prompt: divide their positive
    logits by this, and multiply their negative ones (Keskar et al. 2019). 1 = off. The scores count it."""
    banned: tuple[str, ...] = ()
    """Phrases that must not occur in an output. They are matched as the pieces that the tokenizer makes of the phrase
    alone."""
    sample: bool = False
    """Sample n_best outputs per sentence or prompt at random instead of beam search."""
    temperature: Annotated[float, Rule(least=1e-6, most=FLOAT32_MAX)] = 1.0
    """Sampling: divide log-probabilities by this; below 1, likely pieces become more likely."""
    top_k: CountOrZero = 0
    """Sampling: draw only from this many most likely pieces; 0 = from all pieces."""
    top_p: Annotated[float, Rule(above=0, most=1)] = 1.0
    """Sampling: draw only from the most likely pieces that together have this probability."""
    min_p: Annotated[float, Rule(least=0, most=1)] = 0.0
    """Sampling: draw only pieces with at least this share of the probability of the likeliest piece; 0 = off."""
    seed: Seed = 0
    """Sampling: random seed. The samples of a line depend on the seed and the line number; other batch sizes may
    change the rounding."""
    max_source_length: Length = 1024
    """Maximum number of pieces of a source or prompt. Longer sources lose their end, longer prompts their beginning,
    with a warning."""
    batch_sentences: Count = 64
    """Maximum number of sentences per batch, in each stream."""
    batch_tokens: Count = 16_384
    """Maximum number of source positions times beams per batch, in each stream; this bounds the memory."""
    streams: Workers = 0
    """Number of batches decoded in parallel; 0 = on a CPU one per core, up to 8; elsewhere one. With several devices,
    all devices share one batch at a time."""
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Type of matrix products. 'auto' = bfloat16 on accelerators, the model's dtype on a CPU. 'int8' applies to weight
    matrices and their inputs only; the rest is float32 on a CPU, bfloat16 on accelerators."""


@documented
@dataclass(frozen=True)
class EvaluateConfig:
    """How to score translations, and which score selects the best checkpoint."""

    bleu_tokenize: Literal["auto", "13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "none"] = "auto"
    """sacreBLEU's tokeniser. 'auto' = by the target language in data.languages: 'zh', 'ja-mecab' and 'ko-mecab' for
    Chinese, Japanese and Korean; 'char' for Thai and other languages without spaces between words; else '13a'."""
    metric: Literal["bleu", "chrf", "loss"] = "bleu"
    """Score on the development set that ranks checkpoints. The other scores break ties, in the order BLEU, chrF,
    loss."""


def check_train(train: TrainConfig) -> None:
    """Raise `UserError` for the first field of the train section that breaks a rule of this section."""
    check_fields(train, TrainConfig, "train.")
    require(train, "train.", _of_schedule(train))
    seeds = train.seed + train.seeds <= 2**32
    require(train, "train.", [(seeds, "seeds", f"must leave the last seed below {2**32:,}")])


def _of_schedule(t: TrainConfig) -> Relations:
    given = f"train.schedule = {t.schedule!r}"
    if t.schedule == "inverse_sqrt":
        yield t.decay_steps is None, "decay_steps", f"must be None: {given} has no end"
        yield t.final_learning_rate == 0, "final_learning_rate", f"must be 0: {given} has no floor"
    else:
        yield t.decay_steps is not None, "decay_steps", f"must be set with {given}"
        warmup = t.warmup_steps
        yield (t.decay_steps or 0) > warmup, "decay_steps", f"must be above train.warmup_steps ({warmup})"


def check_decode(decode: DecodeConfig) -> None:
    """Raise `UserError` for the first field of the decode section that breaks a rule of this section."""
    check_fields(decode, DecodeConfig, "decode.")
    require(decode, "decode.", _of_decoding(decode))


def _of_decoding(d: DecodeConfig) -> Relations:
    if not d.sample:
        yield d.n_best <= d.beam_size, "n_best", f"must be at most decode.beam_size ({d.beam_size})"
    if d.max_length is not None:
        yield d.min_length <= d.max_length, "min_length", f"must be at most decode.max_length ({d.max_length})"
    yield all(phrase.strip() for phrase in d.banned), "banned", "must hold no empty phrase"
