"""Labelled texts from .tsv, .csv, .jsonl and .conll files, and one line for each mistake in them."""

import gzip
import json
import os
import subprocess
from pathlib import Path

import pytest

from transformer.config import UserError
from transformer.data.labelled import Columns, Example, read_examples
from transformer.data.text import Parallel, read_pairs

NAMED, NUMBERED, PAIR = Columns("text", None, "label"), Columns("2", None, "1"), Columns("a", "b", "label")


def read(folder: Path, name: str, content: str | bytes, columns: Columns = NAMED, kind: str = "classes") -> list:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_examples([str(path)], columns, kind)


def rows(found: list[Example]) -> list[tuple]:
    return [(one.text, one.second, one.label, one.line) for one in found]


@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("x.tsv", "label\ttext\nyes\ta b\nno\tc\n", NAMED),
        ("x.txt", "text\tlabel\tmore\na b\tyes\t1\nc\tno\t2", NAMED),
        ("x.tsv", "\ufefflabel\ttext\r\nyes\ta b\r\nno\tc\r\n", NAMED),
        ("x.csv", '"label",text\nyes,"a b"\nno,c\n', NAMED),
    ],
)
def test_tables_with_a_header(tmp_path: Path, name: str, content: str, columns: Columns) -> None:
    assert rows(read(tmp_path, name, content, columns)) == [("a b", None, "yes", 2), ("c", None, "no", 3)]


def test_tables_without_a_header_and_compressed(tmp_path: Path) -> None:
    found = read(tmp_path, "x.tsv.gz", gzip.compress(b"yes\ta b\n\nno\tc\n"), NUMBERED)
    assert rows(found) == [("a b", None, "yes", 1), ("c", None, "no", 3)]


def test_a_header_where_columns_have_numbers_is_told(tmp_path: Path, caplog) -> None:
    found = read(tmp_path, "x.tsv", "label\tsentence\nyes\ta b\nno\tc\n", NUMBERED)
    assert len(found) == 3 and caplog.messages == [
        f"line 1 of {tmp_path / 'x.tsv'} looks like a header, but is read as a text, as columns have numbers; name the "
        "columns"
    ]
    read(tmp_path, "y.tsv", "label\ta text\nyes\ta b\n", NUMBERED)
    assert len(caplog.messages) == 1


def test_pairs_and_several_files(tmp_path: Path) -> None:
    for name in ("x.tsv", "y.tsv"):
        (tmp_path / name).write_text(f"a\tb\tlabel\n{name} one\ttwo\tyes\n")
    found = read_examples([str(tmp_path / "x.tsv"), str(tmp_path / "y.tsv")], PAIR, "classes")
    assert found == [Example("x.tsv one", "two", "yes", 0, 2), Example("y.tsv one", "two", "yes", 1, 2)]


def test_quotes_of_a_csv_and_the_lines_behind_them(tmp_path: Path) -> None:
    content = 'label,text\nyes,"a ""b"",\nc"\nno,d\n'
    assert rows(read(tmp_path, "x.csv", content)) == [('a "b", c', None, "yes", 2), ("d", None, "no", 4)]
    assert rows(read(tmp_path, "x.tsv", 'label\ttext\nyes\t"a ""b"\n')) == [('"a ""b"', None, "yes", 2)]
    with pytest.raises(UserError, match=r"x\.csv:3: not a row of a \.csv \(.*\); correct its quotes"):
        read(tmp_path, "x.csv", 'label,text\nyes,a\nno,"open\nyes,b\n')
    assert len(read(tmp_path, "x.csv", f"label,text\nyes,{'a ' * 200_000}\n")) == 1
    spaced = 'label, text\nyes, "a ""b"", c"\n no, d\n'
    assert rows(read(tmp_path, "x.csv", spaced)) == [('a "b", c', None, "yes", 2), ("d", None, "no", 3)]


def test_quotes_of_a_csv_in_a_tsv_are_told(tmp_path: Path, caplog) -> None:
    """They are characters there; a text in quotation marks is not meant."""
    told = "a field is quoted as in a .csv, but in a .tsv quotes are part of the text; write it without them (pandas: "
    read(tmp_path, "x.tsv", 'label\ttext\nyes\t"said" he\nno\t"so"\n')
    assert not caplog.messages
    found = read(tmp_path, "x.tsv", 'label\ttext\nyes\t"he said ""no"""\nno\t"a ""b"" c"\n')
    assert found[0].text == '"he said ""no"""'
    (message,) = caplog.messages
    assert message == f"{tmp_path / 'x.tsv'}:2: {told}quoting=csv.QUOTE_NONE; R: quote=FALSE)"
    with pytest.raises(UserError, match=r"x\.tsv:1: the header is quoted as in a \.csv; write"):
        read(tmp_path, "x.tsv", '"label"\t"text"\n"yes"\t"a"\n')
    (tmp_path / "pairs.tsv").write_text('"A ""great"" film"\t"Ein ""guter"" Film"\n')
    assert len(list(read_pairs(Parallel(str(tmp_path / "pairs.tsv"))))) == 1
    assert told in caplog.messages[-1]


