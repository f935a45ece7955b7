"""Heads for labels of Hugging Face's BERT, in and out: class names, numbers and tags; pipelines of transformers."""

import dataclasses
import json
import random
from pathlib import Path

import jax
import numpy as np
import pytest
from hf_cases import complaint, random_params, same_bits
from test_hf_bert import CONFIG
from test_hf_bert_folder import PIECES, write, write_tokenizer

import transformer
from transformer.checkpoint import Checkpoints
from transformer.config import FinetuneConfig, LabelledConfig
from transformer.data import wordpiece
from transformer.data.labels import Labels
from transformer.inference.classifier import Classifier, Prediction
from transformer.model import build
from transformer.tasks.vocabulary import files_of
from transformer.tools.hf.bert import fields_of, labels_of, to_bert, with_scale
from transformer.tools.hf.bert_folder import export, import_folder
from transformer.tools.hf.folder import read_arrays
from transformer.tools.new_workdir import new_workdir

for name in ("safetensors", "tokenizers"):
    pytest.importorskip(name)

LABELS = {
    "classes": Labels("classes", "f1", ("no", "über", "yes"), "yes", pairs=None),
    "regression": Labels("regression", "spearman", mean=-40.0, scale=8.5, pairs=None),
    "tags": Labels("tags", "f1", ("B-X", "I-X", "O"), "O"),
}
KINDS = pytest.mark.parametrize("kind", LABELS)
WORDS = ["the", "cow", "cat", "dog", "walk", "cats", "walking", "0", "7", ".", "abc", "日", "badge"]
LONG = " ".join(["the cow", *map(str, range(10)), *"abcdefgh"])  # 20 pieces, and the model has 16 positions
TEXTS = ["The cats walk.", "dog dog walking the cat!", "日 walked", LONG, "cow"]
# Rows of 13 and 15 pieces have an even number for two long texts. Of an odd one, ours gives the first text one more, as
# BERT does, and the tokenizers of transformers the second one.
PAIRS = [("the cat", "dogs walk!"), ("cow", LONG), (LONG, "a dog"), (LONG, LONG), ("cow", "the cat")]


def model_of(labels: Labels):
    """The config of a model with a head for these labels."""
    head = "token" if labels.kind == "tags" else "sequence"
    return dataclasses.replace(CONFIG, head=head, labels=labels.size)


def strong_params(labels: Labels) -> dict:
    """Random parameters with outputs that differ clearly from text to text."""
    return jax.tree.map(lambda x: x * 5 if x.ndim > 1 else x, random_params(model_of(labels)))


@pytest.fixture(params=LABELS)
def ours(request, tmp_path: Path) -> Path:
    """A workdir of ours, with a vocabulary, for each kind of label; texts are cut to 13 pieces."""
    labels = LABELS[request.param]
    (tmp_path / "pieces").mkdir()
    write_tokenizer(tmp_path / "pieces")
    vocabulary = wordpiece.load(tmp_path / "pieces" / "tokenizer.json")
    config = FinetuneConfig(model_of(labels), LabelledConfig(kind=labels.kind, context=13))
    progress = {"step": 3, "vocab_size": len(PIECES)}
    files = {**files_of(vocabulary), **dict([labels.file])}
    new_workdir(str(tmp_path / "ours"), strong_params(labels), config, progress=progress, files=files)
    return tmp_path / "ours"


def folder_of(labels: Labels, folder: Path, **fields) -> Path:
    """A folder as transformers writes it, with a model for these labels and a tokenizer."""
    config = model_of(labels)
    write(folder, config, to_bert(strong_params(labels), config), **fields)
    write_tokenizer(folder)
    return folder


def near(found: list[Prediction], wanted: list[Prediction]) -> None:
    """Equal labels, and probabilities and numbers within 1e-5 (numbers relatively)."""
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        if isinstance(one.label, float):
            np.testing.assert_allclose(one.label, other.label, rtol=1e-5, atol=1e-5)
        else:
            assert one.label == other.label
            # None, of words that were cut off, becomes nan, which equals nan.
            values = [np.array(p.probability, float) for p in (one, other)]
            np.testing.assert_allclose(*values, atol=1e-5, rtol=0)
        if one.probabilities is not None:
            assert list(one.probabilities) == list(other.probabilities)
            values = [list(p.probabilities.values()) for p in (one, other)]
            np.testing.assert_allclose(*values, atol=1e-5, rtol=0)


