"""What there is to do for columns: what takes longer weighs more, so that no process waits."""

from types import SimpleNamespace

import pyarrow as pa

from polar_etl.passes.weights import work_of
from polar_etl.sources.base import SourceFile

SCHEMA = pa.schema(
    {
        "number": pa.float32(),
        "double": pa.float64(),
        "flag": pa.bool_(),
        "time": pa.timestamp("us"),
        "word": pa.string(),
        "text": pa.string(),
        "vector": pa.list_(pa.float32(), 8),
    }
)


def work(letters: int, *, words: tuple[frozenset[int], ...]) -> dict[str, int]:
    files = [
        SourceFile("", 0, 0, "", (100,), 7, 100 * letters, 0, words=places) for places in words
    ]
    return work_of(SimpleNamespace(schema=SCHEMA, files=files))


def test_what_takes_longer_weighs_more():
    found = work(20, words=(frozenset({4}),))

    assert list(found) == SCHEMA.names
    order = ("number", "double", "word", "time", "text")
    weights = [found[name] for name in order]
    assert weights == sorted(set(weights))
    assert found["flag"] == found["number"]
    assert found["vector"] == 8 * found["number"]


def test_long_text_takes_longer_than_short_text_and_words_do_not():
    short, long = (work(letters, words=(frozenset({4}),) * 2) for letters in (10, 1_000))

    assert long["text"] > 10 * short["text"]
    assert long["word"] == short["word"]


def test_words_are_words_if_all_files_have_them_so():
    found = work(100, words=(frozenset({4, 5}), frozenset({4})))

    assert found["word"] < found["text"]
