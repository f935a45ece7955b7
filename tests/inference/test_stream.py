import io
import os
import signal
import subprocess
import sys
import threading

import pytest

from transformer.inference import stream
from transformer.inference.stream import translate_stream


class Capitals:
    """A translator that shouts; it remembers what was asked of it together."""

    def __init__(self):
        self.calls = []

    def translate(self, sentences, *, first_line=1):
        self.calls.append((first_line, list(sentences)))
        return [sentence.upper() for sentence in sentences]


def translated(source):
    target, translator = io.BytesIO(), Capitals()
    count = translate_stream(translator, io.BytesIO(source), target)
    assert count == target.getvalue().count(b"\n") == sum(len(lines) for _, lines in translator.calls)
    return target.getvalue(), translator.calls


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (b"", b""),
        (b"a\nb\n", b"A\nB\n"),
        (b"a\nb", b"A\nB\n"),
        (b"\n", b"\n"),
        (b"\n\na\n\n", b"\n\nA\n\n"),
        (b"a\r\nb\r\n\r\n", b"A\nB\n\n"),
        ("ä\u2028b\u0085c\x0cd\re\n".encode(), "Ä\u2028B\u0085C\x0cD\rE\n".encode()),
        (b"a\xff\xc3\nb\n", "A\ufffd\ufffd\nB\n".encode()),
        ("\ufeffa\n".encode(), "\ufeffA\n".encode()),
    ],
)
def test_as_many_lines_out_as_in(source, expected):
    assert translated(source)[0] == expected


def test_a_file_goes_in_large_runs_that_know_their_line_numbers(monkeypatch):
    monkeypatch.setattr(stream, "CHUNK_LINES", 1000)
    monkeypatch.setattr(stream, "CHUNK_SECONDS", 5)
    lines = [b"line %d" % i + b" x" * (i % 40) for i in range(4321)]
    out, calls = translated(b"\n".join(lines))
    assert out.split(b"\n") == [*(line.upper() for line in lines), b""]
    assert [(first, len(run)) for first, run in calls] == [
        (1, 1000),
        (1001, 1000),
        (2001, 1000),
        (3001, 1000),
        (4001, 321),
    ]


def test_a_run_that_ends_with_the_input_is_not_waited_after(monkeypatch):
    monkeypatch.setattr(stream, "CHUNK_LINES", 2)
    assert [len(run) for _, run in translated(b"a\nb\nc\nd\n")[1]] == [2, 2]


def test_each_line_is_answered_before_the_next_is_given():
    source, given = os.pipe()
    answers, target = os.pipe()
    with open(source, "rb") as source, open(target, "wb") as target, open(answers, "rb", buffering=0) as answers:
        thread = threading.Thread(target=translate_stream, args=(Capitals(), source, target), daemon=True)
        thread.start()
        timer = threading.Timer(20, lambda: os.write(target.fileno(), b"too late"))
        timer.start()
        try:
            for line in (b"one\n", b"\n", b"three and\n"):
                os.write(given, line)
                assert answers.read(100) == line.upper()
            os.write(given, b"no line ")
            os.write(given, b"break")
        finally:
            os.close(given)
            thread.join(20)
            timer.cancel()
        assert answers.read(100) == b"NO LINE BREAK\n"
        assert not thread.is_alive()


def test_input_that_cannot_be_read_is_an_error():
    class Broken(io.RawIOBase):
        def readinto(self, buffer):
            if self.read_once:
                raise OSError("the disk is gone")
            self.read_once = True
            buffer[:4] = b"a\nb\n"
            return 4

        read_once = False

        def readable(self):
            return True

    target = io.BytesIO()
    with pytest.raises(OSError, match="the disk is gone"):
        translate_stream(Capitals(), io.BufferedReader(Broken()), target)
    assert target.getvalue() == b"A\nB\n"


PROGRAM = """
import signal, sys
from transformer.inference.stream import translate_stream
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored from birth where the tests run in the background
class Capitals:
    def translate(self, sentences, *, first_line=1):
        return [sentence.upper() for sentence in sentences]
try:
    translate_stream(Capitals(), sys.stdin.buffer, sys.stdout.buffer)
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_it_can_be_interrupted_while_it_waits_for_input(environment):
    """A reader that held the lock of standard input would abort the interpreter at its exit."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"HELLO\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert process.stderr.read() == b""
