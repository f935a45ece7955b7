"""The config files that come with the package: beside it in a checkout, in it where it is installed."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def shipped() -> dict[str, Path]:
    """The shipped config files by name: {"quickstart": .../configs/quickstart.py, ...}."""
    for folder in (PACKAGE / "configs", PACKAGE.parent / "configs"):
        if (folder / "quickstart.py").is_file():
            return {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}
    return {}
