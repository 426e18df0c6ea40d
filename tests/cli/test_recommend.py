import contextlib
import csv
import io
import sys

import numpy as np
import pytest

from sevo_jax.cli import main
from sevo_jax.data import InteractionLog, write
from sevo_jax.training import load


def _rows(text, user="user"):
    """The items by user, best first."""
    found = {}
    for row in csv.DictReader(io.StringIO(text)):
        found.setdefault(row[user], []).append(row["item"])
    return found


def _best(run, rows, top):
    """The `top` items of histories by the original ids, by brute force."""
    saved = load(run)
    items = {str(name): item for item, name in enumerate(saved.known.item_ids)}
    best = {}
    for user, row in rows.items():
        codes = [items[name] for name in row if name in items]
        log = InteractionLog.from_columns([0] * len(codes), codes, name="")
        sequence = type(log.sequences).from_lists([codes])
        scores = np.array(saved.model.score(saved.model.inputs(sequence)))[0]
        scores[codes] = -np.inf
        order = np.argsort(-scores, kind="stable")[:top]
        best[user] = [saved.known.item_ids[item] for item in order]
    return best


def _log(rows, folder):
    path = folder / "today.txt"
    path.write_text("".join(f"{user} {' '.join(row)}\n" for user, row in rows.items()))
    return path


def test_new_users_and_new_histories_are_served(run, tmp_path, capsys):
    today = {
        "u0": ["ü3", "ü5", "new-1", "ü7"],  # A known user, with another history.
        "somebody": ["ü1"],
        "nobody": ["new-1", "new-2"],
    }
    args = ["recommend", f"{run}", "--top", "4", "--data", f"{_log(today, tmp_path)}"]
    assert main(args) == 0
    captured = capsys.readouterr()
    expected = _best(run, {user: today[user] for user in ("somebody", "u0")}, 4)
    assert _rows(captured.out) == expected
    assert captured.err.splitlines() == [
        "sevo-jax: 2 of 6 items are unknown to the run and skipped, with 3 of 7 "
        "interactions: new-1, new-2",
        "sevo-jax: 1 of 3 users have no other items and are skipped: nobody",
    ]
    assert main([*args, "--users", "somebody"]) == 0
    captured = capsys.readouterr()
    assert _rows(captured.out) == {"somebody": expected["somebody"]}
    assert captured.err == ""


@pytest.mark.parametrize("from_stdin", [True, False])
def test_sequences_are_served_line_by_line(
    from_stdin, run, tmp_path, monkeypatch, capsys
):
    text = "ü3 ü5\n\n  ü1\tü2\r\nnew\nü9 new ü9"
    if from_stdin:
        stdin = io.TextIOWrapper(io.BytesIO(text.encode()), encoding="ascii")
        monkeypatch.setattr(sys, "stdin", stdin)
        source = "-"
    else:
        source = f"{tmp_path / 'sequences.txt'}"
        (tmp_path / "sequences.txt").write_bytes(text.encode())
    assert main(["recommend", f"{run}", "--top", "3", "--sequences", source]) == 0
    captured = capsys.readouterr()
    rows = {"1": ["ü3", "ü5"], "3": ["ü1", "ü2"], "5": ["ü9", "ü9"]}
    assert _rows(captured.out, "line") == _best(run, rows, 3)
    assert "1 of 6 items are unknown" in captured.err and ": new\n" in captured.err
    assert "1 of 4 users have no other items" in captured.err


def test_items_with_spaces_are_separated_by_tabs(run, tmp_path, fails, capsys):
    path = tmp_path / "sequences.tsv"
    path.write_text("ü3\tan item\tü5\n")
    assert main(["recommend", f"{run}", "--sequences", f"{path}"]) == 0
    captured = capsys.readouterr()
    assert _rows(captured.out, "line") == _best(run, {"1": ["ü3", "ü5"]}, 10)
    assert captured.err.endswith(": an item\n")


