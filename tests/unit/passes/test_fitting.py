"""Batches are recorded in groups; infinite values are refused with the place where to look."""

from types import SimpleNamespace

import numpy as np
import pytest

from polar_etl.errors import InputError
from polar_etl.events import BatchFinished
from polar_etl.features import Features
from polar_etl.passes import fitting
from polar_etl.passes.fitting import refuse_infinities
from polar_etl.passes.tasks import BatchMoments
from polar_etl.statistics.moments import Moments
from tests.unit.exact import bits, moments_of

FINE = moments_of([1.0, 2.0, 3.0], [4.0, np.nan, 6.0])
BAD = moments_of([1.0, 2.0, -np.inf], [np.inf, np.inf, 6.0])


def refusal(files, names=("a", "b")) -> str:
    with pytest.raises(InputError) as caught:
        refuse_infinities([f"file{i}" for i in range(len(files))], names, files)
    return str(caught.value)


def test_finite_values_nan_and_no_rows_are_fine():
    refuse_infinities(["x", "y"], ("a", "b"), [FINE, Moments.empty(2)])
    refuse_infinities([], (), [])


def test_counts_columns_and_the_first_place_are_named():
    text = refusal([FINE, BAD, BAD])

    assert text.startswith("6 infinite values")
    assert "'a' (2)" in text
    assert "'b' (4)" in text
    assert "'file1', row 0" in text
    assert "column 'b'" in text


def test_the_remedy_is_named():
    text = refusal([BAD])

    assert "--inf ignore" in text
    assert "--inf null" in text


def test_few_of_many_columns_are_named():
    wide = moments_of(*[[np.inf, 1.0]] * 100)

    text = refusal([wide], tuple(f"c{i}" for i in range(100)))

    assert "95 more columns" in text
    assert text.count("'c") <= 6


def test_names_are_shown_without_control_characters():
    assert "\x1b" not in refusal([BAD], ("\x1b[31m", "\x1b[32m"))


class Recorded:
    """A manifest that only remembers, and what its run needs."""

    def __init__(self) -> None:
        self.transactions: list[tuple[list[int], dict[int, tuple[int, int]]]] = []
        self.events: list[BatchFinished] = []
        self.now = 1000.0
        self.takes = 0.0
        self.run = SimpleNamespace(
            row_bytes_of=lambda names: 8 * len(names),
            observe_memory=lambda: (5, 9),
            listen=self.events.append,
        )

    def record_moments(self, rows, states) -> None:
        numbers = [row.batch for row in rows]
        assert [event.batch for event in self.events if event.batch in numbers] == []
        self.transactions.append(
            (numbers, {file: (rows, int(m.count[0])) for file, (rows, m) in states.items()})
        )
        self.now += self.takes


def batch(file: int, first: int, values: list[float]) -> BatchMoments:
    return BatchMoments(file, first, len(values), [moments_of(values)], 0.5)


@pytest.fixture
def recorded(monkeypatch) -> Recorded:
    """Return a manifest by whose clock the recorder goes."""
    found = Recorded()
    monkeypatch.setattr(fitting, "time", SimpleNamespace(perf_counter=lambda: found.now))
    return found


@pytest.mark.parametrize("takes", [0.0, 1000.0])
def test_batches_are_recorded_before_they_are_told_of(recorded, takes):
    """One by one, or many with one wait for the disk; the rest on leaving."""
    recorded.takes = takes
    progress = {0: (2, moments_of([1.0, 2.0]))}

    with fitting._Recorder(recorded.run, recorded, Features(("x",)), progress, 7) as recorder:
        recorder.add(batch(0, 2, [3.0]))
        assert len(recorded.events) == 1
        recorder.add(batch(0, 3, [4.0]))
        recorder.add(batch(1, 0, [5.0, 6.0]))
        assert len(recorded.events) == (1 if takes else 3)

    one_by_one = [([7], {0: (3, 3)}), ([8], {0: (4, 4)}), ([9], {1: (2, 2)})]
    together = [([7], {0: (3, 3)}), ([8, 9], {0: (4, 4), 1: (2, 2)})]
    assert recorded.transactions == (together if takes else one_by_one)
    assert [(event.batch, event.rows, event.rss) for event in recorded.events] == [
        (7, 1, 5),
        (8, 1, 5),
        (9, 2, 5),
    ]
    expected = moments_of([1.0, 2.0]).merge(moments_of([3.0])).merge(moments_of([4.0]))
    assert bits(progress[0][1]) == bits(expected)


def test_no_less_time_lies_between_records_than_the_last_one_took(recorded):
    """So at most half of the time goes to the disk, however slow it is."""
    recorded.takes = 10.0

    with fitting._Recorder(recorded.run, recorded, Features(("x",)), {}, 0) as recorder:
        recorder.add(batch(0, 0, [1.0]))
        recorded.now += 9.5
        recorder.add(batch(0, 1, [2.0]))
        assert [numbers for numbers, _ in recorded.transactions] == [[0]]
        recorded.now += 0.5
        recorded.takes = 1.0
        recorder.add(batch(0, 2, [3.0]))
        assert [numbers for numbers, _ in recorded.transactions] == [[0], [1, 2]]
        recorder.add(batch(0, 3, [4.0]))
        recorded.now += 1.0
        recorder.add(batch(0, 4, [5.0]))
        assert [numbers for numbers, _ in recorded.transactions] == [[0], [1, 2], [3, 4]]

    assert [numbers for numbers, _ in recorded.transactions] == [[0], [1, 2], [3, 4]]


def test_batches_are_told_of_without_a_manifest():
    recorded, progress = Recorded(), {}

    with fitting._Recorder(recorded.run, None, Features(("x",)), progress, 0) as recorder:
        recorder.add(batch(0, 0, [3.0]))
        recorder.add(batch(0, 1, [4.0]))

    assert [event.batch for event in recorded.events] == [0, 1]
    assert progress[0][0] == 2


@pytest.mark.parametrize("takes", [0.0, 1000.0])
def test_what_was_merged_is_recorded_when_the_run_ends_in_an_error(recorded, takes):
    recorded.takes = takes

    def run() -> None:
        with fitting._Recorder(recorded.run, recorded, Features(("x",)), {}, 0) as recorder:
            recorder.add(batch(0, 0, [3.0]))
            recorder.add(batch(0, 1, [4.0]))
            raise KeyError("stopped")

    with pytest.raises(KeyError, match="stopped"):
        run()
    assert recorded.transactions == [([0], {0: (1, 1)}), ([1], {0: (2, 2)})]
