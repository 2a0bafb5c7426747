"""How much text stands in neighbouring rows, as the headers of its pages tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, pairwise, repeat, zip_longest
from math import ceil, log2
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from polar_etl.columns import is_valid
from polar_etl.footers.layout import Layout
from polar_etl.pages.headers import pages_of

_PLAIN, _PLACES, _PLAIN_LENGTHS = 0, (2, 8), 6
"""Encodings: as it stands; places in a dictionary; as it stands, behind all lengths."""
_UNLIKE = 1.5
"""How much longer than those of its dictionary on average the words of a page may be."""
_REUSED = 2
"""How often a dictionary's words may be used before it is looked up which of them are."""
_LOOK_UPS = 64
"""Chunks of a file that are looked into."""
_LOOKED_UP = 1 << 20
"""Rows of a chunk that are looked up."""
_STEPS = 4
"""Windows from a number of rows to its double."""
_MOST_WINDOWS = 40 * _STEPS
"""Rows beyond 2^40 are not told apart."""
_WORDS = [pa.dictionary(pa.int32(), kind) for kind in (pa.string(), pa.binary())]
_USUAL_PAGE = 1 << 21
"""Bytes of a page that is not a long one."""

Windows = tuple[int, ...]
"""At place k: the bytes of text in 2^(k / 4) neighbouring rows, at most."""


class Texts(NamedTuple):
    """How much text some columns hold."""

    windows: Windows = ()
    """Empty where their pages don't tell."""
    longest: int = 0
    """Bytes of the longest page or dictionary."""


def text_in(windows: Windows, rows: int) -> int:
    """Return the bytes of text in so many neighbouring rows, at most.

    Example:
        >>> text_in((5, 6, 7, 8, 9), 1), text_in((5, 6, 7, 8, 9), 2), text_in((5, 6, 7, 8, 9), 99)
        (5, 9, 9)
    """
    return windows[min(_place(rows), len(windows) - 1)]


def _place(rows: int) -> int:
    """Return the place of the shortest window that holds so many rows."""
    return ceil(_STEPS * log2(max(rows, 1)) - 1e-9)


def _reach(place: int) -> int:
    """Return the rows of the window at `place`."""
    return ceil(2 ** (place / _STEPS) - 1e-9)


def texts_in(
    file: BinaryIO,
    layout: Layout,
    leaves: Iterable[int],
    require: Callable[[int], None] = lambda _: None,
) -> Texts:
    """Return how much text some columns hold.

    What stands where inside a page is not known: texts of usual pages are taken to be alike, but
    those of a long page may all stand at one end of it.

    Args:
        file: The file.
        layout: Its layout.
        leaves: Columns of text, not nested.
        require: Is told the bytes of each dictionary before it is decoded, and may raise an error.

    Raises:
        UnusualError: A page header is damaged.
    """
    found = np.zeros(_count(sum(layout.rows)), np.int64)
    longest, look_ups = 0, repeat(require, _LOOK_UPS)
    try:
        for leaf in leaves:
            pages = _pages_of(file, layout, leaf, look_ups)
            found += _windows(pages, len(found))
            longest = max(longest, pages.longest)
    except _UntoldError:
        return Texts()
    return Texts(tuple(found.tolist()), longest)


