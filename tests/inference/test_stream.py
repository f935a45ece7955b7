import gzip
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from whole_passes import translator

from transformer.config import DecodeConfig, UserError
from transformer.data.opening import open_stream
from transformer.inference import stream
from transformer.inference.scorer import Scored
from transformer.inference.stream import answer_texts, score_jsonl, translate_jsonl, translate_stream
from transformer.inference.translator import Hypothesis


class Capitals:
    """A translator that writes capitals, and records which lines came together."""

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
        ("\ufeffa\n\ufeffb\n".encode(), "A\n\ufeffB\n".encode()),  # a byte order mark before the first line is not text
        (b"a\r\r\n", b"A\r\n"),
    ],
)
def test_as_many_lines_out_as_in(source, expected):
    assert translated(source)[0] == expected


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"source": "a"}', "line 1 is a JSON object and is translated as text; --jsonl translates its field 'source'"),
        (
            '{"translation": {"en": "a"}}',
            "line 1 is a JSON object and is read as text; to read one of its fields, such",
        ),
        *(("{source", None), ("{" * 100_000, None), ("[1]", None), ("", None)),
    ],
)
def test_an_object_that_is_translated_as_text_is_told(caplog, line, told):
    assert translated(f"{line}\n{line}\n".encode())[0] == f"{line}\n{line}\n".upper().encode()
    assert [message[: len(told)] for message in caplog.messages] == [told] if told else not caplog.messages


def test_a_tab_is_told_where_it_has_no_meaning(caplog):
    translated(b"a\tb\nc\td\n")
    for tabs in (False, True):
        answer_texts(io.BytesIO(b"a\tb\n"), io.BytesIO(), lambda lines, first: lines, tabs=tabs)
    told = (
        "line 1 has a tab and is read as one text; to read one column of a file, such as the first, write it to a file"
    )
    assert caplog.messages == [f"{told} first: cut -f 1 FILE > NEW"] * 2


@pytest.mark.parametrize(("line", "told"), [('{"a": 1}', 1), ("{a} b", 0), ("[1]", 0), ("", 0)])
def test_an_object_that_is_labelled_or_parsed_as_text_is_told(caplog, line, told):
    target = io.BytesIO()
    answer_texts(io.BytesIO(f"{line}\n{line}\n".encode()), target, lambda lines, first: lines)
    assert target.getvalue() == f"{line}\n{line}\n".encode()
    assert [message[:54] for message in caplog.messages] == [
        "line 1 is a JSON object and is read as text; to read o"
    ] * told


def test_what_is_not_utf8_is_told_once_and_counted(caplog):
    translated("a\n\ufffd\n".encode() + b"b\xff\nc\n\xc3\n")
    assert caplog.messages == [
        "line 3: not valid UTF-8; invalid bytes are read as U+FFFD",
        "2 of 5 lines were not valid UTF-8",
    ]


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


def test_packed_input_that_breaks_off_ends_in_one_line():
    """Complete lines before the break are translated; half a line is not."""
    packed = gzip.compress("".join(f"line {i}\n" for i in range(20_000)).encode())[:-20]
    target = io.BytesIO()
    with pytest.raises(UserError, match=r"the input is damaged or not a gzip file \(it is truncated\)"):
        translate_stream(Capitals(), open_stream(io.BytesIO(packed)), target)
    lines = target.getvalue().decode().split("\n")
    assert 10_000 < len(lines) <= 20_000
    assert lines == [*(f"LINE {i}" for i in range(len(lines) - 1)), ""]


def seconds(line: bytes) -> float:
    """The shortest measured time to read one line."""

    def read() -> float:
        began = time.perf_counter()
        assert list(stream._chunks(io.BytesIO(line))) == [[line]]
        return time.perf_counter() - began

    return min(read() for _ in range(3))


def test_a_line_takes_time_in_proportion_to_its_length(monkeypatch):
    monkeypatch.setattr(stream, "CHUNK_SECONDS", 0.0)
    short, long = seconds(b"x" * (1 << 21)), seconds(b"x" * (1 << 25))
    assert long < 4 * 16 * short + 0.5  # quadratic time is 256 times as long


