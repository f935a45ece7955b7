"""SGML sets, recognised by name or content, give one line a segment; a truncated or wrong set, a one-line error."""

import contextlib
import gzip
import html

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer.config import UserError
from transformer.data import sgml
from transformer.data.text import Parallel, count_lines, fingerprint, read_lines, read_pairs

SOURCE = """<srcset setid="t" srclang="any">
<doc sysid="ref" docid="d1" origlang="en">
<hl>
<seg id="1">A headline</seg>
</hl>
<p>
<seg id="2">He said &quot;R&amp;D&quot; &lt;twice&gt; &#8211; at AT&T &amp;lt; 5 &copy 6 &nosuch;.</seg>
<seg id="3">
  Over several
  lines.
</seg>
</p>
</doc>
<doc docid="d2"><p><seg id="1"></seg></p><p><seg id="2"/></p></doc>
</srcset>
"""
LINES = ["A headline", 'He said "R&D" <twice> – at AT&T &lt; 5 &copy 6 &nosuch;.', "Over several lines.", "", ""]
IWSLT = """<?xml version="1.0" encoding="UTF-8"?>
<mteval>
<refset setid="dev2010" srclang="English" trglang="German">
<doc docid="69" genre="lectures">
<url>http://www.ted.com</url>
<keywords>talks, cars</keywords>
<title>Ein Titel</title>
<seg id="1"> Eins. </seg>
<seg id="2"> Zwei. </seg>
</doc>
</refset>
</mteval>
"""


def written(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize("name", ["t.en.sgm", "t.sgml", "T.SGM.gz", "t.en", "t"])
def test_one_segment_is_one_line(tmp_path, name):
    for text in (
        SOURCE,
        "\ufeff" + SOURCE,
        "\n\n" + SOURCE,
        SOURCE.replace("\n", "\r\n"),
        gzip.compress(SOURCE.encode()),
    ):
        path = written(tmp_path / name, text)
        assert list(read_lines(path)) == LINES
        assert count_lines(path) == len(LINES)


@pytest.mark.parametrize(
    "before", ["", '<?xml version="1.0"?>\n', "<!-- of WMT -->\n", '<!DOCTYPE mteval SYSTEM "mteval.dtd">\n<!-- x -->']
)
def test_other_spellings(tmp_path, before):
    text = (
        "<SRCSET SETID='t' SRCLANG=any><DOC DOCID=d1><SEG ID=1>One.</SEG >\n<!-- <seg id=9>no</seg> -->"
        "<Seg id = '2' >Two.</seg></DOC></SRCSET>"
    )
    assert list(read_lines(written(tmp_path / "a", before + text))) == ["One.", "Two."]


def test_sets_of_iwslt_and_outputs_of_systems(tmp_path):
    assert list(read_lines(written(tmp_path / "IWSLT14.TED.dev2010.en-de.de.xml", IWSLT))) == ["Eins.", "Zwei."]
    text = (
        '<tstset setid="t" srclang="en" trglang="de"><doc sysid="us" docid="d"><seg id="1">Eins.</seg></doc></tstset>'
    )
    assert list(read_lines(written(tmp_path / "a", text))) == ["Eins."]
    text = '<doc docid="d">\n<seg id="1">Eins.</seg>\n</doc>\n<doc docid="e"><seg id="1">Zwei.</seg></doc>\n'
    assert list(read_lines(written(tmp_path / "a", text))) == ["Eins.", "Zwei."]


def test_a_comment_in_a_segment_is_text(tmp_path):
    """Otherwise a comment that is not closed would swallow segments."""
    text = "<srcset><doc><seg id=1>a <!-- b</seg><seg id=2>c --> d</seg></doc></srcset>"
    assert list(read_lines(written(tmp_path / "a", text))) == ["a <!-- b", "c --> d"]


@pytest.mark.parametrize(
    "text", ["<s> is a tag\n", "<doc> begins\nno segments\n", "<seg>\n", "5 < 6\n", "&lt;srcset>\n"]
)
def test_what_is_no_set_is_text(tmp_path, text):
    assert list(read_lines(written(tmp_path / "a", text))) == text.split("\n")[:-1]


BROKEN = [
    (
        "<srcset>\n<doc docid=d>\n<seg id=1>One.\n<seg id=2>Two.</seg></doc></srcset>",
        ":3: <seg> without </seg>; the file",
    ),
    (SOURCE[: SOURCE.index("twice")], ":7: <seg> without </seg>; the file is truncated or damaged"),
    (SOURCE[: SOURCE.index("</p>")], ":1: <srcset> without </srcset>; the file is truncated or damaged"),
    (IWSLT[: IWSLT.index("</refset>")], ":3: <refset> without </refset>; the file is truncated"),
    (IWSLT[: IWSLT.index("</mteval>")], ":2: <mteval> without </mteval>; the file is truncated"),
    ("<srcset><doc>One.</seg></doc></srcset>", ":1: </seg> without <seg>; correct the file"),
    ("<srcset><doc></doc></srcset>", ": no <seg> in it; an SGML set holds"),
    ("<srcset><!-- <doc><seg>a</seg></doc></srcset>", ":1: <srcset> without </srcset>"),
    (
        SOURCE.replace("A headline", "Größe")
        .replace("Over several", "Gr\udcf6\udcdfe")
        .encode(errors="surrogateescape"),
        ":9: byte 0xf6 is not valid UTF-8; other letters are UTF-8",
    ),
    (SOURCE.replace("headline", "Größe").encode("latin1"), ":4: byte 0xf6 .*iconv -f latin1"),
    (gzip.compress(SOURCE.encode())[:-10], r":\d+: damaged or not a gzip file \(it is truncated\)"),
]


@pytest.mark.parametrize(("text", "told"), BROKEN)
def test_a_broken_set_is_told_in_one_line(tmp_path, text, told):
    path = written(tmp_path / "a.sgm", text)
    for reader in (read_lines, lambda path: [count_lines(path)]):
        with pytest.raises(UserError, match=f"a\\.sgm{told}") as error:
            list(reader(path))
        assert str(error.value).isprintable()


REFSET = '<refset setid="t" trglang="de">{}</refset>\n'
DOC = '<doc docid="d1" sysid="{}"><seg id="1">Eins {}.</seg><seg id="2">Zwei {}.</seg></doc>\n'


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (REFSET.format(DOC.format("A", 1, 1) + DOC.format("B", 2, 2)), "refset 1 A, refset 1 B"),
        (REFSET.format(DOC.format("ref", 1, 1)) + REFSET.format(DOC.format("ref", 2, 2)), "refset 1 ref, refset 2 ref"),
        (
            REFSET.format(DOC.format("ref", 1, 1)).replace("refset", "srcset") + REFSET.format(DOC.format("ref", 2, 2)),
            "src",
        ),
    ],
)
def test_several_texts_of_the_same_segments_are_not_mixed(tmp_path, text, named):
    path = written(tmp_path / "a.sgm", text)
    with pytest.raises(UserError, match=rf"a\.sgm: holds 2 texts of the same segments \({named}.*a file of its own"):
        list(read_lines(path))


