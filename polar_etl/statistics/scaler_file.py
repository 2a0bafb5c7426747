"""The file of a scaler: JSON that says all, bit by bit, and is checked when it is read."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from polar_etl.durable import write_atomically
from polar_etl.errors import InputError, MemoryLimitError, describe
from polar_etl.features import Features
from polar_etl.memory import format_size, limit_in_force
from polar_etl.statistics.moments import Moments
from polar_etl.statistics.standardize import InfPolicy

FORMAT = "polar-etl scaler 1"
COUNTS = ("count", "null_count", "nan_count", "inf_count")
"""Fields of `Moments` that count values."""
_INTS = (*COUNTS, "exponent")
_PARSED = 32
"""Bytes that a byte of JSON may take when it is parsed (lists of empty lists take 22)."""
_FLOATS = ("min", "max", "sum", "sum_low", "m2", "m2_low")


class Fields(NamedTuple):
    """What is written of a scaler; see `Scaler`, which has the same fields."""

    columns: tuple[str, ...]
    dtypes: tuple[str, ...]
    moments: Moments
    ddof: int
    inf: InfPolicy
    dtype: str | None
    vectors: Mapping[str, int]


def library_versions() -> Mapping[str, str]:
    """Return the versions that the bits of a result depend on.

    Asking the libraries takes no time; looking up what is installed takes 20 ms.
    """
    from polar_etl import __version__

    libraries = ("pyarrow", "numpy", "zstandard")
    return {"polar-etl": __version__} | {
        name: str(import_module(name).__version__) for name in libraries
    }


def as_text(fields: Fields) -> str:
    """Return a scaler as text; `parsed` restores every bit.

    Statistics are stored by column. `mean` and `std` are there for the reader's eye: what counts
    are the moments, each a shortest decimal that parses to the same double.
    """
    moments, features = fields.moments, Features(fields.columns, fields.vectors)
    some = moments.count > 0
    readable = {"mean": moments.mean(), "std": moments.std(fields.ddof)}
    table = {
        "column": features.labels(),
        **({"dimension": features.dimensions()} if fields.vectors else {}),
        "dtype": of_each_feature(features, fields.dtypes),
        **{name: getattr(moments, name).tolist() for name in _INTS},
        **{
            name: _finite_or_none(values, some & np.isfinite(values))
            for name, values in readable.items()
        },
        **{name: _finite_or_none(getattr(moments, name), some) for name in _FLOATS},
    }
    head = {
        "format": FORMAT,
        "versions": library_versions(),
        "ddof": fields.ddof,
        "inf": fields.inf,
        "dtype": fields.dtype,
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    rows = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in table.items()]
    lines.append('"table": {\n' + ",\n".join(rows) + "\n}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def of_each_feature(features: Features, dtypes: Sequence[str]) -> list[str]:
    """Return the type of each feature, from those of the columns."""
    kinds = dict(zip(features.columns, dtypes, strict=True))
    return [kinds[name] for name in features.owners()]


def parsed(text: str) -> Fields:
    """Return the scaler that `as_text` wrote.

    Raises:
        InputError: `text` is no scaler, or one whose fields contradict each other.
    """
    try:
        return _checked(json.loads(text))
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(
            f"This is not a scaler file ({FORMAT!r} was expected): {describe(reason)}. "
            "Fit it again with 'polar-etl fit'."
        ) from None


def _checked(fields: Any) -> Fields:
    if fields["format"] != FORMAT:
        raise ValueError(f"its format is {fields['format']!r}")
    table = fields["table"]
    if not all(isinstance(table[name], list) for name in ("column", "dtype", *_INTS, *_FLOATS)):
        raise ValueError("its table holds something else than lists")
    width = len(table["column"])
    ints = {name: _int_array(table[name]) for name in _INTS}
    low = {"min": np.inf, "max": -np.inf}
    floats = {name: _float_array(table[name], low.get(name, 0.0)) for name in _FLOATS}
    arrays: dict[str, Any] = {**ints, **floats}
    if any(len(values) != width for values in (*arrays.values(), table["dtype"])):
        raise ValueError("its columns are not of one length")
    if not all(isinstance(name, str) for name in (*table["column"], *table["dtype"])):
        raise ValueError("its column names and types are not text")
    if any((ints[name] < 0).any() for name in COUNTS):
        raise ValueError("it holds a negative count")
    some = ints["count"] > 0
    if not all(np.isfinite(values[some]).all() for values in floats.values()):
        raise ValueError("a statistic is missing")
    if (np.abs(ints["exponent"]) > 1100).any() or (floats["m2"] + floats["m2_low"] < 0).any():
        raise ValueError("an exponent or a sum of squares is impossible")
    if (floats["min"] > floats["max"])[some].any():
        raise ValueError("a minimum lies above its maximum")
    for name in (*table["column"], *table["dtype"]):
        name.encode()
    features = Features.of_labels(table["column"], table.get("dimension", [None] * width))
    if fields["inf"] not in ("error", "ignore", "null") or fields["ddof"] not in (0, 1):
        raise ValueError("its inf or ddof is not one of those there are")
    if fields["dtype"] not in (None, "float32", "float64"):
        raise ValueError("its dtype is neither float32 nor float64")
    moments = Moments(**arrays, first_inf=Moments.empty(width).first_inf)
    if not _is_possible(moments).all():
        raise ValueError("a sum contradicts minimum and maximum")
    for name, expected in (("mean", moments.mean()), ("std", moments.std(fields["ddof"]))):
        _require_close(name, table.get(name), expected, table["column"])
    kinds = dict(zip(features.owners(), table["dtype"], strict=True))
    return Fields(
        features.columns,
        tuple(kinds[name] for name in features.columns),
        moments,
        fields["ddof"],
        fields["inf"],
        fields["dtype"],
        features.vectors,
    )


def save(path: Path, fields: Fields) -> None:
    """Write a scaler to `path`, whole or not at all."""
    write_atomically(path, as_text(fields).encode())


def load(path: str | Path, memory_limit: str | int | None) -> Fields:
    """Return the scaler that `save` wrote, see `Scaler.load`."""
    try:
        with open(path, "rb", opener=_opened_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"The scaler {describe(str(path))} is not a regular file.")
            _require_room(path, status.st_size, limit_in_force(memory_limit))
            text = file.read().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The scaler {describe(str(path))} can't be read: {error}") from None
    return parsed(text)


def is_scaler_file(path: Path) -> bool:
    """Tell whether a file begins as one that `save` wrote; reads no more than its beginning."""
    head = f'{{\n"format": {json.dumps(FORMAT)}'.encode()
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(head)) == head


def _opened_at_once(path: str, flags: int) -> int:
    """Open a file without waiting for anybody, as one would where it is a pipe."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _require_room(path: str | Path, size: int, limit: int) -> None:
    if size * _PARSED > limit:
        raise MemoryLimitError(
            f"The scaler {describe(str(path))} has {format_size(size)}, and reading it may take "
            f"{format_size(size * _PARSED)}: more than the memory limit of {format_size(limit)}. "
            "Check that it is a scaler, or raise --memory-limit."
        )


