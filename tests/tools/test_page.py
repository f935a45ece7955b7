"""The page's API with a model of each kind, over sockets: answers are those of the Python API and of the document."""

import base64
import dataclasses
import json
import math
import re
import signal
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs the extra `page`")
pytest.importorskip("uvicorn", reason="needs the extra `page`")
pytest.importorskip("tokenizers", reason="needs tokenizers")

from schemas import check
from served import Client, serving
from test_attention_verb import vocabulary, workdirs  # noqa: F401

from transformer import Classifier, Generator, Parser, Translator
from transformer.checkpoint import Checkpoints
from transformer.config import DecodeConfig, ModelConfig, UserError
from transformer.inference.recorder import ROOT, Alternative, Node, Recorded
from transformer.model import build
from transformer.tools.page.decoding import Translation
from transformer.tools.page.kinds import kind_of
from transformer.tools.page.search import Spelling, as_json

SENTENCE = "red cat sees the big dog"
ODD = ["👩‍🚀 red cat", "<script>alert(1)</script>", "שלום red", "\u202ered\x00cat", "red\ncat", "a" * 25]


class Page:
    """A model that is served."""

    def __init__(self, workdir: Path, name: str | None = None, **decode):
        checkpoint = Checkpoints(workdir).open(name)
        options = getattr(checkpoint.config, "decode", None)
        options = options and dataclasses.replace(options, **decode)
        self.kind, self.model = kind_of(checkpoint, options)

    def __enter__(self):
        self._serving = serving(self.kind.endpoints, self.model)
        self.client: Client = self._serving.__enter__()
        self.document = self.client.request("GET", "/api/1/openapi.json")
        self.document = json.loads(self.document.text)
        check(self.ask("model"), self.schema("model"))
        return self

    def __exit__(self, *error):
        self._serving.__exit__(*error)

    def schema(self, name: str, status: str = "200"):
        post = self.document["paths"][f"/api/1/{name}"]["post"]
        return post["responses"][status]["content"]["application/json"]["schema"]

    def ask(self, endpoint: str, **request):
        """The answer, which must be as the document says."""
        answer = self.client.post(endpoint, request)
        assert answer.status == 200, answer.text
        fields = self.document["paths"][f"/api/1/{endpoint}"]["post"]["requestBody"]["content"]["application/json"]
        check(request, fields["schema"], "request")
        check(answer.json, self.schema(endpoint))
        return answer.json

    def refused(self, endpoint: str, **request) -> str:
        answer = self.client.post(endpoint, request)
        assert answer.status == 400, answer.text
        check(answer.json, self.schema(endpoint, "400"))
        assert answer.json["error"].startswith(f"{answer.json.get('field', '')}")
        return answer.json["error"]


@pytest.fixture(scope="module")
def translation(trained):
    with Page(trained) as page:
        yield page


def unpacked(entry):
    weights = np.frombuffer(zlib.decompress(base64.b64decode(entry["packed"])), np.uint8)
    return (weights.astype(np.float64) / 255).reshape(entry["layers"], entry["heads"], -1) ** 2


# ---- Translation -----------------------------------------------------------------------------------------------------
def test_translate(translation, trained):
    translator = Translator.load(str(trained))
    assert sorted(translation.model["endpoints"]) == ["attention", "score", "translate"]
    for options in ({}, {"beam_size": 3, "n_best": 2}, {"length_penalty": 0.0, "max_extra_length": 1}):
        theirs = translator.with_config(dataclasses.replace(translator.config, **options))
        for prefix in ("", "rot Ka"):
            answer = translation.ask("translate", source=SENTENCE, prefix=prefix, details=True, **options)
            (expected,) = theirs.translate_n_best([SENTENCE], prefixes=[prefix])
            assert answer["translation"] == expected[0].text and answer["translation"].startswith(prefix)
            assert answer["score"] == pytest.approx(expected[0].score, rel=1e-5)
            (scored,) = theirs.score_pieces(theirs.encode([SENTENCE]), [expected[0].tokens])
            assert answer["pieces"] == list(scored.pieces) and answer["alignment"] == list(scored.alignment)
            np.testing.assert_allclose(answer["log_probs"], scored.log_probs, rtol=1e-4, atol=1e-5)
            found = [each["translation"] for each in answer.get("n_best", [])]
            assert found == ([each.text for each in expected] if "n_best" in options else [])


