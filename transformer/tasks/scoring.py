"""Score a workdir on a test set. A result also holds what a comparison needs: signatures, checkpoint, decoding."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transformer.checkpoint import AVERAGE, Checkpoint, Checkpoints, again
from transformer.config import Config, UserError, require_translation, shown
from transformer.data.held_out import reference_doubts
from transformer.data.languages import Sides, exchanged
from transformer.data.tokenizer import Tokenizer
from transformer.files import append, local, path_of, refuse_links, replace, writing
from transformer.inference.translator import Translator
from transformer.judging import Judged
from transformer.streams import plain, to_json
from transformer.tasks import breakdown as breakdowns
from transformer.tasks.averaging import NOT_SCORED, averaged
from transformer.tasks.gathered import refuse_broken, translate_shares
from transformer.tasks.judges import (
    JUDGED,
    References,
    bleu,
    bleu_tokenizer,
    compound_split_bleu,
    has_compound_split,
    paired_bootstrap,
    score,
    spelt_otherwise,
    unsuited,
)
from transformer.tasks.sets import check_given, known_sets, read_given, read_set
from transformer.training.processes import agree, all_or_none, count, first

log = logging.getLogger("transformer")


class _Loaded(NamedTuple):
    """A checkpoint to be scored."""

    checkpoint: Checkpoint
    config: Config
    """The checkpoint's config, with the options of the command line."""
    translator: Translator


Options = Callable[[Config], Config]


def evaluate_workdir(
    workdir: str,
    *,
    source: str | None = None,
    references: Sequence[str] = (),
    checkpoint: str | None = None,
    against: str | None = None,
    breakdown: bool = False,
    options: Options = lambda config: config,
) -> dict[str, Any]:
    """BLEU and chrF of a workdir's checkpoint on a test set, as evaluate.py prints them; with `breakdown` also where
    its translations go wrong (see `tasks.breakdown`).

    `references`: one or several files; none if the source file holds both sides. `options` applies the options of the
    command line to a workdir's config; with `against` it is called for each of the two workdirs. With several processes
    each translates its share, and all return the result. Raises `UserError` if the workdir or a file can't be used.
    """
    with all_or_none():
        source, references = _checked_names(source, references)
        checkpoints = Checkpoints(workdir)
        others = None if against is None else Checkpoints(against)
        config, judged = _config_to_score(checkpoints, checkpoint, options)  # before its sets are read
        other_judged = None if others is None else _config_to_score(others, None, options)[1]
        if source is None:
            test_set, sources, *targets = read_set(workdir)
        else:
            test_set, (sources, targets) = Path(source).name, read_given(source, references, config.data.fields)

    def load() -> list[_Loaded]:
        with all_or_none():
            opened = [checkpoints.open(checkpoint, judged)]
            opened += [] if others is None else [others.open(None, other_judged)]
            configs = [options(one.config) for one in opened]
            bleu(bleu_tokenizer(configs[0]))  # raises if a package is missing
            shared = {"--checkpoint": str(opened[0].name), "--against": against, **_shared_fields("", configs[0])}
            for other, config in zip(opened[1:], configs[1:], strict=True):
                shared |= {"the other's checkpoint": str(other.name), **_shared_fields("the other's ", config)}
            shared["sha256 of the test set"] = hashlib.sha256(json.dumps([sources, targets]).encode()).hexdigest()
        agree(shared)
        # Orbax reads a checkpoint in all processes together, so they read only after all have come this far.
        translators = [Translator.of([one], config.decode) for one, config in zip(opened, configs, strict=True)]
        return [_Loaded(*one) for one in zip(opened, configs, translators, strict=True)]

    # With one process, choose anew if training removes the checkpoint. Several processes might choose different ones.
    ours, *theirs = again(load) if count() == 1 else load()
    _warn(test_set, sources, targets, ours, workdir)
    what = (len(sources), test_set, ours.checkpoint.name, workdir)
    log.info("translating %d sentences of %s with checkpoint %s of %s", *what)
    hypotheses = translate_shares(ours.translator, sources)
    broken = refuse_broken(ours.translator, workdir)
    _warn_of_spelling(test_set, hypotheses, targets)
    result = _result(test_set, ours, hypotheses, targets)
    if breakdown:
        result["breakdown"] = _breakdown(ours, sources, hypotheses, targets)
    if broken:
        result["scores_not_numbers"] = broken
    for other in theirs:
        result["against"] = _compared(other, against, sources, (workdir, hypotheses), targets, ours.config)
    return result


