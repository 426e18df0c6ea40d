"""Tables of text: columns by name and number, delimiters, odd lines, both parsers."""

import csv
import io
import random
from unittest import mock

import numpy as np
import pytest

from sevo_jax.data import InteractionLog, read, write
from sevo_jax.data.formats import delimited

TIMED = {1: ["a", "b"], 2: ["c"]}


@pytest.fixture(params=["quick", "careful"], autouse=True)
def parser(request, monkeypatch):
    """Each test reads with Arrow where it can, and line by line."""
    if request.param == "careful":
        refuse = mock.Mock(side_effect=ValueError("unusual"))
        monkeypatch.setattr(delimited, "_parse_with_arrow", refuse)


# Columns and delimiters


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|", "::", " ", "  "])
@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.txt", "log.dat"])
def test_the_delimiter_is_found_out(file, as_lists, name, delimiter):
    lines = ["user;item;timestamp", "1;b;20", "2;c;5", "1;a;10", ""]
    text = "\n".join(lines).replace(";", delimiter)
    assert as_lists(read(file(name, text))) == TIMED
    # Without the header, and with a column of ratings.
    lines = ["1;x;b;20", "2;y;c;5", "1;z;a;10", ""]
    path = file(name, "\n".join(lines).replace(";", delimiter))
    assert as_lists(read(path, user=0, item=2, timestamp="3")) == TIMED


@pytest.mark.parametrize("delimiter", ["^", "~", "\x01", "§", "@@", "\\t"])
def test_an_unusual_delimiter_is_named(file, as_lists, delimiter):
    lines = ["user;item;timestamp", "1;b;20", "2;c;5", "1;a;10"]
    text = "\n".join(lines).replace(";", delimiter.replace("\\t", "\t"))
    log = read(file("log.csv", text), delimiter=delimiter)
    assert as_lists(log) == TIMED


@pytest.mark.parametrize("delimiter", ["", "\n", '"', "a\r"])
def test_what_is_no_delimiter(file, fails, delimiter):
    path = file("log.csv", "user,item\n1,2\n")
    fails(lambda: read(path, delimiter=delimiter), "the delimiter is")


def test_two_delimiters_are_possible(file, as_lists, fails):
    path = file("log.csv", "1,2;3,4\n5,6;7,8\n")
    fails(
        lambda: read(path, user=0, item=1),
        *("log.csv:1: ',' or ';' may cut", "--delimiter"),
    )
    assert as_lists(read(path, user=0, item=1, delimiter=",")) == {
        1: ["2;3"],
        5: ["6;7"],
    }
    assert as_lists(read(path, user=0, item=1, delimiter=";")) == {
        "1,2": ["3,4"],
        "5,6": ["7,8"],
    }
    # Decimal commas in a column that is not read.
    path = file("log.csv", "1;2;3,5\n1;4;2,5\n")
    assert as_lists(read(path, user=0, item=1)) == {1: [2, 4]}


@pytest.mark.parametrize(
    "header",
    [
        *("userId,movieId,timestamp", "customer_id,sku,event_time"),
        *("CustomerID,StockCode,InvoiceDate", "User-ID,ISBN,created at"),
        *("visitorid,itemid,ts", "customer_id,article_id,t_dat", '"uid","iid","date"'),
        *("\ufeffuser_id,item_id,time", " user , item , time ", "USERNAME,ASIN,TIME"),
    ],
)
def test_usual_names(file, as_lists, header):
    path = file("log.csv", f"{header}\n1,b,20\n2,c,5\n1,a,10\n")
    assert as_lists(read(path)) == TIMED


def test_an_id_is_preferred_to_a_name(file, as_lists):
    path = file("log.csv", "user,user_id,item,item_id\nAnn,1,Tea,a\nBob,2,Jam,c\n")
    assert as_lists(read(path)) == {1: ["a"], 2: ["c"]}


