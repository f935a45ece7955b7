"""The text of a run: the user's files, generated phrases, or WMT14. The latter two are written as parallel files."""

from __future__ import annotations

import contextlib
import filecmp
import logging
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from transformer.config import SPECIALS, DataConfig, UserError
from transformer.data.doubts import refuse_csv
from transformer.data.folder import writable_cache_dir
from transformer.data.opening import open_text
from transformer.data.text import Corpora, Parallel, file_kind
from transformer.packages import require

log = logging.getLogger("transformer")

# Special pieces, bytes and one character: the fewest that SentencePiece accepts with byte fallback.
_SMALLEST_VOCABULARY = len(SPECIALS) + 256 + 1


def corpora(config: DataConfig) -> Corpora:
    """The training, development and test text of a config.

    Development and test files of the user, if given, replace those of 'phrases' and 'wmt14'. Raises `UserError` before
    any work if fields contradict each other, or if files are missing; it names all missing files at once.
    """
    if config.tokenizer is None and config.vocab_size < _SMALLEST_VOCABULARY:
        raise UserError(
            f"data.vocab_size = {config.vocab_size}: must be at least {_SMALLEST_VOCABULARY}, for 4 special pieces, "
            "256 bytes and the characters of the text"
        )
    _require_files(config)
    dev = _held_out(config, "dev")
    test = _held_out(config, "test")
    train = _train(config)
    _warn_of_repeated(train)

    dev_name = Path(dev.source).name if dev else ""
    test_name = Path(test.source).name if test else ""
    if config.corpus == "text":
        return Corpora(train, dev, test, dev_name, test_name)
    if config.corpus == "phrases":
        require("the generated text of data.corpus 'phrases'", "babel", "num2words")
        from transformer.data.phrases import corpus

        with writable_cache_dir(config) as folder:
            made = corpus.write(folder / "phrases", config.languages, config.phrases)
    else:
        from transformer.data import wmt

        with writable_cache_dir(config) as folder:
            made = wmt.write(folder / "wmt14", config.languages, config.tfds_dir)
    if dev:
        made = made._replace(dev=dev, dev_name=dev_name)
    if test:
        made = made._replace(test=test, test_name=test_name)
    return made


def _train(config: DataConfig) -> tuple[Parallel, ...]:
    if config.corpus != "text":
        for name in ("source", "target", "weights"):
            if getattr(config, name):
                raise UserError(f"data.{name}: data.corpus = '{config.corpus}' has its own training text; "
                                f"leave out data.{name}, or set data.corpus to 'text'")  # fmt: skip
        return ()
    if not config.source:
        raise UserError("data.source: name at least one file of training text (and its translations in data.target)")
    weights = config.weights or (1.0,) * len(config.source)
    if len(weights) != len(config.source):
        raise UserError(f"data.weights: {len(weights)} given for {len(config.source)} files in data.source")
    if not config.target:
        for path in config.source:
            if file_kind(path) == "text":
                open_text(path).close()  # raises an error of its own if the file is not text
                raise UserError(f"data.target: missing; {path} holds one side only, unlike a .tsv or .jsonl")
        return tuple(Parallel(path, None, weight) for path, weight in zip(config.source, weights, strict=True))
    both = [path for path in (*config.source, *config.target) if file_kind(path) != "text"]
    if both:
        raise UserError(f"data.target: {both[0]} holds both sides; give such files in data.source without data.target")
    if len(config.target) != len(config.source):
        raise UserError(
            f"data.target: {len(config.target)} given for {len(config.source)} in data.source; give one for each"
        )
    return tuple(Parallel(*row) for row in zip(config.source, config.target, weights, strict=True))


def _held_out(config: DataConfig, name: str) -> Parallel | None:
    source, target = getattr(config, f"{name}_source"), getattr(config, f"{name}_target")
    if source is None and target is None:
        return None
    if source is None:
        raise UserError(f"data.{name}_source: missing, but data.{name}_target = {target}; give both")
    if file_kind(source) == "text" and target is None:
        open_text(source).close()
        raise UserError(f"data.{name}_target: missing, but data.{name}_source = {source}; give both")
    if file_kind(source) != "text" and target is not None:
        raise UserError(f"data.{name}_target: {source} holds both sides; leave out data.{name}_target")
    if target is not None and file_kind(target) != "text":
        raise UserError(f"data.{name}_target: {target} holds both sides; give it as data.{name}_source alone")
    return Parallel(source, target)


def require_files(named_paths: Iterable[tuple[str, str]]) -> None:
    """Raise `UserError` unless each (field or option, path) is a regular file. Names all that are missing."""
    missing = []
    for name, path in named_paths:
        try:
            mode = os.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the path
            missing.append(f"{path or repr(path)} ({name})")
            continue
        except OSError as error:
            raise UserError(f"{name}: {path} cannot be read ({error.strerror})") from None
        if stat.S_ISDIR(mode):
            raise UserError(f"{name}: {path} is a folder; name a file in it")
        if not stat.S_ISREG(mode):  # such as the pipe of <(zcat FILE)
            raise UserError(
                f"{name}: {path} is a pipe or a device, but text is read several times; write it to a file first "
                "(.gz, .xz and .bz2 need no decompressing)"
            )
    if missing:
        raise UserError(f"no such file: {', '.join(missing)}; correct the path")


def warn_of_repeated(named_paths: Iterable[tuple[str, str]]) -> None:
    """Log a warning for each (field, path) whose file was named before."""
    given: dict[tuple[int, int], str] = {}  # device and number of a file -> the field that names it
    for name, path in named_paths:
        found = os.stat(path)
        file = found.st_dev, found.st_ino
        if file in given:
            log.warning("%s: %s is already given in %s; leave it out of one", name, path, given[file])
        given.setdefault(file, name)


def _require_files(config: DataConfig) -> None:
    named_paths = [("source", path) for path in config.source] + [("target", path) for path in config.target]
    names = ("dev_source", "dev_target", "test_source", "test_target", "tokenizer")
    named_paths += [(name, getattr(config, name)) for name in names if getattr(config, name) is not None]
    require_files((f"data.{name}", path) for name, path in named_paths)
    for name, path in named_paths:
        refuse_csv([path], f"data.{name}: ")
    both = [("target", *sides) for sides in zip(config.source, config.target, strict=False)]
    both += [
        ("dev_target", config.dev_source, config.dev_target),
        ("test_target", config.test_source, config.test_target),
    ]
    for name, source, target in both:
        if source and target and os.path.samefile(source, target):
            raise UserError(f"data.{name}: {target} is also the source; name the file of its translations")


def _warn_of_repeated(train: tuple[Parallel, ...]) -> None:
    """Log a warning for each corpus that is given twice."""
    for i, parallel in enumerate(train):
        if any(_same_text(parallel, other) for other in train[:i]):
            log.warning(
                "data.source: %s is given twice, so its pairs count twice; if you want that, give it once with a "
                "weight in data.weights",
                parallel.source,
            )


def _same_text(one: Parallel, other: Parallel) -> bool:
    """Whether the files of two corpora have the same bytes; their names may differ."""
    sides = ((one.source, other.source), (one.target, other.target))
    with contextlib.suppress(OSError):  # reading the file raises it again
        return all(a == b or (None not in (a, b) and filecmp.cmp(a, b, shallow=False)) for a, b in sides)
    return False
