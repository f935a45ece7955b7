"""Failing streams, disks and memory; names and text that could harm a terminal; damaged files in a workdir."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer.checkpoint import Checkpoints
from transformer.config import UserError, from_json
from transformer.data import tokens
from transformer.data.bar import bar
from transformer.streams import _Output, plain
from transformer.tasks import scoring
from transformer.tasks.sets import known_sets, read_set

ROOT = Path(__file__).parents[2]
# A shell prefix after which Python takes file names for ASCII.
ASCII = "ln -s $W ö; export W=$PWD/ö LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0;"
NAMES = [b"gr\xf6\xdfe.en", b"a\x1b[2J\nwarning: forged\r.en", "\u202eab.en".encode(), b"[1]*?.en"]


@pytest.fixture
def full_stdout(monkeypatch) -> Callable[[], None]:
    """`full_stdout()` makes standard output a full disk."""

    def full_stdout() -> None:
        output = _Output(os.open("/dev/full", os.O_WRONLY), "wb")
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(output), encoding="utf-8"))

    return full_stdout


def scores(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "scores.jsonl").read_text().splitlines()]


# ---- Scores ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_score_is_printed_and_stored_whatever_the_file_is_called(
    call, workdir: Path, tiny, tmp_path: Path, name: bytes, as_json: bool
) -> None:
    source = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
    Path(source).write_bytes((tiny.folder / "test.en").read_bytes())
    arguments = ("--workdir", workdir, "--source", source, "--reference", tiny.folder / "test.de")
    done = call("evaluate.py", *arguments, *(["--json"] if as_json else []))
    assert done.code == 0, done.err
    assert scores(workdir)[-1]["test_set"] == os.fsdecode(name)
    if as_json:
        assert json.loads(done.out)["test_set"] == os.fsdecode(name)
    else:
        assert ": 20 sentences, checkpoint " in done.out.splitlines()[0]
        assert all(char.isprintable() or char == "\n" for char in done.out)
    assert all(char.isprintable() or char == "\n" for char in done.err)
    assert not any(line.startswith("warning: forged") for line in (done.out + done.err).splitlines())


def test_a_score_that_cannot_be_printed_is_stored(call, workdir: Path, full_stdout) -> None:
    full_stdout()
    done = call("evaluate.py", "--workdir", workdir)
    stored, error = done.err.splitlines()[-2:]
    assert (done.code, done.out, len(scores(workdir))) == (2, "", 1)
    assert stored == f"the scores are stored in {workdir}/scores.jsonl"
    assert error.startswith("error: standard output cannot be written (No space left on device)")


def test_a_score_that_can_be_neither_printed_nor_stored_is_told_in_the_log(call, workdir: Path, full_stdout) -> None:
    (workdir / "scores.jsonl").mkdir()
    full_stdout()
    done = call("evaluate.py", "--workdir", workdir)
    assert (done.code, done.out) == (2, "")
    assert "warning: this score is not stored: " in done.err
    assert [line.split()[0] for line in done.err.splitlines()[-4:]] == ["test.en:", "BLEU", "chrF", "error:"]


@pytest.mark.parametrize("there", [True, False])
def test_a_score_is_not_stored_in_another_workdir(call, workdir: Path, monkeypatch, there: bool) -> None:
    """Another workdir replaces the evaluated one, or the workdir is removed, during the evaluation."""
    other = Path(shutil.copytree(workdir, workdir.with_name("other")))
    translate = scoring.translate_shares

    def slowly(*given: Any) -> list[str]:
        shutil.rmtree(workdir)
        if there:
            other.rename(workdir)
        return translate(*given)

    monkeypatch.setattr(scoring, "translate_shares", slowly)
    done = call("evaluate.py", "--workdir", workdir)
    assert done.code == 0 and done.out.startswith("test.en: 20 sentences")
    assert f"warning: this score is not stored: {workdir} is no longer the folder" in done.err
    assert workdir.exists() == there and not (workdir / "scores.jsonl").exists()


def test_a_folder_that_was_removed_is_told_in_one_line(call, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for program, *arguments in (("evaluate.py", "--workdir", "run"), ("transformer", "translate", "run")):
        done = call(program, *arguments)
        assert done.code == 2
        assert done.err.splitlines()[-1].startswith("error: the current folder was removed; change to one that exists")


@pytest.mark.parametrize(
    ("program", "arguments"), [("train.py", "--help"), ("transformer", "average --help"), ("evaluate.py", "--help")]
)
def test_help_that_cannot_be_printed_is_told(call, full_stdout, program: str, arguments: str) -> None:
    full_stdout()
    done = call(program, *arguments.split())
    assert (done.code, done.err.count("error: standard output cannot be written")) == (2, 1)


def test_no_folder_for_temporary_files_is_told_in_one_line(call, trained: Path, monkeypatch, full_after) -> None:
    """Also libraries need one, some of them when they are imported."""
    score = staticmethod(lambda *_, **__: tempfile.gettempdir())
    monkeypatch.setattr("transformer.tasks.translation.Translation.score", score)
    monkeypatch.setattr(tempfile, "tempdir", None)
    with full_after(0):
        done = call("evaluate.py", "--workdir", trained)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.startswith("error: no folder for temporary files can be written; make room in /tmp, or set TMPDIR")


def test_an_export_is_told_harmlessly_even_where_it_cannot_be_printed(
    call, trained, tmp_path: Path, full_stdout
) -> None:
    pytest.importorskip("safetensors")
    for name in ("a\x1b[2J", "b\nwarning: forged"):
        done = call("transformer", "export", trained, tmp_path / name, "--to", "hf-marian")
        assert done.code == 0 and done.out == f"{tmp_path}/{plain(name)}\n"
    full_stdout()
    done = call("transformer", "export", trained, tmp_path / "c", "--to", "hf-marian")
    assert done.code == 2 and done.err.splitlines()[-2] == f"wrote {tmp_path}/c"


def test_each_score_stands_alone_after_a_full_disk(call, workdir: Path, full_after) -> None:
    call("evaluate.py", "--workdir", workdir)
    size = (workdir / "scores.jsonl").stat().st_size
    with full_after(max(size + 20, 200_000)):  # compiled programs still fit
        (workdir / "scores.jsonl").write_text((workdir / "scores.jsonl").read_text() + " " * (199_980 - size))
        done = call("evaluate.py", "--workdir", workdir)
    assert done.code == 0 and done.out.startswith("test.en: 20 sentences")
    assert "warning: this score is not stored: " in done.err and "File too large" in done.err
    # Half a line, as an older version left it.
    with (workdir / "scores.jsonl").open("a") as file:
        file.write('\n{"time": "20')
    done = call("evaluate.py", "--workdir", workdir)
    assert "scores.jsonl ended in half a line, as a full disk leaves; it is passed over" in done.err
    first, _, half, last, rest = (workdir / "scores.jsonl").read_text().split("\n")
    assert json.loads(first)["bleu"] == json.loads(last)["bleu"]
    assert (half, rest) == ('{"time": "20', "")


def test_translations_that_cannot_be_written_are_told_in_one_line(
    call, trained: Path, full_stdout, monkeypatch
) -> None:
    for verb, line in (("translate", b"the red cat"), ("score", b'{"source": "the", "target": "rot"}')):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(line)))
        full_stdout()
        done = call("transformer", verb, trained)
        assert (done.code, done.out) == (2, "")
        assert done.err.splitlines()[-1].startswith("error: standard output cannot be written (No space left on")
        assert len(done.err.splitlines()) == 2  # the first line names the checkpoint


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "code", "err"),
    [
        ("evaluate.py --workdir $W --source gr*.en --reference de", 0, None),
        ("PYTHONIOENCODING=ascii evaluate.py --workdir $W --source gr*.en --reference de", 0, None),
        ("PYTHONIOENCODING=ascii evaluate.py --workdir $W --source gr*.en --reference de --json", 0, None),
        ("LC_ALL=C evaluate.py --workdir $W --source gr*.en --reference de", 0, None),
        (f"{ASCII} evaluate.py --workdir $W --source gr*.en --reference de", 0, None),
        (f"{ASCII} -m transformer export $W out.ö --to hf-marian", 0, None),
        ("evaluate.py --workdir $W --source gr*.en --reference de >&-", 2, "standard output cannot be written (Bad"),
        ("-m transformer translate $W < en > /dev/full", 2, "standard output cannot be written (No space left"),
        ("-m transformer translate $W <&-", 2, "standard input cannot be read (Bad file descriptor)"),
        ("-m transformer translate $W < en >&-", 2, "standard output cannot be written (Bad file descriptor)"),
        ("-m transformer export $W out --to hf-marian > /dev/full", 2, "standard output cannot be written (No space"),
        ("ulimit -v 600000; -m transformer translate $W < en", None, None),
        ("ulimit -v 500000; -m transformer average $W", None, None),
    ],
)
def test_programs_under_bad_streams(workdir: Path, tiny, environment, tmp_path: Path, command, code, err) -> None:
    """In separate processes. Without memory JAX may crash; a warning announces that."""
    (tmp_path / "en").write_bytes((tiny.folder / "test.en").read_bytes())
    (tmp_path / "de").write_bytes((tiny.folder / "test.de").read_bytes())
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/gr\xf6\xdfe.en")).write_bytes((tmp_path / "en").read_bytes())
    for program in ("evaluate.py", "-m transformer"):
        path = f"{ROOT}/evaluate.py" if program == "evaluate.py" else program
        command = command.replace(program, f"{sys.executable} {path}")
    variables = environment | {"W": str(workdir)}
    kept = Checkpoints(workdir).states()
    done = subprocess.run(["bash", "-c", command], capture_output=True, env=variables, cwd=tmp_path, timeout=200)
    assert Checkpoints(workdir).states() == kept
    if code is None:
        assert done.returncode in (2, 134, 139)
        assert b"memory is limited to" in done.stderr or b"memory ran out" in done.stderr
        return
    assert done.returncode == code and b"Traceback" not in done.stderr
    if "evaluate.py" in command:
        assert scores(workdir)[-1]["test_set"] == "gr\udcf6\udcdfe.en"
        assert (done.stdout != b"") == (code == 0)
    if err:
        assert done.stderr.decode().splitlines()[-1].startswith(f"error: {err}")


# ---- Training on text that could harm a terminal ---------------------------------------------------------------------


@pytest.mark.slow
def test_training_shows_text_from_outside_harmlessly(call, tiny, tmp_path: Path) -> None:
    harm = "\x1b[2J\r\x9b31m\u202e\u2028step 99 done\x00 "
    for side in ("en", "de"):
        lines = (tiny.folder / f"dev.{side}").read_text().splitlines()
        (tmp_path / f"\x1b[1m\ndev.{side}").write_text("".join(f"{harm}{line}\n" for line in lines), newline="\n")
    options = ("--train.steps", 2, "--train.eval_every", 1, "--data.length_buckets", 1)
    options += ("--data.dev_source", tmp_path / "\x1b[1m\ndev.en", "--data.dev_target", tmp_path / "\x1b[1m\ndev.de")
    done = call("train.py", "--config", tiny.config, "--workdir", tmp_path / "run", *options)
    assert done.code == 0, done.err
    assert "  source      \\x1b[2J\\r\\x9b31m\\u202e\\u2028step 99 done" in done.err
    assert all(char.isprintable() or char == "\n" for char in done.err)
    assert read_set(str(tmp_path / "run"), "dev")[0] == "\x1b[1m\ndev.en"


@pytest.mark.parametrize("name", ["a{b}.en", "{0}", "[bold]x[/]", "[/]", "\x1b[2Jx"])
def test_a_bar_shows_any_name_of_a_file(monkeypatch, name: str) -> None:
    """Some of these names have a meaning in format strings or in rich's markup."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with bar(f"tokenising {name}", 1, "pairs") as show:
        show(1)
    assert f"tokenising {plain(name)}" in sys.stderr.getvalue()


