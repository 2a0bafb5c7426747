"""The command line: parses, calls the library, renders. Imports no Polars."""

from __future__ import annotations

from polar_etl.cli.commands import main

__all__ = ["main"]
