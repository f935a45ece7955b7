"""The task of algorithms: a decoder alone learns to continue prompts with answers, and is tested on longer ones."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from transformer.config import AlgorithmConfig, UserError, check, with_micro_batches
from transformer.data.algorithms import BITS, Algorithm, InstanceBatches, algorithm_of, padded_size
from transformer.data.folder import check_cache
from transformer.model import Params, build
from transformer.tasks.exact_match import evaluate_workdir, instances_of, lines_of, ranges, scores
from transformer.training.objectives import causal
from transformer.training.sharding import gathered
from transformer.training.warm_start import check_start

log = logging.getLogger("transformer")

_SAMPLES = 2


class AlgorithmTask:
    """Model, batches, loss and evaluation of one config (see `training.task.Task`)."""

    judged = (("dev_exact_match", "up"), ("dev_loss", "down"))

    def __init__(self, config: AlgorithmConfig):
        self.algorithm = algorithm_of(config)
        self.config = completed(config, self.algorithm)
        self.files: dict[str, bytes] = {}
        self.objective = causal(build(self.config.model), self.config.train)

    @staticmethod
    def check(config: AlgorithmConfig, workdir: str) -> None:
        """Raise `UserError` for mistakes that can be found without drawing instances."""
        check_start(config, workdir, build(completed(config, algorithm_of(config)).model))

    @staticmethod
    def resumed(config: AlgorithmConfig, stored: AlgorithmConfig) -> AlgorithmConfig:
        """`config` for a run that resumes in a workdir whose config is `stored`."""
        return completed(config, algorithm_of(config))

    check_cache = staticmethod(check_cache)
    score = staticmethod(evaluate_workdir)
    lines_of = staticmethod(lines_of)

    @classmethod
    def build(cls, config: AlgorithmConfig, workdir: str | None = None) -> AlgorithmTask:
        """The task."""
        return cls(config)

    def cut_into(self, micro_batches: int) -> AlgorithmTask:
        """The same task with this number of micro-batches a batch."""
        return AlgorithmTask(with_micro_batches(self.config, micro_batches))

    def batches(self) -> InstanceBatches:
        """The training batches."""
        d = self.config.data
        lengths = {"shortest": d.shortest, "longest": d.longest}
        return InstanceBatches(self.algorithm, count=d.batch_rows, **lengths, seed=self.config.train.seed)

    def prepare(self) -> None:
        """Nothing is to be done before training."""

    def content_digests(self) -> dict[str, str]:
        """Digest of the training instances."""
        return {"digest of the instances": self.data_digest()}

    def data_digest(self) -> str:
        """Digest of what determines the training instances."""
        return self.batches().digest()

    def judged_on(self) -> dict[str, Any]:
        """What dev scores depend on besides the parameters. There is no digest of instances: each seed has its own."""
        return {"scored_with": {"dev_instances": self.config.data.dev_instances}}

    def write_sets(self, folder: epath.Path) -> None:
        """There are no sets: instances are drawn from the seed."""

    def describe(self) -> Iterator[str]:
        """Lines for the banner: the task and its lengths."""
        d = self.config.data
        lengths = f"{BITS} bits" if d.algorithm == "and" else f"lengths {d.shortest} to {d.longest}"
        yield f"data        {self.algorithm.name}: {lengths}, drawn anew for each update"
        yield f"dev set     {d.dev_instances} instances of each range: {', '.join(ranges(d))}"

    def evaluate(self, params: Params, mesh: Mesh, step: int) -> Iterator[tuple[str, float | str]]:
        """Scores by name: the loss (nats per piece of an answer) and the share of answers that are right as a whole at
        the lengths of training; then that share at longer lengths, range by range."""
        d, model = self.config.data, build(self.config.model)
        params = gathered(params)
        for i, name in enumerate(ranges(d)):
            instances = instances_of(self.algorithm, self.config, i, d.dev_instances)
            found = scores(model, params, instances, padded_size(self.algorithm, d.longest_tested))
            if i == 0:
                yield "dev_loss", found.loss
            yield "dev_exact_match" if i == 0 else f"dev_exact_match_{name}", found.exact_match
        self.sample(params)

    def sample(self, params: Params) -> None:
        """Log a few instances, with what the model says behind each piece of the answer."""
        d, model = self.config.data, build(self.config.model)
        instances = instances_of(self.algorithm, self.config, 0, _SAMPLES)
        found = scores(model, gathered(params), instances, padded_size(self.algorithm, d.longest))
        for instance, said in zip(instances, found.said, strict=True) if jax.process_index() == 0 else ():
            log.info("  prompt  %s\n  answer  %s\n  model   %s\n", instance.prompt, instance.answer, said)

    def lines(self, step: int) -> str:
        """Where the instances of an update come from, for messages."""
        return f"the instances of update {step}, which are drawn from train.seed"


def completed(config: AlgorithmConfig, algorithm: Algorithm) -> AlgorithmConfig:
    """The config with the vocabulary of the algorithm, and with the fields of `train` that `data` sets.

    Raises `UserError` if the model has too few learned positions for the longest instances.
    """
    d, m = config.data, config.model
    if m.vocab_size not in (None, algorithm.vocab_size):
        raise UserError(f"model.vocab_size = {m.vocab_size}: the task has {algorithm.vocab_size}; leave it out")
    size, of_training = (padded_size(algorithm, n) for n in (d.longest_tested, d.longest))
    needed = max(size, of_training + m.position_offset)
    if m.positions == "learned" and m.max_positions < needed:
        raise UserError(
            f"model.max_positions = {m.max_positions}: must be at least {needed} for lengths up to "
            f"{d.longest_tested} and model.position_offset = {m.position_offset}"
        )
    tokens = d.batch_rows * of_training
    if config.train.batch_tokens not in (AlgorithmConfig.train.batch_tokens, tokens):
        raise UserError(f"train.batch_tokens = {config.train.batch_tokens}: data.batch_rows sets it; leave it out")
    train = dataclasses.replace(config.train, batch_tokens=tokens)
    config = dataclasses.replace(config, model=m.with_vocabulary(algorithm.vocab_size), train=train)
    check(config)
    return config
