"""The model's architecture, and the special ids of its vocabulary."""

from __future__ import annotations

import numbers
import operator
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from .codec import Relations, check_fields, require
from .documentation import documented
from .numbers import (
    INT32_MAX,
    Count,
    CountOrZero,
    Dropout,
    LayersOrZero,
    LengthOrZero,
    Positive,
    Rule,
)

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")
"""The first pieces of every vocabulary, at ids PAD, BOS, EOS and UNK."""
PAD, BOS, EOS, UNK = 0, 1, 2, 3

TOKENIZER_FILES = ("tokenizer.model", "marian.json")
"""The files that the tokenizer of a translation model may have in a workdir."""

Vocabulary = Annotated[int, Rule(least=len(SPECIALS), most=INT32_MAX)]
KINDS = ("encoder", "decoder", "cross")  # of attention

# Heads of an encoder alone (`ModelConfig.head`), by what they are made of.
POOLED_HEADS = ("none", "pretraining", "sequence")
MASKED_HEADS = ("masked", "pretraining")
LABEL_HEADS = ("sequence", "token")

DECODER_FIELDS = (
    *("decoder_layers", "token_types", "target_vocab_size", "head", "labels", "output_bias", "tied_embeddings"),
    "hard_attention",
)
"""The fields in which an encoder alone and a model with the same encoder and a decoder may differ."""


@documented
@dataclass(frozen=True)
class AttentionConfig:
    """Settings of one kind of attention (encoder, decoder or cross), where it differs from the other two."""

    kv_heads: Count | None = None
    """Number of key/value heads; None = model.kv_heads."""
    kv_sharing: Count | None = None
    """Number of neighbouring layers that share one set of keys and values; None = model.kv_sharing."""
    window: CountOrZero | None = None
    """Attend only to positions at most this far away; None = no limit. In cross-attention, target position t attends
    around source position t."""


