import bz2
import contextlib
import gzip
import hashlib
import json
import logging
import lzma
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from transformer.config import DataConfig, UserError
from transformer.data import pool, tokens
from transformer.data import tokenizer as tokenizer_module
from transformer.data.text import Parallel, fingerprint, read_lines
from transformer.data.tokenizer import Tokenizer
from transformer.data.tokens import TokenStore, tokenize
from transformer.files import caching

SOURCE = ["the dog runs", "", "a house", "  \u3000 ", "the red dog 😀 sees a house", "x"] * 10
TARGET = ["der Hund läuft", "leer", "ein Haus", "nichts", "der rote Hund sieht ein Haus", ""] * 10


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(SOURCE + TARGET, vocab_size=320)


@pytest.fixture
def parallel(tmp_path):
    for name, lines in (("a.en", SOURCE), ("a.de", TARGET)):
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Parallel(str(tmp_path / "a.en"), str(tmp_path / "a.de"))


def contents(made):
    return [(made.source(i).tolist(), made.target(i).tolist()) for i in range(len(made))]


def test_holds_the_pieces_of_every_line(tokenizer, parallel, tmp_path):
    made = tokenize(parallel, tokenizer, folder=tmp_path)
    blank = [line if line.strip() else "" for line in SOURCE]
    expected = list(zip(tokenizer.encode(blank), tokenizer.encode(TARGET), strict=True))
    assert contents(made) == expected
    assert made.source_lengths.tolist() == [len(s) for s, _ in expected]
    assert made.target_lengths.tolist() == [len(t) for _, t in expected]
    assert made.source_lengths.dtype == made.target_lengths.dtype == np.int32
    assert made.source_tokens.dtype == np.dtype("<u2")
    assert made.source(1).size == made.source(3).size == made.target(5).size == 0
    with pytest.raises(ValueError):  # a read-only view into a file
        made.source(0)[0] = 1


def test_made_once_and_keyed_by_content(tokenizer, parallel, tmp_path, monkeypatch):
    made = tokenize(parallel, tokenizer, folder=tmp_path / "cache")
    elsewhere = tmp_path / "moved"
    elsewhere.mkdir()
    moved = Parallel(*(shutil.copy(path, elsewhere) for path in parallel[:2]))
    other = Tokenizer.train(SOURCE + TARGET, vocab_size=321)
    assert tokenize(parallel, other, folder=tmp_path / "cache").path != made.path
    (elsewhere / "a.de").write_text("\n".join([*TARGET[:-1], "neu"]), encoding="utf-8")
    assert tokenize(moved, tokenizer, folder=tmp_path / "cache").path != made.path
    shutil.copy(parallel.target, elsewhere)
    monkeypatch.setattr(tokens, "_build", None)
    assert tokenize(moved, tokenizer, folder=tmp_path / "cache").path == made.path


def test_processes_change_nothing(tokenizer, parallel, tmp_path, monkeypatch):
    plain = tokenize(parallel, tokenizer, folder=tmp_path / "plain", workers=1)
    monkeypatch.setattr(tokens, "_CHUNK", 3)
    monkeypatch.setattr(tokens, "_PARALLEL_FROM", 6)
    monkeypatch.setattr(Tokenizer, "encode", None)  # the children do all the work: they import the module anew
    many = tokenize(parallel, tokenizer, folder=tmp_path / "many", workers=2)
    assert contents(many) == contents(plain)
    for name in ("source.tokens", "target.tokens", "source.offsets.npy", "target.offsets.npy", "meta.json"):
        assert (many.path / name).read_bytes() == (plain.path / name).read_bytes()


def test_large_vocabularies_take_four_bytes(parallel, tmp_path):
    class Wide:
        vocab_size, sha256 = 70_000, "wide"

        def encode(self, lines, side):
            return [[69_999] * len(line.split()) for line in lines]

    made = tokenize(parallel, Wide(), folder=tmp_path)
    assert made.source_tokens.dtype == np.dtype("<u4") and made.source(0).tolist() == [69_999] * 3
    Wide.vocab_size, Wide.sha256 = 65_536, "edge"
    assert tokenize(parallel, Wide(), folder=tmp_path).source_tokens.dtype == np.dtype("<u2")


def test_an_empty_corpus(tokenizer, tmp_path):
    (tmp_path / "empty.tsv").touch()
    with pytest.raises(UserError, match=r"empty\.tsv: empty; leave it out, or give another file$"):
        tokenize(Parallel(str(tmp_path / "empty.tsv")), tokenizer, folder=tmp_path)


def test_errors_leave_nothing_behind(tokenizer, parallel, tmp_path):
    with open(parallel.target, "a", encoding="utf-8") as file:
        file.write("one more\n")
    with pytest.raises(UserError, match="61"):
        tokenize(parallel, tokenizer, folder=tmp_path / "cache")
    assert list((tmp_path / "cache/tokens").iterdir()) == []


