"""Trees: read from files, cleaned, as sequences of symbols and back, as training rows; raw text as words."""

import gzip
import json
import random
from pathlib import Path

import nltk
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer.config import EOS, SPECIALS, UserError
from transformer.data import linearised, penn, treebank
from transformer.data.linearised import Symbols
from transformer.data.treebank import TreeBatches, TreeRows
from transformer.data.trees import Tree, cleaned, escaped, parse, read_trees
from transformer.data.wordpiece_training import train_wordpiece

LABELS, TAGS = ("NP", "S", "VP"), ("DT", "NN", "V")
WORDS = st.builds(lambda tag, word: Tree(tag, [], word), st.sampled_from(TAGS), st.sampled_from(("a", "b", "-LRB-")))
TREES = st.recursive(
    st.tuples(st.sampled_from(LABELS), st.lists(WORDS, min_size=1, max_size=3)).map(lambda parts: Tree(*parts)),
    lambda inner: st.tuples(st.sampled_from(LABELS), st.lists(st.one_of(WORDS, inner), min_size=1, max_size=3)).map(
        lambda parts: Tree(*parts)
    ),
    max_leaves=12,
)


def tree(text: str) -> Tree:
    (found,) = parse(text, "here")
    return found


def read(folder: Path, text: str) -> tuple[list[tuple[str, int]], list[str]]:
    path = folder / "x.mrg"
    path.write_text(text, encoding="utf-8")
    trees = read_trees(str(path))
    return [(str(one), line) for one, line in trees.found], [told.replace(str(path), "x") for told in trees.unusable]


# ---- Reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(S (NP (NN a)) (V b))", "(S (NP (NN a)) (V b))"),
        ("( (S (NP-SBJ-1 (NN a)) (VP=2 (V b) (NP|X (-NONE- *-1)))) )", "(S (NP (NN a)) (VP (V b)))"),
        ("( (S (NP (-NONE- *)) (S (NP (-NONE- 0))) (. .)) )", "(S (. .))"),
        ("( (S (-LRB- -LRB-) (NN a) (-RRB- -RRB-)) )", "(S (-LRB- -LRB-) (NN a) (-RRB- -RRB-))"),
        ("( (NN a) )", "(TOP (NN a))"),
        ("(NN a)", "(TOP (NN a))"),
        ("( (S (NN a)) (. .) )", "(TOP (S (NN a)) (. .))"),
        ("(S-1 (S=2 (PRP$ a)))", "(S (S (PRP$ a)))"),
    ],
)
def test_cleaned(text: str, expected: str) -> None:
    assert str(cleaned(tree(text))) == expected


def test_a_tree_of_traces_has_no_words() -> None:
    assert cleaned(tree("(S (NP (-NONE- *)))")) is None


def test_trees_take_lines_as_they_like(tmp_path: Path) -> None:
    text = "\n(S (NN a)\n\n   (NN b))  (S (NN c))\n\n( (S (NN d)) )\n(S\n(NN e)) "
    expected = [("(S (NN a) (NN b))", 2), ("(S (NN c))", 4), ("(S (NN d))", 6), ("(S (NN e))", 7)]
    assert read(tmp_path, text) == (expected, [])


def test_what_can_not_be_used_is_counted(tmp_path: Path) -> None:
    text = "(S (NN a b))\n(S (NN c))\n(S ())\n(S (NP (-NONE- *)))\n(S d)\n(S (NP e (NN f)))\n"
    found, unusable = read(tmp_path, text)
    assert found == [("(S (NN c))", 2), ("(TOP (S d))", 5)]  # a word d with the tag S
    assert [line.split(":")[1] for line in unusable] == ["1", "3", "4", "6"]
    assert unusable[0] == "x:1: the word 'b' has no tag; each word needs its own: (NN cat)"
    assert unusable[2] == "x:4: the tree holds no word"


def test_a_label_without_a_word_is_told(tmp_path: Path) -> None:
    found, unusable = read(tmp_path, "(S (DT the) (JJ) (NN cat))\n(S (NN c))\n(S (NN \u00a0))\n")
    assert found == [("(S (NN c))", 2)]
    assert unusable == [
        f"x:{line}: ({label}) holds neither a word nor a constituent" for line, label in ((1, "JJ"), (3, "NN"))
    ]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("(S (NN a))\n(S (NN b)\n(S (NN c))\n", r"x.mrg:2: 1 closing brackets are missing"),
        ("(S (NN a)))\n", r"x.mrg:1: a closing bracket too many"),
        ("x" * 9_999, r"x.mrg:1: 'x{199}\.\.\. stands outside of all brackets"),
        ("(S (NN a))\nthe cat\n", r"x.mrg:2: 'the' stands outside of all brackets"),
    ],
)
def test_brackets_that_do_not_match_end_the_reading(tmp_path: Path, text: str, error: str) -> None:
    with pytest.raises(UserError, match=error):
        read(tmp_path, text)


