import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer.config import UserError
from transformer.data import text
from transformer.data.text import Parallel, count_lines, fingerprint, read_lines, read_pairs, sha256


def write(path, data):
    data = data.encode() if isinstance(data, str) else data
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return str(path)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_lines_end_at_newline_only(tmp_path, name):
    inside = "one\u0085two\u2028three\u2029four\x0cfive\x0bsix\rseven\x1ceight"
    path = write(tmp_path / name, f"\ufeff{inside}\n\nwindows\r\n \ufeffkept\nlast")
    assert list(read_lines(path)) == [inside, "", "windows", " \ufeffkept", "last"]


def test_a_last_line_counts_with_and_without_its_newline(tmp_path):
    assert list(read_lines(write(tmp_path / "a", "x\ny"))) == list(read_lines(write(tmp_path / "b", "x\ny\n")))
    assert list(read_lines(write(tmp_path / "c", ""))) == []
    assert list(read_lines(write(tmp_path / "d", "\n"))) == [""]


def test_invalid_utf8_names_file_and_line(tmp_path):
    path = write(tmp_path / "latin", b"good\nna\xefve\n")
    with pytest.raises(UserError, match=r"latin:2: byte 0xef is not valid UTF-8.*iconv"):
        list(read_lines(path))


def test_missing_folder_and_damaged_files(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such file"):
        list(read_lines(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r": is a folder; name a file in it$"):
        list(read_lines(tmp_path))
    whole = gzip.compress("\n".join(map(str, range(10_000))).encode())
    for name, data in (
        ("cut.gz", whole[: len(whole) // 2]),
        ("bad.gz", whole[:200] + b"xx"),
        ("junk.gz", whole + b"junk"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name):
            list(read_lines(tmp_path / name))


def test_a_file_cut_short_names_the_line_that_it_ends_in(tmp_path):
    lines = [f"line {i} {i * 7919 % 10_007}" for i in range(2_000)]
    whole = gzip.compress("".join(f"{line}\n" for line in lines).encode())
    for size in (20, len(whole) // 3, len(whole) - 4):
        (tmp_path / "cut.gz").write_bytes(whole[:size])
        read = []
        with pytest.raises(UserError, match=r"cut\.gz:\d+: damaged or not a gzip file") as error:
            for line in read_lines(tmp_path / "cut.gz"):
                read.append(line)
        assert read == lines[: len(read)]
        assert f"cut.gz:{len(read) + 1}: " in str(error.value)
        assert "\n" not in str(error.value)
    assert read == lines  # only the checksum at the end was missing


@pytest.mark.parametrize(("n_source", "n_target"), [(3, 5), (5, 3), (0, 2), (4, 3)])
def test_unequal_counts_name_both_files_and_counts(tmp_path, n_source, n_target):
    source = write(tmp_path / "a.en", "x\n" * n_source)
    target = write(tmp_path / "a.de", "y\n" * n_target)
    with pytest.raises(UserError) as error:
        list(read_pairs(Parallel(source, target)))
    assert f"{source} has {n_source} lines" in str(error.value)
    assert f"{target} has {n_target}" in str(error.value)


def test_a_separator_inside_a_line_does_not_shift_the_pairs(tmp_path):
    source = write(tmp_path / "a.en", "one\u0085still one\ntwo\u2028\n")
    target = write(tmp_path / "a.de.gz", "eins\nzwei\n")
    assert list(read_pairs(Parallel(source, target))) == [("one\u0085still one", "eins"), ("two\u2028", "zwei")]


@pytest.mark.parametrize("end", ["", ".gz"])
def test_tsv_and_jsonl(tmp_path, end):
    tsv = write(tmp_path / f"a.tsv{end}", 'a "b\tc\n\tx\n')
    assert list(read_pairs(Parallel(tsv))) == [('a "b', "c"), ("", "x")]
    rows = [{"en": "a\tb", "de": "ä", "id": 1}, {"de": "two\nlines", "en": "x\u2028y"}]
    jsonl = write(tmp_path / f"a.jsonl{end}", "".join(json.dumps(row) + "\n" for row in rows))
    assert list(read_pairs(Parallel(jsonl), ("en", "de"))) == [("a\tb", "ä"), ("x\u2028y", "two lines")]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.tsv", "a\tb\nno tab here\n", r"a\.tsv:2: no tab"),
        ("a.tsv.gz", "a\tb\n\n", r"a\.tsv\.gz:2: no tab"),
        (
            "a.tsv",
            "1\ta\tb\n2\tc\td\n",
            r"a\.tsv:1: 3 columns, but each line must hold source, a tab, target; .*cut -f2,3",
        ),
        ("a.tsv", "a\tb\nc\td\te f\tg\n", r"a\.tsv:2: 4 columns, but .*; remove a stray tab, or select"),
        ("a.tsv", "a\tb\t\n", r"a\.tsv:1: 3 columns"),
        ("a.tsv", "a b\tc\rd\te\rf\tg\r", r"a\.tsv: its lines end with carriage returns alone, .* tr "),
        ("a.jsonl", '{"source": "a"}\r' * 3, r"a\.jsonl: its lines end with carriage returns alone"),
        ("a.tsv", "source\ttarget\na\tb\n", r"a\.tsv:1: a header, but .*; remove it: tail -n \+2"),
        ("a.jsonl", '{"source": "a", "target": "b"}\n{"source": \n', r"a\.jsonl:2: not a JSON object"),
        ("a.jsonl", '["a", "b"]\n', r"a\.jsonl:1: not a JSON object"),
        ("a.jsonl", f'{{"source": "a", "target": "b", "id": {"9" * 5_000}}}', r"a\.jsonl:1: not a JSON object"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl:1: not a JSON object"),
        ("a.jsonl", '{"source": "a", "german": "b"}\n', r"a\.jsonl:1: no field 'target' \(it has source, german\)"),
        ("a.jsonl", '{"a\\nb": "", "größe": ""}\n', r'a\.jsonl:1: no field \'source\' \(it has "a\\nb", größe\)'),
        ("a.jsonl", '{"source": "a", "target": 3}\n', r"a\.jsonl:1: field 'target' must be a string, not 3"),
        ("a.jsonl", '{\n  "source": "a",\n', r"a\.jsonl:1: not a JSON object; .* in one line, with jq -c \.$"),
        ("a.jsonl", '[{"source": "a", "target": "b"}]', r"a\.jsonl:1: not a JSON object; .*jq -c '\.\[\]'"),
        (
            "a.jsonl",
            '{"source": "a", "target": "b", "source": "c"}\n',
            r'a\.jsonl:1: the key "source" occurs twice in one object; remove one of them',
        ),
        (
            "a.jsonl",
            '{"source": "a", "target": "b", "x": [{"y": 1, "y": 1}]}\n',
            r'a\.jsonl:1: the key "y" occurs twice',
        ),
        (
            "a.jsonl",
            '{"x": {"en": "a", "de": "b"}, "id": 1}',
            r"a\.jsonl:1: no field 'source' \(it has id, x\.en, x\.de\)",
        ),
        (
            "a.jsonl",
            json.dumps({f"k{i}": i for i in range(1000)}),
            r"a\.jsonl:1: no field 'source' \(it has k0, k1, .*, k11, \.\.\.\); set data\.fields",
        ),
        (
            "a.jsonl",
            '{"source": {"en": "a"}, "target": "b"}',
            r"a\.jsonl:1: field 'source' must be a string, not an object; name a field of it, such as source\.en",
        ),
        ("a.jsonl", '{"source": ["a"], "target": "b"}', r"a\.jsonl:1: field 'source' must be a string, not a list$"),
        (
            "a.jsonl",
            '{"source": ' + '{"x": ' * 400 + "1" + "}" * 401,
            r"a\.jsonl:1: field 'source' must be a string, not an",
        ),
        ("a.jsonl", '{"source": "a\\ud800", "target": "b"}\n', r"a\.jsonl:1: field 'source' holds half a surrogate"),
    ],
)
def test_wrong_rows_name_file_and_line(tmp_path, name, data, message):
    with pytest.raises(UserError, match=message) as error:
        list(read_pairs(Parallel(write(tmp_path / name, data))))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "fields", "expected"),
    [
        ({"translation": {"en": "a", "zh": "b"}}, ("translation.en", "translation.zh"), ("a", "b")),
        ({"t.en": "flat", "t": {"en": "a", "de": "b"}}, ("t.en", "t.de"), ("flat", "b")),
        ({"a": {"b.c": "x", "b": {"c": "y"}}, "a.b": {"c": "z"}}, ("a.b.c", "a"), ("x", None)),
        ({"a": {"b": 1}, "a.b": {"c": "z"}, "s": "q"}, ("a.b.c", "s"), ("z", "q")),
        ({"a": {"": "x"}, "": {"b": "y"}}, ("a.", ".b"), ("x", "y")),
        ({"a": ["x", "y"]}, ("a.0", "a.1"), (None, None)),
        ({"a": {"b": None}, "s": "q"}, ("a.b", "s"), (None, "q")),
        ({"a": {}}, ("a.b", "a."), (None, None)),
    ],
)
def test_nested_fields(tmp_path, row, fields, expected):
    path = write(tmp_path / "a.jsonl", json.dumps(row) + "\n")
    if None in expected:
        with pytest.raises(UserError, match=r"a\.jsonl:1: (no field|field) '"):
            list(read_pairs(Parallel(path), fields))
    else:
        assert list(read_pairs(Parallel(path), fields)) == [expected]


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "b", "a.b", "", "."]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(row=st.dictionaries(st.sampled_from(["a", "b", "a.b", "", "."]), JSON, max_size=3))
def test_each_field_that_an_error_names_can_be_read(row):
    """Every name that an error lists can be read. If two fields have the same name, the flat one counts."""
    assert text.read_json(json.dumps(row)) == row
    for name in text.field_names(row):
        text.value_at(row, name)  # raises no KeyError
    for name, value in row.items():
        assert text.value_at(row, name) is value


def test_files_that_do_not_go_together(tmp_path):
    plain, tsv = write(tmp_path / "a.en", "a\n"), write(tmp_path / "a.tsv", "a\tb\n")
    with pytest.raises(UserError, match="no target"):
        read_pairs(Parallel(plain))
    with pytest.raises(UserError, match="holds both sides"):
        read_pairs(Parallel(tsv, plain))
    with pytest.raises(UserError, match="holds both sides"):
        read_pairs(Parallel(plain, tsv))
    with pytest.raises(UserError, match=r"a\.en: is also the source; name the file of its translations"):
        read_pairs(Parallel(plain, str(tmp_path / "." / "a.en")))


def test_fingerprint_is_of_the_content_and_how_it_is_read(tmp_path):
    (tmp_path / "b").mkdir()
    a = Parallel(write(tmp_path / "x.en", "a\n"), write(tmp_path / "x.de", "b\n"))
    b = Parallel(write(tmp_path / "b/y.txt", "a\n"), write(tmp_path / "b/z.txt", "b\n"))
    assert fingerprint(a) == fingerprint(b)
    assert fingerprint(a) != fingerprint(Parallel(a.target, a.source))
    assert fingerprint(Parallel(write(tmp_path / "t.tsv", "a\tb\n"))) != fingerprint(
        Parallel(write(tmp_path / "t.jsonl", "a\tb\n"))
    )
    assert sha256(a.source) == "87428fc522803d31065e7bce3cf03fe475096631e5e07bbd7a0fde60c4cf25c7"  # sha256sum


@pytest.mark.parametrize("content", ["", "a", "a\n", "a\nb", "\n\n", "a\u2028b\r\nc\x0cd\n"])
@pytest.mark.parametrize("name", ["text", "text.gz"])
def test_lines_are_counted_as_they_are_read(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith("gz") else content.encode())
    assert count_lines(path) == len(list(read_lines(path)))


def test_counting_tells_of_a_damaged_file_as_reading_does(tmp_path):
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"line\n" * 1000)[:-20])
    with pytest.raises(UserError, match="damaged or not a gzip file"):
        count_lines(tmp_path / "cut.gz")
