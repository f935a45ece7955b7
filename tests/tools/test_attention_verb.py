"""The verb `attention`: weights and log-probabilities of every kind of model as JSON, as a page, and as a picture."""

import base64
import dataclasses
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from html import unescape
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer import Embedder, Generator, Parser, Translator
from transformer.config import (
    BERT,
    AlgorithmConfig,
    FinetuneConfig,
    LanguageModelConfig,
    MaskedConfig,
    ModelConfig,
    ParsingConfig,
    TextConfig,
    UserError,
)
from transformer.data.labels import Labels
from transformer.data.linearised import Symbols
from transformer.data.vocabularies import Characters
from transformer.inference import attention
from transformer.inference.attention import Attended, Attention, Side
from transformer.model import build
from transformer.tasks.vocabulary import files_of
from transformer.tools.attention import page, picture, written
from transformer.tools.new_workdir import new_workdir

pytest.importorskip("tokenizers", reason="needs tokenizers")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WORDS = ["the", "cat", "dog", "walk", "##s", "."]
TINY = {"d_model": 16, "d_ff": 24, "heads": 2, "dropout": 0.0}
OUT = ("--output", "x.html")
SENTENCE = "red cat sees the big dog"


@pytest.fixture(scope="module")
def vocabulary():
    from transformer.data.wordpiece import SPECIAL_PIECES, WordPiece, tokenizer_json

    return WordPiece(tokenizer_json([*SPECIAL_PIECES, *WORDS], lower_case=True))