def test_a_tsv_with_all_fields_in_quotes_is_told(tmp_path: Path, caplog) -> None:
    """As R writes them, with a header or without. Two rows of direct speech are none."""
    quoted, columns = [f'"A film, {i}."\t"pos"\n' for i in range(4)], Columns("1", None, "2")
    for content in ("".join(quoted[:3]), "".join([*quoted[:3], 'a\t"pos"\n', *quoted]), '"\t"\n' * 5):
        read(tmp_path, "x.tsv", content, columns=columns)
    assert not caplog.messages
    told = f"{tmp_path / 'x.tsv'}:4: all fields are quoted as in a .csv, but in a .tsv quotes are part of the text; "
    read(tmp_path, "x.tsv", "".join(quoted), columns=columns)
    read(tmp_path, "x.tsv", "".join(["text\tlabel\n", *quoted]))
    assert [message[: len(told)] for message in caplog.messages] == [told] * 2
    (tmp_path / "pairs.tsv").write_text('"Hello"\t"Hallo"\n' * 4)
    assert len(list(read_pairs(Parallel(str(tmp_path / "pairs.tsv"))))) == 4
    assert ":4: all fields are quoted" in caplog.messages[-1]


@pytest.mark.parametrize("name", ["x.tsv", "x.csv"])
def test_files_that_were_joined_with_their_headers_are_refused(tmp_path: Path, name: str) -> None:
    head, row = ("label\ttext\n", "yes\ta\n") if name == "x.tsv" else ("label,text\n", "yes,a\n")
    with pytest.raises(UserError, match=rf"{name}:3: the header again, as in files that were joined; remove this line"):
        read(tmp_path, name, head + row + head + row)
    with pytest.raises(UserError, match=rf"{name}:3: the header again"):  # each with a byte order mark
        read(tmp_path, name, f"\ufeff{head}{row}\ufeff{head}{row}")


def test_a_mark_within_joined_files_is_no_part_of_a_label(tmp_path: Path) -> None:
    found = read(tmp_path, "x.tsv", "\ufeffyes\ta\n\ufeffno\tb\n", columns=Columns("2", None, "1"))
    assert rows(found) == [("a", None, "yes", 1), ("b", None, "no", 2)]


@pytest.mark.parametrize("tags", ["['O', 'B-X']", "[0 3]", '["O", "B-X"]'])
@pytest.mark.parametrize("name", ["x.tsv", "x.jsonl"])
def test_lists_that_were_written_as_text_are_refused(tmp_path: Path, name: str, tags: str) -> None:
    """As pandas and numpy write them into a .csv; split at spaces they would have as many tags as words."""
    row = {"text": "['a', 'b']", "label": tags}
    line = json.dumps(row) if name == "x.jsonl" else "text\tlabel\n" + "\t".join(row.values())
    with pytest.raises(UserError, match=r":[12]: the label is a list that was written as text; write such a file as"):
        read(tmp_path, name, line + "\n", kind="tags")
    assert read(tmp_path, "x.tsv", "text\tlabel\na\t[O]\n", kind="tags")[0].label == ("[O]",)
    assert read(tmp_path, "x.tsv", "text\tlabel\n[ a ]\tO B-X O\n", kind="tags")[0].text == ("[", "a", "]")


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.tsv", ""), ("x.tsv", "text\tlabel\n"), ("x.csv", "text,label\n"), ("x.jsonl", "\n"), ("x.conll", "\n")],
)
def test_an_empty_file_among_others_is_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / "good.tsv").write_text("text\tlabel\na b\tO O\n")
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name}: holds no labelled text; leave it out, or give another file"):
        read_examples([str(tmp_path / one) for one in ("good.tsv", name)], NAMED, "tags")


