"""The systems that decode.py compares, each in a process of its own, and what they need of our weights.

    python benchmarks/systems.py SYSTEM '{"run": ..., "threads": 2, ...}'      answers requests on standard input
    python benchmarks/systems.py convert '{"run": ..., "ctranslate2": ...}'    writes the CTranslate2 folder
    python benchmarks/systems.py deepen '{"first": ..., "start": ...}'         puts more layers into a trained model

A request and its answer are one line of JSON each. All systems search alike: no length penalty, the one rule that the
three share; pieces are ids without bos and eos.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from side_by_side import answer_requests

from transformer.config import EOS, PAD, UNK

Ids = list[list[int]]


class Job(NamedTuple):
    """Sentences to translate, at most `batch` at a time, each into `shortest` to `longest` pieces."""

    sources: Ids
    batch: int
    beam: int
    shortest: int
    longest: int


System = Callable[[Job], Sequence[Any]]  # pieces of each source's output; of `margins` both, as a pair


# ---- Ours -----------------------------------------------------------------------------------------------------------


def ours(
    device: str, dtype: str, run: str = "", config: str = "", streams: int = 1, n_best: int = 1, **_: Any
) -> System:
    """Our Translator on the weights of the workdir `run`, or on random ones of a whole `config` as JSON; `streams`
    batches at a time. With `n_best` 2 an output comes with its margin: the log-probability by which it is ahead of the
    second."""
    import jax

    from transformer.checkpoint import Checkpoints
    from transformer.command_line import set_up_jax
    from transformer.config import DecodeConfig, from_json
    from transformer.inference.translator import Translator
    from transformer.model import build
    from transformer.model.rounding import in_type

    set_up_jax()
    if config:
        whole = from_json(config)
        model, vocab_size = whole.model, whole.data.vocab_size
        params = build(model.with_vocabulary(vocab_size)).init(jax.random.key(0))
    else:
        opened = Checkpoints(run).open("last")
        model, vocab_size, params = opened.config.model, opened.progress["vocab_size"], opened.params()
    model, params = in_type(model, params, dtype)
    network = build(model.with_vocabulary(vocab_size))

    def decode(job: Job) -> Sequence[Any]:
        settings = DecodeConfig(
            beam_size=job.beam,
            n_best=n_best,
            length_normalization="none",
            min_length=job.shortest,
            max_length=job.longest,
            max_extra_length=job.longest,  # more than max_length ever allows
            batch_sentences=-(-job.batch // streams),  # `batch` sentences in all at a time
            streams=streams,
            batch_tokens=job.batch * job.beam * 1024,  # no second bound
        )
        found = dict(Translator(network, params, None, settings).search(job.sources))
        if n_best == 1:
            return [found[i][0][0] for i in range(len(job.sources))]
        return [
            (tokens[0], float(scores[0] - scores[1]) if len(scores) > 1 else 1e9)
            for tokens, scores in ((found[i][0], found[i][1]) for i in range(len(job.sources)))
        ]

    return decode


def margins(**settings: Any) -> System:
    """Ours, which says of each output how clearly it was chosen."""
    return ours(n_best=2, **settings)


def deepen(first: str, start: str, layers: int = 6, **_: Any) -> None:
    """Write, as the start of a training, the last checkpoint of `first` with `layers` layers on each side.

    Its layers are followed by ones that add nothing to what goes through them: their last matrices are zero, and their
    norms those of the layer before, whose output they leave nearly as it is.
    """
    import dataclasses

    import jax
    import numpy as np

    from transformer.checkpoint import Checkpoints
    from transformer.model import build
    from transformer.tools.convert import write_start

    opened = Checkpoints(first).open("last")
    old, params = opened.config.model, opened.params()
    model = dataclasses.replace(old, encoder_layers=layers, decoder_layers=layers)
    fresh = build(model.with_vocabulary(opened.progress["vocab_size"])).init(jax.random.key(1))
    deeper = {**params}
    for side in ("encoder", "decoder"):
        trained = params[side]["layers"]
        grown = {}
        for i in range(layers):
            below = trained[str(i * len(trained) // layers)]
            if i * len(trained) % layers < len(trained):  # the first of its group is the trained one
                grown[str(i)] = below
                continue
            last_norm = below["feed_forward_norm"]
            grown[str(i)] = layer = {}
            for part, weights in fresh[side]["layers"][str(i)].items():
                if part.endswith("_norm"):
                    layer[part] = last_norm
                else:
                    zero = {"output", "w2", "b2"} & set(weights)
                    layer[part] = {n: np.zeros_like(x) if n in zero else x for n, x in weights.items()}
        deeper[side] = {**params[side], "layers": grown}
    write_start(opened, start, deeper, model)


# ---- Hugging Face ---------------------------------------------------------------------------------------------------


def huggingface(marian: str, threads: int, device: str, dtype: str, attention: str = "sdpa", **_: Any) -> System:
    """transformers' MarianMTModel with its key/value cache, under inference mode; `attention` is sdpa or eager."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    model = transformers.MarianMTModel.from_pretrained(
        marian, attn_implementation=attention, dtype=getattr(torch, dtype)
    )
    model = model.eval().to(device)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6  # ours; see transformer/tools/hf/marian.py
    # The trained model never chooses pad or bos: forbidding them would only cost time.
    model.generation_config.suppress_tokens = None
    model.generation_config.max_length = None

    def decode(job: Job) -> Ids:
        fixed = job.shortest == job.longest
        outputs: dict[int, list[int]] = {}
        for indices in _by_length(job):
            sources = [torch.tensor([*job.sources[i], EOS]) for i in indices]
            source_BS = torch.nn.utils.rnn.pad_sequence(sources, batch_first=True, padding_value=PAD).to(device)
            with torch.inference_mode():
                found = model.generate(
                    source_BS,
                    attention_mask=source_BS != PAD,
                    num_beams=job.beam,
                    do_sample=False,
                    use_cache=True,
                    length_penalty=0.0,
                    min_new_tokens=job.shortest or None,
                    max_new_tokens=job.longest + (not fixed),  # they count eos
                )
            for i, ids in zip(indices, found.tolist(), strict=True):
                ids = ids[1:]
                # One that has not ended when there is no room left has a piece where the others must put eos.
                outputs[i] = ids[: ids.index(EOS) if EOS in ids else job.longest]
        return [outputs[i] for i in range(len(job.sources))]

    return decode