def test_pairs_of_the_same_text_are_counted(tokenizer, tmp_path):
    (tmp_path / "a.tsv").write_text("the dog\tthe dog\na house\tein Haus\n\t\n \t \nder Hund\tder Hund\n")
    made = tokenize(Parallel(str(tmp_path / "a.tsv")), tokenizer, folder=tmp_path)
    assert len(made) == 5
    assert made.same == 2  # blank pairs do not count


def flip(path, at, bit=1):
    content = bytearray(path.read_bytes())
    content[at] ^= bit
    path.write_bytes(content)


HARM = {
    "cut": lambda folder: (folder / "target.tokens").write_bytes((folder / "target.tokens").read_bytes()[:-2]),
    "zeros": lambda folder: (folder / "target.tokens").write_bytes(bytes((folder / "target.tokens").stat().st_size)),
    "a piece": lambda folder: flip(folder / "source.tokens", 40),
    "an offset": lambda folder: flip(
        folder / "source.offsets.npy", -80
    ),  # moves the end of a pair and the start of the next
    "gone": lambda folder: (folder / "source.offsets.npy").unlink(),
    "no meta": lambda folder: (folder / "meta.json").unlink(),
    "empty meta": lambda folder: (folder / "meta.json").write_bytes(b""),
    "other meta": lambda folder: (folder / "meta.json").write_text("[]"),
    # Flip one bit: "<u2" becomes ">u2".
    "byte order": lambda folder: flip(folder / "meta.json", (folder / "meta.json").read_bytes().index(b"<"), 2),
}


@pytest.mark.parametrize("damage", HARM)
def test_a_damaged_cache_is_made_again(tokenizer, parallel, tmp_path, caplog, monkeypatch, damage):
    made = tokenize(parallel, tokenizer, folder=tmp_path)
    expected = contents(made)
    HARM[damage](made.path)
    monkeypatch.setattr(caching, "_digests", {})  # as in a new process
    with caplog.at_level(logging.WARNING, "transformer"):
        again = tokenize(parallel, tokenizer, folder=tmp_path)
    assert "making the token store again" in caplog.text
    assert contents(again) == expected == contents(TokenStore(again.path))
    assert json.loads((again.path / "meta.json").read_text())["pairs"] == len(SOURCE)


def test_files_are_looked_through_once_a_process(tokenizer, parallel, tmp_path, monkeypatch):
    path = tokenize(parallel, tokenizer, folder=tmp_path).path
    whole, read = caching.digest, []
    monkeypatch.setattr(caching, "digest", lambda path: read.append(path.name) or whole(path))
    TokenStore(path)
    assert read == []
    monkeypatch.setattr(caching, "_digests", {})
    TokenStore(path)
    assert sorted(read) == [
        *("entry", "meta.json", "source.offsets.npy", "source.tokens", "target.offsets.npy", "target.tokens")
    ]


TOO_LARGE = """
import resource, signal, sys
from transformer.data.tokens import tokenize
from transformer.data.text import Parallel
from transformer.data.tokenizer import Tokenizer

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)
tokenize(Parallel(*sys.argv[1:3]), Tokenizer.load(sys.argv[3]), folder=sys.argv[5], workers=1)
"""


@pytest.mark.parametrize("limit", [50, 300, 600])
def test_files_that_may_not_be_so_large_are_never_sealed(tokenizer, parallel, tmp_path, limit):
    (tmp_path / "program.py").write_text(TOO_LARGE)
    (tmp_path / "spm.model").write_bytes(tokenizer.model)
    command = [sys.executable, tmp_path / "program.py", *parallel[:2], tmp_path / "spm.model", str(limit)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([*command, tmp_path / "cache"], env=environment, capture_output=True, text=True)
    assert done.returncode and "File too large" in done.stderr
    assert not list((tmp_path / "cache/tokens").iterdir())


def test_text_that_changes_while_it_is_read_is_told(tokenizer, tmp_path, monkeypatch):
    """Lines are added after the first lines were read, and are removed again at the end."""
    parallel = Parallel(str(tmp_path / "a.en"), str(tmp_path / "a.de"))
    for path, line in zip(parallel[:2], ("the dog runs\n", "der Hund\n"), strict=True):
        Path(path).write_text(line * 20_000)
    whole = tokens.read_pairs

    def changing(*given):
        pairs = whole(*given)
        yield next(pairs)
        before = [Path(path).read_bytes() for path in parallel[:2]]
        for path, content in zip(parallel[:2], before, strict=True):
            Path(path).write_bytes(content + b"one more\n")
        yield from pairs
        for path, content in zip(parallel[:2], before, strict=True):
            Path(path).write_bytes(content)

    with monkeypatch.context() as patch:
        patch.setattr(tokens, "read_pairs", changing)
        with pytest.raises(UserError, match=f"^{parallel.source} or {parallel.target} changed while it was read; run"):
            tokenize(parallel, tokenizer, folder=tmp_path / "cache", workers=1)
    assert len(tokenize(parallel, tokenizer, folder=tmp_path / "cache", workers=1)) == 20_000
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer_module, "read_pairs", changing)
        with pytest.raises(UserError, match="changed while it was read"):
            tokenizer_module.tokenizer(DataConfig(vocab_size=280, cache_dir=str(tmp_path / "cache")), (parallel,))


