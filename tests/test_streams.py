"""Standard streams that are closed, full or of another encoding; signals that end a program; untrusted text."""

from __future__ import annotations

import errno
import json
import logging
import os
import pty
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer.command_line.log import Format
from transformer.config import UserError
from transformer.memory import enough_memory
from transformer.streams import one_line, plain, to_json

ROOT = Path(__file__).parents[1]
ANY_TEXT = st.text(st.characters(codec=None))  # halves of surrogate pairs, too

# ---- Programs under bad streams -------------------------------------------------------------------------------------

# Prints a result and a log line. With an argument it first reads its input, or waits until it is ended.
PROGRAM = """
import logging, signal, sys, time
from transformer.command_line import run

def main(arguments):
    log = logging.getLogger("transformer")
    if arguments == ["read"]:
        print(len(sys.stdin.buffer.read()))
    if arguments == ["wait"]:
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            log.warning("cleaning up")
            time.sleep(0.5)
            open("cleaned", "w").close()
    log.warning("b\\u00e4d \\udcf6")
    print("r\\u00e9sult \\udcf6")

run(main)
"""


@pytest.fixture
def shell(environment, tmp_path: Path):
    """`shell("$P > out")`: run a command line in which $P is the program above, and return its result."""
    (tmp_path / "program.py").write_text(PROGRAM)

    def shell(line: str, **more: str) -> subprocess.CompletedProcess:
        variables = environment | {"P": f"{sys.executable} program.py", "PYTHONUNBUFFERED": ""} | more
        done = subprocess.run(["bash", "-c", line], capture_output=True, env=variables, cwd=tmp_path, timeout=60)
        assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr
        return done

    return shell


LOGGED, RESULT = "warning: bäd \\udcf6\n", "résult \\udcf6\n"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_what_an_encoding_lacks_is_spelt_out(shell, encoding: str) -> None:
    done = shell("$P", PYTHONIOENCODING=encoding)
    assert done.returncode == 0
    assert done.stdout.decode(encoding) == RESULT.encode(encoding, "backslashreplace").decode(encoding)
    assert done.stderr.decode(encoding) == LOGGED.encode(encoding, "backslashreplace").decode(encoding)


@pytest.mark.parametrize(
    ("line", "code", "out", "err"),
    [
        ("$P > /dev/full", 2, "", LOGGED + "error: standard output cannot be written (No space left on device); "),
        ("$P >&-", 2, "", LOGGED + "error: standard output cannot be written (Bad file descriptor); "),
        ("$P <&- >&-", 2, "", LOGGED + "error: standard output cannot be written (Bad file descriptor); "),
        ("PYTHONUNBUFFERED=1 $P > /dev/full", 2, "", LOGGED + "error: standard output cannot be written (No space"),
        ("$P 2> /dev/full", 0, RESULT, ""),
        ("$P 2>&-", 0, RESULT, ""),
        ("$P <&- >&- 2>&-", 2, "", ""),
        ("$P > /dev/full 2>&1", 2, "", ""),
        ("$P read <&-", 2, "", "error: standard input cannot be read (Bad file descriptor); "),
        ("$P read <&- 2>&-", 2, "", ""),
        ("$P read > out <&-", 2, "", "error: standard input cannot be read (Bad file descriptor); "),
        ("$P | true; exit ${PIPESTATUS[0]}", 141, "", LOGGED),
    ],
)
def test_streams_that_are_closed_or_full(shell, line: str, code: int, out: str, err: str) -> None:
    done = shell(line, PYTHONIOENCODING="utf-8")
    if code == 141 and done.returncode == 0:
        return  # everything was printed before the reader left
    assert (done.returncode, done.stdout.decode()) == (code, out)
    assert done.stderr.decode().startswith(err) and done.stderr.count(b"\n") == err.count("\n") + (err[-1:] > "\n")


