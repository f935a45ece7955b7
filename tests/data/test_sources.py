import dataclasses
import os
import re
from pathlib import Path

import pytest

from transformer.config import Config, DataConfig, UserError, check
from transformer.data import sources
from transformer.data.folder import cache_dir
from transformer.data.sources import corpora
from transformer.data.text import Parallel
from transformer.data.tokenizer import Tokenizer


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.en", "a.de", "a.csv.gz", "b.en.gz", "b.de.gz", "c.tsv", "d.jsonl", "dev.en", "dev.de"):
        Path(name).touch()
    Path("link.en").symlink_to("dev.en")
    Path("folder").mkdir()
    os.mkfifo("pipe.en")


def test_text_files(files):
    made = corpora(
        DataConfig(
            source=("a.en", "b.en.gz"),
            target=("a.de", "b.de.gz"),
            weights=(1.0, 0.5),
            dev_source="dev.en",
            dev_target="dev.de",
            test_source="c.tsv",
        )
    )
    assert made.train == (Parallel("a.en", "a.de", 1.0), Parallel("b.en.gz", "b.de.gz", 0.5))
    assert made.dev == Parallel("dev.en", "dev.de") and made.dev_name == "dev.en"
    assert made.test == Parallel("c.tsv") and made.test_name == "c.tsv"


def test_files_that_hold_both_sides(files):
    made = corpora(DataConfig(source=("c.tsv", "d.jsonl"), weights=(2, 1)))
    assert made.train == (Parallel("c.tsv", None, 2), Parallel("d.jsonl", None, 1))
    assert made.dev is None and made.dev_name == ""


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"data\.source: name at least one"),
        ({"source": ("a.en",)}, r"data\.target: missing; a\.en holds one side only, unlike a \.tsv or \.jsonl$"),
        (
            {"source": ("a.csv.gz",)},
            r"data\.source: a\.csv\.gz: a \.csv, which holds neither .*; convert it to \.jsonl first, .* csvjson",
        ),
        ({"source": ("a.en", "b.en.gz"), "target": ("a.de",)}, r"data\.target: 1 given for 2 in data\.source"),
        ({"source": ("a.en", "c.tsv"), "target": ("a.de", "b.de.gz")}, r"data\.target: c\.tsv holds both sides"),
        ({"source": ("c.tsv",), "weights": (1.0, 2.0)}, r"data\.weights: 2 given for 1"),
        ({"source": ("c.tsv",), "dev_source": "dev.en"}, r"data\.dev_target: missing"),
        ({"source": ("c.tsv",), "dev_target": "dev.de"}, r"data\.dev_source: missing"),
        ({"source": ("c.tsv",), "test_source": "d.jsonl", "test_target": "dev.de"}, r"data\.test_target: d\.jsonl"),
        ({"source": ("c.tsv",), "test_source": "dev.en", "test_target": "c.tsv"}, r"data\.test_target: c\.tsv"),
        (
            {"source": ("x.en", "a.en"), "target": ("a.de", "y.de"), "dev_source": "z.tsv", "tokenizer": "t.model"},
            r"no such file: x\.en \(data\.source\), y\.de \(data\.target\), z\.tsv \(data\.dev_source\), "
            r"t\.model \(data\.tokenizer\)",
        ),
        ({"corpus": "phrases", "source": ("a.en",)}, r"data\.source: data\.corpus = 'phrases' has its own"),
        ({"corpus": "wmt14", "weights": (1.0,)}, r"data\.weights: data\.corpus = 'wmt14' has its own"),
        ({"corpus": "phrases", "test_source": "gone.tsv"}, r"no such file: gone\.tsv \(data\.test_source\)"),
        ({"source": ("a.en",), "target": ("a.en",)}, r"data\.target: a\.en is also the source"),
        (
            {"source": ("a.en", "dev.en"), "target": ("a.de", "./dev.en")},
            r"data\.target: \./dev\.en is also the source",
        ),
        (
            {"source": ("c.tsv",), "dev_source": "dev.en", "dev_target": "link.en"},
            r"data\.dev_target: link\.en is also",
        ),
        ({"source": ("c.tsv",), "test_source": "a.de", "test_target": "a.de"}, r"data\.test_target: a\.de is also"),
        (
            {"source": ("pipe.en",), "target": ("a.de",)},
            r"data\.source: pipe\.en is a pipe or a device.*write it to a file",
        ),
        (
            {"source": ("c.tsv",), "dev_source": "/dev/null", "dev_target": "dev.de"},
            r"data\.dev_source: /dev/null is a pi",
        ),
        ({"source": ("folder",), "target": ("a.de",)}, r"data\.source: folder is a folder; name a file in it"),
        ({"source": ("a\0.en",), "target": ("a.de",)}, r"no such file: a\0\.en \(data\.source\)"),
        ({"source": ("a" * 300,), "target": ("a.de",)}, r"data\.source: a+ cannot be read \(File name too long\)"),
        ({"source": ("a.en/b",), "target": ("a.de",)}, r"no such file: a\.en/b \(data\.source\)"),
        ({"source": ("a.csv.gz",), "target": ("a.de",)}, r"data\.source: a\.csv\.gz: a \.csv, which holds neither"),
        ({"source": ("c.tsv",), "dev_source": "a.csv.gz"}, r"data\.dev_source: a\.csv\.gz: a \.csv, which holds nei"),
        ({"source": ("c.tsv",), "vocab_size": 260}, r"data\.vocab_size = 260: must be at least 261"),
        ({"corpus": "phrases", "vocab_size": 260}, r"data\.vocab_size = 260: must be at least 261"),
    ],
)
def test_mistakes(files, fields, message):
    with pytest.raises(UserError, match=message) as error:
        corpora(DataConfig(**fields))
    assert "\n" not in str(error.value)


