"""Fixtures of the integration and fault tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from support import cli
from support.shell import Shell


@pytest.fixture(scope="session")
def shell() -> Iterator[Shell]:
    """A process that runs command lines one after the other."""
    process = Shell()
    yield process
    process.close()


@pytest.fixture
def run_cli(shell: Shell, tmp_path: Path) -> Callable[..., cli.Outcome]:
    """Return a function that runs `polar-etl ARGS` in `tmp_path` and returns its outcome."""
    return partial(shell.run, cwd=tmp_path)


@pytest.fixture
def run_process(tmp_path: Path) -> Callable[..., cli.Outcome]:
    """Return a function that runs `polar-etl ARGS` in `tmp_path` as a process of its own."""
    return partial(cli.run, cwd=tmp_path)
