"""The paper's data sets by name: where they come from, and how they become logs."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from sevo_jax._files import replacing
from sevo_jax.data.filtering import k_core
from sevo_jax.data.log import InteractionLog
from sevo_jax.data.readers import read
from sevo_jax.data.writers import write

_AMAZON = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
_AMAZON_TERMS = (
    "Amazon reviews of 1996 to 2014, collected by J. McAuley; for research, not to be "
    "redistributed, please cite R. He and J. McAuley, Ups and downs, WWW 2016"
)
_BLOCK = 2**20


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Attributes:
      address: of the raw file.
      terms: what its makers ask for.
      users: how many the log has in the end. With `items` and `interactions` it says
        that the file is the one that it should be.
      items: likewise.
      interactions: likewise.
      member: the file in an archive that has the interactions.
      md5: of the raw file, where its makers give it.
    """

    address: str
    terms: str
    users: int
    items: int
    interactions: int
    member: str | None = None
    md5: str | None = None


SOURCES = {
    "beauty": Source(
        f"{_AMAZON}/reviews_Beauty_5.json.gz", _AMAZON_TERMS, 22363, 12101, 198502
    ),
    "toys": Source(
        f"{_AMAZON}/reviews_Toys_and_Games_5.json.gz",
        _AMAZON_TERMS,
        19412,
        11924,
        167597,
    ),
    "tools": Source(
        f"{_AMAZON}/reviews_Tools_and_Home_Improvement_5.json.gz",
        _AMAZON_TERMS,
        16638,
        10217,
        134476,
    ),
    "ml-1m": Source(
        "https://files.grouplens.org/datasets/movielens/ml-1m.zip",
        "MovieLens 1M of GroupLens, University of Minnesota; for research, not to be "
        "redistributed, please cite F. M. Harper and J. A. Konstan, The MovieLens "
        "datasets, TiiS 2015",
        6040,
        3416,
        999611,
        member="ml-1m/ratings.dat",
        md5="c4d9eecfca2ab87c1945afe126590906",
    ),
}
"""The data sets of the paper, by name."""


def find_source(name: str) -> Source:
    """The source of a data set.

    Raises:
      ValueError: if there is none of the name.
    """
    if name not in SOURCES:
        raise ValueError(f"data set {name!r}: choose from {', '.join(SOURCES)}")
    return SOURCES[name]


def fetch(
    name: str,
    folder: str | os.PathLike[str],
    *,
    source: str | os.PathLike[str] | None = None,
) -> Path:
    """Makes a data set of the paper from its raw file, which is downloaded.

    The raw file is kept in the folder; what is there of an interrupted download is
    gone on from. The log is its 5-core in the order of time, with the original ids.
    Reviews of the same day are in the order of the file, which may differ from that of
    other copies of these data; users, items and interactions are those of the paper.

    Args:
      name: one of `SOURCES`.
      folder: where to write the raw file and the log, ``NAME.txt``.
      source: a folder, or the address of one, that has the raw file, instead of its
        makers' site.

    Returns:
      The path of the log, for :func:`read`.

    Raises:
      ValueError: if there is no such data set, or the file is not the one that it
        should be.
      OSError: if it cannot be downloaded or written.
    """
    about, folder = find_source(name), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    raw = folder / about.address.rpartition("/")[2]
    if not raw.exists():
        _obtain(about, raw, source)
    if about.md5 is not None:
        with raw.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != about.md5:
            raise ValueError(
                f"{raw} has the MD5 sum {found}, not {about.md5}: remove it and fetch "
                "it again"
            )
    log = _core(raw, about)
    sizes = log.num_users, log.num_items, log.num_interactions
    expected = about.users, about.items, about.interactions
    if sizes != expected:
        raise ValueError(
            f"{raw} gives {sizes} users, items and interactions, not {expected}: "
            "remove it and fetch it again"
        )
    path = folder / f"{name}.txt"
    write(log, path)
    return path


def _core(raw: Path, about: Source) -> InteractionLog:
    """The 5-core of the interactions in a raw file."""
    try:
        if about.member is None:
            return k_core(read(raw), 5)
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(raw) as archive:
            return k_core(read(archive.extract(about.member, folder)), 5)
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{raw} is damaged or another file ({error}): remove it and fetch it again"
        ) from error


def _obtain(about: Source, raw: Path, source: str | os.PathLike[str] | None) -> None:
    """Copies or downloads the raw file, which appears whole or not at all."""
    part = raw.with_name(f"{raw.name}.part")
    address = about.address
    if source is not None:
        if not os.fspath(source).startswith(("http://", "https://")):
            if not (Path(source) / raw.name).is_file():
                raise FileNotFoundError(
                    f"{Path(source) / raw.name} is not there: download it from "
                    f"{about.address}"
                )
            with replacing(raw) as temporary:
                shutil.copyfile(Path(source) / raw.name, temporary)
            return
        address = f"{os.fspath(source).rstrip('/')}/{raw.name}"
    try:
        _download(address, part)
    except (OSError, http.client.HTTPException) as error:
        # Of a file, not of the connection.
        if isinstance(error, OSError) and error.filename is not None:
            raise
        reason = getattr(error, "reason", error)
        raise OSError(
            f"{address} cannot be fetched ({reason}): try again, which goes on from "
            f"what is there, or give a folder that has {raw.name} as the source"
        ) from error
    os.replace(part, raw)


def _download(address: str, part: Path) -> None:
    """Downloads a file, on from what is there of it."""
    # An extra has it; logs are read without one.
    from tqdm import tqdm

    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(address)
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if not have or error.code != 416:
            raise
        # There is nothing after what is there: it is whole, or of another file.
        if error.headers.get("Content-Range") != f"bytes */{have}":
            part.unlink()
            _download(address, part)
        return
    with response:
        goes_on = response.status == 206
        size = int(response.headers.get("Content-Length") or 0)
        bar = tqdm(
            total=size + have * goes_on or None,
            initial=have * goes_on,
            desc=part.stem,
            unit="B",
            unit_scale=True,
            leave=False,
            disable=None,
        )
        written = 0
        with part.open("ab" if goes_on else "wb") as file, bar:
            while block := response.read(_BLOCK):
                written += file.write(block)
                bar.update(len(block))
    if size and written < size:
        raise ConnectionError(f"the connection broke after {written} of {size} bytes")