def test_a_deep_tree_is_no_recursion(tmp_path: Path) -> None:
    deep = "(S " * 5_000 + "(NN a)" + ")" * 5_000
    ((text, _),), _ = read(tmp_path, deep)
    assert text == deep
    symbols = Symbols("transitions", ("S",), ("NN",))
    assert str(symbols.decode(symbols.encode(tree(deep)), ["a"], ["NN"])) == deep


@settings(max_examples=100)
@given(TREES)
def test_written_and_read(one: Tree) -> None:
    assert tree(str(one)) == one


def test_brackets_within_words() -> None:
    assert escaped("f(x)") == "f-LRB-x-RRB-"


# ---- Symbols ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "expected"),
    [("transitions", "S NP . . ) VP . ) )"), ("brackets", "S NP . . )NP VP . )VP )S")],
)
def test_a_tree_as_symbols(form: str, expected: str) -> None:
    one = tree("(S (NP (DT the) (NN cat)) (VP (V sleeps)))")
    symbols = linearised.learn([one], form)
    names = dict.fromkeys(symbols.closing, ")") if form == "transitions" else {}
    names |= {symbols.shift: ".", **dict(zip(symbols.opening, LABELS, strict=True))}
    names |= {id: f"){label}" for id, label in zip(symbols.closing, LABELS, strict=False) if form == "brackets"}
    assert " ".join(names[id] for id in symbols.encode(one)) == expected
    assert symbols.shift == len(SPECIALS)
    assert symbols.size == len(SPECIALS) + 1 + (3 if form == "brackets" else 1) + 3


@settings(max_examples=100)
@given(TREES, st.sampled_from(("transitions", "brackets")))
def test_symbols_and_back(one: Tree, form: str) -> None:
    symbols, words = Symbols(form, LABELS, TAGS), list(one.words())
    ids = symbols.encode(one)
    assert symbols.decode(ids, [word.word for word in words], [word.label for word in words]) == one


@settings(max_examples=100)
@given(st.lists(st.integers(4, 10), max_size=12), st.sampled_from(("transitions", "brackets")))
def test_what_is_no_tree_is_refused(ids: list[int], form: str) -> None:
    """`decode` gives a tree over both words, or raises ValueError."""
    symbols = Symbols(form, LABELS, TAGS)
    try:
        found = symbols.decode(ids, ["a", "b"], ["NN", "V"])
    except ValueError:
        return
    assert [word.word for word in found.words()] == ["a", "b"]
    assert symbols.encode(found) == ids


def test_an_unknown_label_has_no_symbols() -> None:
    assert Symbols("transitions", ("S",), TAGS).encode(tree("(S (XX (NN a)))")) is None


def test_the_file_of_symbols() -> None:
    symbols = Symbols("brackets", LABELS, TAGS)
    assert linearised.read(symbols.file[1], "x") == symbols


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"form": "x", "labels": ["S"], "tags": ["A"]}', b"[" * 100_000, b'{"form": 1}']
)
def test_damaged_symbols(content: bytes) -> None:
    with pytest.raises(UserError, match=r"symbols\.json: not the symbols of a parser"):
        linearised.read(content, "symbols.json")


# ---- Training rows ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> TreeRows:
    pytest.importorskip("tokenizers")
    draw, lines = random.Random(0), []
    for _ in range(40):
        nouns = " ".join(f"(NN {draw.choice(['cat', 'dogs', '-LRB-', 'mice'])})" for _ in range(draw.randint(1, 6)))
        lines.append(f"( (S (NP (DT the) {nouns}) (VP (V sleeps))) )")
    path = tmp_path_factory.mktemp("trees") / "a.mrg.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    bank = treebank.read([str(path)])
    vocabulary = train_wordpiece(["the cat dogs mice sleeps ("] * 5, 40, lower_case=False)
    return TreeRows(bank, vocabulary, linearised.learn([one.tree for one in bank.sentences], "transitions"), 20)


def test_rows_have_pieces_symbols_and_tags(rows: TreeRows) -> None:
    batches = TreeBatches(rows, batch_tokens=80, accumulate=1, context=20, buckets=2, seed=0)
    seen = []
    for step in range(batches.batches_per_epoch):
        batch, shape = batches[step], batches.shape(step)
        assert {name: array.shape for name, array in batch.items()} == shape
        assert shape in batches.shapes
        lines = [int(n) for n in batches.told(step).split(":")[1].split(",")]
        for row, number in enumerate(batches.lines(step)[:, 1]):
            sentence = rows.sentences[number]
            seen.append(sentence.line)
            assert sentence.line in lines
            target = batch["target"][row]
            ids = target[: list(target).index(EOS)]
            tags = [rows.symbols.tags[tag - 1] for tag in batch["tag"][row] if tag]
            assert rows.symbols.decode(ids.tolist(), sentence.words, tags) == sentence.tree
            source = [i for i in batch["source"][row].tolist() if i]
            assert source[0] == 2  # [CLS]
            assert source[-1] == 3  # [SEP]
            # Each tag stands at the first piece of its word.
            assert np.flatnonzero(batch["tag"][row])[0] == 1
    assert sorted(seen) == list(range(1, 41))