# ---- Folders that are created ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["export", "convert"])
def test_a_full_disk_leaves_no_half_folder(call, trained: Path, tmp_path: Path, full_after, verb: str) -> None:
    if verb == "export":
        pytest.importorskip("safetensors")
    arguments = {"export": ("--to", "hf-marian"), "convert": ("--kv-heads", 1)}[verb]
    (tmp_path / "there").mkdir()
    for out in ("new/out", "there"):
        with full_after(30_000):
            done = call("transformer", verb, trained, tmp_path / out, *arguments)
        assert done.code == 2 and done.err.startswith("error: ") and "too large" in done.err.lower()
        assert len(done.err.splitlines()) == 1
        assert [path.name for path in tmp_path.rglob("*")] == ["there"]
        done = call("transformer", verb, trained, tmp_path / out, *arguments)
        assert done.code == 0, done.err
        assert not list(tmp_path.rglob("*.tmp")) and len(list((tmp_path / out).iterdir())) >= 2
        if out == "new/out":
            (tmp_path / "new").rename(tmp_path.parent / f"{tmp_path.name}-{verb}")


def test_a_workdir_may_have_a_name_that_is_no_utf8(call, workdir: Path, tmp_path: Path) -> None:
    name, other, third = (os.fsdecode(os.fsencode(tmp_path) + b"/w\xf6" + end) for end in (b"", b".1", b".2"))
    workdir.rename(name)
    for command in (
        ("evaluate.py", "--workdir", name),
        ("transformer", "average", name, "--last", 2),
        ("transformer", "convert", name, other, "--kv-heads", 1),
        ("transformer", "export", name, third, "--to", "hf-marian"),
    ):
        done = call(*command)
        assert done.code == 0, done.err
    assert Checkpoints(other).complete("average") and (Path(third) / "model.safetensors").exists()
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("home", [None, "~nobody-of-this-name"])
def test_a_home_that_is_not_known_is_told_in_one_line(call, tiny, tmp_path: Path, monkeypatch, home) -> None:
    monkeypatch.setenv("TRANSFORMER_CACHE", home or "~/cache")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 54_321)  # not in passwd
    done = call("train.py", "--config", tiny.config, "--workdir", tmp_path / "run")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "your home folder is not known; set HOME, or TRANSFORMER_CACHE" in done.err


