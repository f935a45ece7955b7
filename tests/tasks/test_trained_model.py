"""How often outputs of a trained model depend on their batch or on the number of devices."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import pytest

from transformer.inference.translator import Found, Translator
from transformer.jobs import train
from transformer.tasks.judges import score
from transformer.tasks.sets import read_set

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The workdir of the quickstart."""
    workdir = str(tmp_path_factory.mktemp("quickstart") / "run")
    train(["--config", "configs/quickstart.py", "--workdir", workdir])
    return workdir


@pytest.fixture(scope="module")
def translator(quickstart: str) -> Translator:
    return Translator.load(quickstart)


@pytest.fixture(scope="module")
def sources(quickstart: str, translator: Translator) -> list[list[int]]:
    """The pieces of the quickstart's 1,000 test lines."""
    _, lines, _ = read_set(quickstart, "test")
    assert len(lines) == 1_000
    return translator.tokenizer.encode(lines)


@pytest.fixture(scope="module")
def expected(translator: Translator, sources: list[list[int]]) -> dict[int, Found]:
    return dict(translator.search(sources))


def test_the_quickstart_reaches_95_bleu(quickstart, translator, expected, report) -> None:
    _, _, references = read_set(quickstart, "test")
    found = translator.tokenizer.decode([expected[i][0][0] for i in range(len(references))])
    bleu = score(found, [references], "13a")["bleu"]
    report(f"quickstart: BLEU {bleu:.2f}")
    assert bleu >= 95


def different(found: Mapping[int, Found], expected: Mapping[int, Found]) -> int:
    """The number of sentences with other pieces. They may differ only if two hypotheses had almost the same score."""
    assert found.keys() == expected.keys()
    count = 0
    for i, (pieces, scores) in found.items():
        wanted, wanted_scores = expected[i]
        if pieces[0] == wanted[0]:
            np.testing.assert_allclose(scores[0], wanted_scores[0], rtol=1e-5, atol=1e-5)
        else:
            count += 1
            # Allowed only if two hypotheses of the same search are this close.
            assert min(*-np.diff(scores), *-np.diff(wanted_scores)) <= 1e-4, (i, scores, wanted_scores)
    return count


def test_at_most_one_sentence_in_a_thousand_depends_on_its_batch(translator, sources, expected, report) -> None:
    """Batches of other sizes, neighbours and padding, so other shapes are compiled. The same shapes compile nothing."""
    compiled = []

    def listen(event: str, _: float, **__: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    def found(order: np.ndarray, **options: object) -> dict[int, Found]:
        own = dataclasses.replace(translator.config, **options)
        search = Translator(translator.model, translator.params, translator.tokenizer, own).search
        return {int(order[i]): best for i, best in search([sources[i] for i in order])}

    order = np.arange(len(sources))
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        assert found(order) == expected
        assert compiled == []
        shuffled = found(np.random.default_rng(0).permutation(order), streams=1)
        report(f"1,000 lines in another order: {len(compiled)} compilations more")
        assert len(compiled) <= 20
        del compiled[:]
        few = found(order[::-1], batch_sentences=5)
        assert compiled  # the listener works
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    for case in (few, shuffled):
        count = different(case, expected)
        report(f"{count} of 1,000 translations of a trained model depend on their batch")
        assert count <= 1


PAID = "He paid 45 dollars."
SPACES = [
    *[PAID, f" {PAID}", f"{PAID} ", "He  paid  45  dollars.", "He\u00a0paid 45 dollars.", "He\tpaid 45 dollars."],
    *[f"\ufeff{PAID}", f"{PAID}\u200e", f"\u2060{PAID}", "He paid 45\u202fdollars.", "\uff28\uff45 paid 45 dollars."],
]


def test_white_space_and_what_shows_nothing_change_no_translation(translator) -> None:
    assert len(set(translator.translate(SPACES))) == 1
    prefixes = ["Er hat", "Er hat ", " Er hat", "Er  hat "]
    (found,) = set(translator.translate([PAID] * 4, prefixes=prefixes))
    assert found.startswith("Er hat ")


def test_its_translations_come_again_under_their_own_beginnings(quickstart, translator, report) -> None:
    _, lines, _ = read_set(quickstart, "test")
    draw = np.random.default_rng(0)
    whole = translator.translate(lines[:100])
    rows = [i for i in range(100) for _ in range(3)]
    prefixes = [whole[i][: draw.integers(len(whole[i]) + 1)] for i in rows]
    found = translator.translate([lines[i] for i in rows], prefixes=prefixes)
    assert all(f"{text} ".startswith(prefix) for text, prefix in zip(found, prefixes, strict=True))
    others = sum(text != whole[i] for text, i in zip(found, rows, strict=True))
    report(f"{others} of {len(rows)} translations of a trained model differ under their own beginning")
    assert others <= 3


FOUR = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
from transformer.inference.translator import Translator
translator = Translator.load(sys.argv[1])
assert translator.batcher.ways == 4
print(json.dumps(sorted(translator.search(json.load(sys.stdin)))))
"""


def test_four_devices_find_the_same(quickstart, sources, expected, environment, report) -> None:
    first = sources[:300]
    done = subprocess.run(
        [sys.executable, "-c", FOUR, quickstart], input=json.dumps(first), capture_output=True, text=True,
        env=environment, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = {i: (pieces, scores) for i, (pieces, scores) in json.loads(done.stdout)}
    count = different(found, {i: expected[i] for i in range(len(first))})
    report(f"{count} of {len(first)} translations of a trained model depend on the number of devices")
    assert count <= 1
