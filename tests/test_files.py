import contextlib
import os
import shutil
import stat
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from transformer.checkpoint.layout import folder_of
from transformer.config import UserError
from transformer.data.opening import open_text
from transformer.data.tokenizer import Tokenizer
from transformer.files import (
    Lock,
    append,
    atomic,
    cached,
    caching,
    damage,
    local,
    local_path,
    new_folder,
    path_of,
    replace,
    require_new,
    seal,
    sealed,
    synced,
    temporaries,
    temporary,
    unchanged,
)
from transformer.tools.hf.folder import config_in


def test_an_empty_path_is_not_the_current_folder():
    """A variable of a shell that is not set gives one."""
    told = "is empty, as where a variable of the shell is not set; give a path"
    for open_it, what in (
        (path_of, "a path"),
        (partial(local_path, "OUT"), "OUT"),
        (open_text, "the name of a file"),
        (config_in, "the folder of the model"),
    ):
        with pytest.raises(UserError, match=f"^{what} {told}"):
            open_it("")


@pytest.mark.parametrize("name", ["a://b", "a:/b", "gs://a", "//a", "[a]*", "a\\b", "a%20#b?c"])
def test_a_path_that_begins_as_a_local_one_is_local(tmp_path, name):
    path = path_of(f"{tmp_path}/{name}")
    path.mkdir(parents=True)
    assert os.path.isdir(f"{tmp_path}/{name}") and local(path) and local(f"{tmp_path}/{name}")
    assert path_of(path) == path and local(f"./{name}")


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    """In Python no shell replaces it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(path_of("~/own")) == str(local_path("OUT", "~/own")) == f"{tmp_path}/own"
    assert str(folder_of("~/own")) == f"{tmp_path}/own/checkpoints"
    (tmp_path / "x.model").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"/x\.model: not a SentencePiece model"):  # it was found
        Tokenizer.load("~/x.model")


def test_only_known_storage_is_a_bucket():
    assert str(path_of("gs://a/b")) == "gs://a/b" and not local("gs://a/b")
    for name in ("foo://a", "file:///tmp/a", "http://a"):
        with pytest.raises(UserError, match=rf"^{name}: unknown kind of storage; give a gs://"):
            path_of(name)


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
    with pytest.raises(OSError):  # for a file it means that the content may be lost
        synced(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        synced(tmp_path / "gone")


def whole(path: Path) -> str:
    """The content of a test's cache."""
    text = (path / "text").read_text()
    if len(text) != 3:
        raise ValueError("it is too short")
    return text


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file"
    replace(path, b"first")
    monkeypatch.setattr(atomic, "synced", lambda path: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"file cannot be written \(No space left"):
        replace(path, b"second")
    assert path.read_bytes() == b"first" and [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_pipe_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is a device or a pipe, which a file would replace; name a file"):
        replace(tmp_path / "pipe", b"x")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_several_may_replace_a_file_at_once(tmp_path):
    """Each process has its own temporary name: in the end the file has exactly one of the contents."""
    script = "import sys; from pathlib import Path; from transformer.files import replace\n"
    script += "for i in range(200): replace(Path(sys.argv[1]), sys.argv[2].encode() * 5000 + bytes([i]))"
    there = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "x"), letter]) for letter in "ab"]
    assert [process.wait() for process in there] == [0, 0]
    assert set((tmp_path / "x").read_bytes()[:-1]) in ({97}, {98}) and len(list(tmp_path.iterdir())) == 1


def test_damage_to_a_sealed_folder_is_named(tmp_path):
    def folder() -> Path:
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        (path / "deep").mkdir(parents=True)
        (path / "a").write_text("a")
        (path / "deep" / "b").write_text("b")
        assert not sealed(path)
        seal(path)
        assert sealed(path) and damage(path) is None
        return path

    for harm, told in (
        (lambda path: (path / "a").write_text("b"), "a is not as it was written"),
        (lambda path: (path / "a").write_text(""), "a is not as it was written"),
        (lambda path: (path / "deep" / "b").unlink(), "deep/b is missing"),
        (lambda path: (path / "manifest.json").write_text("{"), "manifest.json is not as it was written (Exp"),
        (lambda path: (path / "manifest.json").write_text("{}"), "(it names no files)"),
        (lambda path: (path / "manifest.json").write_text("[" * 100_000), "(nested too deeply)"),
        (lambda path: (path / "manifest.json").write_text('{"../a": 1}'), "(it names ../a, which is not in the folder"),
    ):
        path = folder()
        harm(path)
        assert told in damage(path)


