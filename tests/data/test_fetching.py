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

    def do_GET(self):
        data = Path(self.translate_path(self.path)).read_bytes()
        wanted = self.headers["Range"]
        self.asked.append(wanted)
        start = int(re.findall(r"\d+", wanted)[0]) if wanted else 0
        if start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:])

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
