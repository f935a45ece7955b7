"""The commands, options, paths and links of README.md and docs/*.md, and a small shell that runs the commands.

A fenced block marked `sh` and an indented block hold commands. The shell knows pipes, `<`, `>`, `&&` and variables
before a command. It runs the project's programs in this process, and everything else as a process.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

from transformer.command_line import config_file
from transformer.config import AlgorithmConfig, ByteLatentConfig, FinetuneConfig, ParsingConfig, flatten
from transformer.config.tasks import WHOLE_DEV

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PYTHON = ("python", ".venv/bin/python")
PROGRAMS = ("train.py", "evaluate.py")
TOOLS = ("echo", "cat", "head", "paste")  # other programs that a page may use


class Command(NamedTuple):
    """A command line of a page."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


class Step(NamedTuple):
    """One program of a command line."""

    words: list[str]
    environment: dict[str, str]
    source: str | None
    """The file behind `<`."""
    target: str | None
    """The file behind `>`."""
    piped: bool
    """Whether it reads the output of the step before."""

    @property
    def ours(self) -> tuple[str, list[str]] | None:
        """(program, arguments) of a program of the project, as `call` of tests/conftest.py takes them; else None."""
        words = self.words
        if words[0] not in PYTHON:
            return None
        if words[1] in PROGRAMS:
            return words[1], words[2:]
        return ("transformer", words[3:]) if words[1:3] == ["-m", "transformer"] else None


def tokens(page: Path) -> list[Token]:
    return MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))


def commands(page: Path) -> list[Command]:
    """The commands of a page, each on one line."""
    found = []
    for token in tokens(page):
        if token.type == "code_block" or (token.type == "fence" and token.info == "sh"):
            start = token.map[0] + (1 if token.type == "fence" else 0)
            text = ""
            for number, line in enumerate(token.content.split("\n"), start + 1):
                text += line.strip().removesuffix("\\")
                if not line.endswith("\\") and text.split("#")[0].strip():
                    found.append(Command(str(page.relative_to(ROOT)), number, text.strip()))
                if not line.endswith("\\"):
                    text = ""
    return found


ALL = [command for page in PAGES for command in commands(page)]


def python_blocks(page: Path) -> list[str]:
    """The Python programs of a page."""
    return [token.content for token in tokens(page) if token.type == "fence" and token.info == "python"]


def code_spans(page: Path) -> list[str]:
    """The `code` within the prose of a page."""
    return [child.content for token in tokens(page) for child in token.children or () if child.type == "code_inline"]


def links(page: Path) -> list[str]:
    """The addresses of the links and pictures of a page."""
    inline = [child for token in tokens(page) for child in token.children or ()]
    found = [child.attrs.get("href") or child.attrs.get("src") for child in inline]
    return [address for address in found if address]


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    content = [after.content for token, after in pairwise(tokens(page)) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in content}


