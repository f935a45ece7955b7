"""What sentence-transformers computes of an encoder's states, as far as a folder of a model says so."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

from transformer.config import UserError
from transformer.tools.hf.folder import read, read_object

log = logging.getLogger("transformer")

_PREFIX = "pooling_mode_"  # of the fields of a Pooling module


def warn_of_vectors(folder: Path) -> None:
    """Warn if the vectors that sentence-transformers gives need other options of `embed` than its defaults, or if
    `embed` can't give them. Nothing is said of folders without modules.json.

    Raises `UserError` if that file, or one that it names, can't be used.
    """
    path = folder / "modules.json"
    if not path.exists():
        return
    cls, normalize, other = False, False, []
    for kind, place in _modules(path):
        if kind == "Pooling":
            found = set(_pooling(file := folder / place / "config.json"))
            cls = found == {"cls_token"}
            if found not in ({"cls_token"}, {"mean_tokens"}):
                other.append(f"pooling by {', '.join(sorted(found)) or 'nothing known'} ({file})")
        elif kind not in ("Transformer", "Normalize", "Dropout"):
            other.append(f"a module of the kind {kind!r}")
        normalize = normalize or kind == "Normalize"
    if prompt := _prompt(folder / "config_sentence_transformers.json"):
        log.warning(
            "%s: sentence-transformers puts %r before each text, `embed` does not; give it with the text", path, prompt
        )
    if other:
        log.warning(
            "%s: `embed` has no counterpart of %s, so its vectors are not those of sentence-transformers",
            *(path, "; ".join(other)),
        )
    elif cls:
        options = "--pooling cls --normalize" if normalize else "--pooling cls"
        log.warning("%s: the vectors of sentence-transformers are those of `embed` with %s", path, options)


def _prompt(path: Path) -> str:
    """What sentence-transformers puts before each text by default; "" if nothing."""
    fields = read_object(path) if path.exists() else {}
    prompts, name = fields.get("prompts"), fields.get("default_prompt_name")
    return str(prompts.get(name) or "") if isinstance(prompts, dict) and isinstance(name, str) else ""


def _modules(path: Path) -> Iterator[tuple[str, str]]:
    """The kind of each module, such as "Pooling", and its folder."""
    try:
        found = [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in json.loads(read(path))]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(
            f"{path}: not a list of modules as sentence-transformers writes it; copy it again, or take it away"
        ) from None
    yield from found


def _pooling(file: Path) -> Iterator[str]:
    """The ways of pooling that a module says it takes, such as "mean_tokens"."""
    fields = read_object(file)
    yield from (name.removeprefix(_PREFIX) for name, on in fields.items() if name.startswith(_PREFIX) and on is True)
    if isinstance(mode := fields.get("pooling_mode"), str):
        yield {"cls": "cls_token", "mean": "mean_tokens"}.get(mode, mode)