@documented
@dataclass(frozen=True)
class ModelConfig:
    """The architecture. The defaults are the base model of Vaswani et al. 2017 (Table 3)."""

    encoder_layers: LayersOrZero = 6
    """Number of encoder layers (the paper's N); 0 = a decoder alone, as in GPT."""
    decoder_layers: LayersOrZero = 6
    """Number of decoder layers (the paper's N); 0 = an encoder alone, as in BERT."""
    d_model: Count = 512
    """Width of the residual stream."""
    d_ff: Count = 2048
    """Inner width of the feed-forward sub-layer."""
    heads: Count = 8
    """Number of query heads (the paper's h)."""
    vocab_size: Vocabulary | None = None
    """Number of pieces in the vocabulary, special ids included; None = the size of the tokenizer."""
    target_vocab_size: Vocabulary | None = None
    """Number of pieces in the targets' vocabulary, special ids included, where encoder and decoder have different ones;
    None = they share one."""
    kv_heads: Count | None = None
    """Number of key/value heads: None = heads (multi-head), 1 = multi-query, in between = grouped-query."""
    kv_sharing: Count = 1
    """Number of neighbouring layers that share one set of keys and values: cross-layer attention (Brandon et al.
    2024)."""
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
    dropout: Dropout = 0.1
    """Dropout rate on the output of each sub-layer and on the sums of embeddings and positions (paper §5.4)."""
    attention_dropout: Dropout = 0.0
    """Dropout rate on the attention weights (BERT, GPT-2: 0.1)."""
    activation_dropout: Dropout = 0.0
    """Dropout rate on the inner activations of the feed-forward networks (tensor2tensor: relu_dropout)."""
    attention_score: Literal["dot", "unscaled", "additive"] = "dot"
    """How a query q and a key k are compared. 'dot' = their product divided by sqrt(d_k) (paper §3.2.1); 'unscaled' =
    their product; 'additive' = v^T tanh(q + k + b), with v and b of each head (Bahdanau et al. 2015)."""
    values: Literal["projected", "keys"] = "projected"
    """What attention averages: 'projected' = values with matrices of their own; 'keys' = the keys themselves."""
    attention_bias: bool = False
    """Add biases to the queries, keys, values and outputs of attention (BERT, GPT-2, Marian)."""
    activation: Literal["relu", "gelu", "gelu_tanh", "swish"] = "relu"
    """Activation of the feed-forward sub-layer: 'gelu' = exact, with erf (BERT); 'gelu_tanh' = its tanh approximation
    (GPT-2)."""
    norm_eps: Positive = 1e-6
    """Number added to the variance in each layer norm (BERT: 1e-12; GPT-2, Marian: 1e-5)."""
    norm_bias: bool = True
    """Give each layer norm a bias besides its scale."""
    embedding_scale: bool = True
    """Multiply embeddings by the square root of d_model (paper §3.4). BERT and GPT-2 do not."""
    output_bias: bool = False
    """Add a bias to the logit of each piece, in models that have such logits."""
    positions: Literal["sinusoidal", "learned", "rotary", "none"] = "sinusoidal"
    """Position encoding. 'learned' is row (E) of the paper's Table 3. 'rotary' rotates queries and keys of
    self-attention (Su et al. 2021)."""
    max_positions: Count = 1024
    """Number of rows of the learned position table; unused with other position encodings."""
    token_types: CountOrZero = 0
    """Number of token types: rows of a table added to the embeddings of an encoder alone. The type says which text of a
    pair a piece belongs to (BERT's segments: 2)."""
    input_norm: bool = False
    """Normalise the sum of embeddings and positions, before dropout (BERT, BART)."""
    head: Literal["none", "masked", "pretraining", "sequence", "token"] = "none"
    """Outputs of an encoder alone. 'none' = the states, and the pooled vector of the first; 'masked' = logits of masked
    pieces; 'pretraining' = the same, and whether the second text follows the first; 'sequence' and 'token' = `labels`
    outputs for each text, or for each piece. An encoder with a decoder may have the head 'token', too."""
    labels: Count | None = None
    """Number of outputs of the heads 'sequence' and 'token': classes, or 1 in regression; None = as the data has."""
    hard_attention: bool = False
    """Add the encoder's state of the next word to the decoder's input, in a parser (Aharoni and Goldberg 2017)."""
    position_offset: LengthOrZero = 0
    """In training, the positions of each row start at a random number from 0 to this. The model thus learns positions
    beyond the length of its training text."""
    pre_norm: bool = False
    """Normalise the input of each sub-layer, and the output of each stack, instead of the residual sums."""
    tied_embeddings: Literal["all", "target", "none"] = "all"
    """Which embedding tables are shared: 'all' = source, target and output (paper §3.4), 'target' = target and
    output."""
    initializer: Literal["scaled", "glorot", "fairseq", "gpt2", "bert"] = "scaled"
    """Initial values of the matrices. 'scaled' = variance 1 / fan-in, divided by the number of sub-layers of the stack
    in the last matrix of each sub-layer, as in GPT-2; learned positions start as sinusoids. 'glorot' = Glorot and
    Bengio 2010; post-norm models may fail to learn from it. 'fairseq', 'gpt2', 'bert' = the rule of that model. See
    transformer/model/initializers.py."""
    attention_kernel: Literal["plain", "cudnn"] = "plain"
    """'cudnn' = cuDNN's fused attention on NVIDIA GPUs, in bfloat16, wherever it computes the same result; elsewhere
    'plain'."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the activations and matrix products. Parameters, softmax, norms and loss stay in float32."""

    def with_vocabulary(self, size: int) -> ModelConfig:
        """The same architecture with this vocabulary size."""
        return replace(
            self, vocab_size=operator.index(size) if isinstance(size, numbers.Integral) and size is not True else size
        )

    @property
    def output_size(self) -> int | None:
        """Number of pieces that the model predicts: the size of the targets' vocabulary."""
        return self.target_vocab_size or self.vocab_size

    @property
    def key_size(self) -> int:
        return self.d_k or self.d_model // self.heads

    @property
    def value_size(self) -> int:
        if self.values == "keys":
            return self.key_size
        return self.d_v or self.d_model // self.heads

    def attention(self, kind: Literal["encoder", "decoder", "cross"]) -> AttentionConfig:
        """The settings of one kind of attention, with `kv_heads` and `kv_sharing` resolved to numbers."""
        section: AttentionConfig = getattr(self, f"{kind}_attention")
        return AttentionConfig(
            kv_heads=section.kv_heads or self.kv_heads or self.heads,
            kv_sharing=section.kv_sharing or self.kv_sharing,
            window=section.window,
        )


