"""Progress output of a run: JSON lines, TensorBoard, and lines or a bar."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

from sevo_jax._files import replace_text


class RunLog:
    """Passes each epoch and evaluation of a run on to its outputs.

    Args:
      run_dir: where `metrics.jsonl` and `tensorboard/` go; None writes no files.
      start: epoch that the run starts at. Of later ones, which a killed process
        wrote and a resumed one is to repeat, nothing is kept.
      epochs: epoch that the run ends at.
      progress: whether to show progress on standard error: a bar on a terminal, a
        line an evaluation otherwise.
      label: what to call the run in its progress.
    """

    def __init__(
        self,
        run_dir: Path | None,
        *,
        start: int,
        epochs: int,
        progress: bool,
        label: str,
    ):
        self._stack = ExitStack()
        self._outputs: list[JsonLines | TensorBoard | Bar | Lines] = []
        if run_dir is not None:
            self._outputs += [
                JsonLines(run_dir / "metrics.jsonl", start),
                TensorBoard(run_dir / "tensorboard", start),
            ]
        if progress:
            kind = Bar if sys.stderr.isatty() else Lines
            self._outputs.append(kind(start, epochs, label))
        for output in self._outputs:
            self._stack.callback(output.close)

    @classmethod
    def silent(cls) -> RunLog:
        """A log without outputs."""
        return cls(None, start=0, epochs=0, progress=False, label="")

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def train(
        self, epoch: int, loss: float, seconds: float, parts: Mapping[str, float]
    ) -> None:
        """Writes a trained epoch: number, mean loss, duration and parts of the loss."""
        for output in self._outputs:
            output.train(epoch, loss, seconds, parts)

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """Writes an evaluation: an entry of `RunResult.history`."""
        for output in self._outputs:
            output.evaluation(record)


class JsonLines:
    """Appends one JSON object a line, each on the disk before the run goes on."""

    def __init__(self, path: Path, start: int):
        if path.exists():
            kept = [line for line in _whole_lines(path) if _before(line, start)]
            replace_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def train(
        self, epoch: int, loss: float, seconds: float, parts: Mapping[str, float]
    ) -> None:
        line = {"kind": "train", "epoch": epoch, "loss": loss, "seconds": seconds}
        self._write({**line, "parts": dict(parts)} if parts else line)

    def evaluation(self, record: Mapping[str, Any]) -> None:
        self._write({"kind": "evaluation", **record})

    def close(self) -> None:
        self._file.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


class TensorBoard:
    """Writes scalars for TensorBoard, over the epoch as step."""

    def __init__(self, directory: Path, start: int):
        self._writer = SummaryWriter(str(directory), purge_step=start)

    def train(
        self, epoch: int, loss: float, seconds: float, parts: Mapping[str, float]
    ) -> None:
        self._writer.add_scalar("train/loss", loss, epoch)
        for name, value in parts.items():
            self._writer.add_scalar(f"train/{name}", value, epoch)
        self._writer.add_scalar("train/seconds", seconds, epoch)

    def evaluation(self, record: Mapping[str, Any]) -> None:
        for name, value in record["valid"].items():
            # TensorBoard does not take an "@".
            tag = f"valid/{name.replace('@', '_')}"
            self._writer.add_scalar(tag, value, record["epoch"])
        for name in ("smoothness", "relative_smoothness"):
            if record[name] is not None:
                self._writer.add_scalar(name, record[name], record["epoch"])

    def close(self) -> None:
        self._writer.close()


class Bar:
    """A bar with loss, validation NDCG@10, epochs a second and time left."""

    def __init__(self, start: int, epochs: int, label: str):
        self._bar = tqdm(
            total=epochs,
            initial=start,
            desc=label or None,
            unit="epoch",
            file=sys.stderr,
            dynamic_ncols=True,
        )
        self._shown: dict[str, str] = {}

    def train(
        self, epoch: int, loss: float, seconds: float, parts: Mapping[str, float]
    ) -> None:
        self._shown["loss"] = f"{loss:.4f}"
        self._bar.set_postfix(self._shown, refresh=False)
        self._bar.update()

    def evaluation(self, record: Mapping[str, Any]) -> None:
        self._shown["NDCG@10"] = f"{record['valid']['NDCG@10']:.4f}"
        self._bar.set_postfix(self._shown)

    def close(self) -> None:
        self._bar.close()


class Lines:
    """A plain line an evaluation."""

    def __init__(self, start: int, epochs: int, label: str):
        self._start = start
        self._epochs = epochs
        self._prefix = f"{label}: " if label else ""
        self._began = time.perf_counter()

    def train(
        self, epoch: int, loss: float, seconds: float, parts: Mapping[str, float]
    ) -> None:
        pass

    def evaluation(self, record: Mapping[str, Any]) -> None:
        epoch, loss = record["epoch"], record["loss"]
        text = f"{self._prefix}epoch {epoch}/{self._epochs}"
        if loss is not None:
            text += f"  loss {loss:.4f}"
        text += f"  valid NDCG@10 {record['valid']['NDCG@10']:.4f}"
        if epoch > self._start:
            pace = (time.perf_counter() - self._began) / (epoch - self._start)
            left = pace * (self._epochs - epoch)
            text += f"  {pace:.2f} s/epoch  {left:.0f} s left"
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Lines up to the first that a killed process did not finish."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def _before(line: Mapping[str, Any], start: int) -> bool:
    # An evaluation comes before the training of the epoch it is numbered by, and
    # the checkpoint between the two.
    if line["kind"] == "evaluation":
        return line["epoch"] <= start
    return line["epoch"] < start