def test_a_search_that_is_shown(translation):
    """The tree leads to the outputs; the texts of pieces spell them; an alternative as a prefix is followed."""
    answer = translation.ask("translate", source=SENTENCE, n_best=2, search=True)
    nodes = answer["search"]["nodes"]
    for output, found in zip(answer["search"]["outputs"], answer["n_best"], strict=True):
        assert output["score"] == pytest.approx(found["score"])
        assert "".join(piece["text"] for piece in output["pieces"]).strip() == found["translation"]
        parent = -1
        for piece in output["pieces"]:
            node = nodes[piece["node"]]
            assert (node["parent"], node["piece"]) == (parent, piece["piece"])
            assert piece["probability"] == pytest.approx(math.exp(node["log_prob"]), rel=1e-5)
            likely = {one["piece"]: one["probability"] for one in piece["alternatives"]}
            assert likely[piece["piece"]] == pytest.approx(piece["probability"], rel=1e-3)
            parent = piece["node"]
        assert nodes[parent]["state"] == "complete" and output["pieces"][-1]["text"] == ""
    states = {node["state"] for node in nodes}
    assert states == {"considered", "live", "complete"}
    assert all(("score" in node) == (node["state"] == "complete") for node in nodes)
    third = answer["search"]["outputs"][0]["pieces"][2]
    other = next(one for one in third["alternatives"] if one["piece"] != third["piece"] and one["text"])
    head = "".join(piece["text"] for piece in answer["search"]["outputs"][0]["pieces"][:2])
    prefix = (head + other["text"]).lstrip()
    again = translation.ask("translate", source=SENTENCE, prefix=prefix, search=True)
    assert again["translation"].startswith(prefix)


def test_scores_and_attention_of_translations(translation, trained):
    (scored,) = Translator.load(str(trained)).score([SENTENCE], ["rot Katze"])
    answer = translation.ask("score", source=SENTENCE, target="rot Katze")
    assert answer["score"] == pytest.approx(scored.score, rel=1e-5) and answer["pieces"] == list(scored.pieces)
    whole = translation.ask("attention", source=SENTENCE, target="rot Katze")
    small = translation.ask("attention", source=SENTENCE, target="rot Katze", packed=True)
    assert whole["sides"] == small["sides"] and list(whole["attention"]) == ["encoder", "decoder", "cross"]
    for kind, entry in whole["attention"].items():
        weights = np.array(entry["weights"]).reshape(entry["layers"], entry["heads"], -1)
        np.testing.assert_allclose(unpacked(small["attention"][kind]), weights, atol=0.005)
    found = translation.ask("attention", source=SENTENCE)
    assert found["sides"]["target"]["text"] == translation.ask("translate", source=SENTENCE)["translation"]


def test_texts_that_are_odd_long_or_missing(translation):
    for text in ODD:
        answer = translation.ask("translate", source=text, search=True)
        assert answer["source"] == text
    assert translation.refused("translate", source=" ") == "source: is empty; give some words"
    assert re.fullmatch(
        r"source: has \d+ pieces, and the most is 30; make it shorter",
        translation.refused("translate", source="a" * 999),
    )
    assert "prefix: has" in translation.refused("translate", source="a", prefix="rot " * 100)
    assert "target: has" in translation.refused("score", source="a", target="rot " * 100)
    assert translation.refused("translate", source="a", beam_size=17) == (
        "beam_size: must be a whole number from 1 to 16"
    )
    assert translation.refused("translate", source="a", beam_size=2, n_best=3) == (
        "n_best: must be at most beam_size, 2"
    )
    assert len(translation.ask("translate", source=SENTENCE, n_best=5)["n_best"]) == 5  # the beam is as large
    assert translation.client.post("translate", {"source": "x" * 100_000}).status == 413
    assert translation.client.post("generate", {"prompt": "a"}).status == 404


def test_a_prefix_that_is_too_long_spoils_no_other_request(translation):
    """Requests are decoded together; the bounds of a prefix depend on max_extra_length."""
    requests = [{"source": "red cat", "max_extra_length": 0, "prefix": text} for text in ("rot", "rot " * 40)]
    right, wrong = translation.kind._translate(requests, threading.Event())
    assert right["translation"].startswith("rot")
    assert wrong.field == "prefix" and re.fullmatch(r"prefix: has \d+ pieces, and the most is 30; .*", str(wrong))
    assert translation.ask("translate", source="red cat", prefix="rot " * 20)["translation"].startswith("rot rot")


