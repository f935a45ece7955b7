"""python -m transformer generate and score with a language model, from the command line to the text."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "inference"))
from generators import CONFIG, VOCABULARY, tiny

import transformer
from transformer.checkpoint import Checkpoints
from transformer.config import DecodeConfig, LanguageModelConfig, TextConfig, to_json
from transformer.inference import text_stream
from transformer.tasks.vocabulary import files_of


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """A workdir as training leaves it, with a random model. Don't write to it."""
    folder = tmp_path_factory.mktemp("language_model") / "run"
    config = LanguageModelConfig(
        model=CONFIG,
        data=TextConfig(context=16, pieces="characters"),
        decode=DecodeConfig(sample=True, max_extra_length=8),
    )
    files = {"config.json": to_json(config).encode(), **files_of(VOCABULARY)}
    checkpoints = Checkpoints(str(folder))
    progress = {"step": 1, "vocab_size": VOCABULARY.size}
    checkpoints.save(1, {"params": tiny()[1]}, progress=progress, files=files)
    checkpoints.wait()
    return folder


@pytest.fixture(scope="module")
def generator(workdir):
    return transformer.Generator.load(str(workdir))


@pytest.fixture
def give(call, monkeypatch):
    """`give(text, "generate", ...)`: the verb with this text as its input."""

    def give(text, *arguments):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        return call("transformer", *arguments)

    return give


def without(generator, **decode):
    return dataclasses.replace(generator.config, **decode)


def test_a_prompt(call, workdir, generator) -> None:
    done = call("transformer", "generate", workdir, "--prompt", "ab")
    (text,) = generator.generate(["ab"])
    assert (done.code, done.out, done.err) == (0, f"ab{text}\n", f"using checkpoint 1 of {workdir}\n")
    stop = text[1:2]
    done = call("transformer", "generate", workdir, "--prompt", "ab", "--stop", "x", "--stop", stop)
    assert done.out == f"ab{text.split(stop)[0]}\n"
    other = call("transformer", "generate", workdir, "--prompt", "ab", "--decode.seed", 3, "--decode.top_k", 9)
    assert other.code == 0 and other.out != f"ab{text}\n"


def test_several_samples(call, workdir, generator) -> None:
    done = call("transformer", "generate", workdir, "--prompt", "ab", "--samples", 3)
    lines = call("transformer", "generate", workdir, "--prompt", "ab", "--samples", 3, "--jsonl").out
    found = [json.loads(line) for line in lines.split("\n")[:-1]]
    assert done.out == "---------------\n".join(f"ab{one['text']}\n" for one in found)
    assert [list(one) for one in found] == [["prompt", "text", "log_prob", "pieces"]] * 3
    for one in found:
        assert one["prompt"] == "ab" and one["pieces"] == VOCABULARY.pieces(VOCABULARY.encode(one["text"]))
    ours = transformer.Generator(*tiny(), VOCABULARY, without(generator, n_best=3), context=16)
    wanted = ours.generate_n_best(["ab"])[0]
    assert [(one["text"], one["log_prob"]) for one in found] == [(one.text, one.log_prob) for one in wanted]


def test_prompts_from_standard_input(give, workdir, generator) -> None:
    """A line each; an empty line is an empty prompt. With --jsonl, a line may be an object."""
    texts = generator.generate(["ab", "", "c"])
    done = give("ab\n\nc", "generate", workdir)
    assert done.code == 0, done.err
    assert done.out == "---------------\n".join(
        f"{prompt}{text}\n" for prompt, text in zip(["ab", "", "c"], texts, strict=True)
    )
    done = give('ab\n{"prompt": "", "id": 7}\nc', "generate", workdir, "--jsonl")
    found = [json.loads(line) for line in done.out.split("\n")[:-1]]
    assert [one["text"] for one in found] == texts and [one.get("id") for one in found] == [None, 7, None]
    assert give("", "generate", workdir).out == ""


class Watched(io.BytesIO):
    """Remembers what has been written at each flush."""

    def __init__(self):
        super().__init__()
        self.flushed = []

    def flush(self):
        self.flushed.append(self.getvalue().decode())


def test_each_piece_is_flushed_as_it_comes(generator) -> None:
    (text,), target = generator.generate(["ab"]), Watched()
    text_stream.answer_prompt(generator, "ab", target, (), jsonl=False)
    assert target.flushed == [f"ab{text[:n]}" for n in range(len(text) + 1)] + [f"ab{text}\n"]


def test_each_piece_of_a_line_that_arrives_alone_is_flushed(generator) -> None:
    both, target = generator.generate_n_best(["ab", "ba"]), Watched()
    read, write = os.pipe()
    os.write(write, b"ab\n")
    with os.fdopen(read, "rb", buffering=0) as source, os.fdopen(write, "wb", buffering=0) as typed:
        answer = partial(text_stream.answer_prompts, generator, source, target, (), jsonl=False)
        answered = threading.Thread(target=answer)
        answered.start()
        one, other = (found[0].text for found in both)
        while not target.getvalue().endswith(b"\n"):
            time.sleep(0.01)
        typed.write(b"ba\n")
        typed.close()
        answered.join()
    first = f"ab{one}\n"
    assert target.flushed[: len(one) + 2] == [*(f"ab{one[:n]}" for n in range(len(one) + 1)), first]
    assert target.flushed[-1] == f"{first}{text_stream.SEPARATOR}\nba{other}\n"
    assert f"{first}{text_stream.SEPARATOR}\nba{other[:1]}" in target.flushed


