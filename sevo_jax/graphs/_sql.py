"""The graph of co-occurrences as a query, for a log that lives in a database."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sevo_jax._messages import listed, named
from sevo_jax.graphs import _checks

if TYPE_CHECKING:
    import ibis

# With fewer interactions `sevo_jax.data.leave_one_out` holds nothing out.
_FEWEST_FOR_HOLDOUT = 4


def cooccurrence_sql(
    table: "ibis.Table",
    *,
    user: str = "user",
    item: str = "item",
    order_by: str | Sequence[str] = "timestamp",
    items: "ibis.Table | None" = None,
    leave_one_out: bool = False,
    max_len: int | None = None,
    keep: str = "last",
    max_hop: int = 1,
    weighting: str = "distance",
) -> "ibis.Table":
    r"""The edges of :func:`cooccurrence`, as a query of the engine that has the log.

    The engine is that of the table's connection: DuckDB, Spark, BigQuery, Snowflake or
    any other that `Ibis <https://ibis-project.org>`_ speaks to. It sorts the log once,
    by user and time, and looks ahead within each user by window functions; no table is
    joined with itself, and what does not fit in its memory is the engine's to spill.

    What the result says is what :func:`cooccurrence` says of the same sequences, entry
    by entry and bit for bit: each pair is counted at each distance, the counts times
    their weights are summed in float64 in the order of the distances, and
    :func:`from_edges` rounds to float32.

    A table has no order but that of its columns. Interactions of a user that
    `order_by` does not tell apart are ordered by their items, so that the result is
    determined; a log that was read from a file keeps the order of its lines there. To
    get the same, add a column that numbers the rows: ``order_by=("timestamp", "row")``.

    Before it returns, the engine is asked once whether a value is missing in these
    columns; the query itself runs when the result is written or read.

    Args:
      table: the log, a row an interaction, on a connection of Ibis (extra
        ``sevo-jax[engines]``). Give training interactions alone, for example
        ``table.filter(table.timestamp < start_of_test)``.
      user: the column of users, integers or text.
      item: the column of items, integers or text.
      order_by: the column of times, numbers or dates; or several, the most
        important first.
      items: what the items are numbered by, such as :func:`number_items_sql`: a table
        of the same connection with the columns ``item`` and ``number``, each item once.
        Interactions with other items are left out, before anything is counted. None if
        the items are numbered from 0 already.
      leave_one_out: whether to leave out the last two interactions of each user with
        at least four of them, the validation and test items of
        ``sevo_jax.data.leave_one_out``.
      max_len: :math:`K`, how many interactions of a user count, at least 1; ``None``
        for all.
      keep: which :math:`K` interactions count, ``"last"`` or ``"first"``.
      max_hop: :math:`H`, the largest distance of two related items, at least 1.
      weighting: ``"distance"`` or ``"frequency"``.

    Returns:
      A table with a row for each pair of linked items, :math:`i \le j`, in no order:
      ``i``, ``j`` and ``weight``, in float64, their entry in the adjacency. Write it
      with its ``to_parquet``; :func:`from_edges` reads it.

    Raises:
      ModuleNotFoundError: if Ibis is not installed.
      TypeError: if `table` is no table of Ibis, a column has a type that it must not
        have, or a count is no integer.
      ValueError: if a column is not there or lacks a value in some row, a count is out
        of range, or ``keep`` or ``weighting`` is unknown.

    Examples:
      >>> import ibis, pathlib, pyarrow, tempfile
      >>> import sevo_jax as sevo
      >>> columns = {
      ...     "user": [7, 7, 7, 8, 8],
      ...     "item": ["tea", "cup", "pot", "pot", "cup"],
      ...     "timestamp": [1, 2, 3, 1, 2],
      ... }
      >>> log = ibis.memtable(pyarrow.table(columns))
      >>> items = sevo.graphs.number_items_sql(log)
      >>> edges = sevo.graphs.cooccurrence_sql(log, items=items)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder, "edges.parquet")
      ...     edges.to_parquet(path)
      ...     print(sevo.graphs.from_edges(path, num_items=3).todense())
      [[0. 2. 1.]
       [2. 0. 0.]
       [1. 0. 0.]]

    See also:
      :func:`sevo_jax.graphs.cooccurrence` of sequences in memory or in sorted files.
    """
    ibis = _ibis()
    max_hop = _checks.count("max_hop", max_hop, 1)
    if max_len is not None:
        max_len = _checks.count("max_len", max_len, 1)
    _checks.choice("keep", keep, ("last", "first"))
    _checks.choice("weighting", weighting, ("distance", "frequency"))
    order = (order_by,) if isinstance(order_by, str) else tuple(order_by)
    _check_columns(table, {"user": user, "item": item}, order)

    log: Any = table.select(
        user=table[user],
        item=table[item],
        **{f"order{place}": table[name] for place, name in enumerate(order)},
    )
    if items is not None:
        log = _numbered(log, items)
    orders = [f"order{place}" for place in range(len(order))]
    by_user = ibis.window(group_by="user", order_by=[*orders, "item"])
    log = log.select(
        "item",
        place=ibis.row_number().over(by_user),
        size=log.count().over(ibis.window(group_by="user")),
        **{f"next{hop}": log.item.lead(hop).over(by_user) for hop in _hops(max_hop)},
    )
    # The places that count are from `begin` up to `end`, without it.
    begin, end = 0, log.size
    if leave_one_out:
        end = (end >= _FEWEST_FOR_HOLDOUT).ifelse(end - 2, end)
    if max_len is not None and keep == "last":
        begin = end - max_len
    elif max_len is not None:
        end = ibis.least(end, max_len)
    pairs = []
    for hop in _hops(max_hop):
        both = log.filter(log.place >= begin, log.place + hop < end)
        one, two = both.item, both[f"next{hop}"]
        pairs.append(
            both.select(
                i=ibis.least(one, two),
                j=ibis.greatest(one, two),
                hop=ibis.literal(hop, "int8" if hop < 128 else "int64"),
            )
        )
    return _weighted(pairs, max_hop, weighting)


def number_items_sql(table: "ibis.Table", *, item: str = "item") -> "ibis.Table":
    """Numbers the items of a log from 0 as ``sevo_jax.data`` does, in their order.

    Integers are ordered by value and text by code point, which is how
    ``sevo_jax.data.read`` numbers the items of the same log: the number of an item is
    its place in ``log.item_ids``, and its node in a graph with ``item_offset=0``. Keep
    the table: it says what the rows of the trained embedding are.

    To use the items of a log or a run that is there already, give
    :func:`cooccurrence_sql` a table of them instead: ``ibis.memtable(pyarrow.table(
    {"item": log.item_ids, "number": range(log.num_items)}))``.

    Args:
      table: the log, on a connection of Ibis.
      item: the column of items, integers or text.

    Returns:
      A table with a row for each item: ``item`` and ``number``, int32.

    Raises:
      ModuleNotFoundError: if Ibis is not installed.
      TypeError: if `table` is no table of Ibis, or its items are of another type.
      ValueError: if there is no such column, or an item is missing in some row.

    Examples:
      >>> import ibis, pyarrow
      >>> import sevo_jax as sevo
      >>> table = pyarrow.table({"item": ["tea", "cup", "pot", "cup"]})
      >>> log = ibis.memtable(table)
      >>> items = sevo.graphs.number_items_sql(log)
      >>> items.order_by("number").to_pyarrow().to_pylist()[:2]
      [{'item': 'cup', 'number': 0}, {'item': 'pot', 'number': 1}]
    """
    ibis = _ibis()
    _check_columns(table, {"item": item}, ())
    items = table.select(item=table[item]).distinct()
    number = ibis.row_number().over(ibis.window(order_by="item"))
    return items.mutate(number=number.cast("int32"))


def _ibis() -> Any:
    try:
        import ibis
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed: pip install 'sevo-jax[engines]' has all "
            "that graphs by a database need"
        ) from None
    return ibis


def _hops(max_hop: int) -> range:
    return range(1, max_hop + 1)


def _numbered(log: Any, items: Any) -> Any:
    """The log with numbers for items, without those that have none."""
    _check_table("items", items)
    _column("items", items, "item", "item")
    number = _column("items", items, "number", "number")
    if not number.type().is_integer():
        raise TypeError(f"items.number is {number.type()}: it must be integers, from 0")
    if log.item.type().is_integer() != items["item"].type().is_integer():
        raise TypeError(
            f"the items of the log are {log.item.type()}, those of items "
            f"{items['item'].type()}: cast one to the type of the other"
        )
    numbers = items.select(id=items["item"], number=number)
    (found,) = (
        numbers.aggregate(
            rows=numbers.count(), ids=numbers.id.nunique(), numbers=number.nunique()
        )
        .to_pyarrow()
        .to_pylist()
    )
    if len(set(found.values())) > 1:
        raise ValueError(
            f"items has {found['rows']} rows, with {found['ids']} different items and "
            f"{found['numbers']} different numbers: give each item once, with a number "
            "of its own"
        )
    joined = log.inner_join(numbers, log.item == numbers.id)
    return joined.drop("item", "id").rename(item="number")


def _weighted(pairs: Sequence[Any], max_hop: int, weighting: str) -> Any:
    """Counts the pairs of each hop, and sums up the counts times their weights."""
    together = pairs[0] if max_hop == 1 else pairs[0].union(*pairs[1:])
    if weighting == "frequency" or max_hop == 1:
        counted = together.group_by("i", "j").aggregate(weight=together.count())
        weight = counted.weight.cast("float64")
    else:
        counted = together.group_by("i", "j").aggregate(
            **{
                f"n{hop}": together.count(where=together.hop == hop)
                for hop in _hops(max_hop)
            }
        )
        # The shortest hop first, as float64 sums depend on the order.
        weight = counted.n1.cast("float64")
        for hop in range(2, max_hop + 1):
            weight = weight + counted[f"n{hop}"].cast("float64") / float(hop)
    # Algorithm 4 adds to both entries of a pair, which of a self-loop are one.
    doubled = (counted.i == counted.j).ifelse(2 * weight, weight)
    return counted.select("i", "j", weight=doubled)


def _check_table(name: str, table: Any) -> None:
    if not isinstance(table, _ibis().Table):
        raise TypeError(
            f"{name} is {type(table).__name__}, not a table of Ibis: take one of a "
            "connection, connection.table(NAME), or ibis.memtable(FRAME)"
        )


def _column(name: str, table: Any, title: str, column: str) -> Any:
    if column not in table.columns:
        raise ValueError(
            f"{name} has no column {named(column)}; there are "
            f"{listed(table.columns)}: give the name of one, {title}=..."
        )
    return table[column]


def _check_columns(table: Any, ids: dict[str, str], order: Sequence[str]) -> None:
    """Refuses columns of types that do not sort as meant, and missing values."""
    _check_table("table", table)
    missing = {}
    for title, name in ids.items():
        column = _column("table", table, title, name)
        kind = column.type()
        if not (kind.is_integer() or kind.is_string()):
            raise TypeError(
                f"the column {named(name)} of the {title}s is {kind}, but must hold "
                "integers or text: cast it first"
            )
        missing[name] = column.isnull()
        if kind.is_string():
            missing[name] |= column == ""
    for name in order:
        column = _column("table", table, "order_by", name)
        kind = column.type()
        if not (kind.is_numeric() or kind.is_temporal()):
            raise TypeError(
                f"the column {named(name)} of order_by is {kind}, but must hold "
                "numbers or dates, as the text '9' comes after '10': cast it first"
            )
        missing[name] = column.isnull()
        if kind.is_floating():
            missing[name] |= column.isnan() | column.isinf()
    if not order and "user" in ids:
        raise ValueError("order_by is empty: name a column of times or row numbers")
    counts = table.aggregate(
        **{f"n{place}": each.sum() for place, each in enumerate(missing.values())}
    )
    (found,) = counts.to_pyarrow().to_pylist()
    for name, count in zip(missing, found.values(), strict=True):
        if count:
            raise ValueError(
                f"the column {named(name)} has no value in {count} rows (null, NaN, "
                "infinite or an empty text): repair them, or leave them out by "
                "table.filter(...)"
            )
