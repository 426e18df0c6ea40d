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
# # A graph of your own
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/sevo_jax/blob/main/notebooks/own_graph.ipynb)
#
# SEvo smooths the updates of an embedding table over a graph of its rows. Here the graph
# is prior knowledge: genres of the items. It is compared with the graph of items that
# follow each other in the log, and with the sum of both.

# %%
# %pip install -q "sevo-jax[train] @ git+https://github.com/OWNER/sevo_jax"

# %%
import dataclasses
import json

import matplotlib.pyplot as plt
import numpy as np
import scipy.sparse

import sevo_jax as sevo
from sevo_jax.data import leave_one_out, planted, read_attributes
from sevo_jax.reports.plots import COLOURS
from sevo_jax.training import GraphConfig, Trainer, find_recipe

# %% [markdown]
# ## A log, and a file of genres
#
# The log is drawn, with groups of items planted in it. `sevo_jax.data.read("log.csv")`
# takes yours.
#
# Genres come as JSON, `{item: [genre, ...]}` with the ids of the log, or as a table with an
# item and one of its genres a line (`.csv`, `.tsv`, `.parquet`). These are the planted
# groups with faults: one item in five has a genre at random in place of its own. Real
# genres are coarser, and say less about who takes what.

# %%
log = planted(num_users=1200, num_items=900, num_groups=45)
split = leave_one_out(log)

rng = np.random.default_rng(0)
genres = {}
for item in log.item_ids.tolist():
    group = rng.integers(45) if rng.random() < 0.2 else item % 45
    genres[item] = [f"genre {group}"]
with open("genres.json", "w") as file:
    json.dump(genres, file)

print(f"{log.num_users} users, {log.num_items} items")

# %% [markdown]
# ## From the file to a graph
#
# Two items are linked if they share a genre. A coarse genre links very many pairs: one
# that a third of the items have links a ninth of all pairs.

# %%
attributes = read_attributes("genres.json", log)
by_genre = sevo.graphs.shared_attributes(attributes, log.num_items)
by_sequence = sevo.graphs.cooccurrence(split.train, log.num_items, max_len=50)
for name, graph in {"genres": by_genre, "sequences": by_sequence}.items():
    print(f"{name}: {graph.nse / log.num_items:.1f} neighbours of an item on average")

# %% [markdown]
# Any symmetric, non-negative matrix with a row for each row of the table is a graph too,
# from SciPy or from JAX. This one says that items of the same genre are alike only where
# they also follow each other:

# %%
genre_links = scipy.sparse.coo_array(
    (by_genre.data, by_genre.indices.T), shape=by_genre.shape
).tocsr()
sequence_links = scipy.sparse.coo_array(
    (by_sequence.data, by_sequence.indices.T), shape=by_sequence.shape
).tocsr()
both = sequence_links.multiply(genre_links)

# %% [markdown]
# ## In an Optax loop
#
# The graph is all that an optimizer needs:
#
# ```python
# tx = sevo.sevo_adamw(1e-3, {"item_embedding": by_genre}, weight_decay=0.1)
# ```
#
# ## With a reference recommender
#
# A recipe names its graph. `item-item+attributes` is the weighted sum of the normalised
# graphs; `share` is the weight of the second. Matrices of your own are given to the
# trainer. The command line has the same: `--graph.kind attributes
# --graph.attributes genres.json`, or `--graph FILE`.

# %%
plain = dataclasses.replace(find_recipe("mf-bpr-synthetic"), epochs=30)
genre_file = {"attributes": "genres.json"}
recipes = {
    "AdamW": plain.with_optimizer("adamw"),
    "SEvo, sequences": plain,
    "SEvo, genres": dataclasses.replace(
        plain, graph=GraphConfig("attributes", **genre_file)
    ),
    "SEvo, half and half": dataclasses.replace(
        plain, graph=GraphConfig("item-item+attributes", share=0.5, **genre_file)
    ),
}
trainers = {name: Trainer(recipe, split) for name, recipe in recipes.items()}
trainers["SEvo, both at once"] = Trainer(plain, split, graphs=both)

results = {
    name: [trainer.run(seed=seed, progress=False) for seed in range(3)]
    for name, trainer in trainers.items()
}

# %%
print(results["AdamW"][0].protocol)
scores = {
    name: np.array([run.test["NDCG@10"] for run in runs])
    for name, runs in results.items()
}
for name, values in scores.items():
    print(f"{name:20} test NDCG@10 {values.mean():.4f} +- {values.std(ddof=1):.4f}")

# %%
figure, axes = plt.subplots(figsize=(6.4, 3.5), layout="constrained")
for place, (colour, values) in enumerate(zip(COLOURS, scores.values())):
    axes.barh(place, values.mean(), xerr=values.std(ddof=1), color=colour)
axes.set_yticks(range(len(scores)), scores)
axes.invert_yaxis()
axes.set_title("MF-BPR, synthetic log: mean and sample std of 3 seeds")
axes.set_xlabel("test NDCG@10, full ranking")
plt.show()

# %% [markdown]
# ## Before you train: how much of an update a graph keeps
#
# A row that has no neighbours keeps only the local part of its step, and a row of many
# keeps little of what is its own. `effect` says so for an update, here a random one, of
# which nothing agrees with the graph.

# %%
update = rng.normal(size=(log.num_items, 32)).astype(np.float32)
for name, graph in {"genres": by_genre, "sequences": by_sequence}.items():
    operator = sevo.prepare(graph)
    smoothed = sevo.smoothing.neumann(operator, update, beta=0.9, num_layers=3)
    report = sevo.smoothing.effect(operator, update, smoothed)
    print(f"{name}: cosine {report.cosine:.2f}, norm {report.norm_ratio:.2f}")