@pytest.mark.parametrize(
    "header", ["buyer,thing,when", "user_id,item_id,timestamp", '"who",what,at']
)
@pytest.mark.parametrize("times", ["number", "date"])
def test_a_header_is_no_data_where_columns_have_numbers(file, as_lists, header, times):
    path = file(
        "log.csv",
        f"{header}\n1,b,20\n2,c,5\n1,a,10\n"
        if times == "number"
        else f"{header}\nx,b,2020-01-02\ny,c,2020-01-01\nx,a,2020-01-01\n",
    )
    log = read(path, user=0, item=1, timestamp=2)
    assert list(as_lists(log).values()) == list(TIMED.values())
    # Where ids are text, the ratings tell; a mark of none is no name.
    for first in ("buyer,thing,stars", "buyer,thing,NA"):
        path = file("log.csv", f"{first}\nbob,tea,4\nann,jam,5\n")
        expected = {"ann": ["jam"], "bob": ["tea"]}
        if first.endswith("NA"):
            expected["buyer"] = ["thing"]
        assert as_lists(read(path, user=0, item=1)) == expected
    # All of the first line is data if it has digits, or if no numbers follow.
    path = file("log.csv", "u1,i\n5,6\n")
    assert as_lists(read(path, user=0, item=1)) == {"5": ["6"], "u1": ["i"]}
    path = file("log.csv", "bob,tea\nann,jam\n")
    assert as_lists(read(path, user=0, item=1)) == {"ann": ["jam"], "bob": ["tea"]}


def test_headerless_tables_need_numbers(file, as_lists, fails):
    text = "196\t242\t3\t881250949\n1\t2\t3\t876893171\n1\t3\t4\t878542960\n"
    path = file("log.tsv", text)
    advice = ("log.tsv:1", "no column is named user", "numbers", "--user-column")
    fails(lambda: read(path), *advice)
    # Names that are data would lose the first line; digits are always a number.
    fails(
        lambda: read(path, user="196", item="242", timestamp="881250949"),
        *("log.tsv:1", "no column 196", "0 to 3", "--user-column"),
    )
    fails(lambda: read(path, user=0, item=-1), "no column -1", "--item-column")
    fails(lambda: read(path, user=0), "no column is named item", "--item-column")
    fails(lambda: read(path, user=1, item=1), "taken twice")
    expected = {1: [2, 3], 196: [242]}
    assert as_lists(read(path, user=0, item="1", timestamp=3)) == expected
    # The first user here has no later line: it is not lost.
    amazon = "A39H,0205616461,5.0,1369699200\nA3JM,0558925278,3.0,1355443200\n"
    path = file("ratings_Beauty.csv", amazon)
    assert as_lists(read(path, user=0, item=1, timestamp=3)) == {
        "A39H": ["0205616461"],
        "A3JM": ["0558925278"],
    }


def test_movielens_of_all_ages(file, as_lists, fails):
    expected = {1: [20, 10], 2: [10]}
    lines = "1::10::5::9\n2::10::3::1\n1::20::1::8\n"
    assert as_lists(read(file("ratings.dat", lines))) == expected
    path = file("u.data", lines.replace("::", "\t"))
    assert as_lists(read(path)) == expected
    # hetrec2011: with a header.
    table = "userID\tartistID\tweight\n1\t20\t5\n1\t10\t5\n2\t10\t1\n"
    assert as_lists(read(file("user_artists.dat", table))) == expected
    # Other columns than those of MovieLens.
    swapped = "10::1::9::5\n10::2::1::3\n20::1::8::1\n"
    log = read(file("swapped.dat", swapped), user=1, item=0, timestamp=2)
    assert as_lists(log) == expected
    for other in (
        "1,2014-04-07T10:51:09.277Z,214536502,0\n",
        "1::2014-04-07::214536502::0\n",
        "1,1193,5,978300760\n",
        "1::1193::978300760::5\n",
        "1::1193::title::978300760\n",
    ):
        fails(lambda: read(file("ratings.dat", other)), "ratings.dat:1: no column is")


def test_names_and_numbers_together(file, as_lists):
    path = file("log.csv", "a,b,c,user\n9,1,x,z\n8,1,y,z\n")
    assert as_lists(read(path, user=1, item="c", timestamp=0)) == {1: ["y", "x"]}


def test_the_order_of_the_file_is_that_of_time(file, as_lists, warnings_of):
    path = file("log.csv", "user,item\n2,9\n1,7\n1,3\n2,1\n1,3\n")
    logs = []
    assert warnings_of(lambda: logs.append(read(path))) == []
    assert as_lists(logs[0]) == {1: [7, 3, 3], 2: [9, 1]}
    # It is said if there is a column that might have been meant.
    path = file("log.csv", "user,item,when\n2,9,3\n2,1,1\n")
    (message,) = warnings_of(lambda: logs.append(read(path)))
    assert "user, item, when" in message and "--timestamp-column" in message
    assert as_lists(logs[1]) == {2: [9, 1]}
    assert as_lists(read(path, timestamp="when")) == {2: [1, 9]}


