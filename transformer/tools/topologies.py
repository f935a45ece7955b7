"""TPUs that are not here: their chips, by the data sheets, and meshes over topologies of them."""

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
    """One chip, by Google's data sheets (cloud.google.com/tpu/docs): bfloat16 FLOP/s, bytes of memory and bytes/s to
    it, and bytes/s to its neighbours, over all links together."""

    flops: float
    memory: float
    bandwidth: float
    links: float
    axes: int
    """Dimensions of the torus: a collective has the links of those that it goes along."""
    pod: int
    """The most chips that are wired together."""
    side: int = 16
    """How many lie along one dimension, the longest."""


CHIPS = {
    "v4": Chip(275e12, 32 * GIB, 1_228e9, 300e9, 3, 4_096),
    "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9, 2, 256),
    "v5p": Chip(459e12, 95 * GIB, 2_765e9, 600e9, 3, 8_960),
    "v6e": Chip(918e12, 32 * GIB, 1_640e9, 448e9, 2, 256),
}


def topology_mesh(topology: str, sizes: Sequence[int]) -> tuple[Mesh, Chip]:
    """The mesh (data, fsdp, tensor) over the chips of a topology such as 'v5e:4x4'.

    Raises `UserError` if libtpu is missing, does not know the topology, or the mesh does not fit it.
    """
    kind, _, shape = topology.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+)+", shape):
        raise UserError(f"--topology {topology}: give it as {'|'.join(CHIPS)}:AxB or AxBxC, such as v5e:16x16")
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

    # libtpu is for one process at a time, since it takes the machine's TPUs, and asks the cloud who it is. Here it
    # takes none and is nobody.
    alone = {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    for name, value in alone.items():
        os.environ.setdefault(name, value)
    options = (
        {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    )  # one device a chip, not one a core
    x, y, *_ = map(int, topology.partition(":")[2].split("x"))
    options["chips_per_host_bounds"] = (min(x, 2), min(y, 2), 1)  # hosts have four chips, or all there are
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except Exception as error:  # XLA's own, and others when libtpu is missing
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--topology {topology}: cannot be compiled for ({reason}); it needs libtpu: pip install 'jax[tpu]'"
        ) from None
