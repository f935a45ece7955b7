"""evaluate.py --breakdown: where translations go wrong."""

import pytest

from transformer.tasks.breakdown import breakdown, lines_of

SOURCES = ["Mr Smith has 12 dogs", "the old house", "a b c d e f g h i j k l", ""]
REFERENCES = ["Herr Smith hat 12 Hunde", "das alte Haus", "a b c d e f g h i j k m", "leer"]
OTHERS = ["Herr Smith besitzt 12 Hunde", "das alte Haus", "a b c d e f g h i j k m", "leer"]
OURS = ["Herr Smith hat 21 Hunde Hunde", "das alte Haus", "a b a b", ""]


@pytest.fixture(scope="module")
def found() -> dict:
    return breakdown(SOURCES, [6, 4, 13, 1], OURS, [REFERENCES], "none")


def test_groups_by_source_length(found) -> None:
    groups = found["by_source_length"]
    assert [(group["pieces"], group["sentences"]) for group in groups] == [("0-9", 3), ("10-19", 1)]
    assert [group["length_ratio"] for group in groups] == [pytest.approx(9 / 9), pytest.approx(4 / 12)]
    assert groups[0]["bleu"] > groups[1]["bleu"]
    (last,) = breakdown(["x"] * 2, [60, 400], ["x"] * 2, [["x"] * 2], "none")["by_source_length"]
    assert (last["pieces"], last["sentences"]) == ("60-", 2)


def test_kept_and_copied_words(found) -> None:
    assert found["kept"] == {"words": 13, "share": pytest.approx(3 / 13)}  # Smith, 12 and a to k; Smith, a and b
    assert found["kept_numbers"] == {"words": 1, "share": 0.0}
    assert found["copied"] == {"translations": pytest.approx(3 / 12), "references": pytest.approx(12 / 20)}


def test_sentences_that_look_wrong(found) -> None:
    assert found["repeating"] == {"translations": 2, "references": 0}
    assert (found["empty"], found["short"], found["long"], found["exact"]) == (1, 2, 0, 1)


def test_wrong_words(found) -> None:
    assert dict(found["too_often"]) == {"21": 1, "Hunde": 1, "a": 1, "b": 1}
    assert dict(found["missing"]) == {"12": 1, "leer": 1, **dict.fromkeys("cdefghijkm", 1)}


def test_a_word_of_any_reference_is_right() -> None:
    one = breakdown(SOURCES, [6, 4, 13, 1], ["Herr Smith besitzt 12 Hunde", *OURS[1:]], [REFERENCES, OTHERS], "none")
    assert "besitzt" not in dict(one["too_often"])
    assert one["exact"] == 2


def test_nothing_to_count_is_none() -> None:
    empty = breakdown(["1"], [2], [""], [[""]], "none")
    assert (empty["length_ratio"], empty["kept"]["share"], empty["copied"]["translations"]) == (None, None, None)
    assert "words: none of the reference's" in list(lines_of(empty))


def test_lines_show_control_characters_harmlessly() -> None:
    lines = list(lines_of(breakdown(["a"], [2], ["\x1b[2J"], [["b"]], "none")))
    assert any("\\x1b[2J 1" in line for line in lines)
    assert "b 1" in lines[-1]
