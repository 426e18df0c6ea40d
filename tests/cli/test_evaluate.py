import dataclasses
import json
import shutil

import numpy as np
import pytest

from sevo_jax.cli import main
from sevo_jax.data import k_core, leave_one_out, read, write
from sevo_jax.evaluation import evaluate
from sevo_jax.training import Trainer, load


def _metrics(capsys, *args):
    """What `evaluate` prints: the rows of its table, and what it says beside."""
    assert main(["evaluate", *map(str, args)]) == 0
    captured = capsys.readouterr()
    lines = [line.split() for line in captured.out.splitlines()]
    table = {line[0]: [*map(float, line[1:])] for line in lines if len(line) == 6}
    return {key: table[key] for key in ("valid", "test")}, captured.err


def _rounded(metrics):
    return [round(value, 4) for value in metrics.values()]


def _unseen(log, user):
    """An item that is not in a user's history."""
    return min({*range(log.num_items)} - {*log.sequences[user].tolist()})


@pytest.mark.parametrize("model", ["mf-bpr"])
def test_seen_items_are_ranked_as_in_the_run(model, path, tmp_path, capsys):
    output = tmp_path / "run"
    command = ["train", "--model", model, "--data", f"{path}", "--output", f"{output}"]
    args = "--width 4 --batch-size 64 --epochs 1 --seen keep".split()
    assert main([*command, *args]) == 0
    capsys.readouterr()
    found, _ = _metrics(capsys, output)
    result = load(output).result
    assert result and found == {
        part: _rounded(result[part]) for part in ("valid", "test")
    }
    assert main(["recommend", f"{output}", "--users", "u3", "--top", "40"]) == 0
    # All of them, those that the user has seen, too.
    assert len(capsys.readouterr().out.splitlines()) == 1 + 40


def test_a_later_log_is_measured_on_its_new_items(run, log, tmp_path, capsys):
    """Every user has one more item; some users and items are new."""
    rows = {
        user: [f"ü{item}" for item in (*log.sequences[row], _unseen(log, row))]
        for row, user in enumerate(log.user_ids.tolist())
    }
    rows["u3"].insert(2, "a-new-item")
    rows["a-new-user"] = ["ü1", "ü2", "ü3", "ü4"]
    path = tmp_path / "today.txt"
    path.write_text("".join(f"{user} {' '.join(row)}\n" for user, row in rows.items()))
    table, said = _metrics(capsys, run, "--data", path)
    # The same by hand: the log without the new item, in the items of the run.
    saved = load(run)
    rows["u3"].remove("a-new-item")
    codes = {name: item for item, name in enumerate(saved.known.item_ids)}
    split = leave_one_out(
        type(log).from_columns(
            [user for user, row in rows.items() for _ in row],
            [codes[item] for row in rows.values() for item in row],
            name="today",
        )
    )
    for part in ("valid", "test"):
        assert table[part] == _rounded(evaluate(saved.model, split, part))
    assert "1 of 41 items are unknown" in said and "a-new-item" in said
    assert "trained on" not in said


def test_users_that_were_trained_on_their_item_are_left_out(
    run, log, tmp_path, fails, capsys
):
    def cut(users):
        path = tmp_path / "cut.txt"
        drop = np.where(np.isin(np.arange(log.num_users), users), 2, 0)
        write(dataclasses.replace(log, sequences=log.sequences.drop_last(drop)), path)
        return path

    longest = np.argsort(log.sequences.lengths)[-2:]
    table, said = _metrics(capsys, run, "--data", cut(longest))
    for part in ("valid", "test"):
        assert f"2 of 80 users are left out of {part}: the run was trained on" in said
    split = leave_one_out(log)
    kept = ~np.isin(np.arange(log.num_users), longest)
    fewer = dataclasses.replace(
        split,
        valid=np.where(kept, split.valid, -1),
        test=np.where(kept, split.test, -1),
    )
    # Sorted as text, items and users have other numbers than in `log`.
    expected = read(cut([]))
    order = [expected.item_ids.tolist().index(name) for name in log.item_ids.tolist()]
    values = np.array(order, np.int32)
    for part in ("valid", "test"):
        targets = getattr(fewer, part)
        renumbered = np.where(targets < 0, -1, values[targets])
        fewer = dataclasses.replace(fewer, **{part: renumbered})
    train = dataclasses.replace(split.train, values=values[split.train.values])
    fewer = dataclasses.replace(fewer, train=train)
    saved = load(run)
    for part in ("valid", "test"):
        assert table[part] == _rounded(evaluate(saved.model, fewer, part))
    fails(
        ["evaluate", run, "--data", cut(np.arange(log.num_users))],
        "the run was trained on every valid item of 'cut'",
    )


