"""Scores of a parser: EVALB's figures on a treebank."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformer.checkpoint import AVERAGE, Checkpoints, best_seed
from transformer.config import ParserConfig, ParsingConfig, UserError
from transformer.data import treebank
from transformer.data.held_out import seen_doubts
from transformer.data.sources import warn_of_repeated
from transformer.data.treebank import Sentence, Treebank
from transformer.data.trees import Tree, parse
from transformer.files import refuse_pipe
from transformer.inference.parser import Parser
from transformer.streams import plain
from transformer.tasks import evalb, stored_sets
from transformer.tasks.evalb import COLLINS, Parameters, compared, read_parameters, summary
from transformer.tasks.gathered import in_shares
from transformer.tasks.stored_sets import StoredSet

log = logging.getLogger("transformer")

INDEX = "trees.json"
Options = Callable[[ParsingConfig], ParsingConfig]


def parameters_of(config: ParserConfig) -> Parameters:
    """EVALB's parameters. Raises `UserError` if the file can't be read, or only once."""
    if config.parameters is None:
        return COLLINS
    refuse_pipe(config.parameters)
    return read_parameters(config.parameters)


def scored(
    gold: Sequence[Sentence], found: Sequence[Tree | None], parameters: Parameters, *, by_gold_tags: bool = False
) -> list[evalb.Sentence]:
    """The counts of each sentence, as in `evalb.compared`. A sentence without a tree is skipped."""
    return [
        compared(i, [one.tree], [tree] if tree else [], parameters, by_gold_tags=by_gold_tags)
        for i, (one, tree) in enumerate(zip(gold, found, strict=True), 1)
    ]


def f1_of_all(gold: Sequence[Sentence], found: Sequence[Tree | None], parameters: Parameters) -> float:
    """F1, in percent, of all sentences, so that two checkpoints are judged on the same ones.

    The gold tags decide which words are deleted, and of a sentence without a tree all brackets are missed. EVALB leaves
    out sentences in which a wrong tag deletes another word.
    """
    return summary(scored(gold, found, parameters, by_gold_tags=True)).f1


def parse_shares(parser: Parser, sentences: Sequence[Sentence]) -> list[Tree | None]:
    """The tree of each sentence. Each process parses its share; every process returns all of them."""

    def texts(share: Sequence[Sentence], first: int) -> list[str | None]:
        found = parser.parse([one.words for one in share], first_line=first)
        return [None if tree is None else str(tree) for tree in found]

    return [None if text is None else parse(text, "a share")[0] for text in in_shares(sentences, texts)]


# ---- The workdir's trees ---------------------------------------------------------------------------------------------


def write(folder: Any, sets: Mapping[str, Treebank | None]) -> None:
    """Copy the trees of these sets into `folder`/sets, one a line; None = there is no such set."""

    def stored(kind: str, bank: Treebank | None) -> StoredSet | None:
        if bank is None:
            return None
        lines = "".join(f"{one.tree}\n" for one in bank.sentences)
        return StoredSet({"name": bank.name}, {f"{kind}.mrg": lines.encode()})

    stored_sets.write(folder, INDEX, {kind: stored(kind, bank) for kind, bank in sets.items()})


def _stored(workdir: str, kind: str | None) -> Treebank:
    _, (entry, files) = stored_sets.read(workdir, INDEX, "--data FILE", kind)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "trees.mrg"
        copy.write_bytes(b"".join(files.values()))
        return treebank.read([str(copy)])._replace(name=str(entry.get("name", "")))


# ---- evaluate.py -----------------------------------------------------------------------------------------------------


def evaluate_workdir(
    workdir: str,
    *,
    data: str | None = None,
    checkpoint: str | None = None,
    kind: str | None = None,
    options: Options = lambda config: config,
) -> dict[str, Any]:
    """EVALB's figures of a workdir's checkpoint, as evaluate.py prints them.

    `data`: a file of gold trees; default: the workdir's test set, else its development set; `kind`: only the 'test' or
    'dev' set. `options` may change decoding and EVALB's parameters. Of a workdir with several seeds, those of the best
    one on the development set, as `parse` uses it. Raises `UserError` if the workdir or the file can't be used.
    """
    workdir = str(best_seed(workdir))
    checkpoints = Checkpoints(workdir)
    config = options(checkpoints.read(checkpoint, lambda opened: opened.config))
    parameters = parameters_of(config.parser)
    bank = _stored(workdir, kind) if data is None else treebank.read([data])
    warn_of_unusable(bank)
    if data is not None:
        warn_of_roots(bank, parameters)
    opened, parser = checkpoints.read(checkpoint, lambda opened: (opened, Parser.of(opened, config.decode)))
    what = f"{len(bank.sentences):,} sentences of {bank.name}"
    log.info("parsing %s with checkpoint %s of %s", what, opened.name, workdir)
    found = parse_shares(parser, bank.sentences)
    sentences = scored(bank.sentences, found, parameters)
    parser.tally.refuse(f"{workdir}: ")
    short = [one for one in sentences if one.length <= parameters.cutoff]
    whole = summary(sentences)
    name = "COLLINS.prm" if config.parser.parameters is None else Path(config.parser.parameters).name
    result = {
        "test_set": bank.name,
        "checkpoint": str(opened.name),
        "f1": whole.f1,
        "f1_all": f1_of_all(bank.sentences, found, parameters),
        "tagging": whole.tagging,
        "all": whole._asdict(),
        f"len<={parameters.cutoff}": summary(short)._asdict(),
        "unusable_trees": len(bank.unusable),
        "beam_size": config.decode.beam_size,
        "parameters": f"{name}, sha256 {parameters.digest()}",
    }
    if opened.name == AVERAGE:
        result["averaged_steps"] = opened.progress["averaged_steps"]
    return result


def warn_of_doubts(banks: Mapping[str, Treebank | None], parameters: Parameters) -> None:
    """Log a warning for trees of training, development and test set that can't be used or have a label above all, for
    files that are given twice, and for sentences of the sets that occur in training."""
    found = {kind: bank for kind, bank in banks.items() if bank is not None}
    for bank in found.values():
        warn_of_unusable(bank)
        warn_of_roots(bank, parameters)
    warn_of_repeated((f"data.{kind}", path) for kind, bank in found.items() for path in bank.paths)
    words = {kind: (bank.name, [one.words for one in bank.sentences]) for kind, bank in found.items()}
    for doubt in seen_doubts(words["train"][1], words.get("dev"), words.get("test")):
        log.warning("%s", doubt)


def warn_of_unusable(bank: Treebank) -> None:
    """Log a warning if trees of a treebank can't be used."""
    if bank.unusable:
        log.warning("%s (%d such trees are left out of %s)", bank.unusable[0], len(bank.unusable), bank.name)