def test_a_model_with_learned_positions_keeps_to_them(trained):
    """However many pieces a request asks for."""
    tokenizer = Translator.load(str(trained)).tokenizer
    model = build(ModelConfig(encoder_layers=1, decoder_layers=1, vocab_size=tokenizer.vocab_size, positions="learned",
                              max_positions=12, d_model=16, d_ff=24, heads=2, dropout=0.0))  # fmt: skip
    config = DecodeConfig(max_source_length=8, max_extra_length=3, length_penalty=5.0)
    translator = Translator(model, model.init(jax.random.key(0)), tokenizer, config)
    kind = Translation(translator)
    (found,) = kind._translate([{"source": "red cat", "max_extra_length": 512, "details": True}], threading.Event())
    assert found["score"] is not None and len(found["pieces"]) <= 12
    (wrong,) = kind._translate([{"source": "a", "prefix": "a b c d e f g h i j k l m"}], threading.Event())
    assert wrong.field == "prefix"
    with pytest.raises(UserError, match=r"decode\.max_extra_length = 512 allow for 521 positions"):
        translator.with_config(dataclasses.replace(config, max_extra_length=512))


def test_what_pieces_spell():
    """A character of several pieces becomes complete with its last one; none does after a piece without text."""
    spelling = Spelling([b"\xe2\x96\x81a", b"\xc3", b"\xa9x", b"\xff", b""], "\u2581")
    nodes = [Node(parent, step, piece, -1.0, -1.0, False) for parent, step, piece in
             ((ROOT, 0, 0), (0, 1, 1), (1, 2, 2), (2, 3, 3), (3, 4, 0), (1, 2, 0))]  # fmt: skip
    alternatives = {1: [Alternative(2, -1.0), Alternative(1, -1.0)], 0: [Alternative(1, -1.0)]}
    record = Recorded(nodes, alternatives, None, [[0, 1, 2, 3, 4]])
    found = as_json(record, str, spelling, 4, 1)
    assert [node["text"] for node in found["nodes"]] == [" a", None, "éx", None, None, None]
    pieces = found["outputs"][0]["pieces"]
    assert [piece["text"] for piece in pieces] == [" a", "", "éx", None, None]
    assert [one["text"] for one in pieces[2]["alternatives"]] == ["éx", None]
    assert [one["text"] for one in pieces[1]["alternatives"]] == [None]


def test_four_clients_at_once(translation):
    sentences = [SENTENCE, "a small green bird", "old house finds new tree", "the blue car"]
    alone = [translation.ask("translate", source=text)["translation"] for text in sentences]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = pool.map(lambda text: translation.ask("translate", source=text), sentences)
            assert [each["translation"] for each in found] == alone
        mixed = [
            {"source": SENTENCE},
            {"source": " "},
            {"source": "a", "prefix": "x" * 400},
            {"source": "a", "n_best": 2},
        ]
        answers = list(pool.map(lambda request: translation.client.post("translate", request), mixed))
    assert [answer.status for answer in answers] == [200, 400, 400, 200]


# ---- Other kinds -----------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_language_model(workdirs):  # noqa: F811
    options = {"beam_size": 2, "n_best": 2, "min_length": 4, "sample": False}
    with Page(workdirs["gpt"], **options) as page:
        assert sorted(page.model["endpoints"]) == ["attention", "generate", "score"]
        generator = Generator.load(str(workdirs["gpt"]), config=DecodeConfig(**options, max_extra_length=6))
        answer = page.ask("generate", prompt="abc", max_extra_length=6, search=True)
        (expected,) = generator.generate_n_best(["abc"])
        assert [each["text"] for each in answer["n_best"]] == [each.text for each in expected]
        assert answer["log_prob"] == pytest.approx(expected[0].log_prob, rel=1e-4)
        for output, each in zip(answer["search"]["outputs"], expected, strict=True):
            assert "".join(piece["text"] for piece in output["pieces"]) == each.text
            nodes = [answer["search"]["nodes"][piece["node"]] for piece in output["pieces"]]
            assert "".join(node["text"] for node in nodes) == each.text
        drawn = [page.ask("generate", prompt="", sample=True, seed=seed, n_best=3)["n_best"] for seed in (1, 1, 2)]
        assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == 3
        stopped = page.ask("generate", prompt="abc", stop=[answer["text"][1:2]], max_extra_length=6)
        assert answer["text"][1] not in stopped["text"]
        (scored,) = generator.score(["abcd"])
        found = page.ask("score", text="abcd")
        assert found["log_probs"][0] is None and found["log_prob"] == pytest.approx(scored.log_prob, rel=1e-5)
        assert list(page.ask("attention", text="abcd")["attention"]) == ["decoder"]
        assert page.refused("generate", prompt="a" * 30) == "prompt: has 31 pieces, and the most is 21; make it shorter"
        assert page.ask("score", text="")["log_prob"] == 0
        assert "the text is empty" in page.refused("attention", text="")


