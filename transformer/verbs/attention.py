"""python -m transformer attention."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from transformer.command_line import Parser, decode_options, set_up_jax, text_of
from transformer.config import (
    Config,
    DecodeConfig,
    FinetuneConfig,
    LanguageModelConfig,
    MaskedConfig,
    ParsingConfig,
    UserError,
    require_task,
)
from transformer.data.compression import Damaged
from transformer.data.opening import open_stream
from transformer.evaluation import LESS_TO_DECODE
from transformer.files import local_path, replace
from transformer.memory import enough_memory
from transformer.packages import require
from transformer.verbs.decoding import workdir_first

if TYPE_CHECKING:
    from transformer.checkpoint import Checkpoint
    from transformer.inference.attention import Attended

log = logging.getLogger("transformer")

_PROGRAM = "python -m transformer attention"
_OPTIONS = ("target", "output", "checkpoint", "help")
ENDINGS = (".html", ".png", ".json")
_TOLD = (
    "Without a text, or with -, reads it from standard input. Of a model for pairs, the text is two texts with a tab "
    "between them. An .html opens in any browser, offline; a .png needs matplotlib; docs/attention.md describes .json."
)
_LONGEST = 100_000  # bytes of standard input; no picture has so many


class _Request(NamedTuple):
    """What the command line asks for, besides the workdir."""

    text: str
    target: str | None
    rest: list[str]
    """The options of the config."""

    @property
    def line(self) -> str:
        """The text. Raises `UserError` if it has several lines."""
        if "\n" in self.text:
            raise UserError(f"the text has {self.text.count(chr(10)) + 1} lines; give one")
        return self.text

    def decoding(self, config: Any) -> DecodeConfig:
        """The options of the search."""
        return decode_options(config, self.rest, _PROGRAM, _OPTIONS)

    def refuse_search(self, config: Any) -> None:
        """Raise `UserError` for what makes sense only where the model writes something."""
        if self.rest:
            raise UserError(f"{self.rest[0]}: the task {config.task!r} has no such option; leave it out")
        self.refuse_target(config)

    def refuse_target(self, config: Any) -> None:
        if self.target is not None:
            raise UserError(f"--target is for translation, and the task of this model is {config.task!r}; leave it out")


@enough_memory(LESS_TO_DECODE)
def attention(arguments: list[str]) -> None:
    """Draw all attention weights of one pass over a text, and over its translation or tree."""
    parser = Parser(_PROGRAM, attention.__doc__, epilog=_TOLD, add_help=False)
    parser.add_argument("workdir", nargs="?", help="the workdir of a training run; of several seeds, the best is used")
    parser.add_argument("text", nargs="?", help="the text that the model reads")
    parser.add_argument("--target", metavar="TEXT", help="its translation; default: the one that the model finds")
    parser.add_argument("--output", metavar="FILE", help="the file to write: an .html, .png or .json")
    parser.add_argument("--checkpoint", help="best, last, average or a step; default: the average if any, else best")
    parser.add_argument("-h", "--help", action="store_true", help="show this help and stop")
    args, rest = parser.parse_known_args(arguments)
    if args.help:
        parser.print_help()
        print("\nSearch of translations and trees (default: the values in the workdir's config):\n")
        decode_options(Config(), ["--help"], parser.prog)
    workdir_first(parser, args, arguments, '"A text." --output attention.html')
    if args.text is None and rest and not rest[0].startswith("--"):  # the text stands after an option
        args.text = rest.pop(0)
    elif args.text is None and rest:  # refuse what is no option before standard input is waited for
        decode_options(Config(), rest, _PROGRAM, _OPTIONS)
    path = _checked(args.output)
    request = _Request(_given(args.text), None if args.target is None else text_of("--target", args.target), rest)
    set_up_jax()
    from transformer.checkpoint import Checkpoints, best_seed
    from transformer.tools.attention import written

    def opened(checkpoint: Checkpoint) -> Callable[[], Attended]:
        log.info("using checkpoint %s of %s", checkpoint.name, args.workdir)
        require_task(checkpoint.config, args.workdir, *_MODELS)
        return _MODELS[type(checkpoint.config)](checkpoint, request)

    found = Checkpoints(best_seed(args.workdir)).read(args.checkpoint, opened)()
    replace(path, written(found, path.suffix))
    log.info("wrote %s", path)


def _checked(output: str | None) -> Path:
    """The path of the output. Raises `UserError` if no picture can be written there."""
    if output is None:
        raise UserError("--output is missing, such as --output attention.html")
    path = local_path("--output", output)
    if path.suffix not in ENDINGS:
        raise UserError(f"--output {path}: the name must end with {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
    if os.path.lexists(path):
        raise UserError(f"--output {path} exists; name another file, or remove it")
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: there is no folder {path.parent}")
    if path.suffix == ".png":
        require("--output with .png", "matplotlib")
    return path


def _given(text: str | None) -> str:
    """The text of the command line, or that of standard input."""
    if text not in (None, "-"):
        return text_of("the text", text)
    opened, content = open_stream(sys.stdin.buffer), b""
    try:
        while len(content) <= _LONGEST and (block := opened.read1(_LONGEST)):
            content += block
    except Damaged as error:
        raise UserError(f"standard input is {error}") from None
    if len(content) > _LONGEST:
        raise UserError(f"standard input has more than {_LONGEST:,} bytes, too much for a picture; give one text")
    try:
        return content.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise UserError("standard input is not valid UTF-8; give text in UTF-8") from None


# ---- Models: a function for each task, which loads a model and returns the function that computes -------------------


def _translation(checkpoint: Checkpoint, request: _Request) -> Callable[[], Attended]:
    from transformer.inference.attention import of_translation
    from transformer.inference.translator import Translator

    translator = Translator.of([checkpoint], request.decoding(checkpoint.config))
    return lambda: of_translation(translator, request.line, request.target)


def _parsing(checkpoint: Checkpoint, request: _Request) -> Callable[[], Attended]:
    from transformer.inference.attention import of_parse
    from transformer.inference.parser import Parser as TreeParser

    request.refuse_target(checkpoint.config)
    parser = TreeParser.of(checkpoint, request.decoding(checkpoint.config))
    return lambda: of_parse(parser, request.line)


def _language_model(checkpoint: Checkpoint, request: _Request) -> Callable[[], Attended]:
    from transformer.inference.attention import of_text
    from transformer.inference.generator import Generator

    request.refuse_search(checkpoint.config)
    generator = Generator.of([checkpoint])
    return lambda: of_text(generator, request.text)


def _finetuned(checkpoint: Checkpoint, request: _Request) -> Callable[[], Attended]:
    from transformer.inference.attention import of_labelled
    from transformer.inference.classifier import Classifier

    request.refuse_search(checkpoint.config)
    classifier = Classifier.of(checkpoint)
    one = classifier.labels.kind == "tags" or classifier.labels.pairs is False
    return lambda: of_labelled(classifier, request.line if one else request.line.split("\t"))


def _masked(checkpoint: Checkpoint, request: _Request) -> Callable[[], Attended]:
    from transformer.inference.attention import of_encoder
    from transformer.inference.embedder import Embedder

    request.refuse_search(checkpoint.config)
    embedder = Embedder.of(checkpoint)
    return lambda: of_encoder(embedder, request.line.split("\t"))


_MODELS: dict[type, Callable[[Checkpoint, _Request], Callable[[], Attended]]] = {
    Config: _translation,
    LanguageModelConfig: _language_model,
    MaskedConfig: _masked,
    FinetuneConfig: _finetuned,
    ParsingConfig: _parsing,
}
