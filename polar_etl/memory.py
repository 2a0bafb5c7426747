"""Memory: sizes as people write them, the limit in force, and the peak as the kernel counts it."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import resource
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from polar_etl.errors import UsageError, describe

_LARGEST_REUSED = (1 << 25) - (1 << 14)
"""Bytes of the largest block that glibc ever takes from memory that was freed."""
_UNITS = {
    "": 1,
    "b": 1,
    "k": 10**3,
    "kb": 10**3,
    "kib": 2**10,
    "m": 10**6,
    "mb": 10**6,
    "mib": 2**20,
    "g": 10**9,
    "gb": 10**9,
    "gib": 2**30,
    "t": 10**12,
    "tb": 10**12,
    "tib": 2**40,
}
_SIZE = re.compile(r"\s*(\d{1,99}(?:\.\d{1,99})?)\s*([a-zA-Z]*|%)\s*")
_UNLIMITED = 1 << 60
_PAGE = resource.getpagesize()
_RECENT_SECONDS = 0.005
"""Age of a sample up to which it is taken for the present; a batch may be shorter than asking."""
NEAR = 0.95
"""Share of the limit from which on intake slows down; plans rarely take so much of it."""


def parse_size(text: str | int, *, available: int | None = None) -> int:
    """Return the number of bytes that `text` names.

    Args:
        text: `512MB` (10^6), `2GiB` (2^30), `1.5g`, a number of bytes, or `50%` of `available`.
        available: What a percentage refers to; without it a percentage is refused.

    Raises:
        UsageError: `text` is not a size, or not a positive one, or more than 100%.

    Example:
        >>> parse_size("512MB"), parse_size("2GiB"), parse_size("50%", available=1000)
        (512000000, 2147483648, 500)
    """
    match = _SIZE.fullmatch(str(text))
    unit = match.group(2).lower() if match else ""
    if match is None or (unit != "%" and unit not in _UNITS) or (unit == "%" and not available):
        raise UsageError(
            f"{describe(text)} is not a size: expected something like 512MB, 2GiB or 50%."
        )
    whole, _, decimals = match.group(1).partition(".")
    number = int(whole + decimals)
    scale: int = 10 ** len(decimals)
    if unit == "%" and number > 100 * scale:
        raise UsageError(f"{describe(text)} is more than there is.")
    if unit == "%":
        size = number * (available or 0) // (scale * 100)
    else:
        size = number * _UNITS[unit] // scale
    if not 0 < size < 1 << 63:
        raise UsageError(f"A size must be positive and below 2^63 bytes, found {describe(text)}.")
    return size


def format_size(size: float) -> str:
    """Return `size` bytes as people read it, in decimal units.

    Example:
        >>> format_size(512_000_000), format_size(999), format_size(1_234_000_000)
        ('512 MB', '999 B', '1.23 GB')
    """
    for unit, scale in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            value = size / scale
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{size:.0f} B"


def available_memory() -> int:
    """Return the bytes this process may use: the smallest of host, cgroup and rlimits."""
    soft = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    limits = [size for size in soft if size != resource.RLIM_INFINITY]
    return min([os.sysconf("SC_PHYS_PAGES") * _PAGE, *limits, *_cgroup_limits()])


def free_memory(info: Path = Path("/proc/meminfo")) -> int:
    """Return the bytes that the system can give out now without taking any from other processes."""
    try:
        lines = info.read_text().splitlines()
        found = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(found.split()[1]) * 1024
    except (OSError, StopIteration, ValueError, IndexError):
        return _UNLIMITED


def _cgroup_limits(
    membership: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/sys/fs/cgroup")
) -> list[int]:
    """Return the memory limits of this process's cgroup and of all its ancestors (v1 and v2)."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    limits: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            roots, name = [mounts, mounts / "unified"], "memory.max"
        elif "memory" in controllers.split(","):
            roots, name = [mounts / "memory"], "memory.limit_in_bytes"
        else:
            continue
        for root in roots:
            limits += _limits_upwards(root, path, name)
    return limits


def _limits_upwards(root: Path, path: str, name: str) -> list[int]:
    here = root / path.lstrip("/")
    limits = []
    for folder in [here, *here.parents]:
        if not folder.is_relative_to(root):
            break
        try:
            text = (folder / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < _UNLIMITED:
            limits.append(int(text))
    return limits


def limit_in_force(memory_limit: str | int | None) -> int:
    """Return the memory limit in bytes: what was asked, or half of what the process may use."""
    available = available_memory()
    return parse_size("50%" if memory_limit is None else memory_limit, available=available)


def resident_memory() -> int:
    """Return the resident bytes of this process now."""
    try:
        return _resident("self")
    except FileNotFoundError:
        import psutil  # takes 20 ms, and only where there is no /proc

        return int(psutil.Process().memory_info().rss)


def _resident(process: int | str) -> int:
    with open(f"/proc/{process}/statm", "rb", buffering=0) as file:
        return int(file.read().split()[1]) * _PAGE


def give_back() -> None:
    """Give memory that was freed back to the system, where the C library knows how."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def reuse_freed_blocks() -> None:
    """Have glibc take memory that was freed for the next blocks of up to 32 MiB.

    It does so once it has seen so large a block freed. Until then it has each from the kernel,
    whose fresh pages cost a tenth of a run. A block that nobody writes to takes no memory.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
        libc.free.argtypes, libc.free.restype = [ctypes.c_void_p], None
        libc.free(libc.malloc(_LARGEST_REUSED))


class PeakSampler:
    """Samples the resident memory of the process tree in a thread of its own.

    Use it as a context manager. `exceeded` turns true, once and for good, when a sample lies
    above the limit. `near` tells, to forked processes too, that the last one came close to it.
    """

    def __init__(self, limit: int, interval: float = 0.02) -> None:
        self.limit = limit
        self.peak = 0
        self.exceeded = False
        self._interval = interval
        self._last, self._sampled = 0, -_RECENT_SECONDS
        """The last sample, and when it was taken."""
        self._near = mmap.mmap(-1, 1)  # shared with processes that are forked later
        self._children: frozenset[int] = frozenset()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="polar-etl-memory", daemon=True)

    def __enter__(self) -> Self:
        self.sample()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.sample()

    @property
    def near(self) -> bool:
        """Tell whether the last sample came close to the limit: intake is to slow down."""
        return self._near[0] != 0

    def watch(self, child: int) -> None:
        """Count the memory of a child process, too."""
        self._children |= {child}

    def forget(self, child: int) -> None:
        """Count the memory of a child no more."""
        self._children -= {child}

    def recent(self) -> int:
        """Return the resident bytes now, or those of a few milliseconds ago: asking takes time."""
        fresh = time.perf_counter() - self._sampled < _RECENT_SECONDS
        return self._last if fresh else self.sample()

    def sample(self) -> int:
        """Return the resident bytes now, and remember them when they are the most so far."""
        try:
            rss = resident_memory()
            for child in self._children:
                with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                    rss += _resident(child)
        except OSError:  # no descriptor is left: whoever writes will say so
            return self.peak
        self._last, self._sampled = rss, time.perf_counter()
        self.peak = max(self.peak, rss)
        self.exceeded = self.exceeded or rss > self.limit
        self._near[0] = rss > NEAR * self.limit
        return rss

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self.sample()


def peak_of_process() -> int:
    """Return the largest resident size of this process since its start, as the kernel kept it."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
