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
# # Reproduce the paper
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/sevo_jax/blob/main/notebooks/reproduce.ipynb)
#
# SASRec with AdamW and with SEvo-AdamW, by the recipe of
# [the paper](https://arxiv.org/abs/2310.03032), for few epochs: on Amazon Beauty if you
# have it or download it, otherwise on the log that comes with the package.

# %%
# %pip install -q "sevo-jax[train] @ git+https://github.com/OWNER/sevo_jax"

# %%
import dataclasses
import os
from pathlib import Path

import matplotlib.pyplot as plt

from sevo_jax.data import fetch, leave_one_out, planted, read, statistics
from sevo_jax.reports.plots import COLOURS
from sevo_jax.training import RECIPES, Trainer, find_recipe

# %% [markdown]
# ## The data
#
# `SEVO_DATA` is a folder with `beauty.txt`: a line for each user, of the user and the
# items, the oldest first, of its 5-core. To download the reviews and make the log of them,
# set `DOWNLOAD`; on the command line it is `sevo-jax data fetch beauty --output FOLDER`.

# %%
DOWNLOAD = False
beauty = Path(os.environ.get("SEVO_DATA", "."), "beauty.txt")
if DOWNLOAD and not beauty.exists():
    fetch("beauty", beauty.parent)
if beauty.exists():
    log, recipe, epochs = read(beauty), find_recipe("sasrec-beauty"), 10
else:
    log, recipe, epochs = planted(), find_recipe("sasrec-synthetic"), 15
split = leave_one_out(log)
print(log.name, statistics(log))

# %% [markdown]
# ## The recipe
#
# Model, optimizer, graph and protocol. With the data and a seed it determines a run, bit
# for bit. Only `epochs` is changed; the paper trains for the number that it has.
#
# **Ten epochs of Beauty say nothing yet.** What SEvo gains there it gains late: for the
# paper's figures train all 200 epochs, ten minutes a run on a core.

# %%
print(f"{recipe.epochs} epochs in full, {epochs} here")
recipe = dataclasses.replace(recipe, epochs=epochs, eval_every=epochs // 5)
for name, value in recipe.to_dict().items():
    print(f"{name}: {value}")

# %% [markdown]
# ## The runs
#
# AdamW has the same hyper-parameters. More seeds, a table with paired t-tests and all
# pictures come from the command: `sevo-jax compare --recipe sasrec-beauty --seeds 0 1 2`.

# %%
runs = {
    name: Trainer(each, split).run(seed=0, progress=False)
    for name, each in {
        "AdamW": recipe.with_optimizer("adamw"),
        "SEvo-AdamW": recipe,
    }.items()
}
print(runs["AdamW"].protocol)
for name, run in runs.items():
    metrics = "  ".join(f"{metric} {value:.4f}" for metric, value in run.test.items())
    print(f"{name:11} best epoch {run.best_epoch:3}  test {metrics}")

# %% [markdown]
# ## What the paper's figures show
#
# The metric by which the best epoch is chosen, and the smoothness of the item table over
# the graph, relative to its size: the lower, the more alike neighbours are.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
for colour, (name, run) in zip(COLOURS, runs.items()):
    trained = [point["epoch"] for point in run.history]
    ndcg = [point["valid"]["NDCG@10"] for point in run.history]
    smoothness = [point["relative_smoothness"] for point in run.history]
    left.plot(trained, ndcg, "o-", markersize=4, color=colour, label=name)
    right.plot(trained, smoothness, "o-", markersize=4, color=colour, label=name)
left.set_ylabel("validation NDCG@10")
right.set_ylabel("relative smoothness of items")
for axes in (left, right):
    axes.set_xticks(trained)
    axes.set_xlabel("epochs trained")
    axes.legend(frameon=False)
figure.suptitle(f"SASRec, {log.name} log, one seed")
plt.show()

# %% [markdown]
# ## All of it
#
# `experiments/` of the repository has a script for each table and figure, the results,
# and what differs from the authors' own runs and why. Other recipes:

# %%
print(*RECIPES, sep=", ")
