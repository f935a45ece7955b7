import contextlib
import os
import stat
import subprocess
import sys

import pytest

from transformer.durable import append, new_folder, synced


def test_files_and_folders_are_synced(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    kinds = []
    monkeypatch.setattr(os, "fsync", lambda at: kinds.append(stat.S_IFMT(os.fstat(at).st_mode)))
    synced(tmp_path / "file")
    synced(str(tmp_path))
    assert kinds == [stat.S_IFREG, stat.S_IFDIR]


def test_folders_that_cannot_be_synced_are_left_to_the_system(tmp_path, monkeypatch):
    def refuse(at):
        raise OSError(22, "Invalid argument")

    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(os, "fsync", refuse)
    synced(tmp_path)
    with pytest.raises(OSError):  # of a file it says that it may be lost
        synced(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        synced(tmp_path / "gone")


# ---- Lines that are appended ----------------------------------------------------------------------------------------


def test_lines_are_appended_in_utf8(tmp_path):
    for line in ("ä", "", "b" * 100_000):
        assert append(tmp_path / "file", line) is False
    assert (tmp_path / "file").read_bytes() == "ä\n\n".encode() + b"b" * 100_000 + b"\n"


def test_what_follows_half_a_line_is_a_line_of_its_own(tmp_path):
    (tmp_path / "file").write_bytes(b'{"a": 1}\n{"b":')
    assert append(tmp_path / "file", '{"c": 3}') is True
    assert append(tmp_path / "file", '{"d": 4}') is False
    assert (tmp_path / "file").read_text().split("\n") == ['{"a": 1}', '{"b":', '{"c": 3}', '{"d": 4}', ""]


@pytest.mark.parametrize("room", [0, 1, 5, 8])
def test_a_line_that_a_full_disk_cuts_is_taken_back(tmp_path, full_after, room: int):
    append(tmp_path / "file", "before")
    with full_after(7 + room), pytest.raises(OSError, match="File too large"):
        append(tmp_path / "file", "x" * 8)
    assert (tmp_path / "file").read_text() == "before\n"
    append(tmp_path / "file", "after")
    assert (tmp_path / "file").read_text() == "before\nafter\n"


def test_lines_of_several_processes_do_not_mix(environment, tmp_path):
    program = "from transformer.durable import append\nfor _ in range(200): append('file', 'x' * 9999)"
    running = [subprocess.Popen([sys.executable, "-c", program], env=environment, cwd=tmp_path) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert (tmp_path / "file").read_text().splitlines() == ["x" * 9999] * 600


# ---- Folders that are whole or not there ----------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["out", "a/b/out", "there", "[1]*?"])
@pytest.mark.parametrize("error", [None, OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_folder_is_whole_or_leaves_nothing(tmp_path, out: str, error):
    for other in ("there", "other", ".out.tmp"):
        (tmp_path / other).mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(type(error)) if error else contextlib.nullcontext(), new_folder(tmp_path / out) as building:
        (building / "inner").mkdir()
        (building / "inner/file").write_text("x")
        assert list((tmp_path / out).glob("file")) == []
        if error:
            raise error
    if error:
        assert sorted(tmp_path.rglob("*")) == before
    else:
        assert [path.name for path in (tmp_path / out).rglob("*")] == ["inner", "file"]
        assert not list(tmp_path.rglob("*.tmp.*")) and len(list(tmp_path.rglob("*.tmp"))) == 1


def test_the_folder_of_another_is_left_alone(tmp_path):
    """Which appears meanwhile."""
    with pytest.raises(OSError), new_folder(tmp_path / "out") as building:
        (building / "file").write_text("mine")
        (tmp_path / "out").mkdir()
        (tmp_path / "out/file").write_text("theirs")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out/file").read_text() == "theirs"