def test_a_cache_is_made_once_and_anew_when_it_is_damaged(tmp_path, caplog):
    made = []

    def make(new: Path) -> None:
        made.append(new)
        (new / "text").write_text("abc")

    folder = tmp_path / "cache" / "[key]"
    for _ in range(2):
        assert cached(folder, make, whole, "the text") == "abc"
    assert len(made) == 1
    for harm in (
        lambda: (folder / "text").write_text("abd"),
        lambda: (folder / "text").unlink(),
        lambda: (folder / "manifest.json").unlink(),
        lambda: (folder / "manifest.json").write_text("[]"),
    ):
        harm()
        caplog.clear()
        assert cached(folder, make, whole, "the text") == "abc" and damage(folder) is None
        assert "making the text again" in caplog.text
    assert len(made) == 5 and [path.name for path in folder.parent.iterdir()] == ["[key]"]


@pytest.mark.parametrize("version", ["this", "an earlier one"])
def test_an_entry_of_a_cache_under_the_name_of_another_is_made_again(tmp_path, caplog, version: str):
    for name in ("abc", "abd"):
        cached(tmp_path / name, lambda new, name=name: (new / "text").write_text(name), whole, "the text")
    if version == "an earlier one":  # without the name
        (tmp_path / "abc/entry").unlink()
        (tmp_path / "abc/manifest.json").unlink()
        seal(tmp_path / "abc")
    assert cached(tmp_path / "abc", pytest.fail, whole, "the text") == "abc"
    shutil.rmtree(tmp_path / "abd")
    (tmp_path / "abc").rename(tmp_path / "abd")
    if version == "this":
        again = cached(tmp_path / "abd", lambda new: (new / "text").write_text("abd"), whole, "the text")
        assert again == "abd" and f"{tmp_path}/abd was made as abc" in caplog.text
        assert "making the text again" in caplog.text and [path.name for path in tmp_path.iterdir()] == ["abd"]


def test_a_cache_that_cannot_be_read_back_is_never_sealed(tmp_path):
    """Such as when a limit truncates files and closing them reports no error."""

    def short(new: Path) -> None:
        (new / "text").write_text("ab")

    with pytest.raises(UserError, match=r"the text cannot be read back \(it is too short\); check for a full disk"):
        cached(tmp_path / "key", short, whole, "the text")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["file", "link", "link to nothing", "folder in the place of a file"])
def test_what_is_no_folder_of_a_cache_is_made_anew(tmp_path, kind: str):
    folder, other = tmp_path / "cache/key", tmp_path / "other"

    def make(new: Path) -> None:
        (new / "text").write_text("abc")

    cached(folder, make, whole, "the text")
    if kind == "folder in the place of a file":
        (folder / "text").unlink()
        (folder / "text").mkdir()
    else:
        folder.rename(tmp_path / "before")
        other.mkdir()
        (other / "mine").write_text("mine")
        folder.write_text("x") if kind == "file" else folder.symlink_to(other if kind == "link" else tmp_path / "none")
    assert cached(folder, make, whole, "the text") == "abc" and damage(folder) is None
    assert [path.name for path in folder.parent.iterdir()] == ["key"] and not folder.is_symlink()
    assert not other.exists() or (other / "mine").read_text() == "mine"


def test_threads_of_one_process_do_not_share_what_they_make(tmp_path):
    barrier, found = threading.Barrier(2), []

    def make(new: Path) -> None:
        barrier.wait()  # both are making it
        (new / "text").write_text("abc")

    def work() -> None:
        found.append(cached(tmp_path / "key", make, whole, "the text"))
        for size in range(1, 50):
            replace(tmp_path / "file", b"x" * size)
        found.append("replaced")

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["abc", "abc", "replaced", "replaced"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "key"]


def test_several_may_make_a_cache_at_once(tmp_path):
    folder, barrier, found = tmp_path / "key", threading.Barrier(4), []
    folder.mkdir()
    (folder / "text").write_text("half a copy")

    def make(new: Path) -> None:
        (new / "text").write_text("abc")

    def work() -> None:
        barrier.wait()
        found.append(cached(folder, make, whole, "the text"))

    # Threads of one process would share a temporary name, so each pretends to be another process.
    threads = [threading.Thread(target=work) for _ in range(4)]
    owners = iter(range(10**6))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(temporaries, "owner", lambda: f"host.0.{next(owners)}")
        patch.setattr(temporaries, "_runs", lambda process: True)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == ["abc"] * 4 and damage(folder) is None
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_whole_folder_is_not_taken_for_the_damaged_one_that_it_replaced(tmp_path, monkeypatch):
    folder, lasting = tmp_path / "key", []
    folder.mkdir()
    (folder / "text").write_text("half a copy")

    def make(new: Path) -> None:
        (new / "text").write_text("abc")

    def other() -> None:
        cached(folder, make, whole, "the text")
        lasting.append(folder.stat().st_ino)

    def slowly_sealed(folder: Path) -> bool:
        """As `sealed`, with time for another thread to replace the folder before the result is used."""
        answer = sealed(folder)
        if list(tmp_path.glob("key.*.tmp")) and thread.ident is None:  # the first, moving its folder
            thread.start()
            thread.join(0.5)
        return answer

    thread, owners = threading.Thread(target=other), iter(range(100))
    monkeypatch.setattr(temporaries, "owner", lambda: f"host.0.{next(owners)}")
    monkeypatch.setattr(temporaries, "_runs", lambda process: True)
    monkeypatch.setattr(caching, "sealed", slowly_sealed)
    assert cached(folder, make, whole, "the text") == "abc"
    thread.join()
    assert lasting == [folder.stat().st_ino]


