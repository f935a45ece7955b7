"""Runs the README's programs of an exported folder where this package and Flax can't be imported.

    python alone.py FOLDER < {"lines": [...], "function": "translate", "arrays": [[[5, 2]], [[1]]]}

Prints the results of the function and of `forward` as JSON.
"""

import json
import os
import re
import sys


class Forbidden:
    """An import hook that refuses what a user of the folder does not have."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in ("transformer", "flax", "optax", "orbax", "safetensors"):
            raise ImportError(f"{name} must not be needed")


sys.meta_path.insert(0, Forbidden)
for forbidden in ("transformer", "flax"):
    try:
        __import__(forbidden)
    except ImportError:
        continue
    raise SystemExit(f"the import of {forbidden} is not forbidden")

asked = json.load(sys.stdin)
os.chdir(sys.argv[1])
sys.path.insert(0, ".")
with open("README.md", encoding="utf-8") as page:
    for block in re.findall(r"```python\n(.*?)```", page.read(), re.S):
        exec(block)

import jax  # noqa: E402
import numpy as np  # noqa: E402
from loader import forward  # noqa: E402

kinds = [bool if isinstance(array[0][0], bool) else np.int32 for array in asked["arrays"]]
outputs = forward(*(np.array(array, kind) for array, kind in zip(asked["arrays"], kinds)))  # noqa: B905
found = {"forward": [np.asarray(x).tolist() for x in jax.tree.leaves(outputs)]}
if asked.get("function"):
    found["results"] = globals()[asked["function"]](asked["lines"])
json.dump(found, sys.stdout)