@given(st.lists(st.sampled_from([b"\n", b"", b"a", b"\r", b"bc\n"]), max_size=12))
@settings(deadline=None, database=None, derandomize=True)
def test_lines_do_not_depend_on_how_they_arrive(parts):
    class Parts(io.RawIOBase):
        def readinto(self, buffer):
            while left:
                if part := left.pop(0):
                    buffer[: len(part)] = part
                    return len(part)
            return 0

        def readable(self):
            return True

    left, content = list(parts), b"".join(parts)
    expected = content.split(b"\n")
    expected = expected if expected[-1] else expected[:-1]
    assert [line for lines in stream._chunks(io.BufferedReader(Parts())) for line in lines] == expected


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
    """If the reader held the lock of standard input, the interpreter would abort at its exit."""
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


# --- JSON lines


class Scoring(Capitals):
    """A translator whose n best are the sentence in capitals, once, twice, …; it also scores pieces."""

    def __init__(self, n_best=1):
        super().__init__()
        self.config = DecodeConfig(n_best=n_best)
        self.prefixes = []

    def encode(self, sentences, first_line=1):
        return [sentence.split() for sentence in sentences]

    def translate_n_best(self, sentences, *, first_line=1, prefixes=None):
        self.calls.append((first_line, list(sentences)))
        self.prefixes.append(prefixes)
        begun = prefixes or [""] * len(sentences)
        return [
            [Hypothesis(p + s.upper() * m, -m / 2, s.split()) for m in range(1, self.config.n_best + 1)]
            if s.strip()
            else []
            for s, p in zip(sentences, begun, strict=True)
        ]

    def score(self, sentences, translations, *, first_line=1):
        self.calls.append((first_line, list(sentences)))
        return self.score_pieces(self.encode(sentences), self.encode(translations))

    def score_pieces(self, sources, targets):
        return [
            Scored(tuple(t), (-0.5,) * len(t), -float(len(t)), (*s, "</s>"), tuple(range(len(s))))
            for s, t in zip(sources, targets, strict=True)
        ]


def answered(function, records, translator=None, **options):
    """The output as objects. `records`: input objects or lines."""
    lines = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in records]
    target = io.BytesIO()
    source = io.BytesIO("\n".join(lines).encode())
    count = function(translator or Scoring(), source, target, **options)
    out = target.getvalue().decode()
    assert count == out.count("\n") == len(records)
    return [json.loads(line) for line in out.split("\n")[:-1]]


def test_json_lines_keep_their_fields_and_their_order():
    records = [
        {"id": 7, "source": "ä b", "meta": {"x": [1, None, "\u2028"]}, "a": 1.5},
        {"source": " "},
        {"source": "c"},
    ]
    found = answered(translate_jsonl, records)
    assert found == [
        records[0] | {"translation": "Ä B", "score": -0.5},
        {"source": " ", "translation": "", "score": None},
        {"source": "c", "translation": "C", "score": -0.5},
    ]
    assert list(found[0]) == ["id", "source", "meta", "a", "translation", "score"]
    # Fields of these names in the input are replaced.
    assert answered(translate_jsonl, [{"score": 1, "source": "c", "translation": "x"}]) == [found[2]]
    assert answered(translate_jsonl, []) == []


def test_n_best_and_details_of_json_lines():
    found = answered(translate_jsonl, [{"source": "a b"}, {"source": ""}], Scoring(n_best=2))
    assert found[0]["n_best"] == [{"translation": "A B", "score": -0.5}, {"translation": "A BA B", "score": -1.0}]
    assert (found[0]["translation"], found[0]["score"]) == ("A B", -0.5)
    assert found[1] == {"source": "", "translation": "", "score": None, "n_best": []}
    found = answered(translate_jsonl, [{"source": "a b"}, {"source": ""}, {"source": "c"}], details=True)
    details = {"pieces": ["a", "b"], "log_probs": [-0.5] * 2, "source_pieces": ["a", "b", "</s>"], "alignment": [0, 1]}
    assert found[0] | details == found[0]
    assert not {"pieces", "n_best"} & set(found[1])
    assert found[2]["pieces"] == ["c"]


def test_prefixes_of_json_lines():
    translator = Scoring()
    found = answered(translate_jsonl, [{"source": "a", "prefix": "x"}, {"source": "b"}], translator)
    assert [record["translation"] for record in found] == ["xA", "B"]
    assert translator.prefixes == [["x", ""]]
    answered(translate_jsonl, [{"source": "a", "prefix": ""}, {"source": "b"}], translator)
    assert translator.prefixes[1:] == [None]


