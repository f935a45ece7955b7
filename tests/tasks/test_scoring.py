from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import sacrebleu

import transformer
from transformer.checkpoint import Checkpoints
from transformer.config import UserError
from transformer.data.text import Parallel
from transformer.tasks import scoring
from transformer.tasks.sets import Sides, read_set, read_sides, write_sets


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def evaluate(call, *arguments: object) -> dict:
    """The one JSON object that evaluate.py --json prints."""
    done = call("evaluate.py", *arguments, "--json")
    assert done.code == 0, done.err
    assert done.out.count("\n") == 1  # one line on standard output, all else on standard error
    return json.loads(done.out)


def by_hand(workdir: Path, folder: Path, name: str, checkpoint: str | None = None) -> tuple[float, float]:
    """sacreBLEU's BLEU and chrF of translations by the Python interface."""
    hypotheses = transformer.Translator.load(str(workdir), checkpoint).translate(lines(folder / f"{name}.en"))
    references = [lines(folder / f"{name}.de")]
    return sacrebleu.corpus_bleu(hypotheses, references).score, sacrebleu.corpus_chrf(hypotheses, references).score


# ---- evaluate.py ----------------------------------------------------------------------------------------------------


def test_evaluate_scores_the_test_set_with_the_best_checkpoint(call, trained: Path, tiny) -> None:
    result = evaluate(call, "--workdir", trained)
    assert (result["bleu"], result["chrf"]) == by_hand(trained, tiny.folder, "test", "best")
    assert result["bleu"] > 1
    assert result["test_set"] == "test.en"
    assert result["sentences"] == 20
    assert result["checkpoint"] == str(Checkpoints(trained).best())
    version = sacrebleu.__version__
    assert result["signature"] == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{version}"
    assert result["chrf_signature"] == f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{version}"
    assert result["decode"]["beam_size"] == 2


def test_results_are_stored_in_the_workdir(call, workdir: Path) -> None:
    (workdir / "scores.jsonl").unlink(missing_ok=True)  # of other tests
    results = [evaluate(call, "--workdir", workdir, "--decode.beam_size", size) for size in (1, 2)]
    stored = [json.loads(line) for line in lines(workdir / "scores.jsonl")]
    assert [{name: entry[name] for name in entry if name != "time"} for entry in stored] == results
    assert stored[0]["signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|")
    assert stored[0]["time"] <= stored[1]["time"]
    # A score that can't be stored is still printed.
    (workdir / "scores.jsonl").unlink()
    (workdir / "scores.jsonl").mkdir()
    done = call("evaluate.py", "--workdir", workdir, "--decode.beam_size", 1, "--json")
    assert (done.code, json.loads(done.out)) == (0, results[0])
    told = f"warning: this score is not stored: {workdir}/scores.jsonl cannot be written (Is a directory); make room"
    assert [line.startswith(told) for line in done.err.splitlines() if "warning" in line] == [True]
    # Nothing is stored through a link.
    (workdir / "scores.jsonl").rmdir()
    (workdir / "scores.jsonl").symlink_to(workdir.parent / "elsewhere")
    scoring.store(str(workdir), results[0])
    assert not (workdir.parent / "elsewhere").exists()


def test_the_commands_agree(call, trained: Path, tiny, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((tiny.folder / "test.en").read_bytes())))
    done = call("transformer", "translate", trained, "--checkpoint", "last")
    assert done.code == 0, done.err
    hypotheses = done.out.split("\n")[:-1]
    assert len(hypotheses) == 20
    assert f"using checkpoint 120 of {trained}" in done.err
    score = sacrebleu.corpus_bleu(hypotheses, [lines(tiny.folder / "test.de")]).score
    assert evaluate(call, "--workdir", trained, "--checkpoint", "last")["bleu"] == score


