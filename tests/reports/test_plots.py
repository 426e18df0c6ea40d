import sys
from functools import partial

import matplotlib.image
import numpy as np
import pytest

from sevo_jax.reports import plots


@pytest.fixture
def curves():
    return {
        "adamw": plots.Curves(
            np.array([0, 5, 10]), np.array([[0.0, 1.0, 2.0], [0.0, 3.0, 6.0]])
        ),
        "sevo_adamw": plots.Curves(np.array([0, 5]), np.array([[1.0, 2.0]])),
    }


def test_curves_keep_the_epochs_that_every_seed_has():
    curves = plots.Curves.of([{0: 1.0, 10: 3.0, 5: 2.0}, {5: 4.0, 0: 6.0}])
    np.testing.assert_array_equal(curves.epochs, [0, 5])
    np.testing.assert_array_equal(curves.values, [[1.0, 2.0], [6.0, 4.0]])


def test_a_quantity_that_an_epoch_does_not_have_is_a_gap():
    curves = {"sgd": plots.Curves.of([{0: 0.5, 1: None, 2: None}])}  # pyright: ignore
    (axes,) = plots.smoothness(curves, "").axes
    (line,) = axes.get_lines()
    np.testing.assert_array_equal(np.asarray(line.get_ydata()), [0.5, np.nan, np.nan])


def test_curves_of_nothing_are_refused():
    with pytest.raises(ValueError, match="at least one series"):
        plots.Curves.of([])


def test_the_line_is_the_mean_over_seeds_and_the_band_one_sample_std(curves):
    (axes,) = plots.validation(curves, "NDCG@10", "").axes
    line, single = axes.get_lines()
    np.testing.assert_allclose(np.asarray(line.get_ydata()), [0.0, 2.0, 4.0])
    np.testing.assert_allclose(np.asarray(single.get_ydata()), [1.0, 2.0])
    # A line of one point would not be seen.
    assert line.get_marker() == "o"
    # Two seeds: the sample std is |a - b| / sqrt(2). One seed has no band.
    (band,) = axes.collections
    assert band.get_alpha()
    vertices = np.asarray(band.get_paths()[0].vertices)
    at_ten = vertices[vertices[:, 0] == 10, 1]
    half = 4.0 / np.sqrt(2.0)
    np.testing.assert_allclose([at_ten.min(), at_ten.max()], [4.0 - half, 4.0 + half])


@pytest.mark.parametrize(
    "draw, unit",
    [
        (plots.training_loss, "nats"),
        (partial(plots.validation, metric="MRR@20"), "MRR@20"),
        (plots.smoothness, "Tr"),
    ],
)
def test_axes_and_lines_are_labelled(curves, draw, unit):
    (axes,) = draw(curves, about="sasrec, beauty").axes
    assert axes.get_title(loc="left").endswith(": sasrec, beauty")
    assert axes.get_xlabel() == "epochs trained"
    assert unit in axes.get_ylabel()
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["adamw", "sevo_adamw"]
    assert axes.get_legend().get_title().get_text().endswith("2 seeds")
    first, second = axes.get_lines()
    assert first.get_color() != second.get_color()
    assert first.get_linestyle() != second.get_linestyle()


def test_save_writes_150_dots_an_inch_and_nothing_else(curves, tmp_path):
    figure = plots.training_loss(curves, "")
    plots.save(figure, tmp_path / "loss.png")
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]
    width, height = figure.get_size_inches()
    pixels = matplotlib.image.imread(tmp_path / "loss.png")
    assert pixels.shape[:2] == (round(150 * height), round(150 * width))


def test_plots_leave_pyplot_alone():
    assert "matplotlib.pyplot" not in sys.modules
