"""Files are opened by content, compressed or not, under any name; an error names the tool that converts other kinds."""

import bz2
import gzip
import io
import lzma
import os
import re
import subprocess
import threading
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from transformer.config import DataConfig, UserError
from transformer.data.compression import Damaged, compression_of
from transformer.data.opening import open_stream, open_text, read_all
from transformer.data.sources import corpora
from transformer.data.text import Parallel, count_lines, file_kind, fingerprint, read_lines, read_pairs, records
from transformer.data.tokenizer import Tokenizer

PACKED = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "lzma": lambda content: lzma.compress(content, lzma.FORMAT_ALONE),
    "gzip, two members": lambda content: gzip.compress(content[:3]) + gzip.compress(content[3:]) + b"\0" * 512,
    "xz, two streams": lambda content: lzma.compress(content[:3]) + b"\0" * 8 + lzma.compress(content[3:]),
    "bzip2, two streams": lambda content: bz2.compress(content[:3]) + bz2.compress(content[3:]),
}
PACKINGS = {"plain": bytes, **PACKED}
NAMES = ("a", "a.en", "a.gz", "a.xz", "a.bz2", "a.en.GZ", "a.txt")
LINES = "The first line.\nZwei Häuser.\n\n  \u2028 \u0085 three \r\nlast"


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_text_file_does_not_matter(tmp_path, packing, name):
    (tmp_path / name).write_bytes(PACKINGS[packing](LINES.encode()))
    assert list(read_lines(tmp_path / name)) == LINES.replace("\r\n", "\n").split("\n")
    assert count_lines(tmp_path / name) == 5
    assert read_all(tmp_path / name) == LINES.encode()


ODD = st.sampled_from(
    ["\n", "\r\n", "\r", "\u0085", "\u2028", "\u2029", "\ufeff", "\0", "\x0b", "\x0c", "\x1c", "B", "<"]
)
TEXT = st.lists(st.one_of(ODD, st.text(max_size=8)), max_size=30).map("".join)


@settings(max_examples=150, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(text=TEXT.filter(lambda text: text.count("\0") < 8), name=st.sampled_from(NAMES))
@example(text="\ufeff", name="a")
@example(text="\ufeff\n\ufeff\n\n", name="a.gz")
@example(text="B", name="a")
@example(text="BZh9", name="a")
def test_the_same_text_gives_the_same_lines_however_it_is_packed(tmp_path_factory, text, name):
    content = text.encode(errors="ignore")
    folder = tmp_path_factory.mktemp("packed")
    # The definition of a line in `text`: it ends at "\n" only.
    expected = content.removeprefix("\ufeff".encode()).decode().split("\n")
    expected = [line.removesuffix("\r") for line in (expected if expected[-1] else expected[:-1])]
    if content == "\ufeff".encode():
        expected = [""]  # as `wc -l` counts, plus a last line without "\n"
    for packing, pack in PACKINGS.items():
        path = folder / name
        path.write_bytes(pack(content))
        assert list(read_lines(path)) == expected, packing
        assert count_lines(path) == len(expected), packing
        with path.open("rb") as file:
            assert open_stream(file).read() == content, packing


@pytest.mark.parametrize("packing", PACKED)
def test_a_packed_file_that_breaks_off_names_its_line(tmp_path, packing):
    lines = [f"line {i} {i * 7919 % 10_007}" for i in range(20_000)]
    whole = PACKED[packing]("".join(f"{line}\n" for line in lines).encode())
    whole = whole.rstrip(b"\0") if "two" in packing else whole
    path = tmp_path / "a.en"
    for size in (20, len(whole) // 3, len(whole) - 5):
        path.write_bytes(whole[:size])
        read = []
        with pytest.raises(
            UserError, match=r"a\.en:\d+: damaged or not a (gzip|xz|bzip2) file \(it is truncated\)"
        ) as error:
            for line in read_lines(path):
                read.append(line)
        assert read == lines[: len(read)]
        assert f"a.en:{len(read) + 1}: " in str(error.value)
        for reader in (count_lines, read_all):
            with pytest.raises(UserError, match=f"a\\.en:{len(read) + 1}: damaged or not"):
                reader(path)


@pytest.mark.parametrize("packing", ["gzip", "xz", "bzip2"])
def test_a_damaged_file_is_named(tmp_path, packing):
    whole = bytearray(PACKED[packing](os.urandom(100_000)))
    flipped = bytes(whole[:50_000]) + bytes([whole[50_000] ^ 1]) + bytes(whole[50_001:])
    for content in (
        flipped,
        bytes(whole) + b"junk",
        # Python's readers treat a damaged second stream as the end of the file.
        bytes(whole) + bytes([whole[0] ^ 1]) + bytes(whole[1:]),
        bytes(whole) + bytes(whole[:30]),
    ):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(UserError, match=rf"a:\d+: damaged or not a {packing} file") as error:
            read_all(tmp_path / "a")
        assert str(error.value).isprintable()


@pytest.mark.parametrize("packing", PACKED)
def test_few_bytes_may_hold_many_lines(tmp_path, packing):
    """All lines are read, in blocks."""
    (tmp_path / "a").write_bytes(PACKED[packing](b"x\n" * 5_000_000))
    assert count_lines(tmp_path / "a") == 5_000_000


def test_it_is_damaged_for_ever(tmp_path):
    (tmp_path / "a").write_bytes(gzip.compress(b"a\n" * 1000)[:-10])
    with open_text(tmp_path / "a") as file:
        for _ in range(2):
            with pytest.raises(Damaged, match="is truncated"):
                while file.read(1000):
                    pass


def zipped(name: str = "a.en", text: str = "text") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, text)
    return buffer.getvalue()


def tarred() -> bytes:
    return subprocess.run(["tar", "-c", "/dev/null"], capture_output=True, check=True).stdout


def saved() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(1000))
    return buffer.getvalue()


