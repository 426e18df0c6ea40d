import dataclasses
import gzip
import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sevo_jax.models import MODELS, MFBPRConfig
from sevo_jax.training import (
    OptimizerConfig,
    Trainer,
    make_optimizer,
    optimizer_names,
)
from sevo_jax.training import profiling as profile_module
from sevo_jax.training.epoch import step_key, train_epoch
from sevo_jax.training.profiling import (
    format_phases,
    measure_phases,
    partial_optimizers,
    profile,
    write_trace,
)

SEVO_PHASES = "forward", "backward", "decay, learning rate, apply", "moments", "psi"


@pytest.fixture(scope="module")
def mf_trainer(tiny_recipe, tiny_split):
    """It has two tables under one graph, and compiles quickly."""
    recipe = dataclasses.replace(
        tiny_recipe,
        model="mf-bpr",
        architecture=MFBPRConfig(width=8),
        graph=dataclasses.replace(tiny_recipe.graph, kind="user-item"),
        batch_size=512,
        epochs=2,
    )
    return Trainer(recipe, tiny_split)


@pytest.fixture(scope="module")
def profiled(mf_trainer, tmp_path_factory):
    """What a profile returned, and its folder."""
    directory = tmp_path_factory.mktemp("profile") / "new" / "folder"
    return profile(mf_trainer, directory, seed=3, rounds=2), directory


def first_epoch(trainer) -> Any:
    model = trainer.new_model(0)
    batch_size = trainer.recipe.batch_size
    return model.epochs(trainer.split.train, batch_size=batch_size, seed=0)[0]


def after(trainer, optimizer) -> tuple[Any, Any, Any, Any, Any]:
    """Model, parameters and batches, and what an epoch with `optimizer` comes to."""
    program = trainer.program._replace(update=optimizer.update)
    state = trainer.start(0, optimizer)
    params = jax.tree.map(np.array, state.params)
    batches = first_epoch(trainer)
    numbers = np.uint32(0), np.int32(0)
    state, losses = train_epoch(program, state, batches, trainer.graphs, *numbers)
    return program.graphdef, params, batches, state, losses["loss"]


def loss_and_gradient(graphdef):
    """Of parameters, the batches of an epoch, and the number of a step."""

    def loss(params, batches, step):
        batch = jax.tree.map(lambda field: field[step], batches)
        return nnx.merge(graphdef, params).loss(batch, rng=step_key(0, 0, step))

    return jax.jit(jax.value_and_grad(loss))


def assert_same(one, other):
    for mine, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(mine, theirs)


# The programs


def test_forward_and_backward_are_the_loss_and_its_gradient(mf_trainer):
    partial = partial_optimizers(mf_trainer)
    graphdef, params, batches, state, losses = after(mf_trainer, partial["forward"])
    assert_same(state.params, params)
    kept = after(mf_trainer, partial["backward"])[3]
    assert_same(kept.params, params)

    of_step = loss_and_gradient(graphdef)
    steps = [of_step(params, batches, step) for step in range(len(losses))]
    np.testing.assert_allclose(losses, [loss for loss, _ in steps], rtol=1e-6)
    gradients = jax.tree.leaves(steps[-1][1])
    for mine, theirs in zip(jax.tree.leaves(kept.opt_state), gradients, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-8)
        assert np.any(mine)


def test_without_moments_it_is_gradient_descent_with_decay(mf_trainer):
    optimizer = partial_optimizers(mf_trainer)["decay, learning rate, apply"]
    graphdef, params, batches, state, losses = after(mf_trainer, optimizer)
    config = mf_trainer.recipe.optimizer
    of_step = loss_and_gradient(graphdef)
    for step in range(len(losses)):
        _, gradients = of_step(params, batches, step)
        params = jax.tree.map(
            lambda p, g: p - config.learning_rate * (g + config.weight_decay * p),
            params,
            gradients,
        )
    for mine, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(params)):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)


def test_without_psi_it_is_the_optimizer_at_beta_0(mf_trainer):
    recipe = mf_trainer.recipe
    unsmoothed = dataclasses.replace(
        recipe, optimizer=dataclasses.replace(recipe.optimizer, beta=0.0)
    )
    expected = after(mf_trainer, Trainer(unsmoothed, mf_trainer.split).optimizer)[3]
    partial = partial_optimizers(mf_trainer)
    assert_same(after(mf_trainer, partial["moments"])[3].params, expected.params)
    whole = after(mf_trainer, partial["psi"])[3]
    assert_same(whole.params, after(mf_trainer, mf_trainer.optimizer)[3].params)
    with pytest.raises(AssertionError):
        assert_same(whole.params, expected.params)


def test_the_compiler_leaves_out_and_keeps_what_it_should(trainer):
    def flops(optimizer):
        program = trainer.program._replace(update=optimizer.update)
        state = trainer.start(0, optimizer)
        arguments = first_epoch(trainer), trainer.graphs, np.uint32(0), np.int32(0)
        lowered: Any = train_epoch.lower(program, state, *arguments)
        return lowered.compile().cost_analysis()["flops"]

    partial = partial_optimizers(trainer)
    forward, backward = flops(partial["forward"]), flops(partial["backward"])
    # A product's gradient is two products.
    assert 2.5 < backward / forward < 3.5


# Which phases there are


