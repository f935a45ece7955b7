"""The parameters that a new run starts from: random ones, or those of another run (`train.init_from`)."""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import Any

import jax

from transformer.checkpoint import Checkpoint, Checkpoints, with_sharding
from transformer.config import DECODER_FIELDS, KINDS, ModelConfig, UserError, flatten
from transformer.model import Model, Params
from transformer.model.encoder_decoder import beside_a_decoder
from transformer.model.functional import finite
from transformer.training.processes import all_or_none, gather
from transformer.training.sharding import check_mesh, shardings
from transformer.training.step import Program, TrainState
from transformer.training.task import Objective

log = logging.getLogger("transformer")

# Fields of `ModelConfig` in which a run may differ from its start: the parameters mean the same.
FREE = (
    *("dropout", "attention_dropout", "activation_dropout", "initializer", "attention_kernel", "dtype", "window"),
    "position_offset",
)
# The parts of an encoder alone that belong to a head. A start may have other ones.
HEAD_PARTS = (
    *("pooler", "masked_head", "masked_norm", "output_embedding", "output_bias", "next_sentence_head", "label_head"),
)


def initial(objective: Objective, config: Any, program: Program) -> TrainState:
    """The state before the first update, sharded over the mesh: parameters of `train.init_from`, else random ones.

    Parameters of the head of an encoder alone that the start lacks are random, as are those that the objective draws
    anew.
    """
    init_from = config.train.init_from
    if init_from is None:
        return program.init()
    with all_or_none():
        name = starting_point(config, program.abstract.params).name
    # Another run may be training there and save meanwhile: all processes take the checkpoint that process 0 found.
    checkpoint = Checkpoints(init_from).at(json.loads(gather(json.dumps(name))[0]))
    abstract = start_params(checkpoint, config.model, program.abstract.params)
    params = checkpoint.restore({"params": with_sharding(abstract, shardings(abstract, program.mesh))})["params"]
    if not finite(params):
        raise UserError(f"train.init_from = {init_from!r}: {checkpoint.path} holds parameters that are not finite")
    log.info("starting from the parameters of %s", checkpoint.path)
    return program.start_from(_adapted(params, checkpoint, objective, program))


def start_params(start: Checkpoint, model: ModelConfig, params: Params) -> Params:
    """The abstract parameters that a start must have: `params` of a run of this model. Of an encoder alone, with the
    head of the start's model instead of that of `model`; or all of the start's, if it becomes the encoder of a model
    with a decoder."""
    there = start.config.model
    if model.decoder_layers and not there.decoder_layers:
        return start.model.abstract_params
    if model.decoder_layers or there.decoder_layers:
        return params
    rest = {name: node for name, node in params.items() if name not in HEAD_PARTS}
    return rest | {name: node for name, node in start.model.abstract_params.items() if name in HEAD_PARTS}


def _adapted(params: Params, start: Checkpoint, objective: Objective, program: Program) -> Params:
    """The parameters of a start, with random ones where the run needs others. The log names both."""
    wanted = _leaves(program.abstract.params)
    if "decoder" in program.abstract.params and not start.config.model.decoder_layers:
        params = beside_a_decoder(params, start.config.model)
    there = _leaves(params)
    redrawn = objective.redrawn or (lambda path, start: False)
    anew = {path for path, x in wanted.items() if path not in there or there[path].shape != x.shape}
    anew |= {path for path in wanted if redrawn(path, start)}
    if unused := sorted({path.split("/")[0] for path in there.keys() - wanted.keys()}):
        log.info("left out    %s of the start: this model has no such parts", ", ".join(unused))
    if anew:
        log.info("drawn anew  %s", ", ".join(sorted({path.rpartition("/")[0] or path for path in anew})))
        fresh = _leaves(program.init().params)
        there |= {path: fresh[path] for path in anew}
    return jax.tree_util.tree_map_with_path(lambda keys, _: there[_path(keys)], program.abstract.params)