def test_documents_of_several_translators_or_sets_are_one_text(tmp_path):
    docs = DOC.format("A", 1, 1) + DOC.format("B", 2, 2).replace("d1", "d2")
    for text in (REFSET.format(docs), "".join(REFSET.format(doc) for doc in docs.splitlines())):
        assert list(read_lines(written(tmp_path / "a.sgm", text))) == ["Eins 1.", "Zwei 1.", "Eins 2.", "Zwei 2."]


TARGET = SOURCE.replace("srcset", "refset").replace("A headline", "Eine Überschrift")


def pairs(folder, source, target):
    return list(read_pairs(Parallel(written(folder / "t.en.sgm", source), written(folder / "t.de.sgm", target))))


def test_pairs(tmp_path):
    assert pairs(tmp_path, SOURCE, TARGET) == list(zip(LINES, ["Eine Überschrift", *LINES[1:]], strict=True))
    # A side may be plain.
    source, target = written(tmp_path / "t.en", "".join(f"{line}\n" for line in LINES)), str(tmp_path / "t.de.sgm")
    assert list(read_pairs(Parallel(source, target))) == pairs(tmp_path, SOURCE, TARGET)
    (tmp_path / "t.en").write_text("one\n")
    with pytest.raises(UserError, match=r"t\.en has 1 lines but \S+t\.de\.sgm has 5"):
        list(read_pairs(Parallel(source, target)))


@pytest.mark.parametrize(
    ("target", "told"),
    [
        (
            TARGET.replace('<seg id="2">He', '<seg id="7">He'),
            r"segments differ: number 2 is document d1, segment 2 in the first and document d1, segment 7 in",
        ),
        (
            TARGET.replace("d2", "d3"),
            r"number 4 is document d2, segment 1 in the first and document d3, segment 1 in the second",
        ),
        (TARGET.replace('<seg id="2"/>', ""), r"t\.en\.sgm has 5 lines but \S+t\.de\.sgm has 4"),
        (
            TARGET.replace('<seg id="1">Eine Überschrift</seg>\n', ""),
            r"number 1 is document d1, segment 1 in the first and",
        ),
    ],
)
def test_segments_that_do_not_fit_are_named(tmp_path, target, told):
    for source, other in ((SOURCE, target), (target, SOURCE)):
        with pytest.raises(UserError, match=told if source == SOURCE else r"t\.en\.sgm") as error:
            pairs(tmp_path, source, other)
        assert str(error.value).isprintable()


