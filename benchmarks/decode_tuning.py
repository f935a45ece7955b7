"""The systems of decode.py: their processes, and for each batch size the setting in which each is fastest."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from side_by_side import Worker, cpuinfo, log, machine
from systems import Ids

REFERENCE = ("ours", "float32")
# (system, type) by device; the first is what the others are held against.
SYSTEMS = {
    "cpu": (
        *(REFERENCE, ("ours", "bfloat16"), ("ours", "int8")),
        *(("huggingface", "float32"), ("huggingface", "bfloat16"), ("ctranslate2", "float32"), ("ctranslate2", "int8")),
    ),
    "cuda": (("ours", "bfloat16"), ("huggingface", "bfloat16"), ("ctranslate2", "float16")),
}
PACKAGES = ("jax", "torch", "transformers", "ctranslate2")


class Decoder(Worker):
    """One system in a process of its own, with one setting."""

    def __init__(self, name: str, environment: dict[str, str] | None = None, **settings: Any):
        super().__init__("systems.py", name, environment, **settings)

    def decode(self, sources: Ids, batch: int, beam: int, shortest: int, longest: int) -> dict[str, Any]:
        """{"outputs": pieces of each source, "seconds": ..., "peak_mib": ...}."""
        return self.ask([sources, batch, beam, shortest, longest])


ALONE = {"threads": 1}


def candidates(name: str, device: str, threads: int) -> list[dict[str, Any]]:
    """The settings a system is tried with; 'environment' is for its process. What uses one thread of several
    (`ALONE`) is for single sentences, where threads may cost more than they bring."""
    several = threads > 1
    if name in ("ours", "margins"):
        layouts = [{"streams": 1}, *[{"streams": threads}, {"streams": 1} | ALONE][: 2 * several]]
        return layouts if device == "cpu" else [{}]
    if name == "huggingface":
        passive = {"environment": {"OMP_WAIT_POLICY": "passive"}}
        waits = [{}, passive] + [ALONE] * several if device == "cpu" else [{}]
        return [{"attention": attention} | wait for wait in waits for attention in ("sdpa", "eager")]
    if name != "ctranslate2" or device != "cpu":
        return [{}]
    flags = next((line for line in cpuinfo() if line.startswith("flags")), "").split()
    instructions = [name for name, flag in (("AVX2", "avx2"), ("AVX512", "avx512f")) if flag in flags]
    products = [
        {"CT2_USE_MKL": "0"},
        {"CT2_USE_MKL": "1"},
        {"CT2_USE_MKL": "1", "CT2_USE_EXPERIMENTAL_PACKED_GEMM": "1"},
    ]
    tried = [{}] + [{"CT2_FORCE_CPU_ISA": isa} | product for isa in instructions for product in products]
    layouts = [{"inter_threads": 1}, *[{"inter_threads": threads}, {"inter_threads": 1} | ALONE][: 2 * several]]
    return [{"environment": env, **layout} for env in tried for layout in layouts]


def described(setting: dict[str, Any]) -> str:
    """A setting in words."""
    flat = {k: v for k, v in setting.items() if k != "environment"} | setting.get("environment", {})
    return " ".join(f"{k}={v}" for k, v in flat.items()) or "default"


class Bench:
    """The systems under measurement: for each and for each batch size the worker with the setting that was fastest."""

    def __init__(self, options: Namespace, folders: dict[str, str]):
        self.options, self.folders = options, folders
        self._workers: dict[str, Decoder] = {}
        self.chosen: dict[tuple[tuple[str, str], int], dict[str, Any]] = {}
        # Settings found before, on this machine and for these sizes.
        self._known = Path(options.workdir) / "settings.json"
        self._about = [machine(PACKAGES), options.threads, options.device, options.beam, options.length]
        if self._known.exists() and not options.tune:
            kept = json.loads(self._known.read_text())
            if kept["for"] == self._about:
                self.chosen = {((name, dtype), batch): setting for name, dtype, batch, setting in kept["chosen"]}

    @staticmethod
    def _key(system: tuple[str, str], setting: dict[str, Any]) -> str:
        return json.dumps([system, setting], sort_keys=True)

    def worker(self, system: tuple[str, str], setting: dict[str, Any]) -> Decoder:
        """The process of a system with a setting, started when first asked for."""
        key = self._key(system, setting)
        if key not in self._workers:
            name, dtype = system
            self._workers[key] = Decoder(name, **self.folders, **self.common(dtype) | setting)
        return self._workers[key]

    def common(self, dtype: str) -> dict[str, Any]:
        """What all processes are told."""
        return {"threads": self.options.threads, "device": self.options.device, "dtype": dtype}

    def close_others(self, wanted: dict[tuple[str, str], dict[str, Any]]) -> None:
        """End the processes but those of these systems with these settings: memory would not hold all."""
        kept = {self._key(system, setting) for system, setting in wanted.items()}
        self.close([worker for key, worker in self._workers.items() if key not in kept])

    def reference(self) -> Decoder:
        """The process that the others are held against, in the first of its settings."""
        o, system = self.options, SYSTEMS[self.options.device][0]
        return self.worker(system, candidates(system[0], o.device, o.threads)[0])

    def tune(self, system: tuple[str, str], sources: Ids) -> None:
        """Try each setting at each batch size for which none is known, keep the fastest, and say so."""
        o, (name, dtype) = self.options, system
        batches = [batch for batch in o.batches if (system, batch) not in self.chosen]
        if not batches:
            log(f"  {name} {dtype}: as found before (--tune looks again)")
            return
        tried = candidates(name, o.device, o.threads)
        if o.quick:
            tried = tried[:2]
        seconds: dict[tuple[int, int], float] = {}

        def tell(k: int, batches: Sequence[int], times: int) -> None:
            worker = self.worker(system, tried[k]) if batches else None
            for batch in batches:
                # Not counted: ours compiles, the others set up what they need for the size.
                worker.decode(sources[:batch], batch, o.beam, o.length, o.length)
                took = [
                    worker.decode(sources[:batch], batch, o.beam, o.length, o.length)["seconds"] for _ in range(times)
                ]
                seconds[k, batch] = min(*took, seconds.get((k, batch), math.inf))
            self.close([worker] if worker else [])

        def fits(setting: dict[str, Any], batch: int) -> bool:
            # One sentence can't be shared out; several are.
            side_by_side = setting.get("inter_threads", setting.get("streams", 1))
            return side_by_side <= batch and (batch == 1 or "threads" not in setting)

        if len(tried) > 1:
            for k, setting in enumerate(tried):
                tell(k, [batch for batch in batches if fits(setting, batch)], 2)
            # The two best of each size once more: noise shall not choose between them.
            again: dict[int, list[int]] = {}
            for batch in batches:
                of_batch = [k for k in range(len(tried)) if (k, batch) in seconds]
                for k in sorted(of_batch, key=lambda k: seconds[k, batch])[:2]:
                    again.setdefault(k, []).append(batch)
            for k, sizes in again.items():
                tell(k, sizes, 3)
        for batch in batches:
            of_batch = [k for k in range(len(tried)) if (k, batch) in seconds]
            best = min(of_batch, key=lambda k: seconds[k, batch], default=0)
            self.chosen[system, batch] = tried[best]
            if of_batch:
                worst = max(seconds[k, batch] for k in of_batch) / seconds[best, batch]
                log(f"  {name} {dtype}, batch {batch}: {described(tried[best])} ({worst:.2f} x as fast as the slowest)")

    def keep(self) -> None:
        """Write down the settings, for another run on this machine."""
        rows = [[*system, batch, setting] for (system, batch), setting in self.chosen.items()]
        self._known.write_text(json.dumps({"for": self._about, "chosen": rows}, indent=1))

    def close(self, workers: Sequence[Decoder] | None = None) -> None:
        """End these processes, or all."""
        for key, worker in list(self._workers.items()):
            if workers is None or worker in workers:
                worker.close()
                del self._workers[key]
