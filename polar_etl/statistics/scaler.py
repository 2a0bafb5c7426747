"""The fitted stat table: one row per column, a file that says all, and lazy Polars expressions."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from polar_etl.columns import listed
from polar_etl.errors import InputError, MemoryLimitError, UsageError, describe
from polar_etl.features import (
    Features,
    dimensions,
    is_open_list,
    of_equal_lengths,
    value_type,
    with_values,
)
from polar_etl.memory import format_size, limit_in_force
from polar_etl.statistics.moments import Moments
from polar_etl.statistics.standardize import InfPolicy, Standardizer

if TYPE_CHECKING:
    import polars as pl

FORMAT = "polar-etl scaler 1"
_INTS = ("count", "null_count", "nan_count", "inf_count", "exponent")
_PARSED = 32
"""Bytes that a byte of JSON may take when it is parsed (lists of empty lists take 22)."""
_FLOATS = ("min", "max", "sum", "sum_low", "m2", "m2_low")


def library_versions() -> Mapping[str, str]:
    """Return the versions that the bits of a result depend on.

    Asking the libraries takes no time; looking up what is installed takes 20 ms.
    """
    from polar_etl import __version__

    libraries = ("pyarrow", "numpy", "zstandard")
    return {"polar-etl": __version__} | {
        name: str(import_module(name).__version__) for name in libraries
    }


@dataclass(frozen=True, eq=False)
class Scaler:
    """What `fit` learned: how to standardize each column, and the moments that say why.

    Example:
        >>> import polars as pl, polar_etl as pe
        >>> scaler = pe.fit(pl.LazyFrame({"x": [1.0, 2.0, 3.0]}))
        >>> scaler.transform(pl.LazyFrame({"x": [2.0]})).collect().item()
        0.0
    """

    columns: tuple[str, ...]
    """Names of the normalized columns, in the order of the source."""
    dtypes: tuple[str, ...]
    """The Arrow types of their numbers, as text."""
    moments: Moments
    """Moments of their features, in the same order."""
    ddof: int = 0
    """Delta degrees of freedom: 0 for the population's deviation, 1 for the sample's."""
    inf: InfPolicy = "error"
    """What happens to infinite values."""
    dtype: str | None = None
    """Output type of all columns, or None: float32 from float32 and float16, float64 otherwise."""
    vectors: Mapping[str, int] = field(default_factory=dict)
    """How many dimensions the columns have that hold vectors: a feature each."""

    @property
    def features(self) -> Features:
        """What a row of the stat table is about: a scalar column, or a dimension of a vector."""
        return Features(self.columns, self.vectors)

    @property
    def stats(self) -> pl.DataFrame:
        """The stat table, a row per scalar column and per dimension of a vector column.

        Columns: `column`, `dtype`, `count`, `null_count`, `nan_count`, `inf_count`, `mean`, `std`,
        `var`, `min`, `max`, `constant`. Where a column holds no values, its statistics are null.
        Where there are vectors, `dimension` comes second: 3 for `embedding[3]`, null for a scalar
        column, also for one whose name happens to be `embedding[3]`. A variance or deviation beyond
        Float64 is inf; a run warns of it and standardizes rightly.
        """
        import polars as pl

        moments = self.moments
        some = moments.count > 0
        floats = {
            "mean": moments.mean(),
            "std": moments.std(self.ddof),
            "var": moments.variance(self.ddof),
            "min": np.where(some, moments.min, np.nan),
            "max": np.where(some, moments.max, np.nan),
        }
        counts = {name: getattr(moments, name) for name in _INTS if name != "exponent"}
        return pl.DataFrame(
            {
                "column": pl.Series(self.features.labels(), dtype=pl.String),
                **self._dimensions(),
                "dtype": pl.Series(self._dtypes(), dtype=pl.String),
                **counts,
                **{name: pl.Series(values).fill_nan(None) for name, values in floats.items()},
                "constant": self.is_constant(),
            }
        )

    def _dimensions(self) -> dict[str, list[int | None]]:
        return {"dimension": self.features.dimensions()} if self.vectors else {}

    def _dtypes(self) -> list[str]:
        """Return the type of each feature."""
        kinds = dict(zip(self.columns, self.dtypes, strict=True))
        return [kinds[name] for name in self.features.owners()]

    def is_constant(self) -> npt.NDArray[np.bool_]:
        """Tell which features become 0: constant ones, and those with too few values for `ddof`."""
        few = (self.moments.count > 0) & (self.moments.count <= self.ddof)
        return self.moments.is_constant() | few

    def standardizer(self) -> Standardizer:
        """Return the arithmetic of this scaler for decoded columns."""
        moments = self.moments
        some = moments.count > 0
        constant = self.is_constant()
        scaled = some & ~constant
        exponent = np.where(scaled, _safe_exponent(moments, self.ddof), 0)
        mean = np.where(some, moments.mean(exponent), 0.0)
        std = np.where(scaled, moments.std(self.ddof, exponent), 1.0)
        single = [output_type(kind, self.dtype) == "float32" for kind in self._dtypes()]
        return Standardizer(
            mean=mean,
            std=std,
            constant=constant,
            exponent=exponent,
            single=np.array(single, np.bool_),
            inf_to_null=np.full(len(some), self.inf == "null"),  # other rows may hold infinities
        )

    def expressions(self, schema: Mapping[str, pl.DataType] | None = None) -> list[pl.Expr]:
        """Return one Polars expression per column, named like the column.

        Polars divides by a literal through its reciprocal, so a float64 result may differ from the
        parts of `normalize` in the last bit. Vector columns go through the arithmetic of
        `normalize`, to the same bits.

        Args:
            schema: Of the frame; vectors keep their type. None: they become `pl.Array`.
        """
        import polars as pl

        how = self.standardizer()
        found = []
        for name, span in self.features.spans():
            if name in self.vectors:
                kind = schema[name] if schema else None
                found.append(self._vector_expression(name, how.select(span), kind))
                continue
            index = span.start
            raw = pl.col(_literally(name)).cast(pl.Float64)
            value = raw
            for factor in _powers_of_two(-int(how.exponent[index])):
                value = value * factor
            value = (value - float(how.mean[index])) / float(how.std[index])
            if how.constant[index]:
                value = pl.when(raw.is_finite()).then(0.0).otherwise(raw)
            if self.inf == "null":
                value = pl.when(raw.is_infinite()).then(None).otherwise(value)
            found.append(value.cast(pl.Float32 if how.single[index] else pl.Float64).alias(name))
        return found

    def _vector_expression(self, name: str, how: Standardizer, kind: pl.DataType | None) -> pl.Expr:
        import polars as pl

        floats = pa.float32() if how.single.all() else pa.float64()

        def standardized(values: pl.Series) -> pl.Series:
            table = pa.table({name: values.to_arrow(compat_level=pl.CompatLevel.oldest())})
            found = table.schema.field(name).type
            self._require_vectors(name, found)
            if is_open_list(found):
                list(of_equal_lengths([table], self.vectors, "the frame", 0))
            target = with_values(found, floats, nullable=True)
            return pl.Series(values.name, how.apply_to_vectors(table.column(0), target))

        if kind is None:
            kind = pl.Array(pl.Float32 if how.single.all() else pl.Float64, self.vectors[name])
        result = standardized(pl.Series([], dtype=kind)).dtype
        return pl.col(_literally(name)).map_batches(
            lambda values: standardized(values).cast(result),
            return_dtype=result,
            is_elementwise=True,
        )

    def transform(self, frame: pl.LazyFrame) -> pl.LazyFrame:
        """Return `frame` with the columns of this scaler standardized; nothing is read yet.

        Args:
            frame: Holds at least the columns of the scaler; all others pass through.
        """
        schema = frame.lazy().collect_schema() if self.vectors else None
        return frame.lazy().with_columns(self.expressions(schema))

    @classmethod
    def merge(cls, scalers: Sequence[Scaler]) -> Scaler:
        """Return the scaler of all rows that `scalers` were fitted on, in their order.

        Scalers fitted on one file each and merged in file order have the same bits as one fit over
        these files, because a fit keeps moments per file and merges them in file order. The first
        may cover several files. A scaler fitted on no rows changes no bit, wherever it stands.

        In another order, when a later scaler covers several files, or against one fit of the same
        rows in one file, the trailing bits of the moments differ: mean and deviation agree to
        within 2 units of the last place (the mean: 2^-85 of the largest magnitude, where it is
        smaller). Counts, minimum and maximum are the same always.

        Raises:
            UsageError: There are no scalers, or they differ in columns, types or settings.
        """
        if not scalers:
            raise UsageError("merge needs at least one scaler.")
        first = scalers[0]
        for other in scalers[1:]:
            for what in ("columns", "vectors", "dtypes", "ddof", "inf", "dtype"):
                if getattr(other, what) != getattr(first, what):
                    raise UsageError(f"Scalers can't be merged: their {what} differ.")
        moments = Moments.empty(len(first.features))
        for scaler in scalers:
            moments = moments.merge(scaler.moments)
        return replace(first, moments=moments)

    def require(self, schema: pa.Schema) -> None:
        """Check that this scaler fits a source.

        Raises:
            InputError: A column is missing, or is not of the type that was fitted.
        """
        there = dict(zip(*listed(schema), strict=True))
        for name, kind in zip(self.columns, self.dtypes, strict=True):
            if name not in there:
                raise InputError(f"The scaler needs column {describe(name)}: the input has none.")
            found = there[name]
            if name in self.vectors:
                self._require_vectors(name, found)
            elif dimensions(found) or is_open_list(found):
                raise _misfit(name, kind, found)
            if str(value_type(found)) != kind:
                raise _misfit(name, kind, found)

    def _require_vectors(self, name: str, found: pa.DataType) -> None:
        size = self.vectors[name]
        if dimensions(found) != size and not is_open_list(found):
            raise _misfit(name, f"vectors of {size} numbers", found)

    def digest(self) -> str:
        """Return a hash of all that `to_json` writes."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=16).hexdigest()

    def to_json(self) -> str:
        """Return the scaler as text; `from_json` restores every bit.

        Statistics are stored by column. `mean` and `std` are there for the reader's eye: what
        counts are the moments, each a shortest decimal that parses to the same double.
        """
        moments = self.moments
        some = moments.count > 0
        readable = {"mean": moments.mean(), "std": moments.std(self.ddof)}
        table = {
            "column": self.features.labels(),
            **self._dimensions(),
            "dtype": self._dtypes(),
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
            "ddof": self.ddof,
            "inf": self.inf,
            "dtype": self.dtype,
        }
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        rows = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in table.items()]
        lines.append('"table": {\n' + ",\n".join(rows) + "\n}")
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Scaler:
        """Return the scaler that `to_json` wrote.

        Raises:
            InputError: `text` is no scaler, or one whose fields contradict each other.
        """
        try:
            return cls._from_fields(json.loads(text))
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

    @classmethod
    def _from_fields(cls, fields: Any) -> Scaler:
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
        if any((ints[name] < 0).any() for name in _INTS if name != "exponent"):
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
        return cls(
            features.columns,
            tuple(kinds[name] for name in features.columns),
            moments,
            fields["ddof"],
            fields["inf"],
            fields["dtype"],
            features.vectors,
        )

    def save(self, path: str | Path) -> None:
        """Write the scaler to `path`, whole or not at all."""
        from polar_etl.storage.durable import write_atomically

        write_atomically(Path(path), self.to_json().encode())

    @classmethod
    def load(cls, path: str | Path, memory_limit: str | int | None = None) -> Scaler:
        """Return the scaler that `save` wrote.

        Args:
            path: The file.
            memory_limit: As for `normalize`.

        Raises:
            InputError: The file can't be read or is not a scaler.
            MemoryLimitError: It is so large that reading it might take more memory than allowed.
        """
        try:
            with open(path, "rb", opener=_opened_at_once) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise InputError(f"The scaler {describe(str(path))} is not a regular file.")
                _require_room(path, status.st_size, limit_in_force(memory_limit))
                text = file.read().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The scaler {describe(str(path))} can't be read: {error}") from None
        return cls.from_json(text)


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


