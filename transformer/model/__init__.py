"""The Transformer and its building blocks. Needs only jax, numpy, flax and `transformer.config`."""

from transformer.model.attention import KV, Attention, attend
from transformer.model.cache import Cache, Memory
from transformer.model.decoder import Decoder
from transformer.model.encoder_decoder import EncoderDecoder
from transformer.model.functional import Model, Params, build
from transformer.model.layers import fold
from transformer.model.stack import Run

__all__ = [
    "KV",
    "Attention",
    "Cache",
    "Decoder",
    "EncoderDecoder",
    "Memory",
    "Model",
    "Params",
    "Run",
    "attend",
    "build",
    "fold",
]
