"""The command line: parses, calls the library, renders. Imports no Polars."""

from __future__ import annotations

import contextlib
import os
import sys

from polar_etl.cli.signals import signals

__all__ = ["main"]


def main() -> None:
    """Run the command line. Signals are heeded before anything large is imported."""
    signals.begin()
    try:
        from polar_etl.cli.commands import main as commands

        commands()
    except BaseException:
        if not signals.code or signals.answered:
            raise
        with contextlib.suppress(OSError):
            os.write(2, f"error: {signals.error()} Give the same command again.\n".encode())
        sys.exit(signals.code)
    finally:
        signals.end()
