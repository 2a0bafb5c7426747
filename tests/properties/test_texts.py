"""What people and files say: sizes, names, scalers. Any text at all is understood or refused."""

import json
import warnings

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from polar_etl.errors import InputError, UsageError, describe
from polar_etl.memory import format_size, parse_size
from polar_etl.planning.selection import select
from polar_etl.sources.schemas import checked_schema, difference
from polar_etl.statistics.moments import Moments
from polar_etl.statistics.scaler import Scaler
from tests.properties.strategies import KINDS, NAMES, columns
from tests.unit.exact import bits, moments_of


@given(st.integers(1, 10**15))
def test_a_shown_size_is_the_size_to_three_digits(size):
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.005)


@given(st.integers(1, 2**53))
def test_a_number_of_bytes_is_itself(size):
    assert parse_size(size) == parse_size(str(size)) == parse_size(f" {size}B ") == size


@given(
    st.integers(1, 10**6),
    st.sampled_from(["kb", "MB", "GiB", "t", "m", "KIB"]),
    st.sampled_from(["", " "]),
)
def test_units_multiply(number, unit, between):
    assert parse_size(f"{number}{between}{unit}") == number * parse_size(f"1{unit}")


@given(
    st.text(max_size=20)
    | st.from_regex(r"\A\s*[0-9.]*\s*[a-zA-Z%]{0,4}\s*\Z")
    | st.integers()
    | st.floats()
)
@example("9" * 400)
@example("1." + "0" * 400)
@example("٣MB")
def test_any_text_is_a_size_or_is_refused(text):
    try:
        size = parse_size(text, available=10**10)
    except UsageError:
        return
    assert isinstance(size, int)
    assert size > 0


@given(st.text(), st.integers(1, 200))
def test_descriptions_are_one_printable_line(text, limit):
    shown = describe(text, limit)

    assert shown.isprintable()
    assert len(shown) <= limit + 2


SCHEMAS = st.dictionaries(
    NAMES, st.sampled_from([*KINDS, pa.string(), pa.date32(), pa.bool_()]), min_size=1, max_size=8
).map(pa.schema)
PATTERNS = st.lists(
    NAMES
    | st.text("^$.*?+[]()|\\x0", max_size=8)
    | st.text("ab*?[]!-", max_size=6)
    | NAMES.map("^{}$".format),
    max_size=3,
)


@given(SCHEMAS, st.none() | PATTERNS, st.none() | PATTERNS)
def test_any_pattern_selects_numeric_columns_in_order_or_is_refused(schema, chosen, exclude):
    numeric = select(schema, None, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of `re`, for sets such as [[a]
        try:
            found = select(schema, chosen, exclude)
        except UsageError:
            return

    assert [name for name in numeric if name in found] == list(found)
    if chosen is None and not exclude:
        assert found == numeric


@given(SCHEMAS, st.data())
def test_any_name_is_taken_literally(schema, data):
    name = data.draw(st.sampled_from(schema.names))

    if name in select(schema, None, None):
        assert select(schema, [name], None) == (name,)
        assert name not in select(schema, None, [name])
    else:
        with pytest.raises(UsageError):
            select(schema, [name], None)


@given(SCHEMAS, SCHEMAS)
def test_schemas_differ_exactly_if_names_types_or_order_do(one, two):
    assert checked_schema("file", one) is one
    assert (difference(one, two) == "") == (list(one) == list(two))
    assert difference(one, one) == ""


@st.composite
def scalers(draw: st.DrawFn) -> Scaler:
    names = draw(st.lists(st.text(max_size=5), unique=True, max_size=4))
    table = [draw(columns(max_size=6)) for _ in names]
    rows = min((len(column) for column in table), default=0)
    kept = [column.slice(0, rows) for column in table]
    moments = moments_of(*kept) if kept else Moments.empty(0)
    return Scaler(
        tuple(names),
        tuple(str(column.type) for column in table),
        moments,
        draw(st.integers(0, 1)),
        draw(st.sampled_from(["error", "ignore", "null"])),
        draw(st.sampled_from([None, "float32", "float64"])),
    )


@given(scalers())
def test_a_scaler_survives_its_text_bit_for_bit(scaler):
    text = scaler.to_json()

    again = Scaler.from_json(text)

    for field in ("columns", "dtypes", "ddof", "inf", "dtype"):
        assert getattr(again, field) == getattr(scaler, field)
    kept = {name: value for name, value in bits(scaler.moments).items() if name != "first_inf"}
    assert {name: bits(again.moments)[name] for name in kept} == kept
    assert again.to_json() == text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


def understood_or_refused(text: str) -> None:
    try:
        found = Scaler.from_json(text)
    except InputError:
        return
    assert Scaler.from_json(found.to_json()).to_json() == found.to_json()


@given(st.text())
def test_any_text_is_a_scaler_or_is_refused(text):
    understood_or_refused(text)


@given(JSON)
@example([[]])
def test_any_json_is_a_scaler_or_is_refused(value):
    understood_or_refused(json.dumps(value))


@given(scalers(), st.data())
def test_a_changed_scaler_is_a_scaler_or_is_refused(scaler, data):
    fields = json.loads(scaler.to_json())
    inside = data.draw(st.booleans())
    target = fields["table"] if inside else fields
    key = data.draw(st.sampled_from(sorted(target)))
    column = target[key]
    if isinstance(column, list) and column and data.draw(st.booleans()):
        column[data.draw(st.integers(0, len(column) - 1))] = data.draw(JSON)
    elif data.draw(st.booleans()):
        target[key] = data.draw(JSON)
    else:
        del target[key]

    understood_or_refused(json.dumps(fields))


@given(scalers(), st.data())
def test_a_scaler_cut_or_damaged_is_a_scaler_or_is_refused(scaler, data):
    text = scaler.to_json()
    place = data.draw(st.integers(0, len(text)))
    damaged = text[:place] + data.draw(st.text(max_size=2)) + text[place + 1 :]

    understood_or_refused(text[:place])
    understood_or_refused(damaged)
