"""A window that decodes more columns at a time than it is asked for."""

from dataclasses import dataclass, field

import pyarrow as pa
import pytest

from polar_etl.sources.base import TableWindow
from polar_etl.sources.gathered import gathered

NAMES = [f"c{i}" for i in range(7)]
TABLE = pa.table({name: [float(at)] for at, name in enumerate(NAMES)} | {"text": ["x"]})


@dataclass(frozen=True)
class Asked(TableWindow):
    """A table that remembers what it was asked for together."""

    asked: list[list[str]] = field(default_factory=list)

    def pieces(self, names):
        self.asked.append(list(names))
        return super().pieces(names)


@pytest.mark.parametrize(
    ("many", "expected"),
    [(1, [2, 2, 2, 1]), (3, [3, 3, 1]), (5, [5, 2]), (100, [7])],
)
def test_columns_come_in_order_however_many_are_decoded_together(many, expected):
    window = Asked(TABLE)
    wide = gathered(window, NAMES, many)

    groups = [NAMES[low : low + 2] for low in range(0, len(NAMES), 2)]
    found = [piece for names in groups for piece in wide.pieces(names)]

    assert [pieces[0].values.item() for pieces in found] == list(range(7))
    assert [len(names) for names in window.asked] == expected
    assert [name for names in window.asked for name in names] == NAMES


def test_other_columns_are_those_of_the_window():
    wide = gathered(TableWindow(TABLE), NAMES, 4)
    assert wide.rows == 1
    assert wide.column("text").to_pylist() == wide.text("text").to_pylist() == ["x"]