def test_the_number_of_a_closed_stream_is_not_given_to_a_file(shell, tmp_path: Path) -> None:
    """Otherwise the output of libraries would go into the next file that is opened."""
    (tmp_path / "program.py").write_text(
        "import os\nfrom transformer.command_line import run\n"
        "def main(_):\n    with open('file', 'wb') as file:\n        number = file.fileno()\n"
        "    open('number', 'w').write(str(number))\n"
        "run(main)"
    )
    shell("$P <&- >&- 2>&-")
    assert int((tmp_path / "number").read_text()) > 2


def test_a_pipe_that_does_not_wait_loses_nothing(environment, tmp_path: Path) -> None:
    program = "from transformer.command_line import run\nrun(lambda _: print('x' * 1_000_000))"
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=writing, stderr=subprocess.PIPE, env=environment)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        assert len(file.read()) == 1_000_001
    assert process.stderr.read() == b"" and process.wait() == 0


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        ("OSError(errno.ENOSPC, 'No space left', 'a/file')", 2, "error: a/file: No space left; fix that, then run"),
        ("PermissionError(errno.EACCES, 'Permission denied', 'a')", 2, "error: a: Permission denied; fix that"),
        ("MemoryError()", 2, "error: memory ran out (MemoryError); end other programs"),
        ('RuntimeError("can\'t start new thread")', 2, "error: memory ran out (RuntimeError: can't start new thread)"),
        ("__import__('pathlib').Path('~no-such-user/x').expanduser()", 2, "error: a path begins with ~, but that home"),
        ("UserError('a\\nb\\x1b[2J')", 2, "error: a b\\x1b[2J"),
        ("SystemExit(0)", 0, ""),
        ("FileNotFoundError(errno.ENOENT, 'No such file', 'a')", 1, None),
        ("RuntimeError('a bug')", 1, None),
        ("ValueError('a bug')", 1, None),
    ],
)
def test_how_a_program_ends(environment, error: str, code: int, told: str | None) -> None:
    """A failure of the machine ends it with one line, a bug with a traceback."""
    program = (
        "import errno\nfrom transformer.config import UserError\nfrom transformer.command_line import run\n"
        f"def main(_):\n    raise {error}\nrun(main)"
    )
    variables = environment | {"JAX_PLATFORMS": "cpu"}  # must not be called the reason
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=variables)
    assert done.returncode == code
    if told is None:
        assert done.stderr.startswith("Traceback")
    else:
        assert done.stderr.startswith(told) and done.stderr.count("\n") == (told != "")


# ---- Signals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_program_in_order(environment, tmp_path: Path, number: int) -> None:
    """Only once: a second signal does not interrupt the cleanup."""
    process = waiting(environment, tmp_path)
    process.send_signal(number)
    assert process.stderr.readline() == b"warning: cleaning up\n"
    process.send_signal(number)
    process.send_signal(signal.SIGHUP)
    assert process.stderr.read().decode() == f"{signal.Signals(number).name}: interrupted\n"
    assert process.wait() == 128 + number
    assert (tmp_path / "cleaned").exists()


