import bz2
import gzip
import io
import lzma
import os
import resource
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import transformer
from transformer.config import UserError
from transformer.inference.shares import parse, translate_share
from transformer.inference.stream import check_jsonl


def numbered(source, target, first_line):
    """Write each line in capitals, with its number."""
    for number, line in enumerate(source.read().splitlines(), first_line):
        target.write(b"%d %s\n" % (number, line.upper()))
    return 0


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_last_of_the_shares_puts_them_together(tmp_path: Path, order):
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"a\n\nc\nd\ne\nf\ng")  # no line break at the end
    whole = io.BytesIO()
    numbered(io.BytesIO(source.read_bytes()), whole, 1)
    for i in order:
        assert not target.exists()
        translate_share(numbered, source, target, i, 3)
    assert target.read_bytes() == whole.getvalue()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    with pytest.raises(UserError, match="exists; name another file"):
        translate_share(numbered, source, target, 0, 3)


def test_lines_that_cannot_be_translated_are_told_before_any_is(tmp_path: Path):
    """In each share, wherever the line is: no hours of work are lost at the end."""
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b'\xef\xbb\xbf{"source": "a"}\r\n' + b'{"source": "a"}\n' * 3 + b"\n")

    def fails(lines, out, first_line):
        raise AssertionError("nothing is translated")

    for share in range(2):
        with pytest.raises(UserError, match=rf"^--input {source}: line 5: not JSON .*; this one is blank: remove it$"):
            translate_share(fails, source, target, share, 2, check=check_jsonl)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    source.write_bytes(source.read_bytes()[:-1])
    translate_share(numbered, source, target, 0, 1, check=check_jsonl)
    assert target.read_bytes().count(b"\n") == 4


def test_more_shares_than_lines_and_none_at_all(tmp_path: Path):
    for content, expected in ((b"a\nb\n", b"1 A\n2 B\n"), (b"", b"")):
        source, target = tmp_path / "in", tmp_path / f"out{len(content)}"
        source.write_bytes(content)
        for i in range(5):
            translate_share(numbered, source, target, i, 5)
        assert target.read_bytes() == expected


def test_a_share_that_broke_is_done_again_and_the_others_are_not(tmp_path: Path):
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"a\nb\n")
    translate_share(numbered, source, target, 0, 2)

    def breaks(lines, out, first_line):
        out.write(b"half a li")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        translate_share(breaks, source, target, 1, 2)
    assert not target.exists() and not list(tmp_path.glob("*.unfinished"))
    # A killed process can't clear up; the process that joins the parts does.
    (part,) = tmp_path.glob("out.*.0-of-2")
    part.with_name(part.name.replace("0-of-2", "1-of-2.x.unfinished")).write_bytes(b"half a li")
    translate_share(lambda *_: pytest.fail("done already"), source, target, 0, 2)
    # With another model or other options, the parts have other names.
    translate_share(numbered, source, target, 1, 2, "beam 8")
    assert not target.exists()
    translate_share(numbered, source, target, 1, 2)
    assert target.read_bytes() == b"1 A\n2 B\n"
    (other,) = (path.name for path in tmp_path.iterdir() if path not in (source, target))
    assert other.endswith(".1-of-2") and not part.name.startswith(other[:16])


@pytest.fixture
def one_number(monkeypatch):
    """All processes have the same number, as may happen on several hosts or containers."""
    monkeypatch.setattr("os.getpid", lambda: 7)


