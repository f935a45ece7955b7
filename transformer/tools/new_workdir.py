"""Write a new workdir that holds one checkpoint without optimiser state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from transformer.checkpoint import AVERAGE, Checkpoints
from transformer.config import to_json
from transformer.files import local, new_folder, path_of, replace, require_new, writing
from transformer.model import Params


def new_workdir(
    out: str,
    params: Params,
    config: Any,
    *,
    progress: Mapping[str, Any],
    files: Mapping[str, bytes],
    more: Callable[[epath.Path], None] = lambda folder: None,
) -> None:
    """Write a workdir whose checkpoint `average` holds `params`. It appears complete or not at all.

    It can be the `train.init_from` of a run. train.py can't resume in it, because it has no optimiser state and no
    config.json of a run. `files`: the vocabulary. `more` writes further files into the folder that it gets. Raises
    `UserError` if `out` is not a new or empty folder.
    """
    require_new(folder := path_of(out))
    Checkpoints(out)  # raises for a path in which no arrays can be stored
    with contextlib.ExitStack() as stack:
        if local(out):
            stack.enter_context(writing(folder))
            folder = stack.enter_context(new_folder(Path(folder)))
        folder = epath.Path(folder)
        for name, content in files.items():
            replace(folder / name, content)
        more(folder)
        checkpoints = Checkpoints(folder)
        files = {"config.json": to_json(config).encode(), **files}
        checkpoints.save(AVERAGE, {"params": params}, progress={**progress, "trainable": False}, files=files)
        checkpoints.wait()