WMT21 = b"""<?xml version='1.0' encoding='utf-8'?>
<dataset id="newstest2021"><doc origlang="en" id="d"><src lang="en"><p><seg id="1">One.</seg></p></src></doc></dataset>
"""
FOREIGN = {
    "zstd": (b"\x28\xb5\x2f\xfd\x04\x00", r"compressed by zstd, not plain text; decompress it first: zstd -d .+$"),
    "zip": (zipped(), r"a zip archive, not plain text; unpack it first \(unzip .+\), and name a file of it$"),
    "docx": (zipped("[Content_Types].xml"), r"a document of Microsoft Office, not plain text; save it as text"),
    "odt": (zipped("mimetype", "application/vnd.oasis.opendocument.text"), r"a document of an office program"),
    "tar": (tarred(), r"a tar archive, not plain text; unpack it first \(tar -xf "),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4", r"a 7z archive, .*7z x "),
    "utf-16": ("Ein Gruß\n".encode("utf-16"), r"UTF-16, not plain text; convert it first: iconv -f utf-16 -t utf-8 "),
    "utf-32": ("Ein Gruß\n".encode("utf-32"), r"UTF-32, not plain text; convert it first: iconv -f utf-32 -t utf-8 "),
    "utf-16le": ("Ein alter Gruß\n".encode("utf-16le"), r"seems to be UTF-16LE, .* iconv -f utf-16le -t utf-8 "),
    "utf-16be": ("Ein alter Gruss\n".encode("utf-16be"), r"seems to be UTF-16BE, .* iconv -f utf-16be -t utf-8 "),
    "utf-32le": ("Ein alter Gruss\n".encode("utf-32le"), r"seems to be UTF-32LE, .* iconv -f utf-32le -t utf-8 "),
    "utf-32be": ("Ein alter Gruss\n".encode("utf-32be"), r"seems to be UTF-32BE, .* iconv -f utf-32be -t utf-8 "),
    "utf-16le, Cyrillic": ("Я вижу собаку\n".encode("utf-16le"), r"seems to be UTF-16LE"),
    "utf-16be, Greek": ("Βλέπω το σκύλο\n".encode("utf-16be"), r"seems to be UTF-16BE"),
    "sqlite": (b"SQLite format 3\0\x10\0", r"an SQLite database, .*sqlite3 "),
    "parquet": (b"PAR1\x15\x04\x15", r"a Parquet file, .*\.jsonl"),
    "arrow": (b"ARROW1\0\0\xff\xff\xff\xff", r"an Arrow file, .*\.jsonl"),
    "arrow stream": (b"\xff\xff\xff\xff\x28\x01\0\0\x10\0\0\0", r"an Arrow stream, .*\.jsonl"),
    "xlsx": (zipped("docProps/app.xml"), r"a document of Microsoft Office"),
    "pdf": (b"%PDF-1.5\n%\xd0\xd4\xc5\xd8\n", r"a PDF, .*pdftotext "),
    "doc": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(100), r"a document of Microsoft Office"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", r"a pointer of Git LFS, .*git lfs pull"),
    "html": (b"<!DOCTYPE html>\n<html><body>404</body></html>\n", r"a page of HTML, not plain text; did a download"),
    "wmt xml": (WMT21, r"a test set of WMT in XML; .*wmt-unwrap -o NEW < .*sacrebleu"),
    "tmx": (
        b'<?xml version="1.0" ?>\n<!DOCTYPE tmx SYSTEM "tmx14.dtd">\n<tmx version="1.4">\n',
        r"TMX, not plain text",
    ),
    "xml": (b'\xef\xbb\xbf<?xml version="1.0" ?><rows><row/></rows>\n', r"XML \(<rows>\), not plain text"),
    "numpy": (saved(), r":1: byte 0x93 is not valid UTF-8; the file is binary"),
    "png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\x02\0\0\0", r":1: byte 0x89 .*; the file is binary"),
    "noise": (bytes((i * 167 + 200) % 256 for i in range(2048)), r"is not valid UTF-8; the file is binary"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("packing", ["plain", "gzip", "xz", "bzip2"])
def test_what_is_no_text_is_named_with_its_tool(tmp_path, kind, packing):
    content, told = FOREIGN[kind]
    if packing != "plain":
        told = re.sub(r"; (\w+ it)( first)?", rf"; decompress it first: {packing} -dc .+ > PLAIN; then \1", told)
    for name in ("a.en", "a.tsv", "a b.jsonl"):
        (tmp_path / name).write_bytes(PACKINGS[packing](content))
        with pytest.raises(UserError, match=told) as error:
            list(read_pairs(Parallel(str(tmp_path / name), str(tmp_path / "other") if name == "a.en" else None)))
        assert str(error.value).startswith(f"{tmp_path / name}:")
        assert str(error.value).isprintable()
        assert "-f latin1" not in str(error.value)


@pytest.mark.parametrize("kind", [kind for kind in FOREIGN if kind not in ("numpy", "png", "noise")])
def test_what_is_no_text_is_named_where_its_other_side_is_missing(tmp_path, kind):
    path = str(tmp_path / "a b")
    Path(path).write_bytes(FOREIGN[kind][0])
    configs = [DataConfig(source=(path,)), DataConfig(corpus="phrases", dev_source=path)]
    for ask in (lambda: list(read_pairs(Parallel(path))), *(partial(corpora, config) for config in configs)):
        with pytest.raises(UserError, match=FOREIGN[kind][1]):
            ask()


@pytest.mark.parametrize("kind", [*FOREIGN, *PACKED])
def test_a_tokenizer_of_another_kind_is_named_with_its_tool(tmp_path, kind):
    content, told = FOREIGN.get(kind, (b"", ""))
    if kind in PACKED:
        content = PACKED[kind](b"a model")
        tool = compression_of(content)
        told = rf"compressed by {tool}, not plain text; decompress it first: {tool} -dc '.+/a b\.model' > NEW$"
    elif kind in ("numpy", "png", "noise"):
        told = "not plain text; give the .model file that spm_train wrote"
    path = tmp_path / "a b.model"
    path.write_bytes(content)
    with pytest.raises(UserError, match=told.replace("plain text", "a SentencePiece model")):
        Tokenizer.load(path)


@pytest.mark.parametrize("packing", ["gzip", "xz", "bzip2"])
def test_the_command_for_a_packed_file_works(tmp_path, packing):
    path = tmp_path / "a b.tsv"
    path.write_bytes(PACKINGS[packing]("x\ty\n".encode("utf-16")))
    with pytest.raises(UserError) as error:
        list(read_lines(path))
    (tool,), told = {compression_of(path.read_bytes())}, str(error.value)
    assert told.endswith(
        f"decompress it first: {tool} -dc '{path}' > PLAIN; then convert it: iconv -f utf-16 -t utf-8 PLAIN > NEW"
    )
    path.write_bytes(PACKINGS[packing](b"a\rb\rc"))
    with pytest.raises(UserError) as error:
        list(records(path))
    command = str(error.value).rpartition("convert it with: ")[2].removesuffix(" > NEW")
    assert subprocess.run(command, shell=True, stdout=subprocess.PIPE).stdout == b"a\nb\nc"


def test_packed_twice_is_told(tmp_path):
    (tmp_path / "a.en").write_bytes(gzip.compress(bz2.compress(b"text\n")))
    with pytest.raises(UserError, match=r"a\.en: compressed twice; decompress it once, e\.g\. with gzip -d"):
        list(read_lines(tmp_path / "a.en"))


ENCODED = {
    "latin1": ("Ein Gruß aus Köln\n", r"byte 0xdf .*; convert the file first, e\.g\. with iconv -f latin1 "),
    "cp1252": ("Er sagt „Gruß“ – und geht wieder weg\n", r"byte 0x84 .*; convert .*e\.g\. with iconv -f cp1252 "),
    "cp1251": ("Привет, мир\n", r"; convert the file first, with iconv -f ENCODING .*; uchardet"),
    "shift-jis": ("これは日本語の文です\n", r"; convert the file first, with iconv -f ENCODING .*; uchardet"),
    "gb18030": ("他有在花园里六零四八个汽车。\n", r"; convert the file first, with iconv -f ENCODING .*; uchardet"),
    "euc-kr": ("나는 사과를 봅니다\n", r"; convert the file first, with iconv -f ENCODING .*; uchardet"),
}


@pytest.mark.parametrize("encoding", ENCODED)
def test_a_hint_at_latin1_is_given_for_what_may_be_latin1(tmp_path, encoding):
    text, told = ENCODED[encoding]
    (tmp_path / "a.en").write_bytes(b"plain\n" + text.encode(encoding))
    with pytest.raises(UserError, match=r"a\.en:2: " + told if told.startswith("byte") else told) as error:
        list(read_lines(tmp_path / "a.en"))
    assert ("-f latin1" in str(error.value)) == (encoding == "latin1")


@pytest.mark.parametrize(
    "content", ["Größe\nGr\udcf6ße\n", "Die schöne Größe der Bäume \udcff\n", "\ufeff日本語\n日\udce6\udc97 語\n"]
)
def test_text_in_utf8_with_a_broken_byte_is_not_to_be_converted(tmp_path, content):
    """Converting would encode the valid characters twice."""
    (tmp_path / "a.en").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"; other letters are UTF-8, so correct this line.*iconv -c -f utf-8") as error:
        list(read_lines(tmp_path / "a.en"))
    assert "-f latin1" not in str(error.value)


