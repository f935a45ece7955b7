"""The config of a program: a config file with overrides, or a workdir's config with some sections overridden."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformer.command_line.overrides import override
from transformer.command_line.parser import Parser
from transformer.command_line.shipped import shipped
from transformer.config import (
    RUNS,
    Config,
    DecodeConfig,
    EvaluateConfig,
    FinetuneConfig,
    Interrupted,
    ParsingConfig,
    UserError,
    check,
    check_fields,
)


def config_file(path: str) -> Any:
    """The `config` that a config file defines. The file's output goes to standard error.

    `path` may be the name of a config that comes with the package. Raises `UserError` if the file can't be run or
    defines no config.
    """
    if not os.path.exists(path) or os.path.isdir(path):  # such as a workdir of the same name
        path = str(shipped().get(path.removesuffix(".py"), path))
    if os.path.isdir(path):
        raise UserError(f"--config {path}: a folder; name a config file, such as configs/quickstart.py")
    if not os.path.exists(path):
        names = [*(str(p) for p in Path(path).parent.glob("*.py")), *shipped()]
        near = difflib.get_close_matches(path, names, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else f"; the ready ones are {', '.join(shipped())}"
        raise UserError(f"--config {path}: no such file{hint}")
    if not os.path.isfile(path):
        raise UserError(f"--config {path}: not a regular file; save the config as a file first")
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
    except BaseException as error:  # the user's file may raise anything
        fix = f"; {_CONFIG_FILE}" if isinstance(error, SyntaxError) else ""
        raise UserError(f"--config {path}: {type(error).__name__}: {error}{fix}") from error
    if type(config) not in RUNS.values():
        raise UserError(f"--config {path}: it must define `config = transformer.config.Config(...)`")
    check_fields(config, type(config))  # before tyro, which does not check the default
    return config


_CONFIG_FILE = "a config file is Python that defines `config`, such as configs/quickstart.py"


def _refuse_other_config(path: str) -> None:
    """Raise `UserError` for a file that is certainly not Python: a compressed file, or a workdir's config.json."""
    from transformer.data.foreign import refuse_other

    try:
        refuse_other(path, "a config file")
    except UserError as error:
        raise UserError(f"--config {error}") from None
    if path.lower().endswith((".json", ".yaml", ".yml", ".toml")):
        raise UserError(f"--config {path}: {_CONFIG_FILE}")


def configured(parser: Parser, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str], Any]:
    """The options of the parser, the remaining arguments, and the checked config: --config overridden by the remaining
    arguments, or None without --config.

    --help prints the options and every field, and stops. Raises `UserError`.
    """
    parser.add_argument("-h", "--help", action="store_true", help="show this help and stop")
    options, rest = parser.parse_known_args(arguments)
    default = config_file(options.config) if options.config else Config()
    if options.help:
        parser.print_help()
        print("\nAny field of the config:\n")
        override(default, ["--help"], parser.prog)
    if not options.config:
        return options, rest, None
    config = override(default, rest, parser.prog, parser.options())
    check(config)
    return options, rest, config


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Options about the text to be scored."""

    languages: tuple[str, str] | None
    """Source and target language codes. They select BLEU's tokeniser."""
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
    """`config.decode` overridden by `--decode.name value` arguments. Raises `UserError` if a value breaks a rule."""
    decode = override(DecodeOptions(config.decode), arguments, program, options).decode
    check(dataclasses.replace(config, decode=decode))
    return decode


@dataclasses.dataclass(frozen=True)
class EvalbOptions:
    """How trees are scored."""

    parameters: str | None
    """EVALB's parameter file. None = those of COLLINS.prm."""


@dataclasses.dataclass(frozen=True)
class ParsingOptions:
    """The options of evaluate.py for parsers."""

    decode: DecodeConfig
    parser: EvalbOptions


@dataclasses.dataclass(frozen=True)
class ColumnOptions:
    """The columns of a file of labelled texts."""

    text: str
    """Column of the text: its name, or its number from 1 in files without a header."""
    second: str | None
    """Column of the second text, for pairs; None = there is one text."""
    label: str
    """Column of the label."""


@dataclasses.dataclass(frozen=True)
class LabelledOptions:
    """The options of evaluate.py for a model that labels texts."""

    data: ColumnOptions


def evaluate_options(config: Any, arguments: Sequence[str], program: str, options: Sequence[str] = ()) -> Any:
    """`config` overridden by arguments: for labelled texts their columns, for trees decoding and EVALB's parameters,
    else decoding, scoring and text.

    Raises `UserError` if a value breaks a rule.
    """
    if isinstance(config, FinetuneConfig):
        columns = ColumnOptions(config.data.text, config.data.second, config.data.label)
        data = override(LabelledOptions(columns), arguments, program, options).data
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, **vars(data)))
    elif isinstance(config, ParsingConfig):
        scoring = EvalbOptions(config.parser.parameters)
        given = override(ParsingOptions(config.decode, scoring), arguments, program, options)
        parser = dataclasses.replace(config.parser, parameters=given.parser.parameters)
        config = dataclasses.replace(config, decode=given.decode, parser=parser)
    else:
        text = DataOptions(config.data.languages, config.data.fields)
        given = override(EvaluateOptions(text, config.decode, config.evaluate), arguments, program, options)
        data = dataclasses.replace(config.data, **vars(given.data))
        config = dataclasses.replace(config, data=data, decode=given.decode, evaluate=given.evaluate)
    check(config)
    return config
