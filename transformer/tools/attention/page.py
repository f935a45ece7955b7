"""All attention of one pass as an HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from importlib.resources import files
from typing import Any

import numpy as np

from transformer.config import UserError
from transformer.inference.attention import Attended
from transformer.streams import to_json

MOST = 2**26
"""The most weights in a page."""


def html(attended: Attended) -> bytes:
    """The page. Raises `UserError` if it would be too large."""
    if attended.count > MOST:
        raise UserError(f"these are {attended.count:,} weights, and an .html holds at most {MOST:,}; shorten the text")
    return filled(attended.head() | {"attention": packed_kinds(attended)}, resource("attention.js")).encode()


def packed_kinds(attended: Attended) -> dict[str, Any]:
    """The attention by kind, as `Attended.json` has it, with `packed` in the place of `weights`."""
    return {
        kind: {
            **{"queries": queries, "keys": keys, "layers": weights_LNTS.shape[0], "heads": weights_LNTS.shape[1]},
            "packed": packed(weights_LNTS),
        }
        for kind, (queries, keys, weights_LNTS) in attended.attention.items()
    }


def packed(weights: np.ndarray) -> str:
    """Weights as text, a byte for each: 255 times its square root, so that small weights stay apart."""
    return base64.b64encode(zlib.compress(np.round(255 * np.sqrt(weights)).astype(np.uint8).tobytes(), 6)).decode()


def resource(name: str) -> str:
    """The content of a file beside this one."""
    return (files(__package__) / name).read_text(encoding="utf-8")


def filled(document: Any, script: str) -> str:
    """The page with this document and script. Its policy allows this script and its style alone, and no connection."""
    style = resource("attention.css")
    parts = {
        "policy": "; ".join(
            (
                "default-src 'none'",
                f"script-src '{_hash(script)}'",
                f"style-src '{_hash(style)}'",
                "base-uri 'none'",
                "form-action 'none'",
                "require-trusted-types-for 'script'",
            )
        ),
        "style": style,
        "document": as_data(document),
        "script": script,
    }
    return re.sub(r"\{(policy|style|document|script)\}", lambda found: parts[found[1]], resource("attention.html"))


def as_data(value: Any) -> str:
    """`value` as JSON that cannot end the element it stands in, whatever strings it contains."""
    return re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", to_json(value))


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