def test_only_blanks_and_tabs_separate_items(run, tmp_path, capsys):
    path = tmp_path / "sequences.txt"
    path.write_text("\ufeffü3 ü5\nü1 a\xa0b\n")
    assert main(["recommend", f"{run}", "--sequences", f"{path}"]) == 0
    captured = capsys.readouterr()
    rows = {"1": ["ü3", "ü5"], "2": ["ü1"]}
    assert _rows(captured.out, "line") == _best(run, rows, 10)
    assert captured.err.endswith(": 'a\\xa0b'\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no items"),
        (b"\n \n", "has no items"),
        (b"new\nnewer\n", "the run knows no item of"),
        ("ü3\n".encode() + b"\xff\n", ":2: is not UTF-8"),
    ],
)
def test_bad_sequences_are_refused(content, message, run, tmp_path, fails):
    path = tmp_path / "sequences.txt"
    path.write_bytes(content)
    fails(["recommend", run, "--sequences", path], path, message)


def test_sequences_go_with_no_users(run, path, fails):
    args = ["recommend", run, "--sequences", path]
    fails([*args, "--users", "u1"], "leave out --users")
    fails([*args, "--data", path], "leave out")


def test_a_model_with_a_table_of_users_says_whom_it_cannot_serve(
    run_of_users, log, path, tmp_path, fails, capsys
):
    today = {"u5": ["ü3", "ü5"], "newcomer": ["ü1", "ü2"], "u2": ["ü1"]}
    data = _log(today, tmp_path)
    args = ["recommend", f"{run_of_users}", "--top", "40", "--data", f"{data}"]
    assert main(args) == 0
    captured = capsys.readouterr()
    found = _rows(captured.out)
    assert {*found} == {"u5", "u2"}
    skipped, few = captured.err.splitlines()[-2:]
    assert "1 of 3 users are skipped: mf-bpr knows users by a table" in skipped
    assert skipped.endswith("not trained on: newcomer")
    assert "2 of 2 users get fewer than 40 items" in few
    # A user's row is that of the run, wherever the user stands in the new log.
    saved = load(run_of_users)
    rows = {str(name): row for row, name in enumerate(saved.known.user_ids)}
    for user, items in found.items():
        scores = saved.model.user_embedding[...][rows[user]] @ (
            saved.model.item_embedding[...].T
        )
        order = [saved.known.item_ids[i] for i in np.argsort(-scores, kind="stable")]
        assert items == [name for name in order if name not in today[user]]
    fails([*args, "--users", "newcomer"], "cannot serve", "newcomer")
    fails(["recommend", run_of_users, "--sequences", data], "cannot serve --sequences")


def test_ids_that_the_output_cannot_hold_are_not_changed(run, monkeypatch, capsys):
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    assert main(["recommend", f"{run}", "--users", "u1"]) == 2
    assert output.buffer.getvalue() == b""
    assert "is ascii, which cannot hold 'ü': give --output" in capsys.readouterr().err


def test_users_below_the_core_are_named_with_the_remedy(run, log, tmp_path, fails):
    path = tmp_path / "today.txt"
    write(log, path)
    with path.open("a") as file:
        file.write("few ü1 ü2\n")
    args = ["recommend", run, "--data", path, "--users", "few", "--k-core"]
    fails([*args, 5], "no user few of 5 interactions (--k-core 1 keeps all)")
    assert main([*map(str, args), "1"]) == 0


def test_another_log_is_served_whole(log, path, tmp_path, capsys):
    """The filter of the training is not one of the histories that are asked for."""
    small = "--model sasrec --width 8 --max-len 6 --batch-size 64 --epochs 1".split()
    run = tmp_path / "run"
    args = ["train", "--data", path, "--k-core", 7, *small, "--output", run]
    assert main([str(arg) for arg in args]) == 0
    capsys.readouterr()
    today = {"somebody": ["ü2", "ü3"], "u0": ["ü3"]}
    data = _log(today, tmp_path)
    assert main(["recommend", f"{run}", "--top", "3", "--data", f"{data}"]) == 0
    assert _rows(capsys.readouterr().out) == _best(run, today, 3)


@pytest.mark.parametrize("command", ["recommend", "evaluate"])
def test_a_folder_that_is_not_there_is_named_before_the_work(
    command, run, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(f"sevo_jax.cli._{command}.load", None)
    path = tmp_path / "nowhere" / "table.csv"
    assert main([command, f"{run}", "--output", f"{path}"]) != 0
    captured = capsys.readouterr()
    assert f"there is no folder {path.parent}" in captured.err and not captured.out


def test_the_table_may_be_redirected_within_the_process(run, capsys):
    args = ["recommend", f"{run}", "--top", "2", "--users", "u3"]
    assert main(args) == 0
    printed = capsys.readouterr().out
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert main(args) == 0
    assert text.getvalue() == printed
