"""The item graph by a database: ``sevo-jax graph --engine duckdb``."""

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from jax.experimental.sparse import BCOO

from sevo_jax import graphs
from sevo_jax.cli._options import DataOptions
from sevo_jax.data.formats.columns import find_by_name
from sevo_jax.data.formats.request import warn_of_order
from sevo_jax.data.formats.tables import parts
from sevo_jax.graphs.kinds import GraphConfig

_ORDER = ("__part", "__row")
# DuckDB's names for them, by which a column of the files would be found first.
_PLACE = ("file_index", "file_row_number")

_logger = logging.getLogger(__name__)


class Log(NamedTuple):
    """A table of the database, and what its columns are."""

    table: Any
    user: str
    item: str
    order: tuple[str, ...]


def build(
    data: DataOptions, config: GraphConfig, item_offset: int
) -> tuple[BCOO, list[str]]:
    """Builds the graph of the training part by DuckDB, as without it, bit for bit.

    The rows of the files are in their order, so that times that are equal are too. That
    DuckDB reads some nanoseconds as microseconds only, a warning says.
    What does not fit in the memory goes to the folder of temporary files.

    Returns:
      The graph, and the ids of the items in the order of their numbers.

    Raises:
      ModuleNotFoundError: DuckDB or Ibis is not installed.
      ValueError: an option is for other files; or as `graphs.cooccurrence_sql`.
    """
    given = data.parquet_columns("--engine", config.kind)
    assert data.data is not None
    files = _files(data.data)
    try:
        import duckdb
        import ibis
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed: pip install 'sevo-jax[engines]' has all "
            "that --engine needs"
        ) from None
    with tempfile.TemporaryDirectory() as folder, _naming(data.data, duckdb.Error):
        connection = ibis.duckdb.connect(temp_directory=os.path.join(folder, "spilled"))
        log = _log(connection, files, data.data, given)
        numbered = Path(folder, "items.parquet")
        connection.to_parquet(
            graphs.number_items_sql(log.table, item=log.item), numbered
        )
        items = connection.read_parquet(numbered)
        edges = graphs.cooccurrence_sql(
            log.table,
            user=log.user,
            item=log.item,
            order_by=log.order,
            items=items,
            leave_one_out=True,
            max_len=config.max_len,
            keep=config.keep,
            max_hop=config.max_hop,
            weighting=config.weighting,
        )
        connection.to_parquet(edges, Path(folder, "edges.parquet"))
        ids = items.order_by("number").item.to_pyarrow().to_pylist()
        # Its memory is needed for the graph.
        connection.disconnect()
        if not ids:
            raise ValueError(f"{data.data}: the table has no rows")
        graph = graphs.from_edges(
            Path(folder, "edges.parquet"), len(ids), item_offset=item_offset
        )
    return graph, [str(name) for name in ids]


def _files(address: str) -> list[str]:
    """The files as DuckDB takes them."""
    if os.path.isdir(address):
        return [f"{part}" for part in parts(address)]
    if not address.lower().endswith(".parquet"):
        raise ValueError(
            f"{address}: --engine reads Parquet files, a folder of them or a pattern "
            "that ends in .parquet: convert it, sevo-jax data --output FILE.parquet"
        )
    return [address]


def _log(
    connection: Any, files: list[str], address: str, given: dict[str, str | int]
) -> Log:
    schema = connection.read_parquet(files).schema()
    names = list(schema)
    for name in names:
        if name.lower() in _PLACE:
            raise ValueError(
                f"{address}: --engine numbers the rows by {', '.join(_PLACE)}, but a "
                f"column is named {name!r}: rename it"
            )
    positions = find_by_name(address, names, given)
    user, item = names[positions.user], names[positions.item]
    timestamp = None if positions.timestamp is None else names[positions.timestamp]
    if timestamp is None and len(names) > 2:
        warn_of_order(address, names)
    wanted = [_quoted(name) for name in (user, item, timestamp) if name is not None]
    # Which file a row is from, and which of its rows it is.
    wanted += [f"{name} as {order}" for name, order in zip(_PLACE, _ORDER)]
    source = ", ".join(_quoted(file, "'") for file in files)
    connection.raw_sql(
        f"create view log as select {', '.join(wanted)} from read_parquet([{source}])"
    )
    if timestamp is not None and _is_cut(connection, source, schema, timestamp):
        _logger.warning(
            "%s: the times of %r may have nanoseconds, and DuckDB reads microseconds: "
            "interactions of a user that differ by less are in the order of the rows",
            *(address, timestamp),
        )
    order = _ORDER if timestamp is None else (timestamp, *_ORDER)
    return Log(connection.table("log"), user, item, order)


def _is_cut(connection: Any, source: str, schema: Any, timestamp: str) -> bool:
    """Whether times of nanoseconds are read as DuckDB's types of microseconds."""
    kind = schema[timestamp]
    if not kind.is_timestamp() or kind.scale == 9:
        return False
    query = (
        f"select count(*) from parquet_schema([{source}]) where lower(name) = lower(?) "
        "and (type = 'INT96' or contains(logical_type, 'NANOS=NanoSeconds'))"
    )
    return connection.con.execute(query, [timestamp]).fetchone()[0] > 0


def _quoted(name: str, mark: str = '"') -> str:
    return mark + name.replace(mark, 2 * mark) + mark


@contextmanager
def _naming(address: Any, error: type[Exception]) -> Iterator[None]:
    """Turns what DuckDB raises into one error that names the address."""
    try:
        yield
    except error as found:
        reason = f"{found}".partition("\n")[0][:200]
        raise ValueError(f"{address}: DuckDB fails with {reason}") from found
