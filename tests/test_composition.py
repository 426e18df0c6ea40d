"""The optimizers inside everything that optax and jax wrap around an optimizer.

One table of optimizers; every test of the battery runs over all of them. The updates
that an optimizer gives by itself are the reference for what it gives when wrapped.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
import scipy.sparse

import sevo_jax as sevo

NUM_NODES, WIDTH = 10, 4
KERNEL = "cpu_csr_sparse_dense_ffi"


@functools.cache
def graph() -> scipy.sparse.csr_array:
    """Random weights; the last node is isolated."""
    rng = np.random.default_rng(7)
    upper = np.triu(rng.uniform(0.5, 2, (NUM_NODES,) * 2), 1)
    upper *= rng.random(upper.shape) < 0.4
    upper[:, -1] = 0
    return scipy.sparse.csr_array(upper + upper.T)


@dataclasses.dataclass(frozen=True)
class Case:
    """An optimizer, and the tree it is tried on.

    Attributes:
      factory: the public function.
      options: its arguments, without ``graphs``.
      names: the key of the graph.
      tables: shape of each leaf that the graph smooths, by its name.
      row_axis: the axis of those leaves along which the nodes lie.
    """

    factory: Callable[..., Any]
    options: Mapping[str, Any]
    names: Any = "item_embedding"
    tables: Mapping[str, tuple[int, int]] = dataclasses.field(
        default_factory=lambda: {"item_embedding": (NUM_NODES, WIDTH)}
    )
    row_axis: int = 0

    @property
    def smooths(self) -> bool:
        return self.factory is not sevo.scale_by_moment_corrected_adam

    @property
    def arguments(self) -> dict[str, Any]:
        bound = {"graphs": {self.names: graph()}} if self.smooths else {}
        return {**self.options, **bound}

    def make(self, **changes: Any) -> Any:
        return self.factory(**{**self.arguments, **changes})

    def params(self, seed: int = 0, dtype: Any = np.float32) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        shapes = {**self.tables, "bias": (WIDTH,)}
        return {
            "encoder": {
                name: {"kernel": jnp.asarray(rng.normal(size=shape), dtype)}
                for name, shape in shapes.items()
            }
        }

    def gradients(
        self, num_steps: int = 5, seed: int = 0, dtype: Any = np.float32
    ) -> list[dict[str, Any]]:
        """Random gradients with idle rows; in the third step all rows are idle."""
        rng = np.random.default_rng(seed + 100)
        steps = []
        for step in range(num_steps):
            grads = {"bias": {"kernel": jnp.asarray(rng.normal(size=WIDTH), dtype)}}
            for name, shape in self.tables.items():
                rows = rng.random(shape[self.row_axis]) < (0.0 if step == 2 else 0.6)
                rows = np.expand_dims(rows, 1 - self.row_axis)
                table = rng.normal(size=shape) * rows
                grads[name] = {"kernel": jnp.asarray(table, dtype)}
            steps.append({"encoder": grads})
        return steps


def _decreasing_beta(count):
    return 0.95 * jnp.float32(0.9) ** count.astype(jnp.float32)


ADAM = {"learning_rate": 0.1, "b1": 0.8, "b2": 0.95, "beta": 0.9, "num_layers": 2}
SGD = {"learning_rate": 0.1, "beta": 0.9, "num_layers": 2}
CASES = {
    "adamw": Case(sevo.sevo_adamw, {**ADAM, "weight_decay": 0.1}),
    "adamw_uncorrected": Case(
        sevo.sevo_adamw, {**ADAM, "weight_decay": 0.1, "moment_correction": False}
    ),
    "adamw_joint": Case(
        sevo.sevo_adamw,
        {**ADAM, "weight_decay": 0.1},
        names=("user_embedding", "item_embedding"),
        tables={"item_embedding": (6, WIDTH), "user_embedding": (4, WIDTH)},
    ),
    "adamw_joint_every": Case(
        sevo.sevo_adamw,
        {**ADAM, "weight_decay": 0.1, "every": 2},
        names=("user_embedding", "item_embedding"),
        tables={"item_embedding": (6, WIDTH), "user_embedding": (4, WIDTH)},
    ),
    "adamw_transposed": Case(
        sevo.sevo_adamw,
        {**ADAM, "weight_decay": 0.1, "row_axis": {"item_embedding": 1}},
        tables={"item_embedding": (WIDTH, NUM_NODES)},
        row_axis=1,
    ),
    "adam": Case(sevo.sevo_adam, {**ADAM, "weight_decay": 0.1}),
    "sgd": Case(sevo.sevo_sgd, SGD),
    "sgd_momentum": Case(sevo.sevo_sgd, {**SGD, "momentum": 0.9, "weight_decay": 0.1}),
    "sgd_nesterov": Case(
        sevo.sevo_sgd,
        {**SGD, "momentum": 0.9, "nesterov": True, "approximation": "iterative"},
    ),
    "scale_by_sevo": Case(
        sevo.scale_by_sevo, {"beta": _decreasing_beta, "num_layers": 2}
    ),
    "scale_by_moment_corrected_adam": Case(
        sevo.scale_by_moment_corrected_adam, {"b1": 0.8, "b2": 0.95}
    ),
}


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


def run(
    tx: Any, params: Any, gradients: Any, state: Any = None, **extra_args: Any
) -> tuple[list[Any], Any]:
    """Updates of each step at fixed parameters, jitted, and the last state.

    Every wrapper passes through here, so that each is shown to be traced only once and
    to need no implicit promotion of ranks.
    """
    traces = []

    @jax.jit
    def step(grads, state, params):
        traces.append(None)
        return tx.update(grads, state, params, **extra_args)

    state = tx.init(params) if state is None else state
    outputs = []
    with jax.numpy_rank_promotion("raise"):
        for grads in gradients:
            updates, state = step(grads, state, params)
            outputs.append(updates)
    assert len(traces) == 1
    return outputs, state


@functools.cache
def _reference(name: str):
    case = CASES[name]
    return run(case.make(), case.params(), case.gradients())


@pytest.fixture
def reference(request, case):
    """What the optimizer of ``case`` gives by itself: updates, last state."""
    return _reference(request.node.callspec.params["case"])


def assert_close(actual, expected, rtol=2e-6, atol=2e-7):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=rtol, atol=atol),
        actual,
        expected,
    )


def tables_of(tree, case):
    return {name: tree["encoder"][name] for name in case.tables}


# ---------------------------------------------------------------- optax's wrappers


def test_updates_are_not_trivial(case, reference):
    for name in case.tables:
        first, *_, last = (u["encoder"][name]["kernel"] for u in reference[0])
        assert np.ptp(first) > 0.01
        assert np.abs(first - last).max() > 0.01


def test_eager_equals_jitted(case, reference):
    tx, params = case.make(), case.params()
    state = tx.init(params)
    for grads, expected in zip(case.gradients(), reference[0], strict=True):
        updates, state = tx.update(grads, state, params)
        assert_close(updates, expected)
    assert_close(state, reference[1])


def test_chain(case, reference):
    tx = optax.chain(optax.clip(100.0), case.make(), optax.scale(-0.5))
    updates, _ = run(tx, case.params(), case.gradients())
    assert_close(updates, jax.tree.map(lambda u: -0.5 * u, reference[0]))


def test_partition_with_a_frozen_group(case, reference):
    params = case.params()

    def labels(tree):
        return {
            "encoder": {
                name: "ours" if name in case.tables else "frozen"
                for name in tree["encoder"]
            }
        }

    tx = optax.partition({"ours": case.make(), "frozen": optax.set_to_zero()}, labels)
    updates, _ = run(tx, params, case.gradients())
    for update, expected in zip(updates, reference[0], strict=True):
        assert_close(tables_of(update, case), tables_of(expected, case))
        assert not update["encoder"]["bias"]["kernel"].any()


def test_masked(case, reference):
    mask = {"encoder": {**dict.fromkeys(case.tables, True), "bias": False}}
    updates, _ = run(optax.masked(case.make(), mask), case.params(), case.gradients())
    for update, expected, grads in zip(
        updates, reference[0], case.gradients(), strict=True
    ):
        assert_close(tables_of(update, case), tables_of(expected, case))
        assert_close(update["encoder"]["bias"], grads["encoder"]["bias"])


FREEZING = {
    "selective_transform": lambda tx, frozen: optax.transforms.selective_transform(
        tx, freeze_mask=frozen
    ),
    "partition": lambda tx, frozen: optax.partition(
        {True: optax.set_to_zero(), False: tx}, frozen
    ),
    "masked": lambda tx, frozen: optax.masked(
        tx, jax.tree.map(lambda hidden: not hidden, frozen)
    ),
}


@pytest.mark.parametrize("whole_layer", [False, True])
@pytest.mark.parametrize("freeze", FREEZING.values(), ids=FREEZING)
def test_a_frozen_table_is_left_alone(case, freeze, whole_layer):
    """One dictionary of graphs serves all stages of a job."""
    more = {"graphs": {case.names: graph(), "other": graph()}} if case.smooths else {}
    tx = case.make(**more)
    params, gradients = case.params(), case.gradients(3)
    table = np.random.default_rng(9).normal(size=(3, NUM_NODES, WIDTH))
    for tree, each in zip([params, *gradients[:2]], table, strict=True):
        tree["encoder"]["other"] = {"kernel": jnp.asarray(each, jnp.float32)}
    gradients = gradients[:2]
    # A mask may be a prefix of the tree; where it is, it hides a whole layer.
    hide = {name: True if whole_layer else {"kernel": True} for name in case.tables}
    mask = {"encoder": {**jax.tree.map(lambda _: False, params["encoder"]), **hide}}
    updates, _ = run(freeze(tx, mask), params, gradients)

    def rest(tree):
        return {name: tree["encoder"][name] for name in ("other", "bias")}

    alone = case.make(
        **({"graphs": {"other": graph()}, "row_axis": None} if more else {})
    )
    expected, _ = run(alone, rest(params), [rest(grads) for grads in gradients])
    assert_close([rest(update) for update in updates], expected)


def test_a_name_that_matches_nothing_is_refused_beside_frozen_leaves(case):
    if not case.smooths:
        pytest.skip("takes no graph")
    tx = case.make(graphs={"itme_embedding": graph()}, row_axis=None)
    params = case.params()
    mask = jax.tree.map(lambda leaf: leaf.ndim == 2, params)
    for freeze in FREEZING.values():
        with pytest.raises(ValueError, match="no leaf has 'itme_embedding'.*hidden"):
            freeze(tx, mask).init(params)


def test_masked_selects_the_table_of_a_single_adjacency(case, reference):
    if not case.smooths or len(case.tables) > 1:
        pytest.skip("needs one graph for one table")
    mask = {"encoder": {"item_embedding": True, "bias": False}}
    tx = optax.masked(case.make(graphs=graph()), mask)
    updates, _ = run(tx, case.params(), case.gradients())
    for update, expected in zip(updates, reference[0], strict=True):
        assert_close(tables_of(update, case), tables_of(expected, case))


def test_single_adjacency_for_a_bare_array(case, reference):
    if not case.smooths or len(case.tables) > 1:
        pytest.skip("needs one graph for one table")

    def table(tree):
        return tree["encoder"]["item_embedding"]["kernel"]

    updates, _ = run(
        case.make(graphs=graph(), row_axis=case.row_axis),
        table(case.params()),
        [table(grads) for grads in case.gradients()],
    )
    assert_close(updates, [table(update) for update in reference[0]])


def test_inject_hyperparams(case, reference):
    static = {"num_layers", "every"} if case.smooths else set()
    tx = optax.inject_hyperparams(case.factory, static_args=static)(**case.arguments)
    updates, state = run(tx, case.params(), case.gradients())
    assert_close(updates, reference[0], rtol=1e-5, atol=1e-6)
    assert_close(state.inner_state, reference[1], rtol=1e-5, atol=1e-6)
    if "learning_rate" in state.hyperparams:
        again = case.gradients()[:1]
        before, _ = run(tx, case.params(), again, state)
        state.hyperparams["learning_rate"] *= 2
        after, _ = run(tx, case.params(), again, state)
        assert_close(after, jax.tree.map(lambda u: 2 * u, before))


def test_injected_axis_of_the_rows_is_static():
    inject = optax.inject_hyperparams
    for tx in (
        inject(sevo.scale_by_moment_corrected_adam)(row_axis=1),
        inject(sevo.scale_by_sevo, static_args=("num_layers", "every"))(
            graph(), row_axis=1
        ),
    ):
        params = jnp.ones((WIDTH, NUM_NODES))
        with pytest.raises(TypeError, match="row_axis is traced.*static_args"):
            jax.jit(tx.update)(params, tx.init(params), params)


def test_inject_hyperparams_follows_a_schedule_of_beta():
    case = CASES["adamw"]
    tx = optax.inject_hyperparams(sevo.sevo_adamw, static_args=("num_layers", "every"))(
        **{**case.arguments, "beta": _decreasing_beta}
    )
    updates, state = run(tx, case.params(), case.gradients())
    expected, _ = run(case.make(beta=_decreasing_beta), case.params(), case.gradients())
    assert_close(updates, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.hyperparams["beta"], 0.95 * 0.9**4, rtol=1e-6)


def test_apply_if_finite_skips_a_step(case, reference):
    gradients = case.gradients()
    broken = jax.tree.map(lambda g: g.at[0].set(jnp.nan), gradients[0])
    tx = optax.apply_if_finite(case.make(), max_consecutive_errors=2)
    updates, state = run(tx, case.params(), [*gradients[:2], broken, *gradients[2:]])
    assert not any(leaf.any() for leaf in jax.tree.leaves(updates[2]))
    assert_close(updates[:2] + updates[3:], reference[0])
    assert_close(state.inner_state, reference[1])
    assert int(state.total_notfinite) == 1


def test_multi_steps(case):
    gradients = case.gradients(num_steps=6)
    tx = optax.MultiSteps(case.make(), every_k_schedule=2).gradient_transformation()
    updates, _ = run(tx, case.params(), gradients)
    means = [
        jax.tree.map(lambda a, b: (a + b) / 2, *pair)
        for pair in zip(gradients[::2], gradients[1::2], strict=True)
    ]
    expected, _ = run(case.make(), case.params(), means)
    assert_close(updates[1::2], expected)
    assert not any(leaf.any() for leaf in jax.tree.leaves(updates[::2]))


@pytest.mark.parametrize("name", ["adamw", "adamw_transposed", "adamw_joint"])
def test_multi_steps_with_active_rows(name):
    """The rows of all micro-batches count, not those of the last alone."""
    case = CASES[name]
    params, gradients = case.params(), case.gradients(num_steps=6)
    rng = np.random.default_rng(5)
    masks = {
        leaf: jnp.asarray(rng.random((3, 2, shape[case.row_axis])) < 0.4)
        for leaf, shape in case.tables.items()
    }
    tx = optax.MultiSteps(case.make(), every_k_schedule=2)
    inner, state = case.make(), tx.init(params)
    updates, expected_state = None, inner.init(params)
    for step in range(3):
        pair = gradients[2 * step : 2 * step + 2]
        rows = {leaf: mask[step] for leaf, mask in masks.items()}
        for grads in pair:
            updates, state = jax.jit(tx.update)(grads, state, params, active_rows=rows)
        expected, expected_state = inner.update(
            jax.tree.map(lambda a, b: (a + b) / 2, *pair),
            expected_state,
            params,
            active_rows={leaf: mask.any(0) for leaf, mask in rows.items()},
        )
        assert_close(updates, expected)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_multi_steps_with_the_active_rows_of_one_micro_batch(wrap):
    case = CASES["adamw"]
    params, (grads, *_) = case.params(), case.gradients()
    for inner in (case.make(), optax.chain(optax.clip(1.0), case.make())):
        tx = optax.MultiSteps(inner, 2)
        rows = {"item_embedding": jnp.ones(NUM_NODES, bool)}
        with pytest.raises(ValueError, match=r"MultiSteps.*\('k', 10\)"):
            wrap(tx.update)(grads, tx.init(params), params, active_rows=rows)
        wrap(tx.update)(grads, tx.init(params), params)
        # Afterwards, outside, they are what they were.
        case.make().update(grads, case.make().init(params), params, active_rows=rows)


def test_optax_finds_moments_and_count(case):
    if case.factory in (sevo.sevo_sgd, sevo.scale_by_sevo):
        pytest.skip("has no such moments")
    params, gradients = case.params(), case.gradients(3)
    _, state = run(optax.chain(optax.clip(1e6), case.make()), params, gradients)
    assert optax.tree.get(state, "count") == 3
    for moment in ("mu", "nu"):
        tree = optax.tree.get(state, moment)
        assert jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, params)
    state = optax.tree.set(state, mu=params)
    assert optax.tree.get(state, "mu") is params


def test_map_params(case, reference):
    tx, params, state = case.make(), case.params(), reference[1]
    map_params = optax.tree.map_params
    kinds = map_params(
        tx, lambda _: "moment", state, transform_non_params=lambda _: "count"
    )
    for kind, leaf in zip(*map(jax.tree.leaves, (kinds, state)), strict=True):
        assert kind == ("moment" if leaf.ndim else "count")

    def add(leaf, param):
        return leaf if isinstance(leaf, optax.MaskedNode) else leaf + param

    # Each moment meets its own parameter: another would not have its shape.
    moved = map_params(
        tx, add, state, params, is_leaf=lambda x: isinstance(x, optax.MaskedNode)
    )
    assert jax.tree.structure(moved) == jax.tree.structure(state)
    for before, after in zip(*map(jax.tree.leaves, (state, moved)), strict=True):
        assert before.shape == after.shape
        assert (before != after).any() == bool(before.ndim)


def test_unknown_extra_args_are_swallowed(case, reference):
    updates, _ = run(
        case.make(), case.params(), case.gradients(), value=1.0, batch={"size": 3}
    )
    assert_close(updates, reference[0])


# ---------------------------------------------------------------- jax's transformations


def test_eval_shape_of_init(case):
    tx, params = case.make(), case.params()
    shapes = jax.eval_shape(tx.init, params)
    state = tx.init(params)
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    for shape, leaf in zip(*map(jax.tree.leaves, (shapes, state)), strict=True):
        assert (shape.shape, shape.dtype) == (leaf.shape, leaf.dtype)
        assert not leaf.weak_type


def test_scan_over_steps(case, reference):
    tx, params = case.make(), case.params()

    @jax.jit
    def epoch(state, gradients):
        def step(state, grads):
            updates, state = tx.update(grads, state, params)
            return state, updates

        return jax.lax.scan(step, state, gradients)

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *case.gradients())
    state, updates = epoch(tx.init(params), stacked)
    assert_close(state, reference[1])
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *reference[0])
    assert_close(updates, expected)


def assert_no_aliases(*trees):
    leaves = jax.tree.leaves(trees)
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
    return leaves


def test_donation_of_params_and_state(case):
    tx, params = case.make(), case.params()
    assert_no_aliases(params, tx.init(params))
    state = jax.jit(tx.init)(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for grads in case.gradients(num_steps=3):
        leaves = assert_no_aliases(params, state)
        params, state = step(params, state, grads)
        assert all(leaf.is_deleted() for leaf in leaves)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((params, state)))


def test_cond_around_an_update(case, reference):
    tx, params = case.make(), case.params()

    @jax.jit
    def step(wanted, grads, state):
        return jax.lax.cond(
            wanted,
            lambda: tx.update(grads, state, params),
            lambda: (jax.tree.map(jnp.zeros_like, grads), state),
        )

    state = tx.init(params)
    for grads, expected in zip(case.gradients(), reference[0], strict=True):
        skipped, same = step(False, grads, state)
        assert not any(leaf.any() for leaf in jax.tree.leaves(skipped))
        assert_close(same, state, rtol=0, atol=0)
        updates, state = step(True, grads, state)
        assert_close(updates, expected)


def test_vmap_over_seeds(case):
    tx, seeds = case.make(), range(3)

    def two_steps(params, first, second):
        _, state = tx.update(first, tx.init(params), params)
        return tx.update(second, state, params)

    arguments = [(case.params(seed), *case.gradients(2, seed)) for seed in seeds]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *arguments)
    compiled = jax.jit(jax.vmap(two_steps)).lower(*stacked).compile()
    single = jax.jit(two_steps)
    expected = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(single(*each) for each in arguments)
    )
    assert_close(compiled(*stacked), expected)
    if jax.default_backend() == "cpu":
        assert (KERNEL in str(compiled.as_text())) == case.smooths


# ---------------------------------------------------------------- dtypes and state


def test_bfloat16_params(case, reference):
    params = case.params(dtype=jnp.bfloat16)
    updates, state = run(case.make(), params, case.gradients(dtype=jnp.bfloat16))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(updates))
    assert_close(
        jax.tree.map(lambda u: np.asarray(u, np.float32), updates),
        reference[0],
        rtol=0.05,
        atol=0.02,
    )
    if case.factory is sevo.scale_by_moment_corrected_adam:
        moments = [state.mu, state.nu]
    elif case.factory is sevo.sevo_adamw and case.options.get("moment_correction", 1):
        moments = [tables_of(state[0].mu, case), tables_of(state[0].nu, case)]
    else:
        return  # optax's own transformations, which keep moments in the params' dtype
    leaves = jax.tree.leaves(moments)
    assert len(leaves) >= 2
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)


def test_bfloat16_update_is_smoothed_in_float32():
    case = CASES["scale_by_sevo"]
    tx, params = case.make(), case.params()
    narrow = case.gradients(1, dtype=jnp.bfloat16)[0]
    wide = jax.tree.map(lambda g: g.astype(jnp.float32), narrow)
    actual, _ = tx.update(narrow, tx.init(params))
    expected, _ = tx.update(wide, tx.init(params))
    assert_close(actual, jax.tree.map(lambda u: u.astype(jnp.bfloat16), expected), 0, 0)


def test_float64(case, reference):
    with jax.enable_x64(True):
        params = case.params(dtype=np.float64)
        gradients = case.gradients(dtype=np.float64)
        updates, state = run(case.make(), params, gradients)
        for leaf in jax.tree.leaves((updates, state)):
            assert leaf.dtype == (np.float64 if leaf.ndim else np.int32)
    assert_close(updates, reference[0], rtol=1e-4, atol=1e-5)


def test_float32_params_where_float64_is_on(case, reference):
    with jax.enable_x64(True):
        updates, state = run(case.make(), case.params(), case.gradients())
    for leaf in jax.tree.leaves((updates, state)):
        assert leaf.dtype == (np.float32 if leaf.ndim else np.int32)
    assert_close(updates, reference[0], rtol=1e-5, atol=1e-6)


# The others hold optax's Adam, whose bias correction multiplies an int by a float.
STRICT = ["sgd_nesterov", "scale_by_sevo", "scale_by_moment_corrected_adam"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, jnp.bfloat16])
@pytest.mark.parametrize("case", STRICT, indirect=True)
def test_strict_dtype_promotion(case, dtype):
    with jax.enable_x64(dtype is np.float64), jax.numpy_dtype_promotion("strict"):
        run(case.make(), case.params(dtype=dtype), case.gradients(2, dtype=dtype))


def test_mu_dtype():
    for name in ("adamw", "adam", "scale_by_moment_corrected_adam"):
        case = CASES[name]
        tx = case.make(mu_dtype=jnp.bfloat16)
        _, state = run(tx, case.params(), case.gradients(2))
        dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(state) if leaf.ndim}
        assert dtypes == {"bfloat16", "float32"}


def test_state_survives_serialization(case, reference):
    tx, params, gradients = case.make(), case.params(), case.gradients()
    _, state = run(tx, params, gradients[:3])
    stored = flax.serialization.to_bytes(state)
    restored = flax.serialization.from_bytes(tx.init(params), stored)
    assert_close(restored, state, rtol=0, atol=0)
    updates, _ = run(tx, params, gradients[3:], restored)
    assert_close(updates, reference[0][3:])


def test_state_survives_orbax(tmp_path):
    import orbax.checkpoint as ocp

    case = CASES["adamw"]
    tx, params = case.make(), case.params()
    _, state = run(tx, params, case.gradients())
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        template = jax.eval_shape(tx.init, params)
        assert_close(checkpointer.restore(tmp_path / "state", template), state, 0, 0)


def test_state_does_not_hold_the_graph(case):
    sizes = {leaf.size for leaf in jax.tree.leaves(case.make().init(case.params()))}
    table_sizes = {rows * width for rows, width in case.tables.values()}
    assert sizes <= table_sizes | {1, WIDTH}


# ---------------------------------------------------------------- order


def _directions(tx: Any, active_rows: Any = None) -> tuple[Any, Any]:
    """Directions of one table of which row 1 is active in the first step only."""
    params = jnp.ones((2, 3))
    first = jnp.array([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]])
    second = jnp.array([[0.5, 1.0, -2.0], [0.0, 0.0, 0.0]])
    state = tx.init(params)
    before, state = tx.update(first, state, params)
    after, _ = tx.update(second, state, params, active_rows=active_rows)
    return before[1], after[1]


@pytest.mark.parametrize(
    "first",
    [
        optax.clip_by_global_norm(0.1),
        optax.clip_by_block_rms(0.1),
        optax.clip(0.5),
        optax.adaptive_grad_clip(0.1),
        optax.zero_nans(),
        optax.centralize(),
        optax.scale(0.3),
    ],
    ids=["norm", "block", "clip", "adaptive", "zero_nans", "centralize", "scale"],
)
def test_what_keeps_idle_rows_at_zero_may_precede_the_correction(first):
    before, after = _directions(
        optax.chain(first, sevo.scale_by_moment_corrected_adam())
    )
    np.testing.assert_array_equal(before, after)
    assert before.any()


@pytest.mark.parametrize(
    "first",
    [optax.add_decayed_weights(0.1), optax.add_noise(0.1, 0.5, 0)],
    ids=["coupled_decay", "noise"],
)
def test_active_rows_restore_what_coupled_decay_and_noise_destroy(first):
    tx = optax.chain(first, sevo.scale_by_moment_corrected_adam())
    before, after = _directions(tx)
    assert np.abs(before - after).max() > 0.01
    before, after = _directions(tx, active_rows=jnp.array([True, False]))
    np.testing.assert_array_equal(before, after)


def test_sevo_adamw_is_the_chain_in_the_documented_order():
    case = CASES["adamw"]
    options = case.options

    def moments(tree):
        return {
            "encoder": {
                name: "ours" if name in case.tables else "other"
                for name in tree["encoder"]
            }
        }

    adam = (options["b1"], options["b2"])
    tx = optax.chain(
        optax.clip_by_global_norm(1e6),
        optax.zero_nans(),
        optax.partition(
            {
                "ours": sevo.scale_by_moment_corrected_adam(*adam),
                "other": optax.scale_by_adam(*adam),
            },
            moments,
        ),
        sevo.scale_by_sevo({case.names: graph()}, beta=0.9, num_layers=2),
        optax.add_decayed_weights(0.1),
        optax.scale_by_learning_rate(0.1),
    )
    updates, _ = run(tx, case.params(), case.gradients())
    assert_close(updates, _reference("adamw")[0])


def test_muon_on_matrices_beside_sevo_on_a_table():
    rng = np.random.default_rng(0)
    shapes = {"item_embedding": (NUM_NODES, WIDTH), "kernel": (4, 8), "bias": (8,)}
    trees = [
        {k: jnp.asarray(rng.normal(size=v), jnp.float32) for k, v in shapes.items()}
        for _ in range(4)
    ]
    params, gradients = trees[0], trees[1:]
    ours = sevo.sevo_adamw(0.1, {"item_embedding": graph()}, weight_decay=0.1)
    muon = optax.contrib.muon(0.02, weight_decay=0.1)
    tx = optax.partition(
        {"sevo": ours, "muon": muon},
        {"item_embedding": "sevo", "kernel": "muon", "bias": "sevo"},
    )
    found, _ = run(tx, params, gradients)
    alone, _ = run(ours, params, gradients)
    of_kernel = [{"kernel": each["kernel"]} for each in trees]
    matrices, _ = run(muon, of_kernel[0], of_kernel[1:])
    for updates, expected, matrix in zip(found, alone, matrices, strict=True):
        assert_close(updates, expected | matrix)
        assert not np.allclose(expected["kernel"], matrix["kernel"], rtol=0.1)


def test_decay_and_learning_rate_are_not_smoothed():
    case = CASES["adamw"]
    params = case.params()
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = run(case.make(), params, [zero])
    assert_close(updates[0], jax.tree.map(lambda p: -0.1 * 0.1 * p, params))


def test_one_nan_spreads_over_the_hops_unless_it_is_screened():
    path = scipy.sparse.diags_array([1.0] * 6, offsets=1, shape=(7, 7))
    tx: Any = sevo.scale_by_sevo(path + path.T, num_layers=2)
    grads = jnp.ones((7, 2)).at[3, 0].set(jnp.nan)
    spoilt, _ = tx.update(grads, tx.init(grads))
    np.testing.assert_array_equal(
        np.isnan(spoilt[:, 0]), [False, True, True, True, True, True, False]
    )
    assert not np.isnan(spoilt[:, 1]).any()
    screened: Any = optax.chain(optax.zero_nans(), tx)
    clean, _ = screened.update(grads, screened.init(grads))
    assert not np.isnan(clean).any()


# ---------------------------------------------------------------- per-call arguments


def test_active_rows_reach_the_table_inside_wrappers():
    case = CASES["adamw"]
    params, gradients = case.params(), case.gradients(3)
    rows = np.arange(NUM_NODES) < 4
    expected, _ = run(
        case.make(),
        params,
        gradients,
        active_rows={"item_embedding": jnp.asarray(rows)},
    )
    plain, _ = run(case.make(), params, gradients)
    assert np.abs(np.subtract(*map(_table, (expected[1], plain[1])))).max() > 0.01

    wrapped = optax.chain(
        optax.partition(
            {"ours": case.make(), "frozen": optax.set_to_zero()},
            {"encoder": {"item_embedding": "ours", "bias": "frozen"}},
        )
    )
    wrapped = optax.apply_if_finite(wrapped, 3)
    updates, _ = run(
        wrapped, params, gradients, active_rows={"item_embedding": jnp.asarray(rows)}
    )
    assert_close([_table(u) for u in updates], [_table(u) for u in expected])


def _table(tree):
    return tree["encoder"]["item_embedding"]["kernel"]


def test_one_mask_of_active_rows_for_a_single_table():
    case = CASES["adamw"]
    rows = jnp.arange(NUM_NODES) < 4
    params, gradients = _table(case.params()), [_table(g) for g in case.gradients(3)]
    updates, _ = run(case.make(graphs=graph()), params, gradients, active_rows=rows)
    expected, _ = run(
        case.make(),
        case.params(),
        case.gradients(3),
        active_rows={"item_embedding": rows},
    )
    assert_close(updates, [_table(u) for u in expected])


def test_active_rows_of_a_transposed_table():
    case, straight = CASES["adamw_transposed"], CASES["adamw"]
    rows = {"item_embedding": jnp.arange(NUM_NODES) < 4}

    def turn(tree):
        return jax.tree.map(jnp.transpose, tree)

    params, gradients = case.params(), case.gradients(3)
    updates, _ = run(case.make(), params, gradients, active_rows=rows)
    expected, _ = run(
        straight.make(), turn(params), [turn(g) for g in gradients], active_rows=rows
    )
    assert_close(updates, [turn(u) for u in expected])


@pytest.mark.parametrize(
    "name", ["adam", "sgd", "sgd_momentum", "adamw_uncorrected", "adamw"]
)
def test_active_rows_without_effect_are_refused(name):
    case = CASES[name]
    params, (grads, *_) = case.params(), case.gradients()
    tx = optax.chain(optax.clip(1e6), case.make())
    leaf = "bias" if name == "adamw" else "item_embedding"
    rows = {leaf: np.ones(params["encoder"][leaf]["kernel"].shape[0], bool)}
    with pytest.raises((TypeError, ValueError), match="no effect"):
        tx.update(grads, tx.init(params), params, active_rows=rows)
    tx.update(grads, tx.init(params), params, active_rows=None)


@pytest.mark.parametrize(
    "wrap", [lambda tx: tx, lambda tx: optax.apply_if_finite(tx, 1)]
)
@pytest.mark.parametrize("name", ["item", ""])
def test_active_rows_that_nothing_takes_are_refused(wrap, name):
    params = {"item": jnp.ones((3, 2))}
    smoothing = sevo.scale_by_sevo({"item": np.ones((3, 3)) - np.eye(3)})
    mask = jnp.array([True, False, True])
    rows = {name: mask} if name else mask

    def update(*before):
        tx = wrap(optax.chain(*before, smoothing))
        jax.jit(tx.update)(params, tx.init(params), params, active_rows=rows)

    update(sevo.scale_by_moment_corrected_adam(), optax.clip(1.0))
    for before in ([], [optax.scale_by_adam()]):
        with pytest.raises(ValueError, match="no effect here: nothing before"):
            update(*before)


def test_active_rows_are_not_taken_for_earlier_ones_that_are_gone():
    params = {"item": jnp.ones((3, 2))}
    smoothing = sevo.scale_by_sevo({"item": np.ones((3, 3)) - np.eye(3)})
    taking = optax.chain(sevo.scale_by_moment_corrected_adam(), smoothing)

    def update(tx):
        rows = {"item": np.ones(3, bool)}
        tx.update(params, tx.init(params), params, active_rows=rows)

    # What is gone may leave its address to what comes next: not in every round.
    for _ in range(20):
        update(taking)
        with pytest.raises(ValueError, match="no effect here: nothing before"):
            update(smoothing)


def test_active_rows_that_optax_hides_with_their_leaves():
    graph = np.ones((3, 3)) - np.eye(3)
    params = {"item": jnp.ones((3, 2)), "bias": jnp.ones(3)}
    tx = optax.masked(
        sevo.sevo_adamw(1e-2, {"item": graph}),
        {"item": True, "bias": False},
        mask_compatible_extra_args=True,
    )
    grads, state = {**params, "item": jnp.zeros((3, 2))}, tx.init(params)
    rows = {"item": jnp.array([True, False, True]), "bias": np.ones(3, bool)}
    updates: Any = tx.update(grads, state, params, active_rows=rows)[0]
    np.testing.assert_array_equal(updates["bias"], 1)


def test_misspelt_arguments_are_refused(case):
    params, (grads, *_) = case.params(), case.gradients()
    tx = optax.chain(optax.clip(1e6), case.make())
    for name in ("graph", "active_row"):
        with pytest.raises(TypeError, match=f"'{name}', which would have no effect"):
            tx.update(grads, tx.init(params), params, **{name: None})


def test_graphs_of_a_call_replace_the_bound_ones(case):
    if not case.smooths:
        pytest.skip("takes no graph")
    tx, params, grads = case.make(), case.params(), case.gradients()[0]
    state = tx.init(params)
    traces = []

    @jax.jit
    def step(graphs):
        traces.append(None)
        return tx.update(grads, state, params, graphs=graphs, flush=True)[0]

    # The same pattern of edges with other weights: one trace for both.
    other = graph().copy()
    other.data = other.data**3
    other = (other + other.T) / 2
    for matrix in (graph(), other):
        operator = {case.names: sevo.prepare(matrix)}
        bound = case.make(graphs=operator)
        expected, _ = bound.update(grads, state, params, flush=True)
        assert_close(step(operator), expected)
    assert len(traces) == 1
    before, _ = tx.update(grads, state, params, flush=True)
    assert np.abs(_first(expected, case) - _first(before, case)).max() > 1e-3


def _first(tree, case):
    return tree["encoder"][next(iter(case.tables))]["kernel"]


def test_graphs_of_a_call_stay_out_of_the_program():
    case = CASES["adamw"]
    tx, params, grads = case.make(), case.params(), case.gradients()[0]
    state = tx.init(params)
    operators = {case.names: sevo.prepare(graph())}

    def step(graphs, grads, state, params):
        return tx.update(grads, state, params, graphs=graphs)

    bound = jax.make_jaxpr(tx.update)(grads, state, params)
    given = jax.make_jaxpr(step)(operators, grads, state, params)
    num_entries = operators[case.names].num_entries
    assert any(np.size(const) == num_entries for const in bound.consts)
    assert all(np.size(const) < 2 for const in given.consts)


# ---------------------------------------------------------------- gradients through psi


def _psi(x):
    return sevo.smoothing.neumann(OPERATOR, x, 0.9, 3)


OPERATOR = sevo.prepare(graph())


@pytest.mark.parametrize("wrap", [lambda f: f, jax.checkpoint, jax.jit, jax.vmap])
def test_gradient_through_psi_is_psi(wrap):
    x, target = (
        jax.random.normal(key, (2, NUM_NODES, WIDTH))
        for key in jax.random.split(jax.random.key(0))
    )
    if wrap is not jax.vmap:
        x, target = x[0], target[0]
    gradient = jax.grad(lambda x: jnp.vdot(target, wrap(_psi)(x)))(x)
    assert_close(gradient, wrap(_psi)(target))


def test_second_derivative_through_psi():
    x, v = (
        jax.random.normal(key, (NUM_NODES, WIDTH))
        for key in jax.random.split(jax.random.key(1))
    )
    gradient = jax.grad(lambda x: jnp.sum(_psi(x) ** 2) / 2)
    along_v = jax.grad(lambda x: jnp.vdot(gradient(x), v))(x)
    assert_close(along_v, _psi(_psi(v)))


def test_propagation_inside_the_model_and_of_the_update():
    # A model that propagates its table over the graph, trained by an optimizer that
    # smooths the update over it too, all in one rematerialised scan.
    tx = sevo.sevo_adamw(0.05, OPERATOR, beta=0.9)
    target = jax.random.normal(jax.random.key(2), (NUM_NODES, WIDTH))

    @jax.checkpoint
    def loss(table):
        return jnp.mean((_psi(table) - _psi(target)) ** 2)

    @jax.jit
    def train(table):
        def step(carry, _):
            table, state = carry
            value, grads = jax.value_and_grad(loss)(table)
            updates, state = tx.update(grads, state, table)
            return (optax.apply_updates(table, updates), state), value

        return jax.lax.scan(step, (table, tx.init(table)), length=200)[1]

    losses = train(jnp.zeros((NUM_NODES, WIDTH)))
    assert losses[-1] < 0.05 * losses[0]


# ---------------------------------------------------------------- learning


def test_learns(case):
    """Rows are sampled; each is drawn to its own target."""
    tx, params = case.make(), case.params()
    if "learning_rate" not in case.options:
        tx = optax.chain(tx, optax.scale_by_learning_rate(0.1))
    offsets = case.params(seed=1)
    targets = jax.tree.map(lambda offset: 3.0 + 0.1 * offset, offsets)

    def loss(params, key=None):
        def one(param, target):
            errors = jnp.square(param - target)
            if key is None or param.ndim == 1:
                return jnp.sum(errors) / 2
            shape = [1, 1]
            shape[case.row_axis] = param.shape[case.row_axis]
            sampled = jax.random.bernoulli(key, 0.5, shape)
            return jnp.sum(jnp.where(sampled, errors, 0.0)) / 2

        return sum(jax.tree.leaves(jax.tree.map(one, params, targets)))

    @jax.jit
    def train(params, keys):
        def step(carry, key):
            params, state = carry
            grads = jax.grad(loss)(params, key)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), keys)[0][0]

    trained = train(params, jax.random.split(jax.random.key(0), 150))
    assert loss(trained) < 0.1 * loss(params)
