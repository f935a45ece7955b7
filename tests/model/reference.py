"""Reference implementation of the paper's Transformer in float64 NumPy: one sentence, one head at a time.

It has no padding, no batches and no cache; the real model must compute the same with them.
"""

import math

import numpy as np


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def layer_norm(p, x, eps=1e-6):
    deviation = np.sqrt(((x - x.mean(-1, keepdims=True)) ** 2).mean(-1, keepdims=True) + eps)
    return (x - x.mean(-1, keepdims=True)) / deviation * p["scale"] + p.get("bias", 0)


def rotate(x, position):
    """Su et al. 2021, eq. 14: dimensions i and i + H/2 as one complex number, turned by position * theta_i."""
    half = len(x) // 2
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * position * 10_000.0 ** (-2 * np.arange(half) / len(x)))
    return np.concatenate([turned.real, turned.imag])


def attention(p, x, memory, causal=False, window=None, maker=None, rotary=False, drop=lambda x: x, scaled=True):
    """§3.2: Concat(head_1, ..., head_h) W^O, where head_i = softmax(Q K^T / sqrt(d_k)) V; also the weights per head.

    `window`: attend only to positions at most this far away. `maker`: parameters of the attention that computes keys
    and values, if not `p`. `drop` is applied to the weights. Without `scaled`, products are not divided by sqrt(d_k).
    With "score" in `p`, scores are v^T tanh(q + k + b) (Bahdanau et al. 2015); without "value", values are the keys.
    """
    heads, d_k = p["query"].shape[1:]
    maker = p if maker is None else maker
    group = heads // maker["key"].shape[1]

    def projected(p, name, x, n):
        return x @ p[name][:, n] + (p[f"{name}_bias"][n] if f"{name}_bias" in p else 0)

    outputs, all_weights = [], []
    for n in range(heads):
        q = projected(p, "query", x, n)
        k = projected(maker, "key", memory, n // group)
        v = projected(maker, "value", memory, n // group) if "value" in maker else k
        if rotary:
            q, k = (np.stack([rotate(row, i) for i, row in enumerate(rows)]) for rows in (q, k))
        scores = q @ k.T / (np.sqrt(d_k) if scaled else 1)
        if "score" in p:
            scores = np.array([[p["score"][:, n] @ np.tanh(a + b + p["score_bias"][n]) for b in k] for a in q])
        for t in range(len(x)):
            for s in range(len(memory)):
                if (causal and s > t) or (window is not None and abs(t - s) > window):
                    scores[t, s] = -np.inf
        all_weights.append(softmax(scores))
        outputs.append(drop(all_weights[-1]) @ v)
    w_o = p["output"].reshape(-1, p["output"].shape[-1])
    return np.concatenate(outputs, axis=-1) @ w_o + p.get("output_bias", 0), np.stack(all_weights)


ACTIVATIONS = {
    "relu": lambda x: np.maximum(0, x),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "swish": lambda x: x / (1 + np.exp(-x)),
}


def feed_forward(p, x, activation="relu", drop=lambda x: x):
    """§3.3, eq. 2."""
    return drop(ACTIVATIONS[activation](x @ p["w1"] + p["b1"])) @ p["w2"] + p["b2"]


def position_encoding(position, d_model):
    """§3.5."""
    return np.array(
        [
            (np.sin if i % 2 == 0 else np.cos)(position / 10_000 ** (2 * (i // 2) / d_model))
            for i in range(d_model)
        ]
    )  # fmt: skip


class Reference:
    """`drop` is applied where the paper has dropout: to sub-layer outputs and to sums of embeddings and positions.
    `drop_weights` is applied to the attention weights, `drop_activations` inside of the feed-forward networks.

    If n layers share keys and values, layer i uses those of layer i - i % n, computed from that layer's input.
    `weights`: all attention weights (N, T, S) so far, by kind, layer after layer.
    """

    def __init__(self, config, params, drop=lambda x: x, drop_weights=lambda x: x, drop_activations=lambda x: x):
        self.config, self.drop, self.drop_weights = config, drop, drop_weights
        self.drop_activations = drop_activations
        self.weights = {"encoder": [], "decoder": [], "cross": []}
        self.p = _float64(params)

    def norm(self, p, x):
        return layer_norm(p, x, self.config.norm_eps)

    def feed_forward(self, p, x):
        return feed_forward(p, x, self.config.activation, self.drop_activations)

    def sublayer(self, norm, x, f):
        if self.config.pre_norm:
            return x + self.drop(f(self.norm(norm, x)))
        return self.norm(norm, x + self.drop(f(x)))

    def attention(self, kind, layers, i, x, seen):
        """Attention of layer i, with queries from x. `seen`: the input of keys and values of each layer up to i."""
        own = getattr(self.config, f"{kind}_attention")
        first = i - i % (own.kv_sharing or self.config.kv_sharing)
        name = "cross_attention" if kind == "cross" else "self_attention"
        y, weights = attention(
            layers[str(i)][name],
            x,
            seen[first],
            causal=kind == "decoder",
            window=own.window,
            maker=layers[str(first)][name],
            rotary=self.config.positions == "rotary" and kind != "cross",
            scaled=self.config.attention_score == "dot",
            drop=self.drop_weights,
        )
        self.weights[kind].append(weights)
        return y, weights

    def inputs(self, table, positions, tokens, norm=None, more=0):
        """`norm`: the parameters of the norm of the sum, if it has one. `more`: further vectors, those of token types
        or of hard attention."""
        d_model = self.config.d_model
        x = table[tokens] * (np.sqrt(d_model) if self.config.embedding_scale else 1) + more
        if self.config.positions == "sinusoidal":
            x = x + np.stack([position_encoding(i, d_model) for i in range(len(tokens))])
        if self.config.positions == "learned":
            x = x + positions[: len(tokens)]
        return self.drop(x if norm is None else self.norm(norm, x))

    def alone(self, kind, x):
        """The output of the encoder or of a decoder without cross-attention, for the input x."""
        p, seen = self.p[kind], []
        for i in range(getattr(self.config, f"{kind}_layers")):
            q = p["layers"][str(i)]

            def attention(h, i=i):
                seen.append(h)
                return self.attention(kind, p["layers"], i, h, seen)[0]

            x = self.sublayer(q["self_attention_norm"], x, attention)
            x = self.sublayer(q["feed_forward_norm"], x, lambda h, q=q: self.feed_forward(q["feed_forward"], h))
        return self.norm(p["norm"], x) if self.config.pre_norm else x

    def logits(self, source, target, places=None):
        """Logits (T, V), and the cross-attention weights (N, T, S) of each layer. `places`: with hard attention, the
        place in the source whose state the decoder reads at each position."""
        p, tying = self.p, self.config.tied_embeddings
        source_table = p["embedding"]["table"]
        target_table = source_table if tying == "all" else p["target_embedding"]["table"]
        output_table = p["output_embedding"]["table"] if tying == "none" else target_table

        def self_attention(i, h, seen):
            seen.append(h)
            return self.attention("decoder", p["decoder"]["layers"], i, h, seen)[0]

        inputs = self.inputs(source_table, p.get("source_positions"), source, p.get("source_norm"))
        memory = self.alone("encoder", inputs)
        weights, memories = [], [memory] * self.config.decoder_layers

        def cross(i, h):
            y, w = self.attention("cross", p["decoder"]["layers"], i, h, memories)
            weights.append(w)
            return y

        more, seen_here = 0 if places is None else memory[places], []
        x = self.inputs(target_table, p.get("target_positions"), target, p.get("target_norm"), more)
        for i in range(self.config.decoder_layers):
            q = p["decoder"]["layers"][str(i)]
            x = self.sublayer(q["self_attention_norm"], x, lambda h, i=i: self_attention(i, h, seen_here))
            x = self.sublayer(q["cross_attention_norm"], x, lambda h, i=i: cross(i, h))
            x = self.sublayer(q["feed_forward_norm"], x, lambda h, q=q: self.feed_forward(q["feed_forward"], h))
        if self.config.pre_norm:
            x = self.norm(p["decoder"]["norm"], x)
        return x @ output_table.T + p.get("output_bias", 0), weights


def _float64(tree):
    return {k: _float64(v) for k, v in tree.items()} if isinstance(tree, dict) else np.asarray(tree, np.float64)
