"""Text in terms of its words: each once, in order of appearance, and which of them stands where."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from functools import partial
from itertools import groupby, pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from polar_etl.columns import Bools, array_of, is_valid, piece_of, word_type
from polar_etl.encoding.uniqueness import hardly_repeat, there

Ints = npt.NDArray[np.int64]

LETTERS = 1 << 23
"""Bytes of text that are held as plain text at a time."""
_WORDS, _REPEATED = 1 << 20, 16
"""A text gets a dictionary if its words have at most so many bytes, as with PyArrow, or the bytes
of the text by so many."""
_FEW_WORDS, _SAVED = 1 << 8, 2
"""More than so few words must be shorter than the text by so much, or are too many."""
_END = 1 << 6
"""Letters at either end of a text that is held against others."""
_LONG_WORD, _COPIED = 1 << 10, 1 << 14
"""Letters that a word may have that is copied with others; letters that are copied at once."""


def words_of(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray | pa.DictionaryArray:
    """Return text as words and their places; in pieces, if its words are too many.

    Each piece is plain text while it is encoded. Only the letters themselves decide on that, and
    where a piece ends.

    Args:
        column: Some text; as it stands, or words and their places already.
        kind: Type of the column.
    """
    column = _of_words(column, kind)
    words = pa.types.is_dictionary(column.type)
    if _hardly_repeats(column):
        return pa.chunked_array(list(_pieces(column)))
    found: list[pa.DictionaryArray] = []
    waiting: list[pa.DictionaryArray] = []
    done = seen = 0
    for piece in _by_dictionary(column) if words else _pieces(column):
        waiting.append(_used(piece) if words else piece.dictionary_encode())
        seen += len(piece)
        if seen < min(2 * done, len(column)):
            continue  # of many short pieces, words are looked up anew each time
        found, waiting, done = [_by_one_dictionary([*found, *waiting])], [], seen
        if _are_many(found[0].dictionary, column):
            return pa.chunked_array(list(_pieces(column)))
    return found[0]


def _by_one_dictionary(pieces: list[pa.DictionaryArray]) -> pa.DictionaryArray:
    """Return text in pieces as one; its words come in the order of their appearance."""
    pieces = pa.chunked_array(pieces).unify_dictionaries().chunks
    places = pa.concat_arrays([piece.indices for piece in pieces])
    return pa.DictionaryArray.from_arrays(places, pieces[0].dictionary)


def _are_many(words: pa.Array, column: pa.ChunkedArray) -> bool:
    """Tell whether words are too many for a dictionary: too long, or hardly ever repeated.

    Of the first words of a column this is only said if it is true of all of them.
    """
    ends, _ = letters_of(words)
    size, shortest = int(ends[-1] - ends[0]), int(np.diff(ends).min(initial=1 << 30))
    least = shortest * (len(column) - column.null_count)
    if size <= words_kept(0) and (len(words) <= _FEW_WORDS or size <= least // _SAVED):
        return False
    letters = sum(map(_all_letters, column.iterchunks()))
    return size > words_kept(letters) or (len(words) > _FEW_WORDS and size > letters // _SAVED)


def _hardly_repeats(column: pa.ChunkedArray) -> bool:
    """Tell whether text hardly repeats, as far as a sample tells.

    Of words it is enough if they stand in the same places, which takes less time to see.
    """
    looks = (_addresses_at, _texts_at) if pa.types.is_dictionary(column.type) else (_texts_at,)
    return all(hardly_repeat(len(column), partial(_looked_at, column, look)) for look in looks)


def _looked_at(
    column: pa.ChunkedArray, look: Callable[[pa.Array, Ints], list[Hashable]], rows: Ints
) -> list[Hashable]:
    """Return what `look` tells of some rows of the chunks of a column, nulls left out."""
    bounds = np.cumsum([0, *map(len, column.iterchunks())])
    cuts = pairwise(np.searchsorted(rows, bounds).tolist())
    return [
        seen
        for chunk, start, (low, high) in zip(column.iterchunks(), bounds[:-1], cuts, strict=True)
        if low < high
        for seen in look(chunk, there(chunk, rows[low:high] - start))
    ]


def _addresses_at(chunk: pa.DictionaryArray, rows: Ints) -> list[Hashable]:
    """Return where in memory the words of some rows are told of, none of which is null."""
    ends, _ = letters_of(chunk.dictionary)
    places = piece_of(chunk.indices).values[rows].astype(np.int64)
    found: list[Hashable] = (ends.ctypes.data + ends.itemsize * places).tolist()
    return found


def _texts_at(chunk: pa.Array, rows: Ints) -> list[Hashable]:
    """Return the letters of some rows, none of which is null; of long texts some at either end.

    Those that have these in common may be alike, which is looked at in another way then.
    """
    if pa.types.is_dictionary(chunk.type):
        return _texts_at(chunk.dictionary, piece_of(chunk.indices).values[rows].astype(np.int64))
    ends, letters = letters_of(chunk)
    raw = letters.data
    bounds = zip(ends[rows].tolist(), ends[rows + 1].tolist(), strict=True)
    return [
        bytes(raw[start:stop])
        if stop - start <= 2 * _END
        else bytes(raw[start : start + _END]) + bytes(raw[stop - _END : stop])
        for start, stop in bounds
    ]


def _all_letters(text: pa.Array) -> int:
    return int(_letters(text).sum())


def _pieces(text: pa.ChunkedArray) -> Iterator[pa.Array]:
    """Yield text in pieces of so many letters as are held at a time."""
    bounds = np.cumsum(np.concatenate([[0], *map(_letters, text.iterchunks())]))
    for first, stop in pairwise(sorted({0, *_cuts(bounds, LETTERS), len(text)})):
        yield _in_one(text.slice(first, stop - first))


def _cuts(bounds: Ints, most: int) -> list[int]:
    """Return before which texts to cut: a piece has so many bytes, and one text more, at most.

    Args:
        bounds: Bytes before each text, and all of them.
        most: Bytes of a piece.
    """
    found: list[int] = np.searchsorted(bounds, np.arange(most, bounds[-1], most), "right").tolist()
    return [behind - 1 for behind in found]


def _of_words(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Return text whose letters can be counted: no views, and no nulls among its words."""
    words = pa.types.is_dictionary(column.type)
    values = column.type.value_type if words else column.type
    views = pa.types.is_string_view(values) or pa.types.is_binary_view(values)
    if views or (words and any(chunk.dictionary.null_count for chunk in column.iterchunks())):
        return column.cast(word_type(kind))
    return column


