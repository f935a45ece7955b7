"""The Transformer and its building blocks. Needs only jax, numpy, flax and `transformer.config`."""

from .attention import KV, Attention, attend
from .cache import Cache, Memory
from .decoder import Decoder
from .encoder import Encoder
from .encoder_decoder import EncoderDecoder
from .functional import Model, Params, build
from .layers import fold
from .stack import Run

__all__ = [
    "KV",
    "Attention",
    "Cache",
    "Decoder",
    "Encoder",
    "EncoderDecoder",
    "Memory",
    "Model",
    "Params",
    "Run",
    "attend",
    "build",
    "fold",
]