def test_zeros_and_control_characters_are_text(tmp_path):
    text = "a\0b\x01\x02\n\0\n\x7f\n" + "\0 word" * 20 + "\n"
    (tmp_path / "a").write_text(text)
    assert list(read_lines(tmp_path / "a")) == text.split("\n")[:-1]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.tsv", "tsv"),
        ("a.tsv.gz", "tsv"),
        ("a.TSV.xz", "tsv"),
        ("a.jsonl.bz2", "jsonl"),
        ("a.json", "jsonl"),
        ("a.ndjson.xz", "jsonl"),
        ("a.tsv.zst", "text"),
        ("tsv", "text"),
        ("a.tsv/b.en", "text"),
    ],
)
def test_the_form_is_that_of_the_name_without_the_packing(name, kind):
    assert file_kind(name) == kind


@pytest.mark.parametrize("packing", PACKINGS)
def test_pairs_of_packed_rows(tmp_path, packing):
    for ending in (".tsv", ".tsv.gz", ".tsv.xz", ".tsv.bz2"):
        (tmp_path / f"a{ending}").write_bytes(PACKINGS[packing](b"one\teins\ntwo\tzwei\n"))
        assert list(read_pairs(Parallel(str(tmp_path / f"a{ending}")))) == [("one", "eins"), ("two", "zwei")]
    (tmp_path / "a.jsonl.xz").write_bytes(PACKINGS[packing](b'{"source": "one", "target": "eins"}\n'))
    assert list(read_pairs(Parallel(str(tmp_path / "a.jsonl.xz")))) == [("one", "eins")]


