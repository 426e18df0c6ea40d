"""Files that are replaced in one step and on the disk, and folders of one writer."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

_LOCK = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A file name beside `path` that takes its place if the block succeeds.

    Raises:
      OSError: naming `path`, if the file cannot be written.
    """
    path = Path(path)
    # Of its own, for two processes may write the same file.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with naming(path):
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_folder(path: str | os.PathLike[str]) -> None:
    """Refuses what is to be written where there is no folder, before the work for it.

    Raises:
      FileNotFoundError: naming both.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"cannot save {path}: there is no folder {path.parent}, create it first"
        )


def replace_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` to `path`, in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Makes an `OSError` of the block name `path`, which the user knows."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def sync(path: str | os.PathLike[str]) -> None:
    """Waits until a file, or the list of what is in a directory, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[Callable[[], None]]:
    """Makes `folder`, and keeps all others out of the block until it ends.

    The lock ends with the process, however that ends; its file stays.

    Returns:
      A function that raises `FileNotFoundError` once the folder has been removed, or
      another is in its place.

    Raises:
      FileExistsError: if another process, or this one, has it already.
    """
    # Only POSIX has it, and only who trains needs it.
    import fcntl

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _LOCK, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(
                f"{folder} is in use by another run: wait for its end, or choose "
                "another directory"
            ) from None
        except OSError as error:
            # Some file systems of clusters have no locks.
            if error.errno not in _NO_LOCKS:
                raise

        def check() -> None:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(folder / _LOCK), os.fstat(file.fileno())):
                    return
            raise FileNotFoundError(
                f"{folder} has been removed while a run was writing to it"
            )

        yield check


def parquet_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Returns the Parquet files of a folder and of those in it, in no order.

    What is hidden is no data: `_temporary` and `.spark-staging` hold what was not
    finished, `_delta_log` what is said of the files.
    """
    return [
        file
        for file in Path(folder).rglob("*")
        if file.suffix.lower() == ".parquet"
        and not any(
            part.startswith(("_", ".")) for part in file.relative_to(folder).parts
        )
        and file.is_file()
    ]


def is_empty(folder: str | os.PathLike[str]) -> bool:
    """Whether nothing is in a directory but a lock that somebody has left."""
    return all(path.name == _LOCK for path in Path(folder).iterdir())
