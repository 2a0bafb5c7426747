"""Infinite values are refused with the place where to look."""

import numpy as np
import pytest

from polar_etl.errors import InputError
from polar_etl.fitting import refuse_infinities
from polar_etl.moments import Moments
from tests.unit.exact import moments_of

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