def test_fingerprints_of_before_hold(tmp_path):
    """Plain and .gz files keep the fingerprints that are the keys of earlier versions' caches."""
    (tmp_path / "a.en").write_bytes(b"one\n")
    (tmp_path / "a.de").write_bytes(b"eins\n")
    (tmp_path / "a.en.gz").write_bytes(packed := gzip.compress(b"one\n", mtime=0))
    (tmp_path / "a.tsv").write_bytes(b"one\teins\n")
    (tmp_path / "same").write_bytes(packed)
    plain = Parallel(str(tmp_path / "a.en"), str(tmp_path / "a.de"))
    zipped = plain._replace(source=str(tmp_path / "a.en.gz"))
    assert fingerprint(plain) == "28c82a12f6b00d914c8046f3f9afe387835b62198453722cf76bb68e6ff359db"
    assert fingerprint(zipped) == "480c54059d94849e58dc0a9695d8ee418656cc358a2b62d0d90ff154550ed15c"
    assert (
        fingerprint(Parallel(str(tmp_path / "a.tsv")))
        == "496e729424ef05242d6cf3a2ec52f91a8893b373c50c087b87af2b9d19bbd050"
    )
    assert fingerprint(plain._replace(source=str(tmp_path / "same"))) == fingerprint(zipped)