# Ids and times


def test_floats_are_whole_numbers(file, as_lists):
    path = file("log.csv", "user,item,time\n1.0,123.0,3\n1,7,2\n2,123,1\n")
    assert as_lists(read(path)) == {1: [7, 123], 2: [123]}
    path = file("log.csv", "user,item,time\n1,123.5,3\n1,123,2\n")
    assert as_lists(read(path)) == {1: ["123", "123.5"]}


@pytest.mark.parametrize(
    "awkward",
    [
        "a\0",
        "\0",
        "a\nb",
        "a\r\nb",
        "a\rb",
        " a ",
        "#a",
        "a,b",
        'a"b',
        "\xa0",
        "\u2028",
    ],
)
def test_ids_are_kept_as_they_are(file, as_lists, awkward):
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    rows = [["user", "item", "time"], [awkward, "x", 1], ["a", awkward, 2]]
    writer.writerows(rows)
    log = read(file("log.csv", text.getvalue()))
    assert as_lists(log) == {awkward: ["x"], "a": [awkward]}


def test_a_line_break_in_quotes_at_the_border_of_a_block(file, as_lists):
    users = [f"{i:07}\n{'x' * 80}\n" for i in range(2**21 // 90)]
    text = "user,item\n" + "".join(f'"{user}",i\n' for user in users)
    assert as_lists(read(file("log.csv", text))) == dict.fromkeys(users, ["i"])


def test_integers_beside_a_float_are_exact(file, as_lists):
    base = 1_400_000_000_000_000_000
    times = [str(base + i) for i in range(500)]
    times[77] = f"{base + 77}.0"
    order = list(range(500))
    random.Random(0).shuffle(order)
    text = "user,item,time\n" + "".join(f"u,{i},{times[i]}\n" for i in order)
    assert as_lists(read(file("log.csv", text))) == {"u": list(range(500))}


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        # A day earlier in UTC, a zone named, a fraction.
        (
            [
                "2020-01-01",
                "2019-12-31T23:59:59Z",
                "2020-01-01T00:00:00+02:00",
                "2020-01-01 00:00:00.5",
            ],
            [2, 1, 0, 3],
        ),
        (["2019-10-01 00:00:01 UTC", "2019-10-01 00:00:00 UTC"], [1, 0]),
        (["2019-10-01T00:00:00.000000002", "2019-10-01T00:00:00.000000001"], [1, 0]),
        (["1000-01-02", "1000-01-01"], [1, 0]),
        (["2019-10-01T00:00:01+01:00", "2019-10-01T00:00:00+01:00"], [1, 0]),
        (["5", "4.5", " 4 "], [2, 1, 0]),
        (["1588291200.123456789012", "1588291200.123456789011"], [1, 0]),
        (["0.1000000000000000011", "0.1"], [1, 0]),
        # As float64, two are one.
        (["9588291200.000002", "9588291200.000001"], [1, 0]),
        (["9007199254740993", "9007199254740992", "0.5"], [2, 1, 0]),
    ],
)
def test_times(file, as_lists, times, expected):
    text = "user,item,time\n" + "".join(f"u,{i},{t}\n" for i, t in enumerate(times))
    assert as_lists(read(file("log.csv", text))) == {"u": expected}


@pytest.mark.parametrize("parser", ["quick"], indirect=True)
@pytest.mark.parametrize(
    "times",
    [
        *(["5", "4"], ["5.25", "-4"], ["1588291200.1234567", "0.5"]),
        *(["2020-01-02", "2020-01-01 10:00"], ["1000-01-02", "1000-01-01"]),
        ["2019-10-01T00:00:00.000000002", "2019-10-01 00:00:00.000000001"],
        ["2019-10-01T00:00:00.000000002Z", "2019-10-01 00:00:00+02:00"],
        ["2019-10-01 00:00:01 UTC", "2019-10-01 00:00:00 UTC"],
    ],
)
def test_what_is_usual_is_read_quickly(file, as_lists, monkeypatch, times):
    monkeypatch.setattr(delimited, "_scan", mock.Mock(side_effect=AssertionError))
    text = "user,item,time\r\n" + "".join(f"u,{i},{t}\r\n" for i, t in enumerate(times))
    assert as_lists(read(file("log.csv", text))) == {"u": [1, 0]}


