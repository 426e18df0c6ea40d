from copy import deepcopy

from sevo_jax.training.run import Progress, _lasting


def test_a_checkpoint_may_be_older_than_a_field(trainer):
    identity = trainer.identity(3)
    older = deepcopy(identity)
    del older["recipe"]["architecture"]["loss"]
    assert _lasting(older) == _lasting(identity)
    older["recipe"]["architecture"]["loss"] = "bpr"
    assert _lasting(older) != _lasting(identity)


def test_progress_is_evaluated_once_an_epoch():
    progress = Progress()
    assert not progress.evaluated
    progress.history.append({"epoch": 0})
    assert progress.evaluated
    progress.epoch = 1
    assert not progress.evaluated


def test_seconds_per_epoch_ignores_the_epoch_that_compiles():
    assert Progress(epoch_seconds=[30.0, 1.0, 2.0]).seconds_per_epoch == 1.5
    assert Progress(epoch_seconds=[30.0, 1.0]).seconds_per_epoch == 1.0
    assert Progress(epoch_seconds=[30.0]).seconds_per_epoch == 30.0
