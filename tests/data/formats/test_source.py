"""Files, compressed ones, standard input; damage to them."""

import bz2
import gzip
import io
import lzma
import random
import sys
import zipfile

import pyarrow
import pytest
from pyarrow import parquet

from sevo_jax.data import read
from sevo_jax.data.formats import source

CSV = "user,item,time\n1,b,20\n2,c,5\n1,a,10\n"
EXPECTED = {1: ["a", "b"], 2: ["c"]}


def zipped(data, *names):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name in names:
            file.writestr(name, data)
    return archive.getvalue()


PACK = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pyarrow.Codec("zstd").compress(data, asbytes=True),
    "zip": lambda data: zipped(data, "log.csv"),
}


@pytest.mark.parametrize("packing", PACK)
def test_packed_files(file, as_lists, packing):
    data = PACK[packing](CSV.encode())
    for name in (f"log.csv.{packing}", f"LOG.CSV.{packing.upper()}"):
        log = read(file(name, data))
        assert as_lists(log) == EXPECTED
        assert log.name.lower() == "log"
    # Packed twice over, as tools do that append.
    if packing != "zip":
        log = read(file(f"log.txt.{packing}", PACK[packing](b"1 2\n") * 2))
        assert log.num_interactions == 2


def test_the_file_in_a_zip_tells_its_format(file, as_lists, fails):
    junk = ("log.csv", "folder/", "__MACOSX/._log.csv")
    for names in (("data/log.csv",), junk):
        assert as_lists(read(file("ml-1.5.zip", zipped(CSV, *names)))) == EXPECTED
    log = read(file("ml-1.5.csv.zip", zipped(CSV, "-")))
    assert as_lists(log) == EXPECTED and log.name == "ml-1.5"
    path = file("ml.zip", zipped(CSV, "a.csv", "b.csv"))
    fails(lambda: read(path), "ml.zip: ", "2 files (a.csv, b.csv): unpack it")
    path = file("ml.zip", zipped(CSV, "log.exe"))
    fails(lambda: read(path), "ml.zip: ", "'.exe' belongs to no format", "--format")


def test_parquet_may_be_packed(tmp_path, as_lists):
    from pyarrow import csv

    path = tmp_path / "log.parquet"
    parquet.write_table(csv.read_csv(io.BytesIO(CSV.encode())), path)
    packed = tmp_path / "log.parquet.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert as_lists(read(packed)) == EXPECTED


@pytest.mark.parametrize("name", ["log.csv", "log.txt", "log.jsonl", "log.csv.gz"])
def test_content_of_another_kind_is_named(file, fails, name):
    table = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table({"user": [1], "item": [2]}), table)
    contents = {packing: pack(CSV.encode()) for packing, pack in PACK.items()}
    contents["parquet"] = table.getvalue().to_pybytes()
    kinds = ["gzip", "bzip2", "xz", "Zstandard", "zip", "Parquet"]
    for kind, content in zip(kinds, contents.values(), strict=True):
        content = gzip.compress(content) if name.endswith(".gz") else content
        path = file(name, content)
        fails(lambda: read(path), f"{name}: the content is {kind}, no text")


def test_upper_case_endings(file, as_lists):
    for name in ("LOG.CSV", "log.Csv"):
        assert as_lists(read(file(name, CSV))) == EXPECTED
    assert as_lists(read(file("LOG.TXT", "1 a b\n2 c\n"))) == EXPECTED


def test_standard_input(monkeypatch, as_lists, fails):
    def pipe(text):
        stream = io.TextIOWrapper(io.BytesIO(text.encode()))
        monkeypatch.setattr(sys, "stdin", stream)

    pipe(CSV)
    log = read("-", format="csv")
    assert as_lists(log) == EXPECTED and log.name == "stdin"
    pipe("1 a b\n2 c\n")
    assert as_lists(read("-", format="sequences")) == EXPECTED
    pipe("user,item\n1\n")
    fails(lambda: read("-", format="csv"), "standard input:2: 1 fields")
    fails(lambda: read("-"), "standard input: ", "--format")


@pytest.mark.parametrize("packing", PACK)
def test_damaged_packed_files(file, packing):
    """Every flipped bit and every cut end: the log, or one line that names the file."""
    rng = random.Random(0)
    text = CSV + "".join(f"{i % 7},{i % 11},{i}\n" for i in range(300))
    whole = PACK[packing](text.encode())
    expected = read(file(f"log.csv.{packing}", whole)).num_interactions
    refused = 0
    for trial in range(150):
        damaged = bytearray(whole)
        if trial % 3:
            for _ in range(rng.choice([1, 1, 5])):
                damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        else:
            del damaged[rng.randrange(len(whole)) :]
        path = file(f"log.csv.{packing}", bytes(damaged))
        try:
            log = read(path)
        except ValueError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            # A checksum, if there is one, lets nothing pass but what changes nothing.
            assert packing == "zst" or log.num_interactions == expected
    assert refused > 75


@pytest.mark.parametrize("packing", PACK)
def test_what_is_not_packed(file, fails, packing):
    for content in (CSV, "", "\0"):
        path = file(f"log.csv.{packing}", content)
        fails(lambda: read(path), f"log.csv.{packing}: ")


@pytest.mark.parametrize("packing", PACK)
def test_what_expands_beyond_measure(file, fails, monkeypatch, packing):
    monkeypatch.setattr(source, "_ALWAYS_FITS", 2**20)
    monkeypatch.setattr(source, "_CHUNK", 2**16)
    data = PACK[packing](b"1" * 2**23)
    path = file(f"log.txt.{packing}", data)
    fails(
        lambda: read(path, format="sequences"),
        f"log.txt.{packing}: the file expands to more than 100 times its size",
    )
    # What is small or expands less is read, however monotonous.
    text = b"1,2\n" * 2**17
    assert (
        read(file(f"log.csv.{packing}", PACK[packing](text)), user=0, item=1).num_users
        == 1
    )


def test_the_systems_own_errors(tmp_path):
    for name in ("none.csv", "none.csv.gz", "none.zip", "none.parquet", "none.json"):
        with pytest.raises(FileNotFoundError) as caught:
            read(tmp_path / name)
        assert name in str(caught.value)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ValueError, match="a folder without Parquet files"):
        read(tmp_path / "folder.csv")


def test_other_encodings(file, fails):
    for encoding in ("utf-16", "utf-32"):
        path = file("log.csv", CSV.encode(encoding))
        fails(lambda: read(path), "log.csv: ", "convert it to UTF-8")
