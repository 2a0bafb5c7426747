"""Makes `support` importable, and its fixtures known."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.fixtures import run_cli, run_process, shell

__all__ = ["run_cli", "run_process", "shell"]
