"""benchmarks/table3.py: each variation is a config, and the table shows differences and the noise of seeds."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from table3 import BASE, CONFIG, VARIATIONS, table  # noqa: E402

from transformer.command_line import configured  # noqa: E402
from transformer.command_line.parser import Parser  # noqa: E402


@pytest.mark.parametrize("name", VARIATIONS)
def test_each_variation_is_a_config(name: str) -> None:
    changes = BASE | VARIATIONS[name].changes
    parser = Parser("table3", "", add_help=False)
    parser.add_argument("--config")
    arguments = ["--config", str(CONFIG), *(f"--{field}={value}" for field, value in changes.items())]
    _, _, config = configured(parser, arguments)
    for field, value in changes.items():
        section, _, rest = field.partition(".")
        assert getattr(getattr(config, section), rest) == value


def test_the_table_shows_differences_and_noise() -> None:
    scores = [("base", 30.0), ("base", 31.0), ("heads 1", 28.0), ("heads 1", 29.0)]
    lines = list(table([{"variation": name, "dev_bleu": bleu} for name, bleu in scores]))
    assert "| A | heads 1 | h 1 instead of 8, d_k 512 | 28.50 (28.00, 29.00) | -2.00 | -0.9 |" in lines
    assert lines[-1].endswith("the base model's 2 seeds is 0.71.")
