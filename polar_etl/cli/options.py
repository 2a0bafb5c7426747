"""The options that commands share: their names, what they mean, and the values they take."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer


class Inf(str, Enum):
    """What to do with infinite values."""

    error = "error"
    ignore = "ignore"
    null = "null"


class DType(str, Enum):
    """Output types."""

    float32 = "float32"
    float64 = "float64"


class Check(str, Enum):
    """What is compared of an input when a run resumes."""

    footer = "footer"
    full = "full"


class LogFormat(str, Enum):
    """Forms of messages."""

    text = "text"
    json = "json"


class LogLevel(str, Enum):
    """How much is said."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


def option(name: str, text: str, **more: Any) -> Any:
    """Return a typer option that an environment variable named like it can set, too."""
    variable = "POLAR_ETL_" + name.lstrip("-").upper().replace("-", "_")
    return typer.Option(name, help=text, envvar=variable, **more)


def argument(text: str) -> Any:
    """Return a typer argument."""
    return typer.Argument(help=text)


Inputs = Annotated[list[str], argument("Parquet files, directories, or globs in quotes.")]
Out = Annotated[Path, argument("Directory of the parts.")]
Columns = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads it at run time
    option("--columns", "Column to normalize: a name, glob or ^regex$. Can be repeated."),
]
Exclude = Annotated[
    Optional[list[str]],  # noqa: UP045
    option("--exclude", "Column to pass through: a name, glob or ^regex$. Can be repeated."),
]
DDof = Annotated[int, option("--ddof", "0: population deviation; 1: sample deviation.")]
InfOption = Annotated[Inf, option("--inf", "Infinite values: refuse, pass on, or make null.")]
DTypeOption = Annotated[
    Optional[DType],  # noqa: UP045
    option("--dtype", "Output type; default: float32 from float32 and float16, else float64."),
]
MemoryLimit = Annotated[
    Optional[str],  # noqa: UP045
    option("--memory-limit", "Such as 512MB, 2GiB or 50%; default: half of what there is."),
]
Threads = Annotated[
    Optional[int],  # noqa: UP045
    option("--threads", "Default: as many as the processor has for this process."),
]
RowsPerPart = Annotated[
    Optional[int],  # noqa: UP045
    option("--rows-per-part", "Rows of a part; default: about 32 MiB, more for wide tables."),
]
PartSize = Annotated[
    Optional[str],  # noqa: UP045
    option("--part-size", "Decoded size of a part, such as 256MB, instead of rows."),
]
Level = Annotated[
    Optional[int],  # noqa: UP045
    option(
        "--compression-level",
        "Level of zstd, -7 to 22; default: 1, but -1 for what shrinks by less than an eighth.",
    ),
]
StateDir = Annotated[
    Optional[Path],  # noqa: UP045
    option("--state-dir", "Where manifest and scaler are kept; default: OUT.polar-etl."),
]
Overwrite = Annotated[bool, option("--overwrite", "Replace the output of an earlier run.")]
CheckInput = Annotated[
    Check, option("--check-input", "When resuming, compare footers, or hash the full input.")
]
Json = Annotated[bool, option("--json", "Print JSON Lines; the last one is the summary.")]
Quiet = Annotated[bool, option("--quiet", "Say nothing but errors and the result.")]
Level_ = Annotated[LogLevel, option("--log-level", "How much is said on stderr.")]
Form = Annotated[LogFormat, option("--log-format", "Form of what is said on stderr.")]