def _checked_names(source: str | None, references: Sequence[str]) -> tuple[str | None, list[str]]:
    """The names of a set's files, as strings. Raises `UserError` if one is not a name or the set is incomplete."""

    def is_name(value: object) -> bool:
        return isinstance(value, (str, os.PathLike))

    if is_name(references) or not isinstance(references, Sequence) or not all(map(is_name, references)):
        raise UserError(f"references = {shown(references)}: give a list of names of files")
    if source is not None and not is_name(source):
        raise UserError(f"source = {shown(source)}: give the name of a file")
    check_given(source, references)
    return None if source is None else os.fspath(source), [os.fspath(one) for one in references]


def _result(test_set: str, ours: _Loaded, hypotheses: list[str], targets: References) -> dict[str, Any]:
    """The scores of one checkpoint, with its name, the signatures and the options of decoding."""
    config = ours.config
    result: dict[str, Any] = {
        "test_set": test_set,
        "sentences": len(hypotheses),
        "checkpoint": str(ours.checkpoint.name),
        **score(hypotheses, targets, bleu_tokenizer(config)),
        "decode": dataclasses.asdict(config.decode),
    }
    if ours.checkpoint.name == AVERAGE:
        result["averaged_steps"] = ours.checkpoint.progress["averaged_steps"]
    if has_compound_split(config.data.languages):
        result["bleu_tokenized_compound_split"] = compound_split_bleu(hypotheses, targets)
    return result


def _compared(
    other: _Loaded, against: str, sources: list[str], ours: tuple[str, list[str]], targets: References, config: Config
) -> dict[str, Any]:
    """The bootstrap test of another workdir's translations against `ours`: workdir and translations."""
    systems = [(against, translate_shares(other.translator, sources)), ours]
    refuse_broken(other.translator, against)
    test = paired_bootstrap(systems, targets, bleu_tokenizer(config))
    return {"workdir": against, "checkpoint": str(other.checkpoint.name), **test}


def _breakdown(ours: _Loaded, sources: list[str], hypotheses: list[str], targets: References) -> dict[str, Any]:
    lengths = [len(pieces) for pieces in ours.translator.tokenizer.encode(sources, "source")]
    return breakdowns.breakdown(sources, lengths, hypotheses, targets, bleu_tokenizer(ours.config))


def _warn(test_set: str, sources: list[str], targets: References, ours: _Loaded, workdir: str) -> None:
    """Log a warning for each thing that seems wrong with a test set."""
    if not first():
        return
    with contextlib.suppress(UserError):  # a damaged development set, which is not scored here
        name, *dev = read_set(workdir, "dev")
        dev_sides, given = (_sides(ours.translator.tokenizer, *both) for both in (dev, (sources, targets[0])))
        if doubt := exchanged(test_set, given, name, dev_sides):
            log.warning("%s", doubt)
    for name, lines in _named_references(test_set, targets):
        for doubt in reference_doubts(name, sources, lines):
            log.warning("%s", doubt)
    for (i, one), (k, other) in itertools.combinations(enumerate(targets, 1), 2):
        if one == other:
            log.warning("%s: its references %d and %d are the same, and count as one translation", test_set, i, k)
    if doubt := unsuited(test_set, targets[0], ours.config):
        log.warning("%s", doubt)


def _sides(tokenizer: Tokenizer, sources: Sequence[str], targets: Sequence[str]) -> Sides:
    """The pieces of both sides of a set, flat."""
    sides = (tokenizer.encode(sources, "source"), tokenizer.encode(targets, "target"))
    return Sides(*(np.array([piece for line in lines for piece in line], np.int32) for lines in sides))


def _config_to_score(
    checkpoints: Checkpoints, checkpoint: str | None, options: Options
) -> tuple[Config, Judged | None]:
    """The config of a workdir with the options of the command line, and the scores that choose its best checkpoint:
    None if they are the same as in training."""
    trained_with = checkpoints.read(checkpoint, lambda opened: opened.config)
    require_translation(trained_with, checkpoints.folder.parent)
    config = options(trained_with)
    metric = config.evaluate.metric
    return config, None if metric == trained_with.evaluate.metric else JUDGED[metric]


