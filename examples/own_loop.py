"""A project of your own: train the model in an optax loop, search with a step function of your own, save.

python examples/own_loop.py runs/own
echo "the red dog sees the cat" | python -m transformer translate runs/own
"""

import random
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import transformer

PAD, BOS, EOS = 0, 1, 2
WORDS = {"the": "die", "red": "rote", "old": "alte", "dog": "Hündin", "cat": "Katze", "sees": "sieht", "likes": "mag"}


def padded(lines, before=(), after=(EOS,), length=40):
    """Rows of piece ids, each with `before` and `after`, padded on the right."""
    rows = np.full((len(lines), length), PAD, np.int32)
    for row, line in zip(rows, lines, strict=True):
        ids = [*before, *line, *after]
        row[: len(ids)] = ids
    return rows


def train(model, source_NS, target_NT, steps, seed=0):
    """Parameters after `steps` updates with Adam, each on 64 random rows."""
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 0.005, 20, max(steps, 21)))
    params = model.init(jax.random.key(seed))

    def loss(params, source_BS, target_BT):
        logits_BTV = model.apply(params, source_BS, target_BT[:, :-1])
        losses_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, target_BT[:, 1:])
        return jnp.mean(losses_BT, where=target_BT[:, 1:] != PAD)

    @jax.jit
    def update(params, state, source_BS, target_BT):
        changes, state = optimizer.update(jax.grad(loss)(params, source_BS, target_BT), state)
        return optax.apply_updates(params, changes), state

    state, draw = optimizer.init(params), np.random.default_rng(seed)
    for _ in range(steps):
        rows = draw.integers(len(source_NS), size=64)
        params, state = update(params, state, source_NS[rows], target_NT[rows])
    return params


@partial(jax.jit, static_argnames="model")
def search(params, source_BS, *, model):
    """Beam search with a step function that halves the probability of the piece <unk>."""
    memory = model.bind(params).encode(source_BS)

    def step(tokens_X, cache, at):
        logits_X1V, cache, _ = model.bind(params).decode(tokens_X[:, None], memory, cache=cache, at_B=at)
        return jax.nn.log_softmax(logits_X1V[:, 0]).at[:, 3].add(jnp.log(0.5)), cache

    cache = model.bind(params).init_cache(source_BS.shape[0], length=40, beams=4)
    limits, ids = jnp.full(source_BS.shape[0], 40), {"bos": BOS, "eos": EOS, "pad": PAD}
    moved = {"reorder": lambda cache, parents_BM: cache.reorder(parents_BM)}
    return transformer.beam_search(step, cache, limits, max_length=40, beam_size=4, **ids, **moved).tokens_BML[:, 0]


def main(workdir="runs/own", steps=400):
    draw = random.Random(0)
    sources = [" ".join(draw.choices(list(WORDS), k=draw.randint(2, 6))) for _ in range(1_000)]
    targets = [" ".join(WORDS[word] for word in line.split()) for line in sources]
    tokenizer = transformer.Tokenizer.train(sources + targets, vocab_size=310)
    config = transformer.ModelConfig(1, 1, d_model=64, d_ff=128, heads=4, dropout=0.0, vocab_size=tokenizer.vocab_size)
    model = transformer.build(config)
    source_NS, target_NT = padded(tokenizer.encode(sources)), padded(tokenizer.encode(targets, "target"), (BOS,))
    params = train(model, source_NS, target_NT, int(steps))
    found = search(params, source_NS[:4], model=model)
    for line, ids in zip(sources, found.tolist(), strict=False):
        print(f"{line} -> {tokenizer.decode([[i for i in ids if i not in (PAD, EOS)]])[0]}")
    transformer.save(workdir, model, params, tokenizer, step=int(steps))


if __name__ == "__main__":
    main(*sys.argv[1:])