def phases_of(**changes):
    config = OptimizerConfig(**changes)
    whole: Any = object()
    trainer: Any = SimpleNamespace(
        recipe=SimpleNamespace(optimizer=config),
        optimizer_of=lambda part: make_optimizer(part, {}),
        optimizer=whole,
    )
    partial = partial_optimizers(trainer)
    assert [*partial.values()].index(whole) == len(partial) - 1
    return tuple(partial)


@pytest.mark.parametrize("name", optimizer_names())
def test_every_optimizer_has_phases(name):
    ours = name.startswith("sevo_")
    expected = SEVO_PHASES if ours else (*SEVO_PHASES[:2], "optimizer")
    assert phases_of(name=name, momentum=0.9) == expected


def test_phases_that_an_optimizer_lacks_are_left_out():
    assert phases_of(name="sevo_sgd") == (*SEVO_PHASES[:3], "psi")
    assert phases_of(num_layers=0) == SEVO_PHASES[:4]
    assert phases_of(name="sevo_sgd", num_layers=0) == SEVO_PHASES[:3]


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_an_epoch_for_each_phase(model, tiny_recipe, tiny_split):
    recipe = dataclasses.replace(
        tiny_recipe, model=model, architecture=MODELS[model].Config()
    )
    trainer = Trainer(recipe, tiny_split)
    for optimizer in partial_optimizers(trainer).values():
        state = trainer.start(0, optimizer)
        # Traced, not compiled: that the compiler takes parts out is tested above.
        traced, losses = train_epoch.eval_shape(  # pyright: ignore
            trainer.program._replace(update=optimizer.update),
            state,
            first_epoch(trainer),
            trainer.graphs,
            np.uint32(0),
            np.int32(0),
        )
        assert jax.tree.map(jnp.shape, traced) == jax.tree.map(jnp.shape, state)
        assert losses["loss"].shape[0] > 0


# The numbers


def test_phases_are_differences_shown_as_they_are(mf_trainer, monkeypatch):
    medians = [1.0, 3.0, 2.5, 4.0, 6.0, 0.25, 8.0]

    def timed(candidates, *, rounds):
        assert rounds == 7
        return {
            name: {"min": 0.0, "median": median, "max": 9.0}
            for name, median in zip(candidates, medians, strict=True)
        }

    monkeypatch.setattr(profile_module, "time_in_turns", timed)
    measured = measure_phases(mf_trainer, rounds=7)
    assert measured["phases"] == dict(zip(SEVO_PHASES, [1.0, 2.0, -0.5, 1.5, 2.0]))
    assert measured["epoch"] == 6.0
    assert measured["beside"] == {"draw and pack": 0.25, "evaluation": 8.0}
    title, *lines = format_phases(measured).splitlines()
    assert title == ("an epoch of mf-bpr on ring, sevo_adamw, 1 x cpu, medians of 7")
    assert [line.split("  ")[0] for line in lines] == (
        [*SEVO_PHASES, "epoch", "draw and pack", "evaluation"]
    )
    assert lines[2].split()[-3:] == ["-0.5000", "s", "-8.3%"]
    assert lines[-1].endswith("8.0000 s   133.3%  every 3 epochs")


def test_the_sum_of_the_phases_is_the_epoch(profiled):
    measured, directory = profiled
    assert json.loads((directory / "phases.json").read_text()) == measured
    assert tuple(measured["phases"]) == SEVO_PHASES
    assert sum(measured["phases"].values()) == pytest.approx(measured["epoch"])
    assert measured["phases"]["forward"] > 0
    assert measured["epoch"] == measured["timings"]["up to psi"]["median"]
    for timing in measured["timings"].values():
        assert 0 < timing["min"] <= timing["median"] <= timing["max"]


def test_no_rounds_are_refused(mf_trainer):
    with pytest.raises(ValueError, match="rounds is 0: it must be at least 1"):
        measure_phases(mf_trainer, rounds=0)


# The trace


def test_the_trace_holds_a_warm_epoch(profiled, mf_trainer, tmp_path):
    programs = train_epoch._cache_size()  # pyright: ignore
    write_trace(mf_trainer, tmp_path, seed=3)
    assert train_epoch._cache_size() == programs  # pyright: ignore
    for directory in (profiled[1], tmp_path):
        (path,) = directory.glob("plugins/profile/*/*.trace.json.gz")
        assert (path.parent / path.name.replace("trace.json.gz", "xplane.pb")).exists()
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        named = {event.get("name"): event for event in events}
        for name in ("draw and pack", "epoch", "evaluation"):
            assert named[name]["dur"] > 0
        end = named["epoch"]["ts"] + named["epoch"]["dur"]
        assert named["evaluation"]["ts"] >= end
        # More than the marks: what the device did within the epoch.
        start = named["epoch"]["ts"]
        assert sum(start < event.get("ts", -1) < end for event in events) > 50


# The run


def test_a_run_is_the_same_after_a_profile(profiled, mf_trainer):
    assert profiled
    results = [
        each.run(seed=3, progress=False)
        for each in (mf_trainer, Trainer(mf_trainer.recipe, mf_trainer.split))
    ]
    assert results[0].losses == results[1].losses
    assert results[0].test == results[1].test
    assert_same(*(nnx.split(result.trained)[1] for result in results))
