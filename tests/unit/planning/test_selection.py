"""Names, globs and regular expressions choose columns."""

import pyarrow as pa
import pytest

from polar_etl.errors import UsageError
from polar_etl.planning.selection import reason_to_pass, select

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "x1": pa.int8(),
        "x2": pa.float32(),
        "y": pa.decimal128(5, 2),
        "x[1]": pa.float64(),
        "when": pa.date32(),
        "^z$": pa.uint64(),
    }
)


@pytest.mark.parametrize(
    ("columns", "exclude", "expected"),
    [
        (None, None, ("x1", "x2", "y", "x[1]", "^z$")),
        (None, [], ("x1", "x2", "y", "x[1]", "^z$")),
        ([], None, ()),
        (["y", "x1"], None, ("x1", "y")),
        (["x1", "x1", "x*"], None, ("x1", "x2", "x[1]")),
        (["x?"], None, ("x1", "x2")),
        (["*"], None, ("x1", "x2", "y", "x[1]", "^z$")),
        (["^x[0-9]$"], None, ("x1", "x2")),
        (["^(x1|y)$"], None, ("x1", "y")),
        (["^.*$"], ["x*"], ("y", "^z$")),
        (["x[1]"], None, ("x[1]",)),
        (["^z$"], None, ("^z$",)),
        (None, ["^x"], None),
        (["w*", "x1"], None, ("x1",)),
        (None, ["id", "when", "x1"], ("x2", "y", "x[1]", "^z$")),
        (["x1"], ["x1"], ()),
    ],
)
def test_selection(columns, exclude, expected):
    if expected is None:
        with pytest.raises(UsageError):
            select(SCHEMA, columns, exclude)
    else:
        assert select(SCHEMA, columns, exclude) == expected


def test_case_matters_in_names_and_globs():
    schema = pa.schema({"Price": pa.int8(), "price": pa.int8()})

    assert select(schema, ["Price"], None) == ("Price",)
    assert select(schema, ["P*"], None) == ("Price",)


@pytest.mark.parametrize("pattern", ["nothing", "q*", "^q$", "[q]", "X1", ""])
def test_what_matches_nothing_is_refused(pattern):
    for columns, exclude in ((["x1", pattern], None), (None, [pattern])):
        with pytest.raises(UsageError, match="No column"):
            select(SCHEMA, columns, exclude)


@pytest.mark.parametrize(
    ("typo", "near"),
    [
        *(("prise", "price"), ("total_amout", "total_amount"), ("quantities", "quantity")),
        *(("PRICE", "price"), ("TotalAmount", "total_amount"), ("f", "F"), ("x_y", "X Y")),
    ],
)
def test_the_nearest_name_is_suggested(typo, near):
    names = ["x y z", "price", "quantity", "total_amount", "F", "X Y"]
    schema = pa.schema(dict.fromkeys(names, pa.int8()))

    with pytest.raises(UsageError, match=f"Did you mean '{near}'"):
        select(schema, [typo], None)


@pytest.mark.parametrize("name", ["id", "when"])
def test_naming_a_column_that_is_not_numeric_is_refused(name):
    with pytest.raises(UsageError, match=f"'{name}' is .*only integers"):
        select(SCHEMA, [name], None)


@pytest.mark.parametrize(
    "pattern",
    ["^($", "^[$", "^*$", "^a**$", "^a{99999999999}$", f"^{'(' * 5_000}{')' * 5_000}$"],
    ids=range(6),
)
def test_a_broken_regular_expression_is_refused(pattern):
    with pytest.raises(UsageError, match="not a regular expression"):
        select(SCHEMA, [pattern], None)


def test_names_are_shown_without_control_characters():
    with pytest.raises(UsageError) as caught:
        select(SCHEMA, ["\x1b[31m"], None)
    assert "\x1b" not in str(caught.value)


def test_a_reason_is_given_for_columns_that_pass():
    assert reason_to_pass(SCHEMA.field("x1")) == "not selected"
    assert "string is not numeric" in reason_to_pass(SCHEMA.field("id"))


def test_extension_types_that_nobody_knows_are_no_numbers():
    known = {b"ARROW:extension:name": b"pandas.period", b"ARROW:extension:metadata": b"{}"}
    period = pa.field("period", pa.int64(), metadata=known)
    schema = pa.schema([pa.field("x", pa.int64(), metadata={b"unit": b"m"}), period])

    assert select(schema, None, None) == ("x",)
    assert select(schema, ["*"], None) == ("x",)
    assert reason_to_pass(period) == "of the extension type 'pandas.period', not numeric"
    with pytest.raises(UsageError, match=r"'period' is of the extension type 'pandas.period'"):
        select(schema, ["period"], None)