def test_a_pipe_is_read_in_one_pass(tmp_path):
    """Both sides, even if the program writes them one after the other, each longer than the buffer of a pipe."""
    lines = "".join(f"line {i}\n" for i in range(50_000))
    for side in ("en", "de"):
        os.mkfifo(tmp_path / side)

    def write():
        for side, pack in (("en", bytes), ("de", gzip.compress)):
            (tmp_path / side).write_bytes(pack(lines.encode()))

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    pairs = list(read_pairs(Parallel(str(tmp_path / "en"), str(tmp_path / "de"))))
    assert pairs == [(line, line) for line in lines.split("\n")[:-1]]
    writer.join(10)
    assert not writer.is_alive()


def test_a_stream_gives_its_first_line_before_its_second_is_there():
    reading, writing = os.pipe()
    with open(reading, "rb") as stream, open(writing, "wb", buffering=0) as target:
        for first in (b"B\n", b"\n", b"]\n"):  # no compressed file begins so, though some have this first byte
            target.write(first)
            opened = open_stream(stream)
            assert opened.raw.read(100) == first
        target.write(b"<")
        threading.Timer(0.2, lambda: target.write(b"srcset><doc><seg>one</seg></doc></srcset>")).start()
        threading.Timer(0.4, target.close).start()
        assert open_stream(stream).read() == b"one\n"


def test_a_stream_that_is_packed_waits_until_that_is_clear():
    reading, writing = os.pipe()
    with open(reading, "rb") as stream, open(writing, "wb", buffering=0) as target:
        packed = gzip.compress(b"one\n")
        target.write(packed[:2])
        threading.Timer(0.2, lambda: target.write(packed[2:])).start()
        assert open_stream(stream).raw.read(100) == b"one\n"
        assert not stream.closed


def test_one_line_of_many_megabytes_is_read_in_linear_time(tmp_path):
    (tmp_path / "a").write_bytes(b"word " * 6_400_000)
    (line,) = read_lines(tmp_path / "a")
    assert len(line) == 32_000_000
    assert count_lines(tmp_path / "a") == 1