def test_scores_of_texts(give, workdir, generator) -> None:
    lines = [{"text": "abc", "id": 1}, {"text": ""}]
    done = give("".join(json.dumps(line) + "\n" for line in lines), "score", workdir)
    found = [json.loads(line) for line in done.out.split("\n")[:-1]]
    scored = generator.score(["abc", ""])
    assert found == [
        line | {"log_prob": one.log_prob, "pieces": list(one.pieces), "log_probs": list(one.log_probs)}
        for line, one in zip(lines, scored, strict=True)
    ]
    assert found[0]["pieces"] == ["a", "b", "c"] and found[0]["log_probs"][0] is None
    done = give('{"source": "x"}\n', "score", workdir)
    assert done.code == 2 and done.err.splitlines()[-1].startswith("error: line 1: no field 'text'; each object needs")
    done = give(json.dumps({"text": "a" * 17}), "score", workdir)
    assert done.code == 2 and "error: line 1: the text has 17 pieces, and the model sees at most 16 at once" in done.err


def test_what_is_cut_or_unknown_is_told(call, workdir) -> None:
    done = call("transformer", "generate", workdir, "--prompt", "ab?" * 6)
    assert done.code == 0 and done.out.startswith("ab?" * 6)
    told = done.err.splitlines()[1:]
    assert told == [
        "warning: line 1: the vocabulary lacks '?', which the model reads as unknown (1 of 1 lines)",
        "warning: line 1: the prompt has 18 pieces; only the last 16 are used: the model's context (1 of 1 lines)",
        "warning: the model sees at most 16 pieces at once (data.context, model.max_positions): where prompt and "
        "output together are longer, it goes on with the last 8 of them",
    ]


def test_arguments_in_another_locale_are_read_as_utf8(call, workdir) -> None:
    """Python keeps the bytes of arguments that the locale lacks as surrogates."""
    surrogates = "\udcc3\udca4"  # the two bytes of ä
    done = call("transformer", "generate", workdir, "--prompt", f"{surrogates}b", "--stop", surrogates)
    assert done.code == 0 and done.out.startswith("äb") and "the vocabulary lacks 'ä'" in done.err
    done = call("transformer", "generate", workdir, "--prompt", "b", "--decode.banned", "a", surrogates)
    assert done.code == 0 and "a" not in done.out
    for option in ("--prompt", "--stop", "--decode.banned"):
        done = call("transformer", "generate", workdir, option, "\udcff")
        assert (done.code, done.out) == (2, "")
        assert done.err.splitlines()[-1] == f"error: {option}: not valid UTF-8; give text in UTF-8"


def test_objects_that_are_read_as_text_are_told(give, workdir) -> None:
    told = "warning: line 2 is a JSON object and is read as text; --jsonl reads its field 'prompt'"
    assert told in give('{\n{"prompt": "ab"}\n{"prompt": "ab"}\n', "generate", workdir).err.splitlines()
    told = "warning: line 2 is no JSON object with a field 'prompt', so it is read as text"
    for line in ('{"promt": "ab"}', '{"prompt": "ab"', "{ab"):
        done = give(f'{{"prompt": "ab"}}\n{line}\n', "generate", workdir, "--jsonl")
        assert done.code == 0 and done.err.splitlines().count(told) == 1
        assert json.loads(done.out.splitlines()[1])["prompt"] == line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("generate", "the workdir comes first: python -m transformer generate runs/quickstart --prompt "),
        ("generate RUN --samples 3 --decode.n_best 2", "--samples and --decode.n_best are one option; leave one of"),
        ("generate RUN --samples 9 --decode.sample False", "--samples 9: beam search finds at most decode.beam_size"),
        ("generate RUN --samples 0", "argument --samples: '0' is not a whole number from 1 to 10000"),
        ("generate RUN --stop=", "--stop is empty; leave it out, or give the text to end before"),
        ("generate RUN --decode.min_p 2", "decode.min_p = 2.0: must be at most 1"),
        ("generate RUN --decode.repetition_penalty 0", "decode.repetition_penalty = 0.0: must be above 0"),
        ("generate RUN --promt a", "unknown option --promt; did you mean --prompt?"),
        ("translate RUN", "RUN: its task is 'language_model'; give one of the task 'translation', or use: python -m "
         "transformer generate RUN"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(give, workdir, arguments: str, told: str) -> None:
    done = give("a\n", *(str(workdir) if word == "RUN" else word for word in arguments.split()))
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1].startswith(f"error: {told}".replace("RUN", str(workdir)))


def test_a_translation_run_is_refused(call, trained: Path) -> None:
    done = call("transformer", "generate", trained, "--prompt", "a")
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1] == (
        f"error: {trained}: its task is 'translation'; give one of the task 'language_model' or 'byte_latent', or use: "
        f"python -m transformer translate {trained}"
    )
    with pytest.raises(transformer.UserError, match=r"its task is 'translation'; give one of the task 'language_mo"):
        transformer.Generator.load(str(trained))
    done = call("transformer", "fill", trained)
    assert done.code == 2 and done.err.endswith(
        f"its task is 'translation'; give one of the task 'masked', or use: python -m transformer translate {trained}\n"
    )