# ---- Without transformers --------------------------------------------------------------------------------------------


@KINDS
def test_names_of_labels_come_back(kind: str) -> None:
    labels = LABELS[kind]
    back = labels_of(json.loads(json.dumps(fields_of(labels))), model_of(labels))
    assert (back.kind, back.names, back.mean, back.scale) == (kind, labels.names, 0, 1)
    assert back.usual == {"classes": "no", "regression": "", "tags": "O"}[kind]
    assert back.pairs is (False if kind == "tags" else None)


def test_the_scale_of_numbers_goes_into_the_head() -> None:
    labels = LABELS["regression"]
    params, model = strong_params(labels), build(model_of(labels))
    text = np.array([[2, 30, 31, 3], [2, 20, 5, 3]])
    before, after = (np.asarray(model.apply(p, text))[:, 0] for p in (params, with_scale(params, labels)))
    np.testing.assert_allclose(after, labels.mean + labels.scale * before, rtol=1e-5)
    assert np.ptp(after) > 0.1
    assert with_scale(params, LABELS["classes"]) is params


def test_an_exported_classifier_is_imported_as_the_same(ours: Path, tmp_path: Path) -> None:
    """Names, numbers and the longest text; another export then gives the same files."""
    folder = export(str(ours), str(tmp_path / "out"))
    import_folder(str(folder), str(tmp_path / "back"))
    before, after = (Classifier.load(path) for path in (ours, tmp_path / "back"))
    assert (after.labels.kind, after.labels.names, after.longest) == (before.labels.kind, before.labels.names, 13)
    near(after.classify(TEXTS), before.classify(TEXTS))
    assert isinstance(Checkpoints(tmp_path / "back").open().config, FinetuneConfig)
    again = export(str(tmp_path / "back"), str(tmp_path / "again"))
    same_bits(*(read_arrays(path / "model.safetensors") for path in (folder, again)))
    for name in ("config.json", "tokenizer_config.json"):
        assert json.loads((again / name).read_text()) == json.loads((folder / name).read_text())


def test_a_folder_without_a_problem_type_gets_none(tmp_path: Path) -> None:
    """Pipelines of transformers give a single output another function with it than without."""
    folder = folder_of(LABELS["regression"], tmp_path / "theirs")
    import_folder(str(folder), str(tmp_path / "run"))
    out = export(str(tmp_path / "run"), str(tmp_path / "out"))
    before, after = (json.loads((path / "config.json").read_text()) for path in (folder, out))
    assert after == before | {"pad_token_id": 0}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"problem_type": "multi_label_classification"}, "'multi_label_classification': our heads give each text one"),
        ({"problem_type": "regression"}, "problem_type = 'regression' with 3 outputs: our head gives one number"),
        ({"id2label": {"0": "a", "1": "b", "2": "a"}}, "id2label: two labels have the same name"),
        ({"id2label": {"1": "a", "2": "b", "3": "c"}}, "id2label: must map each output to a name"),
        ({"id2label": {"0": "a", "1": "b\tc", "2": "d"}}, "id2label: must map each output to a name without tabs"),
    ],
)
def test_labels_that_ours_cannot_express_are_refused(fields: dict, told: str, tmp_path: Path) -> None:
    folder = folder_of(LABELS["classes"], tmp_path / "theirs", **fields)
    found = complaint(import_folder, str(folder), str(tmp_path / "run"))
    assert found.startswith(f"{folder / 'config.json'}: ") and told in found
    assert not (tmp_path / "run").exists()


