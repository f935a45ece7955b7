import io
import subprocess
import sys
from pathlib import Path

import pytest

import transformer
from transformer.config import UserError
from transformer.inference.shares import parse, translate_share


def numbered(source, target, first_line):
    """Lines with their numbers, shouted."""
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
    assert not target.exists()
    translate_share(lambda *_: pytest.fail("done already"), source, target, 0, 2)
    # Of another model or with other options it is another thing.
    translate_share(numbered, source, target, 1, 2, "beam 8")
    assert not target.exists()
    translate_share(numbered, source, target, 1, 2)
    assert target.read_bytes() == b"1 A\n2 B\n"


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
