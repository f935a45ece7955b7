"""The commands of README.md and docs/ run as written, at toy size, page by page, in one folder for each page.

The page's Python runs after them, with what they made.

`NOT_RUN` lists those that can't be run here. The toy models of the pages (`MODEL`) have the size of that of `trained`.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import re
import shutil
import sys
from pathlib import Path

import jax
import pytest
from not_run import NOT_RUN
from opus import write_opus
from pages import ALL, ROOT, python_blocks, run

from transformer.checkpoint import Checkpoints
from transformer.config import BERT, GPT2
from transformer.data.wordpiece import SPECIAL_PIECES
from transformer.model import build
from transformer.tools.hf.bert import bert_config, to_bert
from transformer.tools.hf.folder import write_arrays
from transformer.tools.hf.gpt2 import gpt2_config, to_gpt2

PYTHON_NOT_RUN = {
    "README.md": "tests/test_readme.py runs it",
    "docs/api.md": "tests/test_api.py runs it",
    "docs/gpt2_and_accounting.md": "it downloads GPT-2",
}
RUN = [c for c in ALL if not any(page == c.page and part in c.text for page, part in NOT_RUN)]


@pytest.fixture
def folder(tiny, trained: Path, tmp_path: Path, monkeypatch) -> Path:
    """The current folder of a page, with the files that pages name and the toy model in three workdirs."""
    source, target = ((tiny.folder / f"train.{side}").read_text().splitlines() for side in ("en", "de"))
    pairs = list(zip(source, target, strict=True))

    def text(name: str, lines: list[str]) -> None:
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))

    for name in ("train", "dev", "test"):
        for side in ("en", "de"):
            shutil.copy(tiny.folder / f"{name}.{side}", tmp_path)
    for name, part in {"a": pairs[:200], "b": pairs[200:], "domain": pairs[:60]}.items():
        text(f"{name}.en", [one for one, _ in part])
        text(f"{name}.de", [f"{other} €" if name == "domain" else other for _, other in part])  # a new character
    for name in ("domain_dev", "domain_test"):
        text(f"{name}.en", source[60:70])
        text(f"{name}.de", target[60:70])
    for name, part in {"pairs": pairs, "dev_pairs": pairs[:10]}.items():
        text(f"{name}.tsv", ["\t".join(pair) for pair in part])
    text("second.de", [line.upper() for line in (tmp_path / "test.de").read_text().splitlines()])
    text("mono.de", ["", *target[:20]])
    for name in ("a", "b", "dev", "other"):
        text(f"{name}.txt", source)
    (tmp_path / "tiny_shakespeare").mkdir()
    text("tiny_shakespeare/input.txt", source)
    monkeypatch.setenv("TRANSFORMER_DATA", str(tmp_path))
    text("in.txt", ["", *source[:4]])
    text("in.jsonl", [json.dumps({"source": line, "id": i}) for i, line in enumerate(source[:4])])
    text("gold.mrg", ["(S (NP (DT The) (NN cat)) (VP (VBZ sleeps)) (. .))"])
    text("test.mrg", ["(S (NP (DT The) (NN cat) (VBZ sleeps)) (. .))"])
    text("COLLINS.prm", ["DELETE_LABEL .", "EQ_LABEL ADVP PRT"])
    text("tokenised.txt", ["The cat sleeps .", ""])
    write_trees(tmp_path / "treebank")
    write_labelled(tmp_path)
    write_gpt2(tmp_path / "gpt2")
    write_bert(tmp_path / "bert")
    write_opus(tmp_path / "opus-mt-en-de")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name in ("quickstart", "other", "mine"):
        shutil.copytree(trained, tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_labelled(folder: Path) -> None:
    """Labelled texts in each form that docs/fine_tuning.md names; 60 to train on."""

    def rows(name: str, lines: list[str]) -> None:
        (folder / name).write_text("".join(f"{line}\n" for line in lines))

    labels = [("positive", "negative")[i % 3 == 0] for i in range(60)]
    texts = [f"a {'lovely' if label == 'positive' else 'dull'} film, part {i}" for i, label in enumerate(labels)]
    table = ["label\ttext", *(f"{label}\t{text}" for label, text in zip(labels, texts, strict=True))]
    for name, count in {"train": 60, "dev": 9, "test": 9, "other": 9}.items():
        rows(f"{name}.tsv", table[: count + 1])
    rows("reviews.jsonl", [json.dumps({"review": {"body": text, "stars": str(i % 5)}}) for i, text in enumerate(texts)])
    pairs = [f"{text}\t{texts[-i]}" for i, text in enumerate(texts)]
    rows("similar.tsv", ["text\tother\tscore", *(f"{pair}\t{i / 7}" for i, pair in enumerate(pairs))])
    rows("new_pairs.tsv", pairs)
    rows("names.conll", ["Ada B-PER\nlives O\nin O\nParis B-LOC\n"] * 60)
    (folder / "sst2").mkdir()
    for name, count in {"train": 60, "dev": 9}.items():
        lines = "".join(f"{i % 2}\t{text}\n" for i, text in enumerate(texts[:count]))
        (folder / "sst2" / f"{name}.tsv.gz").write_bytes(gzip.compress(lines.encode()))


def write_trees(folder: Path) -> None:
    """Trees to train and score a parser on."""
    folder.mkdir()
    for name, count in {"train": 60, "dev": 5}.items():
        trees = [f"( (S (NP (DT the) (NN cat{i % 7})) (VP (VBZ sleeps)) (. .)) )\n" for i in range(count)]
        (folder / f"craft.{name}.mrg.gz").write_bytes(gzip.compress("".join(trees).encode()))


def write_gpt2(folder: Path) -> None:
    """A tiny model as Hugging Face's `GPT2LMHeadModel.save_pretrained` writes it."""
    tiny = {"decoder_layers": 1, "d_model": 8, "d_ff": 16, "heads": 2, "max_positions": 16, "vocab_size": 20}
    config = dataclasses.replace(GPT2, **tiny)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(gpt2_config(config)))
    write_arrays(folder / "model.safetensors", to_gpt2(build(config).init(jax.random.key(0)), config))


