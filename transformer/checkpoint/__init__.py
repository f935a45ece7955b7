"""Checkpoints: save, verify, restore, average.

    workdir/checkpoints/<step>/state/{params,optimizer}   Orbax's arrays
                               config.json, tokenizer.model, progress.json
                               manifest.json              sizes and sha256 of all of these, written last
    workdir/checkpoints/<step>.interrupted/                the same, saved when a run was asked to stop
    workdir/checkpoints/average/                           the same without optimizer

A folder that is being written or removed has a file `unfinished` instead of a manifest. A folder with neither file is
an incomplete copy that a user made. Both kinds are ignored; only folders with `unfinished` are ever removed.
"""

from transformer.checkpoint.arrays import with_sharding
from transformer.checkpoint.layout import AVERAGE, exported_form, folder_of, interrupted, seed_folder, seeds_in
from transformer.checkpoint.opened import Checkpoint, Removed, again
from transformer.checkpoint.seeds import best_seed, differences_of
from transformer.checkpoint.store import Checkpoints

__all__ = [
    "AVERAGE",
    "Checkpoint",
    "Checkpoints",
    "Removed",
    "again",
    "best_seed",
    "differences_of",
    "exported_form",
    "folder_of",
    "interrupted",
    "seed_folder",
    "seeds_in",
    "with_sharding",
]
