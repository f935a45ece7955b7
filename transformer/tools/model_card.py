"""MODEL_CARD.md and README.md, which every export writes: what the model is, what it learnt from, how good it is, and
how to use the folder. What the checkpoint does not hold is said to be unknown."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from transformer.checkpoint import AVERAGE, Checkpoint
from transformer.config import ByteLatentModel, ModelConfig, flatten, to_json
from transformer.streams import plain
from transformer.streams import to_json as printable_json

CARD, README = "MODEL_CARD.md", "README.md"
TASKS = {
    "translation": "translates texts",
    "language_model": "continues texts",
    "masked": "gives vectors for texts, and fills in masked pieces",
    "labels": "labels texts",
    "parsing": "writes the constituency trees of sentences",
    "algorithm": "carries out an algorithm on sequences",
    "byte_latent": "continues texts, byte by byte",
}


class About(NamedTuple):
    """What a card tells of a checkpoint."""

    config: Any
    progress: Mapping[str, Any]
    name: str
    """The step of the checkpoint, or "average"."""
    digest: str
    """sha256 of its manifest."""
    parameters: int
    tokenizer: str | None
    """The line of tokenizer.sha256."""
    tested: Sequence[Mapping[str, Any]]
    """The lines of scores.jsonl of this checkpoint."""


def about(opened: Checkpoint) -> About:
    """What the card of an open checkpoint tells."""
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(opened.model.abstract_params)]
    named = opened.has("tokenizer.sha256")
    tokenizer = opened.file("tokenizer.sha256").decode().strip() if named else None
    config, name = opened.config, str(opened.name)
    return About(config, opened.progress, name, opened.digest, sum(sizes), tokenizer, _tested(opened))


def _tested(opened: Checkpoint) -> list[dict[str, Any]]:
    """The results of evaluate.py in the workdir that are of this checkpoint. Lines that can't be read are left out.

    An average may have been replaced since it was scored: then it has other steps.
    """
    path, found = opened.path.parent.parent / "scores.jsonl", []
    try:
        lines = path.read_text().splitlines() if path.exists() else []
    except (OSError, UnicodeDecodeError):
        lines = []
    for line in lines:
        try:
            result = json.loads(line)
        except (ValueError, RecursionError):
            continue
        steps = opened.progress.get("averaged_steps") if opened.name == AVERAGE else None
        if isinstance(result, dict) and result.get("checkpoint") == str(opened.name):
            found += [result] if result.get("averaged_steps") == steps else []
    return found


def files_about(about: About, to: str, use: str) -> dict[str, bytes]:
    """File name -> content of the card and of the README. `to`: the name of the export. `use`: how to read the folder,
    in Markdown."""
    title = f"# How to use this model\n\n[{CARD}]({CARD}) tells what it is.\n\n{use.strip()}\n"
    return {CARD: ("\n".join(_card(about, to)) + "\n").encode(), README: title.encode()}


def _card(about: About, to: str) -> Iterator[str]:
    config = about.config
    yield from (f"# Model card: a model that {TASKS[config.task]}", "")
    yield f"Written by `python -m transformer export --to {to}`."
    yield from (f"[{README}]({README}) tells how to use it.", "", "## The model", "")
    yield f"- Task: `{config.task}`: it {TASKS[config.task]}{_languages(config)}."
    yield f"- Architecture: {architecture(config.model)}."
    yield f"- Parameters: {about.parameters:,}. Vocabulary: {about.progress['vocab_size']:,} pieces."
    what = "the average of several checkpoints" if about.name == AVERAGE else f"step {about.name}"
    yield f"- Checkpoint: {what}, sha256 of its manifest {about.digest}."
    yield from ("", "## Data", "", *_data(about), "", "## Training", "", *_training(about))
    yield from ("", "## Scores", "", *_scores(about), "", "## Not known", "", *_unknown(about))
    yield from ("", "## Config", "", "File names are without their folders.", "", "```json", _config(config), "```")


def _languages(config: Any) -> str:
    languages = getattr(config.data, "languages", None)
    return f" from {languages[0]} to {languages[1]}" if languages else ""


def architecture(model: ModelConfig) -> str:
    """The model in a few words."""
    both = model.encoder_layers and model.decoder_layers
    layers = f"{model.encoder_layers} encoder and {model.decoder_layers} decoder layers"
    if not both:
        kind = "encoder" if model.encoder_layers else "decoder"
        layers = f"an {kind} alone" if model.encoder_layers else f"a {kind} alone"
        layers += f" of {model.encoder_layers or model.decoder_layers} layers"
    if isinstance(model, ByteLatentModel):
        layers += f" of bytes, {model.latent.decoder_layers} latent layers of width {model.latent.d_model}"
    return f"Transformer, {layers}, width {model.d_model}, feed-forward width {model.d_ff}, {model.heads} heads"


def _data(about: About) -> Iterator[str]:
    fields = {name: value for name, value in flatten(about.config).items() if name in about.config.movable and value}
    for name, value in fields.items():
        files = [value] if isinstance(value, str) else value
        yield f"- `{name}`: {', '.join(plain(_base(file)) for file in files)}"
    corpus = getattr(about.config.data, "corpus", "text")
    if corpus != "text":
        yield f"- `data.corpus`: {corpus}"
    digests = {"of the training data": "data_digest", "of the development set": "dev_digest"}
    for what, name in digests.items():
        if about.progress.get(name):
            yield f"- sha256 {what}, as the program reads it: {about.progress[name]}"
    if about.tokenizer:
        yield f"- sha256 of the vocabulary: {plain(about.tokenizer)}"


def _training(about: About) -> Iterator[str]:
    progress, train = about.progress, getattr(about.config, "train", None)
    if "averaged_steps" in progress and progress["averaged_steps"] != [0]:
        yield f"- Averaged checkpoints: {', '.join(map(str, progress['averaged_steps']))}"
    if imported := [name for name in progress if name.startswith("hf_")]:
        yield f"- Imported from Hugging Face ({', '.join(imported)}); the training there is not known here."
    if progress["step"]:
        yield f"- Updates: {progress['step']:,}, of at most {train.batch_tokens:,} pieces on each side"
        if "epoch" in progress:
            yield f"- Epoch: {progress['epoch']}, of which {progress['batch_of_epoch']:,} updates"
        yield f"- Seed: {train.seed}. Schedule: {train.schedule}, warm-up of {train.warmup_steps:,} updates"
        yield f"- Label smoothing: {train.label_smoothing:g}. Dropout: {about.config.model.dropout:g}"
    if machine := progress.get("machine"):
        yield "- Machine: " + ", ".join(f"{name} {plain(str(value))}" for name, value in machine.items())


def _scores(about: About) -> Iterator[str]:
    rows = []
    for name in [name for name, _ in about.progress.get("judged", ())]:
        value = about.progress.get(name)
        if isinstance(value, int | float):
            signature = about.progress.get(f"{name}_signature", "")
            rows.append(("development", name.removeprefix("dev_"), value, signature))
    for result in about.tested:
        signatures = {"bleu": result.get("signature", ""), "chrf": result.get("chrf_signature", "")}
        usual, given = json.loads(to_json(about.config)).get("decode", {}), result.get("decode", {})
        other = [f"decode.{name} {value}" for name, value in given.items() if usual.get(name) != value]
        for name, value in flat_numbers(result):
            told = ", ".join([signatures.get(name, ""), *other] if signatures.get(name) else other)
            rows.append((str(result.get("test_set", "test")), name, value, told))
    if not rows:
        yield "None: this checkpoint was not scored."
        return
    for where, name, value, signature in rows:
        yield f"- {plain(where)}, {plain(name)}: {value:.6g}" + (f" (`{plain(signature)}`)" if signature else "")


def flat_numbers(result: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a result, with dotted names; not those of its options and tables."""
    for name, value in result.items():
        if isinstance(value, Mapping) and name not in ("decode", "against", "breakdown", "exact_match_by_length"):
            yield from flat_numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", value


