"""BLEU and chrF by sacreBLEU, with the tokeniser for the target language."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformer.config import Config, UserError
from transformer.packages import require

if TYPE_CHECKING:
    import sacrebleu

References = Sequence[Sequence[str]]
"""One or several references for each sentence: references[i][n] is reference i of sentence n."""

# evaluate.metric -> the scores that judge checkpoints, in the order of comparison.
JUDGED = {
    "bleu": (("dev_bleu", "up"), ("dev_chrf", "up"), ("dev_loss", "down")),
    "chrf": (("dev_chrf", "up"), ("dev_bleu", "up"), ("dev_loss", "down")),
    "loss": (("dev_loss", "down"), ("dev_bleu", "up"), ("dev_chrf", "up")),
}

# sacreBLEU's tokeniser -> ISO 639 codes of languages, in two or three letters. sacreBLEU recommends the tokenisers for
# Chinese, Japanese and Korean. The languages under "char" have no spaces between words, and sacreBLEU has no other
# tokeniser for them that works without a download (its spm and flores tokenisers download a model).
_LANGUAGES = {
    "zh": {"zh", "zho", "chi", "cmn", "yue", "wuu", "lzh", "hak", "gan", "hsn"},
    "ja-mecab": {"ja", "jpn"},
    "ko-mecab": {"ko", "kor"},
    "char": {"th", "tha", "lo", "lao", "km", "khm", "my", "mya", "bur", "bo", "bod", "tib", "dz", "dzo"},
}
_PACKAGES = {"ja-mecab": "sacrebleu[ja]", "ko-mecab": "sacrebleu[ko]"}
# Letters of scripts without spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, kana, Han.
_UNSPACED = re.compile("[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
                       "\U00020000-\U0003ffff]")  # fmt: skip
_EXAMINED = 1_000  # references


def language(code: str) -> str:
    """The language code without script and region: zh for zh-CN, zh_Hant_TW and ZH."""
    return re.split(r"[-_@.]", code.strip().lower())[0]


def bleu_tokenizer(config: Config) -> str:
    """The name of sacreBLEU's tokeniser for the target side of a config."""
    if config.evaluate.bleu_tokenize != "auto":
        return config.evaluate.bleu_tokenize
    target = language(config.data.languages[1]) if config.data.languages else ""
    return next((tokenize for tokenize, languages in _LANGUAGES.items() if target in languages), "13a")


def bleu(tokenize: str, **options: Any) -> sacrebleu.BLEU:
    """sacreBLEU's BLEU with this tokeniser. Raises `UserError` if the tokeniser's packages are not installed."""
    require("scoring", "sacrebleu")
    import sacrebleu

    try:
        return sacrebleu.BLEU(tokenize=tokenize, **options)
    except (ImportError, RuntimeError, AssertionError) as error:  # all three are raised by sacreBLEU's tokenisers
        reason = " ".join(str(error).split()) or type(error).__name__
        if "extra dependencies" in reason:  # sacreBLEU's message has several lines
            reason = "its packages are not installed"
        raise UserError(
            f"BLEU's tokeniser {tokenize} cannot be used ({reason}); install it with: pip install "
            f"'{_PACKAGES.get(tokenize, 'sacrebleu')}', or choose another one, such as: --evaluate.bleu_tokenize char"
        ) from None


def check_scoring(config: Config) -> None:
    """Raise `UserError` if the run has a development set and a package that scoring needs is missing."""
    if config.data.corpus != "text" or config.data.dev_source is not None:
        bleu(bleu_tokenizer(config))


