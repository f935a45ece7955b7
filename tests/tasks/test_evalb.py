"""The scorer of trees against EVALB's own output, and against counts by hand."""

import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer.config import UserError
from transformer.data.trees import Tree, parse
from transformer.tasks.evalb import (
    COLLINS,
    ERROR,
    SKIPPED,
    Parameters,
    _crossing,
    compared,
    read_parameters,
    score,
    summary,
)

SAMPLE = Path(os.environ.get("TRANSFORMER_DATA", "-")) / "treebank" / "evalb_sample"
GOLD = "(S (NP-SBJ (DT The) (NN cat)) (VP (VBZ sleeps)) (. .))"


def write(folder: Path, name: str, *lines: str) -> str:
    (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return str(folder / name)


def scored(folder: Path, gold: list[str], test: list[str], parameters: Parameters | None = None) -> list:
    files = write(folder, "gold.mrg", *gold), write(folder, "test.mrg", *test)
    return list(score(*files, parameters or Parameters(deleted={"."})))


@pytest.mark.skipif(not SAMPLE.exists(), reason="needs $TRANSFORMER_DATA/treebank/evalb_sample")
def test_every_line_of_evalbs_sample(call) -> None:
    files = [SAMPLE / name for name in ("sample.gld", "sample.tst")]
    done = call("transformer", "evalb", *files, "--parameters", SAMPLE / "sample.prm")
    assert done.code == 0 and done.out == (SAMPLE / "expected.rsl").read_text()
    done = call("transformer", "evalb", *files, "--parameters", SAMPLE / "sample.prm", "--json")
    assert json.loads(done.out)["len<=40"]["complete"] == 50
    collins = read_parameters(str(SAMPLE / "COLLINS.prm"))
    assert collins.digest() == COLLINS.digest() != read_parameters(str(SAMPLE / "sample.prm")).digest()
    assert collins.labelled and collins.same_label["PRT"] == collins.same_label["ADVP"] and "." in collins.deleted


def test_counts_by_hand(tmp_path: Path) -> None:
    test = "(S (NP (DT The)) (X (NN cat) (VP (VBD sleeps))))"
    (one,) = scored(tmp_path, [GOLD], [test])
    # Gold: S 0-3, NP 0-2, VP 2-3. Test: S 0-3, NP 0-1, X 1-3, VP 2-3. X crosses NP 0-2. The full stop is deleted.
    assert one[1:] == (4, 0, 2, 3, 4, 1, 3, 2)
    assert scored(tmp_path, [GOLD], [test], Parameters(labelled=False, deleted={"."}))[0].matched == 2
    same = Parameters(deleted={"."}, same_label={"VBD": "V", "VBZ": "V"})
    assert scored(tmp_path, [GOLD], [test], same)[0].right_tags == 3


def test_brackets_are_a_multiset_and_empty_ones_are_left_out(tmp_path: Path) -> None:
    gold, test = "(S (NP (NP (N a))) (NP (-NONE- *)))", "(S (NP (N a)))"
    (one,) = scored(tmp_path, [gold], [test], Parameters(deleted={"-NONE-"}))
    assert (one.matched, one.gold, one.test, one.words) == (2, 3, 2, 1)
    assert summary([one]).complete == 0 and summary([one]).recall == pytest.approx(100 * 2 / 3)


def test_errors_and_skipped_sentences_are_in_no_figure(tmp_path: Path) -> None:
    found = scored(tmp_path, [GOLD] * 3, ["", GOLD.replace("cat", "dog"), GOLD])
    assert [one.status for one in found] == [SKIPPED, ERROR, 0]
    assert summary(found)[:6] == (3, 1, 1, 1, 100, 100)
    assert summary(found[:2])[4:] == (0.0,) * 8
    with pytest.raises(UserError, match=r"test\.mrg:2: its words are not those of .*; that is error 1, and"):
        scored(tmp_path, [GOLD] * 2, [GOLD, "(X (Y z))"], Parameters(most_errors=0))


def test_sentences_without_a_word_of_the_test_tree_are_skipped(tmp_path: Path) -> None:
    """As EVALB does, which counts the words that are left: of a failed parse, and of punctuation alone."""
    punctuation = "(X (. .) (. !))"
    found = scored(tmp_path, [GOLD, punctuation, GOLD, punctuation], ["(())", punctuation, punctuation, GOLD])
    assert [one.status for one in found] == [SKIPPED, SKIPPED, SKIPPED, ERROR]
    assert found[1].length == 2
    gold, test = parse(punctuation, "gold"), parse("(X (N .) (. !))", "test")
    assert compared(1, gold, test, COLLINS).status == ERROR
    assert compared(1, gold, test, COLLINS, by_gold_tags=True)[2:] == (0,) * 7


def test_gold_tags_may_decide_which_words_are_deleted() -> None:
    gold, test = parse(GOLD, "gold"), parse("(S (NP (DT The) (. cat)) (X (VBZ sleeps) (NN .)))", "test")
    assert compared(1, gold, test, COLLINS).status == ERROR
    # Both: S 0-3, NP 0-2, and VP or X 2-3. The tag of "cat" is wrong.
    assert compared(1, gold, test, COLLINS, by_gold_tags=True)[2:] == (0, 2, 3, 3, 0, 3, 2)
    assert compared(1, gold, gold, COLLINS, by_gold_tags=True) == compared(1, gold, gold, COLLINS)
    assert compared(1, gold, parse("(S (DT The))", "test"), COLLINS, by_gold_tags=True).status == ERROR
    # Without a tree, as where a model's numbers are not finite, all brackets are missed.
    assert compared(1, gold, [], COLLINS).status == SKIPPED
    assert compared(1, gold, [], COLLINS, by_gold_tags=True)[2:] == (0, 0, 3, 0, 0, 3, 0)


@settings(max_examples=300)
@given(st.integers(1, 12), st.data())
def test_crossing_brackets_are_those_of_a_plain_count(words: int, data: st.DataObject) -> None:
    spans = st.integers(0, words - 1).flatmap(lambda b: st.tuples(st.just("X"), st.just(b), st.integers(b + 1, words)))
    gold, test = (data.draw(st.lists(spans, max_size=8)) for _ in range(2))

    def cross(one: tuple, other: tuple) -> bool:
        return one[1] < other[1] < one[2] < other[2] or other[1] < one[1] < other[2] < one[2]

    assert _crossing(gold, test, words) == sum(any(cross(one, other) for other in gold) for one in test)


def test_many_brackets_are_compared_in_near_linear_time() -> None:
    """A comparison of each with each would take an hour."""
    words = 100_000
    gold, test = ([("X", i, words) for i in range(words)], [("X", 0, i + 1) for i in range(words)])
    assert _crossing(gold, test, words) == words - 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("(S (N a)", "x:1: 1 closing brackets are missing"),
        ("(S (N a)))", "x:1: a closing bracket too many, behind '( N a ) )'"),
        ("(S (N a) b)", "x:1: the word 'b' has no tag"),
        ("(N a b)", "x:1: the word 'b' has no tag"),
        ("a", "x:1: 'a' stands outside of all brackets"),
    ],
)
def test_trees_that_cannot_be_read(text: str, told: str) -> None:
    with pytest.raises(UserError) as error:
        parse(text, "x:1")
    assert str(error.value).startswith(told)


