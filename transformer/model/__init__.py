"""The Transformer and its parts. Needs only jax (with its numpy), flax and `transformer.config`."""

from transformer.model.attention import KV, Attention, attend
from transformer.model.encoder_decoder import EncoderDecoder, Memory
from transformer.model.functional import Model, Params, encoder_decoder

__all__ = ["KV", "Attention", "EncoderDecoder", "Memory", "Model", "Params", "attend", "encoder_decoder"]
