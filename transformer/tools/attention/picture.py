"""All attention of one pass as a PNG, drawn by matplotlib: for each kind a row of maps for each layer."""

from __future__ import annotations

import io
import logging
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from transformer.config import UserError
from transformer.inference.attention import Attended

log = logging.getLogger("transformer")

DPI = 100
MOST_PIXELS, MOST_SIDE = 45_000_000, 60_000
CELL = 14  # pixels of a cell at most; fewer where the picture would be too large
GAP, MARGIN, TITLE, BAR = 8, 24, 46, 70  # pixels
LETTER = 6  # pixels of a label's letters
LONGEST = 16  # characters of a label
NAMES = {"encoder": "Encoder self-attention", "decoder": "Decoder self-attention", "cross": "Cross-attention"}
NO_FONT = "□"
LOW, HIGH = np.array([255, 255, 255]), np.array([8, 48, 107])  # colours of the weights 0 and 1


class _Block(NamedTuple):
    """The maps of one kind, and where they stand, in pixels."""

    kind: str
    rows: Sequence[str]
    columns: Sequence[str]
    maps_LMTS: np.ndarray
    """For each layer, the maps of the heads, and the last of their mean."""
    cell: int

    @property
    def font(self) -> float:
        """Size of the labels, in points."""
        return 7 if self.cell >= 10 else 5.5

    @property
    def every(self) -> int:
        """A label stands at each row or column whose number is a multiple of this."""
        return math.ceil((10 if self.cell >= 10 else 8) / self.cell)

    @property
    def left(self) -> int:
        return MARGIN + 20 + LETTER * max(map(len, self.rows))

    @property
    def top(self) -> int:
        return TITLE + 24 + LETTER * max(map(len, self.columns))

    @property
    def step(self) -> tuple[int, int]:
        """From one map to the next: across, down."""
        return len(self.columns) * self.cell + GAP, len(self.rows) * self.cell + GAP

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        layers, maps = self.maps_LMTS.shape[:2]
        return self.left + maps * self.step[0] + MARGIN, self.top + layers * self.step[1]


