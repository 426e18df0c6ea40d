"""Files that are replaced in one step: a reader sees the old content or the new."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A file name beside `path` that takes its place if the block succeeds."""
    path = Path(path)
    # Of its own, for two processes may write the same file.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` to `path`, in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
