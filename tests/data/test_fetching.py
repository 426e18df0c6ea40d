import contextlib
import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import json
import re
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sevo_jax.cli import main
from sevo_jax.data import fetch, fetching, k_core, planted, read


def rows_of(log):
    """The items of each user."""
    ends = log.sequences.offsets[1:-1]
    return [row.tolist() for row in np.split(log.sequences.values, ends)]


@pytest.fixture
def log():
    return k_core(planted(num_users=60, num_items=30, num_groups=3, seed=1), 5)


@pytest.fixture
def raw(log, tmp_path, monkeypatch):
    """A folder with raw files of a small log, in the place of the real data sets."""
    folder = tmp_path / "raw"
    folder.mkdir()
    lines = [
        {"reviewerID": f"A{user}", "asin": f"B{item}", "unixReviewTime": time}
        for user, row in enumerate(rows_of(log))
        for time, item in enumerate(row)
    ]
    text = "".join(json.dumps(line) + "\n" for line in reversed(lines))
    (folder / "reviews_Beauty_5.json.gz").write_bytes(gzip.compress(text.encode()))
    ratings = "".join(
        f"{x['reviewerID'][1:]}::{x['asin'][1:]}::5::{x['unixReviewTime']}\n"
        for x in lines
    )
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("ml-1m/README", "-")
        file.writestr("ml-1m/ratings.dat", ratings)
    (folder / "ml-1m.zip").write_bytes(archive.getvalue())
    sizes = dict(
        users=log.num_users, items=log.num_items, interactions=log.num_interactions
    )
    for name, source in fetching.SOURCES.items():
        if source.md5 is not None:
            sizes["md5"] = hashlib.md5(archive.getvalue()).hexdigest()
        changed = dataclasses.replace(source, **sizes)
        monkeypatch.setitem(fetching.SOURCES, name, changed)
    return folder


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves files, parts of them too, and notes what it was asked for."""

    asked: list[str | None] = []
    # After how many bytes the connection breaks, and whether parts can be asked for.
    limit, ranges, chunked = 10**9, True, False

    def do_GET(self):
        data = Path(self.translate_path(self.path)).read_bytes()
        wanted = self.headers["Range"]
        self.asked.append(wanted)
        if not self.ranges:
            wanted = None
        start = int(re.findall(r"\d+", wanted)[0]) if wanted else 0
        if start >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if wanted else 200)
        if self.chunked:
            # A piece that is announced larger than it is.
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n" % len(data) + data[start : start + self.limit])
            return
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : start + self.limit])

    def log_message(self, format, *args):
        pass


@contextlib.contextmanager
def serving(folder):
    handler = functools.partial(Server, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        Server.asked.clear()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("name", ["beauty", "ml-1m"])
def test_the_log_is_that_of_the_raw_file(name, raw, log, tmp_path):
    path = fetch(name, tmp_path / "data", source=raw)
    assert path == tmp_path / "data" / f"{name}.txt"
    found = read(path)
    # By number, without the letter.
    items = [str(each).lstrip("B") for each in found.item_ids]
    rows = {
        int(str(user).lstrip("A")): [int(items[item]) for item in row]
        for user, row in zip(found.user_ids, rows_of(found), strict=True)
    }
    assert rows == dict(enumerate(rows_of(log)))


def test_a_download_goes_on_where_it_stopped(raw, tmp_path):
    whole = (raw / "reviews_Beauty_5.json.gz").read_bytes()
    data = tmp_path / "data"
    data.mkdir()
    part = data / "reviews_Beauty_5.json.gz.part"
    with serving(raw) as address:
        for have, wanted in ((0, None), (100, "bytes=100-"), (len(whole), None)):
            part.write_bytes(whole[:have])
            path = fetch("beauty", data, source=address)
            wanted = f"bytes={have}-" if have else None
            assert Server.asked[-1] == wanted
            kept = data / "reviews_Beauty_5.json.gz"
            assert kept.read_bytes() == whole and path.exists()
            assert not part.exists()
            count = len(Server.asked)
            fetch("beauty", data, source=address)
            assert len(Server.asked) == count, "it is there"
            kept.unlink()


@pytest.mark.parametrize("name", ["beauty", "ml-1m"])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks(name, ranges, raw, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Server, "limit", 200)
    monkeypatch.setattr(Server, "ranges", ranges)
    data = tmp_path / "data"
    with serving(raw) as address:
        command = ["data", "fetch", name, "--output", f"{data}", "--source", address]
        for _ in range(2):
            assert main(command) == 2
            error = capsys.readouterr().err.splitlines()[-1]
            assert "connection broke after 200 of" in error
            assert [path.suffix for path in data.iterdir()] == [".part"]
        monkeypatch.setattr(Server, "limit", 10**9)
        path = fetch(name, data, source=address)
        again = 400 if ranges else 200
        assert Server.asked == [None, "bytes=200-", f"bytes={again}-"]
    (kept,) = set(data.iterdir()) - {path}
    assert kept.read_bytes() == (raw / kept.name).read_bytes()


def test_pieces_that_break_off_are_one_line(raw, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Server, "limit", 50)
    monkeypatch.setattr(Server, "chunked", True)
    with serving(raw) as address:
        command = ["data", "fetch", "toys", "--output", f"{tmp_path}/data"]
        (raw / "reviews_Toys_and_Games_5.json.gz").write_bytes(b"x" * 500)
        assert main([*command, "--source", address]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "cannot be fetched" in error and "try again" in error


def test_what_is_there_may_be_of_another_file(raw, tmp_path):
    whole = (raw / "reviews_Beauty_5.json.gz").read_bytes()
    part = tmp_path / "reviews_Beauty_5.json.gz.part"
    part.write_bytes(whole + b"and more")
    with serving(raw) as address:
        fetch("beauty", tmp_path, source=address)
        assert Server.asked == [f"bytes={len(whole) + 8}-", None]
    assert (tmp_path / "reviews_Beauty_5.json.gz").read_bytes() == whole


@pytest.mark.parametrize("name", ["beauty", "ml-1m"])
def test_a_damaged_file_is_refused_with_the_remedy(name, raw, tmp_path, monkeypatch):
    source = dataclasses.replace(fetching.SOURCES[name], md5=None)
    monkeypatch.setitem(fetching.SOURCES, name, source)
    path = raw / source.address.rpartition("/")[2]
    data = path.read_bytes()
    middle = len(data) // 2
    for number, bad in enumerate(
        (data[:-30], data[:middle] + b"\0" * 9 + data[middle + 9 :], b"<html>")
    ):
        path.write_bytes(bad)
        folder = tmp_path / f"data{number}"
        with pytest.raises(ValueError, match="remove it and fetch it again"):
            fetch(name, folder, source=raw)
        assert [each.name for each in folder.iterdir()] == [path.name]


def test_a_source_without_the_file_says_where_it_is(raw, tmp_path):
    (raw / "ml-1m.zip").unlink()
    for source in (raw, tmp_path / "absent"):
        with pytest.raises(FileNotFoundError, match="is not there: download .*groupl"):
            fetch("ml-1m", tmp_path / "data", source=source)


def test_equal_times_keep_the_order_of_the_file(raw, tmp_path, monkeypatch):
    pairs = [(user, (3 * i + user) % 5) for i in range(5) for user in range(5)]
    lines = [
        json.dumps({"reviewerID": f"A{u}", "asin": f"B{i}", "unixReviewTime": 7})
        for u, i in pairs
    ]
    text = "\n".join(lines).encode()
    (raw / "reviews_Beauty_5.json.gz").write_bytes(gzip.compress(text))
    small = dataclasses.replace(
        fetching.SOURCES["beauty"], users=5, items=5, interactions=25
    )
    monkeypatch.setitem(fetching.SOURCES, "beauty", small)
    found = read(fetch("beauty", tmp_path / "data", source=raw))
    row = rows_of(found)[2]
    assert found.item_ids[row].tolist() == [f"B{i}" for u, i in pairs if u == 2]


def test_offline_it_says_what_to_do_in_one_line(raw, tmp_path, capsys):
    command = ["data", "fetch", "beauty", "--output", f"{tmp_path / 'data'}"]
    # Nobody listens there.
    assert main([*command, "--source", "http://127.0.0.1:9"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "http://127.0.0.1:9/reviews_Beauty_5.json.gz cannot be fetched" in line
    assert "give a folder that has reviews_Beauty_5.json.gz" in line
    assert not list((tmp_path / "data").glob("*.txt"))


def test_another_file_is_refused(raw, tmp_path):
    (raw / "ml-1m.zip").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="MD5 sum .*: remove it and fetch it again"):
        fetch("ml-1m", tmp_path / "data", source=raw)
    text = '{"reviewerID": "a", "asin": "b", "unixReviewTime": 1}\n'
    lines = "".join(
        text.replace('"a"', f'"{u}"').replace('"b"', f'"{i}"')
        for u in range(6)
        for i in range(6)
    )
    (raw / "reviews_Beauty_5.json.gz").write_bytes(gzip.compress(lines.encode()))
    with pytest.raises(ValueError, match=r"gives \(6, 6, 36\) users, items"):
        fetch("beauty", tmp_path / "data", source=raw)
    assert not list((tmp_path / "data").glob("*.txt"))
    with pytest.raises(ValueError, match="data set 'books': choose from beauty, toys"):
        fetch("books", tmp_path)


def test_the_command_writes_the_log_and_names_the_terms(raw, log, tmp_path, capsys):
    command = ["data", "fetch", "beauty", "--output", f"{tmp_path}"]
    assert main([*command, "--source", f"{raw}"]) == 0
    shown = capsys.readouterr()
    assert "cite R. He and J. McAuley" in shown.err
    assert f"{tmp_path / 'beauty.txt'}" in shown.out
    assert f"{log.num_interactions:,}" in shown.out