def test_an_imported_model_is_scored_on_other_columns_and_on_pairs(tmp_path: Path, call) -> None:
    """The columns are named by options, as in training."""
    folder = folder_of(LABELS["classes"], tmp_path / "theirs", **fields_of(LABELS["classes"]))
    import_folder(str(folder), str(tmp_path / "run"))
    draw, classifier = random.Random(0), Classifier.load(tmp_path / "run")
    texts = [[" ".join(draw.choice(WORDS) for _ in range(3)) for _ in range(2)] for _ in range(30)]
    labels = [draw.choice(classifier.labels.names) for _ in texts]
    losses = []
    for given in ([one for one, _ in texts], texts):
        found = zip(classifier.classify(given), labels, strict=True)
        losses.append(-np.mean([np.log(one.probabilities[label]) for one, label in found]))
    assert abs(losses[0] - losses[1]) > 0.01
    rows = [f"{label}\t{one}\t{other}" for (one, other), label in zip(texts, labels, strict=True)]
    (tmp_path / "named.tsv").write_text("\n".join(["class\tfirst\tother", *rows]) + "\n")
    (tmp_path / "numbered.tsv").write_text("\n".join(rows) + "\n")
    command = "evaluate.py", "--workdir", tmp_path / "run", "--json", "--data"
    for file, options, loss in (
        ("named.tsv", ["--data.text=first", "--data.label=class", "--data.second=other"], losses[1]),
        ("named.tsv", ["--data.text=first", "--data.label=class"], losses[0]),
        ("numbered.tsv", ["--data.text=2", "--data.second=3", "--data.label=1"], losses[1]),
    ):
        done = call(*command, tmp_path / file, *options)
        assert done.code == 0, done.err
        assert json.loads(done.out)["scores"]["loss"] == pytest.approx(loss, rel=1e-4)
    for options, told in (
        (["--data.text=first", "--data.label=2"], "data.text = 'first': must be a number from 1, as another column is"),
        (["--data.text=first"], "named.tsv:1: the header has no column 'label', only 'class', 'first', 'other'; name"),
        (["--data.kind=tags"], "unknown option --data.kind"),
    ):
        done = call(*command, tmp_path / "named.tsv", *options)
        assert done.code == 2 and told in done.err.splitlines()[-1]


# ---- Pipelines of transformers ---------------------------------------------------------------------------------------


@pytest.fixture
def theirs():
    """The module `transformers`; skips the test without it."""
    pytest.importorskip("torch", reason="the comparison with Hugging Face's pipelines needs torch")
    return pytest.importorskip("transformers", reason="the comparison with Hugging Face's pipelines needs transformers")


def their_predictions(theirs, folder: Path, classifier: Classifier, texts: list) -> list[Prediction]:
    """What their pipeline gives for texts, pairs of texts, or lists of words."""
    kind = classifier.labels.kind
    pipe = theirs.pipeline("token-classification" if kind == "tags" else "text-classification", str(folder))
    found = []
    for text in texts:
        if kind == "tags":
            (pieces,) = pipe([text], is_split_into_words=True, ignore_labels=[])
            (row,) = classifier.encode([text])
            first = {piece["index"]: piece for piece in pieces}
            of_words = [first[i] for i in row.starts]
            found.append(Prediction([piece["entity"] for piece in of_words], [piece["score"] for piece in of_words]))
            continue
        given = text if isinstance(text, str) else {"text": text[0], "text_pair": text[1]}
        scores = {one["label"]: one["score"] for one in pipe(given, top_k=None, truncation=True)}
        if kind == "regression":
            (number,) = scores.values()
            found.append(Prediction(number, None))
        else:
            best = max(scores, key=scores.get)
            found.append(Prediction(best, scores[best], {name: scores[name] for name in classifier.labels.names}))
    return found


def texts_of(classifier: Classifier) -> list:
    """Texts, pairs, or words that the classifier reads whole."""
    draw = random.Random(0)
    if classifier.labels.kind == "tags":
        return [[draw.choice(WORDS[:10]) for _ in range(count)] for count in (1, 4, 5)] + [["the", "badge", "日"]]
    return {True: PAIRS, False: TEXTS, None: [*TEXTS, *PAIRS]}[classifier.labels.pairs]


def assert_the_same(theirs, folder: Path, workdir: Path) -> None:
    classifier = transformer.Classifier.load(workdir)
    texts = texts_of(classifier)
    found = classifier.classify(texts)
    near(found, their_predictions(theirs, folder, classifier, texts))
    assert np.ptp(np.concatenate([values_of(one) for one in found])) > 0.01  # texts differ