def steps(command: Command) -> list[Step]:
    """The programs of a command line, in order. Raises ValueError for what this shell does not know."""
    lexer = shlex.shlex(command.text, posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    found: list[Step] = []
    words: list[str] = []
    files: dict[str, str] = {}
    piped = False
    rest = [*lexer, "&&"]
    while rest:
        word = rest.pop(0)
        if word in ("<", ">"):
            files[word] = rest.pop(0)
        elif word in ("|", "&&"):
            variables = dict(w.split("=", 1) for w in words if re.match(r"[A-Z_]+=", w))
            words = words[len(variables) :]
            if not words:
                raise ValueError(f"{command}: no program before {word}")
            found.append(Step(words, variables, files.get("<"), files.get(">"), piped))
            words, files, piped = [], {}, word == "|"
        elif set(word) <= set("|&;<>()"):
            raise ValueError(f"{command}: this shell does not know {word}")
        else:
            words.append(word)
    return found


# ---- Toy sizes -------------------------------------------------------------------------------------------------------
# Each training of a page gets those of these options that its config has. They replace the page's own values.
MODEL = {
    "--model.encoder_layers": "1",
    "--model.decoder_layers": "1",
    "--model.d_model": "32",
    "--model.d_ff": "64",
    "--model.heads": "2",
}
TRAINING = {
    "--data.vocab_size": "390",
    "--data.max_length": "16",
    "--data.context": "32",
    "--data.length_buckets": "2",
    "--data.workers": "1",
    "--train.steps": "4",
    "--train.batch_tokens": "512",
    "--train.eval_every": "2",
    "--train.eval_sentences": "4",
    "--train.checkpoint_every": "2",
    "--decode.beam_size": "2",
    "--decode.max_extra_length": "3",
    "--decode.max_source_length": "30",
}
# For fine-tuning also these: 33 to 64 texts give 4 updates.
TUNING = {
    "--tune.epochs": "2",
    "--tune.batch_rows": "32",
    "--tune.evaluations": "1",
    "--data.vocab_size": "100",
    "--data.length_buckets": "1",
}
# For bytes in patches also these.
PATCHES = {
    "--model.latent.decoder_layers": "1",
    "--model.latent.d_model": "64",
    "--model.latent.d_ff": "64",
    "--model.latent.heads": "2",
    "--model.ngrams.rows": "64",
    "--entropy.rows": "8",
}
# These replace a value only where the page gives the option.
IF_GIVEN = {"--profile": "2:3", "--stride": "8", "--train.seeds": "2", "--tune.frozen_layers": "1"}


def at_toy_size(program: str, arguments: list[str]) -> list[str]:
    """The arguments, with toy sizes where the program builds a model of its own."""
    toy: dict[str, str] = {}
    if program == "train.py":
        toy = MODEL | TRAINING
    elif arguments[:1] in (["describe"], ["plan"]):
        toy = MODEL | {name: TRAINING[name] for name in ("--data.vocab_size", "--decode.beam_size")}
    if toy:
        config = config_file(arguments[arguments.index("--config") + 1])
        fields, left_out = flatten(config), set()
        if isinstance(config, FinetuneConfig):  # the texts decide on the updates, and a start on the model
            toy |= TUNING
            left_out = {f"--train.{name}" for name in config.computed}
            left_out |= MODEL.keys() if "--train.init_from" in arguments else set()
        if isinstance(config, ByteLatentConfig):
            toy |= PATCHES
        if isinstance(config, AlgorithmConfig):
            left_out = {"--train.batch_tokens"}  # data.batch_rows sets it
        if isinstance(config, ParsingConfig):
            toy |= {"--data.vocab_size": "38"}
            left_out = MODEL.keys() - {"--model.decoder_layers"} if "--train.init_from" in arguments else set()
            left_out |= {"--decode.max_extra_length", "--decode.max_source_length"}  # refused: a tree has its length
        if isinstance(config, WHOLE_DEV):
            left_out = {*left_out, "--train.eval_sentences"}
        # A decoder alone stays one: its config has 0 encoder layers.
        toy = {name: value for name, value in toy.items() if fields.get(name[2:], 0) != 0 and name not in left_out}
    wanted = toy | {name: value for name, value in IF_GIVEN.items() if name in arguments}
    arguments = list(arguments)
    for name, value in wanted.items():
        if name in arguments:
            arguments[arguments.index(name) + 1] = value
        else:
            arguments += [name, value]
    return arguments


def run(command: Command, give: Callable[..., tuple[int, str, str]]) -> str:
    """Run a command in the current folder, at toy size; returns the output of its last program.

    `give(input, program, *arguments)` runs a program of the project in this process: exit code, output, log.
    Raises AssertionError if a program fails.
    """
    out = ""
    for step in steps(command):
        given = Path(step.source).read_text() if step.source else out if step.piped else ""
        if step.ours is not None and not step.environment:
            program, arguments = step.ours
            code, out, log = give(given, program, *at_toy_size(program, arguments))
        else:
            words = step.words
            if step.ours is not None:
                program, arguments = step.ours
                start = ["-m", "transformer"] if program == "transformer" else [str(ROOT / program)]
                words = [sys.executable, *start, *at_toy_size(program, arguments)]
            environment = {**os.environ, **step.environment, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(words, input=given, env=environment, capture_output=True, text=True)
            code, out, log = done.returncode, done.stdout, done.stderr
        assert code == 0, f"{command}\n{log[-3000:]}"
        if step.target:
            Path(step.target).write_text(out)
    return out
