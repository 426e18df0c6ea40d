import dataclasses
import re
import shutil

import jax
import numpy as np
import pytest

from sevo_jax.samples import PackedBatch
from sevo_jax.training import Trainer
from sevo_jax.training.epoch import same_shapes, train_epoch_together

SEEDS = (3, 0, 8)


@pytest.fixture(scope="module")
def short_trainer(tiny_recipe, tiny_split):
    recipe = dataclasses.replace(tiny_recipe, epochs=4, eval_every=2)
    return Trainer(recipe, tiny_split)


@pytest.fixture(scope="module")
def alone(short_trainer):
    return [short_trainer.run(seed=seed, progress=False) for seed in SEEDS]


def check_same(results, expected):
    for result, alone in zip(results, expected, strict=True):
        assert result.seed == alone.seed
        np.testing.assert_allclose(result.losses, alone.losses, rtol=1e-5)
        np.testing.assert_allclose(
            result.trained.item_embedding[...],
            alone.trained.item_embedding[...],
            rtol=1e-3,
            atol=1e-4,
        )


def test_seeds_together_come_out_as_each_alone(short_trainer, alone):
    compiled = train_epoch_together._cache_size()  # pyright: ignore
    results = short_trainer.run_together(SEEDS, progress=False)
    assert train_epoch_together._cache_size() == compiled + 1  # pyright: ignore
    check_same(results, alone)
    # The seeds do differ.
    assert not np.allclose(results[0].losses, results[1].losses, rtol=1e-4)


def test_seeds_together_stop_when_each_does_alone(tiny_recipe, tiny_split, tmp_path):
    optimizer = dataclasses.replace(tiny_recipe.optimizer, learning_rate=0.05)
    recipe = dataclasses.replace(
        tiny_recipe, optimizer=optimizer, epochs=25, eval_every=1, patience=1
    )
    trainer = Trainer(recipe, tiny_split)
    alone = [trainer.run(seed=seed, progress=False) for seed in SEEDS]
    lengths = [len(result.losses) for result in alone]
    assert len(set(lengths)) > 1, "choose seeds that stop at different epochs"
    outputs = [tmp_path / str(seed) for seed in SEEDS]
    together = trainer.run_together(SEEDS, outputs=outputs, progress=False)
    assert [len(result.losses) for result in together] == lengths
    assert [r.best_epoch for r in together] == [r.best_epoch for r in alone]
    check_same(together, alone)
    again = trainer.run_together(SEEDS, outputs=outputs, resume=True, progress=False)
    assert [result.test for result in again] == [result.test for result in together]


def test_each_seed_has_a_mask_of_its_own(masking_recipe, tiny_split):
    """The weights of the graph, which training carries, are not the same for all."""
    trainer = Trainer(masking_recipe, tiny_split)
    expected = [trainer.run(seed=seed, progress=False) for seed in SEEDS[:2]]
    check_same(trainer.run_together(SEEDS[:2], progress=False), expected)


def test_runs_left_at_different_epochs_catch_up(short_trainer, alone, tmp_path):
    outputs = [tmp_path / str(seed) for seed in SEEDS]

    class Killed(Exception):
        pass

    def evaluate(run, original=short_trainer._evaluate):
        if run.seed == SEEDS[1] and run.progress.epoch == 2:
            raise Killed
        original(run)

    short_trainer._evaluate = evaluate
    try:
        with pytest.raises(Killed):
            short_trainer.run_together(SEEDS, outputs=outputs, progress=False)
    finally:
        del short_trainer._evaluate
    epochs = [max(output.glob("checkpoints/*")).name for output in outputs]
    assert epochs == ["2", "0", "0"]
    results = short_trainer.run_together(
        SEEDS, outputs=outputs, resume=True, progress=False
    )
    check_same(results, alone)
    assert all((output / "result.json").exists() for output in outputs)


def test_what_one_run_writes_alone_another_resumes_together(
    tiny_recipe, tiny_split, finished, tmp_path
):
    result, output = finished
    copy = shutil.copytree(output, tmp_path / "copy")
    (again,) = Trainer(tiny_recipe, tiny_split).run_together(
        [result.seed], outputs=[copy], resume=True, progress=False
    )
    assert again.losses == result.losses and again.test == result.test


def test_batches_get_one_shape_by_empty_cells():
    small = PackedBatch(*(np.ones((2, 3, 4), np.int32) for _ in range(6)))
    large = jax.tree.map(lambda x: np.ones((2, 5, 4), np.int32), small)
    filled = same_shapes([small, large])
    assert [each.inputs.shape for each in filled] == [(2, 5, 4)] * 2
    assert filled[0].segments[:, 3:].sum() == 0 and filled[0].segments.sum() == 24
    assert filled[1].segments is large.segments


@pytest.mark.parametrize(
    ("seeds", "outputs", "message"),
    [
        ([], None, "at least one, none twice"),
        ([1, 1], None, r"seeds are \[1, 1\]"),
        ([1, 2], ["x"], "2 seeds and 1 outputs"),
        ([1, -2], None, "seed is -2"),
    ],
)
def test_bad_requests_are_refused(short_trainer, seeds, outputs, message):
    with pytest.raises(ValueError, match=message):
        short_trainer.run_together(seeds, outputs=outputs)


def test_seeds_together_propagate_once_in_a_window_too(tiny_recipe, tiny_split):
    """Under `vmap` a branch would become a choice between two computed results."""
    optimizer = dataclasses.replace(tiny_recipe.optimizer, every=4)
    trainer = Trainer(dataclasses.replace(tiny_recipe, optimizer=optimizer), tiny_split)
    states = [trainer.start(seed) for seed in SEEDS[:2]]
    batches = same_shapes([trainer.epochs(seed)[0] for seed in SEEDS[:2]])
    lowered = train_epoch_together.lower(
        trainer.program,
        states,
        batches,
        trainer.graphs,
        np.array(SEEDS[:2], np.uint32),
        np.int32(0),
    )
    text = str(lowered.compile().as_text())
    branches = {
        name.strip("% ")
        for names in re.findall(r"branch_computations=\{([^}]*)\}", text)
        for name in names.split(",")
    }
    with_kernel = [
        computation.split()[0].strip("%")
        for computation in text.split("\n\n")
        if 'custom_call_target="cpu_csr_sparse_dense_ffi"' in computation
    ]
    assert with_kernel and set(with_kernel) <= branches