def test_evaluate_other_files_and_other_checkpoints(call, trained: Path, tiny) -> None:
    dev = ("--source", tiny.folder / "dev.en", "--reference", tiny.folder / "dev.de")
    logged = {}
    for line in (trained / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        logged |= {entry["step"]: entry["dev_bleu"]} if "dev_bleu" in entry else {}
    for checkpoint, step in (("last", 120), ("80", 80), ("best", Checkpoints(trained).best())):
        result = evaluate(call, "--workdir", trained, *dev, "--checkpoint", checkpoint)
        assert result["checkpoint"] == str(step)
        assert result["test_set"] == "dev.en"
        assert result["bleu"] == logged[step]  # the same code as during training


def test_decoding_options_override_the_workdirs(call, trained: Path, tiny) -> None:
    result = evaluate(call, "--workdir", trained, "--decode.beam_size", 1, "--decode.length_penalty", 0)
    assert (result["decode"]["beam_size"], result["decode"]["length_penalty"]) == (1, 0.0)
    assert result["decode"]["max_extra_length"] == 5
    greedy = transformer.DecodeConfig(beam_size=1, length_penalty=0.0, max_extra_length=5, max_source_length=30)
    translator = transformer.Translator.load(str(trained), config=greedy)
    hypotheses = translator.translate(lines(tiny.folder / "test.en"))
    assert result["bleu"] == sacrebleu.corpus_bleu(hypotheses, [lines(tiny.folder / "test.de")]).score


def test_exchanged_sides_are_told(call, trained: Path, workdir: Path, tiny) -> None:
    sides = tiny.folder / "test.de", tiny.folder / "test.en"
    told = (
        "warning: test.de: its source reads like the target of dev.en, and its target like the source there; exchange"
    )
    done = call("evaluate.py", "--workdir", trained, "--source", sides[0], "--reference", sides[1])
    assert (done.code, done.err.count(told)) == (0, 1)
    assert "reads like" not in call("evaluate.py", "--workdir", trained).err
    (workdir / "sets/dev.source").write_text("")  # damaged, but not what is scored
    done = call("evaluate.py", "--workdir", workdir, "--source", sides[0], "--reference", sides[1])
    assert (done.code, "reads like" in done.err) == (0, False)


def test_without_a_test_set_dev_is_scored_and_named(call, workdir: Path, tiny) -> None:
    known = json.loads((workdir / "sets/sets.json").read_text())
    del known["test"]
    (workdir / "sets/sets.json").write_text(json.dumps(known))
    result = evaluate(call, "--workdir", workdir)
    assert result["test_set"] == "dev.en"
    assert (result["bleu"], result["chrf"]) == by_hand(workdir, tiny.folder, "dev")
    shutil.rmtree(workdir / "sets")
    done = call("evaluate.py", "--workdir", workdir)
    assert (done.code, done.out) == (2, "")
    assert "has no test or dev set; give --source FILE --reference FILE" in done.err


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("sets.json", b'{"test": {', "sets.json cannot be read (JSONDecodeError: "),
        ("sets.json", b"\xff", "sets.json cannot be read (UnicodeDecodeError: "),
        ("sets.json", b"[]", "sets.json cannot be read (AttributeError: "),
        ("sets.json", b'{"test": {"lines": 20}}', "sets.json cannot be read (KeyError: 'name')"),
        ("test.source", None, "test.source cannot be read (No such file or directory)"),
        ("test.source", b"eins\n", "test.source is not as it was written"),
        ("test.reference", b"eins\n" * 20, "test.reference is not as it was written"),
    ],
)
def test_damaged_sets_are_told_in_one_line(workdir: Path, file: str, content: bytes | None, told: str) -> None:
    if content is None:
        (workdir / "sets" / file).unlink()
    else:
        (workdir / "sets" / file).write_bytes(content)
    with pytest.raises(UserError) as error:
        read_set(str(workdir))
    assert str(error.value).startswith(f"{workdir}/sets/{told}")
    assert str(error.value).endswith("; give --source FILE --reference FILE, or let train.py write it again")
    assert "\n" not in str(error.value)


