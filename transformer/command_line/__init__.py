"""What the entry points share: a config file and its overrides, logging to standard error, errors as one line."""

from transformer.command_line.devices import set_up_jax
from transformer.command_line.options import config_file, configured, decode_options, evaluate_options
from transformer.command_line.overrides import override
from transformer.command_line.parser import Parser, whole
from transformer.command_line.program import run

__all__ = [
    "Parser",
    "config_file",
    "configured",
    "decode_options",
    "evaluate_options",
    "override",
    "run",
    "set_up_jax",
    "whole",
]
