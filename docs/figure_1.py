"""Draw figure 1 of the paper with the code behind each box: python docs/figure_1.py writes docs/figure_1.svg.

The line numbers are read from the source. tests/docs/test_figure.py compares the file with the code.
"""

from __future__ import annotations

import ast
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "transformer"
SVG = ROOT / "docs" / "figure_1.svg"

WIDTH, HEIGHT = 960, 800
# The picture has no background of its own. GREY can be read on white and on black; in the boxes INK stands on pastels.
GREY, INK = "#757d87", "#1f2328"
PINK, YELLOW, BLUE, ORANGE, VIOLET, GREEN = "#f8d7da", "#fbf3c0", "#cfe8f7", "#fde0bd", "#dcdcf5", "#d3efd6"


def lines_of(file: str, name: str) -> tuple[int, int]:
    """First and last line of the class, function or method `name` in a file of the package. Raises LookupError."""
    node: ast.AST = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    for part in name.split("."):
        found = [
            inner
            for inner in getattr(node, "body", [])
            if isinstance(inner, ast.ClassDef | ast.FunctionDef) and inner.name == part
        ]
        if not found:
            raise LookupError(f"docs/figure_1.py: {file} has no {name}; name what draws this box now")
        node = found[0]
    return node.lineno, node.end_lineno


class Box(NamedTuple):
    """A box of the figure: its middle, its bottom, what the paper calls it, and the code behind it."""

    x: int
    y: int
    title: str
    code: tuple[tuple[str, str], ...]
    """(file under transformer/, class or function)."""
    fill: str
    width: int = 330

    @property
    def height(self) -> int:
        return 26 + 15 * len(self.code)


ENCODER, DECODER = 240, 720  # the middles of the columns
NORM = (("model/stack.py", "SublayerNorm"),)
ATTENTION = ("model/attention.py", "Attention")
FEED_FORWARD = (("model/layers.py", "FeedForward"),)
EMBEDDING = (("model/layers.py", "Embedding"),)
POSITIONS = (("model/inputs.py", "sinusoids"), ("model/inputs.py", "inputs"))

BOXES = (
    Box(ENCODER, 745, "Input Embedding", EMBEDDING, PINK),
    Box(ENCODER, 675, "Positional Encoding, sum", POSITIONS, VIOLET),
    Box(ENCODER, 565, "Multi-Head Attention", (ATTENTION, ("model/attention.py", "attend")), ORANGE),
    Box(ENCODER, 497, "Add & Norm", NORM, YELLOW),
    Box(ENCODER, 429, "Feed Forward", FEED_FORWARD, BLUE),
    Box(ENCODER, 375, "Add & Norm", NORM, YELLOW),
    Box(DECODER, 745, "Output Embedding (the same table)", EMBEDDING, PINK),
    Box(DECODER, 675, "Positional Encoding, sum", POSITIONS, VIOLET),
    Box(DECODER, 565, "Masked Multi-Head Attention", (ATTENTION, ("model/cache.py", "causal")), ORANGE),
    Box(DECODER, 497, "Add & Norm", NORM, YELLOW),
    Box(DECODER, 429, "Multi-Head Attention", (ATTENTION, ("model/cache.py", "Memory")), ORANGE),
    Box(DECODER, 361, "Add & Norm", NORM, YELLOW),
    Box(DECODER, 293, "Feed Forward", FEED_FORWARD, BLUE),
    Box(DECODER, 239, "Add & Norm", NORM, YELLOW),
    Box(DECODER, 160, "Linear", (("model/layers.py", "Embedding.logits"),), VIOLET),
    Box(
        *(DECODER, 106, "Softmax: in training, in decoding"),
        (("training/loss.py", "cross_entropy"), ("inference/programs.py", "next_log_probs")),
        GREEN,
    ),
)