def test_an_unknown_tag_still_begins_a_word(rows: TreeRows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "symbols", Symbols("transitions", ("S",), ("DT", "V")))
    batch = rows.with_tags([3], {"source": np.zeros((2, 20), np.int32)})
    numbers = {"DT": 1, "V": 2, "NN": 3}
    assert batch["tag"][0][batch["tag"][0] > 0].tolist() == [numbers[tag] for tag in rows.sentences[3].tags]
    assert not batch["tag"][1].any()


def test_a_part_of_a_batch_is_that_part(rows: TreeRows) -> None:
    batches = TreeBatches(rows, batch_tokens=160, accumulate=2, context=20, buckets=1, seed=0)
    whole = batches[0]
    for name, array in batches.read(0, 2, 4).items():
        np.testing.assert_array_equal(array, whole[name][2:4])


def test_too_long_and_unknown_trees_are_left_out(rows: TreeRows, tmp_path: Path) -> None:
    path = tmp_path / "b.mrg"
    path.write_text("(S (NN cat))\n(XX (NN cat))\n(S " + "(NN cat) " * 30 + ")\n")
    vocabulary = train_wordpiece(["cat"] * 3, 12, lower_case=False)
    few = TreeRows(treebank.read([str(path)]), vocabulary, rows.symbols, 20)
    assert (len(few), few.too_long, few.unknown) == (1, 1, 1)
    path.write_text("(S " + "(NN cat) " * 30 + ")\n")
    with pytest.raises(
        UserError, match=r"no sentence is left of 1: 1 are longer than data.context = 20, .*; raise data"
    ):
        TreeRows(treebank.read([str(path)]), vocabulary, rows.symbols, 20)
    path.write_text("(XX (NN cat))\n")
    with pytest.raises(UserError, match=r"b.mrg: no sentence is left of 1: .*, 1 have labels .*; give trees with the"):
        TreeRows(treebank.read([str(path)]), vocabulary, rows.symbols, 20)


def test_some_of_the_trees(tmp_path: Path) -> None:
    path = tmp_path / "c.mrg"
    path.write_text("".join(f"(S (NN w{i}))\n" for i in range(50)))
    some, again = treebank.read([str(path)], 10), treebank.read([str(path)], 10)
    lines = [one.line for one in some.sentences]
    assert len(set(lines)) == 10
    assert lines == sorted(lines)
    assert some == again
    assert len(treebank.read([str(path)], 100).sentences) == 50
    path.write_text("(S (-NONE- *))\n")
    with pytest.raises(UserError, match=r"c\.mrg: holds no tree that can be used; .*c\.mrg:1: the tree holds no word"):
        treebank.read([str(path)])


def test_a_file_without_trees_among_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mrg").write_text("(S (NN a))\n")
    (tmp_path / "b.mrg").write_text("\n")
    with pytest.raises(UserError, match=r"b\.mrg: holds no tree; leave it out, or give trees in brackets"):
        treebank.read([str(tmp_path / "a.mrg"), str(tmp_path / "b.mrg")])


def test_marks_of_joined_files_are_no_words(tmp_path: Path) -> None:
    (tmp_path / "a.mrg").write_text("\ufeff(S (NN a))\n\ufeff(S (NN b))\n")
    assert [one.words for one in treebank.read([str(tmp_path / "a.mrg")]).sentences] == [("a",), ("b",)]


def test_nltk_reads_the_same() -> None:
    one = tree("(S (NP (DT the) (-LRB- -LRB-)) (VP (V sleeps)))")
    theirs = nltk.Tree.fromstring(str(one))
    assert theirs.pos() == [(word.word, word.label) for word in one.words()]
    assert json.dumps(theirs.label()) == '"S"'


# ---- Raw text --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat sleeps.", "The cat sleeps ."),
        ('"I can\'t," he said (twice).', "`` I ca n't , '' he said ( twice ) ."),
        ("It isn’t John's; they'd go, cannot they?", "It is n't John 's ; they 'd go , can not they ?"),
        ("It costs $3,000 (3.5%) at 10:30...", "It costs $ 3,000 ( 3.5 % ) at 10:30 ..."),
        ("Mr. Smith, of the U.S., knows the dogs' names.", "Mr. Smith , of the U.S. , knows the dogs ' names ."),
        ("a — b -- c", "a -- b -- c"),
        ('He said "stop."', "He said `` stop . ''"),
        ("“He left.”", "`` He left . ''"),
        ("(He left.)", "( He left . )"),
        ("‘Hello,’ she said.", "` Hello , ' she said ."),
        ("   ", ""),
    ],
)
def test_raw_text_as_words(text: str, expected: str) -> None:
    assert " ".join(penn.words(text)) == expected