def test_a_workdir_is_scored_wherever_it_lies(call, workdir: Path, tmp_path: Path, monkeypatch) -> None:
    expected = evaluate(call, "--workdir", workdir)
    elsewhere = tmp_path / "else/where"
    elsewhere.parent.mkdir()
    workdir.rename(elsewhere)
    # Neither the old path nor the training text is needed.
    monkeypatch.setattr(scoring, "read_given", lambda *_: pytest.fail("the text was read"))
    monkeypatch.chdir(elsewhere.parent)
    assert evaluate(call, "--workdir", "where") == expected


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--sourc x", "unknown option --sourc; did you mean --source"),
        ("--decode.beam 3", "did you mean --decode.beam_size"),
        ("--decode.beam_size 0", "decode.beam_size = 0: must be at least 1"),
        ("--train.steps 3", "unknown option --train.steps"),
        ("--checkpoint average", "no average yet; make one with: python -m transformer average"),
        ("--checkpoint 7", "--checkpoint 7: not in"),
        ("--against nowhere", "nowhere: no complete checkpoint there"),
        ("--source nowhere.en --reference nowhere.de", "nowhere.en: no such file"),
        ("--source {folder}/dev.en --reference {folder}/train.de", "dev.en has 20 lines but"),
    ],
)
def test_mistakes_are_told_before_anything_is_translated(call, trained, tiny, monkeypatch, arguments, told) -> None:
    monkeypatch.setattr(transformer.Translator, "translate", lambda *_: pytest.fail("translated"))
    done = call("evaluate.py", "--workdir", trained, *arguments.format(folder=tiny.folder).split())
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert told in done.err