# The two models of the paper (Table 3). The big one has dropout 0.3, but 0.1 for English-French.
BASE = ModelConfig()
BIG = ModelConfig(d_model=1024, d_ff=4096, heads=16, dropout=0.3)

# The smallest GPT-2 (Radford et al. 2019): 124,439,808 parameters with its vocabulary of 50,257 pieces.
GPT2 = ModelConfig(
    encoder_layers=0,
    decoder_layers=12,
    d_model=768,
    d_ff=3072,
    heads=12,
    dropout=0.1,
    attention_dropout=0.1,
    attention_bias=True,
    activation="gelu_tanh",
    norm_eps=1e-5,
    embedding_scale=False,
    positions="learned",
    max_positions=1024,
    pre_norm=True,
    initializer="gpt2",
)

# The base model of BERT (Devlin et al. 2019): 110,106,428 parameters with its vocabulary of 30,522 pieces.
BERT = ModelConfig(
    encoder_layers=12,
    decoder_layers=0,
    d_model=768,
    d_ff=3072,
    heads=12,
    dropout=0.1,
    attention_dropout=0.1,
    attention_bias=True,
    activation="gelu",
    norm_eps=1e-12,
    embedding_scale=False,
    output_bias=True,
    positions="learned",
    max_positions=512,
    token_types=2,
    input_norm=True,
    head="pretraining",
    initializer="bert",
)


def check_model(model: ModelConfig) -> None:
    """Raise `UserError` for the first field of the model section that breaks a rule of this section."""
    check_fields(model, ModelConfig, "model.")
    require(model, "model.", of_model(model))


def of_model(m: ModelConfig) -> Relations:
    """The rules between fields of the model section."""
    yield (
        m.encoder_layers + m.decoder_layers > 0,
        "decoder_layers",
        "must be at least 1 where model.encoder_layers is 0",
    )
    if m.decoder_layers:
        yield m.token_types == 0, "token_types", "must be 0 where the model has a decoder"
        heads = ("none", "token") if m.encoder_layers else ("none",)
        yield m.head in heads, "head", f"must be {' or '.join(map(repr, heads))} where the model has a decoder"
    if m.target_vocab_size is not None:
        both = m.encoder_layers > 0 and m.decoder_layers > 0
        yield both, "target_vocab_size", "must be None where the model lacks an encoder or a decoder"
        rule = "must be 'target' or 'none' with model.target_vocab_size"
        yield m.tied_embeddings != "all", "tied_embeddings", rule
    if m.head not in LABEL_HEADS:
        yield m.labels is None, "labels", f"must be None where model.head is {m.head!r}"
    if m.hard_attention:
        both = m.encoder_layers > 0 and m.decoder_layers > 0 and m.head == "token"
        rule = "must be False: only a parser has it, with an encoder, a decoder and model.head 'token'"
        yield both, "hard_attention", rule
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
    if m.values == "keys":
        yield m.d_v in (None, m.key_size), "d_v", "must be None or d_k where model.values is 'keys'"
        yield m.positions != "rotary", "positions", "must not be 'rotary' where model.values is 'keys'"
    if m.attention_score != "dot":
        rule = f"must be 'plain' with model.attention_score = {m.attention_score!r}"
        yield m.attention_kernel == "plain", "attention_kernel", rule
    if m.positions == "none":
        yield m.position_offset == 0, "position_offset", "must be 0 where model.positions is 'none'"
    if m.attention_dropout:
        kernel = m.attention_kernel
        yield kernel == "plain", "attention_kernel", f"must be 'plain' with model.attention_dropout, not {kernel!r}"
