import errno
import io
import json
import os
import sys
import threading

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from sevo_jax.training import RunFolder, run_log
from sevo_jax.training.run import Progress
from sevo_jax.training.run_log import RunLog

METRICS = {"HR@1": 0.1, "HR@5": 0.2, "HR@10": 0.3, "NDCG@5": 0.15, "NDCG@10": 0.25}


def evaluation(epoch, **changes):
    record = {
        "epoch": epoch,
        "loss": None if epoch == 0 else 1.5,
        "valid": METRICS,
        "smoothness": 2.0,
        "relative_smoothness": 0.5,
        "seconds": 0.1,
    }
    return record | changes


def tell(log, start, stop, every=2):
    for epoch in range(start, stop):
        if epoch % every == 0:
            log.evaluation(evaluation(epoch))
        log.train(epoch, loss=1.5, seconds=0.25, parts={})
    log.evaluation(evaluation(stop))


def progress_at(epoch, every=2):
    """That of a run which has told what `tell` tells."""
    history = [evaluation(at) for at in range(0, epoch + 1, every)]
    return Progress(
        epoch=epoch,
        losses=[1.5] * epoch,
        epoch_seconds=[0.25] * epoch,
        parts=[{}] * epoch,
        history=history,
    )


def open_log(run_dir=None, *, start=0, show=False, label="", selection="NDCG@10"):
    folder = None if run_dir is None else RunFolder(run_dir)
    progress = progress_at(start) if start else Progress()
    return RunLog(
        folder, progress, epochs=4, selection=selection, show=show, label=label
    )


def read(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["kind"], line["epoch"]) for line in lines]


def test_metrics_are_json_lines(tmp_path):
    with open_log(tmp_path) as log:
        tell(log, 0, 2)
        # On the disk already, while the run goes on.
        assert len(read(tmp_path / "metrics.jsonl")) == 4
    first, second, *_ = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(first) == {"kind": "evaluation", **evaluation(0)}
    expected = {"kind": "train", "epoch": 0, "loss": 1.5, "seconds": 0.25}
    assert json.loads(second) == expected


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole + '{"kind": "train", "ep',  # The process died here.
        lambda whole: whole.replace('"kind"', '"kin', 1),
        lambda whole: whole[: len(whole) // 3],
        lambda whole: "\udcff\x00" + whole,
        lambda whole: "",
        lambda whole: None,
    ],
)
def test_resuming_writes_all_lines_up_to_the_checkpoint(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    with open_log(tmp_path) as log:
        tell(log, 0, 4)
    whole = path.read_text()
    damaged = damage(whole)
    if damaged is None:
        path.unlink()
    else:
        path.write_text(damaged, errors="surrogateescape")
    with open_log(tmp_path, start=2) as log:
        assert read(path) == [
            ("evaluation", 0),
            ("train", 0),
            ("train", 1),
            ("evaluation", 2),
        ]
        log.train(2, loss=1.5, seconds=0.25, parts={})
        log.train(3, loss=1.5, seconds=0.25, parts={})
        log.evaluation(evaluation(4))
    assert path.read_text() == whole


def events(folder):
    """What TensorBoard is told: `(step, tag, value)`, and where a run starts."""
    told = []
    for path in sorted((folder / "tensorboard").iterdir(), key=os.path.getmtime):
        data, at = path.read_bytes(), 0
        while at < len(data):
            # A record stands between its length and that of its checksums.
            size = int.from_bytes(data[at : at + 8], "little")
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])  # pyright: ignore
            if event.session_log.status == event_pb2.SessionLog.START:  # pyright: ignore
                told.append((event.step, "start"))
            told += [(event.step, x.tag, x.simple_value) for x in event.summary.value]
            at += size + 16
    return told


def test_tensorboard_gets_every_scalar(tmp_path):
    with open_log(tmp_path) as log:
        log.evaluation(evaluation(0))
        log.train(0, loss=1.5, seconds=0.25, parts={"bce": 0.75})
        log.evaluation(evaluation(1, smoothness=None, relative_smoothness=None))
    valid = [
        (f"valid/{name.replace('@', '_')}", float(np.float32(value)))
        for name, value in METRICS.items()
    ]
    assert events(tmp_path) == [
        (0, "start"),
        *((0, *each) for each in valid),
        (0, "smoothness", 2.0),
        (0, "relative_smoothness", 0.5),
        (0, "train/loss", 1.5),
        (0, "train/bce", 0.75),
        (0, "train/seconds", 0.25),
        *((1, *each) for each in valid),
    ]


def test_tensorboard_drops_what_a_resumed_run_repeats(tmp_path):
    with open_log(tmp_path, start=2) as log:
        log.train(2, loss=1.5, seconds=0.25, parts={})
    start, *others = events(tmp_path)
    assert start == (2, "start"), "all from this epoch on is dropped"
    # So the evaluation of the checkpoint is written anew.
    assert others[0][:2] == (2, "valid/HR_1") and others[-1][1] == "train/seconds"


def test_a_full_disk_is_told_at_once(tmp_path, monkeypatch):
    """No thread dies of it, for which the next writer would wait."""
    threads = threading.active_count()

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left on device: '.*tensorboard'"):
        with open_log(tmp_path) as log:
            assert threading.active_count() == threads
            monkeypatch.setattr(run_log.RecordWriter, "flush", refuse)
            log.train(0, loss=1.5, seconds=0.25, parts={})


def test_plain_lines_where_there_is_no_terminal(capsys):
    with open_log(show=True, label="seed 1") as log:
        tell(log, 0, 4)
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second, third = captured.err.splitlines()
    assert first == "seed 1: epoch 0/4  valid NDCG@10 0.2500"
    assert second.startswith("seed 1: epoch 2/4  loss 1.5000  valid NDCG@10 0.2500  ")
    assert "s/epoch" in second and "s left" in second
    assert third.endswith(" 0 s left")


def test_a_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with open_log(show=True, label="adamw", start=1) as log:
        tell(log, 1, 4)
    last = terminal.getvalue().rsplit("\r", 1)[-1]
    assert "adamw: 100%" in last and "4/4" in last
    assert "loss=1.5000" in last and "NDCG@10=0.2500" in last


def test_the_metric_shown_is_the_one_that_selects(capsys):
    with open_log(show=True, selection="HR@5") as log:
        tell(log, 0, 2)
    text = capsys.readouterr().err
    assert text.count("valid HR@5 0.2000") == 2 and "NDCG" not in text


def test_silent_when_told_so(capsys):
    with open_log() as log:
        tell(log, 0, 2)
    assert capsys.readouterr() == ("", "")


def test_a_function_is_called_with_the_lines_of_the_file(tmp_path):
    for start, folder in ((0, tmp_path / "new"), (2, tmp_path / "resumed")):
        records = []
        folder.mkdir()
        progress = progress_at(start) if start else Progress()
        with RunLog(
            RunFolder(folder),
            progress,
            epochs=4,
            selection="NDCG@10",
            show=False,
            label="",
            on_record=records.append,
        ) as log:
            before = (folder / "metrics.jsonl").read_text().splitlines()
            log.train(start, loss=1.5, seconds=0.25, parts={"bce": 1.0})
            log.evaluation(evaluation(start + 1))
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        assert records == [json.loads(line) for line in lines[len(before) :]]
        assert [record["kind"] for record in records] == ["train", "evaluation"]
