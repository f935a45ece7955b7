"""Config of a run that trains a Byte Latent Transformer (Pagnoni et al. 2024, arXiv 2412.09871)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from .codec import Relations, check_fields, require
from .documentation import documented
from .model import GPT2, AttentionConfig, ModelConfig, check_model, of_model
from .numbers import Count, LengthOrZero, Rule
from .sections import DecodeConfig, MeshConfig, TextConfig, TrainConfig


@documented
@dataclass(frozen=True)
class PatchConfig:
    """Where the bytes of a row are cut into patches. The first patch of a row is one byte."""

    by: Literal["entropy", "static"] = "entropy"
    """'entropy' = a patch starts at each byte that is hard to predict from the bytes before it; 'static' = all patches
    are equally long."""
    bytes: Annotated[float, Rule(least=1, most=1_000)] = 4.5
    """Mean number of bytes in a patch. With entropies, the threshold is chosen so that the training text has this
    mean."""
    room: Annotated[float, Rule(least=1, most=1_000)] = 1.1
    """With entropies, a row has room for this many times as many patches as it has on average: a further patch starts
    only once there is room, counted from the begin of the row."""
    spare: LengthOrZero = 6
    """With entropies, room for this many patches more."""
    threshold: Annotated[float, Rule(least=-1, most=100)] | None = None
    """A patch starts where the entropy of the next byte is above this, in nats; None = chosen from the training text
    when a run begins."""


@documented
@dataclass(frozen=True)
class NgramConfig:
    """Embeddings of byte n-grams, which are added to those of bytes. A hash chooses the row of a table."""

    shortest: Annotated[int, Rule(least=1, most=64)] = 3
    """Length of the shortest n-grams."""
    longest: Annotated[int, Rule(least=1, most=64)] = 8
    """Length of the longest n-grams."""
    rows: Annotated[int, Rule(least=0, most=2**24)] = 4_096  # of 64 lengths: 2**30, an int32
    """Number of rows for each length; 0 = no such embeddings."""


_PARTS = replace(GPT2, dropout=0.1, attention_dropout=0.0, attention_bias=False, positions="rotary")
_LATENT = replace(_PARTS, decoder_layers=5, d_model=384, d_ff=1_536, heads=6)
_ENTROPY = replace(_PARTS, decoder_layers=2, d_model=96, d_ff=384, heads=3)


@documented
@dataclass(frozen=True)
class ByteLatentModel(ModelConfig):
    """The architecture. The fields of any model describe its local encoder and decoder, which read bytes."""

    latent: ModelConfig = _LATENT
    """The latent Transformer, which reads patches: a decoder alone. Its width is a multiple of `d_model`."""
    entropy: ModelConfig = _ENTROPY
    """The small byte model whose entropies cut patches: a decoder alone. A run takes that of `entropy.init_from`."""
    patches: PatchConfig = field(default_factory=PatchConfig)
    """Where patches begin."""
    ngrams: NgramConfig = field(default_factory=NgramConfig)
    """Embeddings of n-grams."""


@documented
@dataclass(frozen=True)
class EntropyConfig:
    """Where the entropies come from that cut patches."""

    init_from: str | None = None
    """Workdir of a language model of bytes. A new run copies its default checkpoint, which is not trained further."""
    rows: Count = 256
    """Number of rows of the training text, evenly spread, from which the threshold is chosen."""


_WINDOW = AttentionConfig(window=63)
_MODEL = ByteLatentModel(
    **{
        **{name: getattr(_PARTS, name) for name in _PARTS.__dataclass_fields__},
        **{"encoder_layers": 1, "decoder_layers": 3, "d_model": 192, "d_ff": 768, "heads": 3},
        **{"encoder_attention": _WINDOW, "decoder_attention": _WINDOW},
    }
)
_TRAINING = TrainConfig(
    steps=2_000,
    batch_tokens=16 * 256,
    peak_learning_rate=1e-3,
    warmup_steps=100,
    schedule="cosine",
    decay_steps=2_000,
    final_learning_rate=0.1,
    adam_b2=0.99,
    adam_eps=1e-8,
    weight_decay=0.1,
    clip_norm=1.0,
    label_smoothing=0.0,
)


@documented
@dataclass(frozen=True)
class ByteLatentConfig:
    """Config of a run of the task that trains a Byte Latent Transformer: a language model of bytes, in patches."""

    model: ByteLatentModel = _MODEL
    data: TextConfig = field(default_factory=lambda: TextConfig(pieces="bytes", context=256))
    entropy: EntropyConfig = field(default_factory=EntropyConfig)
    train: TrainConfig = _TRAINING
    mesh: MeshConfig = field(default_factory=MeshConfig)
    decode: DecodeConfig = field(default_factory=lambda: DecodeConfig(sample=True))

    task = "byte_latent"
    movable = ("data.text", "data.dev_text", "data.test_text", "data.tokenizer")
    """File names. A resumed run may have them at other paths, in the same number, since their content is compared."""

    def relations(self) -> Relations:
        """The rules between fields of several sections."""
        d, t = self.data, self.train
        yield d.pieces == "bytes", "data.pieces", "must be 'bytes': patches are cut from bytes"
        yield d.tokenizer is None, "data.tokenizer", "must be None: the pieces are the 256 bytes"
        yield d.documents == "none", "data.documents", "must be 'none': patches are cut from a running text"
        for name in ("", "entropy."):
            part = self.model.entropy if name else self.model
            if part.positions == "learned":
                rule = f"must be at least {d.context}: data.context"
                yield part.max_positions >= d.context, f"model.{name}max_positions", rule
        parts = f"must hold at least one row of data.context ({d.context}) in each of its {t.accumulate} micro-batches"
        yield t.batch_tokens >= d.context * t.accumulate, "train.batch_tokens", parts
        yield self.mesh.data != 0, "mesh.data", "must be -1 or at least 1"

    def may_become(self, other: ByteLatentConfig, name: str) -> bool:
        """Whether a run of this config may be resumed with the value of field `name` in `other`.

        Called only for fields that differ and are in neither `RESUMABLE` nor `movable`. The checkpoints hold what
        `entropy` has chosen.
        """
        if name.startswith("entropy."):
            return True
        return name == "data.dev_share" and bool(self.data.dev_text and other.data.dev_text)


def check_byte_latent(model: ByteLatentModel) -> None:
    """Raise `UserError` for the first field of the model section that breaks a rule of this section."""
    check_model(model)
    check_fields(model, ByteLatentModel, "model.")
    require(model, "model.", _of_parts(model))
    for name in ("latent", "entropy"):
        prefix, part = f"model.{name}.", getattr(model, name)
        require(part, prefix, ((holds, at, rule.replace("model.", prefix)) for holds, at, rule in of_model(part)))


def _of_parts(m: ByteLatentModel) -> Relations:
    yield m.encoder_layers > 0, "encoder_layers", "must be at least 1: the layers of the local encoder"
    yield m.decoder_layers > 0, "decoder_layers", "must be at least 1: the layers of the local decoder"
    yield m.head == "none", "head", "must be 'none': the model predicts bytes"
    yield m.target_vocab_size is None, "target_vocab_size", "must be None: there is one vocabulary, of bytes"
    yield m.position_offset == 0, "position_offset", "must be 0: patches are counted from the begin of a row"
    yield m.cross_attention.window is None, "cross_attention.window", "must be None: a byte reads one patch"
    for name, part in (("latent", m.latent), ("entropy", m.entropy)):
        alone = f"must be %s: the {name} model is a decoder alone"
        yield part.encoder_layers == 0, f"{name}.encoder_layers", alone % 0
        yield part.decoder_layers > 0, f"{name}.decoder_layers", alone % "at least 1"
    yield m.latent.positions in ("rotary", "none"), "latent.positions", "must be 'rotary' or 'none'"
    yield m.latent.decoder_attention.window is None, "latent.decoder_attention.window", "must be None"
    rule = f"must be a multiple of model.d_model ({m.d_model})"
    yield m.latent.d_model % m.d_model == 0, "latent.d_model", rule
    longest = m.ngrams.longest
    yield m.ngrams.shortest <= longest, "ngrams.shortest", f"must be at most model.ngrams.longest ({longest})"
