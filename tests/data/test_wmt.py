"""WMT14 through TFDS's real builder, without TensorFlow, from small archives of the real layout served on loopback."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import wmt_archives
from wmt_archives import COMMONCRAWL, DEV, EUROPARL, GIGA_FREN, NEWS_COMMENTARY, UN, files, pack, serve

from transformer.config import UserError
from transformer.data import wmt

ROOT = Path(__file__).parents[2]

# Writes the given pairs, one JSON line each, and checks that TensorFlow was never imported.
SCRIPT = """
import json, logging, sys
from pathlib import Path

import transformer.data.wmt
from transformer.config import UserError

folder, tfds_dir, large, *pairs = sys.argv[1:]
handler = logging.StreamHandler()
handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
logger = logging.getLogger("transformer" if large else None)  # a program may configure either logger
logger.addHandler(handler)
logger.setLevel("INFO")
if large:  # treat any text as larger than the 1 GB that TFDS sorts in memory
    from tensorflow_datasets.core import shuffle
    shuffle.MAX_MEM_BUFFER_SIZE = 0
try:
    for pair in pairs:
        print(json.dumps(transformer.data.wmt.write(Path(folder), tuple(pair.split("-")), tfds_dir)))
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
assert "tensorflow" not in sys.modules
"""


class Run:
    """`wmt.write` in a new process, with a folder and a TFDS folder in `tmp_path`."""

    def __init__(self, tmp_path: Path):
        self.folder, self.tfds = tmp_path / "text", tmp_path / "tfds"
        self.script = tmp_path / "script.py"
        self.script.write_text(SCRIPT)
        self.log = ""

    def __call__(self, server, *pairs: str, fails: bool = False, large: bool = False) -> list[list]:
        done = subprocess.run(
            server.command(self.script, str(self.folder), str(self.tfds), "large" if large else "", *pairs),
            env=server.environment(PYTHONPATH=str(ROOT)),
            capture_output=True,
            encoding="utf-8",
        )
        assert done.returncode == (2 if fails else 0), done.stderr
        self.log = done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]  # standard output has nothing else

    def error(self, server, *pairs: str) -> str:
        """The message of the `UserError`: the only line that is not from our log."""
        self(server, *pairs, fails=True)
        (line,) = [line for line in self.log.splitlines() if not line.startswith("transformer: ")]
        return line


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def lines(path: str | Path) -> list[str]:
    text = Path(path).read_bytes().decode()
    assert text.endswith("\n")
    return text[:-1].split("\n")


def training_pairs(archives: dict[str, dict[str, str]], foreign: str) -> Counter:
    """All training pairs of `foreign`-en whose sides are both not empty."""
    pairs = Counter()
    for url in (EUROPARL, COMMONCRAWL, NEWS_COMMENTARY, UN, GIGA_FREN):
        sides = {name.removesuffix(".gz"): text.split("\n")[:-1] for name, text in archives[url].items()}
        for name, side in sides.items():
            if name.endswith(f".{foreign}"):
                english = sides[name.removesuffix(foreign) + "en"]
                pairs.update(pair for pair in zip(side, english, strict=True) if all(pair))
    return pairs


def test_german_whole(run):
    archives = files()
    corpus = archives[EUROPARL]
    for language, extra in (("de", "Ein\u2028Satz\u0085 \r hier.\nohne Gegenstück\n"), ("en", "A\u2028 \x0c b.\n\n")):
        corpus[f"training/europarl-v7.de-en.{language}"] += extra
    for language in ("de", "en"):
        archives[DEV][f"dev/newstest2013.{language}"] += f"AT&T\u2028&amp; {language} \r &lt;3\n\n"
    held_out = {}
    for kind, language in (("src", "de"), ("ref", "en")):
        name = f"dev/newstest2014-deen-{kind}.{language}.sgm"
        segments = [wmt_archives.sentence(i)[language] for i in range(950_000, 950_023)]
        segments[3], segments[4] = 'He said "A & B" <i>', "twice"
        segments[5] = "twice"
        segments[7] = "" if language == "en" else "nur hier"  # TFDS drops this pair
        segments[9] = "on two\nlines"  # and this one
        text = wmt_archives.sgml(segments, language)
        archives[DEV][name] = text.replace("twice", "caf&#233;&#10;&quot;twice&quot; &nosuch; AT&T", 1)
        segments[4], segments[9] = 'café "twice" &nosuch; AT&T', "on two lines"
        held_out[language] = segments

    with serve(pack(archives)) as server:
        ((train, dev, test, dev_name, test_name),) = run(server, "en-de")
        assert server.requests == [EUROPARL, COMMONCRAWL, NEWS_COMMENTARY, DEV]

        assert (dev_name, test_name) == ("newstest2013", "newstest2014 (full)")
        folder = run.folder / "de-en"
        assert train == [[str(folder / "train.en"), str(folder / "train.de"), 1.0]]
        assert dev == [str(folder / "newstest2013.en"), str(folder / "newstest2013.de"), 1.0]
        assert test == [str(folder / "newstest2014.en"), str(folder / "newstest2014.de"), 1.0]
        names = [f"{stem}.{language}" for stem in ("train", dev_name, "newstest2014") for language in ("de", "en")]
        assert sorted(path.name for path in folder.iterdir()) == sorted(
            [*names, "lines.json", "entry", "manifest.json"]
        )

        # All training pairs except the one without an English side, shuffled together.
        pairs = list(zip(lines(folder / "train.de"), lines(folder / "train.en"), strict=True))
        assert (
            Counter(pairs) == training_pairs(archives, "de")
            and ("Ein\u2028Satz\u0085 \r hier.", "A\u2028 \x0c b.") in pairs
        )
        assert pairs[:5] != list(training_pairs(archives, "de"))[:5]

        # Complete development and test sets, in corpus order, decoded.
        for language in ("de", "en"):
            expected = [wmt_archives.sentence(i)[language] for i in range(900_000, 900_020)]
            assert lines(folder / f"newstest2013.{language}") == [*expected, f"AT&T\u2028& {language} \r <3", ""]
            assert lines(folder / f"newstest2014.{language}") == held_out[language]

        # The log has their counts and sha256, nothing from TFDS, and a warning because these are not the real sets.
        for path, count in ((folder / "newstest2014.en", 23), (folder / "newstest2013.de", 22)):
            assert f"{path}: {count} lines, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}\n" in run.log
        assert all(line.startswith("transformer: ") for line in run.log.splitlines())
        assert "newstest2014 has 23 segments instead of 3003" in run.log

        # Run again: first with the files in place, then from TFDS's data to another folder. Neither uses the network.
        written = {name: (folder / name).read_bytes() for name in names}
        times = {name: (folder / name).stat().st_mtime_ns for name in names}
        server.requests.clear()
        ((again, *_),) = run(server, "de-en")
        assert again == [[str(folder / "train.de"), str(folder / "train.en"), 1.0]]
        assert {name: (folder / name).stat().st_mtime_ns for name in names} == times
        (folder / "train.de").write_bytes(b"cut short\n")
        run(server, "de-en")
        assert {name: (folder / name).read_bytes() for name in names} == written
        assert server.requests == []

        # If the archives are deleted, only the one with the order of the held-out sets is downloaded again.
        shutil.rmtree(run.tfds / "downloads")
        (folder / "manifest.json").unlink()
        run(server, "de-en")
        assert {name: (folder / name).read_bytes() for name in names} == written
        assert server.requests == [DEV]


def test_french_sorted_in_memory_and_in_files(run, tmp_path):
    archives = files(pairs=40, dev=5, test=5)
    with serve(pack(archives)) as server:
        run(server, "fr-en")
        assert server.requests == [EUROPARL, COMMONCRAWL, UN, NEWS_COMMENTARY, GIGA_FREN, DEV]
        sides = {name: lines(run.folder / "fr-en" / f"train.{name}") for name in ("fr", "en")}
        assert Counter(zip(sides["fr"], sides["en"], strict=True)) == training_pairs(archives, "fr")
        assert sum(training_pairs(archives, "fr").values()) == 200
        assert lines(run.folder / "fr-en" / "newstest2014.fr") == [
            wmt_archives.sentence(i)["fr"] for i in range(950_000, 950_005)
        ]

        # The path that TFDS takes beyond 1 GB, from archives put there by hand.
        manual = tmp_path / "large" / "downloads" / "manual"
        manual.mkdir(parents=True)
        for url, data in server.archives.items():
            (manual / url.rsplit("/", 1)[1]).write_bytes(data)
        server.requests.clear()
        run.folder, run.tfds = tmp_path / "from large", tmp_path / "large"
        run(server, "fr-en", large=True)
        assert server.requests == []
        assert all(line.startswith("transformer: ") for line in run.log.splitlines())
        assert {name: lines(run.folder / "fr-en" / f"train.{name}") for name in ("fr", "en")} == sides


def test_failed_download_names_the_place(run):
    with serve(pack(files(pairs=10, dev=3, test=3))) as server:
        data = server.archives.pop(COMMONCRAWL)
        message = run.error(server, "de-en")
        place = run.tfds / "downloads" / "manual" / "training-parallel-commoncrawl.tgz"
        assert message.startswith(f"cannot download {COMMONCRAWL} (") and "404" in message
        assert str(place) in message and "http://www.statmt.org/wmt14/translation-task.html" in message
        assert not list(run.tfds.rglob("*.tmp.*")) and not list(run.folder.rglob("train*"))

        place.parent.mkdir()
        place.write_bytes(data)
        server.requests.clear()
        run(server, "de-en")
        assert server.requests == [NEWS_COMMENTARY, DEV]  # Europarl was there already
        assert len(lines(run.folder / "de-en" / "train.de")) == 30


def test_damaged_archive(run):
    with serve(pack(files(pairs=10, dev=3, test=3))) as server:
        good = server.archives[EUROPARL]
        server.archives[EUROPARL] = good[:-20] + b"damaged" + good[-13:]
        message = run.error(server, "de-en")
        assert EUROPARL in message and "wrong checksum" in message and hashlib.sha256(good).hexdigest() in message
        assert not list(run.tfds.rglob("*.tmp.*"))

        place = run.tfds / "downloads" / "manual" / "training-parallel-europarl-v7.tgz"
        place.parent.mkdir()
        place.write_bytes(good[:100])
        server.archives[EUROPARL] = good
        message = run.error(server, "de-en")
        assert message.startswith(f"{place}: ") and "wrong checksum" in message and f"copy of {EUROPARL}" in message


def test_prepared_data_of_another_kind(run):
    with serve(pack(files(pairs=10, dev=3, test=3))) as server:
        run(server, "de-en")
    prepared = run.tfds / "wmt14_translate" / "de-en" / "1.0.0"

    other = files(pairs=10, dev=3, test=3)
    other[DEV]["dev/newstest2013.de"] = "anders\n" * 3
    run.folder = run.folder.with_name("elsewhere")
    with serve(pack(other)) as server:
        message = run.error(server, "de-en")
        assert server.requests == [DEV]
        assert message.startswith(f"{prepared}: its newstest2013 is not that of ") and "run again" in message

        info = prepared / "dataset_info.json"
        info.write_text(info.read_text().replace("array_record", "tfrecord"))
        message = run.error(server, "de-en")
        assert message.startswith("data.tfds_dir: wmt14_translate/de-en: ") and "TFRECORD" in message

        run.tfds = run.script
        message = run.error(server, "de-en")
        assert message.startswith("data.tfds_dir: ") and str(run.script) in message


@pytest.mark.skipif(not os.environ.get("TRANSFORMER_DATA"), reason="TRANSFORMER_DATA is not set")
def test_the_real_test_sets_come_out_whole(run):
    """newstest2013 and all 3,003 lines of newstest2014 survive packing into the archive and reading it."""
    folder = Path(os.environ["TRANSFORMER_DATA"]) / "newstest"
    archives, expected = files(pairs=5), {}
    for foreign in ("de", "fr"):
        for language in (foreign, "en"):
            text = (folder / f"newstest2013.en-{foreign}.{language}").read_bytes().decode()
            archives[DEV][f"dev/newstest2013.{language}"] = text
            expected[f"{foreign}-en/newstest2013.{language}"] = text.encode()
        for kind, language in (("src", foreign), ("ref", "en")):
            text = (folder / f"newstest2014.en-{foreign}.{language}").read_bytes().decode()
            archives[DEV][f"dev/newstest2014-{foreign}en-{kind}.{language}.sgm"] = wmt_archives.sgml(
                text.removesuffix("\n").split("\n"), language
            )
            expected[f"{foreign}-en/newstest2014.{language}"] = text.encode()
    with serve(pack(archives)) as server:
        run(server, "en-de", "fr-en")
    for name, data in expected.items():
        assert (run.folder / name).read_bytes() == data, name
        assert data.count(b"\n") == (3003 if "2014" in name else 3000)
    assert "segments instead of" not in run.log


@pytest.mark.parametrize("languages", [("en", "cs"), ("de", "fr"), ("en", "en"), ("de",)])
def test_other_languages(tmp_path, languages):
    with pytest.raises(UserError, match=r"data\.languages = .*choose one of these"):
        wmt.write(tmp_path, languages)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "link"), [("../evil", None), ("a/../../evil", None), ("link", "/etc/passwd"), ("link", "../../evil")]
)
def test_archives_cannot_write_or_point_outside(tmp_path, name, link):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        member = tarfile.TarInfo(name)
        if link:
            member.type, member.linkname = tarfile.SYMTYPE, link
        else:
            member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    inner = tmp_path / "downloads" / "extracted"
    inner.mkdir(parents=True)
    archive = tmp_path / "evil.tgz"
    archive.write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match=r"evil\.tgz: cannot be unpacked"):
        wmt._unpack(archive, inner / "TAR_GZ.evil.tgz")
    assert [path for path in tmp_path.rglob("*") if path.is_file() or path.is_symlink()] == [archive]


def test_what_is_unpacked_is_digested(tmp_path):
    archive, inner = tmp_path / "a.tgz", tmp_path / "extracted" / "TAR_GZ.a.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("dev/a.de")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"text"))
    wmt._unpack(archive, inner)
    for harm in (lambda: (inner / "dev/a.de").write_text("tex"), (inner / "manifest.json").unlink):
        harm()
        wmt._unpack(archive, inner)
        assert (inner / "dev/a.de").read_text() == "text"
    assert [path.name for path in inner.parent.iterdir()] == ["TAR_GZ.a.tgz"]