def _unknown(about: About) -> Iterator[str]:
    """What a reader may ask, and the checkpoint does not hold."""
    yield "- The licence of the data, and so that of the model; who wrote the texts, and what they are about."
    yield "- For what it is fit: the scores above alone judged it. It has the errors and prejudices of its data."
    if not about.progress.get("data_digest"):
        yield "- The training data: this checkpoint holds no digest of it."
    if not about.progress["step"] or about.progress.get("averaged_steps"):
        yield "- Scores on the development set: the checkpoint was made from others, and holds none."
    if not about.tested:
        yield "- Scores on a test set: evaluate.py has stored none for this checkpoint."
    if "machine" not in about.progress:
        yield "- The machine and the time of training."
    if about.config.model.vocab_size and about.progress["step"] and getattr(about.config.train, "init_from", None):
        yield f"- What it learnt before: it began with another model, {plain(_base(about.config.train.init_from))}."


def _config(config: Any) -> str:
    """The config as JSON, with base names of files and folders."""
    values = json.loads(to_json(config))
    paths = ("train.init_from", "entropy.init_from", "data.cache_dir", "data.tfds_dir", "parser.parameters")
    for name in (*config.movable, *paths):
        section, _, field = name.partition(".")
        value = values.get(section, {}).get(field)
        if value:
            values[section][field] = _base(value) if isinstance(value, str) else [_base(one) for one in value]
    return printable_json(values, indent=2)  # a file name may not be UTF-8


def _base(path: str) -> str:
    """The last part of a path or address."""
    return path.rstrip("/").rpartition("/")[2] or path
