"""Plans for meshes of eight virtual devices, run by test_plan.py in a process of its own; prints JSON."""

from __future__ import annotations

import dataclasses
import json

import jax
from jax.sharding import PartitionSpec as P

from transformer.config import Config, DataConfig, MeshConfig, ModelConfig, TrainConfig
from transformer.tools.plan import CHIPS, decoding, training, warnings
from transformer.training import sharding
from transformer.training.flops import update_flops

CONFIG = Config(
    model=ModelConfig(encoder_layers=1, decoder_layers=1, d_model=64, d_ff=128, heads=8),
    data=DataConfig(vocab_size=512, packing=True),
    train=TrainConfig(batch_tokens=1024),
)
SHAPE = (32, 24, 24)


def planned(mesh: jax.sharding.Mesh, config: Config = CONFIG) -> dict:
    (one,) = training(config, mesh, CHIPS["v5e"], [SHAPE])
    model = update_flops(CONFIG.model, 512, *SHAPE) / mesh.size
    return {
        "flops": one.flops,
        "model_flops": model,
        "memory": one.needed,
        "traffic": one.traffic,
        "collectives": one.collectives,
        "warnings": list(warnings(one, model, 512 * 64, mesh)),
    }


def main() -> None:
    found = {}
    for sizes in ((8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 1, 8)):
        mesh = sharding.make_mesh(MeshConfig(*sizes))
        found["x".join(map(str, sizes))] = planned(mesh)
    learned = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, positions="learned"))
    found["2x4x1 learned"] = planned(sharding.make_mesh(MeshConfig(2, 4, 1)), learned)
    four = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, accumulate=4))
    found["in four"] = planned(sharding.make_mesh(MeshConfig()), four)
    one = decoding(CONFIG, sharding.make_mesh(MeshConfig()), CHIPS["v5e"], 2, 16)
    found["decoding"] = {"flops": one.flops, "memory": one.needed, "sent": sum(c.sent for c in one.collectives)}

    # Mistakes: no parameter cut along the tensor axis; the vocabulary's matrix cut, and needed whole.
    mesh = sharding.make_mesh(MeshConfig(1, 1, 8))
    right = sharding.RULES
    sharding.RULES = ((".*", P()),)
    found["replicated"] = planned(mesh)
    sharding.RULES = ((r"(.*_)?embedding/table", P("data")), *right[1:])
    found["gathered"] = planned(sharding.make_mesh(MeshConfig(8, 1, 1)))
    print(json.dumps(found))


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    main()