def _leaves(params: Params) -> dict[str, Any]:
    """Map each parameter's path to it."""
    return {_path(keys): x for keys, x in jax.tree_util.tree_leaves_with_path(params)}


def _path(keys: tuple) -> str:
    return "/".join(key.key for key in keys)


def starting_point(config: Any, abstract_params: Params) -> Checkpoint:
    """The checkpoint that `train.init_from` names.

    Raises `UserError` if there is none, or if its model is another one; the message lists the options that differ.
    """
    init_from = config.train.init_from
    opened = Checkpoints(init_from).open()
    try:
        wrong = opened.misfit(start_params(opened, config.model, abstract_params))
        wrong = wrong or _encoder_misfit(opened, abstract_params)
        start_config = opened.config
    except OSError as error:
        wrong, start_config = f"{opened.path} cannot be read ({error.strerror or error})", config
    if different := other_fields(start_config.model, config.model):
        listed = "; ".join(f"--model.{field} is {old!r} there, {new!r} here" for field, (old, new) in different.items())
        # An encoder alone may start several tasks.
        same = opened.config.task == config.task or not start_config.model.decoder_layers
        of_task = f"It is a run of the task {opened.config.task!r}: name one of {config.task!r}"
        wrong = f"{listed}. {'Give the same values as there' if same else of_task}, or leave train.init_from out"
    if wrong:
        raise UserError(f"train.init_from = {init_from!r}: {wrong}")
    return opened


def _encoder_misfit(start: Checkpoint, abstract_params: Params) -> str | None:
    """Why an encoder alone can't become the encoder of these parameters of a model with a decoder, or None. Raises
    `UserError` if that has no encoder."""
    if start.config.model.decoder_layers or "decoder" not in abstract_params:
        return None
    if "encoder" not in abstract_params:
        raise UserError(
            f"train.init_from: the model of {start.path.parent.parent} is an encoder alone, and this one has no "
            "encoder; leave train.init_from out"
        )
    here, there = (_leaves(params["encoder"]) for params in (abstract_params, start.model.abstract_params))
    other = [path for path, x in here.items() if path not in there or there[path].shape != x.shape]
    return f"its encoder has other shapes, such as that of {other[0]}" if other else None


def other_fields(old: ModelConfig, new: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """The fields that make another model and in which the two differ: name -> (old value, new value)."""

    def filled_in(model: ModelConfig) -> dict[str, Any]:
        """All fields, with defaults that depend on other fields filled in."""
        kinds = {f"{kind}_attention": model.attention(kind) for kind in KINDS}
        kv_heads = model.kv_heads or model.heads
        return flatten(dataclasses.replace(model, kv_heads=kv_heads, d_k=model.key_size, d_v=model.value_size, **kinds))

    ignored = [*FREE, *(["max_positions"] if "learned" not in (old.positions, new.positions) else [])]
    ignored += ["vocab_size"] if None in (old.vocab_size, new.vocab_size) else []
    if not (old.decoder_layers or new.decoder_layers):
        ignored += ["head", "labels", "output_bias", "tied_embeddings"]
    if new.decoder_layers and not old.decoder_layers:
        ignored += DECODER_FIELDS
    resolved, before, after = (filled_in(old), filled_in(new)), flatten(old), flatten(new)
    return {
        field: (before[field], after[field])
        for field in before
        if before[field] != after.get(field, before[field])
        and resolved[0][field] != resolved[1][field]
        and field.split(".")[-1] not in ignored
    }


def check_start(config: Any, workdir: str, model: Model) -> None:
    """Raise `UserError`, before any text is read, if the mesh does not fit the devices or does not divide the model, or
    if a new run cannot start from `train.init_from`."""
    check_mesh(model, config.mesh)
    if config.train.init_from and not Checkpoints(workdir).states():
        starting_point(config, model.abstract_params)