def test_pairs_of_json_lines_are_scored():
    records = [{"target": "x y", "source": "a", "id": 1}, {"source": "", "target": ""}]
    found = answered(score_jsonl, records)
    details = {"pieces": ["x", "y"], "log_probs": [-0.5, -0.5], "source_pieces": ["a", "</s>"], "alignment": [0]}
    assert found[0] == records[0] | {"score": -2.0} | details
    nothing = {"pieces": [], "log_probs": [], "source_pieces": ["</s>"], "alignment": []}
    assert found[1] == records[1] | {"score": 0.0} | nothing


@pytest.mark.parametrize(
    ("function", "line", "told"),
    [
        (translate_jsonl, "{", "not JSON"),
        (
            translate_jsonl,
            "",
            "not JSON (Expecting value: line 1 column 1 (char 0)); each line must be an object; this one is blank: rem",
        ),
        (translate_jsonl, '{"source": "a", "x": NaN}', "not JSON"),
        (translate_jsonl, '{"source": "a", "x": 1e999}', "not JSON"),
        (translate_jsonl, '{"source": ' + "[" * 100_000 + "]" * 100_000 + "}", "not JSON"),
        (translate_jsonl, '{"source": "a", "source": "b"}', 'the key "source" occurs twice in one object'),
        (translate_jsonl, '{"source": "a", "x": {"ä": 1, "ä": 1}}', 'the key "\\u00e4" occurs twice in one object'),
        (score_jsonl, '{"source": "a", "target": "b", "target": "b"}', 'the key "target" occurs twice in one object'),
        (translate_jsonl, '["a"]', "not a JSON object; each line must be one; convert a list of objects to lines"),
        (
            score_jsonl,
            "[",
            "not JSON (Expecting value: line 1 column 2 (char 1)); each line must be an object; convert a",
        ),
        (translate_jsonl, "3", "not a JSON object"),
        (translate_jsonl, "{}", "no field 'source'; each object needs source"),
        (translate_jsonl, '{"source": 3}', "the field 'source' must be a string"),
        (translate_jsonl, '{"source": null}', "the field 'source' must be a string"),
        (translate_jsonl, '{"source": "a", "prefix": ["b"]}', "the field 'prefix' must be a string"),
        (score_jsonl, '{"source": "a"}', "no field 'target'; each object needs source and target"),
        (score_jsonl, '{"target": "a"}', "no field 'source'; each object needs source and target"),
        (score_jsonl, '{"source": "a", "target": 1}', "the field 'target' must be a string"),
    ],
)
def test_errors_name_the_line(monkeypatch, function, line, told):
    """Lines are counted from the beginning of the input. The results of earlier lines are written."""
    monkeypatch.setattr(stream, "CHUNK_LINES", 2)
    good = '{"source": "a", "target": "b"}'
    target = io.BytesIO()
    with pytest.raises(UserError) as error:
        function(Scoring(), io.BytesIO("\n".join([good] * 3 + [line, good]).encode()), target)
    assert str(error.value).startswith(f"line 4: {told}") and "\n" not in str(error.value)
    assert target.getvalue().count(b"\n") == 2


def test_half_a_character_in_json_is_a_question_mark_where_it_is_translated():
    """In other fields it stays unchanged."""
    line = '{"source": "a\\ud800", "x": "\\udfff", "target": "\\udc00", "prefix": "\\ud800"}'
    (found,) = answered(translate_jsonl, [line])
    handed_on = {"x": "\udfff", "target": "\udc00"}
    assert found == {"source": "a?", "prefix": "?", "translation": "?A?", "score": -0.5} | handed_on
    assert answered(score_jsonl, [line])[0]["pieces"] == ["?"]


def test_a_line_that_is_cut_is_told_of_once(caplog):
    """With details, its pieces are computed a second time."""
    records = [{"source": ""}, {"source": "4 5 6 7"}]
    found = answered(translate_jsonl, records, translator(max_source_length=3), details=True)
    assert len(found[1]["pieces"]) > 3
    assert [r.getMessage() for r in caplog.records] == ["line 2: 4 pieces, cut to decode.max_source_length = 3"]
