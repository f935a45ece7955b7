"""What the entry points share: a config file and its overrides, logging to standard error, errors as one line."""

from __future__ import annotations

import argparse
import contextlib
import copy
import ctypes
import dataclasses
import difflib
import errno
import io
import logging
import os
import runpy
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

from transformer.config import (
    Config,
    DecodeConfig,
    EvaluateConfig,
    Interrupted,
    UserError,
    check,
    check_fields,
    flatten,
    whole_number,
)
from transformer.memory import address_space, ran_out, short
from transformer.streams import ReaderGone, one_line, open_streams, plain

C = TypeVar("C")


class _StandardError(logging.StreamHandler):
    """Writes to whatever sys.stderr is at the moment: a progress bar replaces it to keep its place below the log."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr


class _Format(logging.Formatter):
    """Shows text from outside, such as names of files and samples, harmlessly: it can neither control the terminal nor
    look like another line of the log."""

    def format(self, record: logging.LogRecord) -> str:
        record = copy.copy(record)
        if isinstance(record.args, tuple):
            record.args = tuple(map(_harmless, record.args))
        text = plain(super().format(record), keep="\n\t")
        return f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text


def _harmless(argument: Any) -> Any:
    if isinstance(argument, BaseException):
        return one_line(argument)
    return plain(str(argument)) if isinstance(argument, (str, os.PathLike)) else argument


def run(main: Callable[[list[str]], int | None], *, interrupted: str = "interrupted") -> None:
    """Call `main` with the command line and exit: 0, 2 on a mistake of the user's or trouble of the machine (in one
    line), 130 on Ctrl-C, 143 and 129 where SIGTERM or SIGHUP ended a run in order."""
    open_streams()
    handler = _StandardError()
    handler.setFormatter(_Format())
    log = logging.getLogger("transformer")
    log.handlers[:], log.propagate = [handler], False
    log.setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs tracebacks of what it raises
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unraisable
    with _ended_by_signals(interrupted):
        code = _outcome(main, interrupted)
    sys.exit(code)


def _outcome(main: Callable[[list[str]], int | None], interrupted: str) -> int:
    """The exit code of a call of `main`; what went wrong is written to standard error."""
    try:
        try:
            code = main(sys.argv[1:]) or 0
        except SystemExit as stop:  # after --help
            code = stop.code or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        print("error:", one_line(error), file=sys.stderr)
        return 2
    except Interrupted as error:
        print(one_line(error), file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    except ReaderGone:
        return 141
    except Exception as error:
        if (trouble := _trouble(error)) is None:
            raise
        print("error:", one_line(trouble), file=sys.stderr)
        return 2


def _unraisable(info: Any) -> None:
    """Show an error that no code can handle, as of a destructor; but not those that follow an error told already."""
    error = info.exc_value
    # Tensorstore calls loops that Orbax closed when a save had failed.
    if error is None or not (str(error) == "Event loop is closed" or ran_out(error)):
        sys.__unraisablehook__(info)


# What an operating system refuses whatever the program does; other errors of it are this program's own.
_MACHINE = "ENOSPC EDQUOT EFBIG EIO EROFS EACCES EPERM EMFILE ENFILE ENAMETOOLONG ELOOP ESTALE ENXIO ENODEV ETIMEDOUT"
_ERRNOS = {getattr(errno, name) for name in _MACHINE.split() if hasattr(errno, name)}


def _trouble(error: Exception) -> str | None:
    """What is wrong with the machine, if that is what an error says."""
    if ran_out(error):
        return str(short(error, "end other programs, or ask for less at a time"))
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # of pathlib
        return "a path begins with ~, but that home folder is not known; set HOME, or write the path out"
    if isinstance(error, FileNotFoundError) and _gone():
        return "the folder that this command runs in was removed; go to one that is there (cd), then run it again"
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return f"{error.filename or 'a file'}: {error.strerror or error}; mend that, then run the same command again"
    return None


def _gone() -> bool:
    """Whether the folder that this process runs in was removed."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


