"""The namespace `polar_etl` of Polars LazyFrames."""

from __future__ import annotations

from typing import Any

import polars as pl


@pl.api.register_lazyframe_namespace("polar_etl")
class PolarEtlNamespace:
    """Fit and normalize a LazyFrame.

    Example:
        >>> import polars as pl, polar_etl
        >>> pl.LazyFrame({"x": [1.0, 2.0, 3.0]}).polar_etl.normalize().collect()["x"][1]
        0.0
    """

    def __init__(self, frame: pl.LazyFrame) -> None:
        self._frame = frame

    def normalize(self, **options: Any) -> pl.LazyFrame:
        """Fit by streaming through the frame once, and return it with its columns standardized.

        Args:
            **options: Fields of `polar_etl.Options` that concern the fit.
        """
        from polar_etl.api import fit

        return fit(self._frame, **options).transform(self._frame)
