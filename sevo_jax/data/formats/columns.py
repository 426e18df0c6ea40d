"""Which columns of a table are the users, the items and the times."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sevo_jax._messages import listed, named, shown

# Usual names, in lower case and without "_", "-" and spaces, the best ones first.
USUAL_NAMES = {
    "user": (
        *("userid", "user", "uid", "reviewerid", "customerid", "customer"),
        *("clientid", "visitorid", "memberid", "accountid", "buyerid", "shopperid"),
        *("personid", "profileid", "authorid", "username", "sessionid", "playlistid"),
    ),
    "item": (
        *("itemid", "item", "iid", "parentasin", "asin", "sku", "skuid", "productid"),
        *("product", "productcode", "stockcode", "articleid", "movieid", "bookid"),
        *("songid", "trackid", "artistid", "albumid", "videoid", "businessid"),
        *("recipeid", "gameid", "appid", "animeid", "newsid", "venueid", "locationid"),
        *(
            "poiid",
            "contentid",
            "listingid",
            "courseid",
            "restaurantid",
            "isbn",
            "gmapid",
        ),
    ),
    "timestamp": (
        *("timestamp", "time", "ts", "unixreviewtime", "unixtimestamp", "datetime"),
        *("date", "eventtime", "eventtimestamp", "eventdate", "createdat", "created"),
        *("creationdate", "updatedat", "reviewedat", "ratedat", "orderdate"),
        *(
            "ordertime",
            "purchasedate",
            "purchasetime",
            "invoicedate",
            "transactiondate",
        ),
        *("tdat", "dateadded", "clicktime", "visittime", "utctime", "utctimestamp"),
        *("timems", "unixtime"),
    ),
}


class Positions(NamedTuple):
    """The positions, from 0, of the columns of a table; `timestamp` may be missing."""

    user: int
    item: int
    timestamp: int | None


def find(
    where: str, header: Sequence[str], columns: Mapping[str, str | int]
) -> Positions:
    """Finds the columns by what they are said to be, or by their usual names.

    Args:
      where: what messages begin with.
      header: the names of all columns.
      columns: names or positions of columns, by "user", "item" and "timestamp".

    Raises:
      ValueError: there is no such column, two have its name, or one column would be
        two of the three.

    Examples:
      >>> find("log.csv", ["CustomerID", "StockCode", "Quantity"], {})
      Positions(user=0, item=1, timestamp=None)
    """
    user, item, timestamp = (
        find_one(where, header, title, columns.get(title)) for title in USUAL_NAMES
    )
    if user is None or item is None:
        title = "user" if user is None else "item"
        raise ValueError(
            f"{where}: no column is named {title}, {title}_id or alike; there are "
            f"{listed(header)}: give the column of the {title}s, {option(title)}"
        )
    if len({user, item, timestamp}) < 3:
        raise ValueError(
            f"{where}: the column {shown(header[user])} or {shown(header[item])} is "
            f"taken twice, for two of {', '.join(USUAL_NAMES)}: give each its own"
        )
    return Positions(user, item, timestamp)


def find_by_name(
    where: str, header: Sequence[str], columns: Mapping[str, str | int]
) -> Positions:
    """`find` in a table all of whose columns have names, which may be numbers.

    A DataFrame calls its columns so by default. The number of a column is its name
    then, and its position only if none is called so.

    Examples:
      >>> find_by_name("log.parquet", ["1", "0"], {"user": 1, "item": 0})
      Positions(user=0, item=1, timestamp=None)
    """
    columns = {
        title: str(column) if str(column) in header else column
        for title, column in columns.items()
    }
    return find(where, header, columns)


def find_one(
    where: str, header: Sequence[str], title: str, given: str | int | None
) -> int | None:
    """Returns the position of one column; None if it is not given and not there.

    Args:
      where: what messages begin with.
      header: the names of all columns.
      title: "user", "item" or "timestamp".
      given: what the column is said to be; None to look for usual names.
    """
    if isinstance(given, int):
        if not 0 <= given < len(header):
            raise ValueError(
                f"{where}: there is no column {given}; the {len(header)} columns have "
                f"the numbers 0 to {len(header) - 1}: change {option(title)}"
            )
        return given
    names = [name.strip().lower() for name in header]
    wanted = (given.strip().lower(),) if given is not None else USUAL_NAMES[title]
    if given is None:
        names = [re.sub(r"[\W_]", "", name) for name in names]
    name = next((name for name in wanted if name in names), None)
    if name is None:
        if given is None:
            return None
        raise ValueError(
            f"{where}: no column is named {named(given)}; there are {listed(header)}: "
            f"change {option(title)}"
        )
    if names.count(name) > 1:
        raise ValueError(
            f"{where}: two columns are named {shown(name)}: give the number of one, "
            f"{option(title)}"
        )
    return names.index(name)


def has_usual_name(header: Sequence[str]) -> bool:
    """Whether a column has one of the usual names."""
    return any(
        find_one("", [name], title, None) is not None
        for name in header
        for title in USUAL_NAMES
    )


def option(title: str) -> str:
    """How a user says which column is `title`."""
    return f"{title}=... (--{title}-column)"