def test_a_classifier(workdirs):  # noqa: F811
    with Page(workdirs["pairs"]) as page:
        (expected,) = Classifier.load(str(workdirs["pairs"])).classify([("the cat", "a dog")])
        answer = page.ask("predict", text="the cat", second="a dog")
        assert answer["label"] == expected.label and answer["probabilities"] == pytest.approx(expected.probabilities)
        assert page.ask("attention", text="the cat", second="a dog")["sides"]["text"]["parts"].count(2) == 3
        assert page.refused("predict", text="the cat").startswith("second: missing; give")
        assert "text: has more than the 24 pieces" in page.refused("predict", text="cat " * 30, second="dog")
    with Page(workdirs["tags"]) as page:
        answer = page.ask("predict", text="the cat walks")
        assert answer["words"] == ["the", "cat", "walks"] and len(answer["label"]) == len(answer["probability"]) == 3
        assert page.refused("predict", text="the", second="cat") == "second: unknown; this endpoint takes text"


def test_a_parser(workdirs):  # noqa: F811
    with Page(workdirs["parser"]) as page:
        (expected,) = Parser.load(str(workdirs["parser"])).parse(["the cat ( walks"])
        answer = page.ask("predict", text="the cat ( walks")
        assert answer["tree"] == str(expected)

        def words(node):
            return [node[1]] if isinstance(node[1], str) else [word for child in node[1:] for word in words(child)]

        assert words(answer["root"]) == ["the", "cat", "(", "walks"] and answer["root"][0] == expected.label
        assert "text: has 300 words, and the most is 256" in page.refused("predict", text="cat " * 300)
        assert list(page.ask("attention", text="the cat")["attention"]) == ["encoder", "decoder", "cross"]


def test_a_masked_model(workdirs):  # noqa: F811
    with Page(workdirs["bert"]) as page:
        (mask,) = page.ask("predict", text="the [MASK] walks")["masks"]
        assert len(mask) == 5 and mask == sorted(mask, key=lambda one: -one["probability"])
        assert list(page.ask("attention", text="the [MASK]")["attention"]) == ["encoder"]
        assert "text: has 32 pieces, and the most is 24" in page.refused("predict", text="cat " * 30)


# ---- The command -----------------------------------------------------------------------------------------------------
def test_mistakes_of_the_command(call, workdirs, monkeypatch):  # noqa: F811
    for arguments, said in (
        ((), "the workdir comes first: python -m transformer page runs/quickstart --port 8000"),
        ((workdirs["gpt"], "--port", "70000"), "'70000' is not a port, from 0 to 65535"),
        ((workdirs["gpt"], "--host", "no such host"), "--host no such host: unknown"),
        ((workdirs["gpt"], "--port", "0", "--decode.beam_size", "0"), "decode.beam_size = 0"),
        ((workdirs["bert"], "--port", "0", "--decode.beam_size", "2"), "the task 'masked' has no such option"),
        ((workdirs["algorithm"], "--port", "0"), "its task is 'algorithm'"),
        (("nowhere", "--port", "0"), "nowhere"),
    ):
        done = call("transformer", "page", *arguments)
        assert (done.code == 2 and done.err.startswith("error:")) or said in done.err, done
        assert said in done.err and done.out == "", done
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = call("transformer", "page", workdirs["gpt"])
    assert done.code == 2 and "needs starlette, which is not installed: pip install 'transformer[page]'" in done.err


@pytest.mark.slow
def test_sigterm_lets_requests_end(trained, environment):
    """The address is printed when it answers. After SIGTERM, a decoding is answered, and the process ends with 143."""
    command = [sys.executable, "-m", "transformer", "page", str(trained), "--port", "0"]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=environment) as process:
        try:
            address = process.stdout.readline()
            port = int(re.fullmatch(r"http://127.0.0.1:(\d+)/\n", address)[1])
            client, answers = Client(port), []
            request = {"source": f"{SENTENCE} Geheimnis", "beam_size": 7, "search": True}  # must be compiled
            thread = threading.Thread(target=lambda: answers.append(client.post("translate", request)))
            thread.start()
            time.sleep(0.7)
            process.send_signal(signal.SIGTERM)
            thread.join(60)
            assert answers and answers[0].status == 200 and answers[0].json["search"]["nodes"]
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 143 and out == ""
    assert "Geheimnis" not in err and "SIGTERM" in err.splitlines()[-1] and "Traceback" not in err
