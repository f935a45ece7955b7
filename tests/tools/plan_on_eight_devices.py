"""Print plans for meshes of eight virtual devices as JSON. test_plan.py runs this in a separate process."""

from __future__ import annotations

import dataclasses
import json

import jax
from jax.sharding import PartitionSpec as P

from transformer.config import (
    BERT,
    GPT2,
    Config,
    DataConfig,
    LanguageModelConfig,
    MaskedConfig,
    MeshConfig,
    ModelConfig,
    PretrainConfig,
    TextConfig,
    TrainConfig,
)
from transformer.tools.plan import decoding, lines, planned, training, warnings
from transformer.tools.topologies import CHIPS
from transformer.training import objectives, sharding
from transformer.training.flops import update_flops

CONFIG = Config(
    model=ModelConfig(encoder_layers=1, decoder_layers=1, d_model=64, d_ff=128, heads=8),
    data=DataConfig(vocab_size=512, packing=True),
    train=TrainConfig(batch_tokens=1024),
)
SHAPE = {"source": (32, 24), "target": (32, 24)}


def update(mesh: jax.sharding.Mesh, config: Config = CONFIG) -> dict:
    (one,) = training(config, mesh, CHIPS["v5e"], [SHAPE])
    model = update_flops(CONFIG.model.with_vocabulary(512), 32, 24, 24) / mesh.size
    return {
        "flops": one.flops,
        "model_flops": model,
        "memory": one.needed,
        "traffic": one.traffic,
        "collectives": one.collectives,
        "warnings": list(warnings(one, model, config, mesh)),
    }


def main() -> None:
    found = {}
    for sizes in ((8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 1, 8)):
        mesh = sharding.make_mesh(MeshConfig(*sizes))
        found["x".join(map(str, sizes))] = update(mesh)
    learned = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, positions="learned"))
    found["2x4x1 learned"] = update(sharding.make_mesh(MeshConfig(2, 4, 1)), learned)
    four = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, accumulate=4))
    found["in four"] = update(sharding.make_mesh(MeshConfig()), four)
    for length in (16, 64):
        encoding, step = decoding(CONFIG, sharding.make_mesh(MeshConfig(2, 2, 2)), CHIPS["v5e"], 2, length)
        found[f"decoding {length}"] = {
            "encoding_flops": encoding.flops,
            "flops": step.flops,
            "state": step.state,
            "traffic": step.traffic,
            "sent": sum(one.sent for one in step.collectives),
        }
    # 4 rows on 8 devices: half of the compiled rows are empty.
    small = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, max_length=256))
    found["plan"] = planned(small, "eight of these", sharding.make_mesh(MeshConfig()), CHIPS["v5e"])

    windows = LanguageModelConfig(
        dataclasses.replace(GPT2, decoder_layers=1, d_model=64, d_ff=128, heads=8, max_positions=32),
        TextConfig(context=32, vocab_size=512),
        dataclasses.replace(LanguageModelConfig().train, batch_tokens=32 * 32, accumulate=2),
    )
    documents = dataclasses.replace(windows, data=dataclasses.replace(windows.data, documents="files"))
    masked = MaskedConfig(
        dataclasses.replace(BERT, encoder_layers=1, d_model=64, d_ff=128, heads=8, max_positions=32),
        PretrainConfig(context=32, vocab_size=512),
        dataclasses.replace(MaskedConfig().train, batch_tokens=32 * 32, accumulate=2),
    )
    for name, config in (("windows", windows), ("documents", documents), ("masked", masked)):
        result = planned(config, "eight of these", sharding.make_mesh(MeshConfig(2, 2, 2)), CHIPS["v5e"])
        found[name] = result | {"lines": list(lines(result))}

    # Mistakes: no parameter is sharded over the tensor axis; the vocabulary's matrix is sharded, but needed whole.
    mesh = sharding.make_mesh(MeshConfig(1, 1, 8))
    right = sharding.RULES
    sharding.RULES = ((r".*table", P(None, None)), (r".*", P()))
    found["replicated"] = update(mesh)
    found["replicated over fsdp"] = update(sharding.make_mesh(MeshConfig(1, 8, 1)))
    sharding.RULES = ((r"(.*_)?embedding/table", P("data")), *right[1:])
    # Without this, each part of the batch has a copy of the table.
    objectives.with_table_copies = lambda params, mesh: params
    found["gathered"] = update(sharding.make_mesh(MeshConfig(8, 1, 1)))
    print(json.dumps(found))


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    main()