# ---- Damaged files of a workdir -------------------------------------------------------------------------------------

NESTED = [
    "[" * 200_000,
    '{"a":' * 200_000,
    "9" * 6_000,
    '{"a": ' + "9" * 6_000 + "}",
    "null",
    "",
    "[1e999]",
    '"\\ud800"',
]


@pytest.mark.parametrize("content", [*NESTED, '{"dev": 3}', '{"dev": {"name": "x"}, "test": []}', '{"test": {}}'])
def test_sets_of_any_content_end_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets/sets.json").write_text(content)
    with pytest.raises(UserError, match="give --source FILE --reference FILE") as error:
        read_set(str(tmp_path))
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("content", [*NESTED, "{}", "[]", '{"files": 3}', '{"bytes": {"x": 1}}', '{"x": {"bytes": 1}}'])
def test_records_of_a_cache_of_any_content_are_passed_over(tmp_path: Path, content: str) -> None:
    """The cache entry is made again."""
    for name in ("meta.json", "manifest.json", "x"):
        (tmp_path / name).write_text(content)
    with pytest.raises((ValueError, KeyError)):
        tokens.TokenStore(tmp_path)


@pytest.mark.parametrize("content", NESTED)
def test_configs_of_any_content_end_in_one_line(content: str) -> None:
    with pytest.raises(UserError, match=r"^config\.json: ") as error:
        from_json(content)
    assert len(str(error.value)) < 500


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(["model", "data", "train", "dev", "test", "name", "source", "d_model", "cross_attention"]),
            inner,
        )
    ),
)


@given(JSON.map(json.dumps) | st.text())
def test_any_text_is_a_config_or_a_user_error(text: str) -> None:
    try:
        from_json(text)
    except UserError as error:
        assert len(str(error)) < 1_000


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_file_is_one_of_sets_or_a_user_error(tmp_path_factory, content: bytes) -> None:
    workdir = tmp_path_factory.getbasetemp() / "any"
    (workdir / "sets").mkdir(parents=True, exist_ok=True)
    (workdir / "sets/sets.json").write_bytes(content)
    with contextlib.suppress(UserError):
        assert all(isinstance(entry["name"], str) for entry in known_sets(str(workdir)).values())