@contextlib.contextmanager
def _ended_by_signals(message: str) -> Iterator[None]:
    """A block that SIGTERM and SIGHUP, a terminal's end, break off with `Interrupted`, so that it cleans up. Those that
    are ignored, as under nohup, or handled otherwise stay so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    asked = [number for number in asked if signal.getsignal(number) == signal.SIG_DFL]

    def end(number: int, frame: Any) -> NoReturn:
        for other in asked:  # a terminal that ends sends several; the cleaning up is not to be broken off, too
            signal.signal(other, signal.SIG_IGN)
        raise Interrupted(f"{signal.Signals(number).name}: {message}", number)

    for number in asked:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in asked:
            signal.signal(number, signal.SIG_DFL)


class _Once(argparse.Action):
    """An option that may be given once; a second one would replace the first without a word."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        parser.given_once(self.dest, option_string)
        setattr(namespace, self.dest, values)


class _Flag(_Once):
    """An option without a value, which may be given once."""

    def __init__(self, option_strings: Sequence[str], dest: str, default: bool = False, **more: Any):
        super().__init__(option_strings, dest, nargs=0, default=default, **more)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        super().__call__(parser, namespace, True, option_string)


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are one line too. An option that is given twice is refused, unless
    its action says that they add up ("append")."""

    def __init__(self, program: str, description: str | None, **options: Any):
        super().__init__(program, description=description, allow_abbrev=False, **options)
        self.register("action", None, _Once)
        self.register("action", "store", _Once)
        self.register("action", "store_true", _Flag)
        self._given: set[str] = set()

    def parse_known_args(self, *given: Any, **more: Any) -> Any:
        self._given.clear()
        return super().parse_known_args(*given, **more)

    def given_once(self, name: str, shown: str | None) -> None:
        """Raise `UserError` where this option was given before."""
        if name in self._given:
            raise UserError(f"{shown or name} is given twice; leave one of the two out")
        self._given.add(name)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help names every option")

    def options(self) -> list[str]:
        """The names of its options, without dashes before them."""
        return [name[2:] for name in self._option_string_actions if name.startswith("--")]


def whole(least: int, most: int = 1_000_000) -> Callable[[str], int]:
    """A type of options: whole numbers from `least` to `most`."""

    def read(text: str) -> int:
        number = whole_number(text)
        if number is None or not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} to {most}")
        return number

    return read


def set_up_jax() -> None:
    """Keep compiled programs in the cache folder, so that the second start is quick, and freed memory in the process.

    JAX on a CPU asks for the memory of its intermediate results anew at each step. What glibc gives back to the system
    in between comes back as fresh pages, and faulting them in took a sixth of a training step.
    """
    import jax

    from transformer.data.sources import cache

    if (limit := address_space()) is not None and limit < 8 * 2**30:
        logging.getLogger("transformer").warning(
            "memory is limited to %.2f GiB (ulimit -v). If JAX needs more, it may end this program by itself, with "
            "exit code 134 or 139, or stand still: then raise the limit",
            limit / 2**30,
        )

    try:
        jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # the latter of a kind of device that JAX has no plugin for
        if ran_out(error):
            raise
        reason = " ".join(str(error).split())[:200] or "no plugin for it"
        platforms = jax.config.jax_platforms
        asked = f"JAX_PLATFORMS={platforms} asks for" if platforms else "this machine has"
        raise UserError(
            f"JAX cannot use the devices that {asked} ({reason}); set JAX_PLATFORMS=cpu to do without"
        ) from None
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
    """The `config` that a config file defines. What it prints goes to standard error."""
    if os.path.isdir(path):
        raise UserError(f"--config {path}: a folder; name a config file, such as configs/quickstart.py")
    if not os.path.exists(path):
        near = difflib.get_close_matches(path, [str(p) for p in Path(path).parent.glob("*.py")], n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else "; configs/ holds the ready ones"
        raise UserError(f"--config {path}: no such file{hint}")
    if not os.path.isfile(path):
        raise UserError(f"--config {path}: no regular file; save the config as a file first")
    _refuse_other_config(path)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            config = runpy.run_path(path).get("config")
    except (UserError, Interrupted, KeyboardInterrupt):
        raise
    except SystemExit as stop:
        raise UserError(
            f"--config {path}: it ends the program (SystemExit: {stop.code}); it must only define `config`"
        ) from None
    except BaseException as error:  # the file is the user's
        fix = f"; {_CONFIG_FILE}" if isinstance(error, SyntaxError) else ""
        raise UserError(f"--config {path}: {type(error).__name__}: {error}{fix}") from error
    if not isinstance(config, Config):
        raise UserError(f"--config {path}: it must define `config = transformer.config.Config(...)`")
    check_fields(config, Config)  # as tyro, which sees it next, asks what it gets
    return config


_CONFIG_FILE = "a config file is Python that defines `config`, such as configs/quickstart.py"


def _refuse_other_config(path: str) -> None:
    """Raise `UserError` for a file that is no Python for sure: a packed one, or a workdir's config.json."""
    from transformer.data.opening import refuse_other

    try:
        refuse_other(path, "a config file")
    except UserError as error:
        raise UserError(f"--config {error}") from None
    if path.lower().endswith((".json", ".yaml", ".yml", ".toml")):
        raise UserError(f"--config {path}: {_CONFIG_FILE}")