def test_generated_phrases_with_the_users_own_test_set(files, tmp_path):
    pytest.importorskip("transformer.data.phrases.corpus")
    config = DataConfig(corpus="phrases", languages=("en", "de"), phrases=50, cache_dir=str(tmp_path / "cache"))
    made = corpora(config)
    assert Path(made.train[0].source).read_bytes().count(b"\n") == 50
    own = corpora(dataclasses.replace(config, test_source="c.tsv"))
    assert own.test == Parallel("c.tsv") and own.test_name == "c.tsv"
    assert own.train == made.train and own.dev == made.dev and own.dev_name == made.dev_name


REPEATED = r"data\.source: %s is given twice, so its pairs count twice"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"source": ("c.tsv", "d.jsonl", "./c.tsv")}, [REPEATED % r"\./c\.tsv"]),
        ({"source": ("a.en", "a.en"), "target": ("a.de", "a.de")}, [REPEATED % r"a\.en"]),
        ({"source": ("a.en", "copy.en"), "target": ("a.de", "copy.de")}, [REPEATED % r"copy\.en"]),
        ({"source": ("a.en", "a.en"), "target": ("a.de", "dev.de")}, []),  # two translations of one source
        ({"source": ("a.en", "a.de"), "target": ("a.de", "a.en")}, []),  # both directions
    ],
)
def test_text_that_is_given_twice_is_told(files, tmp_path, fields, told, caplog):
    for name in ("a.en", "a.de", "dev.en", "dev.de", "c.tsv", "d.jsonl", "e.jsonl"):
        Path(name).write_text(name)  # all files differ, some also in size
    for side in ("en", "de"):
        Path(f"copy.{side}").write_text(f"a.{side}")
    corpora(DataConfig(**fields, cache_dir=str(tmp_path / "cache")))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    for message, pattern in zip(warnings, told, strict=True):
        assert re.match(pattern, message)


def test_one_file_may_be_the_source_here_and_the_target_there(files):
    made = corpora(DataConfig(source=("a.en", "a.de"), target=("a.de", "a.en")))  # both directions
    assert [parallel.target for parallel in made.train] == ["a.de", "a.en"]


def test_the_size_of_a_ready_vocabulary_is_its_own(files):
    Path("ready.model").touch()
    assert corpora(DataConfig(source=("c.tsv",), tokenizer="ready.model", vocab_size=8)).train


def test_no_vocabulary_is_smaller_than_the_smallest():
    assert Tokenizer.train([" "], vocab_size=sources._SMALLEST_VOCABULARY).vocab_size == sources._SMALLEST_VOCABULARY
    with pytest.raises(UserError, match="smallest possible is 261"):
        Tokenizer.train([" "], vocab_size=sources._SMALLEST_VOCABULARY - 1)


def test_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("TRANSFORMER_CACHE", str(tmp_path))
    assert cache_dir(DataConfig()) == tmp_path
    assert cache_dir(DataConfig(cache_dir="/x")) == Path("/x")
    monkeypatch.delenv("TRANSFORMER_CACHE")
    assert cache_dir(DataConfig()) == Path.home() / ".cache/transformer"


def test_a_name_without_its_comma_is_told():
    """In Python, ("a.en") is no tuple."""
    with pytest.raises(UserError, match=r"^data\.source = 'a\.en': must be of type .*, such as \('a\.en',\)"):
        check(Config(data=DataConfig(source="a.en", target="a.de")))