@pytest.mark.parametrize(
    "time",
    ["01/02/2020", "2 Jan 2020", "noon", "0x10", "0X1F", "-inf", "nan"],
)
def test_other_forms_of_times_are_named(file, fails, time):
    path = file("log.csv", f"user,item,timestamp\n1,a,{time}\n1,b,{time}\n")
    fails(lambda: read(path), "log.csv:2: ", time, "ISO date such as 2014-07-23")


# Lines at fault


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("# x,y,1", "begins as a comment does, '# x,y,1'"),
        ("#7,y,1", "begins as a comment does"),
        ("// x,y,1", "begins as a comment does"),
        ("% x,y,1", "begins as a comment does"),
        ("%%MatrixMarket,y,1", "begins as a comment does"),
        ("user,item,time", "the header again"),
        ("x,y", "2 fields instead of 3: 'x,y'"),
        ("x,y,1,2", "4 fields instead of 3"),
        (",y,1", "the user is empty"),
        ("x,,1", "the item is empty"),
        ("x,y,", "the timestamp ''"),
        ("x,y,never", "the timestamp 'never' is not a number, as those"),
        ("x,y,2020-01-01", "the timestamp '2020-01-01' is not a number, as those"),
        ('"x"y,z,1', "',' expected after '\"'"),
        ("x\ry,z,1", ""),
        ("x,y,1\r3,z,2", "new-line character seen in unquoted field"),
        ("\ufeff1,z,1", "a byte order mark"),
        (b"x\xff,y,1", "not UTF-8, the user"),
        (b"x,y\xff,1", "not UTF-8, the item"),
        ("x" * 200_000 + ",y,1", ""),
    ],
)
def test_bad_lines(request, file, as_lists, fails, warnings_of, line, message):
    quick = "quick" in request.node.name
    if quick and len(line) > 10**5:
        pytest.skip("Arrow takes it")
    data = line if isinstance(line, bytes) else line.encode()
    path = file("log.csv", b"user,item,time\n1,b,20\n2,c,5\n" + data + b"\n1,a,10\n")
    fails(lambda: read(path), "log.csv:4: ", message, "--skip-bad")
    logs = []
    (said,) = warnings_of(lambda: logs.append(read(path, skip_bad=True)))
    assert as_lists(logs[0]) == TIMED
    assert "skipped 1 " in said and "log.csv:4: " in said


@pytest.mark.parametrize("mark", ["NA", "NULL", " nan", "None", "\\N", "-"])
def test_marks_of_missing_ids(file, as_lists, fails, warnings_of, mark):
    path = file("log.csv", f"user,item,time\n1,b,3\n{mark},c,2\n1,{mark},1\n")
    fails(lambda: read(path), f"log.csv:3: the user is missing, {mark}")
    logs = []
    (said,) = warnings_of(lambda: logs.append(read(path, skip_bad=True)))
    # Among text it may be an id.
    assert as_lists(logs[0]) == {1: [mark, "b"]}
    assert "skipped 1 " in said


@pytest.mark.parametrize("cut", [",", "\t"])
def test_quotes_as_people_type_them(file, as_lists, fails, cut):
    lines = ["user;title;item", '1;say "hi";b', '1;"Untitled;c', '2;"Hi" (live);a']
    path = file("log.csv", "\n".join([*lines, '2;"Other;d', ""]).replace(";", cut))
    if cut == "\t":
        assert as_lists(read(path)) == {1: ["b", "c"], 2: ["a", "d"]}
    else:
        # Two titles that are not closed would take the lines between them.
        fails(lambda: read(path), "log.csv:3: ")
    if cut == "\t":
        path = file("log.tsv", '7\t"Hi" (live)\tx y z\n8\t"Hi\tx y\n7\tHi\ta\n')
        assert as_lists(read(path, user=0, item=2)) == {7: ["x y z", "a"], 8: ["x y"]}
    # Ids in quotes are no such titles.
    if cut == "\t":
        path = file("log.csv", '"user"\t"item"\n"1"\t"b"\n"2"\t"c\n')
        fails(lambda: read(path), "log.csv:3: a quote opens a field")
        text = 'user\titem\ttitle\n"1"\t"b"\tx\n"2"\t"c"\t"Hi\n'
        fails(lambda: read(file("log.csv", text)), "log.csv:3: a quote opens a field")
    text = 'user;title;item\n1;"a;""b"";";"x\ny"\n1;"";z\n'.replace(";", cut)
    assert as_lists(read(file("log.csv", text))) == {1: ["x\ny", "z"]}


