"""Draw results/figures/*.svg from results/*.jsonl, and check the figures that README.md and RESULTS.md quote.

    pip install matplotlib
    python benchmarks/plots.py           # draws all pictures again
    python benchmarks/plots.py --check   # needs no matplotlib; exit code 1 with a line for each that is wrong

A picture holds the sha256 of what it shows, so the check finds those that are older than their rows.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from quoted import ROOT, Row, all_rows, problems

FOLDER = Path("results") / "figures"
# legible on white and on black
GREY, OURS, SECOND, THIRD, FOURTH = "#7d8590", "#2f81f7", "#d29922", "#8b949e", "#3fb950"
COLOURS = {"ours": OURS, "huggingface": SECOND, "pytorch": SECOND, "ctranslate2": THIRD, "pytorch-compile": THIRD}
NAMES = {
    **{"ours": "ours", "huggingface": "Hugging Face", "ctranslate2": "CTranslate2"},
    **{"pytorch": "PyTorch eager", "pytorch-compile": "torch.compile"},
}
AMX, EPYC = "with AVX-512 and AMX", "AMD EPYC"

Picture = dict[str, Any]
"""What a picture shows, as JSON: {"kind": "lines", "bars" or "text", "panels"}; a panel has a title and a list of
series (and `x`, the label of its axis) or bars. A panel of lines may have `shade`, a part of the axis, or `doubles`,
where x doubles from point to point. A series: name, colour, points (x, y). A bar: name, colour, value, range. A panel
of text has the text, a number for each byte, and the bytes that begin patches, in one way and in another one."""


# ---- What each picture shows -----------------------------------------------------------------------------------------
def multi30k(rows: dict[str, tuple[Row, ...]]) -> Picture:
    """Dev BLEU of whole trainings of configs/multi30k_en_de.py, a line for each seed."""
    runs = [
        ("scaled (the default)", OURS, row) for row in rows["multi30k.jsonl"] if row["config"] == "multi30k_en_de.py"
    ]
    old = (row for row in rows["earlier.jsonl"] if row["config"] == "multi30k_en_de.py" and "dev" in row)
    runs += [("glorot (until 2026-11-27)", SECOND, row) for row in old]
    series = [
        {
            "name": f"{name}, seed {row['seed']}",
            "colour": colour,
            "points": [(x["step"], x["bleu"]) for x in row["dev"]],
        }
        for name, colour, row in runs
    ]
    panel = {"title": "dev BLEU of Multi30k En-De, Tiny", "x": "updates", "series": series}
    return {"kind": "lines", "panels": [panel]}


def seeds(rows: dict[str, tuple[Row, ...]]) -> Picture:
    """Dev loss of the first 1,000 updates of Multi30k, a line for each seed and initialiser."""
    points: dict[tuple[str, int], dict[int, float]] = {}
    colours = {"scaled": OURS, "glorot": SECOND, "fairseq": THIRD}
    for row in rows["initialization.jsonl"]:
        shown = row["part"] == "seeds" and row["size"] == "tiny" and row["depth"] == 4 and row["initializer"] in colours
        if shown and "dev_loss" in row:
            points.setdefault((row["initializer"], row["seed"]), {})[row["step"]] = row["dev_loss"]
    for row in rows["multi30k.jsonl"]:
        for x in row["dev"][:2] if row["config"] == "multi30k_en_de.py" else ():
            points.setdefault(("scaled", row["seed"]), {}).setdefault(x["step"], x["loss"])
    series = [
        {"name": f"{name}, seed {seed}", "colour": colours[name], "points": sorted(found.items())}
        for (name, seed), found in sorted(points.items(), reverse=True)
    ]
    at_end = [
        {**one, "points": [(int(one["name"].split()[-1]), one["points"][-1][1])]}
        for one in series
        if one["points"][-1][0] == 1_000
    ]
    panels = [
        {"title": "dev loss of Multi30k, Tiny", "x": "updates", "series": series},
        {"title": "after 1,000 updates", "x": "seed", "series": at_end},
    ]
    return {"kind": "lines", "panels": panels}


def shakespeare(rows: dict[str, tuple[Row, ...]]) -> Picture:
    """Validation loss of the character models of Shakespeare's plays, a line for each seed."""
    panels = [
        {
            "title": f"{config}: validation loss, nats a character",
            "x": "updates",
            "series": [
                {
                    "name": f"{row.get('part', 'ours')}, seed {row['seed']}",
                    "colour": FOURTH if "updates_before" in row else OURS,
                    "points": [(x["step"] + row.get("updates_before", 0), x["loss"]) for x in row["dev"]],
                }
                for row in rows["language_models.jsonl"]
                if row["config"] == config
            ],
        }
        for config in ("shakespeare_char.py", "shakespeare_10m.py")
    ]
    return {"kind": "lines", "panels": [panel for panel in panels if panel["series"]]}