def write_bert(folder: Path) -> None:
    """A tiny model as Hugging Face's `BertForPreTraining.save_pretrained` writes it, with a vocabulary."""
    pieces = [*SPECIAL_PIECES, *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
    tiny = {"encoder_layers": 1, "d_model": 8, "d_ff": 16, "heads": 2, "max_positions": 32, "vocab_size": len(pieces)}
    config = dataclasses.replace(BERT, **tiny)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(bert_config(config)))
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    write_arrays(folder / "model.safetensors", to_bert(build(config).init(jax.random.key(0)), config))


@pytest.fixture
def give(call, monkeypatch):
    """`give(input, program, *arguments)`: as `call`, with this text as standard input."""

    def give(text: str, program: str, *arguments: str):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        return call(program, *arguments)

    return give


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({command.page for command in RUN}))
def test_the_commands_of_a_page_run(page: str, folder: Path, give) -> None:
    mine = [command for command in RUN if command.page == page]
    if any(re.search(r"train\.py .*--workdir runs/mine\b", command.text) for command in mine):
        shutil.rmtree("runs/mine")  # the page makes it
    for command in mine:
        check(command.text, run(command, give))
    if page not in PYTHON_NOT_RUN:
        for block in python_blocks(ROOT / page):
            exec(compile(block, page, "exec"), {})


def check(text: str, out: str) -> None:
    """Assert that a command did what its page says."""
    if "train.py" in text and not {"--print-config", "--dry-run"} & set(text.split()):
        workdir = Path(re.search(r"--workdir (\S+)", text)[1])
        seeds = sorted(workdir.glob("seed-*"))
        assert len(seeds) == (2 if "--train.seeds" in text else 0)
        assert all(Checkpoints(run).steps()[-1] == 4 for run in seeds or [workdir])
    if "--print-config" in text:
        assert json.loads(out)["task"] == "translation"
    if "evaluate.py" in text:
        assert "checkpoint" in (json.loads(out) if "--json" in text else out)
    if "translate" in text:
        source, target = re.search(r"(?:<|--input) (\S+)", text), re.search(r"(?:>|--output) (\S+)", text)
        if "--share 0/2" in text:  # the second share joins both
            return
        lines = (Path(target[1]).read_bytes() if target else out.encode()).split(b"\n")[:-1]
        assert len(lines) == (Path(source[1]).read_bytes().count(b"\n") if source else 1)
        if "--jsonl" in text:
            assert all({"source", "translation", "score"} <= json.loads(line).keys() for line in lines)
    if "transformer predict" in text:
        source, target = re.search(r"< (\S+)", text), re.search(r"> (\S+)", text)
        given = Path(source[1]).read_text().splitlines() if source else ["?"] * (3 if "head -n 3" in text else 1)
        found = (Path(target[1]).read_text() if target else out).splitlines()
        assert len(found) == len(given)
        if "--jsonl" in text:
            assert [json.loads(line)["text"] for line in found] == given
            assert all({"label", "probability", "probabilities"} <= json.loads(line).keys() for line in found[1:])
        else:
            assert [line != "" for line in found[1:]] == [line != "" for line in given[1:]]
    if "transformer parse" in text:
        found = Path("trees.mrg").read_text().splitlines() if "trees.mrg" in text else out.splitlines()
        assert [line != "" for line in found] == ([True, False] if "trees.mrg" in text else [True])
        assert "--draw" not in text or Path("tree.svg").read_text().startswith("<svg")
    if "embed" in text:
        assert len(Path("vectors.jsonl").read_text().splitlines()) == len(Path("in.txt").read_text().splitlines())
    if "transformer attention" in text:
        path = Path(re.search(r"--output (\S+)", text)[1])
        begins = {".html": b"<!doctype html>", ".json": b'{"format": "transformer attention"', ".png": b"\x89PNG"}
        assert out == "" and path.read_bytes().startswith(begins[path.suffix])
    if "evalb" in text:
        assert json.loads(out)["all"]["recall"] == 100 / 3 if "--json" in text else "Bracketing Recall" in out
    if "--profile" in text:
        assert list(Path("runs/traced/profile").rglob("*.xplane.pb"))