def test_columns_with_numbers_and_another_separator(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.csv:1: no column 2, .*; if tabs separate columns, name it \.tsv$"):
        read(tmp_path, "x.csv", "a\tb\n", columns=Columns("1", None, "2"))


def test_a_first_label_that_never_comes_again_is_told(tmp_path: Path, caplog) -> None:
    body = "".join(f"{i % 2}\ta b {i}\n" for i in range(12))
    read(tmp_path, "x.tsv", f"stars\treview\n{body}", NUMBERED)
    (told,) = caplog.messages
    assert told.startswith(f"line 1 of {tmp_path / 'x.tsv'} may be a header, but is read as a text: no other has its")
    assert told.endswith("its label, stars; if so, name the columns")
    for content in (body, f"5\ta b\n{body}", "stars\treview\n1\ta\n"):
        read(tmp_path, "y.tsv", content, NUMBERED)
    assert len(caplog.messages) == 1


def test_a_long_number_takes_no_time(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.tsv:2"):  # a quadratic search would take minutes
        read(tmp_path, "x.tsv", f"label\ttext\n{'1' * 100_000}x\ta\n", kind="regression")


def test_json_lines(tmp_path: Path) -> None:
    lines = [
        {"label": 1, "in": {"text": "a\nb"}},
        {"label": True, "in.text": "c"},
        {"label": " x ", "in": {"text": "d"}},
    ]
    found = read(tmp_path, "x.jsonl", "\n".join(map(json.dumps, lines)), Columns("in.text", None, "label"))
    assert rows(found) == [("a b", None, "1", 1), ("c", None, "true", 2), ("d", None, "x", 3)]


def test_numbers(tmp_path: Path) -> None:
    found = read(
        tmp_path, "x.jsonl", '{"text": "a", "label": -2.5e1}\n{"text": "b", "label": "3"}\n', kind="regression"
    )
    assert [float(one.label) for one in found] == [-25, 3]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.tsv", "text\tlabel\na b  c\tN V N\nd\tN\n"),
        ("x.csv", "text,label\na b c,N V N\nd,N\n"),
        ("x.jsonl", '{"text": ["a", "b", "c"], "label": ["N", "V", "N"]}\n{"text": "d", "label": "N"}\n'),
        ("x.conll", "-DOCSTART- -X-\n\na x N\nb  x\tV \nc\tx\tN\n\n\nd x N\n"),
    ],
)
def test_tags(tmp_path: Path, name: str, content: str) -> None:
    found = read(tmp_path, name, content, kind="tags")
    assert [(one.text, one.label) for one in found] == [(("a", "b", "c"), ("N", "V", "N")), (("d",), ("N",))]


@pytest.mark.parametrize("space", ["\u00a0", "\u2009", "\u3000", "\u0085", "\f", "\v", "\r"])
def test_words_end_only_at_spaces_and_tabs(tmp_path: Path, space: str) -> None:
    found = read(tmp_path, "x.conll", f"10{space}000 N\n{space} V\nb N\n", kind="tags")
    assert [(one.text, one.label) for one in found] == [((f"10{space}000", space, "b"), ("N", "V", "N"))]
    found = read(tmp_path, "x.tsv", f"text\tlabel\n10{space}000 b\tN V\n", kind="tags")
    assert [(one.text, one.label) for one in found] == [((f"10{space}000", "b"), ("N", "V"))]
    # A .conll is copied into the workdir as a .jsonl, which must give the same words.
    line = json.dumps({"text": [f" a{space}", space], "label": ["N", "V"]})
    assert read(tmp_path, "x.jsonl", line, kind="tags")[0].text == (f"a{space}", space)


def test_comments_before_a_sentence_are_no_words(tmp_path: Path) -> None:
    lines = [
        "#begin document (x); part 0",
        "",
        "# http://x",
        "# id 1\tdomain=train",
        "a _ _ O",
        "# _ _ B",
        "",
        "# sent_id = 2",
        "# text = # 5",
        "# _ _ O",
        "5 _ _ O",
        "",
        "#end document",
        "",
        "#a=b _ _ O",
    ]
    found = read(tmp_path, "x.conll", "\n".join(lines), kind="tags")
    sentences = [(("a", "#"), ("O", "B")), (("#", "5"), ("O", "O")), (("#a=b",), ("O",))]
    assert [(one.text, one.label) for one in found] == sentences