def _letters(text: pa.Array) -> npt.NDArray[np.int64]:
    """Return the bytes of each value, 0 for nulls."""
    if pa.types.is_dictionary(text.type):
        places, valid = _places(text)
        lengths: Ints = _letters(text.dictionary)[places]
        if valid is None:
            return lengths
        found = np.zeros(len(text), np.int64)
        found[valid] = lengths
        return found
    ends, _ = letters_of(text)
    return np.where(is_valid(text), np.diff(ends), 0).astype(np.int64)


def _places(words: pa.DictionaryArray) -> tuple[Ints, Bools | None]:
    """Return which words the values are, nulls left out, and which are not null, if any is.

    NumPy makes such integers of others each time it is given them as places.
    """
    places: Ints = piece_of(words.indices).values.astype(np.int64)
    if not words.null_count:
        return places, None
    valid = is_valid(words)
    return places[valid], valid


def _used(words: pa.DictionaryArray) -> pa.DictionaryArray:
    """Return text with those words only that it consists of, in order of appearance."""
    places, valid = _places(words)
    many = len(places)
    first = np.full(len(words.dictionary), many, np.int32)
    first[places[::-1]] = np.arange(many - 1, -1, -1, dtype=np.int32)
    used = np.flatnonzero(first < many)
    used = used[first[used].argsort()]
    numbers = np.zeros(len(first), np.int32)
    numbers[used] = np.arange(len(used))
    indices = numbers[places]
    if valid is not None:
        filled, indices = indices, np.zeros(len(words), np.int32)
        indices[valid] = filled
    words = _taken(words.dictionary, used)
    return pa.DictionaryArray.from_arrays(array_of(indices, valid), words, safe=False)


