"""Times of interactions: numbers, dates and text, as arrays that sort exactly."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal

import numpy as np

from sevo_jax._messages import shown

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_DATE = re.compile(r"[0-9]{4}(-[0-9]{2}-|[0-9]{2})[0-9]{2}([T ].*)?")
_FRACTION = re.compile(r"([T ][0-9]{2}(?::[0-9]{2}:[0-9]{2}|[0-9]{4}))[.,]([0-9]+)")
_ZONE_BY_NAME = re.compile(r" *(UTC|GMT|Z)$", re.IGNORECASE)
_EPOCH = datetime(1970, 1, 1)


class TimeParser:
    """Turns the text of times, all of them of one kind, into exact numbers.

    The kinds are numbers in any unit, and ISO 8601 dates with or without a time of the
    day, a fraction of any length and a zone; without a zone a date is one of UTC. What
    could be read in two ways, such as 01/02/2020, is refused.

    Examples:
      >>> parse = TimeParser()
      >>> early = parse("2020-01-01T00:00:00+02:00")
      >>> early < parse("2019-12-31 23:59:59.5 UTC") < parse("2020-01-01")
      True
    """

    def __init__(self):
        self._parse: Callable[[str], int | Decimal] | None = None

    def __call__(self, text: str) -> int | Decimal:
        """Returns the time as a number.

        Raises:
          ValueError: it is not of the kind of those before; or it is the first, and
            of no kind.
        """
        for parse in (_number, _moment) if self._parse is None else (self._parse,):
            try:
                number = parse(text.strip())
            except (ValueError, OverflowError):
                continue
            self._parse = parse
            return number
        if self._parse is not None:
            kind = "a number" if self._parse is _number else "an ISO date"
            raise ValueError(
                f"the timestamp {shown(text)} is not {kind}, as those before it are"
            )
        raise ValueError(
            f"the timestamp {shown(text)} is neither a number nor an ISO date such as "
            "2014-07-23 or 2014-07-23T10:30:00Z: convert the times to one of these"
        )


def looks_like_a_time(text: str) -> bool:
    """Whether `TimeParser` takes `text`."""
    try:
        TimeParser()(text)
    except ValueError:
        return False
    return True


def ranked(times: Sequence[int | Decimal]) -> np.ndarray:
    """Returns int64 `[len(times)]` in the order of exact numbers, equal where they are.

    Examples:
      >>> ranked([1400000000000000001, Decimal("1400000000000000000.5")]).tolist()
      [1, 0]
    """
    ranks = {time: rank for rank, time in enumerate(sorted(set(times)))}
    return np.fromiter((ranks[time] for time in times), np.int64, len(times))


def sortable(times: Sequence | np.ndarray) -> np.ndarray:
    """Returns times as an array of numbers or dates that sorts as they do.

    Args:
      times: numbers, `datetime64`, `datetime` or ISO text.

    Raises:
      TypeError: they are of another type.
      ValueError: one is not finite, missing, or text that is no time.

    Examples:
      >>> sortable([1.5, 0]).argsort().tolist()
      [1, 0]
      >>> sortable([datetime(2020, 1, 2), datetime(2020, 1, 1)]).argsort().tolist()
      [1, 0]
    """
    if not isinstance(times, np.ndarray) and hasattr(times, "__array__"):
        times = np.asarray(times)
    if isinstance(times, np.ndarray) and times.dtype.kind not in "iufMUTO":
        raise TypeError(
            f"timestamps are {times.dtype}, but must be numbers, dates or ISO text: "
            "convert them"
        )
    if isinstance(times, np.ndarray) and times.dtype.kind in "iufM":
        bad = np.isnat(times) if times.dtype.kind == "M" else ~np.isfinite(times)
        if bad.any():
            raise _bad(int(np.argmax(bad)), times[np.argmax(bad)])
        return times
    if set(map(type, times)) in ({int}, {float}):
        numbers = np.asarray(times)
        # Of integers beyond 64 signed bits NumPy makes floats, or objects.
        if numbers.dtype == type(times[0]):
            return sortable(numbers)
    return ranked(list(_exact(times)))


def _exact(times: Iterable) -> Iterable[int | Decimal]:
    parse = TimeParser()
    for entry, time in enumerate(times):
        if isinstance(time, bool) or time is None:
            raise _bad(entry, time)
        # Text says exactly what a time is; of a float if it has all digits.
        if isinstance(time, float | np.floating):
            text = str(Decimal(float(time)))
        else:
            text = time.isoformat() if hasattr(time, "isoformat") else str(time)
        try:
            yield parse(text)
        except ValueError as error:
            raise ValueError(f"timestamp {entry}: {error}") from error


def _bad(entry: int, time: object) -> ValueError:
    return ValueError(
        f"timestamp {entry} is {time}: drop or repair interactions without a time"
    )


def _number(text: str) -> int | Decimal:
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise ValueError
    # Nanoseconds since 1970 lose their last digits as floats.
    return int(text) if text.isdigit() else Decimal(text)


def _moment(text: str) -> int:
    """Attoseconds since 1970: more digits than any log has, and exact."""
    digits = ""
    if not _DATE.fullmatch(text):
        raise ValueError
    if fraction := _FRACTION.search(text):
        digits = fraction[2][:18]
        text = text.replace(fraction[0], fraction[1])
    if "." in text or "," in text:
        # Of hours or minutes, which Python takes for one of seconds.
        raise ValueError
    date = datetime.fromisoformat(_ZONE_BY_NAME.sub("+00:00", text))
    offset = date.utcoffset() or timedelta(0)
    seconds = (date.replace(tzinfo=None) - _EPOCH - offset) // timedelta(seconds=1)
    return seconds * 10**18 + int(digits.ljust(18, "0"))
