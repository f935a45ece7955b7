"""benchmarks/plots.py: quoted figures are looked up in rows, and pictures show the rows."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import plots  # noqa: E402
import quoted  # noqa: E402


def test_figures_and_pictures_are_those_of_the_rows() -> None:
    assert list(plots.wrong()) == []


def test_every_row_says_where_it_comes_from() -> None:
    for name, rows in quoted.all_rows().items():
        needed = {"source"} if name == "published.jsonl" else {"command", "commit", "device", "date"}
        for number, row in enumerate(rows, 1):
            assert needed <= row.keys(), f"{name}:{number}"
            assert "recorded_in" in row or row.get("commit", True), f"{name}:{number}"
            paths = re.findall(r"(?<![\w.~/-])/[\w.-]+/", json.dumps(row))
            assert not paths, f"{name}:{number}: {paths}"


@pytest.fixture
def page(tmp_path: Path):
    """`page(text, strict=True)`: the problems of a Markdown file beside two rows."""
    (tmp_path / "results").mkdir()
    rows = [
        {"system": "ours", "dtype": "float32", "batch": 8, "tokens_per_s": 1234.4, "share": 0.353, "mib": 7685},
        {
            "system": "huggingface",
            "dtype": "float32",
            "batch": 32,
            "tokens_per_s": 99,
            "range": [97, 103],
            "bleu": 12.5,
        },
    ]
    (tmp_path / "results" / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def problems(text: str, strict: bool = True) -> list[str]:
        (tmp_path / "page.md").write_text(text)
        return list(quoted.problems(tmp_path / "page.md", strict=strict, root=tmp_path))

    return problems


TABLE = """# 7 headings are not compared

<!-- rows: results/x.jsonl by system dtype columns batch -->
| system | batch 8 | batch 32 |
|---|---|---|
| ours float32 | 1,234 | |
| **Hugging Face** float32 | | 99 (97-103) |
"""


def test_cells_are_compared_with_their_own_row(page) -> None:
    assert page(TABLE) == []
    assert page(TABLE.replace("1,234", "1,235")) == ["page.md:6: 1,235 is in none of the 1 rows cited"]
    assert page(TABLE.replace("99 (97-103)", "1,234")) == ["page.md:7: 1,234 is in none of the 1 rows cited"]
    assert page(TABLE.replace("ours", "PyTorch")) == ["page.md:4: no row has system and dtype = PyTorch float32"]
    assert page(TABLE.replace("x.jsonl", "y.jsonl")) == ["page.md:4: there is no file results/y.jsonl"]
    assert page(TABLE.replace("jsonl by", "jsonl dtype=int8 by"))[0].startswith("page.md:4: no row has ")
    assert page(TABLE.replace("<!-- rows: results/x.jsonl by system dtype columns batch -->\n", ""))[0].startswith(
        "page.md:3: cites no rows"
    )


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("It has 1,234 pieces/s, 35 %, 7.5 GiB; `9.9 s` and JAX 0.10.2 don't count.", None),
        ("The mean is 666.7 pieces/s, the deviation 802.8, of 2 rows.", None),
        ("It has 36 %.", "36 %"),
        ("It has 7.4 GiB.", "7.4 GiB"),
        ("It takes 3:25 min.", "205 s"),
    ],
)
def test_units_roundings_and_means(page, text: str, wrong: str | None) -> None:
    expected = [] if wrong is None else [f"page.md:2: {wrong} is in none of the 2 rows cited"]
    assert page(f"<!-- rows: results/x.jsonl -->\n{text}\n") == expected


def test_pages_that_cite_nothing_are_compared_with_all_rows(page) -> None:
    cell = "| what | score |\n|---|---|\n| Tiny, 3,000 updates | {} |\n"
    assert page(cell.format("12.5 BLEU"), strict=False) == []
    assert page(cell.format(12.6), strict=False) == ["page.md:3: 12.6 is in none of the 2 rows cited"]
    assert page("Needs Python 3.11 and 64 GiB.\n", strict=False) == ["page.md:1: 64 GiB is in none of the 2 rows cited"]
    assert page("<!-- not measured -->\nNeeds 64 GiB.\n\n    pip install x==6.4\n", strict=False) == []


def test_a_picture_older_than_its_rows_is_found(monkeypatch) -> None:
    later = {**quoted.all_rows()}
    later["multi30k.jsonl"] = (*later["multi30k.jsonl"], {**later["multi30k.jsonl"][0], "seed": 77})
    monkeypatch.setattr(plots, "all_rows", lambda root: later)
    lines = [line for line in plots.wrong() if "figures" in line]
    assert lines == [
        "results/figures/multi30k.svg shows other figures than results/*.jsonl: run python benchmarks/plots.py",
        "results/figures/seeds.svg shows other figures than results/*.jsonl: run python benchmarks/plots.py",
    ]


def test_pictures_are_small_and_the_same_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install -r benchmarks/requirements.txt")
    rows = quoted.all_rows()
    for name, shown in plots.PICTURES.items():
        paths = tmp_path / f"{name}.svg", tmp_path / "again" / f"{name}.svg"
        for path in paths:
            plots.draw(shown(rows), path)
        first, second = (path.read_bytes() for path in paths)
        assert first == second and len(first) < 60_000
        assert plots.digest(shown(rows)).encode() in first