def _warn_of_spelling(test_set: str, hypotheses: list[str], targets: References) -> None:
    """Log a warning if references and translations spell letters in different ways (see `spelt_otherwise`)."""
    for name, lines in _named_references(test_set, targets) if first() else ():
        if doubt := spelt_otherwise(name, hypotheses, lines):
            log.warning("%s", doubt)


def _named_references(test_set: str, targets: References) -> Iterator[tuple[str, Sequence[str]]]:
    """Name and lines of each reference of a set."""
    for number, lines in enumerate(targets, 1):
        yield test_set if len(targets) == 1 else f"{test_set}, reference {number}", lines


def _shared_fields(whose: str, config: Config) -> dict[str, Any]:
    """The fields of a config that must be the same in all processes, by name; `whose` is a prefix of the names."""
    sections = {"decode": config.decode, "evaluate": config.evaluate}
    fields = {f"{whose}{name}.{field}": x for name, section in sections.items() for field, x in vars(section).items()}
    return json.loads(json.dumps({**fields, f"{whose}data.languages": config.data.languages}))


def store(workdir: str, result: dict[str, Any], check: Callable[[], None] = lambda: None) -> bool:
    """Append a result to `scores.jsonl` in the workdir, as one line. Returns False, and logs a warning with the reason,
    if that fails.

    `check` raises `UserError` if the workdir is no longer the one that was scored (see `files.unchanged`).
    """
    path = path_of(workdir) / "scores.jsonl"
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    line = to_json({"time": now, **result})
    try:
        check()
        refuse_links(path)
        with writing(path):
            if local(workdir):
                half = append(path, line)
            else:  # a bucket can't be appended to
                before = path.read_bytes() if path.exists() else b""
                half = before != b"" and not before.endswith(b"\n")
                replace(path, before + b"\n" * half + line.encode() + b"\n")
    except UserError as error:
        log.warning("this score is not stored: %s", error)
        return False
    if half:
        log.warning("%s ended in half a line, as a full disk leaves; it is passed over", path)
    return True


def average_translation(workdir: str, last: int, options: Options = lambda config: config) -> Iterator[str]:
    """Average the parameters of the last checkpoints, and yield lines with dev BLEU before and after.

    From then on, evaluation uses the average by default. `options` as in `evaluate_workdir`. Raises `UserError` at the
    end if no translation of the average has a finite score.
    """
    checkpoints = Checkpoints(workdir)
    # Fail before anything is written if a package for scoring is missing.
    trained_with = checkpoints.read("last", lambda opened: opened.config)
    require_translation(trained_with, checkpoints.folder.parent)
    config = options(trained_with)
    if "dev" in known_sets(workdir):
        bleu(bleu_tokenizer(config))
    yield from averaged(checkpoints, last)
    if "dev" not in known_sets(workdir):
        yield NOT_SCORED
        return
    test_set, sources, references = read_set(workdir, "dev")
    for checkpoint in ("last", AVERAGE):
        name, translator = checkpoints.read(
            checkpoint, lambda opened: (opened.name, Translator.of([opened], options(opened.config).decode))
        )
        scores = score(translator.translate(sources), [references], bleu_tokenizer(config))
        text = "after" if name == AVERAGE else f"before, step {name}"
        yield f"BLEU on {plain(test_set)}, {text}: {scores['bleu']:.2f}   {scores['signature']}"
    translator.tally.refuse(f"{checkpoints.folder / AVERAGE}: ")


def lines_of(result: dict[str, Any]) -> Iterator[str]:
    """The result of `evaluate_workdir` as lines of text."""
    yield f"{plain(result['test_set'])}: {result['sentences']} sentences, checkpoint {result['checkpoint']}"
    yield f"BLEU {result['bleu']:.2f}   {result['signature']}"
    yield f"chrF {result['chrf']:.2f}   {result['chrf_signature']}"
    if "bleu_tokenized_compound_split" in result:
        yield (
            f"{result['bleu_tokenized_compound_split']:.2f}   BLEU of tokenised text, compounds split, as in the "
            "2017 paper; not comparable with the line above"
        )
    for row in result.get("against", {}).get("rows", []):
        yield f"{plain(row['system'])}: BLEU {row['bleu']:.2f} (mean {row['mean']:.2f} +- {row['ci']:.2f})" + (
            "" if row["p_value"] is None else f", p = {row['p_value']:.4f}"
        )
    if "against" in result:
        yield result["against"]["signature"]
    if "breakdown" in result:
        yield from breakdowns.lines_of(result["breakdown"])
