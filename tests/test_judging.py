from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer.config import Config, DecodeConfig
from transformer.judging import Judge, changes, check_progress, decoding, rank, upgraded

JUDGED = (("dev_bleu", "up"), ("dev_chrf", "up"), ("dev_loss", "down"))
NOW = {"dev_digest": "text", "scored_with": {"bleu_tokenize": "13a", **decoding(DecodeConfig())}}
# Few values, so that ties are frequent, and invalid scores.
VALUES = st.sampled_from([0.0, 1.0, 2.5, math.nan, math.inf, -math.inf, None])
SCORES = st.fixed_dictionaries({name: VALUES for name, _ in JUDGED})


def scores(*values: float | None) -> dict:
    return dict(zip(("dev_bleu", "dev_chrf", "dev_loss"), values, strict=False))


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        (scores(0, 64.8, 2.0), scores(0, 98.1, 3.0)),  # the first score that differs decides
        (scores(0, 98.1, 2.0), scores(0, 98.1, 1.0)),  # a smaller loss is better
        (scores(1, 0, 9.0), scores(2, 0, 9.0)),
        (scores(math.nan, 99, 0.1), scores(0, 0, 9.0)),
        (scores(math.inf, 99, 0.1), scores(0, 0, 9.0)),
        (scores(5, 5, -math.inf), scores(5, 5, 9.0)),
        (scores(5), scores(5, 0, 9.0)),  # as in a checkpoint of an earlier version
        (scores(None, None, 2.0), scores(None, None, 1.0)),
        (scores(True, 5, 1.0), scores(0, 5, 1.0)),
    ],
)
def test_scores_are_compared_in_turn(worse: dict, better: dict) -> None:
    assert rank(worse, JUDGED) < rank(better, JUDGED)
    judge = Judge(JUDGED, NOW, {})
    assert [judge.better(worse), judge.better(better), judge.better(worse)] == [True, True, False]
    assert (judge.best, judge.stale) == ({name: better.get(name) for name, _ in JUDGED}, 1)


def test_nothing_finite_never_wins() -> None:
    judge = Judge(JUDGED, NOW, {})
    assert not any(judge.better(scores(value, value, value)) for value in (math.nan, math.inf, None))
    assert (judge.best, judge.stale) == (None, 3)
    assert judge.better(scores(0, 0, 99.0))


@settings(deadline=None)
@given(st.lists(SCORES, max_size=12))
def test_the_best_is_the_earliest_of_the_greatest(run: list[dict]) -> None:
    judge, best = Judge(JUDGED, NOW, {}), None
    for i, found in enumerate(run):
        if judge.better(found):
            best = i
    ranks = [rank(found, JUDGED) for found in run]
    assert best == max((i for i, own in enumerate(ranks) if own), key=lambda i: (ranks[i], -i), default=None)
    assert judge.stale == (len(run) if best is None else len(run) - 1 - best)
    if best is not None:
        assert any(math.isfinite(value) for value in judge.best.values() if value is not None)


@settings(deadline=None)
@given(st.lists(SCORES, max_size=8), st.integers(0, 8))
def test_what_a_checkpoint_stores_is_enough_to_go_on(run: list[dict], cut: int) -> None:
    straight = Judge(JUDGED, NOW, {})
    whole = [straight.better(found) for found in run]
    first = Judge(JUDGED, NOW, {})
    found = [first.better(one) for one in run[:cut]]
    stored = json.loads(json.dumps(first.progress(None)))
    second = Judge(JUDGED, NOW, stored)
    assert second.reset_reasons == []
    found += [second.better(one) for one in run[cut:]]
    assert found == whole
    assert json.dumps(second.progress(None)) == json.dumps(straight.progress(None))


# ---- What scores depend on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"max_length": 3}, ["decode.max_length is 3 instead of None"]),
        (
            {"beam_size": 1, "banned": ("x",)},
            ["decode.beam_size is 1 instead of 4", "decode.banned is ['x'] instead of []"],
        ),
        ({"sample": True}, ["decode.sample is True instead of False"]),
        ({"length_penalty": 1.0}, ["decode.length_penalty is 1.0 instead of 0.6"]),
        ({"dtype": "int8"}, ["decode.dtype is int8 instead of auto"]),
        # Options that do not change translations.
        ({"batch_sentences": 1, "batch_tokens": 9, "streams": 3}, []),
        ({"n_best": 2, "temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "seed": 9}, []),
    ],
)
def test_other_decoding_begins_anew(changed: dict, told: list[str]) -> None:
    judge = Judge(JUDGED, NOW, {})
    judge.better(scores(9, 9, 1.0))
    judge.better(scores(8, 9, 1.0))
    stored = json.loads(json.dumps(judge.progress(None)))
    decode = dataclasses.replace(DecodeConfig(), **changed)
    now = {**NOW, "scored_with": {"bleu_tokenize": "13a", **decoding(decode)}}
    judge = Judge(JUDGED, now, stored)
    assert judge.reset_reasons == told
    assert (judge.best, judge.stale) == ((None, 0) if told else (stored["best"], 1))
    assert judge.better(scores(1, 1, 2.0)) == bool(told)


def test_of_samples_the_options_of_sampling_count() -> None:
    sampled = DecodeConfig(sample=True)
    one, other = decoding(sampled), decoding(dataclasses.replace(sampled, temperature=0.5))
    before = {"judged": JUDGED, "dev_digest": "", "scored_with": one}
    assert changes(before, {**before, "scored_with": other}) == ["decode.temperature is 0.5 instead of 1.0"]
    assert decoding(sampled) == decoding(dataclasses.replace(sampled, beam_size=7))


