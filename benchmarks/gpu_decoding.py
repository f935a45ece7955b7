"""The part of gpu.py that decodes: ours, Hugging Face and CTranslate2 with the same random weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpu_workers import STARTING, Emit, Settings, Timed, at_once, missing, rates, share, turns
from side_by_side import HERE, Worker, environment
from train_systems import model_config

from transformer.config import EOS, Config, DataConfig, UserError, to_json

Key = tuple[str, int]  # a system and its batch; 0: all batches in one process


class Sizes:
    """What is decoded."""

    def __init__(self, s: Settings):
        import numpy as np

        self.batches, self.beam, self.length, self.source, self.vocab_size = (32, 128, 512), 4, 48, 32, 37_000
        if s.quick:
            self.batches, self.beam, self.length, self.source, self.vocab_size = (2, 4), 2, 8, 8, 1_000
        self.model = "small" if s.quick else "base"
        data = DataConfig(vocab_size=self.vocab_size)
        self.config = Config(model=model_config(self.model), data=data)
        rng = np.random.default_rng(s.seed)
        # With eos they fill one of the shapes that ours compiles for.
        shape = max(self.batches), self.source - 1
        self.sources: list[list[int]] = rng.integers(EOS + 2, self.vocab_size, shape).tolist()

    def about(self, key: Key) -> dict[str, Any]:
        """The columns of a row that say what was run."""
        sizes = {"batch": key[1], "beam": self.beam, "length": self.length, "source": self.source}
        model = {"model": self.model, "dtype": "bfloat16", "vocab_size": self.vocab_size}
        return {"part": "decoding", "system": key[0], **model, **sizes}

    def ask(self, key: Key, worker: Worker) -> dict[str, Any]:
        """One batch translated."""
        answer = worker.ask([self.sources[: key[1]], key[1], self.beam, self.length, self.length])
        if any(len(output) != self.length for output in answer.pop("outputs")):
            raise UserError(f"an output of {key[0]} has not {self.length} pieces")
        return answer

    def least_bytes(self, batch: int) -> int:
        """Bytes that a step reads at least, in 16 bits; benchmarks/README.md says of what."""
        c = self.config.model
        weights = c.decoder_layers * (6 * c.d_model**2 + 2 * c.d_model * c.d_ff) + self.vocab_size * c.d_model
        of_position = c.decoder_layers * 2 * c.d_model
        return round(2 * (weights + of_position * batch * (self.source + self.beam * (self.length + 1) / 2)))


def decoding(s: Settings, emit: Emit) -> None:
    """Beam search, all outputs of one length; the systems take turns."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # in this process, which only carries weights over
    sizes = Sizes(s)

    def failed(key: Key, reason: str) -> None:
        emit({**sizes.about(key), "failed": reason})

    starts = {}
    for name, start in {"ours": ours, "huggingface": huggingface, "ctranslate2": ctranslate2}.items():
        try:
            starts |= start(s, sizes)
        except UserError as reason:
            emit({**sizes.about((name, 0)), "skipped": str(reason)})
    found = at_once(starts, failed)
    workers = {
        (name, batch): worker for (name, size), worker in found.items() for batch in ([size] if size else sizes.batches)
    }
    runs = turns(s, workers, sizes.ask, 1 if s.quick else 3, failed)
    speeds = {key: rates(answers, key[1] * sizes.length) for key, answers in runs.items()}
    for key, speed in speeds.items():
        per_s, ours_per_s = (speeds.get(k, {}).get("tokens_per_s") for k in (key, ("ours", key[1])))
        steps_per_s = per_s / (key[1] * sizes.length) * (sizes.length + 1)  # eos is a step, too
        least = sizes.least_bytes(key[1])
        emit(
            {
                **sizes.about(key),
                **speed,
                "ms_per_step": round(1e3 / steps_per_s, 3),
                "least_bytes_per_step": least,
                "of_bandwidth": share(least * steps_per_s, s.known.get("bandwidth")),
                "ours_is_times": share(ours_per_s, per_s) if ours_per_s else None,
            }
        )


# ---- The systems: what starts a process of each, and decodes once, which does not count ------------------------------
def _start(s: Settings, sizes: Sizes, name: str, batches: tuple[int, ...], **settings: Any) -> Timed:
    common = {"threads": s.threads, "device": s.device, "dtype": "bfloat16"}
    worker = Timed("systems.py", name, s.end - STARTING, **common | settings)
    for batch in batches:
        sizes.ask((name, batch), worker)
    return worker


def ours(s: Settings, sizes: Sizes) -> dict[Key, Any]:
    """A process for each batch: they compile at the same time."""
    config = to_json(sizes.config)
    return {("ours", n): lambda n=n: _start(s, sizes, "ours", (n,), config=config) for n in sizes.batches}


def huggingface(s: Settings, sizes: Sizes) -> dict[Key, Any]:
    """One process for all batches. Raises `UserError` where packages are missing."""
    if reason := missing("torch", "transformers", "safetensors"):
        raise UserError(reason)
    from safetensors.numpy import save_file

    from transformer.tools.hf.marian import generation_config, marian_config, to_marian

    folder = Path(s.folder) / "marian"
    folder.mkdir()
    state = to_marian(_params(sizes), sizes.config.model, sizes.vocab_size)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(marian_config(sizes.config, sizes.vocab_size)))
    (folder / "generation_config.json").write_text(json.dumps(generation_config(sizes.config)))
    return {("huggingface", 0): lambda: _start(s, sizes, "huggingface", sizes.batches, marian=str(folder))}


def ctranslate2(s: Settings, sizes: Sizes) -> dict[Key, Any]:
    """One process for all batches. Raises `UserError` where it does not load, or sees no GPU."""
    if reason := missing("ctranslate2"):
        raise UserError(reason)
    try:
        import ctranslate2 as ct2

        devices = ct2.get_cuda_device_count()
    except Exception as error:  # its libraries may be of another CUDA
        raise UserError(f"ctranslate2 does not load: {error}") from None
    if s.device == "cuda" and not devices:
        raise UserError("ctranslate2 sees no GPU")
    folders = {"run": f"{s.folder}/random", "ctranslate2": f"{s.folder}/ctranslate2"}
    _save(sizes, folders["run"])

    def start() -> Timed:
        command = [sys.executable, str(HERE / "systems.py"), "convert", json.dumps(folders)]
        cpu = environment(JAX_PLATFORMS="cpu")
        subprocess.run(command, check=True, env=cpu, stdout=sys.stderr, timeout=s.limit)
        dtype = "bfloat16" if s.device == "cuda" else "float32"
        return _start(s, sizes, "ctranslate2", sizes.batches, dtype=dtype, **folders)

    return {("ctranslate2", 0): start}


def _params(sizes: Sizes) -> Any:
    """The weights that ours draws; pad and bos get the logit 0, since not all systems can be forbidden them."""
    import jax

    from transformer.model import build

    params = build(sizes.config.model.with_vocabulary(sizes.vocab_size)).init(jax.random.key(0))
    table = params["embedding"]["table"]
    return {**params, "embedding": {"table": table.at[:EOS].set(0.0)}}


def _save(sizes: Sizes, folder: str) -> None:
    """The weights as a checkpoint."""
    from transformer.checkpoint import Checkpoints

    checkpoints = Checkpoints(folder)
    progress = {"step": 1, "vocab_size": sizes.vocab_size}
    files = {"config.json": to_json(sizes.config).encode(), "tokenizer.model": b""}
    checkpoints.save(1, {"params": _params(sizes)}, progress=progress, files=files)
    checkpoints.wait()