def _taken(words: pa.Array, which: Ints) -> pa.Array:
    """Return some words; `take` would do, but loads all of PyArrow's functions for it: 25 ms."""
    if len(which) == len(words) and (which == np.arange(len(words))).all():
        return words
    ends, letters = letters_of(words)
    starts, lengths = ends[which], np.diff(ends)[which]
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    found = np.empty(bounds[-1], np.uint8)
    for first, stop in _at_once(lengths, bounds):
        low, high = bounds[first], bounds[stop]
        if stop == first + 1:
            found[low:high] = letters[starts[first] : starts[first] + high - low]
        else:
            before = np.repeat(starts[first:stop] - bounds[first:stop], lengths[first:stop])
            found[low:high] = letters[before + np.arange(low, high)]
    buffers = [None, pa.py_buffer(bounds.astype(ends.dtype)), pa.py_buffer(found)]
    return pa.Array.from_buffers(words.type, len(which), buffers)


def _at_once(lengths: npt.NDArray[np.signedinteger], bounds: Ints) -> Iterator[tuple[int, int]]:
    """Yield words that are copied at once, first and stop: long ones each by itself.

    To copy a letter by its place takes 24 bytes, so these are to be few.

    Args:
        lengths: Bytes of each word.
        bounds: Bytes before each word, and all of them.
    """
    long = np.flatnonzero(lengths > _LONG_WORD).tolist()
    alone = (place for at in long for place in (at, at + 1))
    return pairwise(sorted({0, *_cuts(bounds, _COPIED), *alone, len(lengths)}))


def letters_of(text: pa.Array) -> tuple[npt.NDArray[np.signedinteger], npt.NDArray[np.uint8]]:
    """Return where each text ends, behind where the first begins, and all their letters."""
    wide = pa.types.is_large_string(text.type) or pa.types.is_large_binary(text.type)
    dtype = np.dtype(np.int64 if wide else np.int32)
    _, ends, letters = text.buffers()
    if not len(text):
        return np.zeros(1, dtype), np.zeros(0, np.uint8)
    found = np.frombuffer(ends, dtype, len(text) + 1, text.offset * dtype.itemsize)
    return found, np.frombuffer(letters or b"", np.uint8)


def _by_dictionary(text: pa.ChunkedArray) -> Iterator[pa.DictionaryArray]:
    """Yield text in runs with one dictionary: a word of megabytes may stand in every row."""
    for _, chunks in groupby(text.iterchunks(), key=lambda chunk: _address(chunk.dictionary)):
        yield pa.chunked_array(chunks).combine_chunks()


def _address(words: pa.Array) -> tuple[int, int, int]:
    """Return where words stand in memory: batches of a row group have them in common."""
    return words.buffers()[1].address, words.offset, len(words)


def _in_one(text: pa.ChunkedArray) -> pa.Array:
    """Return text as one array: not copied if it is one already."""
    chunks = [chunk for chunk in text.iterchunks() if len(chunk)]
    if len(chunks) == 1:
        return chunks[0]
    if not pa.types.is_dictionary(text.type):
        return text.combine_chunks()
    return pa.chunked_array(map(_used, chunks)).unify_dictionaries().combine_chunks()


def words_kept(letters: int) -> int:
    """Return how many bytes the words of a text may have that gets a dictionary."""
    return max(_WORDS, letters // _REPEATED)