def test_two_at_the_same_share_do_not_write_into_one_file(tmp_path: Path, one_number):
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"a\nb\n")

    def slow(lines, out, first_line):
        out.write(b"1 ")
        out.flush()
        translate_share(numbered, source, target, 0, 2)  # another process does all its work here
        out.write(b"A\n")

    translate_share(slow, source, target, 0, 2)
    (part,) = (path for path in tmp_path.iterdir() if path != source)
    assert part.read_bytes()[:-64] == b"1 A\n"

    def slower(lines, out, first_line):
        out.write(b"2 B\n")
        translate_share(numbered, source, target, 1, 2)  # this process joins the parts, too

    translate_share(slower, source, target, 1, 2)
    assert target.read_bytes() == b"1 A\n2 B\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_two_that_put_the_output_together_do_not_write_into_one_file(tmp_path: Path, one_number, monkeypatch):
    """The first has written the output. Before it renames it, the second begins, and then finds the parts removed."""
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"a\nb\n")
    translate_share(numbered, source, target, 0, 2)
    link, read, begun, complete = os.link, Path.read_bytes, threading.Event(), threading.Event()
    other = threading.Thread(target=translate_share, args=(numbered, source, target, 1, 2))

    def before_it_has_its_name(path, name):
        if path.name.endswith(".together") and not other.ident:
            other.start()
            assert begun.wait(10)
        return link(path, name)

    def when_it_would_read(path):
        if threading.current_thread() is other and path != source:
            begun.set()
            assert complete.wait(10)
        return read(path)

    monkeypatch.setattr(os, "link", before_it_has_its_name)
    monkeypatch.setattr(Path, "read_bytes", when_it_would_read)
    translate_share(numbered, source, target, 1, 2)
    complete.set()
    other.join(10)
    assert target.read_bytes() == b"1 A\n2 B\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_what_cannot_be_read_or_written_is_told_in_one_line(tmp_path: Path):
    source, target = tmp_path / "in", tmp_path / "out"
    with pytest.raises(UserError, match=r"^--input \S+/in: No such file or directory$"):
        translate_share(numbered, source, target, 0, 1)
    source.write_bytes(b"a\n")
    for content, told in (
        (b"\x28\xb5\x2f\xfd", "compressed by zstd, not plain text"),
        (b"\xff\xfea\0", "UTF-16, not plain text"),
    ):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(UserError, match=rf"^--input \S+/other: {told}"):
            translate_share(numbered, tmp_path / "other", target, 0, 1)
    with pytest.raises(UserError, match=r"^--input \S+: is a folder; name a file in it$"):
        translate_share(numbered, tmp_path, target, 0, 1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"^--output \S+/pipe: a pipe or a device; leave out --input and --output"):
        translate_share(numbered, source, tmp_path / "pipe", 0, 1)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    with pytest.raises(UserError, match=r"^--output \S+/none/out: there is no folder \S+/none$"):
        translate_share(numbered, source, tmp_path / "none/out", 0, 1)
    (tmp_path / "link").symlink_to(tmp_path / "none")
    with pytest.raises(UserError, match=r"^--output \S+/link exists; name another file, or remove it$"):
        translate_share(lambda *_: pytest.fail("too late"), source, tmp_path / "link", 0, 1)
    with pytest.raises(UserError, match=r"^--output \S+: File name too long$"):
        translate_share(numbered, source, tmp_path / ("x" * 200), 0, 1)


PACKINGS = {"plain": bytes, "gzip": gzip.compress, "xz": lzma.compress, "bzip2": bz2.compress}


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_input_is_opened_by_its_content(tmp_path: Path, packing):
    """The shares of a compressed file are those of the same lines in a plain file."""
    for name in ("in", "in.gz", "in.sgm"):
        content = b"a\nb\nc\n"
        if name == "in.sgm":
            content = b"<srcset><doc><seg id=1>a</seg><seg id=2>b</seg>\n<seg id=3>c</seg></doc></srcset>"
        (tmp_path / name).write_bytes(PACKINGS[packing](content))
        translate_share(numbered, tmp_path / name, tmp_path / "out", 0, 2)
        (tmp_path / "plain").write_bytes(b"a\nb\nc\n")
        translate_share(numbered, tmp_path / "plain", tmp_path / "out", 1, 2)
        assert (tmp_path / "out").read_bytes() == b"1 A\n2 B\n3 C\n"
        (tmp_path / "out").unlink()


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_pipe_is_read_once(tmp_path: Path, packing):
    source, target = tmp_path / "in", tmp_path / "out"
    os.mkfifo(source)
    content = PACKINGS[packing](b"a\nb\n" + b"c\n" * 100_000)
    writer = threading.Thread(target=source.write_bytes, args=(content,), daemon=True)
    writer.start()
    translate_share(numbered, source, target, 0, 1)
    writer.join(10)
    assert not writer.is_alive()
    assert target.read_bytes().startswith(b"1 A\n2 B\n3 C\n") and target.read_bytes().count(b"\n") == 100_002


