"""The command line: parses, calls the library, renders. Imports no Polars."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn

from polar_etl.cli.signals import signals
from polar_etl.cli.startup import start_fast, with_roomy_stack

__all__ = ["main"]


@with_roomy_stack
def main() -> None:
    """Run the command line. Signals are heeded before anything large is imported."""
    signals.begin()
    try:
        start_fast()
        from polar_etl.cli.app import main as run

        run()
    except (ImportError, OSError, MemoryError) as error:
        _end(1, f"Libraries can't be loaded: {error or type(error).__name__} (see ulimit).")
    except BaseException:
        if not signals.code or signals.answered:
            raise
        _end(signals.code, str(signals.error()))
    finally:
        signals.end()


def _end(code: int, message: str) -> NoReturn:
    """Say what is wrong where nothing may be left to say it with, and exit."""
    text = " ".join(message.split())
    with contextlib.suppress(OSError):
        os.write(2, f"error: {text} Give the same command again.\n".encode("utf-8", "replace"))
    sys.exit(code)