def warn_of_roots(bank: Treebank, parameters: Parameters) -> None:
    """Log a warning if a label stands above all trees, as ROOT does in CoreNLP's, and EVALB's parameters count it."""
    tops = {one.tree.label for one in bank.sentences if len(one.tree.children) == 1}
    alone = all(len(one.tree.children) == 1 and one.tree.children[0].word is None for one in bank.sentences)
    if alone and len(tops) == 1 and not tops & parameters.deleted:
        what = "%s: %s stands above all trees and counts as a bracket; take it away, or give EVALB's parameters with "
        log.warning(f"{what}DELETE_LABEL %s (--parser.parameters)", plain(bank.name), *tops, *tops)


def lines_of(result: Mapping[str, Any]) -> Iterator[str]:
    """The result of `evaluate_workdir` as lines of text: EVALB's two summaries."""
    yield f"{plain(result['test_set'])}: {result['all']['sentences']:,} sentences, checkpoint {result['checkpoint']}"
    for name in (name for name in result if name == "all" or name.startswith("len<=")):
        yield from ("", *evalb.summary_lines("All" if name == "all" else name, evalb.Summary(**result[name])))
    yield from ("", f"F1 of all sentences, words deleted by their gold tags: {result['f1_all']:.2f}")


def check_parameters(config: ParsingConfig) -> None:
    """Raise `UserError` if EVALB's parameter file can't be read."""
    try:
        parameters_of(config.parser)
    except UserError as error:
        raise UserError(f"parser.parameters: {error}") from None
