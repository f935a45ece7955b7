"""TPUs for compilation without hardware: chips, by their data sheets, and meshes over topologies."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh

from transformer.config import MeshConfig, UserError
from transformer.training.sharding import make_mesh

GIB = 2**30


class Chip(NamedTuple):
    """One chip, by Google's data sheets (cloud.google.com/tpu/docs): bfloat16 FLOP/s, bytes of memory (HBM), bytes/s of
    memory, bytes/s of all links together."""

    flops: float
    memory: float
    bandwidth: float
    links: float
    axes: int
    """Dimensions of the torus. A collective uses the links of the dimensions that it runs along."""
    pod: int
    """The largest number of connected chips."""
    side: int = 16
    """Number of chips along the longest dimension."""


CHIPS = {
    "v4": Chip(275e12, 32 * GIB, 1_228e9, 300e9, 3, 4_096),
    "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9, 2, 256),
    "v5p": Chip(459e12, 95 * GIB, 2_765e9, 600e9, 3, 8_960),
    "v6e": Chip(918e12, 32 * GIB, 1_640e9, 448e9, 2, 256),
}


def topology_mesh(topology: str, sizes: Sequence[int]) -> tuple[Mesh, Chip]:
    """The mesh (data, fsdp, tensor) over the chips of a topology such as 'v5e:4x4'.

    Raises `UserError` if libtpu is missing or rejects the topology, or if the mesh does not fit it.
    """
    kind, _, shape = topology.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+)+", shape):
        raise UserError(f"--topology {topology}: must be {'|'.join(CHIPS)}:AxB or AxBxC, such as v5e:16x16")
    sides = [int(side) for side in shape.split("x")]
    chips = math.prod(sides)
    if math.prod(sizes) != chips:
        raise UserError(f"--mesh {','.join(map(str, sizes))} has {math.prod(sizes)} devices, {topology} {chips}")
    if chips > CHIPS[kind].pod:
        raise UserError(f"--topology {topology}: a pod of {kind} has {CHIPS[kind].pod:,} chips, not {chips:,}")
    devices = _devices(topology)
    if len(devices) != chips:
        raise UserError(f"--topology {topology}: libtpu makes {len(devices)} devices of it, not {chips}")
    return make_mesh(MeshConfig(*sizes), devices), CHIPS[kind]._replace(side=max(sides))


def _devices(topology: str) -> Sequence[Any]:
    from jax.experimental import topologies

    # By default libtpu allows one process at a time, because it locks the machine's TPUs, and queries the cloud's
    # metadata server. Compiling for a topology needs neither.
    environment = {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    options = (
        {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    )  # one device per chip, not per core
    x, y, *_ = map(int, topology.partition(":")[2].split("x"))
    options["chips_per_host_bounds"] = (min(x, 2), min(y, 2), 1)  # a host has four chips, or all if there are fewer
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except Exception as error:  # XLA's errors, and others if libtpu is missing
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--topology {topology}: JAX cannot compile for it ({reason}); this needs libtpu: pip install 'jax[tpu]'"
        ) from None