def png(attended: Attended) -> bytes:
    """The picture. Raises `UserError` if it would be too large."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.image import imsave

    labels = {name: [_cut(piece) for piece in side.pieces] for name, side in attended.sides.items()}
    families, lacking = _fonts("".join(label for side in labels.values() for label in side))
    if lacking:
        log.info("no font of this machine has %s: the picture shows %s instead", " ".join(sorted(lacking)), NO_FONT)
        swap = str.maketrans(dict.fromkeys(lacking, NO_FONT))
        labels = {name: [label.translate(swap) for label in side] for name, side in labels.items()}
    blocks = _fitting(attended, labels)
    width, height = _size(blocks)
    with mpl.rc_context({"font.family": families, "font.size": blocks[0].font}):
        figure = Figure((width / DPI, height / DPI), dpi=DPI, facecolor="white")
        page, top = _Page(figure, width, height, []), 0
        for block in blocks:
            _draw(page, block, top)
            top += block.size[1]
        _draw_scale(page, top)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    pixels = np.array(canvas.buffer_rgba())
    for x, y, colours in page.maps:
        pixels[y : y + len(colours), x : x + colours.shape[1], :3] = colours
    file = io.BytesIO()
    imsave(file, pixels, format="png", metadata={"Software": None}, pil_kwargs={"compress_level": 3})
    return file.getvalue()


class _Page(NamedTuple):
    """Text and maps, with places in pixels from the upper left corner."""

    figure: Any
    """Matplotlib draws the text."""
    width: int
    height: int
    maps: list[tuple[int, int, np.ndarray]]
    """Left, top, and colours, put over the text: an image of matplotlib for each would take much longer."""

    def text(self, x: float, y: float, text: str, **options: Any) -> None:
        options = {"va": "center", "parse_math": False} | options
        self.figure.text(x / self.width, 1 - y / self.height, text, **options)

    def image(self, x: int, y: int, weights_TS: np.ndarray, cell: int) -> None:
        """Draw weights, each as a square of `cell` pixels, with a line around them."""
        colours = np.repeat(np.repeat(_coloured(weights_TS), cell, axis=0), cell, axis=1)
        self.maps.append((x - 1, y - 1, np.pad(colours, ((1, 1), (1, 1), (0, 0)), constant_values=140)))


def _fitting(attended: Attended, labels: Mapping[str, Sequence[str]]) -> list[_Block]:
    """The blocks, with the largest cells that a picture has room for. Raises `UserError` if none fit."""
    means = {kind: _with_mean(one.weights_LNTS) for kind, one in attended.attention.items()}
    for cell in range(CELL, 0, -1):
        blocks = [
            _Block(kind, labels[one.queries], labels[one.keys], means[kind], cell)
            for kind, one in attended.attention.items()
        ]
        width, height = _size(blocks)
        if max(width, height) <= MOST_SIDE and width * height <= MOST_PIXELS:
            return blocks
    raise UserError(f"the picture would have {width:,} x {height:,} pixels; write an .html, or give a shorter text")


def _with_mean(weights_LNTS: np.ndarray) -> np.ndarray:
    """The maps of all heads, followed by that of their mean if there are several."""
    if weights_LNTS.shape[1] == 1:
        return weights_LNTS
    return np.concatenate([weights_LNTS, weights_LNTS.mean(axis=1, keepdims=True)], axis=1)


def _size(blocks: Sequence[_Block]) -> tuple[int, int]:
    """Width and height of the picture."""
    return max(block.size[0] for block in blocks), sum(block.size[1] for block in blocks) + BAR


def _draw(page: _Page, block: _Block, top: int) -> None:
    """Draw a block whose upper edge is `top` pixels below that of the picture."""
    (across, down), cell, heads = block.step, block.cell, block.maps_LMTS.shape[1]
    every = block.every
    page.text(MARGIN, top + MARGIN, NAMES[block.kind], size=11, weight="bold")
    for layer, maps_MTS in enumerate(block.maps_LMTS):
        y = top + block.top + layer * down
        page.text(MARGIN, y + down / 2, f"layer {layer + 1}", rotation=90, ha="center")
        for row in range(0, len(block.rows), every):
            page.text(block.left - 5, y + (row + 0.5) * cell, block.rows[row], ha="right")
        for head, map_TS in enumerate(maps_MTS):
            page.image(block.left + head * across, y, map_TS, cell)
    for head in range(heads):
        x = block.left + head * across
        name = "mean of heads" if head == heads - 1 > 0 else f"head {head + 1}"
        page.text(x + across / 2, top + TITLE, name, size=9, ha="center")
        for column in range(0, len(block.columns), every):
            at = x + (column + 0.5) * cell, top + block.top - 5
            page.text(*at, block.columns[column], rotation=90, ha="center", va="bottom")


def _draw_scale(page: _Page, top: int) -> None:
    """Draw the bar that says which colour stands for which weight."""
    page.image(MARGIN, top + 30, np.linspace(0, 1, 200)[None].repeat(10, axis=0) ** 2, 1)
    page.text(MARGIN, top + 20, "weight")
    for weight in (0, 0.05, 0.25, 0.5, 1):
        page.text(MARGIN + 200 * math.sqrt(weight), top + 48, f"{weight:g}", ha="center")


def _coloured(weights: np.ndarray) -> np.ndarray:
    """The colour of each weight, uint8 with a last axis of three.

    Even steps of colour are even steps of the square root, so that small weights can be told apart.
    """
    return np.round(LOW + (HIGH - LOW) * np.sqrt(weights)[..., None]).astype(np.uint8)


# ---- Labels ----------------------------------------------------------------------------------------------------------


def _cut(piece: str) -> str:
    """A label of a piece: on one line, printable, and not too long."""
    signs = {"": "∅", " ": "␣", "\n": "⏎", "\t": "⇥"}
    piece = "".join(char for char in piece if unicodedata.category(char) != "Cf") or piece[:1]
    shown = signs.get(piece) or "".join(char if char.isprintable() else "�" for char in piece)
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"


def _fonts(text: str) -> tuple[list[str], set[str]]:
    """Font families that together have the characters of a text, and the characters that no installed font has."""
    from matplotlib.font_manager import fontManager

    families = ["DejaVu Sans"]  # comes with matplotlib
    missing = set(text) - {" "}
    usual = [font for font in fontManager.ttflist if font.style == "normal" and font.weight in (400, "normal")]
    for font in sorted(usual, key=lambda font: (font.name not in families, font.name)):
        if missing and (found := _drawn_by(font.fname, missing)):
            families += [font.name] if font.name not in families else []
            missing -= found
    return families, missing


def _drawn_by(path: str, characters: Iterable[str]) -> set[str]:
    """Those of the characters that a font has; none if matplotlib can't use the font, as one of coloured pictures."""
    from matplotlib.font_manager import get_font

    try:
        font = get_font(path)
        if not font.scalable or "LastResort" in path:  # that one has a box for each character
            return set()
        return {char for char in characters if font.get_char_index(ord(char)) or _invisible(char)}
    except (OSError, RuntimeError, ValueError):
        return set()


def _invisible(char: str) -> bool:
    """Whether nothing is to be drawn for a character: joiners and variation selectors."""
    return unicodedata.category(char) in ("Cf", "Mn") and not unicodedata.combining(char)
