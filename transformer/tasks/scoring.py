"""Scores of a workdir on a test set, with what is needed to compare them: signatures, checkpoint, decoding."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from etils import epath

from transformer.checkpoint import AVERAGE, Checkpoints
from transformer.config import Config, DecodeConfig, UserError
from transformer.data.text import Parallel
from transformer.files import append, local, refuse_links, replace, writing
from transformer.inference.translator import Translator
from transformer.streams import plain, to_json
from transformer.tasks.sets import known_sets, read_set, read_sides
from transformer.tasks.translation import compound_split_bleu, refuse_broken, score, together
from transformer.training.processes import agree, all_or_none, count

log = logging.getLogger("transformer")


class _Loaded(NamedTuple):
    """A checkpoint that is to be scored."""

    name: int | str
    config: Config
    options: DecodeConfig
    averaged_steps: list[int] | None
    translator: Translator


def evaluate_workdir(
    workdir: str,
    *,
    source: str | None = None,
    reference: str | None = None,
    checkpoint: str | None = None,
    against: str | None = None,
    decode: Callable[[Config], DecodeConfig] = lambda config: config.decode,
) -> dict[str, Any]:
    """BLEU and chrF of a workdir's checkpoint on a test set, as evaluate.py prints them.

    `decode` gives the decoding options for a workdir's config; with `against` each of the two has its own. Of several
    processes each translates its share, and all have the result.
    """
    with all_or_none():
        checkpoints = Checkpoints(workdir)
        checkpoints.choose(checkpoint)  # before anything is asked of its sets
        others = None if against is None else Checkpoints(against)
        if source is not None and reference is not None:
            test_set, (sources, references) = epath.Path(source).name, read_sides(Parallel(source, reference), ("", ""))
        else:
            test_set, sources, references = read_set(workdir)

    def load(name: int | str, other: int | str | None) -> tuple[_Loaded, _Loaded | None]:
        with all_or_none():
            ours, theirs = _options(checkpoints, name, decode), None
            same = {"--checkpoint": str(name), "--against": against, **_told("decode", ours[1])}
            if others is not None:
                theirs = _options(others, other, decode)
                same |= {"the other's checkpoint": str(other), **_told("the other's decode", theirs[1])}
            same["sha256 of the test set"] = hashlib.sha256(json.dumps([sources, references]).encode()).hexdigest()
        agree(same)
        # Orbax has all processes read a checkpoint together: only now, when none has stopped.
        loaded = _Loaded(name, *ours, Translator.load(workdir, str(name), ours[1]))
        if theirs is None:
            return loaded, None
        return loaded, _Loaded(other, *theirs, Translator.load(against, str(other), theirs[1]))

    def load_both(name: int | str) -> tuple[_Loaded, _Loaded | None]:
        return load(name, None) if others is None else others.read(None, lambda other: load(name, other))

    if count() == 1:
        ours, theirs = checkpoints.read(checkpoint, load_both)
    else:  # which can't each choose another one when it is gone
        with all_or_none():
            chosen = checkpoints.choose(checkpoint), None if others is None else others.choose()
        ours, theirs = load(*chosen)
    log.info("translating %d sentences of %s with checkpoint %s of %s", len(sources), test_set, ours.name, workdir)
    hypotheses = together(ours.translator, sources)
    broken = refuse_broken(ours.translator)
    result: dict[str, Any] = {
        "test_set": test_set,
        "sentences": len(sources),
        "checkpoint": str(ours.name),
        **score(hypotheses, references),
        "decode": dataclasses.asdict(ours.options),
    }
    if broken:
        result["scores_not_numbers"] = broken
    if ours.averaged_steps is not None:
        result["averaged_steps"] = ours.averaged_steps
    if ours.config.data.languages == ("en", "de"):
        result["bleu_tokenized_compound_split"] = compound_split_bleu(hypotheses, references)
    if theirs is not None:
        theirs_too = together(theirs.translator, sources)
        refuse_broken(theirs.translator)
        test = _paired_bootstrap(workdir, hypotheses, against, theirs_too, references)
        result["against"] = {"workdir": against, "checkpoint": str(theirs.name), **test}
    return result


def _options(
    checkpoints: Checkpoints, name: int | str, decode: Callable[[Config], DecodeConfig]
) -> tuple[Config, DecodeConfig, list[int] | None]:
    """A checkpoint's config, how it is decoded, and of what it is the average."""
    config = checkpoints.config(name)
    return config, decode(config), checkpoints.progress(name)["averaged_steps"] if name == AVERAGE else None


def _told(name: str, options: DecodeConfig) -> dict[str, Any]:
    return {f"{name}.{field}": value for field, value in json.loads(json.dumps(dataclasses.asdict(options))).items()}


def store(workdir: str, result: dict[str, Any]) -> bool:
    """Append a result to `scores.jsonl` in the workdir, as a line of its own. Returns whether that worked; if not, a
    warning says why."""
    path = epath.Path(workdir) / "scores.jsonl"
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    line = to_json({"time": now, **result})
    try:
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


def average(workdir: str, last: int) -> Iterator[str]:
    """Average the last checkpoints and tell dev BLEU before and after; evaluation uses the average from then on."""
    checkpoints = Checkpoints(workdir)
    checkpoints.choose("last")  # which says what to do where there is none
    steps = checkpoints.average(last)
    yield f"averaged {len(steps)} checkpoints: {', '.join(map(str, steps))}"
    if len(steps) < last:
        log.warning("only %d checkpoints are there; train.keep_last says how many are kept", len(steps))
    if "dev" not in known_sets(workdir):
        yield "no development set to score it on"
        return
    test_set, sources, references = read_set(workdir, "dev")
    for checkpoint in ("last", AVERAGE):
        name, translator = checkpoints.read(checkpoint, lambda name: (name, Translator.load(workdir, str(name))))
        scores = score(translator.translate(sources), references)
        text = "after" if name == AVERAGE else f"before, step {name}"
        yield f"BLEU on {plain(test_set)}, {text}: {scores['bleu']:.2f}   {scores['signature']}"


def lines_of(result: dict[str, Any]) -> Iterator[str]:
    """The result for people."""
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


def _paired_bootstrap(ours: str, hypotheses: list[str], other: str, others: list[str], references: list[str]) -> dict:
    import sacrebleu
    from sacrebleu.significance import PairedTest

    metric = sacrebleu.BLEU()
    test = PairedTest([(other, others), (ours, hypotheses)], {"BLEU": metric}, [references], "bs", 1000)
    signatures, scores = test()
    rows = [
        # Of two outputs that are the same, sacreBLEU says p = 0.001.
        {
            "system": name,
            "bleu": row.score,
            "mean": row.mean,
            "ci": row.ci,
            "p_value": None if hypotheses == others else row.p_value,
        }
        for name, row in zip(scores["System"], scores["BLEU"], strict=True)
    ]
    return {"rows": rows, "signature": str(signatures["BLEU"])}
