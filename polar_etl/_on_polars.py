"""Registers the LazyFrame namespace when Polars is imported, without importing Polars.

`import polar_etl` must not take half a second for `polar-etl --help`, and
`import polar_etl; import polars` must give LazyFrames their namespace all the same.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def register_namespace() -> None:
    """Make `LazyFrame.polar_etl` available, now or as soon as Polars is imported."""
    if "polars" in sys.modules:
        import_module("polar_etl.namespace")
    else:
        sys.meta_path.insert(0, _AfterPolars())


class _AfterPolars:
    """Finds Polars as usual, and has the namespace registered once it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "polars":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
        return spec


class _Loader:
    """Passes everything on to the real loader."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: ModuleType) -> None:
        """Load Polars, then register the namespace."""
        self._loader.exec_module(module)
        import_module("polar_etl.namespace")
