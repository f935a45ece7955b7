"""The text of a language model is read whole and in order, cut alike every time, and bad files are told in one line."""

from __future__ import annotations

import gzip
import io
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from transformer.config import TextConfig, UserError
from transformer.data import running
from transformer.data.running import Text, parts, split, texts

HYPOTHESIS = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Carriage returns are left out: those of Windows line ends are removed.
TEXT = st.text(st.sampled_from("ab \n\t\x7fé日\u2028"), min_size=1, max_size=60)


def written(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def documents(text: Text) -> list[str]:
    """The documents of a text; a running text is one."""
    found: list[str] = []
    for part in parts(text):
        found += [part.text] if part.begins else []
        if not part.begins:
            found[-1] += part.text
    return found


def lines_hold(text: Text) -> bool:
    """Whether each part stands in its file where it says."""
    for part in parts(text):
        content = Path(text.paths[part.file]).read_text(encoding="utf-8").split("\n")
        first = part.text.split("\n")[0]
        if first not in content[part.line - 1]:
            return False
    return True


@given(contents=st.lists(TEXT, min_size=1, max_size=3), sizes=st.tuples(st.integers(1, 9), st.integers(10, 30)))
@HYPOTHESIS
def test_running_text_is_kept_exactly(tmp_path, monkeypatch, contents: list[str], sizes: tuple[int, int]) -> None:
    paths = tuple(written(tmp_path / f"{i}.txt", content) for i, content in enumerate(contents))
    text, whole = Text(paths), "".join(contents)
    with monkeypatch.context() as patch:
        patch.setattr(running, "_PART", sizes[0])
        patch.setattr(running, "_LONGEST", sizes[1])
        cut = list(parts(text))
        assert "".join(part.text for part in cut) == whole
        assert [part.begins for part in cut] == [True] + [False] * (len(cut) - 1)
        assert max(len(part.text) for part in cut) <= sizes[1]
        assert lines_hold(text)
        patch.setattr(running, "_BLOCK", 3)  # how much is read at a time changes nothing
        assert list(parts(text)) == cut
        for begin, end in ((0, 3), (2, None), (len(whole) // 2, len(whole))):
            assert "".join(part.text for part in parts(Text(paths, begin=begin, end=end))) == whole[begin:end]
            assert lines_hold(Text(paths, begin=begin, end=end))
        assert documents(Text(paths, "files")) == contents


@given(content=st.text(st.sampled_from("a\n\r\ufeff"), min_size=1, max_size=30))
@HYPOTHESIS
def test_any_text_can_be_written_to_a_file(tmp_path, content: str) -> None:
    paths = (written(tmp_path / "a.txt", running.file_of(content)),)
    assert "".join(part.text for part in parts(Text(paths))) == content


@given(content=TEXT, part=st.integers(1, 20), most=st.one_of(st.none(), st.integers(2, 4)))
@example(content="a\nb\nc\nd\ne\n\n\nf\ng\nh\n", part=20, most=2)
@example(content="a\nb\nc\nd\ne\n\n\nf\ng\nh\n", part=2, most=3)
@HYPOTHESIS
def test_blank_lines_separate_documents(tmp_path, monkeypatch, content: str, part: int, most: int | None) -> None:
    """With `most_lines`, so do that many lines."""
    expected = [[]]
    for line in content.split("\n"):
        if line.strip():
            expected[-1].append(line)
        elif expected[-1]:
            expected.append([])
    runs = [lines[i : i + (most or 10**9)] for lines in expected for i in range(0, len(lines), most or 10**9)]
    expected = ["\n".join(run) for run in runs]
    text = Text((written(tmp_path / "a.txt", content),), "blank_lines", most_lines=most)
    with monkeypatch.context() as patch:
        patch.setattr(running, "_PART", part)
        if not expected:
            with pytest.raises(UserError, match=r"a\.txt: holds no text; leave it out"):
                documents(text)
            return
        assert documents(text) == expected
        assert lines_hold(text)
        for begin in range(len(expected)):
            assert documents(text._replace(begin=begin)) == expected[begin:]
            assert documents(text._replace(end=begin + 1)) == expected[: begin + 1]


def test_a_long_document_comes_in_parts(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(running, "_PART", 4)
    text = Text((written(tmp_path / "a.txt", "one\ntwo\n three\nfour\n\n\nfive\n"),), "blank_lines")
    assert [(p.text, p.line, p.begins) for p in parts(text)] == [
        ("one\ntwo\n three", 1, True),  # not before a line that begins with a space
        ("\nfour", 3, False),
        ("five", 7, True),
    ]
    text = Text((written(tmp_path / "b.txt", "abcdefgh\nx\n y\n\nz\nend"),))
    assert [(p.text, p.line) for p in parts(text)] == [("abcdefgh", 1), ("\nx\n y\n", 1), ("\nz\nend", 4)]


def test_windows_line_ends_byte_order_marks_and_compression(tmp_path, monkeypatch) -> None:
    content = "\ufeffone\r\ntwo\r\n\rthr\0ee\r".encode()
    for path in (written(tmp_path / "a.txt", content), written(tmp_path / "a.gz", gzip.compress(content))):
        for block in (1, 2, 1 << 20):
            monkeypatch.setattr(running, "_BLOCK", block)
            assert documents(Text((path,))) == ["one\ntwo\n\rthr\0ee\r"]


def test_the_last_share_is_split_off(tmp_path) -> None:
    path = written(tmp_path / "a.txt", "a\n\nb\n\nc\n\nd\n\ne\n")
    assert split(Text((path,)), 0.1) == (Text((path,), end=12), Text((path,), begin=12))
    train, dev = split(Text((path,), "blank_lines"), 0.3)
    assert (documents(train), documents(dev)) == (["a", "b", "c"], ["d", "e"])
    train, dev = split(Text((path,), "blank_lines"), 0.001)
    assert documents(dev) == ["e"]
    for one, kind, unit in (("a", "none", "character"), ("a\nb\n", "blank_lines", "document")):
        with pytest.raises(UserError, match=rf"^data\.dev_share = 0.1: b\.txt has a single {unit}, so .*dev_text"):
            split(Text((written(tmp_path / "b.txt", one),), kind), 0.1)


def test_the_texts_of_a_config(tmp_path, caplog) -> None:
    a, b = (written(tmp_path / name, "0123456789") for name in ("a.txt", "b.txt"))
    assert texts(TextConfig(text=(a,))) == (Text((a,), end=9), Text((a,), begin=9), None)
    assert texts(TextConfig(text=(a,), dev_share=0)) == (Text((a,)), None, None)
    given = TextConfig(text=(a,), dev_text=(b,), test_text=(b,), documents="files")
    assert texts(given) == (Text((a,), "files"), Text((b,), "files"), Text((b,), "files"))
    assert [r.getMessage() for r in caplog.records] == [
        f"data.test_text: {b} is already given in data.dev_text; leave it out of one"
    ]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, r"^data\.text: name at least one file of training text$"),
        ({"text": ("no.txt",), "dev_text": ("nor.txt",)}, r"no\.txt \(data\.text\), nor\.txt \(data\.dev_text\)"),
        ({"text": (".",)}, r"^data\.text: \. is a folder; name a file in it$"),
        ({"text": (__file__,), "tokenizer": "no.model"}, r"^no such file: no\.model \(data\.tokenizer\)"),
    ],
)
def test_files_that_can_not_be_read_are_told_at_once(config, told: str) -> None:
    with pytest.raises(UserError, match=told):
        texts(TextConfig(**config))


def torch_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"weights")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty; leave it out, or give another file"),
        (b"\xef\xbb\xbf", "holds no text"),
        ("gr\xfcn\n".encode("latin1") * 3, r"1: byte 0xfc is not valid UTF-8; convert the file first.*latin1"),
        (b"ok\n" * 700_000 + b"\xff\n", "700001: byte 0xff is not valid UTF-8"),
        (b"ok\xc3", "1: byte 0xc3 is not valid UTF-8"),
        (np.arange(5000, dtype="<u2").tobytes(), "(seems to be UTF-16LE|binary|is not valid UTF-8)"),
        (np.random.default_rng(0).integers(0, 65, 5000).astype("<u2").tobytes(), "binary, not plain text"),
        (np.random.default_rng(0).integers(0, 50_257, 5000).astype("<u2").tobytes(), "binary, not plain text"),
        (torch_zip(), "a zip archive, not plain text"),
        (pickle.dumps({"itos": dict(enumerate("abc"))}), "binary, not plain text"),
        (gzip.compress(b"text" * 500, mtime=0)[:30], "1: damaged or not a gzip file"),
        ("text".encode("utf-16"), "UTF-16, not plain text; convert it first"),
    ],
)
@pytest.mark.parametrize("kind", ["none", "blank_lines"])
def test_bad_files_are_told_in_one_line(tmp_path, content: bytes, told: str, kind: str) -> None:
    path = written(tmp_path / "a.bin", content)
    with pytest.raises(UserError, match=re.escape(path) + ":( )?" + told) as error:
        list(parts(Text((path,), kind)))
    assert "\n" not in str(error.value)