def test_files_that_were_joined(file, as_lists, fails, warnings_of):
    path = file("log.csv", "user,item\n1,b\nuser,item\n2,c\nuser,jam\n")
    fails(lambda: read(path), "log.csv:3: the header again, ['user', 'item']")
    again = file("again.csv", "user,item\nuser,item\n1,b\n")
    fails(lambda: read(again), "again.csv:2: the header again")
    logs = []
    (said,) = warnings_of(lambda: logs.append(read(path, skip_bad=True)))
    assert as_lists(logs[0]) == {"1": ["b"], "2": ["c"], "user": ["jam"]}
    assert "skipped 1 " in said


def test_all_bad_lines_are_counted(file, as_lists, fails, warnings_of):
    lines = ["# a", "user,item,time", "1,b,20", "#", "1", "1,a,10", "2,c,5", "x,y,z"]
    path = file("log.csv", "\n".join(lines))
    logs = []
    (said,) = warnings_of(lambda: logs.append(read(path, skip_bad=True)))
    assert as_lists(logs[0]) == TIMED
    assert "skipped 4 " in said and "log.csv:1: " in said
    path = file("log.csv", "user,item,time\n1\n2\n")
    fails(lambda: read(path, skip_bad=True), "no interactions", "log.csv:2: 1 fields")


def test_a_quote_that_is_not_closed(file, as_lists, fails, warnings_of):
    path = file("log.csv", 'user,item\n1,b\n2,"c\n3,d\n4,e\n')
    fails(lambda: read(path), "log.csv:3: a quote opens a field and none closes it")
    logs = []
    (said,) = warnings_of(lambda: logs.append(read(path, skip_bad=True)))
    # It does not take the lines behind it.
    assert as_lists(logs[0]) == {1: ["b"], 3: ["d"], 4: ["e"]}
    assert "skipped 1 " in said
    # Nor if a quote of another line might close it.
    text = 'user,title,item\n1,"Untitled,b\n2,x,c\n1,say "hi",d\n'
    path = file("log.csv", text)
    fails(lambda: read(path), "log.csv:2: a quote opens a field and none closes it")
    _, said = warnings_of(lambda: logs.append(read(path, skip_bad=True)))
    assert as_lists(logs[1]) == {1: ["d"], 2: ["c"]}
    assert "skipped 1 " in said


@pytest.mark.parametrize("seed", range(20))
def test_quotes_anywhere(tmp_path, seed):
    """Both parsers agree, whatever the quotes are."""
    rng = random.Random(seed)
    for _ in range(20):
        pieces = ['"', '"', '""', ",", "\n", "x", "y z", "1", "\r\n", "\t"]
        text = "user,note,item\n" + "".join(rng.choices(pieces, k=rng.randint(1, 25)))
        path = tmp_path / "log.csv"
        path.write_bytes(text.encode())
        outcomes = []
        for parse in (delimited._parse_with_arrow, mock.Mock(side_effect=ValueError)):
            with mock.patch.object(delimited, "_parse_with_arrow", parse):
                try:
                    log = read(path)
                    outcomes.append(
                        [
                            log.user_ids.tolist(),
                            log.item_ids.tolist(),
                            str(log.sequences),
                        ]
                    )
                except ValueError as error:
                    outcomes.append(str(error))
        assert outcomes[0] == outcomes[1], text


def test_bytes_in_columns_that_are_not_read(file, as_lists):
    text = "user,title,item,time\n1,Caf\xe9,b,20\n2,\xff,c,5\n1,x,a,10\n"
    assert as_lists(read(file("log.csv", text.encode("latin-1")))) == TIMED


def test_a_return_is_no_blank(file, fails):
    path = file("log.csv", "user item\r\n1 \t10 \r\n2\r20\r\n")
    fails(lambda: read(path), "log.csv:3: new-line character seen in unquoted field")