def test_settings_of_any_type_are_as_a_checkpoint_returns_them() -> None:
    now = {**NOW, "scored_with": {"banned": (), "stop": ("a", "b")}}
    judge = Judge(JUDGED, now, {})
    assert judge.better({"dev_bleu": 1.0, "dev_chrf": 1.0, "dev_loss": 1.0})
    saved = json.loads(json.dumps(judge.progress(None)))
    assert Judge(JUDGED, now, saved).reset_reasons == []
    assert Judge(JUDGED, now, saved).best == judge.best


def test_what_else_begins_anew() -> None:
    judge = Judge(JUDGED, NOW, {})
    judge.better(scores(9, 9, 1.0))
    stored = judge.progress(None)
    by_loss = (JUDGED[2], *JUDGED[:2])
    assert Judge(by_loss, NOW, stored).reset_reasons == ["dev_loss counts first instead of dev_bleu"]
    other = {**NOW, "scored_with": {**NOW["scored_with"], "bleu_tokenize": "zh"}}
    assert Judge(JUDGED, other, stored).reset_reasons == ["bleu_tokenize is zh instead of 13a"]
    text = Judge(JUDGED, {**NOW, "dev_digest": "another"}, stored)
    assert text.reset_reasons == ["the development text or train.eval_sentences has changed"]
    assert (text.best, text.stale) == (None, 0)
    # A run that was never evaluated has nothing to reset.
    assert Judge(by_loss, other, Judge(JUDGED, NOW, {}).progress(None)).reset_reasons == []


# ---- Earlier versions -----------------------------------------------------------------------------------------------


def former(**more: object) -> dict:
    """progress.json as earlier versions wrote it."""
    signature = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
    return {
        **{"step": 80, "dev_bleu": 12.5, "dev_bleu_signature": signature, "dev_digest": "text", "best_bleu": 14.0},
        **{"evaluations_without_better": 2, **more},
    }


def test_a_run_of_an_earlier_version_goes_on() -> None:
    judge = Judge(JUDGED, NOW, upgraded(former(), Config))
    assert (judge.reset_reasons, judge.best, judge.stale) == ([], {"dev_bleu": 14.0}, 2)
    assert not judge.better(scores(13.9, 90, 0.5))
    assert judge.better(scores(14.1, 1, 9.0))
    assert not Judge(JUDGED, NOW, upgraded(former(best_bleu=None, evaluations_without_better=0), Config)).reset_reasons


def test_an_earlier_version_decoded_as_its_checkpoint_says() -> None:
    progress = upgraded(former(), lambda: Config(decode=DecodeConfig(max_length=3)))
    assert Judge(JUDGED, NOW, progress).reset_reasons == ["decode.max_length is None instead of 3"]
    zh = {**NOW, "scored_with": {**NOW["scored_with"], "bleu_tokenize": "zh"}}
    assert Judge(JUDGED, zh, upgraded(former(), Config)).reset_reasons == ["bleu_tokenize is zh instead of 13a"]
    # The best score of an earlier version may be NaN.
    judge = Judge(JUDGED, NOW, upgraded(former(best_bleu=math.nan), Config))
    assert judge.better(scores(0, 0, 9.0))


def test_todays_progress_needs_no_config() -> None:
    progress = Judge(JUDGED, NOW, {}).progress(scores(1, 2, 3.0))
    assert upgraded(progress, lambda: pytest.fail("asked for")) is progress
    assert upgraded({"step": 3}, lambda: pytest.fail("asked for")) == {"step": 3}
    assert {name: progress[name] for name, _ in JUDGED} == scores(1, 2, 3.0)


def test_an_integer_beyond_every_float_is_no_score() -> None:
    """JSON can contain such integers."""
    assert rank(scores(10**400, 5, 1.0), JUDGED) == rank(scores(None, 5, 1.0), JUDGED)
    assert rank(scores(10**400, -(10**400), 10**400), JUDGED) is None


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            {"best": "x"},
            {"best": 5},
            {"best": ["dev_bleu"]},
            {"best": {"dev_bleu": "5"}},
            {"best": {"dev_bleu": True}},
        ),
        *({"evaluations_without_better": x} for x in ("1", 1.0, None, True)),
        *({"judged": x} for x in ([], "dev_bleu", None, [["dev_bleu"]])),
        {"scored_with": None},
        *(
            {"interval": x}
            for x in (
                3,
                "x",
                None,
                {"loss": 1.0},
                {"updates": 0},
                {"updates": 2.0, "loss": None},
                {"updates": 2, "loss": "1"},
            )
        ),
        *({"left_out": x} for x in (3, "x", ["3"], None)),
        *({"owed": x} for x in ({"a": "b"}, [], 3, "x", {"loss": []})),
        {"skipped": None},
    ],
    ids=str,
)
def test_a_progress_that_nobody_can_go_on_from(wrong: dict) -> None:
    right = {**Judge(JUDGED, NOW, {}).progress(scores(1, 2, 3.0))}
    check_progress(right)
    check_progress({**right, "best": scores(1, None, 10**400)})
    more = {"interval": {"updates": 2.0, "loss": 3}, "left_out": [3], "owed": {"loss": None, "epoch": 1}, "skipped": 1}
    check_progress({**right, **more})
    check_progress({**right, "interval": {}, "owed": None})
    with pytest.raises((TypeError, ValueError, AttributeError, LookupError)):
        check_progress({**right, **wrong})