MISTAKES = {
    ("classes", NAMED): [
        ("tsv", "yes\ta\n", "1: the header has no column 'text', only 'yes', 'a'; name it with --data.text, or, if "
         "this is no header, give the numbers of the columns, such as --data.label 1 --data.text 2"),
        ("tsv", "text,label\na,x\n", "1: a single column, 'text,label'; if it is .csv, name it so"),
        ("csv", "text\tlabel\na\tx\n", "1: a single column, 'text\\tlabel'; if tabs separate columns, name it .tsv"),
        ("csv", "text,label\ra,x\rb,y\r", " its lines end with carriage returns alone, as of an old Mac; convert"),
        ("csv", "text;label\na;x\n", "1: a single column, 'text;label'; separate columns with tabs in a .tsv"),
        ("csv", '"text";"label"\n"a";"x"\n', "1: not a row of a .csv (',' expected after '\"'); separate columns"),
        ("csv", "text|label\n", "1: a single column, 'text|label'; separate columns with tabs in a .tsv"),
        ("jsonl", '{"text": "a", "label": "x\\ty"}', "1: the label has a tab in it"),
        ("txt", '{"text": "a", "label": "x"}\n', "1: a single column, '{\"text\": \"a\", "),
        ("tsv", "text\ttext\tlabel\n", "1: the header has the column 'text' twice"),
        ("tsv", "text\tlabel\na\tx\nb\n", "3: too few columns: 1, but the header has 2; add"),
        ("tsv", "text\tlabel\na\t \n", "2: the label is empty; fill it, or remove the row"),
        ("tsv", "text\tlabel\n\tx\n", "2: the text is empty; fill it, or remove the row"),
        ("tsv", b"text\tlabel\na\xff\tx\n", "2: byte 0xff is not valid UTF-8"),
        ("jsonl", '[{"text": "a"}]', "1: not a JSON object; each line must be one; convert a list of objects to lines"),
        ("jsonl", '{"text": "a", "text": "b"}', '1: the key "text" occurs twice in one object'),
        ("jsonl", '{"body": "a"}', "1: no field 'text' (it has \"body\"); name it with --data.text"),
        ("jsonl", '{"text": "\\ud800", "label": "x"}', "1: the text holds half a surrogate pair"),
        ("jsonl", '{"text": "a", "label": null}', "1: the label must be a string or a whole number, not null"),
        ("jsonl", '{"text": "a", "label": 1.0}', "1: the label must be a string or a whole number, not 1.0"),
        ("conll", "a N\n", " holds tagged words; set data.kind = 'tags'"),
    ],
    ("classes", NUMBERED): [
        ("tsv", "yes\n", "1: no column 2, as data.text says: it has 1: 'yes'"),
        ("tsv", "y\ta\ny\tb\tc\n", "2: too many columns: 3, but line 1 has 2; add or"),
    ],
    ("tags", NUMBERED): [("txt", "N\ta\n\n" * 10, " each text is a single word; if each line is a word and its tag")],
    ("classes", PAIR): [("tsv", "a\tb\tlabel\nc\t\tx\n", "2: the second is empty")],
    ("regression", NAMED): [
        ("tsv", "text\tlabel\na\t1,5\n", "2: the label is '1,5', not a number such as -2.5"),
        ("tsv", "text\tlabel\na\tnan\n", "2: the label is 'nan', not a number"),
        ("tsv", "text\tlabel\na\t1e999\n", "2: the label is '1e999', not a number"),
        ("jsonl", '{"text": "a", "label": true}', "1: the label must be a string, not true"),
    ],
    ("tags", NAMED): [
        ("tsv", "text\tlabel\na b\tN\n", "2: the label has 1 tags for 2 words; give a tag for each word"),
        ("jsonl", '{"text": [], "label": []}', "1: the text is an empty list"),
        ("jsonl", '{"text": ["a", "\\t"], "label": "N N"}', "1: the text is empty"),
        ("jsonl", '{"text": ["a", 3], "label": "N N"}', "1: the text must be a string, not 3"),
        ("jsonl", '{"text": ["a"], "label": [3]}', "1: the label must be a string, not 3; give the names of tags, not"),
        ("tsv", "text\tlabel\na\u00a0b c\tN V N\n", "2: the label has 3 tags for 2 words"),
        ("tsv", "text\tlabel\na b\tN V\u00a0\n", '2: the label has a space, a no-break space or the like in "V'),
        ("conll", "a N\n\nb x N\n", "3: too many columns: 3, but line 1 has 2; give each line the same number, with"),
        ("conll", "-DOCSTART- O\na x N\nb N\n", "3: too few columns: 2, but line 2 has 3; give"),
        ("conll", "a N\nb V\u00a0\n", '2: the label has a space, a no-break space or the like in "V'),
        ("jsonl", '{"text": ["a"], "label": ["B-x y"]}', '1: the label has a space, a no-break space or'),
        ("conll", "a N\nb\u00a0V\n", "2: a word without a tag"),
        ("conllu", "# text = a\n1-2" + "\ta" * 9 + "\n", "2: numbered words with ten columns, as in CoNLL-U; "),
        ("conll", "1" + "\t_" * 9 + "\n", "1: numbered words with ten columns, as in CoNLL-U; keep words and one tag"),
        ("txt", "Bob\tB\nruns\tO\n", "1: the header has no column 'text', only 'Bob', 'B'; name it with --data.text, "
         "or, if this is no header, give the numbers of the columns, such as --data.label 1 --data.text 2; if each "
         "line is a word and its tag, name the file .conll"),
        ("conll", "a N\nb\n", "2: a word without a tag; each line must hold a word, a space and its tag"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "columns", "ending", "content", "told"),
    [(*how, *case) for how, cases in MISTAKES.items() for case in cases],
)
def test_mistakes(tmp_path: Path, kind: str, columns: Columns, ending: str, content: str | bytes, told: str) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, f"x.{ending}", content, columns, kind)
    assert str(error.value).removeprefix(f"{tmp_path}/").startswith(f"x.{ending}:{told}")
    assert "\n" not in str(error.value)