def parsing(rows: dict[str, tuple[Row, ...]]) -> Picture:
    """F1 and tags of the first 500 development trees over the epochs of each training, and by training trees."""
    starts = {
        ("random", True): ("random weights, hard attention", OURS),
        ("random", False): ("random weights, plain attention", GREY),
        ("all-minilm-l6-v2", True): ("encoder MiniLM, hard attention", SECOND),
        ("all-minilm-l6-v2", False): ("encoder MiniLM, plain attention", FOURTH),
    }
    trainings = {(row["start"], row["hard_attention"]): row for row in rows["parsing.jsonl"] if "start" in row}
    panels = [
        {
            "title": f"dev trees of CRAFT: {title}",
            "x": "epochs",
            "series": [
                {
                    "name": f"{starts[kind][0]}, seed {row['seed']}",
                    "colour": starts[kind][1],
                    "points": [(round(x["step"] / row["updates_an_epoch"], 2), x[column]) for x in row["dev"]],
                }
                for kind, row in trainings.items()  # the last of each kind
                if kind in starts
            ],
        }
        for title, column in (("F1", "f1"), ("tags, %", "tagging"))
    ]
    curve = [row for row in rows["parsing.jsonl"] if row.get("part") == "learning curve" and "dev_f1" in row]
    for title, column in (("F1", "dev_f1"), ("tags, %", "dev_tagging")):
        points = sorted((row["trees"], round(row[column], 2)) for row in curve)
        one = {"name": "random weights, hard attention, seed 0", "colour": OURS, "points": points}
        panels.append(
            {"title": f"after 2,000 updates: {title}", "x": "training trees", "doubles": True, "series": [one]}
        )
    return {"kind": "lines", "panels": panels}


def algorithms(rows: dict[str, tuple[Row, ...]]) -> Picture:
    """Exact match of the algorithmic tasks by length, a line for each seed; the lengths of training are shaded."""
    tasks: dict[str, list[Row]] = {}
    for row in rows["algorithms.jsonl"]:
        if "lengths" in row:
            tasks.setdefault(row["part"], []).append(row)
    panels = [
        {
            "title": f"{task}: right answers",
            "x": "length",
            "shade": [int(end) for end in next(iter(found[0]["exact_match"])).split("-")],
            "series": [
                {"name": f"ours, seed {row['seed']}", "colour": OURS, "points": row["lengths"]} for row in found
            ],
        }
        for task, found in tasks.items()
    ]
    return {"kind": "lines", "panels": panels}


def bar(row: Row, name: str) -> dict[str, Any]:
    colour = COLOURS[row["system"]]
    return {"name": name, "colour": colour, "value": row["tokens_per_s"], "range": row.get("tokens_per_s_range")}


def decoding_cpu(rows: dict[str, tuple[Row, ...]]) -> Picture:
    """Decoding beside peers on two processors: all outputs of 48 pieces, batch 32."""
    found = [row for row in rows["decoding.jsonl"] if row["part"] == "decode" and row["mode"] == "fixed"]
    panels = [
        {
            "title": f"{title}, batch 32: pieces/s",
            "bars": [
                bar(row, f"{NAMES[row['system']]} {row['dtype']}")
                for row in found
                if machine in row["device"] and row["batch"] == 32
            ],
        }
        for machine, title in ((AMX, "Xeon, AMX"), (EPYC, "EPYC, no AMX"))
    ]
    return {"kind": "bars", "panels": panels}


def gpu_rows(rows: dict[str, tuple[Row, ...]], part: str) -> list[Row]:
    """The rows with a speed of the last command that measured this part on a GPU."""
    found = [row for row in rows["gpu.jsonl"] if row["part"] == part and row.get("tokens_per_s") and not row["quick"]]
    complete = [row for row in found if row["system"] == "ours"]
    return [row for row in found if (row["command"], row["date"]) == (complete[-1]["command"], complete[-1]["date"])]


def decoding_gpu(rows: dict[str, tuple[Row, ...]]) -> Picture:
    """Decoding beside Hugging Face on one GPU."""
    found = gpu_rows(rows, "decoding")
    panels = [
        {
            "title": f"{device(found)}, batch {batch}: pieces/s",
            "bars": [bar(row, f"{NAMES[row['system']]} {row['dtype']}") for row in found if row["batch"] == batch],
        }
        for batch in sorted({row["batch"] for row in found})
    ]
    return {"kind": "bars", "panels": panels}


