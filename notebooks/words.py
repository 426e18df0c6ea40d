# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # SEvo beyond recommenders: words
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/sevo_jax/blob/main/notebooks/words.ipynb)
#
# Every table of embeddings whose rows have a graph can be smoothed. Here it is the word
# embeddings of a small language model, over a graph of words that stand in equal places.
# The text is real and comes with Python: the topics of its `help()`. Both optimizers are
# tuned alike, and the result is what it is.

# %%
# %pip install -q "sevo-jax[train] @ git+https://github.com/OWNER/sevo_jax"

# %%
import collections
import functools
import re
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import scipy.sparse

import sevo_jax as sevo
from sevo_jax.reports.plots import COLOURS

# %% [markdown]
# ## The text
#
# Topics repeat each other's paragraphs, so each paragraph counts once. A tenth of them is
# for validation, another for the test. Words seen fewer than three times in the rest are
# one word, `<rare>`.

# %%
WIDTH, HIDDEN, CONTEXT, BATCH, EPOCHS = 32, 32, 3, 512, 5

paragraphs = {
    tuple(re.findall(r"[a-z_]+|[^\sa-z_]", paragraph))
    for topic in topics.values()
    for paragraph in topic.lower().split("\n\n")
}
paragraphs = sorted(each for each in paragraphs if len(each) >= 5)
order = np.random.default_rng(0).permutation(len(paragraphs))
tenth = len(order) // 10
parts = dict(
    valid=order[:tenth], test=order[tenth : 2 * tenth], train=order[2 * tenth :]
)

counts = collections.Counter(word for i in parts["train"] for word in paragraphs[i])
words = ["<start>", "<rare>", *sorted(word for word in counts if counts[word] >= 3)]
number = {word: index for index, word in enumerate(words)}


def numbered(part):
    return [[number.get(word, 1) for word in paragraphs[i]] for i in parts[part]]


def windows(part):
    """Each word with the words before it, [windows, CONTEXT + 1]."""
    rows = [[0] * CONTEXT + row for row in numbered(part)]
    return np.array(
        [row[i : i + CONTEXT + 1] for row in rows for i in range(len(row) - CONTEXT)],
        np.int32,
    )


data = {part: windows(part) for part in parts}
print(f"{len(words)} words;", {part: len(rows) for part, rows in data.items()})

# %% [markdown]
# ## The graph
#
# Two words are alike if they stand in equal places: after the same word and before the
# same word. The weight of an edge is in how many such places both are found, at least
# two. Only the train part enters.

# %%
places = collections.defaultdict(set)
for row in numbered("train"):
    for before, word, after in zip(row, row[1:], row[2:]):
        places[before, after].add(word)
pairs = np.array(
    [(word, i) for i, place in enumerate(places.values()) for word in place]
)
pairs = pairs[pairs[:, 0] > 1]
incidence = scipy.sparse.coo_array(
    (np.ones(len(pairs)), pairs.T), shape=(len(words), len(places))
).tocsr()
shared = (incidence @ incidence.T).tocoo()
row, column = shared.coords
kept = (row != column) & (shared.data >= 2)
graph = scipy.sparse.coo_array(
    (shared.data[kept], (row[kept], column[kept])), shape=shared.shape
).tocsr()

print(f"{graph.nnz / len(words):.1f} neighbours on average, for example")
for word in ("list", "first", "raise", "may"):
    neighbours = graph[[number[word]]].toarray()[0].argsort()[::-1][:6]
    print(f"  {word}:", ", ".join(words[i] for i in neighbours))

# %% [markdown]
# ## The model
#
# The next word from the embeddings of the three before it, one hidden layer, and a softmax
# over all words.

# %%


