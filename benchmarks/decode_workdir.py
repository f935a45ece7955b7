"""What decode.py keeps in its workdir: text, our trained model, and the same weights for the other systems."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import runpy
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from side_by_side import HERE, environment, log

from transformer.config import UserError
from transformer.data.phrases import corpus


def write_text(folder: Path, quick: bool) -> None:
    """Lines of one to eight generated phrases each: train, dev and test, both sides; of one each if `quick`.

    Of the test lines one in forty or so has an output of the fixed length.
    """
    most, *totals = (1, 20_000, 200, 6_000) if quick else (8, 400_000, 500, 60_000)
    part = folder.with_suffix(".part")
    part.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for split, total in zip(("train", "dev", "test"), totals, strict=True):
        made = itertools.islice(corpus.pairs(split, ("en", "de")), total)
        lines = []
        while several := list(itertools.islice(made, 1 + draw.randrange(most))):
            lines.append([" ".join(side) for side in zip(*several, strict=True)])
        for language, side in zip(("en", "de"), zip(*lines, strict=True), strict=True):
            (part / f"{split}.{language}").write_text("".join(f"{line}\n" for line in side), encoding="utf-8")
    part.rename(folder)


def prepare(options: Namespace, overrides: Sequence[str]) -> dict[str, str]:
    """Train and carry over, or take what the workdir has; the folders by name.

    Raises `UserError` if the workdir holds another model.
    """
    work = Path(options.workdir)
    folders = {name: str((work / name).resolve()) for name in ("first", "start", "run", "marian", "ctranslate2")}
    text, mark = work / "text", work / "made.json"
    recipe = (HERE / "model.py").read_text(encoding="utf-8")
    made = {"quick": options.quick, "overrides": list(overrides), "recipe": hashlib.sha256(recipe.encode()).hexdigest()}
    if mark.exists():
        if json.loads(mark.read_text()) != made:
            raise UserError(f"--workdir {work}: it holds a model made in another way; name another folder")
        return folders
    if not text.exists():
        write_text(text, options.quick)
    files = [
        argument
        for split, field in (("train", ""), ("dev", "dev_"))
        for side, language in (("source", "en"), ("target", "de"))
        for argument in (f"--data.{field}{side}", str(text / f"{split}.{language}"))
    ]
    log("training; the same command again goes on from the last checkpoint")
    train = "train.py", "--config", HERE / "model.py", *files
    start = []
    if not options.quick:
        first = (f"--{name}={value}" for name, value in runpy.run_path(str(HERE / "model.py"))["FIRST"].items())
        _call(*train, "--workdir", folders["first"], *first, *overrides)
        if not Path(folders["start"]).exists():
            _call(HERE / "systems.py", "deepen", json.dumps(folders))
        start = ["--train.init_from", folders["start"]]
    _call(*train, "--workdir", folders["run"], *start, *overrides)
    for name in ("marian", "ctranslate2"):
        if Path(folders[name]).exists():
            raise UserError(f"{folders[name]} is left from a run that broke off; remove it")
    _call(
        *("-m", "transformer", "export", folders["run"], folders["marian"]),
        *("--to", "hf-marian", "--checkpoint", "last"),
    )
    _call(HERE / "systems.py", "convert", json.dumps(folders))
    mark.write_text(json.dumps(made))
    return folders


def _call(*arguments: Any) -> None:
    if subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=HERE.parent, stdout=sys.stderr, env=environment()
    ).returncode:
        raise UserError(f"{' '.join(map(str, arguments[:3]))} failed, see above")