@pytest.mark.parametrize("ending", ["", ".gz", ".xz", ".bz2"])
def test_the_digest_is_that_of_the_bytes_that_were_read(tmp_path, ending):
    pack = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}[ending]
    content = pack(("".join(f"line {i}\n" for i in range(50_000))).encode())
    (tmp_path / f"a{ending}").write_bytes(content)
    digests = {}
    assert sum(1 for _ in read_lines(tmp_path / f"a{ending}", digests=digests)) == 50_000
    assert digests == {str(tmp_path / f"a{ending}"): hashlib.sha256(content).hexdigest()}


def test_tokens_too_few_are_never_sealed(tokenizer, parallel, tmp_path, monkeypatch):
    """As when an error at the close of a file is lost."""
    whole = tokens._build

    def lost(folder, *given):
        whole(folder, *given)
        path = folder / "source.tokens"
        path.write_bytes(path.read_bytes()[:-2])

    monkeypatch.setattr(tokens, "_build", lost)
    with pytest.raises(UserError, match=r"the token store cannot be read back \(source.tokens has"):
        tokenize(parallel, tokenizer, folder=tmp_path)
    assert list((tmp_path / "tokens").iterdir()) == []


# ---- Processes ------------------------------------------------------------------------------------------------------

TOKENISES = """
import itertools, signal, sys
from transformer.files import caching
from transformer.data import tokens
from transformer.data import tokenizer as tokenizer_module
from transformer.data.text import Parallel
from transformer.data.tokenizer import Tokenizer

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background may ignore SIGINT
    tokens.read_pairs = lambda *_: itertools.cycle([("the dog runs", "der Hund")])  # endless text
    try:
        tokens.tokenize(Parallel(sys.argv[1]), Tokenizer.load(sys.argv[2]), folder=sys.argv[3], workers=2)
    except KeyboardInterrupt:
        sys.exit(130)
"""


def children(process: int) -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == process:
                found.add(int(stat.parent.name))
        except OSError:  # the process has ended meanwhile
            pass
    return found


def ended(process: int) -> bool:
    try:
        return (
            Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        )  # a zombie: nobody waits for its exit code
    except OSError:
        return True


def until(happened, seconds=60.0):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_the_one_that_started_them(tokenizer, parallel, tmp_path, number):
    (tmp_path / "program.py").write_text(TOKENISES)
    (tmp_path / "spm.model").write_bytes(tokenizer.model)
    command = [sys.executable, tmp_path / "program.py", parallel.source, tmp_path / "spm.model", tmp_path / "cache"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    running = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )

    def at_work():
        # A terminal's Ctrl-C goes to all processes. The children must ignore it, also while they start.
        for process in children(running.pid) if number == signal.SIGINT else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
        return any(path.stat().st_size for path in tmp_path.glob("cache/tokens/*.tmp/source.tokens"))

    try:
        until(at_work)
        started = children(running.pid)
        assert len(started) == 3  # one of them is multiprocessing's resource tracker
        if number == signal.SIGKILL:
            running.kill()
        else:
            os.killpg(running.pid, number)
        out, err = running.communicate(timeout=120)
        until(lambda: all(map(ended, started)), seconds=20)
        assert (running.returncode, out) == (-9 if number == signal.SIGKILL else 130, b"")
        assert b"Traceback" not in err
    finally:
        for process in [running.pid, *children(running.pid)]:
            if not ended(process):
                os.kill(process, signal.SIGKILL)
        running.wait()


def die(chunk):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_told_in_one_line(tokenizer, parallel, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "_CHUNK", 3)
    monkeypatch.setattr(tokens, "_PARALLEL_FROM", 6)
    monkeypatch.setattr(pool, "_apply", die)
    with pytest.raises(
        UserError, match=r"^data\.workers: one of 2 processes that tokenise was killed.*memory"
    ) as error:
        tokenize(parallel, tokenizer, folder=tmp_path / "cache", workers=2)
    assert "\n" not in str(error.value)
    assert list((tmp_path / "cache/tokens").iterdir()) == []


def test_what_says_which_text_it_is_outlives_formats_of_the_files(tokenizer, parallel, tmp_path, monkeypatch):
    """A run compares `TokenStore.text` with the value in its checkpoints."""
    made = tokenize(parallel, tokenizer, folder=tmp_path)
    told = [1, fingerprint(parallel), tokenizer.sha256, ("source", "target")]
    assert made.text == hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]
    monkeypatch.setattr(tokens, "_FORMAT", 99)
    again = tokenize(parallel, tokenizer, folder=tmp_path)
    assert again.path != made.path
    assert (again.text, again.sha256()) == (made.text, made.sha256())
