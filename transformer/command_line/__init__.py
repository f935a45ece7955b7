"""Shared by all programs: config files and their overrides, the log on standard error, errors in one line."""

from transformer.command_line.devices import set_up_jax
from transformer.command_line.huge_pages import ask_for_huge_pages
from transformer.command_line.options import config_file, configured, decode_options, evaluate_options
from transformer.command_line.overrides import override, text_of
from transformer.command_line.parser import Parser, whole
from transformer.command_line.program import run

__all__ = [
    "Parser",
    "ask_for_huge_pages",
    "config_file",
    "configured",
    "decode_options",
    "evaluate_options",
    "override",
    "run",
    "set_up_jax",
    "text_of",
    "whole",
]