OTHER_COLUMNS = [
    ("# http://x\n1\tAt\tO\tO\n2\tRome\tB-LOC\tO\n3\t.\tO\tO\n", "2: the first column numbers the words", "$2, $3"),
    ("0 At _ O\n1 Rome _ B-LOC\n2 . _ O\n", "1: the first column numbers the words", "$2, $3"),
    ("bc/1 0 0 At IN O\nbc/1 0 1 Rome NN B-LOC\nbc/1 0 2 . . O\n", "1: the first column is the same in all", "$4, $5"),
    ("O\tat\nB-LOC\trome\nI-LOC\tcity\n", "1: the first column holds the tags", "$2, $1"),
]


@pytest.mark.parametrize(("sentence", "told", "columns"), OTHER_COLUMNS)
def test_columns_in_another_order(tmp_path: Path, sentence: str, told: str, columns: str) -> None:
    """Those of GermEval, CoNLL-2009, CoNLL-2012 and the MIT movie corpus."""
    with pytest.raises(UserError) as error:
        read(tmp_path, "x.conll", "\n".join([sentence] * 4), kind="tags")
    assert f"x.conll:{told}" in str(error.value)
    command = f"grep -v '^#' < {tmp_path}/x.conll | awk '{{print {columns}}}' > "
    assert command in str(error.value)
    done = subprocess.run(["bash", "-c", f"{command} {tmp_path}/new.conll"], timeout=60)
    assert done.returncode == 0
    kept = read_examples([f"{tmp_path}/new.conll"], NAMED, "tags")
    assert [one.text[1].lower() for one in kept] == ["rome"] * 4


def test_words_that_look_like_other_columns(tmp_path: Path) -> None:
    for sentence in ("1 O\n2 O\n3 O\n\na O\n", "na O\nna O\nna O\n\nna O\nhey O\n", "O O\nB-2 B-2\nO O\n"):
        assert len(read(tmp_path, "x.conll", "\n".join([sentence] * 4), kind="tags")) >= 4
    assert len(read(tmp_path, "x.conll", "1 O\n2 O\n", kind="tags")) == 1


def test_texts_may_be_single_words(tmp_path: Path, caplog) -> None:
    """Without blank lines between rows, a table may well be one of single words."""
    found = read(tmp_path, "x.jsonl", '{"text": ["a"], "label": ["N"]}\n' * 12, NAMED, "tags")
    assert len(found) == 12 and not caplog.messages
    assert len(read(tmp_path, "x.tsv", "text\tlabel\n" + "a\tN\n" * 12, NAMED, "tags")) == 12
    assert "each text is a single word; if each line is a word and its tag, name the file .conll" in caplog.text


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.tsv: "):
        read_examples([str(tmp_path / "no.tsv")], NAMED, "classes")


DATA = Path(os.environ.get("TRANSFORMER_DATA", "-")) / "sst2"


@pytest.mark.skipif(not DATA.exists(), reason="needs $TRANSFORMER_DATA/sst2")
def test_the_sentences_of_film_reviews() -> None:
    found = read_examples([str(DATA / "dev.tsv.gz")], NUMBERED, "classes")
    assert len(found) == 872 and {one.label for one in found} == {"0", "1"}
