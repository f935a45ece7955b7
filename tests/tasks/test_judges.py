from __future__ import annotations

import dataclasses
import importlib
import unicodedata

import pytest
import sacrebleu

from transformer.config import Config, DataConfig, EvaluateConfig, UserError, check
from transformer.tasks.judges import (
    bleu,
    bleu_tokenizer,
    check_scoring,
    compound_split_bleu,
    has_compound_split,
    paired_bootstrap,
    score,
    spelt_otherwise,
    unsuited,
)

CHINESE = ["我看见在柏林三个苹果。", "她买在家五只狗。", "我们需要在花园里七本书。", "他有在车站八辆车。"]
THAI = ["ฉันเห็นแอปเปิ้ลสามลูกในเบอร์ลิน", "เธอซื้อสุนัขห้าตัวที่บ้าน", "เราต้องการหนังสือเจ็ดเล่มในสวน", "เขามีรถแปดคันที่สถานี"]
GERMAN = ["Ich sehe drei Äpfel in Berlin.", "Sie kauft fünf Hunde zu Hause.", "Wir brauchen sieben Bücher im Garten."]


def config(target: str | None = None, **evaluate: str) -> Config:
    languages = None if target is None else ("en", target)
    return Config(data=DataConfig(languages=languages), evaluate=EvaluateConfig(**evaluate))


@pytest.mark.parametrize(
    ("target", "tokenize"),
    [
        *((code, "zh") for code in ("zh", "ZH", "zh-CN", "zh_Hans", "zh-Hant-TW", "zho_Hans", "cmn", "yue", " zh ")),
        *((code, "ja-mecab") for code in ("ja", "ja_JP", "jpn_Jpan", "ja_JP.UTF-8")),
        *((code, "ko-mecab") for code in ("ko", "KO-kr", "kor_Hang")),
        *((code, "char") for code in ("th", "th_TH", "lo", "km", "my-MM", "bo", "mya_Mymr")),
        *((code, "13a") for code in ("de", "fr", "de-AT", "ru", "vi", "", "zha", "jam", "und", "thx", None)),
    ],
)
def test_the_tokeniser_follows_the_target_language(target: str | None, tokenize: str) -> None:
    assert bleu_tokenizer(config(target)) == tokenize
    assert bleu_tokenizer(config(target, bleu_tokenize="intl")) == "intl"
    # Only the target language counts.
    if target is not None:
        assert bleu_tokenizer(Config(data=DataConfig(languages=(target, "en")))) == "13a"


@pytest.mark.parametrize("downloads", ["flores200", "flores101", "spm", "zh-tw", ""])
def test_tokenisers_that_download_are_refused(downloads: str) -> None:
    with pytest.raises(UserError, match=r"^evaluate\.bleu_tokenize = '.*': must be one of auto, 13a"):
        check(config(bleu_tokenize=downloads))
    with pytest.raises(UserError, match=r"^evaluate\.metric = 'ter': must be one of bleu, chrf, loss"):
        check(config(metric="ter"))


@pytest.mark.parametrize(("tokenize", "extra"), [("ja-mecab", "ja"), ("ko-mecab", "ko")])
def test_a_missing_package_is_named_in_one_line(monkeypatch, tokenize: str, extra: str) -> None:
    module = importlib.import_module(f"sacrebleu.tokenizers.tokenizer_{tokenize.replace('-', '_')}")
    monkeypatch.setattr(module, "MeCab", None)  # as after a failed import
    with pytest.raises(UserError) as error:
        bleu(tokenize)
    told = str(error.value)
    assert told.startswith(f"BLEU's tokeniser {tokenize} cannot be used (its packages are not installed)")
    assert told.endswith(
        f"install it with: pip install 'sacrebleu[{extra}]', or choose another one, such as: "
        "--evaluate.bleu_tokenize char"
    )
    assert "\n" not in told
    # Only runs with a development set need it.
    own = config(extra)
    check_scoring(own)
    own = dataclasses.replace(own, data=dataclasses.replace(own.data, dev_source="dev.en", dev_target="dev.xx"))
    with pytest.raises(UserError, match=tokenize):
        check_scoring(own)
    check_scoring(dataclasses.replace(own, evaluate=EvaluateConfig(bleu_tokenize="char")))


def test_japanese_and_korean_with_their_packages() -> None:
    for tokenize, package, lines in (
        ("ja-mecab", "MeCab", ["私はベルリンでりんごを三つ見ます。", "彼女は家で犬を五匹買います。"]),
        ("ko-mecab", "mecab_ko", ["나는 베를린에서 사과 세 개를 본다.", "그녀는 집에서 개 다섯 마리를 산다."]),
    ):
        pytest.importorskip(package)
        found = score(lines, [lines], tokenize)
        assert found["bleu"] == pytest.approx(100)
        assert f"|tok:{tokenize}-" in found["signature"]