def draw(config):
    """Random parameters that are large enough for attention that differs from row to row."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) * 0.7, build(config).abstract_params)


def saved(folder: Path, config, model: ModelConfig, files: dict[str, bytes]) -> Path:
    progress = {"step": 1, "vocab_size": model.vocab_size}
    new_workdir(str(folder), draw(model), dataclasses.replace(config, model=model), progress=progress, files=files)
    return folder


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory, vocabulary) -> dict[str, Path]:
    """A workdir of each kind of model but translation, with random parameters."""
    folder = tmp_path_factory.mktemp("attention")
    characters, encoder = Characters("abcdefg \n"), files_of(vocabulary)
    decoder = ModelConfig(encoder_layers=0, decoder_layers=2, vocab_size=characters.size, **TINY)
    text = LanguageModelConfig(data=TextConfig(text=("x.txt",), context=20, documents="none"))
    bert = dataclasses.replace(BERT, encoder_layers=2, vocab_size=vocabulary.size, max_positions=24, **TINY)
    pairs = dataclasses.replace(bert, head="sequence", labels=2)
    tags = dataclasses.replace(bert, head="token", labels=2, token_types=0)
    symbols = Symbols("transitions", ("NP", "S"), ("X", "Y"))
    both = ModelConfig(
        encoder_layers=1, decoder_layers=2, vocab_size=vocabulary.size, target_vocab_size=symbols.size, labels=2,
        head="token", tied_embeddings="target", **TINY,
    )  # fmt: skip
    hard = dataclasses.replace(both, hard_attention=True)
    labels = Labels("classes", "accuracy", ("no", "yes"), "no", pairs=True), Labels("tags", "accuracy", ("N", "V"), "N")
    return {
        "gpt": saved(folder / "gpt", text, decoder, files_of(characters)),
        "bert": saved(folder / "bert", MaskedConfig(), bert, encoder),
        "pairs": saved(folder / "pairs", FinetuneConfig(), pairs, encoder | dict([labels[0].file])),
        "tags": saved(folder / "tags", FinetuneConfig(), tags, encoder | dict([labels[1].file])),
        "parser": saved(folder / "parser", ParsingConfig(), both, encoder | dict([symbols.file])),
        "hard parser": saved(folder / "hard", ParsingConfig(), hard, encoder | dict([symbols.file])),
        "algorithm": saved(folder / "algorithm", AlgorithmConfig(), decoder, files_of(characters)),
    }


@pytest.fixture
def shown(call, tmp_path):
    """`shown(workdir, *arguments)`: what the verb writes as JSON."""

    def shown(workdir: Path, *arguments: str) -> dict:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        done = call("transformer", "attention", workdir, *arguments, "--output", path)
        assert (done.code, done.out) == (0, ""), done.err
        return json.loads(path.read_text(encoding="utf-8"))

    return shown


def check(document: dict, task: str, axes: dict[str, tuple[str, str, int, int]]) -> None:
    """Check what docs/attention.md promises. `axes`: queries, keys, layers and heads of each kind."""
    assert (document["format"], document["version"]) == ("transformer attention", 1)
    assert document["task"] == task and list(document["attention"]) == list(axes)
    for kind, (queries, keys, layers, heads) in axes.items():
        entry = document["attention"][kind]
        assert (entry["queries"], entry["keys"], entry["layers"], entry["heads"]) == (queries, keys, layers, heads)
        weights = np.array(entry["weights"])
        lengths = (len(document["sides"][side]["pieces"]) for side in (queries, keys))
        assert weights.shape == (layers, heads, *lengths)
        np.testing.assert_allclose(weights.sum(-1), 1, atol=2e-4)
        np.testing.assert_array_equal(weights, np.round(weights, 5))
        later = ~np.tri(*weights.shape[2:], dtype=bool)
        assert kind != "decoder" or not weights[..., later].any()


# ---- Numbers ---------------------------------------------------------------------------------------------------------
def test_a_translation(trained, shown) -> None:
    """By default that of the search; the log-probabilities and the alignment are those of `score`."""
    translator = Translator.load(str(trained))
    (hypothesis,) = translator.translate_n_best([SENTENCE])[0]
    axes = {
        "encoder": ("source", "source", 1, 2),
        "decoder": ("target", "read", 1, 2),
        "cross": ("target", "source", 1, 2),
    }
    for target, options in ((hypothesis.text, ()), ("rot Hund", ("--target", "rot Hund"))):
        document = shown(trained, SENTENCE, *options)
        check(document, "translation", axes)
        (scored,) = translator.score([SENTENCE], [target])
        sides = document["sides"]
        assert (sides["source"]["text"], sides["target"]["text"]) == (SENTENCE, target)
        assert sides["source"]["pieces"] == list(scored.source_pieces)
        assert sides["target"]["pieces"] == list(scored.pieces)
        assert sides["read"]["pieces"] == ["<s>", *scored.pieces[:-1]]
        np.testing.assert_allclose(sides["target"]["log_probs"], scored.log_probs, atol=1e-5)
        mean = np.mean(document["attention"]["cross"]["weights"][0], axis=0)
        assert mean.argmax(-1).tolist() == list(scored.alignment)
    few = shown(trained, SENTENCE, "--decode.beam_size", "1", "--decode.length_penalty", "0")
    assert few["sides"]["source"] == document["sides"]["source"]


def test_weights_do_not_depend_on_the_padding(trained) -> None:
    translator = Translator.load(str(trained))
    found = attention.of_translation(translator, SENTENCE, "rot Hund")
    source, target = (
        [*ids, 2] for (ids,) in (translator.encode([SENTENCE]), translator.tokenizer.encode(["rot Hund"]))
    )
    read = jnp.array([[1, *target[:-1]]])
    _, exact = translator.model.bind(translator.params).attention(jnp.array([source]), read)
    for kind, weights in exact.items():
        np.testing.assert_allclose(found.attention[kind].weights_LNTS, weights[0], atol=1e-6)


def test_a_language_model(workdirs, shown) -> None:
    text = "abc\ngfe d"
    document = shown(workdirs["gpt"], text)
    check(document, "language_model", {"decoder": ("text", "text", 2, 2)})
    generator = Generator.load(str(workdirs["gpt"]))
    (scored,) = generator.score([text])
    side = document["sides"]["text"]
    assert (side["text"], side["pieces"], side["log_probs"][0]) == (text, list(scored.pieces), None)
    np.testing.assert_allclose(side["log_probs"][1:], scored.log_probs[1:], atol=1e-5)
    generator.documents = True
    found, (scored,) = attention.of_text(generator, text).sides["text"], generator.score([text])
    assert len(found.pieces) == len(text) + 1 and found.log_probs[0] is None
    np.testing.assert_allclose(found.log_probs[1:], scored.log_probs, atol=1e-5)
    assert len(attention.of_text(generator, "a").sides["text"].pieces) == 2


def test_an_encoder(workdirs, shown) -> None:
    """A text with a mask; a pair, whose second text has the other token type."""
    document = shown(workdirs["bert"], "the [MASK] walks")
    check(document, "masked", {"encoder": ("text", "text", 2, 2)})
    assert document["sides"]["text"] == {
        "pieces": ["[CLS]", "the", "[MASK]", "walk", "##s", "[SEP]"], "text": "the [MASK] walks",
    }  # fmt: skip
    document = shown(workdirs["bert"], "the cat\tdog .")
    side = document["sides"]["text"]
    assert side["pieces"] == ["[CLS]", "the", "cat", "[SEP]", "dog", ".", "[SEP]"]
    assert side["parts"] == [1, 1, 1, 1, 2, 2, 2]
    embedder = Embedder.load(workdirs["bert"])
    ids, types = jnp.array([[2, 5, 6, 3, 7, 10, 3]]), jnp.array([[0, 0, 0, 0, 1, 1, 1]])
    bound = embedder.model.bind(embedder.params)
    exact = bound.attention(ids, types_BT=types)[1]["encoder"]
    np.testing.assert_allclose(document["attention"]["encoder"]["weights"], exact[0], atol=1e-5)
    assert abs(exact - bound.attention(ids)[1]["encoder"]).max() > 1e-3


def test_labels(workdirs, shown) -> None:
    """A pair of a classifier; words of a tagger, in which a tab is white space."""
    document = shown(workdirs["pairs"], "the cat\tdog .")
    check(document, "labels", {"encoder": ("text", "text", 2, 2)})
    assert document["sides"]["text"]["parts"] == [1, 1, 1, 1, 2, 2, 2]
    assert document["sides"]["text"]["text"] == "the cat\tdog ."
    document = shown(workdirs["tags"], "the\tcat walks .")
    assert document["sides"]["text"]["pieces"] == ["[CLS]", "the", "cat", "walk", "##s", ".", "[SEP]"]
    assert document["sides"]["text"]["text"] == "the cat walks ." and "parts" not in document["sides"]["text"]


@pytest.mark.parametrize("kind", ["parser", "hard parser"])
def test_a_parser(workdirs, shown, kind: str) -> None:
    """The symbols of the tree that `parse` finds spell it."""
    document = shown(workdirs[kind], "the cat walks .")
    axes = {
        "encoder": ("source", "source", 1, 2),
        "decoder": ("target", "read", 2, 2),
        "cross": ("target", "source", 2, 2),
    }
    check(document, "parsing", axes)
    sides = document["sides"]
    assert sides["source"]["pieces"] == ["[CLS]", "the", "cat", "walk", "##s", ".", "[SEP]"]
    parser = Parser.load(workdirs[kind])
    (tree,) = parser.parse(["the cat walks ."])
    assert sides["target"]["text"] == str(tree)
    symbols = sides["target"]["pieces"]
    assert symbols[-1] == "</s>" and sides["read"]["pieces"] == ["<s>", *symbols[:-1]]
    words = [symbol for symbol in symbols[:-1] if symbol[0] not in "()"]
    assert words == ["the", "cat", "walks", "."]
    bare = re.sub(r"\([XY] ([^()]*)\)", r"\1", str(tree))  # tags are not among the symbols
    assert " ".join(symbols[:-1]).replace(" )", ")") == bare
    assert len(sides["target"]["log_probs"]) == len(symbols) and max(sides["target"]["log_probs"]) <= 0


def test_broken_parameters_are_told(workdirs) -> None:
    generator = Generator.load(str(workdirs["gpt"]))
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), generator.params)
    with pytest.raises(UserError, match="the weights are not finite"):
        attention.of_text(Generator(generator.model, broken, generator.vocabulary), "abc")
    with pytest.raises(AttributeError):  # not ignored in silence
        generator.params = broken


# ---- The command line ------------------------------------------------------------------------------------------------
def test_standard_input(workdirs, call, tmp_path, monkeypatch) -> None:
    """With -, without a text, and with the text after an option."""
    for number, arguments in enumerate((("-",), (), ("--checkpoint", "average", "-"))):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"abc\n")))
        done = call("transformer", "attention", workdirs["gpt"], *arguments, "--output", tmp_path / f"{number}.json")
        assert done.code == 0, done.err
    done = call("transformer", "attention", workdirs["gpt"], "--output", tmp_path / "3.json", "abc")
    assert done.code == 0, done.err
    assert len({(tmp_path / f"{number}.json").read_text() for number in range(4)}) == 1


MISTAKES = [
    ("gpt", ("abc",), "--output is missing, such as --output attention.html"),
    ("gpt", ("abc", "--output", "x.gif"), "--output x.gif: the name must end with .html, .png or .json"),
    ("gpt", ("abc", "--output", "there.html"), "--output there.html exists; name another file, or remove it"),
    ("gpt", ("abc", "--output", "no/x.html"), "--output no/x.html: there is no folder no"),
    ("gpt", ("", *OUT), "the text is empty; give some words"),
    ("gpt", ("a" * 21, *OUT), "the text has 21 pieces, and this model reads at most 20; make it shorter"),
    ("gpt", ("a", "b", *OUT), "b: the task 'language_model' has no such option; leave it out"),
    (
        "gpt",
        ("a", "--target", "b", *OUT),
        "--target is for translation, and the task of this model is 'language_model'",
    ),
    ("bert", (" ", *OUT), "the text is empty; give some words"),
    ("bert", ("cat " * 23, *OUT), "the text has 25 pieces, and this model reads at most 24; make it shorter"),
    ("bert", ("a\tb\tc", *OUT), "3 texts, separated by tabs: this model reads two texts, a pair at once"),
    ("bert", ("a\nb", *OUT), "the text has 2 lines; give one"),
    ("pairs", ("cat", *OUT), "line 1: has 1 text, but this model was trained on two, a pair"),
    ("pairs", ("\t", *OUT), "the text is empty; give some words"),
    (
        "tags",
        ("cat " * 23, *OUT),
        "the text has more than the 24 pieces that this model reads at once; make it shorter",
    ),
    ("parser", ("", *OUT), "the text is empty; give some words"),
    ("parser", ("a", "--target", "b", *OUT), "--target is for translation, and the task of this model is 'parsing'"),
    (
        "parser",
        ("a", "--decode.beam_sise", "2", *OUT),
        "unknown option --decode.beam_sise; did you mean --decode.beam_siz",
    ),
    ("algorithm", ("a", *OUT), "its task is 'algorithm'; give one of the task"),
    ("nowhere", ("a", *OUT), "nowhere"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), MISTAKES)
def test_mistakes_are_one_line(name, arguments, message, workdirs, call, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.html").touch()
    done = call("transformer", "attention", workdirs.get(name, name), *arguments)
    assert (done.code, done.out) == (2, "")
    errors = [line for line in done.err.splitlines() if not line.startswith("using checkpoint")]
    assert len(errors) == 1 and errors[0].startswith("error: ") and message in errors[0], done.err
    assert [path.name for path in tmp_path.iterdir()] == ["there.html"]


def test_mistakes_in_a_translation(trained) -> None:
    translator = Translator.load(str(trained))
    for text, target, message in (
        (" ", None, "^the text is empty"),
        ("red", "", "^the target is empty"),
        ("red " * 60, None, r"^the text has \d+ pieces, and decode\.max_source_length = 30 is the most"),
        ("red", "rot " * 600, r"^the target has \d+ pieces, and a picture of attention at most 512; make it shorter"),
    ):
        with pytest.raises(UserError, match=message):
            attention.of_translation(translator, text, target)


def test_texts_from_python(trained, workdirs) -> None:
    """What is no text is one error; half a surrogate pair is read as "?"."""
    translator, embedder = Translator.load(str(trained)), Embedder.load(workdirs["bert"])
    for text in (None, 5, ["red"], b"red"):
        for what, read in (
            ("the text", lambda text: attention.of_translation(translator, text)),
            (r"texts\[0\]", lambda text: attention.of_encoder(embedder, [text])),
        ):
            with pytest.raises(UserError, match=f"^{what} is a {type(text).__name__}: give strings"):
                read(text)
    with pytest.raises(UserError, match=r"^the target is a int: give strings"):
        attention.of_translation(translator, "red", 5)
    with pytest.raises(UserError, match=r"^texts is a str: give a list of strings"):
        attention.of_encoder(embedder, "red")
    with pytest.raises(UserError, match=r"^the text is empty; give some words"):
        attention.of_encoder(embedder, [])
    assert attention.of_encoder(embedder, ["the \ud800"]).sides["text"].text == "the ?"


def test_a_translation_that_broken_parameters_do_not_find(trained) -> None:
    """To give it would not help."""
    translator = Translator.load(str(trained))
    params = jax.tree.map(lambda x: np.full_like(x, np.nan), translator.params)
    broken = Translator(translator.model, params, translator.tokenizer, translator.config)
    with pytest.raises(UserError, match="its numbers are not finite; choose another checkpoint"):
        attention.of_translation(broken, "red")


def test_a_missing_matplotlib_is_told_before_the_model_is_loaded(call, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = call("transformer", "attention", tmp_path / "none", "a", "--output", tmp_path / "x.png")
    install = "pip install 'transformer[pictures]'"
    assert done.err == f"error: --output with .png needs matplotlib, which is not installed: {install}\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe1", "standard input"),
        (b"caf\xe9", "standard input is not valid UTF-8"),
        (b"a" * 100_001, "standard input has more than 100,000 bytes"),
        (b"", "the text is empty"),
    ],
)
def test_bad_standard_input(content, message, workdirs, call, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    done = call("transformer", "attention", workdirs["gpt"], "--output", tmp_path / "x.html")
    assert done.code == 2 and message in done.err.splitlines()[-1] and not list(tmp_path.iterdir())


# ---- Files -----------------------------------------------------------------------------------------------------------
NASTY = [
    *(
        "</script>",
        "<script>document.title='pwned'</script>",
        "<img src=x onerror=\"document.title='pwned'\">",
        "&amp;",
    ),
    *("👩\u200d🚀", "\u202e", "\n", " ", "", "\u2028", "猫", "'\"`${1}", "-->", "<!--", "$x^2$", "\ud800"),
]


def pretended(pieces, layers=2, heads=2, task="translation") -> Attended:
    """Attention of these pieces on both sides, drawn at random."""
    rng, n = np.random.default_rng(0), len(pieces)
    weights = np.exp(3 * rng.normal(size=(3, layers, heads, n, n)))
    weights[1] *= np.tri(n)
    weights = np.float32(weights / weights.sum(-1, keepdims=True))
    pieces = tuple(pieces)
    sides = {
        "source": Side(pieces, " ".join(pieces)),
        "target": Side(pieces, " ".join((*pieces, "<b>x</b>")), tuple([-0.5] * n)),
        "read": Side(("<s>", *pieces[:-1])),
    }
    axes = zip(
        ("encoder", "decoder", "cross"), (("source", "source"), ("target", "read"), ("target", "source")), strict=True
    )
    return Attended(task, sides, {kind: Attention(*of, array) for (kind, of), array in zip(axes, weights, strict=True)})


def embedded(html: str) -> dict:
    (data,) = re.findall(r'<script type="application/json" id="document">(.*?)</script>', html, re.DOTALL)
    return json.loads(data)


def test_a_page_holds_the_weights_and_nothing_from_elsewhere() -> None:
    attended = pretended(NASTY)
    html = written(attended, ".html").decode()
    document = embedded(html)
    assert document["sides"] == json.loads(json.dumps(attended.json()["sides"]))
    for kind, entry in document["attention"].items():
        weights = attended.attention[kind].weights_LNTS
        levels = np.frombuffer(zlib.decompress(base64.b64decode(entry["packed"])), np.uint8).reshape(weights.shape)
        np.testing.assert_allclose((levels / 255) ** 2, weights, atol=0.004)
        assert not levels[weights == 0].any() and (levels[weights > 1e-5] > 0).all()
    own = html.replace(re.search('id="document">(.*?)</script>', html, re.DOTALL)[1], "")
    for elsewhere in ("src=", "href=", "url(", "@import", "://", "import(", "fetch(", "XMLHttp", "innerHTML", "eval("):
        assert elsewhere not in own
    parts = {
        "script-src": re.findall(r"<script>(.*?)</script>", html, re.DOTALL),
        "style-src": re.findall(r"<style>(.*?)</style>", html, re.DOTALL),
    }
    policy = re.search('Content-Security-Policy" content="([^"]*)"', html)[1]
    for directive, (content,) in parts.items():
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy


def test_files_have_bounds(monkeypatch) -> None:
    attended = pretended(["a"] * 20)
    monkeypatch.setattr("transformer.tools.attention.MOST_NUMBERS", 4_799)
    with pytest.raises(UserError, match=r"^these are 4,800 weights, and a \.json holds at most 4,799; write an \.html"):
        written(attended, ".json")
    monkeypatch.setattr(page, "MOST", 4_799)
    with pytest.raises(UserError, match=r"^these are 4,800 weights, and an \.html holds at most 4,799; shorten"):
        written(attended, ".html")
    monkeypatch.setattr(picture, "MOST_SIDE", 300)
    pytest.importorskip("matplotlib")
    with pytest.raises(UserError, match=r"^the picture would have \d+ x [\d,]+ pixels; write an \.html"):
        written(attended, ".png")


def test_a_picture(caplog) -> None:
    """Each cell has the colour of its weight; characters that no font has are told, without a warning of matplotlib."""
    pytest.importorskip("matplotlib")
    from PIL import Image

    attended = pretended([*NASTY[:-1], "\U0001f9ff", "ש", "ن"])
    with caplog.at_level("INFO"):
        content = written(attended, ".png")
    (told,) = caplog.messages
    assert re.fullmatch(r"no font of this machine has .*\U0001f9ff.*: the picture shows □ instead", told)
    assert content == written(attended, ".png")
    pixels = np.array(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    heads, (low, high) = [], (picture.LOW, picture.HIGH)
    labels = {name: [picture._cut(piece) for piece in side.pieces] for name, side in attended.sides.items()}
    blocks = picture._fitting(attended, labels)
    assert pixels.shape[:2] == picture._size(blocks)[::-1]
    top = 0
    for block in blocks:
        for layer, maps in enumerate(block.maps_LMTS):
            for head, weights in enumerate(maps):
                x, y = block.left + head * block.step[0], top + block.top + layer * block.step[1]
                n, half = len(weights), block.cell // 2
                found = pixels[y + half : y + n * block.cell : block.cell, x + half : x + n * block.cell : block.cell]
                np.testing.assert_allclose(found, low + (high - low) * np.sqrt(weights)[..., None], atol=0.51)
                heads.append(head)
        top += block.size[1]
    assert heads == [0, 1, 2] * 6


def test_cells_shrink_until_a_picture_fits(monkeypatch) -> None:
    pytest.importorskip("matplotlib")
    labels = dict.fromkeys(("source", "target", "read"), ["piece"] * 30)
    attended = pretended(["piece"] * 30)
    large = picture._fitting(attended, labels)
    monkeypatch.setattr(picture, "MOST_PIXELS", 1_000_000)
    small = picture._fitting(attended, labels)
    assert large[0].cell == picture.CELL and large[0].every == 1
    assert small[0].cell < 8 and small[0].every == 2 and np.prod(picture._size(small)) <= 1_000_000


# ---- In a browser ----------------------------------------------------------------------------------------------------
ACT = """
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const all = (selector) => [...document.querySelectorAll(selector)];
const one = (selector) => document.querySelector(selector);
const seen = () => [one(".attention h2").textContent, one(".readout").textContent];
(async () => {
  const problems = [];
  addEventListener("error", (event) => problems.push(event.message));
  addEventListener("unhandledrejection", (event) => problems.push(String(event.reason)));
  document.addEventListener("securitypolicyviolation", (event) => problems.push(event.violatedDirective));
  for (let i = 0; i < 100 && !one(".readout"); i++) await wait(20);
  const found = {};
  const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  try {
    STEPS
  } catch (error) {
    problems.push(String(error));
  }
  document.body.replaceChildren(Object.assign(document.createElement("pre"), {
    id: "found", textContent: JSON.stringify({ ...found, title: document.title, problems }),
  }));
})();
"""


@pytest.fixture
def browse(tmp_path):
    """`browse(attended, steps, *options)`: what the page with this script added to its own says in a real browser."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium")

    def browse(attended: Attended, steps: str, *options: str, window: str = "1300,900") -> dict:
        kinds = embedded(page.html(attended).decode())
        script = page.resource("attention.js") + ACT.replace("STEPS", steps)
        path = tmp_path / "page.html"
        path.write_text(page.filled(kinds, script), encoding="utf-8")
        with tempfile.TemporaryDirectory() as profile:
            command = [
                *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"),
                *("--disable-background-networking", "--hide-scrollbars", f"--window-size={window}", *options),
                *("--virtual-time-budget=20000", "--dump-dom", path.as_uri()),
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        texts = re.findall(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
        assert texts, done.stdout[-2000:] + done.stderr[-2000:]
        found = json.loads(unescape(texts[0]))
        assert found["problems"] == [] and found["title"] == "Attention"
        return found

    return browse


def test_the_page_in_a_browser(browse) -> None:
    """Kinds, maps and rows are chosen by pointer and keyboard; text is text; the table holds the numbers."""
    attended = pretended(NASTY[:-1], layers=3)
    found = browse(
        attended,
        """
        found.start = seen();
        found.pieces = all("button.piece").map((piece) => piece.textContent);
        found.elements = all("img, b").length;
        all("button.piece")[3].dispatchEvent(new PointerEvent("pointerenter"));
        found.hovered = [seen()[1], all("[aria-pressed=true]").length, one("[aria-pressed=true]").tabIndex];
        all("button.piece")[3].focus();
        press("ArrowRight");
        found.next = document.activeElement.textContent;
        press("End");
        found.last = document.activeElement.textContent;
        const maps = all(".maps input");
        found.names = maps.map((map) => map.getAttribute("aria-label"));
        maps[1].click();
        found.clicked = seen()[0];
        maps[1].focus();
        press("ArrowDown");
        found.below = seen()[0];
        all(".kinds input")[1].click();
        found.kind = seen()[0];
        one("details").open = true;
        await wait(100);
        found.table = all("tr").map((row) => [...row.children].map((cell) => cell.textContent));
        found.label = one("canvas.matrix").getAttribute("aria-label");
        """,
    )
    assert found["start"][0] == "Cross-attention, layer 3, mean of heads"
    visible = {"\u202e": "<202e>", "\n": "⏎", " ": "␣", "": "∅", "\u2028": "<2028>"}
    assert found["pieces"] == [visible.get(piece, piece) for piece in NASTY[:-1]] and found["elements"] == 0
    row = attended.attention["cross"].weights_LNTS[2].mean(axis=0)[3]
    best = visible.get(NASTY[int(row.argmax())], NASTY[int(row.argmax())])
    text, pressed, index = found["hovered"]
    assert text.startswith(
        f"\u2068“&amp;”\u2069, probability 61\u00a0%, takes from: \u2068“{best}”\u2069\u00a0{row.max():.0%}"[:-1]
    )
    assert (pressed, index) == (1, 0)
    assert (found["next"], found["last"]) == (NASTY[4], NASTY[-2])
    assert found["names"] == [f"layer {n}, {head}" for n in (1, 2, 3) for head in ("head 1", "head 2", "mean of heads")]
    assert found["clicked"] == "Cross-attention, layer 1, head 2"
    assert found["below"] == "Cross-attention, layer 2, head 2"
    assert found["kind"] == "Decoder self-attention, layer 3, mean of heads"
    assert found["label"].startswith("Decoder self-attention, layer 3, mean of heads: 15 rows, 15 columns")
    header, *rows = found["table"]
    assert header[1:3] == ["<s>", "</script>"] and [row[0] for row in rows] == found["pieces"]
    mean = attended.attention["decoder"].weights_LNTS[2].mean(axis=0)
    np.testing.assert_allclose([[float(cell) for cell in row[1:]] for row in rows], mean, atol=0.012)


def test_a_long_text_in_a_browser(browse) -> None:
    """512 pieces on each side: drawn on canvases, with few elements; the table has the strongest of each row."""
    found = browse(
        pretended([f"piece{i}" for i in range(512)], heads=1, layers=1),
        """
        const small = one(".maps canvas");
        found.small = [small.width, small.height];
        one("details").open = true;
        await wait(200);
        found.elements = all("*").length;
        found.cells = all("td").length;
        found.last = all("button.piece")[511].textContent;
        """,
    )
    assert max(found["small"]) <= 96 and found["elements"] < 6_000 and found["cells"] == 513
    assert found["last"] == "piece511"


@pytest.mark.parametrize("dark", [False, True])
def test_colours_have_contrast(browse, dark) -> None:
    """By WCAG 2: 4.5 for text, also on a piece that is highlighted most; 3 for lines and what has the focus."""
    found = browse(
        pretended(["a", "b"]),
        """
        const style = getComputedStyle(one(".attention"));
        for (const name of ["back", "text", "quiet", "line", "focus", "low", "high", "mark"])
          found[name] = style.getPropertyValue(`--${name}`);
        found.dark = matchMedia("(prefers-color-scheme: dark)").matches;
        """,
        *(["--blink-settings=preferredColorScheme=0"] if dark else []),
    )
    assert found["dark"] == dark

    def light(name: str) -> float:
        parts = [int(found[name].strip()[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        low, high = sorted((light(one), light(other)))
        return (high + 0.05) / (low + 0.05)

    assert min(contrast("text", "back"), contrast("text", "mark"), contrast("quiet", "back")) >= 4.5
    assert min(contrast("line", "back"), contrast("focus", "back"), contrast("high", "low")) >= 3


@pytest.mark.parametrize(
    ("pieces", "expected"), [(["שלום", "עולם"], "rtl"), (["1", "مرحبا"], "rtl"), (["a", "ש"], "ltr")]
)
def test_pieces_run_in_the_direction_of_their_script(browse, pieces, expected) -> None:
    """On a narrow screen, nothing is wider than the page."""
    found = browse(
        pretended(pieces, heads=8),
        """
        found.direction = one(".pieces").dir;
        const [first, second] = all("button.piece").map((piece) => piece.getBoundingClientRect().left);
        found.leftwards = first > second;
        found.width = document.documentElement.scrollWidth - innerWidth;
        """,
        window="500,900",
    )
    assert found["direction"] == expected and found["leftwards"] == (expected == "rtl") and found["width"] <= 0
