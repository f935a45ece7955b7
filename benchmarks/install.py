"""How large an installation is, and how long pip takes: a new virtual environment for each target.

    python benchmarks/install.py                      # the dependencies alone, then with the extra `train`
    python benchmarks/install.py '-r requirements.txt'   # any arguments of pip install

`mb` and `packages` leave out what a new environment holds already. pip downloads everything again (--no-cache-dir).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rows import Rows
from side_by_side import HERE, machine


def measure(target: str, folder: Path) -> dict[str, object]:
    """The row of one target, installed into a new environment in `folder`."""
    venv.create(folder, with_pip=True)
    before = size(folder), packages(folder)
    began = time.monotonic()
    command = [folder / "bin" / "pip", "install", "--quiet", "--no-cache-dir", *shlex.split(target)]
    subprocess.run(command, cwd=HERE.parent, check=True, stderr=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    mb = (size(folder) - before[0]) / 1e6
    return {
        **{"part": "install", "target": target, "mb": round(mb), "packages": len(packages(folder) - before[1])},
        **{"install_s": round(seconds, 1), "load_before": round(os.getloadavg()[0], 1)},
    }


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def packages(folder: Path) -> set[str]:
    """The distributions in an environment, with their versions."""
    # -I: not those of the current folder, where a build has left its metadata.
    command = [folder / "bin" / "python", "-I", "-m", "pip", "list", "--format=json"]
    done = subprocess.run(command, capture_output=True, check=True)
    return {f"{one['name']}=={one['version']}" for one in json.loads(done.stdout)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("targets", nargs="*", default=[".", ".[train]"], metavar="TARGET", help="arguments of pip")
    parser.add_argument("--rows", default=str(HERE.parent / "results" / "install.jsonl"), help="where rows are added")
    options = parser.parse_args()
    rows = Rows(options.rows, device=f"{machine(('pip',))}, {len(os.sched_getaffinity(0))} cores")
    for target in options.targets:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(rows.add(measure(target, Path(folder) / "venv"))))


if __name__ == "__main__":
    main()
