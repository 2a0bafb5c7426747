"""What the process needs before a command runs: its streams, its allocator, few threads."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_ROOMY = 1 << 15
"""Values on the stack of a frame behind which there is room for all that we call: it is more than
half of the power of two that Python takes for it, and less than all."""


def open_standard_streams() -> None:
    """Give closed standard streams somewhere to go, before a file of ours takes their number.

    What the encoding of stdout can't say is escaped, as Python does on stderr.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115 - for as long as we run
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def start_fast() -> None:
    """Save a tenth of a second: of collecting garbage where imports leave none, and of BLAS.

    NumPy's BLAS is not used, but its idle threads spin. What a run sets as PyArrow's allocator,
    PyArrow does not use everywhere unless it is told before it is loaded; a second one would take
    memory from the system anew that the first has at hand. That one is to use any free memory for
    whatever is asked for: by default it leaves alone what is 64 times as large.
    """
    gc.set_threshold(100_000)
    _keep_freed_memory()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if sys.platform == "linux":
        os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")
        os.environ.setdefault("JE_ARROW_MALLOC_CONF", "lg_extent_max_active_fit:20")


def with_roomy_stack(function: Callable[[], None]) -> Callable[[], None]:
    """Let all that a function calls have its frames in one piece of memory.

    Python takes memory for frames 16 kB at a time, and gives a piece back when the last frame in it
    returns. A call that needs a new one takes 7 us instead of 0.05, and while we import there were
    1,700 of them, 5 % of a short run (measured). A frame for which a piece is too small gets a
    larger one; what is left of that is there for others.
    """
    function.__code__ = function.__code__.replace(co_stacksize=_ROOMY)
    return function


def collect_garbage_again() -> None:
    """Collect garbage as a run makes it; what the imports have left is never looked at again.

    Rarely enough to cost nothing, and often enough that a long run's peak is a short one's.
    """
    gc.freeze()
    gc.set_threshold(10_000)


def _keep_freed_memory() -> None:
    """Have glibc take back blocks of some megabytes, which come and go, for the next ones.

    Without this it gives each back to the kernel, whose fresh pages cost a tenth of a run.
    """
    import ctypes

    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 1 << 25)
        mallopt(_M_TRIM_THRESHOLD, 1 << 27)