def values_of(found: Prediction) -> np.ndarray:
    """A text's number, the probability of its first class, or those of its words to have the tag `O`."""
    if found.probabilities:
        return np.array([next(iter(found.probabilities.values()))])
    if isinstance(found.label, float):
        return np.array([found.label])
    return np.array([p if tag == "O" else 1 - p for tag, p in zip(found.label, found.probability, strict=True)])


@KINDS
@pytest.mark.parametrize("named", [True, False])
def test_an_imported_model_gives_the_labels_of_their_pipeline(theirs, kind: str, named: bool, tmp_path: Path) -> None:
    """A model that their class has saved, with names of classes or without."""
    import torch

    labels = LABELS[kind]
    folder = folder_of(labels, tmp_path / "start")
    kinds = theirs.BertForTokenClassification if kind == "tags" else theirs.BertForSequenceClassification
    model = kinds.from_pretrained(folder)
    if named or kind == "regression":
        for field, value in fields_of(labels).items():
            setattr(model.config, field, {int(i): x for i, x in value.items()} if field == "id2label" else value)
    with torch.no_grad():
        model.classifier.bias += 0.25
    model.save_pretrained(tmp_path / "theirs")
    theirs.AutoTokenizer.from_pretrained(folder, model_max_length=15).save_pretrained(tmp_path / "theirs")
    import_folder(str(tmp_path / "theirs"), str(tmp_path / "run"))
    classifier = transformer.Classifier.load(tmp_path / "run")
    assert classifier.longest == 15
    names = labels.names if named else tuple(f"LABEL_{i}" for i in range(3))
    assert kind == "regression" or classifier.labels.names == names
    assert_the_same(theirs, tmp_path / "theirs", tmp_path / "run")


CONFIG_FILE = """
import dataclasses
from transformer.config import BERT, FinetuneConfig, LabelledConfig, TuneConfig

config = FinetuneConfig(
    model=dataclasses.replace(
        BERT, encoder_layers=2, d_model=12, d_ff=20, heads=3, max_positions=16, head="sequence", initializer="scaled"
    ),
    data=LabelledConfig(train=({file!r},), tokenizer={tokenizer!r}, context=13, length_buckets=1, {data}),
    train=dataclasses.replace(FinetuneConfig.train, peak_learning_rate=0.02),
    tune=TuneConfig(epochs=8, batch_rows=16),
)
"""


@pytest.mark.parametrize("kind", ["classes", "pairs", "regression", "tags"])
def test_a_model_that_was_fine_tuned_here_is_used_by_their_pipeline(theirs, kind: str, tmp_path: Path, call) -> None:
    draw = random.Random(0)
    (tmp_path / "pieces").mkdir()
    write_tokenizer(tmp_path / "pieces")
    lines = ["text\tsecond\tlabel"]
    for _ in range(80):
        first, second = ([draw.choice(WORDS[:8]) for _ in range(draw.randint(1, 4))] for _ in range(2))
        cats = ["cat" in word for word in first]
        label = {
            "classes": "a cat" if any(cats) else "none",
            "pairs": "a cat follows" if any("cat" in word for word in second) else "none",
            "regression": str(300 + 50 * sum(cats)),
            "tags": " ".join("B-CAT" if cat else "O" for cat in cats),
        }
        lines.append("\t".join([" ".join(first), " ".join(second), label[kind]]))
    (tmp_path / "train.tsv").write_text("\n".join(lines) + "\n")
    data = 'second="second"' if kind == "pairs" else f"kind={kind!r}"
    files = {"file": str(tmp_path / "train.tsv"), "tokenizer": str(tmp_path / "pieces/tokenizer.json")}
    (tmp_path / "config.py").write_text(CONFIG_FILE.format(**files, data=data))
    done = call("train.py", "--config", tmp_path / "config.py", "--workdir", tmp_path / "run")
    assert done.code == 0, done.err
    done = call("transformer", "export", tmp_path / "run", tmp_path / "out", "--to", "hf-bert")
    assert done.code == 0, done.err
    assert_the_same(theirs, tmp_path / "out", tmp_path / "run")