def test_a_pipe_has_one_share(tmp_path: Path):
    """No process waits for input that another one has read."""
    os.mkfifo(tmp_path / "in")
    with pytest.raises(
        UserError, match=r"^--input \S+/in: a pipe or a device, which 2 shares can't each read; write it to"
    ):
        translate_share(numbered, tmp_path / "in", tmp_path / "out", 0, 2)


@pytest.fixture
def small_files():
    """No file may have more than 1,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [2_000, 1_000_000])  # the error comes from close, or already from a write
def test_a_full_disk_is_a_matter_of_the_output(tmp_path: Path, small_files, size):
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"a\n")
    with pytest.raises(UserError, match=r"^--output \S+/out: File too large$"):
        translate_share(lambda lines, out, first_line: out.write(b"x" * size), source, target, 0, 1)
    assert list(tmp_path.iterdir()) == [source]


def test_errors_of_the_translator_are_not(tmp_path: Path):
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"a\n")

    def fails(lines, out, first_line):
        raise PermissionError(13, "Permission denied", "a library's own file")

    with pytest.raises(PermissionError, match="a library's own file"):
        translate_share(fails, source, target, 0, 1)
    assert list(tmp_path.iterdir()) == [source]


def test_another_source_does_not_take_the_old_parts(tmp_path: Path):
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"a\nb\n")
    translate_share(numbered, source, target, 0, 2)
    source.write_bytes(b"c\nd\n")
    translate_share(numbered, source, target, 1, 2)
    assert not target.exists()


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "a/b", "1/"])
def test_what_is_no_share(text):
    with pytest.raises(UserError, match="must be I/N"):
        parse(text)


@pytest.mark.slow
def test_two_processes_at_once_translate_as_one_does(trained: Path, environment, tmp_path: Path):
    lines = ["one two", "", *(f"three {word}" for word in ("one", "two", "four"))]
    (tmp_path / "in").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "transformer", "translate", trained, "--input", "in", "--output", "out", "--share"]
    both = [
        subprocess.Popen([*map(str, command), f"{i}/2"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
        for i in range(2)
    ]
    errors = [process.communicate()[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    expected = transformer.Translator.load(str(trained)).translate(lines)
    assert (tmp_path / "out").read_text().split("\n") == [*expected, ""]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_shares_of_another_job_are_named(tmp_path: Path, caplog) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"a\nb\n")
    translate_share(numbered, source, target, 0, 2, "float32")
    assert "not used" not in caplog.text
    translate_share(numbered, source, target, 1, 2, "bfloat16")
    (other,) = tmp_path.glob("out.*.0-of-2")
    assert f"these parts are of another input, model, options or type, and not used: {other.name}" in caplog.text
    assert not target.exists()
    translate_share(numbered, source, target, 0, 2, "bfloat16")
    assert target.read_bytes() == b"1 A\n2 B\n" and other.exists()


@pytest.mark.parametrize("harm", ["a bit", "cut", "empty", "zeros"])
def test_a_damaged_part_is_translated_again(tmp_path: Path, harm: str, caplog):
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_text("".join(f"{i}\n" for i in range(10)))
    translate_share(numbered, source, target, 0, 2)
    (part,) = tmp_path.glob("out.*.0-of-2")
    whole = part.read_bytes()
    part.write_bytes(
        {"a bit": bytes([whole[0] ^ 1]) + whole[1:], "cut": whole[:-3], "empty": b"", "zeros": bytes(90)}[harm]
    )
    with pytest.raises(UserError, match=r"out: share 0 is missing; translate it with --share 0/2"):
        translate_share(numbered, source, target, 1, 2)
    assert f"{part} is damaged" in caplog.text and not target.exists()
    translate_share(numbered, source, target, 0, 2)
    expected = io.BytesIO()
    numbered(io.BytesIO(source.read_bytes()), expected, 1)
    assert target.read_bytes() == expected.getvalue()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_there_can_be_so_many_shares():
    assert parse("9999/10000") == (9_999, 10_000)
    with pytest.raises(UserError, match="--share 0/1000000000: there can be 10,000 shares at most"):
        parse("0/1000000000")


def test_a_part_of_another_share_is_not_taken(tmp_path: Path, caplog):
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"a\nb\n")
    translate_share(numbered, source, target, 1, 2)
    (part,) = tmp_path.glob("out.*.1-of-2")
    shutil.copy(part, str(part).replace("1-of-2", "0-of-2"))
    translate_share(numbered, source, target, 0, 2)
    assert "0-of-2 is damaged: its share must be translated again" in caplog.text
    assert target.read_bytes() == b"1 A\n2 B\n"


def test_a_part_of_another_translation_is_not_taken(tmp_path: Path, caplog):
    source, target = tmp_path / "in", tmp_path / "out"
    for content in (b"a\nb\n", b"c\nd\n"):  # the second part has the name of the first translation's
        source.write_bytes(content)
        translate_share(numbered, source, target, 0, 2)
    renamed, part = sorted(tmp_path.glob("out.*.0-of-2"), key=lambda path: path.read_bytes()[:3] == b"1 C")
    part.rename(renamed)
    source.write_bytes(b"a\nb\n")
    translate_share(numbered, source, target, 0, 2)
    assert f"{renamed} is damaged: its share must be translated again" in caplog.text
    translate_share(numbered, source, target, 1, 2)
    assert target.read_bytes() == b"1 A\n2 B\n"


@pytest.mark.parametrize("content", [b"", b"1 A\n2 C\n", b"mine", None])
@pytest.mark.parametrize("shares", [1, 2])
def test_a_file_that_came_meanwhile_is_not_overwritten(tmp_path: Path, content: bytes | None, shares: int):
    """The parts are not removed either. (None: a folder.)"""
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"a\nb\n")

    def slowly(lines, out, first_line):
        target.mkdir() if content is None else target.write_bytes(content)
        return numbered(lines, out, first_line)

    with pytest.raises(UserError, match=f"^--output {target}: another file has appeared there and is not overwritten"):
        translate_share(slowly, source, target, shares - 1, shares)
    assert content is None or target.read_bytes() == content
    assert [path.name.rpartition(".")[2] for path in tmp_path.glob("out.*")] == [f"{shares - 1}-of-{shares}"]
    target.rename(tmp_path / "moved")
    translate_share(numbered, source, target, 0, shares)
    assert target.read_bytes() == b"1 A\n2 B\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "moved", "out"]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_comes_while_the_output_is_put_together_is_not_overwritten(tmp_path: Path, monkeypatch, links):
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"a\nb\n")

    def late(path):
        if path.name.endswith(".together"):
            target.write_bytes(b"mine")

    def refuse(*paths):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(transformer.inference.shares, "synced", late)
    if not links:
        monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(UserError, match="another file has appeared there"):
        translate_share(numbered, source, target, 0, 1)
    assert target.read_bytes() == b"mine"
    monkeypatch.setattr(transformer.inference.shares, "synced", lambda path: None)
    target.unlink()
    translate_share(numbered, source, target, 0, 1)
    assert target.read_bytes() == b"1 A\n2 B\n"


def test_an_output_that_the_disk_does_not_keep_is_told(tmp_path: Path, monkeypatch):
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"a\nb\n")
    lose = lambda path: path.name.endswith(".together") and path.write_bytes(b"")  # noqa: E731
    monkeypatch.setattr(transformer.inference.shares, "synced", lose)
    with pytest.raises(UserError, match="the disk does not keep what is written"):
        translate_share(numbered, source, target, 0, 1)
    assert not target.exists() and len(list(tmp_path.glob("out.*.0-of-1"))) == 1