def output_type(kind: str, asked: str | None) -> str:
    """Return `float32` or `float64`: the output of a column of Arrow type `kind`."""
    return asked or ("float32" if kind in ("float", "halffloat") else "float64")


def _safe_exponent(moments: Moments, ddof: int) -> npt.NDArray[np.int64]:
    """Return the scaling that keeps `x - mean` and `1 / std` within Float64; 0 where they are."""
    bound = np.maximum(np.abs(moments.min), np.abs(moments.max))
    # of subnormal values the deviation itself may round to 0, but not its scaled counterpart
    size = np.frexp(moments.std(ddof, moments.exponent))[1] + moments.exponent
    return np.where(bound > 2.0**1020, 8, np.where(size < -959, size, 0)).astype(np.int64)


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


def _misfit(name: str, expected: str, found: pa.DataType) -> InputError:
    return InputError(
        f"The scaler was fitted on column {describe(name)} as {describe(expected)[1:-1]}, "
        f"found {found}. "
        "Convert the input, or fit again."
    )


def _literally(name: str) -> str:
    """Return what Polars takes for the column `name`, also if that looks like a pattern."""
    special = name == "*" or (name.startswith("^") and name.endswith("$"))
    return f"^{re.escape(name)}$" if special else name


def _powers_of_two(exponent: int) -> list[float]:
    if exponent == 0:
        return []
    half = exponent // 2
    return [2.0**half, 2.0 ** (exponent - half)]


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