def test_what_killed_processes_were_making_is_swept(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    machine = temporaries.owner().rpartition(".")[0]
    theirs, mine = tmp_path / f"x.{machine}.{gone.pid}.tmp", tmp_path / f"x.{machine}.{os.getppid()}.tmp"
    others = tmp_path / f"x.elsewhere.1.{gone.pid}.tmp", tmp_path / "x.tmp", tmp_path / f"[x].{gone.pid}"
    theirs.mkdir()
    for path in (mine, *others):
        path.touch()
    with temporary(tmp_path, "y"):
        assert not theirs.exists()
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in (mine, *others)}


def test_a_folder_that_was_replaced_or_removed_is_noticed(tmp_path):
    folder = tmp_path / "run"
    told = f"^{folder} is no longer the folder that this run began in"
    for replaced in (True, False):
        folder.mkdir()
        with unchanged(folder) as check:
            check()
            folder.rmdir()
            if replaced:
                folder.mkdir()  # often with the same inode number
            with pytest.raises(UserError, match=told):
                check()
        folder.exists() and folder.rmdir()


def test_a_lock_is_held_by_one_and_notices_another_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    held = Lock(folder / ".lock")
    with held.held():
        held.check()
        with pytest.raises(UserError, match=f"{folder}: another process"), Lock(folder / ".lock").held():
            pass
        folder.rename(tmp_path / "moved")
        for again in (lambda: None, folder.mkdir, (folder / ".lock").touch):
            again()
            with pytest.raises(UserError, match=f"{folder} is no longer the folder that this run began in"):
                held.check()
        with Lock(folder / ".lock").held():  # which belongs to another process
            pass
    with Lock(tmp_path / "moved" / ".lock").held():
        pass


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
    program = "from transformer.files import append\nfor _ in range(200): append('file', 'x' * 9999)"
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
    """The folder appears while ours is being filled."""
    told = f"^{tmp_path}/out: something else was written there meanwhile, or it was replaced"
    for there in (False, True):
        with pytest.raises(UserError, match=told), new_folder(tmp_path / "out") as building:
            (building / "file").write_text("mine")
            (tmp_path / "out").mkdir(exist_ok=there)
            (tmp_path / "out/file").write_text("theirs")
        assert [path.name for path in tmp_path.rglob("*")] == ["out", "file"]
        assert (tmp_path / "out/file").read_text() == "theirs"
        (tmp_path / "out/file").unlink()


def test_an_empty_folder_that_is_replaced_meanwhile_is_left_alone(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match="or it was replaced"), new_folder(out) as building:
        (building / "file").write_text("mine")
        out.rename(tmp_path / "old")
        out.mkdir()
    assert not list(out.iterdir())


def test_two_do_not_fill_one_folder(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with new_folder(out) as building:
        (building / "file").write_text("mine")
        with pytest.raises(UserError, match=f"{out}: another process writes there"), new_folder(out):
            pass
    assert [path.name for path in out.iterdir()] == ["file"]


@pytest.mark.parametrize("empty", [True, False])
def test_what_a_killed_writer_of_a_folder_left_is_removed(environment, tmp_path, empty: bool):
    out = tmp_path / "out"
    if empty:
        out.mkdir()
    program = "import os, sys, pathlib; from transformer.files import new_folder\n"
    program += "with new_folder(pathlib.Path(sys.argv[1])) as new: (new / 'file').touch(); os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", program, str(out)], env=environment)
    assert killed.returncode == -9 and len(list(tmp_path.rglob("file"))) == 1
    with new_folder(tmp_path / "other"):  # of a process that runs
        require_new(out)
        assert not list(tmp_path.rglob("file"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(["other", *(["out"] if empty else [])])


def test_only_a_missing_or_empty_folder_is_new(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    for name in ("none", "empty"):
        require_new(tmp_path / name)
    for name, told in (("file", "not an empty folder"), ("", "not an empty folder"), ("link", "a link to nothing")):
        with pytest.raises(UserError, match=f"^{tmp_path / name} is {told}"):
            require_new(tmp_path / name)
