"""The architecture, and the special ids of its vocabulary."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from transformer.config.codec import Relations, check_fields, require
from transformer.config.numbers import INT32_MAX, Count, CountOrZero, Layers, LengthOrZero, Positive, Rule, Share

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")
"""The pieces that every vocabulary begins with."""
PAD, BOS, EOS, UNK = 0, 1, 2, 3

Vocabulary = Annotated[int, Rule(least=len(SPECIALS), most=INT32_MAX)]
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
    vocab_size: Vocabulary | None = None
    """Pieces of the vocabulary, special ids included; None = as many as the tokenizer has."""
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

    def with_vocabulary(self, size: int) -> ModelConfig:
        """The same architecture over a vocabulary of this size."""
        return replace(
            self, vocab_size=operator.index(size) if hasattr(size, "__index__") and size is not True else size
        )

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


# The two models of the paper (Table 3). Big drops 0.3 of activations, except for English-French (0.1).
BASE = ModelConfig()
BIG = ModelConfig(d_model=1024, d_ff=4096, heads=16, dropout=0.3)


def check_model(model: ModelConfig) -> None:
    """Raise `UserError` naming the first field of a model that breaks a rule, whatever it is trained on."""
    check_fields(model, ModelConfig, "model.")
    require(model, "model.", _of_model(model))


def _of_model(m: ModelConfig) -> Relations:
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