def training(rows: dict[str, tuple[Row, ...]]) -> Picture:
    """Whole updates beside PyTorch, on a CPU and on a GPU."""
    cpu = [row for row in rows["training.jsonl"] if row["part"] == "steps" and EPYC in row["device"]]
    gpu = gpu_rows(rows, "training")
    panels = [
        {
            "title": f"{place}, {model}: target pieces/s",
            "bars": [bar(row, f"{NAMES[row['system']]} {row['dtype']}") for row in found if row["model"] == model],
        }
        for (place, found), model in itertools.product((("EPYC, 2 cores", cpu), (device(gpu), gpu)), ("base", "big"))
    ]
    return {"kind": "bars", "panels": panels}


def patches(rows: dict[str, tuple[Row, ...]]) -> Picture:
    """A line of Shakespeare in patches: by entropies, which colour the bytes, and of equal length."""
    row = [row for row in rows["bytes.jsonl"] if row["part"] == "patches"][-1]
    title = f"patches begin above {row['threshold']:.2f} nats (yellow), or are equally long (grey, below)"
    about = {"text": row["text"], "values": row["entropies"], "begins": row["begins"], "others": row["static"]}
    return {"kind": "text", "panels": [{"title": title, **about}]}


def without_tokenizer(rows: dict[str, tuple[Row, ...]]) -> Picture:
    """Bytes in patches beside bytes and BPE pieces: bits per byte over the updates, and what flipped letters add."""
    colours = {"entropy patches": OURS, "static patches": FOURTH, "bytes": GREY, "BPE pieces": SECOND}
    models = {row["model"]: row for row in rows["bytes.jsonl"] if row["part"] == "model"}
    flips = [row for row in rows["bytes.jsonl"] if row["part"] == "flips"]

    def series(points: Callable[[str], list[tuple[float, float]]]) -> list[dict[str, Any]]:
        return [
            {"name": f"{name}, seed {models[name]['seed']}", "colour": colour, "points": points(name)}
            for name, colour in colours.items()
        ]

    def learned(name: str) -> list[tuple[float, float]]:
        row = models[name]
        return [(round(100 * one["step"] / row["updates"], 1), one["bits"]) for one in row["dev"]]

    def rises(name: str) -> list[tuple[float, float]]:
        return [(0, 0), *sorted((100 * row["share"], row["rise"]) for row in flips if row["model"] == name)]

    panels = [
        {"title": "dev text, bits per byte", "x": "% of the updates", "series": series(learned)},
        {"title": "with flipped case: bits per byte more", "x": "% of the letters", "series": series(rises)},
    ]
    return {"kind": "lines", "panels": panels}


def device(rows: Iterable[Row]) -> str:
    """The GPU's name in rows: NVIDIA H200."""
    return next(iter(rows))["device"].split(",")[0].removeprefix("1 x ")


PICTURES: dict[str, Callable[[dict[str, tuple[Row, ...]]], Picture]] = {
    one.__name__: one
    for one in (
        *(multi30k, seeds, shakespeare, parsing, algorithms, patches, without_tokenizer),
        *(decoding_cpu, decoding_gpu, training),
    )
}


def digest(picture: Picture) -> str:
    return hashlib.sha256(json.dumps(picture, sort_keys=True).encode()).hexdigest()