def text(x: float, y: float, content: str, *, fill: str = GREY, style: str = "", anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{fill}"{style}>{escape(content)}</text>'


BOLD = ' font-weight="600"'
CODE = ' font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" font-size="11.5"'


def reference(file: str, name: str) -> str:
    first, last = lines_of(file, name)
    return f"{file}: {name} {first}-{last}"


def box(b: Box) -> list[str]:
    top = b.y - b.height
    shape = f'<rect x="{b.x - b.width / 2:g}" y="{top}" width="{b.width}" height="{b.height}" rx="6"'
    drawn = [f'{shape} fill="{b.fill}" stroke="{GREY}"/>', text(b.x, top + 18, b.title, fill=INK, style=BOLD)]
    drawn += [text(b.x, top + 34 + 15 * i, reference(*one), fill=INK, style=CODE) for i, one in enumerate(b.code)]
    return drawn


def arrow(*points: tuple[float, float]) -> str:
    way = " L ".join(f"{x:g} {y:g}" for x, y in points)
    return f'<path d="M {way}" fill="none" stroke="{GREY}" stroke-width="1.5" marker-end="url(#tip)"/>'


def frame(x: int, top: int, bottom: int, label_x: int) -> list[str]:
    """The frame of a stack of N blocks."""
    shape = f'<rect x="{x - 192}" y="{top}" width="384" height="{bottom - top}" rx="12" fill="none" stroke="{GREY}"'
    return [f'{shape} stroke-dasharray="5 4"/>', text(label_x, (top + bottom) / 2 - 4, "N×", style=' font-size="18"')]


def column(boxes: list[Box]) -> list[str]:
    """Arrows from each box to the next one above it."""
    return [arrow((a.x, a.y - a.height), (b.x, b.y + 1)) for a, b in pairwise(boxes)]


def residual(a: Box, b: Box, side: int) -> str:
    """The way around a sub-layer: from below it into the norm above it."""
    x, edge = a.x + side * (a.width / 2 + 14), a.x + side * a.width / 2
    middle = b.y - b.height / 2
    return arrow((a.x, a.y + 7), (x, a.y + 7), (x, middle), (edge + side, middle))


def draw() -> str:
    encoder, decoder = ([b for b in BOXES if b.x == x] for x in (ENCODER, DECODER))
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="14">',
        "<title>Figure 1 of Attention Is All You Need, and the code behind each box</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M 0 0 L 8 4 L 0 8 z" fill="{GREY}"/></marker></defs>',
        *frame(ENCODER, 317, 592, 24),
        *frame(DECODER, 181, 592, 936),
        *column(encoder),
        *column(decoder),
        *(residual(a, b, -1) for a, b in zip(encoder[2::2], encoder[3::2], strict=True)),
        *(residual(a, b, 1) for a, b in zip(decoder[2:8:2], decoder[3:8:2], strict=True)),
    ]
    top, cross = encoder[-1], decoder[4]
    edge = cross.x - cross.width / 2 - 1
    middle = cross.y - cross.height / 2
    out += [
        arrow((top.x, top.y - top.height), (top.x, 296), (480, 296), (480, middle), (edge, middle)),
        *(line for b in BOXES for line in box(b)),
        arrow((ENCODER, 768), (ENCODER, 746)),
        arrow((DECODER, 768), (DECODER, 746)),
        arrow((DECODER, decoder[-1].y - decoder[-1].height), (DECODER, 34)),
        text(ENCODER, 784, "Inputs"),
        text(DECODER, 784, "Outputs (shifted right)"),
        text(DECODER, 24, "Output Probabilities"),
    ]
    left = 48
    whole = (
        ("The whole model", (("model/encoder_decoder.py", "EncoderDecoder"), ("model/functional.py", "Model"))),
        ("N blocks; a block", (("model/stack.py", "Stack"), ("model/stack.py", "Block"))),
        ("Shifted right, and the loss", (("training/objectives.py", "sequences"),)),
        ("Beam search", (("inference/beam_search.py", "beam_search"),)),
    )
    y = 40
    for title, code in whole:
        out.append(text(left, y, title, style=BOLD, anchor="start"))
        out += [text(left, y + 17 + 15 * i, reference(*one), style=CODE, anchor="start") for i, one in enumerate(code)]
        y += 29 + 15 * len(code)
    return "\n".join([*out, "</svg>", ""])


if __name__ == "__main__":
    SVG.write_text(draw(), encoding="utf-8")
