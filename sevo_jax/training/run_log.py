"""Progress output of a run: JSON lines, TensorBoard, and lines or a bar."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensorboardX import summary
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter
from tqdm import tqdm

from sevo_jax._files import naming, replace_text
from sevo_jax.training.folder import RunFolder

if TYPE_CHECKING:
    from sevo_jax.training.run import Progress


# Its classes are made as it is imported.
_events: Any = event_pb2

OnRecord = Callable[[Mapping[str, Any]], object]


class RunLog:
    """Passes each epoch and evaluation of a run on to its outputs.

    Args:
      folder: gets the metrics as JSON lines and for TensorBoard; None writes no files.
      progress: how far the run has come. What a killed process wrote of later epochs,
        which a resumed one repeats, is dropped.
      epochs: epoch that the run ends at.
      selection: the validation metric to show.
      show: whether to show progress on standard error: a bar on a terminal, a line an
        evaluation otherwise.
      label: what to call the run there.
      on_record: is called with each line of the metrics; see `Trainer.run`.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        progress: Progress,
        *,
        epochs: int,
        selection: str,
        show: bool,
        label: str,
        on_record: OnRecord | None = None,
    ):
        self._stack = ExitStack()
        self._outputs: list[JsonLines | TensorBoard | Bar | Lines | Callback] = []
        if folder is not None:
            self._outputs += [
                JsonLines(folder.metrics, progress),
                TensorBoard(folder.tensorboard, progress),
            ]
        self._show = show
        for note in progress.notes:
            self.note(note)
        if show:
            kind = Bar if sys.stderr.isatty() else Lines
            self._outputs.append(kind(progress.epoch, epochs, selection, label))
        if on_record is not None:
            self._outputs.append(Callback(on_record))
        for output in self._outputs:
            self._stack.callback(output.close)

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

    def note(self, text: str) -> None:
        """Shows an entry of `RunResult.notes`."""
        if self._show:
            tqdm.write(text, file=sys.stderr)

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """Writes an evaluation: an entry of `RunResult.history`."""
        for output in self._outputs:
            output.evaluation(record)


class JsonLines:
    """Writes one JSON object a line, each to the file before the run goes on."""

    def __init__(self, path: Path, progress: Progress):
        lines = "".join(json.dumps(line) + "\n" for line in _lines(progress))
        replace_text(path, lines)
        self._path, self._file = path, path.open("a", encoding="utf-8")

    def train(
        self, epoch: int, loss: float, seconds: float, parts: Mapping[str, float]
    ) -> None:
        self._write(_train_line(epoch, loss, seconds, parts))

    def evaluation(self, record: Mapping[str, Any]) -> None:
        self._write(_evaluation_line(record))

    def close(self) -> None:
        self._file.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        with naming(self._path):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()


class Callback:
    """Calls a function of the user's with each JSON object as it is made."""

    def __init__(self, on_record: OnRecord):
        self._on_record = on_record

    def train(
        self, epoch: int, loss: float, seconds: float, parts: Mapping[str, float]
    ) -> None:
        self._on_record(_train_line(epoch, loss, seconds, parts))

    def evaluation(self, record: Mapping[str, Any]) -> None:
        self._on_record(_evaluation_line(record))

    def close(self) -> None:
        pass


class TensorBoard:
    """Writes scalars for TensorBoard, over the epoch as step."""

    def __init__(self, directory: Path, progress: Progress):
        self._directory = directory
        with naming(directory):
            directory.mkdir(parents=True, exist_ok=True)
            # Not by a SummaryWriter: of a full disk its thread dies, and who writes
            # next waits for it for ever.
            name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
            self._records = RecordWriter(str(directory / name))
        self._write(progress.epoch, file_version="brain.Event:2")
        # TensorBoard drops what there is of later epochs, and of this one.
        start = _events.SessionLog(status=_events.SessionLog.START)
        self._write(progress.epoch, session_log=start)
        if progress.evaluated:
            self.evaluation(progress.history[-1])

    def train(
        self, epoch: int, loss: float, seconds: float, parts: Mapping[str, float]
    ) -> None:
        values = {"loss": loss, **parts, "seconds": seconds}
        self._scalars(epoch, {f"train/{name}": x for name, x in values.items()})

    def evaluation(self, record: Mapping[str, Any]) -> None:
        # TensorBoard does not take an "@".
        values = {
            f"valid/{name.replace('@', '_')}": value
            for name, value in record["valid"].items()
        }
        for name in ("smoothness", "relative_smoothness"):
            if record[name] is not None:
                values[name] = record[name]
        self._scalars(record["epoch"], values)

    def close(self) -> None:
        with naming(self._directory):
            self._records.close()

    def _scalars(self, epoch: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._write(epoch, summary=summary.scalar(name, value))
        with naming(self._directory):
            self._records.flush()

    def _write(self, epoch: int, **content: Any) -> None:
        with naming(self._directory):
            event = _events.Event(wall_time=time.time(), step=epoch, **content)
            self._records.write(event.SerializeToString())


class Bar:
    """A bar with loss, a validation metric, epochs a second and time left."""

    def __init__(self, start: int, epochs: int, selection: str, label: str):
        self._bar = tqdm(
            total=epochs,
            initial=start,
            desc=label or None,
            unit="epoch",
            file=sys.stderr,
            dynamic_ncols=True,
        )
        self._selection = selection
        self._shown: dict[str, str] = {}

    def train(
        self, epoch: int, loss: float, seconds: float, parts: Mapping[str, float]
    ) -> None:
        self._shown["loss"] = f"{loss:.4f}"
        self._bar.set_postfix(self._shown, refresh=False)
        self._bar.update()

    def evaluation(self, record: Mapping[str, Any]) -> None:
        self._shown[self._selection] = f"{record['valid'][self._selection]:.4f}"
        self._bar.set_postfix(self._shown)

    def close(self) -> None:
        self._bar.close()


class Lines:
    """A plain line an evaluation."""

    def __init__(self, start: int, epochs: int, selection: str, label: str):
        self._start = start
        self._epochs = epochs
        self._selection = selection
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
        text += f"  valid {self._selection} {record['valid'][self._selection]:.4f}"
        if epoch > self._start:
            pace = (time.perf_counter() - self._began) / (epoch - self._start)
            left = pace * (self._epochs - epoch)
            text += f"  {pace:.2f} s/epoch  {left:.0f} s left"
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


def _lines(progress: Progress) -> Iterator[dict[str, Any]]:
    """What a run that has come so far has written."""
    evaluations = {record["epoch"]: record for record in progress.history}
    for epoch in range(progress.epoch + 1):
        if epoch in evaluations:
            yield _evaluation_line(evaluations[epoch])
        if epoch < progress.epoch:
            yield _train_line(
                epoch,
                progress.losses[epoch],
                progress.epoch_seconds[epoch],
                progress.parts[epoch],
            )


def _train_line(
    epoch: int, loss: float, seconds: float, parts: Mapping[str, float]
) -> dict[str, Any]:
    line = {"kind": "train", "epoch": epoch, "loss": loss, "seconds": seconds}
    return {**line, "parts": dict(parts)} if parts else line


def _evaluation_line(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": "evaluation", **record}
