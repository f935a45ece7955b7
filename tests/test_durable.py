import os
import stat

import pytest

from transformer.durable import synced


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
