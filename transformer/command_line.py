"""What the entry points share: a config file and its overrides, logging to standard error, errors as one line."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import difflib
import io
import logging
import os
import runpy
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from transformer.config import Config, DecodeConfig, EvaluateConfig, Interrupted, UserError, check, flatten

C = TypeVar("C")


class _StandardError(logging.StreamHandler):
    """Writes to whatever sys.stderr is at the moment: a progress bar replaces it to keep its place below the log."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr


def run(main: Callable[[list[str]], int | None], *, interrupted: str = "interrupted") -> None:
    """Call `main` with the command line and exit: 0, 2 on a user's mistake (told in one line), 130 on Ctrl-C, 143 where
    SIGTERM ended a run in order."""
    handler = _StandardError()
    handler.setFormatter(_Format())
    log = logging.getLogger("transformer")
    log.handlers[:], log.propagate = [handler], False
    log.setLevel(logging.INFO)
    before = _end_by_sigterm(interrupted)
    try:
        code = main(sys.argv[1:]) or 0
        sys.stdout.flush()
    except UserError as error:
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
        code = 2
    except Interrupted as error:
        print(error, file=sys.stderr)
        code = error.code
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # Whoever read our output has gone; the interpreter must not try to flush it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    sys.exit(code)


def _end_by_sigterm(message: str) -> Any:
    """From here on SIGTERM raises `Interrupted`, so that what runs is cleaned up; returns what it did before, or None
    where that is left as it is."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        return None

    def end(number: int, frame: Any) -> NoReturn:
        raise Interrupted(f"SIGTERM: {message}", number)

    return signal.signal(signal.SIGTERM, end)


class _Format(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are one line too."""

    def __init__(self, program: str, description: str | None, **options: Any):
        super().__init__(program, description=description, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help names every option")

    def options(self) -> list[str]:
        """The names of its options, without dashes before them."""
        return [name[2:] for name in self._option_string_actions if name.startswith("--")]


def set_up_jax() -> None:
    """Keep compiled programs in the cache folder, so that the second start is quick, and freed memory in the process.

    JAX on a CPU asks for the memory of its intermediate results anew at each step. What glibc gives back to the system
    in between comes back as fresh pages, and faulting them in took a sixth of a training step.
    """
    import jax

    from transformer.data.sources import cache

    try:
        with cache(Config().data) as folder:
            (folder / "compiled").mkdir(exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    except UserError as error:
        logging.getLogger("transformer").warning("compiled programs are not kept: %s", error)
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            # <malloc.h>: M_MMAP_MAX, M_ARENA_MAX, M_TRIM_THRESHOLD
            for option, value in ((-4, 0), (-8, 1), (-1, 2**31 - 1)):
                mallopt(option, value)


def config_file(path: str) -> Config:
    """The `config` that a config file defines."""
    if not Path(path).is_file():
        near = difflib.get_close_matches(path, [str(p) for p in Path(path).parent.glob("*.py")], n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else "; configs/ holds the ready ones"
        raise UserError(f"--config {path}: no such file{hint}")
    try:
        config = runpy.run_path(path).get("config")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--config {path}: {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise UserError(f"--config {path}: it must define `config = transformer.config.Config(...)`")
    return config


def override(default: C, arguments: Sequence[str], program: str, options: Sequence[str] = ()) -> C:
    """`default` with its fields replaced by `--dotted.name value` arguments; --help names them all.

    Raises `UserError` on an unknown name, with the nearest known ones (of the program's other `options`, too), or on a
    value of the wrong type.
    """
    import tyro

    fields = flatten(default)
    known = [*fields, *options]
    for argument in arguments:
        name = argument[2:].split("=")[0].replace("-", "_")
        if argument.startswith("--") and name not in fields and name != "help":
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or [
                k for k in known if k.split(".")[-1] == name.split(".")[-1]
            ]
            hint = f"did you mean {' or '.join('--' + n for n in near)}?" if near else "--help names every option"
            raise UserError(f"unknown option {argument.split('=')[0]}; {hint}")
    said = io.StringIO()
    try:
        # tyro warns of a default of the wrong type, which `check` refuses later.
        with contextlib.redirect_stderr(said), warnings.catch_warnings(action="ignore"):
            return tyro.cli(
                type(default),
                default=default,
                args=list(arguments),
                prog=program,
                description="",
                use_underscores=True,
                config=(tyro.conf.FlagConversionOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        lines = [line.strip("│╭╰─╮╯ ") for line in said.getvalue().splitlines()]
        # tyro draws a box: its title, then the message, up to a rule.
        message = " ".join(line for line in lines[1 : next((i for i, x in enumerate(lines) if i and not x), None)])
        raise UserError(message or f"wrong arguments; {program} --help names every option") from None


def configured(parser: Parser, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str], Config | None]:
    """A program's own options, the rest, and the checked config that --config and the rest make; None without --config.

    --help names the options and every field, and stops.
    """
    parser.add_argument("-h", "--help", action="store_true", help="show this and stop")
    own, rest = parser.parse_known_args(arguments)
    default = config_file(own.config) if own.config else Config()
    if own.help:
        parser.print_help()
        print("\nAny field of the config:\n")
        override(default, ["--help"], parser.prog)
    if not own.config:
        return own, rest, None
    config = override(default, rest, parser.prog, parser.options())
    check(config)
    return own, rest, config


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """The text that is scored."""

    languages: tuple[str, str] | None
    """Source and target language codes, which say how it is scored."""
    fields: tuple[str, str]
    """Names of the two fields in .jsonl files, source and target."""


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """The options of evaluate.py."""

    data: DataOptions
    decode: DecodeConfig
    evaluate: EvaluateConfig


@dataclasses.dataclass(frozen=True)
class DecodeOptions:
    """The options of commands that translate."""

    decode: DecodeConfig


def decode_options(config: Config, arguments: Sequence[str], program: str, options: Sequence[str] = ()) -> DecodeConfig:
    """`config.decode` overridden by `--decode.name value` arguments, checked."""
    decode = override(DecodeOptions(config.decode), arguments, program, options).decode
    check(dataclasses.replace(config, decode=decode))
    return decode


def evaluate_options(config: Config, arguments: Sequence[str], program: str, options: Sequence[str] = ()) -> Config:
    """`config` with the options of decoding, scoring and text that the arguments give, checked."""
    data = DataOptions(config.data.languages, config.data.fields)
    given = override(EvaluateOptions(data, config.decode, config.evaluate), arguments, program, options)
    data = dataclasses.replace(config.data, **vars(given.data))
    config = dataclasses.replace(config, data=data, decode=given.decode, evaluate=given.evaluate)
    check(config)
    return config