def beside(windows: Sequence[Windows], rows: Sequence[int]) -> Windows:
    """Return how much text stands in neighbouring rows of neighbouring files.

    Args:
        windows: Of each file.
        rows: Of each file.
    """
    if len(windows) == 1:
        return windows[0]
    everything = sum(some[-1] for some in windows)
    alike = len({*rows[:-1]}) == 1 and rows[-1] <= rows[0]
    longest = tuple(accumulate(map(max, zip_longest(*windows, fillvalue=0)), max))
    found = []
    for place in range(_count(sum(rows))):
        reach = _reach(place)
        if alike:
            most = _across(longest, rows[0], reach)
        else:
            pairs, inside = zip(windows, rows, strict=True), text_in(longest, reach)
            whole = max(some[-1] * -(-reach // max(many, 1)) for some, many in pairs)
            most = max(whole, inside) + inside  # the ends of two files may meet
        found.append(min(most, everything))
    return tuple(found)


def _across(windows: Windows, rows: int, reach: int) -> int:
    """Return how much text stands in neighbouring rows of files that have so many rows each.

    Some files are inside as a whole, and of one on either side the end where most of it is.
    """
    inside = reach // rows
    return max(
        many * windows[-1] + _in_two(windows, reach - many * rows)
        for many in range(max(inside - 2, 0), inside + 1)
    )


def _in_two(windows: Windows, rows: int) -> int:
    """Return how much text stands in so many rows of two files."""
    found = text_in(windows, rows) if rows else 0
    for place, text in enumerate(windows):
        fewest = int(2 ** ((place - 1) / _STEPS) + 1e-9) + 1  # rows that need this window
        if 2 * fewest > rows:
            break
        found = max(found, text + text_in(windows, rows - fewest))
    return found


def _count(rows: int) -> int:
    return min(_place(rows) + 1, _MOST_WINDOWS)


class _Pages(NamedTuple):
    """The pages of a column of text, in row order."""

    rows: list[int]
    sizes: list[int]
    """Bytes of text that each may hold."""
    longest: int
    """Bytes of the longest whose text stands there."""


def _pages_of(
    file: BinaryIO, layout: Layout, leaf: int, look_ups: Iterator[Callable[[int], None]]
) -> _Pages:
    """Return the pages of a column.

    Raises:
        _UntoldError: One is encoded in a way that does not tell.
    """
    rows: list[int] = []
    sizes: list[int] = []
    longest = 0
    for group in (group for group, there in enumerate(layout.rows) if there):
        some, suspicious = _pages_of_chunk(file, layout.span(group, leaf))
        if suspicious and (require := next(look_ups, None)):
            require(some.longest)
            known = _looked_up(file, group, leaf, some.rows[:suspicious])
            some.sizes[: len(known)] = known
        rows += some.rows
        sizes += some.sizes
        longest = max(longest, some.longest)
    return _Pages(rows, sizes, longest)


def _pages_of_chunk(file: BinaryIO, span: tuple[int, int, int]) -> tuple[_Pages, int]:
    """Return the pages of a chunk, and how many of the first are to be looked up."""
    rows: list[int] = []
    sizes: list[int] = []
    longest = words = looked_up = 0
    word = 0.0
    for page in pages_of(file.fileno(), *span):
        if page.encoding is None:  # a dictionary
            words, word = page.size, page.size / max(page.values, 1)
            continue
        if page.encoding in _PLACES:
            size = int(_UNLIKE * page.values * word)
            looked_up += len(rows) == looked_up
        elif page.encoding in (_PLAIN, _PLAIN_LENGTHS):
            size, longest = page.size, max(longest, page.size)
        else:
            raise _UntoldError
        rows.append(page.values)
        sizes.append(size)
    suspicious = sum(sizes[:looked_up]) > max(_REUSED * words, _USUAL_PAGE)
    return _Pages(rows, sizes, max(longest, words)), looked_up * suspicious


class _UntoldError(Exception):
    """Page headers don't tell how much text there is."""


def _looked_up(file: BinaryIO, group: int, leaf: int, rows: Sequence[int]) -> list[int]:
    """Return the bytes of text in the first pages of a chunk, whose words a dictionary holds.

    Args:
        file: The file.
        group: Row group.
        leaf: Column.
        rows: Of each page; the first of them, up to a million rows, are looked at.
    """
    starts = np.cumsum([0, *rows])
    few = int(np.searchsorted(starts, _LOOKED_UP, "right")) - 1
    if not few:
        return []
    with pq.ParquetFile(file, read_dictionary=[leaf], pre_buffer=False) as opened:
        batches = opened.reader.iter_batches(
            int(starts[few]), row_groups=[group], column_indices=[leaf], use_threads=False
        )
        words = next(batches).column(0)
    if words.type not in _WORDS or len(words) != starts[few]:
        return []
    lengths = np.diff(np.frombuffer(words.dictionary.buffers()[1], np.int32))
    places = np.frombuffer(words.indices.buffers()[1], np.int32)[: len(words)]
    there = is_valid(words.indices)
    return [
        int(lengths[places[first:stop][there[first:stop]]].sum())
        for first, stop in pairwise(starts[: few + 1].tolist())
    ]


def _windows(pages: _Pages, count: int) -> npt.NDArray[np.int64]:
    bounds = np.concatenate([[0], np.cumsum(pages.rows)])
    before = np.concatenate([[0], np.cumsum(pages.sizes)])
    long = 2 * pages.longest if pages.longest > _USUAL_PAGE else 0
    found = []
    for place in range(count):
        first = np.maximum(np.concatenate([bounds, bounds - _reach(place)]), 0)
        low, high = (np.interp(at, bounds, before) for at in (first, first + _reach(place)))
        found.append(min(ceil((high - low).max()) + long, int(before[-1])))
    return np.array(found, np.int64)