def init(seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    normal, fan_in = jax.random.normal, CONTEXT * WIDTH
    return {
        "word_embedding": 0.1 * normal(keys[0], (len(words), WIDTH)),
        "hidden": normal(keys[1], (fan_in, HIDDEN)) / np.sqrt(fan_in),
        "output": 0.01 * normal(keys[2], (HIDDEN, len(words))),
        "bias": jnp.zeros(len(words)),
    }


def losses(params, batch):
    """The loss of each window in nats, [b]."""
    embedded = params["word_embedding"][batch[:, :-1]].reshape(len(batch), -1)
    logits = jnp.tanh(embedded @ params["hidden"]) @ params["output"] + params["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, -1])


def mean_loss(params, batch):
    return jnp.mean(losses(params, batch))


@jax.jit
def measure(params, rows):
    return jax.lax.map(lambda one: losses(params, one[None])[0], rows, batch_size=BATCH)


# %% [markdown]
# ## The optimizers
#
# Words are seen as unequally as anything, and with `sevo_adamw` as the paper has it a
# word that is in no batch goes on in its last direction until it is seen again
# (Theorem 3). Here that is a variant of its own: `moment_correction=False` leaves it out.

# %%
table = {"word_embedding": sevo.prepare(graph)}
smoothed = functools.partial(sevo.sevo_adamw, graphs=table, beta=0.5, weight_decay=0.01)
optimizers = {
    "AdamW": functools.partial(optax.adamw, weight_decay=0.01),
    "SEvo-AdamW": smoothed,
    "SEvo-AdamW, not corrected": functools.partial(smoothed, moment_correction=False),
}


@functools.partial(jax.jit, static_argnames="name")
def train_epoch(name, learning_rate, params, state, batches):
    optimizer = optimizers[name](learning_rate)

    def step(carry, batch):
        params, state = carry
        gradient = jax.grad(mean_loss)(params, batch)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, state), batches)[0]


def fit(name, learning_rate, seed):
    """Validation loss after each epoch, and the parameters of the best."""
    params = best = init(seed)
    state = optimizers[name](learning_rate).init(params)
    curve = []
    for epoch in range(EPOCHS):
        rng = np.random.default_rng([seed, epoch])
        rows = rng.permutation(data["train"])
        batches = rows[: len(rows) // BATCH * BATCH].reshape(-1, BATCH, CONTEXT + 1)
        params, state = train_epoch(name, learning_rate, params, state, batches)
        curve.append(float(measure(params, data["valid"]).mean()))
        if curve[-1] == min(curve):
            best = params
    return curve, best


# %% [markdown]
# ## Tuned alike
#
# The same learning rates for each, by the validation loss with seed 0. Then two more seeds
# with the best rate.

# %%
rates = (4e-3, 8e-3, 1.6e-2)
runs = {}
for name in optimizers:
    trials = {rate: fit(name, rate, seed=0) for rate in rates}
    chosen = min(trials, key=lambda rate: min(trials[rate][0]))
    best = {rate: round(min(curve), 3) for rate, (curve, _) in trials.items()}
    print(f"{name}: best validation loss by learning rate {best}")
    runs[name] = [trials[chosen], *(fit(name, chosen, seed) for seed in (1, 2))]

# %% [markdown]
# ## The result
#
# Perplexity on the test paragraphs, mean and sample standard deviation over three seeds: of
# all words, and of those that follow a word seen at most ten times in training, where a
# graph has most to give.

# %%
last = [words[i] for i in data["test"][:, -2]]
after_rare = np.array([3 <= counts[word] <= 10 for word in last])
for name, fits in runs.items():
    test = np.array([measure(params, data["test"]) for _, params in fits])
    text = ""
    for which, chosen in (
        ("all", np.ones(len(last), bool)),
        ("after a rare word", after_rare),
    ):
        perplexity = np.exp(test[:, chosen].mean(axis=1))
        text += f"  {which} {perplexity.mean():.2f} +- {perplexity.std(ddof=1):.2f}"
    print(f"{name:26} test perplexity{text}")

# %%
figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
for colour, style, (name, fits) in zip(COLOURS, ("-", "--", "-."), runs.items()):
    values = np.array([curve for curve, _ in fits])
    epochs = np.arange(1, EPOCHS + 1)
    axes.plot(epochs, values.mean(axis=0), style, color=colour, label=name)
    axes.fill_between(
        epochs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2
    )
axes.set_xticks(epochs)
axes.set_title("Language model, Python's help topics: mean and range of 3 seeds")
axes.set(xlabel="epochs trained", ylabel="validation loss (nats a word)")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## What it says
#
# SEvo does not help here. Plain AdamW is best; SEvo without the correction of idle rows
# comes close, with it it is clearly behind, most of all after rare words, which go on
# longest without being seen. The graph knows nothing that the text does not say, and the
# softmax trains all words in every step. Items of a log, each drawn seldom and with
# few negatives, are another matter: see the other notebooks.
