"""docs/figure_1.svg: each box names lines that hold what it names."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SVG = ROOT / "docs" / "figure_1.svg"
FIGURE = runpy.run_path(str(ROOT / "docs" / "figure_1.py"))
REFERENCE = re.compile(r">([\w/]+\.py): ([\w.]+) (\d+)-(\d+)</text>")


def test_the_figure_is_that_of_this_code() -> None:
    new = FIGURE["draw"]()
    assert new == SVG.read_text(encoding="utf-8"), (
        "lines have moved: run `python docs/figure_1.py` and commit the figure"
    )


def test_its_lines_hold_what_they_name() -> None:
    found = REFERENCE.findall(SVG.read_text(encoding="utf-8"))
    assert len(found) > 20
    for file, name, first, last in found:
        lines = (ROOT / "transformer" / file).read_text(encoding="utf-8").splitlines()[int(first) - 1 : int(last)]
        what = re.escape(name.split(".")[-1])
        assert re.match(rf"\s*(class|def) {what}\b", lines[0]) and lines[-1].strip(), f"{file}:{first}: {lines[0]}"


def test_a_name_that_is_gone_is_named() -> None:
    with pytest.raises(LookupError, match=r"model/stack\.py has no Layer; name what draws this box now"):
        FIGURE["lines_of"]("model/stack.py", "Layer")


def test_it_can_be_read_on_white_and_on_black() -> None:
    """Contrast of at least 4 : 1 (WCAG's ratio): of grey with both backgrounds, of ink with each box."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    pairs = [(FIGURE["GREY"], background) for background in ("#ffffff", "#0d1117")]
    pairs += [(FIGURE["INK"], box.fill) for box in FIGURE["BOXES"]]
    assert min(contrast(*pair) for pair in pairs) >= 4
