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
# # SEvo in an existing Optax loop
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/sevo_jax/blob/main/notebooks/drop_in.ipynb)
#
# You have a recommender that trains with `optax.adamw`. This notebook adds graph
# structure to it by changing the optimizer: the model, the loss and inference stay as
# they are. It runs on CPU, GPU and TPU in about a minute.

# %%
# %pip install -q "sevo-jax[train] @ git+https://github.com/OWNER/sevo_jax"

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import sevo_jax as sevo
from sevo_jax.data import leave_one_out, planted
from sevo_jax.evaluation import measure, target_ranks
from sevo_jax.reports.plots import COLOURS
from sevo_jax.samples.negatives import NegativeSampler

# %% [markdown]
# ## The loop you have
#
# Matrix factorisation with the BPR loss, in plain JAX. The data are a small log with
# planted structure; `sevo_jax.data.read` takes your own. The last item of every user is
# the test item and is never looked at here; the one before it is for validation.

# %%
split = leave_one_out(planted())
train, num_users, num_items = split.train, split.num_users, split.num_items
print(f"{num_users} users, {num_items} items, {train.values.size} train interactions")


def init(seed, width=32):
    user_key, item_key = jax.random.split(jax.random.key(seed))
    return {
        "user_embedding": 1e-2 * jax.random.normal(user_key, (num_users, width)),
        "item_embedding": 1e-2 * jax.random.normal(item_key, (num_items, width)),
    }


def loss(params, batch):
    users, positives, negatives = batch
    user = params["user_embedding"][users]
    better = params["item_embedding"][positives] - params["item_embedding"][negatives]
    return jnp.mean(jax.nn.softplus(-jnp.sum(user * better, axis=-1)))


# %%
sampler = NegativeSampler(train, num_items)
interactions = np.repeat(np.arange(num_users), train.lengths)


def draw_epoch(seed, epoch, batch_size=1024):
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(interactions.size)
    order = order[: order.size // batch_size * batch_size].reshape(-1, batch_size)
    negatives = sampler.sample(rng, interactions)
    return interactions[order], train.values[order], negatives[order]


seen = np.full((num_users, train.lengths.max()), -1)
for user, items in enumerate(train):
    seen[user, : items.size] = items


@jax.jit
def validation_ranks(params):
    scores = params["user_embedding"] @ params["item_embedding"].T
    return target_ranks(scores, split.valid, seen)


def fit(optimizer, seed, epochs=60, **extra):
    params = init(seed)
    state = optimizer.init(params)

    @jax.jit
    def train_epoch(params, state, batches, extra):
        def step(carry, batch):
            params, state = carry
            gradient = jax.grad(loss)(params, batch)
            updates, state = optimizer.update(gradient, state, params, **extra)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), batches)[0]

    curve = []
    for epoch in range(epochs):
        params, state = train_epoch(params, state, draw_epoch(seed, epoch), extra)
        if (epoch + 1) % 5 == 0:
            curve.append((epoch + 1, measure(validation_ranks(params))["NDCG@10"]))
    return params, np.array(curve)


# %% [markdown]
# ## The two lines that change
#
# A graph of items that follow each other in the train sequences, and the optimizer. A
# leaf of the parameters is named by a component of its path.

# %%
graph = sevo.graphs.cooccurrence(train, num_items, max_len=50)

before = optax.adamw(1e-2, weight_decay=1e-2)
after = sevo.sevo_adamw(1e-2, {"item_embedding": graph}, weight_decay=1e-2, beta=0.9)

# %%
curves = {"AdamW": [], "SEvo-AdamW": []}
for seed in range(3):
    params_before, curve = fit(before, seed)
    curves["AdamW"].append(curve)
    params_after, curve = fit(after, seed)
    curves["SEvo-AdamW"].append(curve)

# %%
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for colour, (name, runs) in zip(COLOURS, curves.items()):
    epochs, values = runs[0][:, 0], np.stack([run[:, 1] for run in runs])
    axes.plot(epochs, values.mean(axis=0), color=colour, label=name)
    axes.fill_between(
        epochs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2
    )
axes.set_title("MF-BPR, synthetic log: mean and range of 3 seeds")
axes.set(xlabel="epoch", ylabel="validation NDCG@10")
axes.legend(frameon=False)
plt.show()

for name, runs in curves.items():
    best = [run[:, 1].max() for run in runs]
    spread = np.std(best, ddof=1)
    print(f"{name:11} best validation NDCG@10 {np.mean(best):.4f} +- {spread:.4f}")

# %% [markdown]
# ## What it did to the updates
#
# Smoothing lowers the roughness $\mathrm{Tr}(X^T (I - \tilde A) X)$ of an update and
# keeps a positive angle with it (Theorem 1 of the paper). `effect` measures both.

# %%
operator = sevo.prepare(graph)
gradient = jax.grad(loss)(params_after, tuple(b[0] for b in draw_epoch(0, 0)))
update = gradient["item_embedding"]
for beta in (0.5, 0.9, 0.99):
    smoothed = sevo.smoothing.neumann(operator, update, beta, num_layers=3)
    report = sevo.smoothing.effect(operator, update, smoothed)
    share = report.smoothness_after / report.smoothness_before
    print(
        f"beta {beta}: roughness {share:.3f} of what it was, cosine {report.cosine:.2f},"
        f" norm {report.norm_ratio:.2f}"
    )

# %% [markdown]
# ## Three things to know
#
# **Users can be smoothed too.** A user-item graph over two tables, stacked in the order
# of its nodes:

# %%
users = np.repeat(np.arange(num_users), train.lengths)
user_item = sevo.graphs.bipartite(users, train.values, num_users, num_items)
joint = sevo.sevo_adamw(1e-2, {("user_embedding", "item_embedding"): user_item})
_, curve = fit(joint, seed=0, epochs=5)

# %% [markdown]
# **Large graphs go in as arguments.** A graph that is bound to the optimizer becomes a
# constant of the compiled program. Prepare it once and pass it to `update` to keep it
# out, or to change it while training:

# %%
_, curve = fit(after, seed=0, epochs=5, graphs={"item_embedding": operator})

# %% [markdown]
# **Idle rows are found by their zero gradient.** `sevo_adamw` keeps the direction of a
# row that was not in the batch (Theorem 3). Gradient clipping before it is fine;
# coupled weight decay or gradient noise makes every row look active: then pass
# `active_rows={"item_embedding": mask}` to `update`.
