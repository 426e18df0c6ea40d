"""What the tests share: graphs with named properties, oracles, precision."""

import pathlib
from types import SimpleNamespace

import hypothesis
import jax
import numpy as np
import pytest

# Before the first operation: the sharding tests run on virtual devices.
jax.config.update("jax_num_cpu_devices", 8)

# The same examples in every run; and the first example of a shape compiles.
hypothesis.settings.register_profile(
    "tests", deadline=None, derandomize=True, max_examples=30
)
hypothesis.settings.load_profile("tests")


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """A process may have 65,530 memory maps, and each compiled program takes three."""
    yield
    jax.clear_caches()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Each precision, with JAX set to allow it."""
    with jax.enable_x64(request.param == "float64"):
        yield np.dtype(request.param)


@pytest.fixture
def strict_promotion():
    """Makes an unintended mixture of dtypes an error."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="session")
def shared_data():
    """The folder of the real interaction logs."""
    folder = pathlib.Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the real interaction logs in {folder}")
    return folder


# ---------------------------------------------------------------- graphs


def make_random_graph(seed, n, *, density=0.5, isolated=(), self_loops=False):
    """A dense symmetric matrix of weights in [0.1, 10], with at least one edge."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.1, 10, (n, n)) * (rng.random((n, n)) < density)
    upper = np.triu(weights, 0 if self_loops else 1)
    upper[list(isolated)] = 0
    upper[:, list(isolated)] = 0
    dense = np.maximum(upper, upper.T)
    assert dense.any()
    return dense


def _blocks(*parts):
    n = sum(len(part) for part in parts)
    dense, start = np.zeros((n, n)), 0
    for part in parts:
        dense[start : start + len(part), start : start + len(part)] = part
        start += len(part)
    return dense


def _bipartite():
    cross = np.random.default_rng(1).uniform(0.5, 2, (3, 4))
    return np.block([[np.zeros((3, 3)), cross], [cross.T, np.zeros((4, 4))]])


GRAPHS = {
    "connected": lambda: make_random_graph(2, 7, density=1.0),
    "sparse": lambda: make_random_graph(3, 9, density=0.2),
    "isolated": lambda: make_random_graph(4, 9, isolated=(0, 4, 7, 8)),
    "self_loops": lambda: make_random_graph(5, 6, self_loops=True),
    "isolated_and_self_loops": lambda: make_random_graph(
        6, 8, isolated=(0, 7), self_loops=True
    ),
    "disconnected": lambda: _blocks(
        make_random_graph(7, 4), [[0.0]], make_random_graph(8, 4), [[3.0]]
    ),
    "bipartite": _bipartite,
    "pair": lambda: np.array([[0.0, 1.0], [1.0, 0.0]]),
    "one_node": lambda: np.array([[2.0]]),
    "far_apart_weights": lambda: (
        make_random_graph(9, 7, density=1.0)
        * np.outer(10.0 ** np.arange(-4, 3), 10.0 ** np.arange(-4, 3))
    ),
}


@pytest.fixture(scope="session")
def random_graph():
    return make_random_graph


@pytest.fixture(params=GRAPHS)
def dense(request):
    """A dense weighted adjacency in float64, once for each property."""
    return GRAPHS[request.param]()


# ---------------------------------------------------------------- oracles


def _normalised(dense):
    """Entry by entry, with 0 for d^-1/2 where d is 0."""
    n = len(dense)
    degrees = [sum(dense[i, j] for j in range(n)) for i in range(n)]
    out = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if dense[i, j] > 0:
                out[i, j] = dense[i, j] / np.sqrt(degrees[i]) / np.sqrt(degrees[j])
    return out


def _neumann(dense, x, beta, num_layers, rescale=True):
    a = _normalised(dense)
    total = sum(
        beta**layer * np.linalg.matrix_power(a, layer) @ x
        for layer in range(num_layers + 1)
    )
    factor = 1 - beta
    if rescale:
        factor = factor / (1 - beta ** (num_layers + 1))
    return factor * total


def _iterative(dense, x, beta, num_layers):
    a, y = _normalised(dense), x
    for _ in range(num_layers):
        y = beta * a @ y + (1 - beta) * x
    return y


def _exact(dense, x, beta):
    a = _normalised(dense)
    return (1 - beta) * np.linalg.solve(np.eye(len(a)) - beta * a, x)


@pytest.fixture(scope="session")
def oracle():
    """Dense NumPy forms of the definitions, in the precision of what they are given."""
    return SimpleNamespace(
        normalised=_normalised, neumann=_neumann, iterative=_iterative, exact=_exact
    )
