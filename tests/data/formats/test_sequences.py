"""Sequence text: lines of users, pairs, and what is neither."""

import pytest

from sevo_jax.data import InteractionLog, read, write


def test_one_user_a_line(file, as_lists, warnings_of):
    path = file("log.txt", "12 100 9 20\n\n  3\t100  20 \r\n")
    logs = []
    assert warnings_of(lambda: logs.append(read(path))) == []
    assert as_lists(logs[0]) == {3: [100, 20], 12: [100, 9, 20]}


def test_pairs_in_order_of_time(file, as_lists):
    path = file("pairs.txt", "2 9\n1 7\n1 3\n2 1\n1 3\n")
    assert as_lists(read(path)) == {1: [7, 3, 3], 2: [9, 1]}
    # Where no user comes back, both readings are the same.
    assert as_lists(read(file("pairs.txt", "a x\nb y\n"))) == {"a": ["x"], "b": ["y"]}


@pytest.mark.parametrize("header", ["user_id item_id", "userID\tmovieID", "user,sku"])
def test_pairs_with_a_header(file, as_lists, header):
    cut = "," if "," in header else "\t" if "\t" in header else " "
    lines = [header, *(f"{i}{cut}{10 * i}" for i in range(1, 6))]
    path = file("pairs.txt", "\n".join(lines))
    assert as_lists(read(path)) == {i: [10 * i] for i in range(1, 6)}


def test_a_table_by_its_columns(file, as_lists, fails):
    path = file("ratings.txt", "1 10 5 9\n1 20 3 8\n2 10 1 7\n")
    fails(
        lambda: read(path),
        *("ratings.txt:2: user 1 stands on line 1 already", "--user-column"),
    )
    log = read(path, user=0, item=1, timestamp=3)
    assert as_lists(log) == {1: [20, 10], 2: [10]}


@pytest.mark.parametrize(
    "text",
    [
        # Maps of ids, and names that are not known.
        "org_id remap_id\nA2YK 0\nAAP7 1\n",
        "remap_id org_id\n0 A2YK\n1 AAP7\n",
        "buyer thing\n1 10\n2 20\n",
        "buyer thing when\n1 10 5\n2 20 6\n",
        "buyer thing when\nann 10 5\nbob 20 6\n",
        "buyer things\n1 10 2 30\n2 20\n",
    ],
)
def test_names_that_are_not_known_are_no_user(file, fails, text):
    path = file("list.txt", text)
    fails(lambda: read(path), "list.txt:1: ", "names of columns", "--user-column")


@pytest.mark.parametrize("text", ["A2YK 0\nAAP7 1\nB00X 2\n", "7 1\n5 2\n9 3\n"])
def test_a_map_of_ids_is_no_log(file, fails, text):
    path = file("map.txt", text)
    fails(lambda: read(path), "map.txt:1: ", "a map that numbers ids", "--user-column")
    assert read(path, user=0, item=1).num_users == 3
    # What numbers nothing is a log.
    for log in (text + "x 1\n", "1 1\n2 2\n3 3\n", "1 9\n2 8\n3 7\n", "x 0\ny 1\n"):
        assert read(file("log.txt", log)).num_interactions == log.count("\n")


@pytest.mark.parametrize(
    "text",
    ["1, 2\n1, 3\n", "1, 2, 3\n4, 2\n", "1 [2, 3]\n4 [2]\n", "a ['x', 'y']\nb ['x']\n"],
)
def test_commas_between_ids(file, fails, text):
    fails(lambda: read(file("log.txt", text)), "log.txt:1: commas or brackets about")
    # A few ids may have them.
    for log in ("1, 2\n2 3\n", "1 [2 3]\n2 3\n", "1, 2\n"):
        assert read(file("log.txt", log)).num_interactions > 0


def test_text_beside_numbers_is_no_header(file, as_lists):
    path = file("log.txt", "ann tea jam\nbob 7\n")
    assert as_lists(read(path)) == {"ann": ["tea", "jam"], "bob": ["7"]}
    assert as_lists(read(file("log.txt", "ann tea jam\n"))) == {"ann": ["tea", "jam"]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("# 5", "begins as a comment does, '# 5'"),
        ("#a 5 6", "begins as a comment does"),
        ("% bip unweighted", "begins as a comment does"),
        ("// 5 6", "begins as a comment does"),
        ("5", "user 5 has no items"),
        ("1 9", "user 1 stands on line 1 already"),
        ("5,6,7", "user 5,6,7 has no items after blanks or tabs; in a table, give"),
        ("5 6\r7 8", "a carriage return or form feed inside the line"),
        ("5 6\v7 8", "a carriage return or form feed inside the line"),
        ("5 6\f7 8", "a carriage return or form feed inside the line"),
        ("\ufeff5 6", "a byte order mark"),
        (b"5 \xff", "not UTF-8"),
        (b"\xff 5", "not UTF-8"),
        ("x" * 10**6, "has no items"),
        ("NULL 7", "an id is missing, NULL"),
        ("5 2 NA", "an id is missing, NA"),
        ("5 NA", "an id is missing, NA"),
    ],
)
def test_bad_lines(file, as_lists, fails, warnings_of, line, message):
    data = line if isinstance(line, bytes) else line.encode()
    path = file("log.txt", b"1 2 3\n" + data + b"\n4 2 3\n")
    fails(lambda: read(path), "log.txt:2: ", message, "--skip-bad")
    logs = []
    (said,) = warnings_of(lambda: logs.append(read(path, skip_bad=True)))
    assert as_lists(logs[0]) == {1: [2, 3], 4: [2, 3]}
    assert logs[0].item_ids.tolist() == [2, 3]
    assert "skipped 1 " in said and "log.txt:2: " in said


def test_nothing(file, fails):
    for content in ("", "\n \n", "\ufeff", "\ufeff\r\n"):
        path = file("log.txt", content)
        fails(lambda: read(path), f"{path}: the file is empty")
    path = file("log.txt", "# a\n1\n")
    fails(lambda: read(path, skip_bad=True), "no interactions", "log.txt:1: ")


def test_a_line_ends_in_one_way_or_another(file, as_lists):
    for end in ("\n", "\r\n", "\r"):
        path = file("log.txt", end.join(["1 2 3", "", "4 5"]))
        assert as_lists(read(path)) == {1: [2, 3], 4: [5]}
    # A return inside one line is no fault of the others.
    path = file("log.txt", "1 2\r\n3 4\r5 6\r\n7 8\r\n")
    assert as_lists(read(path, skip_bad=True)) == {1: [2], 7: [8]}


@pytest.mark.parametrize("awkward", ["a\0", "\0", "\xa0", "a\u2028b", "\x85", "\x1c"])
def test_ids_are_kept_as_they_are(file, as_lists, tmp_path, awkward):
    log = read(file("log.txt", f"{awkward} x\na {awkward}\n"))
    assert as_lists(log) == {awkward: ["x"], "a": [awkward]}
    write(log, tmp_path / "copy.txt")
    assert as_lists(read(tmp_path / "copy.txt")) == as_lists(log)


@pytest.mark.parametrize("awkward", ["a b", "a\nb", "\ta", "#a", "//", "%", "\ufeffa"])
def test_ids_beyond_this_format(tmp_path, fails, awkward):
    log = InteractionLog.from_columns([awkward], ["x"], name="log")
    fails(lambda: write(log, tmp_path / "log.txt"), "write .csv or .parquet")
    assert list(tmp_path.iterdir()) == []