# ---- CTranslate2 ----------------------------------------------------------------------------------------------------


def ctranslate2(ctranslate2: str, threads: int, device: str, dtype: str, inter_threads: int = 1, **_: Any) -> System:
    """CTranslate2's Translator: `inter_threads` batches at a time on threads / inter_threads threads each.

    Its environment (CT2_FORCE_CPU_ISA, CT2_USE_MKL, ...) is set by who starts this process.
    """
    import ctranslate2 as ct2

    translator = ct2.Translator(
        ctranslate2,
        device=device,
        compute_type=dtype,
        inter_threads=inter_threads,
        intra_threads=max(1, threads // inter_threads),
    )

    def decode(job: Job) -> Ids:
        found = translator.translate_batch(
            [[str(i) for i in source] for source in job.sources],  # the model appends eos
            beam_size=job.beam,
            length_penalty=0,
            max_input_length=0,
            max_batch_size=-(-job.batch // inter_threads),  # `batch` sentences in all at a time
            batch_type="examples",
            min_decoding_length=max(1, job.shortest),
            max_decoding_length=job.longest,
        )
        return [[UNK if piece == "<unk>" else int(piece) for piece in result.hypotheses[0]] for result in found]

    return decode


# ---- The process ----------------------------------------------------------------------------------------------------

SYSTEMS = {"ours": ours, "margins": margins, "huggingface": huggingface, "ctranslate2": ctranslate2}


def _by_length(job: Job) -> Iterator[list[int]]:
    """Indices of the sources, the shortest first, `job.batch` at a time."""
    order = sorted(range(len(job.sources)), key=lambda i: len(job.sources[i]))
    for start in range(0, len(order), job.batch):
        yield order[start : start + job.batch]


def main() -> None:
    name, settings = sys.argv[1], json.loads(sys.argv[2])
    if name == "deepen":
        return deepen(**settings)
    if name == "convert":
        from ctranslate2_model import convert

        return convert(**settings)

    def start(**settings: Any) -> tuple[str, Callable[[list], dict[str, Any]]]:
        system = SYSTEMS[name](**settings)
        return "ready", lambda request: {"outputs": system(Job(*request))}

    answer_requests(start, settings)


if __name__ == "__main__":
    main()
