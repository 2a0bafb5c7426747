"""The fitted stat table: one row per column, and what follows from it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from polar_etl.columns import listed
from polar_etl.errors import InputError, UsageError, describe
from polar_etl.features import (
    Features,
    dimensions,
    is_open_list,
    of_equal_lengths,
    value_type,
    with_values,
)
from polar_etl.statistics import scaler_file
from polar_etl.statistics.moments import Moments
from polar_etl.statistics.standardize import InfPolicy, Standardizer

if TYPE_CHECKING:
    import polars as pl


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
        counts = {name: getattr(moments, name) for name in scaler_file.COUNTS}
        return pl.DataFrame(
            {
                "column": pl.Series(self.features.labels(), dtype=pl.String),
                **({"dimension": self.features.dimensions()} if self.vectors else {}),
                "dtype": pl.Series(self._dtypes(), dtype=pl.String),
                **counts,
                **{name: pl.Series(values).fill_nan(None) for name, values in floats.items()},
                "constant": self.is_constant(),
            }
        )

    def _dtypes(self) -> list[str]:
        """Return the type of each feature."""
        return scaler_file.of_each_feature(self.features, self.dtypes)

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
        """Return the scaler as text; `from_json` restores every bit."""
        return scaler_file.as_text(self._fields())

    @classmethod
    def from_json(cls, text: str) -> Scaler:
        """Return the scaler that `to_json` wrote.

        Raises:
            InputError: `text` is no scaler, or one whose fields contradict each other.
        """
        return cls(*scaler_file.parsed(text))

    def save(self, path: str | Path) -> None:
        """Write the scaler to `path`, whole or not at all."""
        scaler_file.save(Path(path), self._fields())

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
        return cls(*scaler_file.load(path, memory_limit))

    def _fields(self) -> scaler_file.Fields:
        return scaler_file.Fields(
            self.columns,
            self.dtypes,
            self.moments,
            self.ddof,
            self.inf,
            self.dtype,
            self.vectors,
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