IN_A_CALLBACK = """
import gc, os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored from birth where the tests run in the background
from transformer.command_line import run

left = [1, 2]

def callback(*_):
    if left:
        left.pop()
        os.kill(os.getpid(), int(sys.argv[1]))

def main(arguments):
    gc.callbacks.append(callback)
    for _ in range(200):
        gc.collect()
        time.sleep(0.05)

run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_where_no_error_can_be_raised_is_not_lost(environment, number: int) -> None:
    """Such as in a callback of the garbage collector: JAX has one."""
    command = [sys.executable, "-c", IN_A_CALLBACK, str(int(number))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    told = "interrupted" if number == signal.SIGINT else f"{signal.Signals(number).name}: interrupted"
    # A signal that is sent again after the end of `run` ends the interpreter as such; a shell shows the same code.
    assert done.returncode in (128 + number, -number) and done.stderr == f"{told}\n"


@pytest.mark.parametrize(("number", "told"), [(signal.SIGTERM, "SIGTERM: interrupted"), (signal.SIGINT, "interrupted")])
def test_a_signal_that_a_library_turns_into_an_error_ends_the_program(environment, number: int, told: str) -> None:
    """As an extension module does while it is imported."""
    program = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored from birth where the tests run in the background
from transformer.command_line import run

def main(arguments):
    try:
        os.kill(os.getpid(), int(sys.argv[1]))
    except BaseException as error:
        raise ImportError("an error in the extension") from error

run(main)
"""
    command = [sys.executable, "-c", program, str(int(number))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (128 + number, f"{told}\n")


SLOW_IMPORT = """
import os, signal, sys, time
try:
    os.kill(os.getpid(), {number})
    time.sleep({seconds})
    print("imported", flush=True)
except BaseException:
    print("broken off", flush=True)
    raise
"""


@pytest.mark.parametrize(("number", "told"), [(signal.SIGTERM, "SIGTERM: interrupted"), (signal.SIGINT, "interrupted")])
@pytest.mark.parametrize(("seconds", "printed"), [(0.2, "imported\n"), (60, "broken off\n")])
def test_a_signal_waits_for_the_end_of_an_import_but_not_for_ever(
    environment, tmp_path: Path, number: int, told: str, seconds: float, printed: str
) -> None:
    """Extension modules print tracebacks, or end the process, if their import is interrupted."""
    (tmp_path / "slow.py").write_text(SLOW_IMPORT.format(number=int(number), seconds=seconds))
    program = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored from birth where the tests run in the background
from transformer.command_line import program

def main(arguments):
    import slow
    time.sleep(60)

program._LONGEST_IMPORT = 1.0
program.run(main)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, printed, f"{told}\n")


DURING_AN_IMPORT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored from birth where the tests run in the background

def hook(event, arguments):
    if event == "import" and arguments[0] == "{module}":
        os.kill(os.getpid(), signal.SIGINT)