def test_a_damaged_checkpoint_is_named_and_another_can_be_chosen(call, workdir: Path) -> None:
    best = Checkpoints(workdir).best()
    data = max((workdir / f"checkpoints/{best:08d}/state").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 4
    data.write_bytes(content)
    done = call("evaluate.py", "--workdir", workdir, "--json")
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err
    assert f"error: {data} is not as it was written: this checkpoint is damaged; choose another" in done.err
    assert evaluate(call, "--workdir", workdir, "--checkpoint", 100)["checkpoint"] == "100"


def test_where_a_run_was_interrupted(call, workdir: Path) -> None:
    (workdir / "checkpoints/00000120").rename(workdir / "checkpoints/00000120.interrupted")
    result = evaluate(call, "--workdir", workdir, "--checkpoint", "last")
    assert result["checkpoint"] == "00000120.interrupted"


def test_people_get_lines(call, trained: Path) -> None:
    done = call("evaluate.py", "--workdir", trained)
    result = evaluate(call, "--workdir", trained)
    told = done.out.splitlines()
    assert told[0] == f"test.en: 20 sentences, checkpoint {result['checkpoint']}"
    assert told[1] == f"BLEU {result['bleu']:.2f}   {result['signature']}"
    assert told[2] == f"chrF {result['chrf']:.2f}   {result['chrf_signature']}"
    assert len(told) == 3


def test_a_breakdown_of_the_errors(call, trained: Path) -> None:
    result = json.loads(call("evaluate.py", "--workdir", trained, "--breakdown", "--json").out)
    found = result["breakdown"]
    assert sum(group["sentences"] for group in found["by_source_length"]) == result["sentences"]
    lines = call("evaluate.py", "--workdir", trained, "--breakdown").out.splitlines()
    assert lines[-1].startswith("words that are missing: ")
    assert any(line.startswith("source pieces") for line in lines)


def test_the_papers_number_is_for_english_german_only(call, workdir: Path) -> None:
    # This config does not name its languages.
    assert "bleu_tokenized_compound_split" not in evaluate(call, "--workdir", workdir)
    config = workdir / f"checkpoints/{Checkpoints(workdir).best():08d}/config.json"
    values = json.loads(config.read_text())
    for languages in (("en", "fr"), ("de", "en"), ("en", "de")):
        values["data"]["languages"] = languages
        config.write_text(json.dumps(values))
        resign(config)
        result = evaluate(call, "--workdir", workdir)
        assert ("bleu_tokenized_compound_split" in result) == (languages == ("en", "de"))
    line = call("evaluate.py", "--workdir", workdir).out.splitlines()[3]
    assert line.startswith(f"{result['bleu_tokenized_compound_split']:.2f}   BLEU of tokenised text, compounds split")
    assert "not comparable" in line


def resign(file: Path) -> None:
    """Update the manifest, as if the checkpoint had been saved with this file."""
    import hashlib

    manifest = json.loads((file.parent / "manifest.json").read_text())
    content = file.read_bytes()
    manifest[file.name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (file.parent / "manifest.json").write_text(json.dumps(manifest))


# ---- References and tokenisers ------------------------------------------------------------------------------------


@pytest.fixture
def references(tiny, tmp_path: Path) -> list[Path]:
    """Two references of the test set; the second differs in some words."""
    first = lines(tiny.folder / "test.de")
    second = [line.replace("Katze", "Mieze").replace("groß", "riesig") for line in first]
    for name, content in (("r1.de", first), ("r2.de", second)):
        (tmp_path / name).write_text("".join(line + "\n" for line in content))
    return [tmp_path / "r1.de", tmp_path / "r2.de"]


def test_several_references(call, trained: Path, tiny, references: list[Path], tmp_path: Path) -> None:
    source = ("--source", tiny.folder / "test.en")
    two = [x for path in references for x in ("--reference", path)]
    hypotheses = transformer.Translator.load(str(trained)).translate(lines(tiny.folder / "test.en"))
    texts = [lines(path) for path in references]
    result = evaluate(call, "--workdir", trained, *source, *two, "--against", trained)
    assert result["bleu"] == sacrebleu.corpus_bleu(hypotheses, texts).score
    assert result["chrf"] == sacrebleu.corpus_chrf(hypotheses, texts).score
    assert result["signature"].startswith("nrefs:2|") and result["chrf_signature"].startswith("nrefs:2|")
    assert result["against"]["signature"].startswith("nrefs:2|bs:1000|")
    assert result["against"]["rows"][0]["bleu"] == pytest.approx(result["bleu"])
    one = evaluate(call, "--workdir", trained, *source, *two[:2])
    assert one["signature"].startswith("nrefs:1|")
    assert one["bleu"] != evaluate(call, "--workdir", trained, *source, *two[2:])["bleu"]
    done = call("evaluate.py", "--workdir", trained, *source, *two, *two[:2])
    assert (done.code, done.out) == (2, "")
    assert f"--reference {references[0]} is given twice" in done.err
    # Also under another name; and a warning for another file with the same text.
    for other in (tmp_path / "link.de", tmp_path / "x" / ".." / "r1.de"):
        (tmp_path / "x").mkdir(exist_ok=True)
        if other.name == "link.de":
            other.symlink_to(references[0])
        done = call("evaluate.py", "--workdir", trained, *source, *two, "--reference", other)
        assert (done.code, done.out) == (2, "")
        assert f"--reference {other} is given twice, too, as {references[0]}; each" in done.err
    shutil.copy(references[0], tmp_path / "copy.de")
    done = call("evaluate.py", "--workdir", trained, *source, *two, "--reference", tmp_path / "copy.de")
    assert done.code == 0 and "warning: test.en: its references 1 and 3 are the same, and count as one" in done.err
    assert "references 1 and 2" not in done.err
    # Each reference is checked.
    references[1].write_text("x\n" * 19)
    done = call("evaluate.py", "--workdir", trained, *source, *two)
    assert (done.code, done.out) == (2, "")
    assert f"test.en has 20 lines but {references[1]} has 19" in done.err
    references[1].write_text("\n" * 20)
    done = call("evaluate.py", "--workdir", trained, *source, *two)
    assert "warning: test.en, reference 2: 20 of 20 references are blank" in done.err


def test_a_source_that_holds_both_sides(call, trained: Path, tiny, tmp_path: Path, references) -> None:
    pairs = list(zip(lines(tiny.folder / "test.en"), lines(tiny.folder / "test.de"), strict=True))
    (tmp_path / "test.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in pairs))
    rows = [{"en": source, "de": target} for source, target in pairs]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = evaluate(call, "--workdir", trained)
    for name, fields in (("test.tsv", ()), ("test.jsonl", ("--data.fields", "en", "de"))):
        result = evaluate(call, "--workdir", trained, "--source", tmp_path / name, *fields)
        assert result == {**expected, "test_set": name}

    def refused(*arguments: object) -> str:
        done = call("evaluate.py", "--workdir", trained, *arguments)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        return done.err

    assert "no field 'source'" in refused("--source", tmp_path / "test.jsonl")
    assert "holds both sides" in refused("--source", tmp_path / "test.tsv", "--reference", references[0])
    assert "test.en: holds one side only; give its translations" in refused("--source", tiny.folder / "test.en")
    (tmp_path / "test.csv").write_text("a,b\n")
    told = "test.csv: a .csv, which holds neither a sentence a line nor pairs; convert it to .jsonl first, e.g. with"
    assert told in refused("--source", tmp_path / "test.csv")
    assert told in refused("--source", tiny.folder / "test.en", "--reference", tmp_path / "test.csv")
    (tmp_path / "t.zip").write_bytes(b"PK\x03\x04" + bytes(40))
    assert "t.zip: a zip archive, not plain text; unpack it first (unzip " in refused("--source", tmp_path / "t.zip")
    assert "gone: no such file" in refused("--source", tmp_path / "gone")
    assert "--source and --reference go together" in refused("--reference", references[0])


def test_a_pipe_is_not_read_twice(call, trained: Path, tmp_path: Path, references, monkeypatch) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    two = [x for path in references for x in ("--reference", path)]
    done = call("evaluate.py", "--workdir", trained, "--source", tmp_path / "pipe", *two)
    assert (done.code, done.out) == (2, "")
    assert "several references need a regular file here" in done.err


def test_the_tokeniser_is_chosen_and_told(call, workdir: Path) -> None:
    expected = evaluate(call, "--workdir", workdir)
    result = evaluate(call, "--workdir", workdir, "--evaluate.bleu_tokenize", "char", "--against", workdir)
    assert "|tok:char|" in result["signature"] and "|tok:char|" in result["against"]["signature"]
    assert result["against"]["rows"][0]["bleu"] == pytest.approx(result["bleu"])
    assert result["bleu"] > expected["bleu"] and result["chrf"] == expected["chrf"]
    assert evaluate(call, "--workdir", workdir, "--data.languages", "en", "th")["bleu"] == result["bleu"]
    # By default the tokeniser follows the languages in the checkpoint's config.
    config = workdir / f"checkpoints/{Checkpoints(workdir).best():08d}/config.json"
    values = json.loads(config.read_text())
    values["data"]["languages"] = ("en", "th_TH")
    config.write_text(json.dumps(values))
    resign(config)
    assert evaluate(call, "--workdir", workdir)["bleu"] == result["bleu"]


def test_what_is_missing_is_told_before_anything_is_translated(call, trained: Path, monkeypatch) -> None:
    import sacrebleu.tokenizers.tokenizer_ja_mecab

    monkeypatch.setattr(sacrebleu.tokenizers.tokenizer_ja_mecab, "MeCab", None)
    monkeypatch.setattr(transformer.Translator, "translate", lambda *_: pytest.fail("translated"))
    done = call("evaluate.py", "--workdir", trained, "--evaluate.bleu_tokenize", "ja-mecab")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "pip install 'sacrebleu[ja]'" in done.err
    done = call("evaluate.py", "--workdir", trained, "--evaluate.bleu_tokenize", "flores200")
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err


def test_the_metric_chooses_the_checkpoint(call, workdir: Path) -> None:
    scores = {80: (12.0, 55.0, 1.0), 100: (11.0, 60.0, 0.9), 120: (10.0, 50.0, 0.8)}
    for step, values in scores.items():
        progress = workdir / f"checkpoints/{step:08d}/progress.json"
        own = json.loads(progress.read_text()) | dict(zip(("dev_bleu", "dev_chrf", "dev_loss"), values, strict=True))
        progress.write_text(json.dumps(own))
        resign(progress)
    for metric, step in (("bleu", 80), ("chrf", 100), ("loss", 120)):
        result = evaluate(call, "--workdir", workdir, "--evaluate.metric", metric)
        assert result["checkpoint"] == str(step)
    assert evaluate(call, "--workdir", workdir, "--checkpoint", "best")["checkpoint"] == "80"


# ---- Two systems ----------------------------------------------------------------------------------------------------


def test_against_another_workdir(call, trained: Path, workdir: Path, tiny) -> None:
    # The other workdir has an earlier checkpoint, and its config decodes greedily.
    for step in (100, 120):
        shutil.rmtree(workdir / f"checkpoints/{step:08d}")
    config = workdir / "checkpoints/00000080/config.json"
    values = json.loads(config.read_text())
    values["decode"]["beam_size"] = 1
    config.write_text(json.dumps(values))
    resign(config)
    result = evaluate(call, "--workdir", trained, "--against", workdir)
    alone = evaluate(call, "--workdir", workdir)
    assert alone["decode"]["beam_size"] == 1
    test = result["against"]
    assert (test["workdir"], test["checkpoint"]) == (str(workdir), "80")
    baseline, ours = test["rows"]
    assert (baseline["system"], ours["system"]) == (str(workdir), str(trained))
    assert baseline["bleu"] == pytest.approx(alone["bleu"])
    assert ours["bleu"] == pytest.approx(result["bleu"])
    assert baseline["p_value"] is None
    assert 0 < ours["p_value"] <= 1
    assert "bs:1000|seed:12345" in test["signature"]
    told = call("evaluate.py", "--workdir", trained, "--against", workdir).out.splitlines()
    assert told[-1] == test["signature"]
    assert told[-2].startswith(f"{trained}: BLEU {ours['bleu']:.2f} (mean ")
    assert told[-2].endswith(f", p = {ours['p_value']:.4f}")
    assert ", p = " not in told[-3]


def test_against_itself_there_is_no_difference(call, trained: Path) -> None:
    baseline, ours = evaluate(call, "--workdir", trained, "--against", trained)["against"]["rows"]
    assert ours["bleu"] == baseline["bleu"]
    assert ours["p_value"] is baseline["p_value"] is None


# ---- The average ----------------------------------------------------------------------------------------------------


def test_average_tells_both_scores_and_becomes_the_default(call, workdir: Path, tiny) -> None:
    before = by_hand(workdir, tiny.folder, "dev", "last")[0]
    done = call("transformer", "average", workdir, "--last", 2)
    assert done.code == 0, done.err
    after = by_hand(workdir, tiny.folder, "dev")[0]
    signature = f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
    assert done.out.splitlines() == [
        "averaged 2 checkpoints: 100, 120",
        f"BLEU on dev.en, before, step 120: {before:.2f}   {signature}",
        f"BLEU on dev.en, after: {after:.2f}   {signature}",
    ]
    assert after != before
    result = evaluate(call, "--workdir", workdir)
    assert (result["checkpoint"], result["averaged_steps"]) == ("average", [100, 120])
    checkpoints = Checkpoints(workdir)
    _, params = transformer.load(str(workdir))
    mean = jax.tree.map(
        lambda a, b: (np.float64(a) + b) / 2, checkpoints.at(100).params(), checkpoints.at(120).params()
    )
    for ours, exact in zip(jax.tree.leaves(params), jax.tree.leaves(mean), strict=True):
        np.testing.assert_allclose(ours, exact, rtol=1e-6)
    assert evaluate(call, "--workdir", workdir, "--checkpoint", "best")["checkpoint"] == str(checkpoints.best())


def test_average_of_more_than_there_are_says_so(call, workdir: Path) -> None:
    shutil.rmtree(workdir / "sets")
    done = call("transformer", "average", workdir)  # the last 5
    assert done.code == 0
    assert done.out.splitlines() == ["averaged 3 checkpoints: 80, 100, 120", "no development set to score it on"]
    assert "warning: there are only 3 checkpoints; train.keep_last sets how many are kept" in done.err


def test_average_looks_first_whether_it_can_score(call, workdir: Path, monkeypatch) -> None:
    """A package of BLEU's tokeniser may be missing on another machine; the user can choose another tokeniser."""
    there = sorted((workdir / "checkpoints").iterdir())
    done = call("transformer", "average", workdir, "--evaluate.bleu_tokenize", "ja-mecab")
    if done.code == 2:
        assert done.out == "" and "or choose another one, such as: --evaluate.bleu_tokenize char" in done.err
        assert sorted((workdir / "checkpoints").iterdir()) == there
    done = call("transformer", "average", workdir, "--evaluate.bleu_tokenize=char", "--decode.beam_size", 1)
    assert done.code == 0 and done.out.count("|tok:char|") == 2
    assert call("transformer", "average", "--help").code == 0
    for wrong in (("--evaluate.bleu_tokenize", "char", workdir), ("--last", 2)):
        done = call("transformer", "average", *wrong)
        assert done.code == 2 and "the workdir comes first: python -m transformer average runs/quickst" in done.err


@pytest.mark.parametrize("references", ["x.de", b"x.de", Path("x.de"), None, 5, [5], [["x.de"]], [b"x.de"]], ids=str)
def test_references_are_a_list_of_files(trained: Path, tiny, references) -> None:
    with pytest.raises(UserError, match=r"^references = .*: give a list of names of files$"):
        scoring.evaluate_workdir(str(trained), source=str(tiny.folder / "test.en"), references=references)


def test_a_set_is_named_by_its_source(trained: Path, tiny) -> None:
    """References without a source are an error, from Python as on the command line."""
    with pytest.raises(UserError, match=r"^--source and --reference go together; name the"):
        scoring.evaluate_workdir(str(trained), references=[str(tiny.folder / "test.de")])
    with pytest.raises(UserError, match=r"^--source .*/test\.en: holds one side only"):
        scoring.evaluate_workdir(str(trained), source=str(tiny.folder / "test.en"))
    for source in (5, [str(tiny.folder / "test.en")], b"test.en"):
        with pytest.raises(UserError, match=r"^source = .*: give the name of a file$"):
            scoring.evaluate_workdir(str(trained), source=source, references=[str(tiny.folder / "test.de")])


# ---- Dev and test as files ------------------------------------------------------------------------------------------


def test_sets_are_copied_line_by_line_and_their_digests_told(tmp_path: Path, caplog) -> None:
    import hashlib
    import logging

    from etils import epath

    # Only a line feed ends a line.
    source, target = "eins\x85\nzwei drei\n\nvier\r\n", "one\nt\x0cwo\n\nfour\n"
    (tmp_path / "a.de").write_bytes(source.encode())
    (tmp_path / "a.en").write_bytes(target.encode())

    def sets() -> dict[str, Sides]:
        pair = Parallel(str(tmp_path / "a.de"), str(tmp_path / "a.en"))
        return {"dev": None, "test": Sides("a.de", *read_sides(pair, ("", "")))}

    caplog.set_level(logging.INFO, "transformer")
    write_sets(epath.Path(tmp_path / "run"), sets())
    assert (tmp_path / "run/sets/test.reference").read_bytes() == target.encode()
    assert (tmp_path / "run/sets/test.source").read_bytes() == source.replace("\r", "").encode()
    name, sources, references = read_set(str(tmp_path / "run"))
    assert (name, len(sources), len(references)) == ("a.de", 4, 4)
    assert sources == ["eins\x85", "zwei drei", "", "vier"]
    digest = hashlib.sha256(target.encode()).hexdigest()
    assert f"test set    a.de, reference: 4 lines, sha256 {digest}" in caplog.messages
    with pytest.raises(UserError, match="has no test or dev set"):
        read_set(str(tmp_path / "run"), "dev")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/sets").symlink_to(tmp_path / "run/sets")
    with pytest.raises(UserError, match=f"^{tmp_path}/other/sets is a link"):
        write_sets(epath.Path(tmp_path / "other"), sets())
    # A warning if the text under the same name has changed.
    caplog.clear()
    (tmp_path / "a.en").write_text("one\ntwo\n\nfive\n")
    write_sets(epath.Path(tmp_path / "run"), sets())
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == [
        f"{tmp_path}/run/sets/test.reference is written anew: the test set has changed, and scores of it don't compare"
    ]


def test_in_python(trained: Path, tiny) -> None:
    translator = transformer.Translator.load(str(trained))
    sentences = lines(tiny.folder / "test.en")
    assert translator.translate([]) == []
    translations = translator.translate(sentences)
    assert len(translations) == 20
    model, params = transformer.load(str(trained), "best")
    assert transformer.Translator(model, params, translator.tokenizer, translator.config).translate(sentences) == (
        translations
    )
    with pytest.raises(transformer.UserError, match="no complete checkpoint"):
        transformer.Translator.load(str(trained / "nowhere"))