# ---- Drawing ---------------------------------------------------------------------------------------------------------
def draw(picture: Picture, path: Path) -> None:
    """Write an SVG: transparent, with text as text, the same bytes for the same picture and version of matplotlib."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    style = {"svg.hashsalt": path.stem, "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}
    style["font.sans-serif"] = ["DejaVu Sans", "Arial"]  # each text of the file names them all
    style |= dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), GREY)
    style |= {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11, "axes.titlelocation": "left"}
    with matplotlib.rc_context(style):
        panels = picture["panels"]
        columns = 1 if picture["kind"] == "text" else min(2, len(panels))
        grid_lines = [panels[i : i + columns] for i in range(0, len(panels), columns)]
        one_line = 1 if picture["kind"] == "text" else 9
        heights = [0.75 + 0.3 * max(len(panel.get("bars", " " * one_line)) for panel in line) for line in grid_lines]
        figure, grid = plt.subplots(
            *(len(heights), columns), figsize=(9.6, sum(heights)), squeeze=False, height_ratios=heights
        )
        for axes, panel in itertools.zip_longest(grid.flat, panels):
            if panel is None:
                axes.set_axis_off()
                continue
            axes.set_title(panel["title"])
            {"lines": _lines, "bars": _bars, "text": _text}[picture["kind"]](axes, panel)
        figure.tight_layout()
        about = {"Date": None, "Description": f"data sha256 {digest(picture)}"}
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", transparent=True, metadata=about)
        plt.close(figure)


def _lines(axes: Any, panel: dict[str, Any]) -> None:
    names = {}
    for one in panel["series"]:
        name = one["name"].split(", seed")[0]
        names.setdefault(name, []).append(one["name"].rpartition(" ")[2])
        marker = None if "shade" in panel else "o"
        axes.plot(*zip(*one["points"], strict=True), color=one["colour"], marker=marker, markersize=3, linewidth=1)
    for name, of in names.items():
        colour = next(one["colour"] for one in panel["series"] if one["name"].startswith(name))
        label = f"{name}, {'seeds' if len(of) > 1 else 'seed'} {', '.join(sorted(of, key=int))}"
        axes.plot([], [], color=colour, marker=marker, markersize=3, label=label)
    if "shade" in panel:
        axes.axvspan(*panel["shade"], color=GREY, alpha=0.15, linewidth=0)
        axes.set_ylim(-0.03, 1.03)
        axes.set_yticks([0, 0.5, 1])
        axes.locator_params(axis="x", nbins=4)
    if "doubles" in panel:
        axes.set_xscale("log", base=2)
        axes.set_xticks(of_x := [x for x, _ in panel["series"][0]["points"]], [f"{x:,}" for x in of_x])
    axes.set_xlabel(panel["x"])
    axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False, loc="best", fontsize=9)


def _bars(axes: Any, panel: dict[str, Any]) -> None:
    bars = panel["bars"][::-1]
    positions = range(len(bars))
    drawn = axes.barh(positions, [one["value"] for one in bars], color=[one["colour"] for one in bars], height=0.72)
    axes.bar_label(drawn, [f"{one['value']:,}" for one in bars], padding=3, color=GREY)
    axes.set_yticks(positions, [one["name"] for one in bars])
    axes.set_xlim(0, 1.18 * max(one["value"] for one in bars))
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)


def _text(axes: Any, panel: dict[str, Any]) -> None:
    """A byte in each cell, coloured by its number; a line before each byte that begins a patch, and one below."""
    values = panel["values"]
    drawn = axes.pcolormesh(range(len(values) + 1), [0, 1], [values], cmap="Blues", vmin=0, vmax=max(values) * 1.4)
    for i, char in enumerate(panel["text"]):
        axes.text(i + 0.5, 0.5, char, ha="center", va="center", color="black", family="monospace")
    axes.vlines(panel["begins"], 0, 1.2, color=SECOND, linewidth=1.8)
    axes.vlines(panel["others"], -0.5, -0.1, color=GREY, linewidth=1.8)
    axes.set_ylim(-0.5, 1.2)
    axes.set_axis_off()
    bar = axes.figure.colorbar(drawn, ax=axes, fraction=0.02, pad=0.01)
    bar.set_label("nats", fontsize=8)


# ---- Check -----------------------------------------------------------------------------------------------------------
def wrong(root: Path = ROOT) -> Iterator[str]:
    """A line for each figure that stands in no row, and each picture that is missing or shows other rows."""
    for page in ("README.md", "docs/install.md"):
        yield from problems(root / page, strict=False, root=root)
    yield from problems(root / "RESULTS.md", strict=True, root=root)
    rows = all_rows(root)
    for name, shown in PICTURES.items():
        path = root / FOLDER / f"{name}.svg"
        held = re.search(r"data sha256 (\w+)", path.read_text(encoding="utf-8")) if path.is_file() else None
        if held is None or held[1] != digest(shown(rows)):
            state = "is missing" if held is None else "shows other figures than results/*.jsonl"
            yield f"{FOLDER / path.name} {state}: run python benchmarks/plots.py"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="draw nothing; print what is wrong")
    parser.add_argument("--folder", type=Path, default=ROOT / FOLDER, help="where the pictures go")
    options = parser.parse_args()
    if options.check:
        found = list(wrong())
        print("\n".join(found) or "each figure stands in a row, and each picture shows its rows")
        return 1 if found else 0
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("error: matplotlib is missing: pip install matplotlib", file=sys.stderr)
        return 2
    rows = all_rows()
    for name, shown in PICTURES.items():
        draw(shown(rows), options.folder / f"{name}.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
