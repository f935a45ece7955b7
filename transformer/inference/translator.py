"""From text to text: sentences sorted by length, decoded by beam search in a few fixed shapes, put back in order."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer.config import DecodeConfig
from transformer.inference.beam_search import Hypotheses, beam_search
from transformer.model import Model, Params

if TYPE_CHECKING:
    from transformer.data.tokenizer import Tokenizer

log = logging.getLogger("transformer")

PAD, BOS, EOS = 0, 1, 2  # as in transformer.data.tokenizer, which needs sentencepiece to import
SOURCE_LENGTHS = (16, 32, 64, 128, 256, 512, 1024)
MAX_ROWS = 64


@partial(jax.jit, static_argnames=("model", "max_length", "beam_size", "alpha", "form"))
def search(
    params: Params,
    source_BS: Array,
    limit_B: Array,
    *,
    model: Model,
    max_length: int,
    beam_size: int,
    alpha: float,
    form: str,
) -> Hypotheses:
    """Encode the sources once and search for their translations (see `beam_search`)."""
    rows = source_BS.shape[0] * beam_size
    memory = model.apply(params, source_BS, method="encode")

    def step(tokens_X: Array, cache: Any, at: Array) -> tuple[Array, Any]:
        logits_X1V, cache, _ = model.apply(
            params, tokens_X[:, None], memory, cache=cache, at_B=jnp.full(rows, at), method="decode"
        )
        log_probs_XV = jax.nn.log_softmax(logits_X1V[:, 0])
        # Neither piece is ever a target in training; an untrained model must not produce them either.
        return log_probs_XV.at[:, jnp.array([PAD, BOS])].set(-jnp.inf), cache

    return beam_search(
        step,
        model.apply(params, rows, max_length, method="init_cache"),
        limit_B,
        max_length=max_length,
        beam_size=beam_size,
        bos=BOS,
        eos=EOS,
        pad=PAD,
        length_penalty=alpha,
        length_normalization=form,
    )


class Translator:
    """Translates sentences with one model. Its results do not depend on how the sentences are grouped."""

    def __init__(self, model: Model, params: Params, tokenizer: Tokenizer, config: DecodeConfig | None = None):
        self.model, self.params, self.tokenizer = model, params, tokenizer
        self.config = config or DecodeConfig()

    @classmethod
    def load(cls, workdir: str, checkpoint: str | None = None, config: DecodeConfig | None = None) -> Translator:
        """The translator of a workdir; `checkpoint` as in `transformer.load`, `config` overrides the workdir's own."""
        from transformer.checkpoint import Checkpoints, load
        from transformer.data.tokenizer import Tokenizer

        checkpoints = Checkpoints(workdir)
        name = checkpoints.choose(checkpoint)
        model, params = load(workdir, str(name))
        tokenizer = Tokenizer((checkpoints.path(name) / "tokenizer.model").read_bytes())
        return cls(model, params, tokenizer, config or checkpoints.config(name).decode)

    def translate(self, sentences: Sequence[str], *, first_line: int = 1) -> list[str]:
        """One translation, without line breaks, for each sentence; a blank one gives an empty one.

        A sentence of more than `config.max_source_length` pieces is cut, with a warning that names its line, counted
        from `first_line`.
        """
        c, pieces = self.config, self.tokenizer.encode(list(sentences))
        for i, ids in enumerate(pieces):
            if not sentences[i].strip():
                ids.clear()
            elif len(ids) > c.max_source_length:
                log.warning(
                    "line %d: %d pieces, cut to decode.max_source_length = %d",
                    *(first_line + i, len(ids), c.max_source_length),
                )
                del ids[c.max_source_length :]
        # A model whose log-probabilities are not numbers finds nothing.
        best = {i: tokens[0] for i, (tokens, _) in self.search(pieces) if tokens}
        texts = self.tokenizer.decode([best.get(i, []) for i in range(len(pieces))])
        # Byte pieces can spell a line break; a translation is one line.
        return [" ".join(text.split("\n")) for text in texts]

    def search(self, sources: Sequence[Sequence[int]]) -> Iterator[tuple[int, tuple[list[list[int]], list[float]]]]:
        """For each non-empty source (pieces without eos): its index, its hypotheses' pieces without eos, their scores.

        They come in an order that suits the machine, best hypothesis first.
        """
        c = self.config
        for indices, rows, length in self._batches([len(source) for source in sources]):
            source_BS = np.zeros((rows, length), np.int32)
            # Empty rows may not search at all.
            limit_B = np.zeros(rows, np.int32)
            for row, i in enumerate(indices):
                source_BS[row, : len(sources[i]) + 1] = [*sources[i], EOS]
                limit_B[row] = len(sources[i]) + c.max_extra_length + 1
            found = search(
                self.params,
                *self._place(source_BS, limit_B),
                model=self.model,
                max_length=length + c.max_extra_length,
                beam_size=c.beam_size,
                alpha=c.length_penalty,
                form=c.length_normalization,
            )
            tokens_BML, lengths_BM, scores_BM = jax.tree.map(np.asarray, found)
            for row, i in enumerate(indices):
                lengths = [int(n) for n in lengths_BM[row] if n > 0]
                tokens = [tokens_BML[row, m, : n - 1].tolist() for m, n in enumerate(lengths)]
                yield i, (tokens, scores_BM[row, : len(lengths)].tolist())

    def _batches(self, lengths: Sequence[int]) -> Iterator[tuple[list[int], int, int]]:
        """Indices of sources that are decoded together, and the shape: rows, source length with eos.

        What does not fill a batch waits for the next longer one, if that is at most twice as long; else it is decoded
        in the smallest shape that holds it.
        """
        longest = self.config.max_source_length + 1
        buckets = [n for n in SOURCE_LENGTHS if n < longest] + [longest]
        order = sorted((i for i, n in enumerate(lengths) if n), key=lambda i: lengths[i])
        at, waiting = 0, []
        for b, bucket in enumerate(buckets):
            while at < len(order) and lengths[order[at]] + 1 <= bucket:
                waiting.append(order[at])
                at += 1
            full = self._rows(bucket)
            while len(waiting) >= full:
                yield waiting[:full], full, bucket
                del waiting[:full]
            if waiting:
                upper = buckets[b + 1] if b + 1 < len(buckets) else 0
                follows = at < len(order) and lengths[order[at]] + 1 <= upper <= 2 * bucket
                if not follows:
                    yield waiting, min(n for n in (1, 8, full) if n >= len(waiting)), bucket
                    waiting = []

    def _rows(self, length: int) -> int:
        """Rows of a full batch of sources of this length: a power of two within `decode.batch_tokens`."""
        fit = max(1, self.config.batch_tokens // (length * self.config.beam_size))
        return min(MAX_ROWS, 1 << (fit.bit_length() - 1))

    def _place(self, *arrays: np.ndarray) -> Sequence[Any]:
        """Rows laid over the mesh that the parameters lie on, where it divides them."""
        sharding = getattr(jax.tree.leaves(self.params)[0], "sharding", None)  # NumPy arrays have none
        if not isinstance(sharding, jax.sharding.NamedSharding):
            return arrays
        mesh = sharding.mesh
        axes = tuple(axis for axis in mesh.axis_names if axis != "tensor")
        ways = int(np.prod([mesh.shape[axis] for axis in axes]))
        spec = jax.sharding.PartitionSpec(axes if len(arrays[0]) % ways == 0 else None)
        return [jax.device_put(array, jax.sharding.NamedSharding(mesh, spec)) for array in arrays]
