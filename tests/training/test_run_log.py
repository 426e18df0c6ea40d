import io
import json
import sys

from sevo_jax.training.run_log import JsonLines, RunLog

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


def open_log(run_dir=None, *, start=0, epochs=4, progress=False, label=""):
    return RunLog(run_dir, start=start, epochs=epochs, progress=progress, label=label)


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


def test_resuming_drops_what_is_to_be_repeated(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with open_log(tmp_path) as log:
        tell(log, 0, 4)
    whole = path.read_text()
    with path.open("a") as file:
        file.write('{"kind": "train", "ep')  # The process died here.
    JsonLines(path, start=2).close()
    assert read(path) == [
        ("evaluation", 0),
        ("train", 0),
        ("train", 1),
        ("evaluation", 2),
    ]
    with open_log(tmp_path, start=2) as log:
        log.train(2, loss=1.5, seconds=0.25, parts={})
        log.train(3, loss=1.5, seconds=0.25, parts={})
        log.evaluation(evaluation(4))
    assert path.read_text() == whole


def test_tensorboard_gets_every_scalar(tmp_path):
    with open_log(tmp_path) as log:
        tell(log, 0, 2)
        log.evaluation(evaluation(3, smoothness=None, relative_smoothness=None))
    (events,) = (tmp_path / "tensorboard").iterdir()
    written = events.read_bytes()
    for tag in ("train/loss", "train/seconds", "valid/NDCG_10", "relative_smoothness"):
        assert tag.encode() in written


def test_plain_lines_where_there_is_no_terminal(capsys):
    with open_log(progress=True, label="seed 1") as log:
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
    with open_log(progress=True, label="adamw", start=1) as log:
        tell(log, 1, 4)
    last = terminal.getvalue().rsplit("\r", 1)[-1]
    assert "adamw: 100%" in last and "4/4" in last
    assert "loss=1.5000" in last and "NDCG@10=0.2500" in last


def test_silent_when_told_so(capsys):
    with open_log() as log:
        tell(log, 0, 2)
    assert capsys.readouterr() == ("", "")
