"""Pictures of training: curves over epochs, one line an optimizer, a band over seeds.

Each is titled by what it is `about`: the model and the data, ``"sasrec, beauty"``.
Every function returns a free-standing `matplotlib.figure.Figure` (no pyplot, no global
state, no display needed); `save` writes it.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sevo_jax._files import replacing

# Okabe and Ito's colours, told apart with any kind of colour vision; the line styles
# keep the lines apart in black and white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")


@dataclass(frozen=True, eq=False)
class Curves:
    """One quantity over the epochs, of several seeds.

    Attributes:
      epochs: ``[points]``, strictly increasing.
      values: ``[seeds, points]``.
    """

    epochs: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, series: Sequence[Mapping[int, float]]) -> "Curves":
        """Curves from one ``{epoch: value}`` a seed, at the epochs that all have.

        Raises:
          ValueError: `series` is empty.
        """
        if not series:
            raise ValueError("curves need at least one series")
        epochs = sorted(set(series[0]).intersection(*series[1:]))
        values = [[row[epoch] for epoch in epochs] for row in series]
        return cls(np.asarray(epochs, int), np.asarray(values, float))


def training_loss(curves: Mapping[str, Curves], about: str) -> Figure:
    """Mean training loss of each epoch, from ``{optimizer: curves}``."""
    return _figure(curves, f"Training loss: {about}", "mean loss of the epoch (nats)")


def validation(curves: Mapping[str, Curves], metric: str, about: str) -> Figure:
    """A metric on the validation items by its name, from ``{optimizer: curves}``."""
    label = f"{metric}, full ranking (0 to 1)"
    return _figure(curves, f"Validation: {about}", label)


def smoothness(curves: Mapping[str, Curves], about: str) -> Figure:
    r"""Relative smoothness of the smoothed tables, from ``{optimizer: curves}``.

    :math:`J(E) / \|E\|^2` with :math:`J(E) = \mathrm{Tr}(E^T (I - \tilde A) E)`, in
    [0, 2]: 0 where neighbours are alike, about 1 where they are unrelated. J alone
    grows with the table, and so would hide what optimizers do to its shape.
    """
    return _figure(
        curves,
        f"Smoothness of the tables: {about}",
        r"$\mathrm{Tr}(E^T (I - \tilde{A})\, E)\ /\ \Vert E \Vert^2$"
        " (lower is smoother)",
    )


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes `figure` as a PNG of 150 dots an inch, replacing the file in one step."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def _figure(curves: Mapping[str, Curves], title: str, ylabel: str) -> Figure:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for index, (label, curve) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        mean = curve.values.mean(axis=0)
        style = STYLES[index % len(STYLES)]
        # A line of few points hides where they are, one of a single point hides all.
        marker = "o" if len(curve.epochs) <= 20 else None
        axes.plot(
            curve.epochs, mean, style, marker=marker, ms=4, color=colour, label=label
        )
        if len(curve.values) > 1:
            std = curve.values.std(axis=0, ddof=1)
            axes.fill_between(
                curve.epochs, mean - std, mean + std, color=colour, alpha=0.18, lw=0
            )
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("epochs trained")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.margins(x=0.02)
    axes.grid(alpha=0.25, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        frameon=False, title=_seeds_note(curves), title_fontsize=9, alignment="left"
    )
    return figure


def _seeds_note(curves: Mapping[str, Curves]) -> str:
    seeds = max(len(curve.values) for curve in curves.values())
    return "one seed" if seeds == 1 else f"mean ± sample std, {seeds} seeds"
