"""Optional packages: who needs one that is missing gets a line with the extra that installs it."""

from __future__ import annotations

import importlib.util

from transformer.config import UserError

# Import name -> (name on the package index, extra of this distribution). A test compares it with pyproject.toml.
OPTIONAL = {
    "babel": ("Babel", "train"),
    "ctranslate2": ("ctranslate2", "ctranslate2"),
    "flatbuffers": ("flatbuffers", "jax"),
    "grain": ("grain", "train"),
    "importlib_resources": ("importlib_resources", "train"),
    "matplotlib": ("matplotlib", "pictures"),
    "num2words": ("num2words", "train"),
    "sacrebleu": ("sacrebleu", "train"),
    "safetensors": ("safetensors", "hf"),
    "starlette": ("starlette", "page"),
    "tensorboardX": ("tensorboardX", "train"),
    "tensorflow_datasets": ("tensorflow-datasets", "train"),
    "tokenizers": ("tokenizers", "hf"),
    "uvicorn": ("uvicorn", "page"),
}


def require(what: str, *modules: str) -> None:
    """Raise `UserError` if one of these modules of `OPTIONAL` is not installed. `what` names who needs it."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise UserError(missing(module, what))


def missing(module: str, what: str) -> str:
    """The message for a missing module of `OPTIONAL`."""
    package, extra = OPTIONAL[module]
    return f"{what} needs {package}, which is not installed: pip install 'transformer[{extra}]'"