sys.addaudithook(hook)
"""


@pytest.mark.parametrize(
    ("module", "program"),
    [
        ("transformer.config.model", ["-m", "transformer"]),
        ("transformer.config.model", ["train.py"]),
        ("transformer.streams", ["evaluate.py"]),
        ("transformer.streams", ["-c", "from transformer.programs import train; train()"]),  # as a script of pip
    ],
)
def test_ctrl_c_ends_a_program_that_is_being_imported(environment, tmp_path: Path, module: str, program) -> None:
    (tmp_path / "sitecustomize.py").write_text(DURING_AN_IMPORT.format(module=module))
    variables = environment | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{environment['PYTHONPATH']}"}
    command = [sys.executable, *program, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_a_package_that_imports_ours_keeps_its_ctrl_c(environment, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "__init__.py").write_text("import transformer")
    program = "import signal\nprint(signal.getsignal(signal.SIGINT) == signal.SIG_DFL)"
    (tmp_path / "theirs" / "__main__.py").write_text(program)
    first = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)"
    (tmp_path / "sitecustomize.py").write_text(first)
    variables = environment | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{environment['PYTHONPATH']}"}
    done = subprocess.run([sys.executable, "-m", "theirs"], capture_output=True, text=True, env=variables, timeout=60)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


def test_ctrl_c_after_the_end_of_a_program_raises_nothing(environment) -> None:
    """As while its error is printed: nothing is left that could catch another one."""
    program = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored from birth where the tests run in the background
from transformer.command_line import run
from transformer.config import UserError

class Slow:
    def write(self, text):
        os.write(2, text.encode())
        os.kill(os.getpid(), signal.SIGINT)

def main(arguments):
    sys.stderr = Slow()
    raise UserError("a mistake")

run(main)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "error:")


def test_a_hangup_is_ignored_under_nohup(environment, tmp_path: Path) -> None:
    process = waiting(environment, tmp_path, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.terminate()
    assert process.wait() == 143


def test_a_terminal_that_goes_ends_a_program_in_order(environment, tmp_path: Path) -> None:
    """Then nothing can write to it any more, neither a signal handler nor other code."""
    ours, theirs = pty.openpty()

    def on_terminal() -> None:
        import fcntl
        import termios

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    options = {"stdin": theirs, "stderr": theirs, "start_new_session": True, "preexec_fn": on_terminal}
    process = waiting(environment, tmp_path, **options)
    os.close(theirs)
    os.close(ours)  # closes the terminal: the system sends SIGHUP
    assert process.wait(30) == 129
    assert (tmp_path / "cleaned").exists()


def waiting(environment, folder: Path, **options) -> subprocess.Popen:
    """The waiting program."""
    (folder / "program.py").write_text(PROGRAM)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    process = subprocess.Popen([sys.executable, "program.py", "wait"], env=environment, cwd=folder, **pipes)
    assert process.stdout.readline() == b"ready\n"
    return process


# ---- Text from outside ----------------------------------------------------------------------------------------------

FORGED = "x\nwarning: forged\r\x1b[2J\x9b1m\u202eabc\u2028\x85\x00"


@given(ANY_TEXT)
def test_plain_text_is_harmless_and_ordinary_text_stays(text: str) -> None:
    shown = plain(text)
    shown.encode()
    harmful = [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c != "\t"]
    assert not harmful and not any("\u202a" <= c <= "\u202e" or "\u2066" <= c <= "\u2069" for c in shown)
    assert plain(shown) == shown
    if text.isprintable():
        assert shown == text


@pytest.mark.parametrize("text", ["grün, 日本語\u3000x", "a\tb", "می\u200cخواهم", "👩\u200d🔬", "1\u202f000\xa0€"])
def test_ordinary_text_of_any_script_is_shown_as_it_is(text: str) -> None:
    assert plain(text) == text


@given(ANY_TEXT)
def test_a_message_is_one_line(text: str) -> None:
    assert "\n" not in one_line(text) and len(one_line(text).splitlines()) <= 1


@pytest.mark.parametrize("given", [FORGED, Path("a") / FORGED, UserError(FORGED)])
def test_the_log_shows_text_from_outside_harmlessly(given: object) -> None:
    """Text that is put into a log line cannot start a new line."""
    record = logging.LogRecord("x", logging.INFO, "", 0, "one\ntwo %s, %d, %.1f, %r\n", (given, 3, 0.5, FORGED), None)
    shown = Format().format(record)
    assert len(shown.split("\n")) == 3
    assert shown.startswith("one\ntwo ") and "\\x1b[2J" in shown and "\\u202e" in shown
    assert all(char.isprintable() or char == "\n" for char in shown)
    # A line without arguments, too.
    record = logging.LogRecord("x", logging.WARNING, "", 0, "100 % \x1b[2J", None, None)
    assert Format().format(record) == "warning: 100 % \\x1b[2J"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | ANY_TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(ANY_TEXT, inner),
)


@given(VALUES)
def test_json_is_utf8_and_holds_what_it_was_given(value: object) -> None:
    assert all(char == plain(char, keep="") for char in to_json(value))
    written = to_json(value).encode()
    assert b"\n" not in written
    # Two adjacent surrogate halves are read back as one character; nothing else changes.
    assert json.loads(written) == json.loads(json.dumps(value))


# ---- Memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("RESOURCE_EXHAUSTED: allocating 10 bytes"),
        RuntimeError("INTERNAL: Error dispatching computation: YNNPACK operation failed: error"),
        ImportError("libx.so: failed to map segment from shared object"),
        ValueError("INTERNAL: std::bad_alloc"),
    ],
)
def test_too_little_memory_is_told_with_the_fix(error: Exception) -> None:
    with pytest.raises(UserError, match=r"^memory ran out \(.+\); do this$"), enough_memory("do this"):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a bug"),
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("RESOURCE_EXHAUSTED: writing x: No space left on device"),
        UserError("Out of memory"),
    ],
)
def test_other_errors_stay_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as found, enough_memory("do this"):
        raise error
    assert found.value is error
