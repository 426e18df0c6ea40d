"""Where the bytes of a log come from: files, compressed ones, and standard input."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sevo_jax._messages import listed

# A log is compressed to a fifth, a monotonous one to a thirtieth. What expands further
# is no log, and would fill the memory.
_LARGEST_EXPANSION = 100
_ALWAYS_FITS = 2**26
_CHUNK = 2**22
_OTHER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)

# What no text of a log begins with.
_BEGINNINGS: dict[str, bytes | tuple[bytes, ...]] = {
    "gzip": b"\x1f\x8b\x08",
    "bzip2": (*(b"BZh%d1AY&SY" % level for level in range(1, 10)),),
    "xz": b"\xfd7zXZ\0",
    "Zstandard": b"(\xb5/\xfd",
    "zip": b"PK\3\4",
    "Parquet": b"PAR1\x15",
}


@dataclass(frozen=True)
class Source:
    """A file, by its path; "-" is standard input.

    Attributes:
      path: the path, which messages begin with.
    """

    path: str | os.PathLike

    @property
    def is_stdin(self) -> bool:
        """Whether the bytes come from standard input."""
        return os.fspath(self.path) == "-"

    @property
    def where(self) -> str:
        """What messages begin with."""
        return "standard input" if self.is_stdin else os.fspath(self.path)

    @property
    def name(self) -> str:
        """The file's name without its endings, which the log is called by."""
        return "stdin" if self.is_stdin else self._unpacked.stem

    @cached_property
    def ending(self) -> str:
        """The ending that tells the format, in lower case, such as ".csv"."""
        member = ""
        if self.packing == ".zip":
            with self._opened() as file:
                member = Path(file.name).suffix
        return (member or self._unpacked.suffix).lower()

    @property
    def packing(self) -> str:
        """The ending of a compressed file, such as ".gz"; otherwise empty."""
        ending = Path(self.path).suffix.lower()
        return ending if ending in _UNPACKERS else ""

    @property
    def _unpacked(self) -> Path:
        path = Path(self.path)
        return path.with_suffix("") if self.packing else path

    def read(self) -> bytes:
        """Returns the content, unpacked.

        Raises:
          OSError: the file cannot be read.
          ValueError: it is damaged, or expands beyond all measure.
        """
        if self.is_stdin:
            return sys.stdin.buffer.read()
        if not self.packing:
            return Path(self.path).read_bytes()
        most = max(_ALWAYS_FITS, _LARGEST_EXPANSION * os.path.getsize(self.path))
        content = io.BytesIO()
        with self._opened() as file:
            while chunk := file.read(_CHUNK):
                content.write(chunk)
                if content.tell() > most:
                    break
        if content.tell() > most:
            raise ValueError(
                f"{self.where}: the file expands to more than {_LARGEST_EXPANSION} "
                "times its size, which a log does not: unpack it first if it is one"
            )
        return content.getvalue()

    def text(self) -> bytes:
        """Returns the content without byte order mark, lines ending in a line feed.

        Raises:
          OSError: the file cannot be read.
          ValueError: it is damaged or empty, or expands beyond all measure.
        """
        data = self.read().removeprefix(codecs.BOM_UTF8)
        if data.startswith(_OTHER_MARKS):
            raise ValueError(
                f"{self.where}: the text is UTF-16 or UTF-32: convert it to UTF-8"
            )
        for name, beginning in _BEGINNINGS.items():
            if data.startswith(beginning):
                raise ValueError(
                    f"{self.where}: the content is {name}, no text: unpack it, or "
                    "give the file the ending of what it is"
                )
        if b"\r" in data and b"\n" not in data:
            data = data.replace(b"\r", b"\n")
        if not data or data.isspace():
            raise ValueError(f"{self.where}: the file is empty")
        return data

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        """The unpacked content as a file, whose errors all name the file."""
        try:
            _, opened = _UNPACKERS[self.packing]
            with opened(self.path) as file:
                yield file
        except (FileNotFoundError, PermissionError, MemoryError):
            raise
        except Exception as error:  # Unpackers raise a dozen types.
            kind, _ = _UNPACKERS[self.packing]
            raise ValueError(f"{self.where}: broken {kind} file ({error})") from error


@contextlib.contextmanager
def _open_zip(path: str | os.PathLike) -> Iterator[Any]:
    with zipfile.ZipFile(path) as archive:
        members = [
            name
            for name in archive.namelist()
            if not name.endswith("/") and not name.startswith("__MACOSX/")
        ]
        if len(members) != 1:
            raise ValueError(
                f"it holds {len(members)} files ({listed(members)}): unpack it and "
                "name one"
            )
        with archive.open(members[0]) as file:
            yield file


@contextlib.contextmanager
def _open_zst(path: str | os.PathLike) -> Iterator[Any]:
    import pyarrow

    with open(path, "rb") as file, pyarrow.CompressedInputStream(file, "zstd") as text:
        yield text


_UNPACKERS: dict[
    str, tuple[str, Callable[[Any], contextlib.AbstractContextManager[Any]]]
]
_UNPACKERS = {
    ".gz": ("gzip", gzip.open),
    ".bz2": ("bzip2", bz2.open),
    ".xz": ("xz", lzma.open),
    ".zst": ("Zstandard", _open_zst),
    ".zip": ("zip", _open_zip),
}