def test_trees_and_their_spans() -> None:
    (tree,) = parse("( (S (NP (N a) (N b)) (V c)))", "x")
    assert tree.label == "" and tree.children[0].children[1] == Tree("V", [], "c")
    assert [(node.label, begin, end) for node, begin, end in tree.spans()] == [
        *(("N", 0, 1), ("N", 1, 2), ("NP", 0, 2), ("V", 2, 3), ("S", 0, 3), ("", 0, 3)),
    ]
    deep = parse("(A " * 50_000 + "(N a)" + ")" * 50_000, "x")
    assert sum(1 for _ in deep[0].spans()) == 50_001


@pytest.mark.parametrize(
    ("line", "told"), [("DELETE_LABEL", "DELETE_LABEL"), ("LABELED yes", "LABELED yes"), ("OTHER 1", "OTHER 1")]
)
def test_wrong_parameters(tmp_path: Path, line: str, told: str) -> None:
    with pytest.raises(UserError, match=rf"p\.prm:2: not a line of EVALB's parameters: '{told}'"):
        read_parameters(write(tmp_path, "p.prm", "# a comment", line))


def test_labels_of_quotes_are_passed_over_with_a_word(tmp_path: Path, caplog) -> None:
    path = write(tmp_path, "nk.prm", "QUOTE_LABEL ``", "QUOTE_LABEL ''", "DELETE_LABEL TOP")
    assert read_parameters(path) == Parameters(deleted={"TOP"})
    assert [message.partition(": ")[2][:30] for message in caplog.messages] == ["QUOTE_LABEL is passed over, so"]


def test_lines_that_end_with_carriage_returns_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a b.mrg.gz"
    path.write_bytes(gzip.compress(f"{GOLD}\r{GOLD}\r{GOLD}\r".encode()))
    told = rf"a b\.mrg\.gz: its lines end with carriage .* convert it with: gzip -dc '{path}' \| tr '.r' '.n' > NEW$"
    with pytest.raises(UserError, match=told):
        list(score(str(path), str(path), COLLINS))


def test_an_empty_file_of_parameters_is_refused(tmp_path: Path, call) -> None:
    tree = write(tmp_path, "gold.mrg", GOLD)
    done = call("transformer", "evalb", tree, tree, "--parameters", write(tmp_path, "p.prm"))
    assert done.code == 2
    assert done.err == f"error: {tmp_path}/p.prm: empty; give a file of EVALB's parameters, such as COLLINS.prm\n"


def test_files_that_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"test\.mrg: has 1 lines, and .*gold\.mrg has more; give one tree a line"):
        scored(tmp_path, [GOLD] * 2, [GOLD])
    with pytest.raises(UserError, match=r"gold\.mrg: has 1 lines, and .*test\.mrg has more; remove its blank line 2$"):
        scored(tmp_path, [GOLD], [GOLD, ""])
    with pytest.raises(UserError, match=r"is a folder; name a file in it$"):
        list(score(str(tmp_path), str(tmp_path), Parameters()))
    with pytest.raises(UserError, match=r"gold\.mrg:1: a blank line; each line must hold a tree"):
        scored(tmp_path, [""], [GOLD])
    with pytest.raises(UserError, match=r"gold\.mrg: empty; give a file with a tree a line"):
        scored(tmp_path, [], [])
    told = r"test\.mrg:1: 1 closing brackets are missing; each line must hold a whole tree: write one that takes"
    with pytest.raises(UserError, match=told):
        scored(tmp_path, [GOLD] * 2, ["(S (NN a)", "(NN b))"])
