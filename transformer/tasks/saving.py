"""Save a model that another program has trained, so that the commands of this package can read it."""

from __future__ import annotations

import dataclasses
import os
import secrets
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer.checkpoint import AVERAGE, Checkpoints, folder_of, seeds_in
from transformer.config import Config, UserError, check, conflicts, shown, to_json
from transformer.data.tokenizer import Tokenizer
from transformer.files import replace
from transformer.model import Model, Params
from transformer.model.checks import check_integer
from transformer.model.functional import finite
from transformer.tasks.vocabulary import files_of
from transformer.training.workdir import MADE, hold

MARK = "saved_by"  # an entry of progress.json that checkpoints of train.py lack


def save(
    workdir: str | os.PathLike[str],
    model: Model[Any],
    params: Params,
    tokenizer: Tokenizer | str | os.PathLike[str],
    *,
    step: int = 0,
    config: Config | None = None,
) -> None:
    """Save parameters that your own program has trained as a checkpoint of `workdir`.

    `translate`, `score`, `evaluate.py`, `average`, `export`, `train.init_from` and `transformer.load` then read the
    workdir like one of train.py. `model`: from `transformer.build`. `tokenizer`: a `Tokenizer`, or the path of a
    SentencePiece model. `step`: number of updates so far, which names the checkpoint. Save several steps to average
    them. `config`: the other sections of the config, such as the options of decoding; its `model` is replaced.

    Raises `UserError` (a ValueError), before anything is written, if the parameters do not fit the model or are not
    finite, if the tokenizer has another size, if the step was saved before, or if the workdir holds a run of train.py
    or another model. train.py can't resume in the workdir, as the checkpoints have no optimiser state.
    """
    folder_of(workdir)  # raises for what is no path
    if not isinstance(model, Model):
        raise UserError(f"model = {shown(model)}: give what `transformer.build` returns")
    for part in ("encoder", "decoder"):
        if not getattr(model.config, f"{part}_layers"):
            raise UserError(f"model.{part}_layers = 0: save takes models of translation, with encoder and decoder")
    check_integer("step", step, 0, 99_999_999)
    pieces = tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer.load(tokenizer)
    if pieces.vocab_size != model.config.vocab_size:
        raise UserError(
            f"the tokenizer has {pieces.vocab_size} pieces, and the model a vocabulary of {model.config.vocab_size}; "
            "give the tokenizer that it was trained with"
        )
    if config is not None and not isinstance(config, Config):
        raise UserError(f"config = {shown(config)}: give a transformer.Config, or None")
    config = dataclasses.replace(Config() if config is None else config, model=model.config)
    check(config)
    params = _checked(model, params)
    with hold(os.fspath(workdir)) as lock:
        checkpoints, step = Checkpoints(workdir, lock), int(step)
        run = _run_of(checkpoints, config, pieces)
        if checkpoints.complete(step):
            raise UserError(f"{checkpoints.path(step)} exists; give another step")
        files = {"config.json": to_json(config).encode(), **files_of(pieces)}
        progress = {"step": step, "vocab_size": pieces.vocab_size, "run": run, "trainable": False, MARK: "save"}
        checkpoints.save(step, {"params": params}, progress=progress, files=files)
        checkpoints.wait()
        for name, content in files.items():
            replace(checkpoints.folder.parent / name, content)


def _checked(model: Model[Any], params: Params) -> Params:
    """The parameters in float32. Raises `UserError` unless they fit the model and are finite."""
    leaves = jax.tree.leaves(params)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        raise UserError("the parameters are traced: call save outside jax.jit")
    if jax.process_count() > 1:
        raise UserError("save works in one process only: gather the parameters, then save them with one process")
    try:
        model.bind(params)
    except ValueError as error:
        raise UserError(str(error)) from None
    for leaf in leaves:
        if not isinstance(leaf, (jax.Array, np.ndarray)) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise UserError(f"the parameters hold {shown(leaf)}: give arrays of floating-point numbers")

    def plain(node: Any) -> Any:
        if isinstance(node, Mapping):  # such as Flax's FrozenDict
            return {str(name): plain(inner) for name, inner in node.items()}
        return jnp.asarray(node, jnp.float32) if isinstance(node, jax.Array) else np.asarray(node, np.float32)

    params = jax.tree.map(jnp.asarray, plain(params))
    if not finite(params):
        raise UserError("some parameters are not finite; nothing was saved")
    return params


def _run_of(checkpoints: Checkpoints, config: Config, pieces: Tokenizer) -> str:
    """The id of the run that earlier calls saved in the workdir, or a new one.

    Raises `UserError` if the workdir holds anything that this run must not be mixed with.
    """
    folder = checkpoints.folder.parent
    names: list[int | str] = [*checkpoints.states(), *([AVERAGE] if checkpoints.complete(AVERAGE) else [])]
    if seeds_in(folder):
        raise UserError(f"{folder} holds the runs of several seeds; use another workdir")
    if not checkpoints.states():
        made = [name for name in ("config.json", *MADE) if name != "checkpoints" and (folder / name).exists()]
        if made or names:
            raise UserError(f"{folder} holds {', '.join(made) or 'an average'} of another run; use another workdir")
        return secrets.token_hex(8)
    opened = [checkpoints.at(name) for name in checkpoints.states()]
    if any(MARK not in one.progress for one in opened):
        raise UserError(f"{folder} holds a run of train.py, which could not resume any more; use another workdir")
    newest = opened[-1]
    if changed := conflicts(newest.config, config):
        listed = "; ".join(f"{name} is {old!r} there, {new!r} now" for name, (old, new) in changed.items())
        raise UserError(f"{folder} holds another model: {listed}. Use another workdir, or the same values")
    name, content = pieces.file
    if name not in newest.files() or newest.file(name) != content:
        raise UserError(f"{folder} holds a model with another tokenizer; use another workdir")
    return newest.progress["run"]
