"""What the tests of the graph builders share: the contract of a graph, real data."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def to_dense() -> Callable[..., np.ndarray]:
    """Returns a function that checks the form of a graph and makes it dense."""

    def check(graph) -> np.ndarray:
        data, indices = np.asarray(graph.data), np.asarray(graph.indices)
        assert data.dtype == np.float32
        assert indices.dtype == np.int32
        assert indices.shape == (data.size, 2)
        assert graph.indices_sorted and graph.unique_indices
        keys = indices[:, 0].astype(np.int64) * graph.shape[1] + indices[:, 1]
        assert (np.diff(keys) > 0).all()
        assert (data > 0).all()
        matrix = np.zeros(graph.shape, np.float32)
        matrix[indices[:, 0], indices[:, 1]] = data
        np.testing.assert_array_equal(matrix, matrix.T)
        return matrix

    return check


@pytest.fixture(scope="session")
def train_sequences(shared_data: Path) -> Callable[[str], tuple[list[list[int]], int]]:
    """Returns a reader of (train sequences, number of items) of a real dataset."""

    def read(name: str) -> tuple[list[list[int]], int]:
        with open(shared_data / f"{name}.txt") as file:
            whole = [[int(word) for word in line.split()[1:]] for line in file]
        # The ids of tools.txt start at 0, those of the others at 1.
        first, last = min(map(min, whole)), max(map(max, whole))
        train = [[item - first for item in row[:-2]] for row in whole]
        return train, last - first + 1

    return read


@pytest.fixture(scope="session")
def genres(shared_data: Path) -> dict[int, list[str]]:
    """The genres of the MovieLens items, ids from 0."""
    text = (shared_data / "ml-1m_item2genres.json").read_text()
    return {int(item) - 1: names for item, names in json.loads(text).items()}
