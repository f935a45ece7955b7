"""A model whose log-probabilities are not finite: warned of, counted, and never output as a translation or a score."""

import io
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from whole_passes import CONFIG, Numbers, tiny, translator

from transformer.config import UserError
from transformer.inference.stream import score_jsonl, translate_jsonl, translate_stream
from transformer.inference.tally import Tally
from transformer.inference.translator import Hypothesis, Translator

LINES = ["4 6", "", "5 6", "7", "5"]
WARNING = "line 13: the model's scores are not finite, so there is no translation or score (2 of 5 lines)"


def breaking(at=(5,), value=np.nan, others=(), **decode):
    """A translator with NaN scores for sources with one of these pieces. Source and output tables are separate."""
    whole = translator(seeds=(0, *others), **decode)
    model, params = tiny(CONFIG, 0)
    table = params["embedding"]["table"].at[jnp.array(at)].set(value)
    pairs = list(zip(whole.models, whole.all_params, strict=True))[1:]
    return Translator(model, {**params, "embedding": {"table": table}}, Numbers(), whole.config, pairs)


def strict(text):
    """Read JSON as other readers do, without NaN and Infinity."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30], ids=str)
@pytest.mark.parametrize(
    "decode",
    [{}, {"beam_size": 1}, {"n_best": 3}, {"sample": True, "n_best": 2}, {"length_normalization": "none"}],
    ids=str,
)
def test_translations_are_told_and_counted(decode, value, caplog):
    whole, ours = translator(**decode), breaking(value=value, **decode)
    assert ours.translate(LINES, first_line=11) == [
        "" if "5" in line else text for line, text in zip(LINES, whole.translate(LINES, first_line=11), strict=True)
    ]
    assert caplog.messages == [WARNING]
    assert ours.tally == Tally(all=4, broken=2) and whole.tally == Tally(all=4)
    found = ours.translate_n_best(LINES)
    assert found[1] == [] and len(found[0]) == ours.config.n_best
    for i in (2, 4):
        (only,) = found[i]
        assert only == Hypothesis("", only.score, []) and math.isnan(only.score)
    assert ours.tally == Tally(all=8, broken=4)
    ours.tally.refuse()


def test_wishes_that_nothing_obeys_are_told_and_are_no_fault_of_numbers(caplog):
    """Constraints that exclude each other: each of ten pieces at most once, and more than ten pieces."""
    ours = translator(no_repeat_ngram=1, min_length=20, max_extra_length=30)
    assert ours.translate(["4", "", "5"], first_line=7) == ["", "", ""]
    (message,) = caplog.messages
    assert message.startswith("line 7: no translation obeys decode.banned, no_repeat_ngram")
    assert message.endswith("(2 of 3 lines)")
    assert ours.tally == Tally()


def test_one_broken_model_breaks_an_ensemble(caplog):
    ours = breaking(others=(1,))
    assert [bool(text) for text in ours.translate(LINES, first_line=11)] == [True, False, False, True, False]
    assert caplog.messages == [WARNING]


def test_given_translations_are_told_and_counted(caplog):
    ours = breaking()
    scored = ours.score(LINES, ["9"] * 5, first_line=11)
    assert [math.isfinite(one.score) for one in scored] == [True, True, False, True, False]
    assert caplog.messages == [WARNING] and ours.tally == Tally(all=5, broken=2)


@pytest.mark.parametrize("details", [False, True])
@pytest.mark.parametrize("n_best", [1, 2])
def test_json_has_null_and_no_nan(n_best, details):
    given = "".join(json.dumps({"source": line}) + "\n" for line in LINES).encode()
    out = io.BytesIO()
    assert translate_jsonl(breaking(n_best=n_best), io.BytesIO(given), out, details=details) == 5
    records = strict(out.getvalue().decode())
    for line, record in zip(LINES, records, strict=True):
        whole = bool(line) and "5" not in line
        assert (record["score"] is not None, bool(record["translation"])) == (whole, whole)
        assert ("alignment" in record) == (details and whole)
        assert len(record.get("n_best", "x")) == (n_best if whole or n_best == 1 else 0)


def test_scores_of_given_translations_are_null_where_they_are_no_numbers():
    given = "".join(json.dumps({"source": line, "target": "9 8"}) + "\n" for line in LINES).encode()
    out = io.BytesIO()
    score_jsonl(breaking(), io.BytesIO(given), out)
    records = strict(out.getvalue().decode())
    assert [record["score"] is None for record in records] == [False, False, True, False, True]
    assert [set(record["log_probs"]) == {None} for record in records] == [False, False, True, False, True]


def test_where_all_are_broken_it_is_an_error():
    ours, out = breaking(at=range(3, 14)), io.BytesIO()
    ours.tally.refuse()  # nothing was translated yet
    translate_stream(ours, io.BytesIO(b"\n\n"), out)
    ours.tally.refuse()  # nor were blank lines
    translate_stream(ours, io.BytesIO(b"4\n\n5 6\n"), out)
    assert out.getvalue() == b"\n" * 5
    with pytest.raises(
        UserError, match=r"^no score of 2 sentences is a number: the parameters of this model are broken"
    ):
        ours.tally.refuse()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("value", [np.nan, 1e30, -np.inf])
def test_a_model_of_such_parameters_alone_finds_nothing_in_any_type(dtype, value):
    from transformer.model import build
    from transformer.model.rounding import in_type

    _, params = tiny(CONFIG, 0)
    config, params = in_type(CONFIG, jax.tree.map(lambda x: jnp.full_like(x, value), params), dtype)
    ours = Translator(build(config.with_vocabulary(14)), params, Numbers(), translator().config)
    assert ours.translate(["4", "5 6"]) == ["", ""] and ours.tally == Tally(all=2, broken=2)
