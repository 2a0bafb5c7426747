"""The application that typer makes of the commands."""

from __future__ import annotations

import errno
import gc
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

from polar_etl import __version__
from polar_etl.cli.commands import COMMANDS
from polar_etl.cli.output import forget_stdout, outlive_stderr, unshown
from polar_etl.cli.startup import open_standard_streams

_EPILOG = (
    "Exit codes: 0 done; 1 failed, can be resumed (the command is printed); 2 usage; "
    "3 done, with rows or files set aside; 4 input unreadable or invalid; 5 state does not match "
    "(input, settings or manifest changed or damaged); 6 output locked by another run; 7 memory "
    "limit too small; 130 interrupted; 143 terminated. Every option can be set by an environment "
    "variable POLAR_ETL_<OPTION>, such as POLAR_ETL_MEMORY_LIMIT."
)


def application(arguments: Sequence[str]) -> typer.Typer:
    """Return the application for a command line, with the command that it names.

    With all commands if it names none of them. Only to describe the options of one to typer takes
    a millisecond.
    """
    app = typer.Typer(
        name="polar-etl",
        help="Standardize every numeric column of Parquet files larger than memory.",
        epilog=_EPILOG,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode=None,
    )
    app.callback()(_root)
    named = [name for name in COMMANDS if name in arguments[:1]]
    for name in named or COMMANDS:
        command = getattr(import_module(f"polar_etl.cli.commands.{name}"), name)
        app.command(epilog=_EPILOG)(command)
    return app


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"polar-etl {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line."""
    open_standard_streams()
    outlive_stderr()
    try:
        application(sys.argv[1:])()
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        forget_stdout()
        print(f"error: {unshown(error)}", file=sys.stderr)
        sys.exit(1)
    finally:
        gc.freeze()
