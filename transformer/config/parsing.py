"""Config of a run that learns constituency parsing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from .codec import Relations, require
from .documentation import documented
from .model import ModelConfig
from .numbers import INT32_MAX, Count, Positive, Rule
from .sections import DecodeConfig, MeshConfig, TrainConfig, check_decode


@documented
@dataclass(frozen=True)
class TreebankConfig:
    """Where trees come from, and how sentences and trees become sequences."""

    train: tuple[str, ...] = ()
    """Training files of trees in brackets, as in the Penn Treebank; compressed or not."""
    dev: tuple[str, ...] = ()
    """Development files: training scores them regularly, and keeps the checkpoint with the best F1."""
    test: tuple[str, ...] = ()
    """Test files; evaluate.py scores them by default, else the development files."""
    most_trees: Count | None = None
    """Train on only this many trees, drawn at random; None = all."""
    form: Literal["transitions", "brackets"] = "transitions"
    """How a tree becomes a sequence. 'transitions' = open a constituent, shift a word, close the constituent.
    'brackets' = the same, but a closing bracket names its constituent (Vinyals et al. 2015)."""
    tokenizer: str | None = None
    """File of an existing vocabulary of the words' pieces: a vocab.txt or tokenizer.json with WordPiece, as BERT has it
    (needs the package tokenizers), or a SentencePiece model. With train.init_from, leave it out."""
    pieces: Literal["wordpiece", "sentencepiece"] = "wordpiece"
    """Kind of a new vocabulary, which is trained on the training sentences. Without effect if there is one."""
    vocab_size: Annotated[int, Rule(least=8, most=INT32_MAX)] = 8_000
    """Number of pieces in a new vocabulary, special pieces included."""
    lower_case: bool = False
    """Lower-case text and remove accents in a new vocabulary."""
    tokenizer_lines: Count = 2_000_000
    """Train a new vocabulary on at most this many sentences, sampled evenly."""
    context: Annotated[int, Rule(least=5, most=1_000_000)] = 256
    """Maximum number of pieces of a sentence, [CLS] and [SEP] included, and of symbols of its tree. Training leaves
    longer ones out; longer sentences are parsed in parts."""
    length_buckets: Annotated[int, Rule(least=1, most=64)] = 10
    """Number of shapes of training batches."""
    cache_dir: str | None = None
    """Local folder for vocabularies and compiled programs; None = $TRANSFORMER_CACHE or ~/.cache/transformer."""


@documented
@dataclass(frozen=True)
class ParserConfig:
    """How the parser is trained and scored."""

    encoder_rate: Positive = 1.0
    """Factor of the learning rate of the encoder and its embeddings: below 1 if train.init_from gives them."""
    parameters: str | None = None
    """EVALB's parameter file. None = those of COLLINS.prm, by which published figures are computed."""


_TRAINING = TrainConfig(batch_tokens=4_096, label_smoothing=0.1)
_MODEL = ModelConfig(
    encoder_layers=4,
    decoder_layers=4,
    d_model=256,
    d_ff=1_024,
    heads=4,
    dropout=0.2,
    attention_dropout=0.2,
    tied_embeddings="target",
    head="token",
    hard_attention=True,
)
_SEARCH = DecodeConfig(length_normalization="none")
_WITHOUT_USE = (
    *("min_length", "max_length", "max_extra_length", "max_source_length"),
    *("no_repeat_ngram", "repetition_penalty", "banned"),
)  # fields of the search


@documented
@dataclass(frozen=True)
class ParsingConfig:
    """Config of a run of the task that learns constituency parsing: from words to a tree (Vaswani et al. 2017, §6.3).

    With train.init_from, the start may be an encoder alone, such as a BERT: it becomes the encoder.
    """

    model: ModelConfig = _MODEL
    data: TreebankConfig = field(default_factory=TreebankConfig)
    train: TrainConfig = _TRAINING
    mesh: MeshConfig = field(default_factory=MeshConfig)
    decode: DecodeConfig = _SEARCH
    parser: ParserConfig = field(default_factory=ParserConfig)

    task = "parsing"
    movable = ("data.train", "data.dev", "data.test", "data.tokenizer")
    """File names. A resumed run may have them at other paths, in the same number, since their content is compared."""

    def relations(self) -> Relations:
        """The rules between fields of several sections."""
        m, d, decode = self.model, self.data, self.decode
        yield m.encoder_layers > 0, "model.encoder_layers", "must be at least 1: the encoder reads the words"
        yield m.decoder_layers > 0, "model.decoder_layers", "must be at least 1: the decoder writes the tree"
        yield m.head == "token", "model.head", "must be 'token': a head on the encoder gives the words' tags"
        yield (
            m.tied_embeddings != "all",
            "model.tied_embeddings",
            "must be 'target' or 'none': trees have other symbols",
        )
        if m.positions == "learned":
            longest = d.context + m.position_offset
            rule = f"must be at least {longest}: data.context + model.position_offset; or lower data.context"
            yield m.max_positions >= longest, "model.max_positions", rule
        yield from ((holds, f"decode.{name}", rule) for holds, name, rule in _of_search(decode))
        t = self.train
        rule = f"must hold at least one sentence of data.context ({d.context}) in each of {t.accumulate} micro-batches"
        yield t.batch_tokens >= d.context * t.accumulate, "train.batch_tokens", rule
        yield self.mesh.data != 0, "mesh.data", "must be -1 or at least 1"

    def may_become(self, other: ParsingConfig, name: str) -> bool:
        """Whether a run of this config may be resumed with the value of field `name` in `other`.

        Called only for fields that differ and are in neither `RESUMABLE` nor `movable`.
        """
        return name == "parser.parameters"


def check_tree_search(decode: DecodeConfig) -> None:
    """Raise `UserError` for the first option of decoding that is wrong, or that a parser does not have."""
    check_decode(decode)
    require(decode, "decode.", _of_search(decode))


def _of_search(decode: DecodeConfig) -> Relations:
    for name in _WITHOUT_USE:
        rule = "must be left out: an output is a tree over all words"
        yield getattr(decode, name) == getattr(_SEARCH, name), name, rule
    rule = "must be 1 without decode.sample: a sentence gets its best tree"
    yield decode.n_best == 1 or decode.sample, "n_best", rule