def _require_close(name: str, found: Any, expected: npt.NDArray[np.float64], of: list[str]) -> None:
    """Refuse a `mean` or `std` that was edited: it would be ignored, as moments alone count.

    Raises:
        ValueError: It is not what the moments give.
    """
    if found is None:
        return
    if not isinstance(found, list) or len(found) != len(expected):
        raise ValueError("its columns are not of one length")
    values = _float_array(found, np.inf)
    wrong = np.isfinite(values) & ~np.isclose(values, expected, rtol=1e-12, atol=0.0)
    if wrong.any():
        place = int(wrong.argmax())
        raise ValueError(
            f"{name} of {of[place]!r} was changed: {values[place]} is not {expected[place]}, which "
            "its moments give"
        )


def _is_possible(moments: Moments) -> npt.NDArray[np.bool_]:
    """Tell where mean and deviation lie within minimum and maximum, but for rounding."""
    low, high, some = moments.min, moments.max, moments.count > 0
    with np.errstate(all="ignore"):
        slack = 1e-9 * np.maximum(np.abs(low), np.abs(high)) + 1e-322
        mean, std = moments.mean(), moments.std()
        means = (low - slack <= mean) & (mean <= high + slack)
        pairs = np.abs(moments.sum_low) <= np.abs(moments.sum)
        pairs &= np.abs(moments.m2_low) <= np.abs(moments.m2)
        return np.asarray(~some | (means & pairs & (std <= high - low + slack)))


def _finite_or_none(
    values: npt.NDArray[np.float64], keep: npt.NDArray[np.bool_]
) -> list[float | None]:
    return [x if ok else None for x, ok in zip(values.tolist(), keep.tolist(), strict=True)]


def _int_array(values: list[int]) -> npt.NDArray[np.int64]:
    if not all(type(value) is int for value in values):
        raise ValueError("a count is not a whole number")
    return np.array(values, np.int64)


def _float_array(values: list[float | None], missing: float) -> npt.NDArray[np.float64]:
    if not all(value is None or type(value) in (int, float) for value in values):
        raise ValueError("a statistic is not a number")
    found = np.array([missing if value is None else value for value in values], np.float64)
    if np.isnan(found).any():
        raise ValueError("a statistic is NaN")
    return found