def test_a_run_that_was_trained_on_everything_is_not_measured(
    run, path, tmp_path, fails
):
    """Nor by its own log: what it was split into is not what it is measured on."""
    saved, split = load(run), leave_one_out(read(path))
    # Its own targets are others, or its history would hold them.
    unseen = np.array([_unseen(split.log, u) for u in range(split.num_users)], np.int32)
    everything = dataclasses.replace(
        split, train=split.log.sequences, valid=unseen, test=unseen
    )
    output = tmp_path / "everything"
    Trainer(saved.recipe, everything).run(seed=3, output=output, progress=False)
    args = ["evaluate", output, "--data", path]
    fails(args, "the run was trained on every valid item of 'tiny'")
    fails(["evaluate", output], "does not say what its data are: give --data")
    with pytest.raises(ValueError, match="dataset.split was"):
        load(output).check(split)


def test_the_protocol_says_how_the_epoch_was_chosen(run, capsys):
    for seen, said in (("mask", False), ("keep", True)):
        assert main(["evaluate", str(run), "--seen", seen]) == 0
        words = "the epoch was chosen with --seen mask"
        assert (words in capsys.readouterr().out) == said


def test_a_model_with_a_table_of_users_is_measured_on_those_it_knows(
    run_of_users, log, path, tmp_path, capsys
):
    expected, _ = _metrics(capsys, run_of_users)
    rows = path.read_text().splitlines()
    today = tmp_path / "today.txt"
    today.write_text("\n".join(["newcomer ü1 ü2 ü3 ü4", *reversed(rows)]) + "\n")
    table, said = _metrics(capsys, run_of_users, "--data", today)
    assert table == expected
    assert "1 of 81 users are skipped: mf-bpr knows users by a table" in said


def test_an_option_replaces_what_the_run_remembers_of_it_alone(
    log, path, tmp_path, capsys, fails
):
    table = tmp_path / "log.csv"
    with table.open("w") as file:
        file.write("who,what,when\n")
        for row, user in enumerate(log.user_ids.tolist()):
            for time, item in enumerate(log.sequences[row]):
                file.write(f"{user},ü{item},{time}\n")
    columns = "--user-column who --item-column what --timestamp-column when".split()
    output = tmp_path / "run"
    small = "--model mf-bpr --width 8 --batch-size 64 --epochs 1 --output".split()
    args = ["train", "--data", table, *columns, "--k-core", 7, *small, output]
    assert main([str(arg) for arg in args]) == 0
    expected, said = _metrics(capsys, output)
    moved = table.rename(tmp_path / "moved.csv")
    fails(["evaluate", output], f"trained on {table}, which is not there: give --data")
    # Neither the columns nor the core are forgotten.
    found, said = _metrics(capsys, output, "--data", moved)
    assert found == expected and "filtered by --k-core 7, as in training" in said
    # Another core is another log; the file and its columns are as they were.
    moved.rename(table)
    core = k_core(read(table, user="who", item="what", timestamp="when"), 7)
    assert core.num_users < log.num_users
    other, said = _metrics(capsys, output, "--k-core", 1)
    assert f"of {log.num_items} items" in said or other != expected
    fails(["evaluate", output, "--item-column", "wat"], "wat")


def test_damaged_files_of_a_run_are_one_line_each(run, tmp_path, fails, capsys):
    expected, _ = _metrics(capsys, run)
    deep = "[" * 100_000
    for name in ("result.json", "data.json", "ids.json", "split.npz"):
        copy = shutil.copytree(run, tmp_path / name)
        content = (copy / name).read_bytes()
        for damage in (b"", b"{", b"5", b"[1]", b"{}", b"\xff\xfe", deep.encode()):
            (copy / name).write_bytes(damage)
            if (name, damage) == ("result.json", b"{}"):
                continue
            fails(["evaluate", copy], name if name != "data.json" else copy)
        for place in range(0, len(content), 1 + len(content) // 3):
            flipped = bytearray(content)
            flipped[place] ^= 1
            (copy / name).write_bytes(flipped)
            # A date in a zip file, say, makes no difference.
            if main(["evaluate", str(copy)]) == 2:
                assert len(capsys.readouterr().err.splitlines()) == 1
            else:
                assert _metrics(capsys, copy) == (expected, "")
        (copy / name).unlink()
        assert main(["evaluate", str(copy)]) == (0 if name == "result.json" else 2)
        assert len(capsys.readouterr().err.splitlines()) <= 1
    # Nothing is read from run.json, which says to people what is run.
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "run.json").write_text(json.dumps(["x"]))
    assert _metrics(capsys, copy) == (expected, "")


def test_results_are_written_with_versions_and_machine(run):
    result = json.loads((run / "result.json").read_text())
    assert {"jax", "sevo_jax", "numpy"} <= result["versions"].keys()
    assert result["machine"]["mesh"] == "data=1" and result["notes"] == []
