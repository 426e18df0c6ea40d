"""Graphs from files and from attributes, through the commands that train."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from sevo_jax import graphs
from sevo_jax.cli import _graph_files, main
from sevo_jax.data import leave_one_out, planted, read, write
from sevo_jax.training import GraphConfig, load

SMALL = "--model mf-bpr --width 4 --batch-size 256 --eval-every 1".split()


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "tiny.txt"
    write(planted(num_users=60, num_items=40, num_groups=4, seed=1), path)
    return path


def sevo(*args):
    return main([str(arg) for arg in args])


@pytest.fixture(scope="module")
def files(log):
    """Graphs of the items, of the users and items, of the users, and one too large."""
    folder = log.parent
    graph = ["graph", "--data", log, "--recipe"]
    assert sevo(*graph, "mf-bpr-synthetic", "--output", folder / "items.npz") == 0
    assert sevo(*graph, "mf-bpr-ui-toys", "--output", folder / "both.npz") == 0
    assert sevo(*graph, "sasrec-synthetic", "--output", folder / "padded.npz") == 0
    rng = np.random.default_rng(0)
    walk = [rng.permutation(60).tolist()]
    graphs.save(folder / "users.npz", graphs.cooccurrence(walk, 60))
    return folder


def train(log, output, *args, epochs=2):
    return sevo(
        "train", "--data", log, "--output", output, "--epochs", epochs, *SMALL, *args
    )


def result_of(run):
    return json.loads((run / "result.json").read_text())


def fails(capsys, status, *parts):
    assert status == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("sevo-jax: error: ")
    for part in parts:
        assert str(part) in line


@pytest.fixture(scope="module")
def plain(log, tmp_path_factory):
    """A run over the graph that its recipe builds."""
    run = tmp_path_factory.mktemp("plain") / "run"
    assert train(log, run) == 0
    return run


def test_a_saved_graph_trains_goes_on_and_is_served(
    log, files, plain, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    monkeypatch.chdir(files)
    assert train(log, run, "--graph", "items.npz", epochs=1) == 0
    # It is the graph that the recipe builds, and remembered wherever the run goes on.
    monkeypatch.chdir(tmp_path)
    assert train(log, run, "--resume") == 0
    for key in ("losses", "valid", "test"):
        assert result_of(run)[key] == result_of(plain)[key]
    identity = json.loads((run / "run.json").read_text())
    assert list(identity["graphs"]) == ["item_embedding"]
    assert "graphs" not in json.loads((plain / "run.json").read_text())
    assert sevo("evaluate", run) == 0
    assert sevo("recommend", run, "--top", 1) == 0
    capsys.readouterr()
    more = train(log, run, "--resume", "--graph", files / "both.npz", epochs=3)
    fails(capsys, more, "both.npz: item_embedding", "has 40 rows", "has 100 nodes")
    other = tmp_path / "other.npz"
    graphs.save(other, graphs.cooccurrence([[*range(40)]], 40))
    more = train(log, run, "--resume", "--graph", other, epochs=3)
    fails(capsys, more, "graphs.item_embedding was", "another run")
    more = train(log, plain, "--resume", "--graph", files / "items.npz", epochs=3)
    fails(capsys, more, "graphs.item_embedding was", "another run")


def test_a_graph_of_another_log_is_refused(log, files, tmp_path, capsys):
    renamed = tmp_path / "renamed.csv"
    rows = zip(*(ids.tolist() for ids in read(log).to_columns()))
    lines = [f"{user},{int(item) * 7 % 41},{at}" for user, item, at in rows]
    renamed.write_text("\n".join(["user,item,timestamp", *lines]))
    for graph, what in (("items.npz", "items"), ("both.npz", "items")):
        status = train(renamed, tmp_path / "run", "--graph", files / graph)
        fails(capsys, status, graph, f"it is of other {what}")
    given = ["graph", "--load", files / "items.npz", "--item-offset", 0, "--data"]
    assert sevo(*given, log) == 0
    fails(capsys, sevo(*given, renamed), "items.npz", "it is of other items")


def test_several_graphs_at_once(log, files, tmp_path):
    runs = {name: tmp_path / name for name in ("each", "joint", "kind")}
    users, items = (
        f"{each}_embedding={files}/{each}s.npz" for each in ("user", "item")
    )
    assert train(log, runs["each"], "--graph", users, "--graph", items, epochs=1) == 0
    identity = json.loads((runs["each"] / "run.json").read_text())
    assert sorted(identity["graphs"]) == ["item_embedding", "user_embedding"]
    joint = f"user_embedding+item_embedding={files / 'both.npz'}"
    assert train(log, runs["joint"], "--graph", joint, epochs=1) == 0
    assert train(log, runs["kind"], "--graph.kind", "user-item", epochs=1) == 0
    losses = {name: result_of(run)["losses"] for name, run in runs.items()}
    assert losses["joint"] == losses["kind"] != losses["each"]


def test_compare_takes_and_remembers_it(log, files, tmp_path, capsys):
    output = tmp_path / "both"
    args = ["compare", "--data", log, "--output", output, *SMALL]
    args += ["--optimizers", "adam", "sevo_adam", "--epochs", 1]
    assert sevo(*args, "--seeds", 0, "--graph", files / "items.npz") == 0
    assert sevo(*args, "--seeds", 0, 1, "--resume") == 0
    for name in ("adam-seed0", "sevo_adam-seed0", "sevo_adam-seed1"):
        assert "graphs" in json.loads((output / name / "run.json").read_text())
    capsys.readouterr()
    wrong = sevo(*args, "--resume", "--graph", files / "padded.npz")
    fails(capsys, wrong, "padded.npz: item_embedding", "has 40 rows", "41 nodes")


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["padded.npz"], ["padded.npz: item_embedding", "has 40 rows", "has 41 nodes"]),
        (
            ["item_embedding=users.npz"],
            ["users.npz: item_embedding", "40 rows", "60 nodes"],
        ),
        (["none.npz"], ["none.npz: No such file"]),
        (["tiny.txt"], ["cannot load the graph tiny.txt"]),
        (["item=items.npz"], ["no leaf has 'item'", "item_embedding"]),
        (["items.npz", "users.npz"], ["items.npz, users.npz: give one FILE"]),
        (["items.npz", "user_embedding=users.npz"], ["give one FILE, or NAME=FILE"]),
        (["a=items.npz", "a=users.npz"], ["none twice"]),
        (["=items.npz"], ["--graph is =items.npz: give"]),
        (["a="], ["--graph is a=: give"]),
        (["a+=items.npz"], ["--graph is a+=items.npz: give"]),
        ([], ["--graph is empty: give"]),
        (
            ["items.npz", "--graph.max-hop", "2"],
            ["--graph.max-hop would change nothing"],
        ),
        (
            ["item_embedding=items.npz", "--graph.kind", "user-item"],
            ["--graph.kind would change nothing"],
        ),
    ],
)
def test_what_fits_no_table_is_refused_before_anything_is_written(
    log, files, args, parts, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(files)
    capsys.readouterr()
    fails(capsys, train(log, tmp_path / "run", "--graph", *args), *parts)
    assert not (tmp_path / "run").exists()


def test_files_by_the_names_of_their_tables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = _graph_files.graph_files((("a=x", "b+c=y"), ("d=z",)))
    found = _graph_files.as_graphs(files)
    assert found == {"a": Path("x"), ("b", "c"): Path("y"), "d": Path("z")}
    assert _graph_files.as_graphs(_graph_files.graph_files((("x",),))) == Path("x")
    assert _graph_files.as_graphs(_graph_files.graph_files(())) is None
    # A path may hold the sign.
    os.mkdir("rate=1")
    graphs.save("rate=1/items.npz", graphs.cooccurrence([[0, 1]], 2))
    (found,) = _graph_files.graph_files((("rate=1/items.npz",),)).items()
    assert found[0] == "" and found[1].exists()


def test_a_damaged_note_of_the_graphs(log, plain, tmp_path, capsys):
    note = plain / "data.json"
    text = note.read_text()
    note.write_text(json.dumps({**json.loads(text), "graphs": [1]}))
    try:
        fails(
            capsys, train(log, plain, "--resume"), "note of them is damaged", "--graph"
        )
    finally:
        note.write_text(text)


def test_a_run_over_shared_attributes(log, tmp_path, monkeypatch, capsys):
    split = leave_one_out(read(log))
    genres = {item: [f"genre{item % 5}"] for item in split.log.item_ids.tolist()}
    path = tmp_path / "genres.csv"
    path.write_text("".join(f"{item},{each}\n" for item, (each,) in genres.items()))
    monkeypatch.chdir(tmp_path)
    kind = ["--graph.kind", "attributes", "--graph.attributes"]
    assert train(log, "run", *kind, "genres.csv", epochs=1) == 0
    saved = load("run")
    assert saved.recipe.graph.kind == "attributes" and saved.result is not None

    # The same as over the graph that is made by hand, or by the command.
    numbers = {number: each for number, each in enumerate(genres.values())}
    graphs.save("hand.npz", graphs.shared_attributes(numbers, split.num_items))
    command = ["--data", log, "--kind", "attributes", "--attributes", path]
    command += ["--item-offset", 0, "--output", "command.npz"]
    assert sevo("graph", *command) == 0
    built = graphs.load("command.npz").todense()
    np.testing.assert_array_equal(built, graphs.load("hand.npz").todense())
    assert train(log, "hand", "--graph", "hand.npz", epochs=1) == 0
    assert result_of(tmp_path / "hand")["losses"] == saved.result["losses"]

    # What is in the file belongs to the run; where it is does not.
    (tmp_path / "moved").mkdir()
    path = path.rename(tmp_path / "moved" / "genres.csv")
    assert train(log, "run", *kind, path, "--resume") == 0
    with path.open("a") as file:
        file.write(f"{next(iter(genres))},other\n")
    capsys.readouterr()
    more = train(log, "run", *kind, path, "--resume", epochs=3)
    fails(capsys, more, "graph_files.smoothing was")
    fails(capsys, train(log, "new", *kind, "none.csv"), "none.csv: No such file")
    with pytest.raises(SystemExit):
        train(log, "new", *kind[:2])
    assert "attributes is None" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert GraphConfig("attributes", attributes="genres.csv") == saved.recipe.graph
    # Without the file the run is served.
    path.unlink()
    assert sevo("evaluate", "run") == 0


def test_a_run_over_a_weighted_sum(log, tmp_path, capsys):
    kind = ["--graph.kind", "user-item+item-item", "--graph.share"]
    for share in ("0", "0.5"):
        assert train(log, tmp_path / share, *kind, share, epochs=1) == 0
    assert train(log, tmp_path / "users", "--graph.kind", "user-item", epochs=1) == 0
    losses = {
        name: result_of(tmp_path / name)["losses"] for name in ("0", "0.5", "users")
    }
    assert losses["0"] == losses["users"] != losses["0.5"]
    assert load(tmp_path / "0.5").recipe.graph.share == 0.5
    command = ["--data", log, "--kind", kind[1], "--share", "0.5"]
    fails(capsys, sevo("graph", *command), "two graphs: build each of them by itself")