def test_line_ends_of_old_macs(file, as_lists):
    path = file("log.csv", "user,item,time\r1,b,20\r2,c,5\r1,a,10\r")
    assert as_lists(read(path)) == TIMED


@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.inter", "log.dat"])
def test_blank_lines_and_no_lines(file, fails, name):
    for content in ("", "\n \n", "\ufeff", "\ufeff\r\n", "\r"):
        path = file(name, content)
        fails(lambda: read(path), f"{path}: the file is empty")
    for content in ("# only\n# comments\n", "user,item\n", "user,item\n\n"):
        content = (
            content.replace("user,item", "user:token\titem:token")
            if ("inter" in name)
            else content
        )
        path = file(name, content)
        fails(lambda: read(path, skip_bad=True), f"{path}: the file has no inter")


def test_messages_print_no_whole_value(file, fails):
    long = "x" * 10**6
    path = file("log.csv", f"{long},{long}\n{long}\n")
    fails(lambda: read(path), "log.csv:1: ")
    fails(lambda: read(path, user="u", item="i"), "log.csv:1: ")
    path = file("log.csv", f"user,item,time\n1,2,3\n1,{long}\n")
    fails(lambda: read(path), "log.csv:")
    many = ",".join(f"column{i}" for i in range(1000))
    fails(lambda: read(file("log.csv", many + "\n")), "column0, column1", "...")


# RecBole


def test_recbole(file, as_lists, fails):
    header = "rating:float\titem_id:token\ttimestamp:float\tuser_id:token"
    text = f"{header}\n5\tb\t20\t1\n4\tc\t5\t2\n3\ta\t10\t1\n"
    assert as_lists(read(file("log.inter", text))) == TIMED
    # There are no quotes, and times may be missing.
    text = 'user_id:token\titem_id:token\n"a\tb"\n"a\tc\n'
    assert as_lists(read(file("log.inter", text))) == {'"a': ['b"', "c"]}
    path = file("log.inter", "user_id:token\titem_id\n1\t2\n")
    fails(lambda: read(path), "log.inter:1: the column 'item_id' has no type")


# Writing


@pytest.mark.parametrize(
    "awkward", ["#a", "\ufeffa", "% a", "//", "a\rb", "a\nb", 'a"', ",", "\t"]
)
@pytest.mark.parametrize("name", ["log.csv", "log.tsv"])
def test_awkward_ids_are_written_so_that_they_come_back(
    tmp_path, as_lists, awkward, name
):
    log = InteractionLog.from_columns([awkward, "z"], ["x", awkward], name="log")
    write(log, tmp_path / name)
    assert as_lists(read(tmp_path / name)) == {awkward: ["x"], "z": [awkward]}


def test_ids_beyond_a_recbole_file(tmp_path, fails):
    for awkward in ("a\tb", "a\nb", "a\rb", "# a", "\ufeffa"):
        log = InteractionLog.from_columns([awkward], ["x"], name="log")
        fails(lambda: write(log, tmp_path / "log.inter"), "write .csv or .parquet")
    assert list(tmp_path.iterdir()) == []
    # An item is not what a line begins with.
    log = InteractionLog.from_columns(["u"], ["# x"], name="log")
    write(log, tmp_path / "log.inter")
    assert read(tmp_path / "log.inter").item_ids.tolist() == ["# x"]


def test_both_parsers_agree_on_large_files(file):
    """Several of Arrow's blocks, ties, and a float in the last line only."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 500, 150_000), rng.integers(0, 10**6, 150_000)
    days = np.sort(rng.integers(0, 3, 150_000))
    rows = [f"{u},{i},{d}" for u, i, d in zip(users, items, days, strict=True)]
    rows[-1] += ".5"
    log = read(file("large.csv", "\n".join(["user,item,time", *rows])))
    order = np.argsort(users, kind="stable")
    np.testing.assert_array_equal(log.item_ids[log.sequences.values], items[order])
    np.testing.assert_array_equal(log.user_ids[log.sequences.rows], users[order])


def test_times_stay_with_their_rows_where_one_is_skipped(file, as_lists, warnings_of):
    path = file("log.csv", "user,item,time\nNA,7,1\n1,8,30\n1,9,20\n")
    logs = []
    warnings_of(lambda: logs.append(read(path, skip_bad=True)))
    assert as_lists(logs[0]) == {1: [9, 8]}