@pytest.mark.parametrize(("lines", "tokenize"), [(CHINESE, "zh"), (THAI, "char")])
def test_text_without_spaces_is_told_apart(lines: list[str], tokenize: str) -> None:
    near = [line[:-2] + line[-1] for line in lines]
    assert score(near, [lines], "13a")["bleu"] < 5
    found = score(near, [lines], tokenize)
    assert found["bleu"] > 60
    assert f"|tok:{tokenize}|" in found["signature"]
    assert score(lines, [lines], tokenize)["bleu"] == pytest.approx(100)


def test_scores_of_several_references_are_sacrebleus() -> None:
    hypotheses = ["Ich sehe zwei Äpfel in Berlin.", "Sie kauft fünf Hunde daheim.", GERMAN[2]]
    others = ["Ich sehe zwei Äpfel.", "Sie kauft daheim fünf Hunde.", "x"]
    found = score(hypotheses, [GERMAN, others], "13a")
    assert found["bleu"] == sacrebleu.corpus_bleu(hypotheses, [GERMAN, others]).score
    assert found["chrf"] == sacrebleu.corpus_chrf(hypotheses, [GERMAN, others]).score
    assert found["bleu"] > max(score(hypotheses, [one], "13a")["bleu"] for one in (GERMAN, others))
    assert found["signature"].startswith("nrefs:2|") and found["chrf_signature"].startswith("nrefs:2|")
    split = compound_split_bleu(hypotheses, [GERMAN, others])
    assert split > max(compound_split_bleu(hypotheses, [one]) for one in (GERMAN, others))


def test_the_bootstrap_uses_the_same_tokeniser_and_all_references() -> None:
    ours, theirs = CHINESE, [line[:-3] for line in CHINESE]
    found = paired_bootstrap([("theirs", theirs), ("ours", ours)], [CHINESE, theirs], "zh")
    assert found["signature"].startswith("nrefs:2|bs:1000|seed:12345|")
    assert "|tok:zh|" in found["signature"]
    scores = {row["system"]: row["bleu"] for row in found["rows"]}
    assert scores["ours"] == pytest.approx(score(ours, [CHINESE, theirs], "zh")["bleu"])
    assert scores["theirs"] == pytest.approx(score(theirs, [CHINESE, theirs], "zh")["bleu"])
    same = paired_bootstrap([("a", ours), ("a", list(ours))], [CHINESE], "zh")
    assert [row["p_value"] for row in same["rows"]] == [None, None]


@pytest.mark.parametrize(
    ("lines", "own", "told"),
    [
        (CHINESE, config(), True),
        (THAI, config(), True),
        (["りんごを三つ見ます。"], config(), True),
        (CHINESE, config("en"), True),  # the languages are exchanged
        (CHINESE, config("zh"), False),
        (CHINESE, config(bleu_tokenize="13a"), False),  # the user's choice
        (CHINESE, config(bleu_tokenize="char"), False),
        (GERMAN, config(), False),
        (["Я вижу три яблока", "أرى ثلاث تفاحات"], config(), False),
        (["She said 你好 to everybody in the room."], config(), False),
        ([], config(), False),
        (["", "123 4.5 !"], config(), False),
    ],
)
def test_references_without_spaces_are_told(lines: list[str], own: Config, told: bool) -> None:
    found = unsuited("dev.xx", lines, own)
    assert (found is not None) == told
    if found:
        assert found.startswith("dev.xx: its references have no spaces between words")
        assert "--data.languages en zh" in found and "--evaluate.bleu_tokenize" in found and "\n" not in found


def test_korean_references_are_told_of_their_tokeniser() -> None:
    lines = ["나는 베를린에서 사과 세 개를 본다."]
    for own in (config(), config("kr"), config("Korean")):
        found = unsuited("dev.xx", lines, own)
        assert found.startswith("dev.xx: its references are Korean") and "ko-mecab" in found and "\n" not in found
    for own in (config("ko"), config(bleu_tokenize="13a"), config(bleu_tokenize="char")):
        assert unsuited("dev.xx", lines, own) is None


def test_the_papers_number_is_for_english_german_of_all_regions() -> None:
    for languages in (("en", "de"), ("EN", "de-AT"), ("en_US", "de_DE")):
        assert has_compound_split(languages)
    for languages in (None, ("de", "en"), ("en", "fr"), ("en", "den")):
        assert not has_compound_split(languages)


def test_references_that_are_spelt_otherwise_are_told() -> None:
    """Accents as separate characters (NFD), as on macOS and in some corpora."""
    lines = ["größer", "Tür", "Haus"] * 4
    apart = [unicodedata.normalize("NFD", line) for line in lines]
    assert score(lines, [apart], "13a")["chrf"] < 75
    told = spelt_otherwise("x.de", lines, apart)
    assert told.startswith("x.de: 8 of 12 references spell letters in several characters") and "NFC" in told
    assert spelt_otherwise("x.de", apart, apart) is None  # a model trained on such text
    assert spelt_otherwise("x.de", lines, lines) is None
    assert spelt_otherwise("x.de", ["Haus"] * 12, lines) is None
    assert spelt_otherwise("x.de", lines, [apart[0], *lines[1:]]) is None  # a single reference
    assert spelt_otherwise("x.de", [], []) is None
