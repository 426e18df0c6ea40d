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
# # Serve recommendations
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/sevo_jax/blob/main/notebooks/serve.ipynb)
#
# Train a small SASRec with SEvo, load it from the folder of its run, and recommend: to all
# users, to somebody it has never seen, and from exported files alone.

# %%
# %pip install -q "sevo-jax[train] @ git+https://github.com/OWNER/sevo_jax"

# %%
import csv
import dataclasses
import json
import os

import jax
import jax.export
import matplotlib.pyplot as plt
import numpy as np

from sevo_jax.data import Sequences, leave_one_out, planted
from sevo_jax.evaluation import recommend
from sevo_jax.reports.plots import COLOURS
from sevo_jax.training import export, find_recipe, load, train

# %% [markdown]
# ## Train
#
# On a drawn log; `sevo_jax.data.read("log.csv")` takes yours. SEvo is a matter of training
# only: what is served is a plain SASRec.

# %%
log = planted(num_users=1000, num_items=600, num_groups=30)
split = leave_one_out(log)
recipe = dataclasses.replace(find_recipe("sasrec-synthetic"), epochs=15)
result = train(recipe, split, output="run", progress=False)
print(f"best epoch {result.best_epoch}, test NDCG@10 {result.test['NDCG@10']:.4f}")

# %% [markdown]
# ## Load
#
# The folder has the best parameters, the recipe, and the ids of users and items as the log
# calls them.

# %%
saved = load("run")
item_ids, user_ids = np.asarray(saved.known.item_ids), np.asarray(saved.known.user_ids)
print(type(saved.model).__name__, saved.model.num_items, "items")

# %% [markdown]
# ## Everybody's best items
#
# The history is all that a user has, the items held out for validation and test too. What
# is in it is not recommended again; `seen="keep"` allows it. On the command line:
# `sevo-jax recommend run --top 5 --output top.csv`.

# %%
items, scores = recommend(saved.model, log.sequences, k=5)
with open("top.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["user", "rank", "item", "score"])
    for user, row, values in zip(user_ids, items, scores):
        for rank, (item, score) in enumerate(zip(row, values), start=1):
            writer.writerow([user, rank, item_ids[item], f"{score:.4f}"])
print(open("top.csv").read(200))

# %% [markdown]
# ## Somebody new
#
# For a sequence model a user is the items of the history. Ids that the run does not know
# are -1.

# %%
history = saved.known.items([*item_ids[[3, 33, 63]].tolist(), 10**9])
print("known:", history >= 0)
history = history[history >= 0]
items, scores = recommend(saved.model, Sequences.from_lists([history]), k=5)
print("has", item_ids[history].tolist(), "gets", item_ids[items[0]].tolist())
assert not set(items[0]) & set(history)

# %% [markdown]
# ## Export
#
# `export` writes tables with their ids, and the scorer as a program that needs JAX alone:
# no Flax, not this package. On the command line: `sevo-jax export run --output exported`.

# %%
export(saved, "exported", format="npz")
print(*sorted(os.listdir("exported")), sep=", ")

with open("exported/scorer.bin", "rb") as file:
    scorer = jax.export.deserialize(bytearray(file.read()))
with open("exported/scorer.json") as file:
    about = json.load(file)
with np.load("exported/items.npz") as archive:
    exported = dict(archive)

# %% [markdown]
# A row of the inputs is the last items of a user, the oldest first, each by its row in the
# table of items plus `first_item`, with zeros in front.

# %%
recent = [*(history + about["first_item"]), *about["last_cells"]][-about["cells"] :]
inputs = np.zeros((1, about["cells"]), np.int32)
inputs[0, -len(recent) :] = recent
scores = np.array(scorer.call(inputs))[0]
scores[history] = -np.inf
best = np.argsort(-scores)[:5]
print("gets", exported["id"][best].tolist())
assert best.tolist() == items[0].tolist()

# %% [markdown]
# The table serves "similar items" too, in any index of vectors:

# %%
table = exported["item_embedding"]
unit = table / np.linalg.norm(table, axis=1, keepdims=True)
likeness = unit @ unit.T
np.fill_diagonal(likeness, -1)
nearest = exported["id"][likeness.argmax(axis=1)]
for item, similar in zip(exported["id"][:5], nearest):
    print(f"item {item}: the most similar is {similar}")

# %% [markdown]
# The log was drawn in 30 groups of items, which no model is told: item j is in group
# j modulo 30. So one can see whether similar items belong together.

# %%
groups = exported["id"] % 30
same = groups[:, None] == groups
others = ~np.eye(len(groups), dtype=bool)

figure, axes = plt.subplots(figsize=(6.4, 3.5), layout="constrained")
bins = np.linspace(-0.6, 1, 65)
for colour, style, name, pairs in zip(
    COLOURS, ("-", "--"), ("same group", "other groups"), (same & others, ~same)
):
    axes.hist(
        likeness[pairs],
        bins,
        density=True,
        histtype="step",
        linewidth=1.5,
        linestyle=style,
        color=colour,
        label=name,
    )
axes.set_title("SASRec with SEvo-AdamW, synthetic log: pairs of items")
axes.set(xlabel="cosine of two rows of the item table", ylabel="density")
axes.legend(frameon=False, loc="upper left")
plt.show()

share = np.mean(nearest % 30 == groups)
print(f"{share:.0%} of the items have their group in the most similar one")