def test_its_fingerprint_is_not_that_of_a_text_with_tags(tmp_path):
    """The caches of earlier versions hold the text with tags, under the fingerprint below."""
    a = written(tmp_path / "a.en", SOURCE)
    assert fingerprint(Parallel(a)) == fingerprint(Parallel(written(tmp_path / "a.sgm", SOURCE)))
    assert fingerprint(Parallel(a)) != "0cf44dba3a4e5e0ef368567d4d2dc6ad0c81a2c328eb689e3c0238542460ea2a"


SEGMENT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=20).map(
    lambda text: text.strip(" \t")
)


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(
    documents=st.lists(st.lists(SEGMENT, max_size=4), min_size=1, max_size=4).filter(any),
    ids=st.booleans(),
    quote=st.sampled_from(["'", '"']),
    between=st.sampled_from(["", "\n", "\r\n  ", "\n</p>\n<p>\n", "<hl>", "\n<!-- <seg> -->\n"]),
    inside=st.sampled_from(["", "\n", " \r\n "]),
)
def test_any_text_comes_out_as_it_was_written(documents, ids, quote, between, inside):
    parts = []
    for d, document in enumerate(documents):
        attribute = f" docid={quote}doc {d}{quote}" if ids else ""
        segments = [
            f"<seg{f' id={quote}{i}{quote}' if ids else ''}>{inside}{html.escape(text)}{inside}</seg>"
            for i, text in enumerate(document)
        ]
        parts.append(f"<doc{attribute}>{between.join(['', *segments, ''])}</doc>")
    text = f"<refset>{between.join(parts)}</refset>"
    expected = [(d, text) for d, document in enumerate(documents) for text in document]
    found = sgml.segments(text, "a.sgm")
    assert [segment.text for segment in found] == [text for _, text in expected]
    assert len({segment.place for segment in found}) == len(found)
    assert "\n".join(segment.text for segment in found).count("\n") == len(found) - 1


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(
    st.lists(
        st.sampled_from(
            ["<srcset>", "</srcset>", "<doc>", "</doc>", "<seg>", "</seg>", "<seg/>", "<!--", "-->", "<", "a"]
        ),
        max_size=12,
    ).map("".join)
)
def test_any_tags_are_read_or_refused(text):
    try:
        found = sgml.segments(text, "a.sgm")
    except UserError as error:
        assert "a.sgm" in str(error)
    else:
        assert found


@pytest.mark.parametrize("part", ["<!--", "<seg", "<seg>a</seg>", "<doc a=", "</", "&", "&a", " ", "\n", " \n"])
def test_long_sets_take_linear_time(part):
    """A quadratic algorithm would not end in reasonable time."""
    for before, behind in (("", ""), ("<seg ", ">b</seg>"), ("<seg>a", "b</seg>")):
        with contextlib.suppress(UserError):
            sgml.segments(f"<srcset><doc><seg>b</seg>{before}{part * 200_000}{behind}</doc></srcset>", "a.sgm")


def test_a_long_name_of_an_attribute_takes_linear_time():
    (found,) = sgml.segments(f"<srcset><doc><seg {'a' * 400_000} id=7>b</seg></doc></srcset>", "a.sgm")
    assert (found.number, found.text) == ("7", "b")


@pytest.mark.parametrize("before", ["<!---->", "<!-- a -->\n", "<!--", "<?a?>", "<!doctype a>", "<!-- > -->", " "])
def test_whatever_stands_before_the_first_element_takes_linear_time(before):
    """A regular expression that lets a comment end at several places would take exponential time."""
    for text in (f"{before * 500}hello", f"{before * 500}<b>", f"hello {before * 500}"):
        assert not sgml.is_set(text.encode())
        sgml.undecided(text.encode())


@pytest.mark.parametrize("before", ["", "\ufeff", "<?xml version='1.0'?>\n", "<!-- a > b -->\n<!DOCTYPE srcset>\n"])
def test_a_head_that_breaks_off_is_undecided_until_it_shows_what_it_is(before):
    head = f"{before}<srcset ".encode()
    assert all(sgml.undecided(head[:n]) for n in range(4 if before == "\ufeff" else 1, len(head)))
    assert not sgml.undecided(head) and sgml.is_set(head)
    assert not any(map(sgml.undecided, (b"", b"\n", b"a <", b"<3", b"< a", b"<b>", b"<!-- a --> b")))