def override(default: C, arguments: Sequence[str], program: str, options: Sequence[str] = ()) -> C:
    """`default` with its fields replaced by `--dotted.name value` arguments; --help names them all.

    Values of a list that is given several times add up. Raises `UserError` on any other field that is given twice, on
    an unknown name, with the nearest known ones (of the program's other `options`, too), or on a value of the wrong
    type.
    """
    fields = flatten(default)
    known = [*fields, *options]
    groups = _groups(arguments)
    first: dict[str, list[str]] = {}
    more: list[tuple[str, list[str]]] = []
    for name, group in groups:
        if name and name not in fields and name != "help":
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or [
                k for k in known if k.split(".")[-1] == name.split(".")[-1]
            ]
            hint = f"did you mean {' or '.join('--' + n for n in near)}?" if near else "--help names every option"
            raise UserError(f"unknown option {group[0].split('=')[0]}; {hint}")
        if first.setdefault(name, group) is not group:
            if not _is_list(type(default), name):
                raise UserError(f"--{name} is given twice; leave one of the two out")
            more.append((name, group))
    config = _parsed(default, [argument for group in first.values() for argument in group], program)
    for name, group in more:
        added = flatten(_parsed(default, group, program))[name]
        config = _replaced(config, name, (*flatten(config)[name], *added))
    return config


def _groups(arguments: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each option by its name, with underscores, and its arguments as they were given; what comes before all of them by
    the name ""."""
    groups: list[tuple[str, list[str]]] = []
    for argument in arguments:
        if argument.startswith("--"):
            groups.append((argument[2:].split("=")[0].replace("-", "_"), [argument]))
        elif groups:
            groups[-1][1].append(argument)
        else:
            groups.append(("", [argument]))
    return groups


def _is_list(kind: Any, name: str) -> bool:
    """Whether the field of this dotted name holds a tuple of any length."""
    for part in name.split("."):
        kind = get_type_hints(kind)[part]
    return Ellipsis in get_args(kind)


def _replaced(config: C, name: str, value: Any) -> C:
    """A config with another value of the field of this dotted name."""
    section, _, rest = name.partition(".")
    value = _replaced(getattr(config, section), rest, value) if rest else value
    return dataclasses.replace(config, **{section: value})


def _parsed(default: C, arguments: Sequence[str], program: str) -> C:
    """`default` with its fields replaced, each at most once."""
    import tyro

    said = io.StringIO()
    try:
        # tyro warns of a default of the wrong type, which `check` refuses, too.
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