def unsuited(name: str, references: Sequence[str], config: Config) -> str | None:
    """A warning if the references have no spaces between words, or are Korean, and BLEU uses its default tokeniser,
    13a, which is for others; else None. No warning if the user chose the tokeniser.

    The tokeniser is not chosen by the script of the text: BLEU would then differ in kind from one text to another, and
    Chinese can't be distinguished from Japanese with certainty.
    """
    if config.evaluate.bleu_tokenize != "auto" or bleu_tokenizer(config) != "13a":
        return None
    letters = [char for line in itertools.islice(references, _EXAMINED) for char in line if char.isalpha()]
    if sum("\uac00" <= char <= "\ud7a3" for char in letters) > len(letters) / 2:
        return (
            f"{name}: its references are Korean, for which BLEU has a tokeniser of its own; name the languages, such "
            "as --data.languages en ko, or the tokeniser: --evaluate.bleu_tokenize ko-mecab or char"
        )
    if sum(map(bool, map(_UNSPACED.match, letters))) <= len(letters) / 2:
        return None
    return (
        f"{name}: its references have no spaces between words, which BLEU's tokeniser 13a needs; name the languages, "
        "such as --data.languages en zh, or the tokeniser: --evaluate.bleu_tokenize zh, ja-mecab or char"
    )


def spelt_otherwise(name: str, hypotheses: Sequence[str], references: Sequence[str]) -> str | None:
    """A warning if a tenth or more of the references are not in NFC (letters spelt with combining characters, as in
    NFD) while all translations are; else None. Words that look the same then differ in every score."""

    def decomposed(lines: Sequence[str]) -> int:
        return sum(not unicodedata.is_normalized("NFC", line) for line in lines)

    count = decomposed(references)
    if count < max(1, len(references) / 10) or decomposed(hypotheses):
        return None
    return (
        f"{name}: {count:,} of {len(references):,} references spell letters in several characters, and the "
        "translations do not, so words that look the same count as different; give references in NFC"
    )


def score(hypotheses: Sequence[str], references: References, tokenize: str) -> dict[str, Any]:
    """sacreBLEU's BLEU and chrF2 of detokenised text, each with its signature."""
    import sacrebleu

    metrics = {"bleu": bleu(tokenize), "chrf": sacrebleu.CHRF()}
    scores = {name: metric.corpus_score(hypotheses, references).score for name, metric in metrics.items()}
    signatures = {name: str(metric.get_signature()) for name, metric in metrics.items()}
    return {**scores, "signature": signatures["bleu"], "chrf_signature": signatures["chrf"]}


def compound_split_bleu(hypotheses: Sequence[str], references: References) -> float:
    """BLEU of tokenised text with words split at hyphens, as in the paper's En-De figures.

    The paper's script splits Moses tokens; this function splits sacreBLEU's 13a tokens. Don't compare the result with a
    sacreBLEU figure: it is higher.
    """
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokens = Tokenizer13a()

    def split(lines: Sequence[str]) -> list[str]:
        return [re.sub(r"(?<=\S)-(?=\S)", " ##AT##-##AT## ", tokens(line)) for line in lines]

    return bleu("none", force=True).corpus_score(split(hypotheses), [split(lines) for lines in references]).score


def has_compound_split(languages: tuple[str, str] | None) -> bool:
    """Whether the paper's compound-split BLEU applies to these languages: English to German."""
    return languages is not None and tuple(map(language, languages)) == ("en", "de")


def paired_bootstrap(
    systems: Sequence[tuple[str, Sequence[str]]], references: References, tokenize: str
) -> dict[str, Any]:
    """sacreBLEU's paired bootstrap test of BLEU. `systems`: (name, translations) of two; the first is the baseline."""
    from sacrebleu.significance import PairedTest

    same = len({tuple(hypotheses) for _, hypotheses in systems}) == 1
    test = PairedTest(systems, {"BLEU": bleu(tokenize)}, references, "bs", 1000)
    signatures, scores = test()
    rows = [
        # For two equal outputs sacreBLEU reports p = 0.001, which is wrong.
        {
            "system": name,
            "bleu": row.score,
            "mean": row.mean,
            "ci": row.ci,
            "p_value": None if same else row.p_value,
        }
        for name, row in zip(scores["System"], scores["BLEU"], strict=True)
    ]
    return {"rows": rows, "signature": str(signatures["BLEU"])}
