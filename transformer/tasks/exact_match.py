"""Exact match of answers, by length: how a model that learnt an algorithm does on longer instances.

An answer is right if all its pieces are, EOS included. With the right length given, EOS is left out. Greedy decoding
gives the right answer just if each piece is the likeliest one behind the right pieces before it, so one forward pass
decides.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer.checkpoint import AVERAGE, Checkpoint, Checkpoints
from transformer.config import AlgorithmConfig, InstancesConfig, UserError, require_task
from transformer.data.algorithms import (
    BITS,
    EVEN,
    FIXED,
    ODD,
    Algorithm,
    Instance,
    algorithm_of,
    conjunction,
    drawn,
    padded_size,
    rows,
)
from transformer.inference.batches import on_all_devices
from transformer.model import Model, Params, build
from transformer.tasks.seeds import mean_and_deviation, of_each_seed, require_alike
from transformer.training.workdir import config_of

_ROWS = 64  # of a forward pass
_OFFSET = 1_000  # by which the instances of evaluate.py differ from those of training's evaluations


class Scores(NamedTuple):
    """What a model does with some instances."""

    loss: float
    """Nats per piece of the answers, EOS included."""
    right: np.ndarray
    """Whether each answer is right."""
    right_length_given: np.ndarray
    """The same with the right length given."""
    said: list[list[int]]
    """The likeliest ids at the places of each answer and of EOS."""

    @property
    def exact_match(self) -> float:
        return float(self.right.mean())


def scores(model: Model, params: Params, instances: Sequence[Instance], length: int) -> Scores:
    """The scores of a model. `length`: positions of a row, enough for all instances."""
    nats, count, right, given, said = 0.0, 0, [], [], []
    for begin in range(0, len(instances), _ROWS):
        some = instances[begin : begin + _ROWS]
        batch = rows(some, _ROWS, length)
        likeliest_BT, nll = jax.device_get(_forward(params, batch, model=model))
        nats, count = nats + float(nll), count + int(batch["predicted"].sum())
        for row, instance in enumerate(some):
            where = np.flatnonzero(batch["predicted"][row])
            ours, theirs = likeliest_BT[row, where], batch["next"][row, where]
            right.append(bool((ours == theirs).all()))
            given.append(bool((ours == theirs)[: len(instance.answer)].all()))
            said.append(ours.tolist())
    return Scores(nats / max(count, 1), np.array(right), np.array(given), said)


@partial(jax.jit, static_argnames="model")
def _forward(params: Params, batch: Mapping[str, Array], *, model: Model) -> tuple[Array, Array]:
    """The likeliest id at each position, and the negative log-likelihood of what is to be predicted."""
    logits_BTV = model.apply(params, batch["text"])
    log_probs_BT = jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), batch["next"][..., None], axis=2)[..., 0]
    return jnp.argmax(logits_BTV, axis=2), -jnp.sum(jnp.where(batch["predicted"] != 0, log_probs_BT, 0.0))


# ---- Ranges of lengths -----------------------------------------------------------------------------------------------


def ranges(data: InstancesConfig) -> list[str]:
    """The ranges of lengths that are tested: those of training, then beyond. 'and' has its own two sets."""
    if data.algorithm == "and":
        return ["training", "other_patterns"]
    ends = [data.longest, *data.tested]
    return [f"{data.shortest}-{ends[0]}", *(f"{a + 1}-{b}" for a, b in itertools.pairwise(ends))]


def instances_of(
    algorithm: Algorithm, config: AlgorithmConfig, number: int, count: int, *, offset: int = 0
) -> list[Instance]:
    """`count` instances of a range, of all its lengths alike. Of 'and' beyond training: the patterns that decide.

    `offset`: another one gives other instances.
    """
    if config.data.algorithm == "and" and number:
        return deciding(config.train.seed)
    return drawn(algorithm, lengths_of(config.data, number, count), config.train.seed + offset + number)


def lengths_of(data: InstancesConfig, number: int, count: int) -> list[int]:
    """The lengths of `count` instances of a range: all lengths alike; if they are fewer, evenly over the range."""
    if data.algorithm == "and":
        return [BITS] * count
    ends = [data.shortest - 1, data.longest, *data.tested]
    lengths = range(ends[number] + 1, ends[number + 1] + 1)
    if count < len(lengths):
        return [lengths[(2 * i + 1) * len(lengths) // (2 * count)] for i in range(count)]
    return [lengths[i % len(lengths)] for i in range(count)]


def deciding(seed: int) -> list[Instance]:
    """The 31 patterns on which the AND of all bits differs from that of the bits that vary in training: these are 1,
    and of the others one at least is 0."""
    other, found = conjunction(seed, training=False), {}
    rng = np.random.default_rng(0)
    while len(found) < 2**FIXED - 1:
        instance = other.draw(rng, BITS)
        found[tuple(instance.prompt)] = instance
    return [found[prompt] for prompt in sorted(found)]


def interpolated(seed: int, instances: Sequence[Instance]) -> list[int]:
    """What the polynomial of least degree that fits the training data of 'and' says: the product of the bits that vary
    there (Abbe et al. 2023)."""
    training = np.array([instance.prompt for instance in drawn(conjunction(seed), [BITS] * 500, seed)])
    vary = (training != training[0]).any(axis=0)
    return [ODD if all(id == ODD for id in np.array(one.prompt)[vary]) else EVEN for one in instances]


# ---- evaluate.py -----------------------------------------------------------------------------------------------------


def evaluate_workdir(workdir: str, *, checkpoint: str | None = None) -> dict[str, Any]:
    """Exact match of a workdir's checkpoint, range by range and by length, as evaluate.py prints it.

    Of a workdir with several seeds, the scores of each ("seeds"), and of each range the mean, the standard deviation
    and the best.
    """
    each = of_each_seed(workdir, lambda folder: _evaluated(folder, checkpoint))
    if not each:
        return _evaluated(workdir, checkpoint)
    require_alike(workdir, "lengths", {seed: " ".join(result["exact_match"]) for seed, result in each.items()})
    require_alike(workdir, "data.test_instances", {seed: result["instances"] for seed, result in each.items()})
    results = list(each.values())
    shared = {name: results[0][name] for name in ("task", "instances")}
    for kind in ("exact_match", "exact_match_length_given"):
        by_range = {name: [result[kind][name] for result in results] for name in results[0][kind]}
        shared[kind] = {name: {**mean_and_deviation(x), "best": max(x)} for name, x in by_range.items()}
    return shared | {"seeds": {str(seed): result for seed, result in each.items()}}


def _evaluated(workdir: Any, checkpoint: str | None) -> dict[str, Any]:
    """The scores of one run."""

    def read(opened: Checkpoint) -> tuple[Checkpoint, Params]:
        require_task(opened.config, workdir, AlgorithmConfig)
        return opened, on_all_devices(opened.params())

    checkpoints = Checkpoints(workdir)
    opened, params = checkpoints.read(checkpoint, read)
    # A run may have gone on, or have been told, to test other lengths since this checkpoint.
    config = dataclasses.replace(opened.config, data=(config_of(checkpoints) or opened.config).data)
    d, algorithm, model = config.data, algorithm_of(config), build(config.model)
    positions = padded_size(algorithm, d.longest_tested)
    result: dict[str, Any] = {"task": algorithm.name, "checkpoint": str(opened.name), "instances": d.test_instances}
    by_range, given, by_length = {}, {}, {}
    for number, name in enumerate(ranges(d)):
        instances = instances_of(algorithm, config, number, d.test_instances, offset=_OFFSET)
        found = scores(model, params, instances, positions)
        if not np.isfinite(found.loss):
            raise UserError(f"{workdir}: the loss of checkpoint {opened.name} is not finite; choose another checkpoint")
        by_range[name], given[name] = found.exact_match, float(found.right_length_given.mean())
        if d.algorithm == "and" and number == 1:
            product = interpolated(config.train.seed, instances)
            agree = sum(said == one.answer[0] for said, one in zip(product, instances, strict=True))
            right = int(found.right_length_given.sum())
            result |= {"patterns": len(instances), "patterns_right": right, "interpolator_right": agree}
        for length, right in zip(lengths_of(d, number, len(instances)), found.right, strict=True):
            by_length.setdefault(length, []).append(bool(right))
    result |= {"exact_match": by_range, "exact_match_length_given": given}
    if d.algorithm != "and":
        result["exact_match_by_length"] = {str(n): sum(by_length[n]) / len(by_length[n]) for n in sorted(by_length)}
    if opened.name == AVERAGE:
        result["averaged_steps"] = opened.progress["averaged_steps"]
    return result


def lines_of(result: Mapping[str, Any]) -> Iterator[str]:
    """The result of `evaluate_workdir` as lines of text."""
    if "seeds" in result:
        yield from _lines_of_seeds(result)
        return
    yield f"{result['task']}: {result['instances']:,} instances of each range, checkpoint {result['checkpoint']}"
    given = result["exact_match_length_given"]
    for name, value in result["exact_match"].items():
        yield f"{name:>15}  exact match {value:.4f}, with the right length given {given[name]:.4f}"
    if "patterns" in result:
        yield (
            f"of {result['patterns']} patterns that decide {result['patterns_right']} are right; the polynomial of "
            f"least degree that fits the training data has {result['interpolator_right']} right"
        )


def _lines_of_seeds(result: Mapping[str, Any]) -> Iterator[str]:
    yield f"{result['task']}: {result['instances']:,} instances of each range, {len(result['seeds'])} seeds"
    for seed, one in result["seeds"].items():
        found = "  ".join(f"{name}: {value:.4f}" for name, value in one["exact_match"].items())
        decided = f"  patterns that decide: {one['patterns_right']} of {one['patterns']}" if "patterns" in one else ""
        yield f"seed {seed}, checkpoint {one['checkpoint']}  exact match {found}{decided}"
    given = result["exact_match_length_given"]
    for name, of in result["exact_match"].items():
        deviation = of["standard_deviation"]
        spread = "" if deviation is None else f", standard deviation {deviation:.4f}"
        yield (
            f"{name:>15}  mean {of['mean']:.4f}{spread}, best {of['best']:.4f}; with the right length given "
            f"{given[name]['mean']:.4f}"
        )
