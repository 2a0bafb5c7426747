"""Sizes as people write them, and the limit in force."""

import os
import resource

import psutil
import pytest

from polar_etl.errors import UsageError
from polar_etl.memory import (
    PeakSampler,
    _cgroup_limits,
    available_memory,
    format_size,
    free_memory,
    limit_in_force,
    parse_size,
    peak_of_process,
)

GIB = 2**30


class TestParseSize:
    """Decimal and binary units, bytes, and shares."""

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            *(("1", 1), ("1b", 1), ("512MB", 512 * 10**6), ("512 mb", 512 * 10**6)),
            *(("2GiB", 2 * GIB), ("2gib", 2 * GIB), (" 1k ", 1_000), ("1KiB", 1_024)),
            *(("1.5g", 15 * 10**8), ("0.5kib", 512), ("1TB", 10**12), ("1TiB", 2**40)),
            *((123, 123), ("1M", 10**6), ("1MiB", 2**20), ("1t", 10**12)),
        ],
    )
    def test_reads(self, text, expected):
        assert parse_size(text) == expected

    @pytest.mark.parametrize(
        "text",
        [
            *("", " ", "MB", "1 0MB", "1e9", "-1", "-1MB", "0x10", "1,5GB", "nan", "inf", "%"),
            *(
                "101%",
                "100.1%",
                "1PB",
                "1MBs",
                "1 M B",
                ".5GB",
                "5.",
                "0",
                "0MB",
                "0.0001b",
                "1%%",
                "9" * 400 + "MB",
            ),
        ],
    )
    def test_refuses_what_is_no_size(self, text):
        with pytest.raises(UsageError):
            parse_size(text, available=GIB)

    @pytest.mark.parametrize("number", [0, -5])
    def test_refuses_numbers_that_are_not_positive(self, number):
        with pytest.raises(UsageError):
            parse_size(number)

    @pytest.mark.parametrize(
        ("text", "expected"), [("50%", 500), ("100 %", 1000), ("0.1%", 1), ("12.5%", 125)]
    )
    def test_reads_shares_of_what_there_is(self, text, expected):
        assert parse_size(text, available=1000) == expected

    def test_refuses_shares_of_nothing_known(self):
        with pytest.raises(UsageError):
            parse_size("50%")

    @pytest.mark.parametrize("number", [1, 999, 2**40 + 1, 2**53 + 1, 2**62 + 1])
    def test_keeps_every_byte_of_a_number(self, number):
        assert parse_size(number) == number
        assert parse_size(str(number)) == number


@pytest.mark.parametrize(
    ("size", "text"),
    [
        *((0, "0 B"), (1, "1 B"), (999, "999 B"), (1_000, "1 kB"), (1_234, "1.23 kB")),
        *((512_000_000, "512 MB"), (1_234_000_000, "1.23 GB"), (5 * 10**12, "5 TB")),
        *((12_345_678, "12.3 MB"), (2_000.5, "2 kB")),
    ],
)
def test_format_size(size, text):
    assert format_size(size) == text


class TestCgroups:
    """The limits of a container, from files as the kernel shows them."""

    @pytest.fixture
    def kernel(self, tmp_path):
        def build(membership: str, limits: dict[str, str]) -> list[int]:
            (tmp_path / "cgroup").write_text(membership)
            for name, text in limits.items():
                path = tmp_path / "fs" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            return sorted(_cgroup_limits(tmp_path / "cgroup", tmp_path / "fs"))

        return build

    def test_of_version_2(self, kernel):
        assert kernel("0::/job\n", {"job/memory.max": "1073741824\n"}) == [GIB]

    def test_of_version_2_in_its_root(self, kernel):
        assert kernel("0::/\n", {"memory.max": "1073741824\n"}) == [GIB]

    def test_of_all_ancestors(self, kernel):
        limits = {
            "memory.max": "max\n",
            "a/memory.max": "3000\n",
            "a/b/memory.max": "max\n",
            "a/b/c/memory.max": "2000\n",
            "a/b/c/d/memory.max": "1000\n",
            "a/other/memory.max": "5\n",
        }

        assert kernel("0::/a/b/c\n", limits) == [2000, 3000]

    def test_of_a_container_that_sees_only_its_own_root(self, kernel):
        assert kernel("0::/docker/0123\n", {"memory.max": "7000\n"}) == [7000]

    def test_of_version_1(self, kernel):
        membership = "12:cpu,cpuacct:/job\n5:memory:/job/x\n1:name=systemd:/job\n"
        limits = {
            "memory/job/x/memory.limit_in_bytes": "4096\n",
            "memory/job/memory.limit_in_bytes": "8192\n",
            "cpu/job/memory.limit_in_bytes": "1\n",
        }

        assert kernel(membership, limits) == [4096, 8192]

    def test_of_version_1_without_limit(self, kernel):
        limits = {"memory/memory.limit_in_bytes": "9223372036854771712\n"}

        assert kernel("5:memory:/\n", limits) == []

    def test_of_both_versions_side_by_side(self, kernel):
        membership = "5:memory:/a\n0::/b\n"
        limits = {"memory/a/memory.limit_in_bytes": "111", "unified/b/memory.max": "222"}

        assert kernel(membership, limits) == [111, 222]

    def test_of_shared_controllers(self, kernel):
        assert kernel("3:hugetlb,memory:/a\n", {"memory/a/memory.limit_in_bytes": "5"}) == [5]

    def test_of_a_path_with_colons(self, kernel):
        assert kernel("0::/a:b\n", {"a:b/memory.max": "9"}) == [9]

    @pytest.mark.parametrize("membership", ["", "0::/absent\n"])
    def test_of_nothing(self, kernel, membership):
        assert kernel(membership, {}) == []

    def test_of_no_kernel_file(self, tmp_path):
        assert _cgroup_limits(tmp_path / "absent", tmp_path) == []


class TestLimit:
    """What is asked, or half of what there is."""

    def test_is_never_more_than_the_host_has(self):
        assert 0 < available_memory() <= psutil.virtual_memory().total

    def test_follows_a_resource_limit(self):
        before = resource.getrlimit(resource.RLIMIT_DATA)
        lower = available_memory() // 2
        resource.setrlimit(resource.RLIMIT_DATA, (lower, before[1]))
        try:
            assert available_memory() == lower
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, before)

    def test_is_half_by_default(self):
        assert limit_in_force(None) == available_memory() // 2

    def test_is_what_was_asked(self):
        assert limit_in_force("512MB") == 512 * 10**6
        assert limit_in_force(12345) == 12345
        assert limit_in_force("25%") == available_memory() // 4


class TestPeak:
    """Resident memory is sampled, and its largest value kept."""

    def test_the_peak_never_falls(self):
        with PeakSampler(2**60) as sampler:
            first = sampler.peak
            held = bytearray(b"x") * (64 << 20)
            middle = sampler.sample()
            del held
            sampler.sample()

        assert sampler.peak >= middle >= first + (32 << 20)
        assert not sampler.exceeded

    def test_a_process_without_descriptors_is_sampled_on(self):
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        with PeakSampler(2**60, interval=0.001) as sampler:
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
            try:
                assert sampler.sample() == sampler.peak > 0
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert sampler._thread.is_alive()
            sampler.peak = 0
            assert sampler.sample() > 0

    def test_a_crossed_limit_is_remembered(self):
        with PeakSampler(1) as sampler:
            pass

        assert sampler.exceeded

    def test_coming_close_to_the_limit_is_told_to_forked_processes_too(self):
        sampler = PeakSampler(2**60)
        child = os.fork()
        if child == 0:
            while not sampler.near:
                os.sched_yield()
            os._exit(0)
        assert not sampler.near
        sampler.limit = 1
        sampler.sample()
        assert os.waitpid(child, 0)[1] == 0
        sampler.limit = 2**60
        sampler.sample()
        assert not sampler.near

    def test_the_peak_of_the_process_is_at_least_what_it_uses(self):
        assert peak_of_process() >= psutil.Process().memory_info().rss * 0.9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MemTotal: 100 kB\nMemFree: 20 kB\nMemAvailable:   60 kB\n", 60 * 1024),
        ("MemTotal: 100 kB\n", 1 << 60),
        ("MemAvailable:\n", 1 << 60),
        (None, 1 << 60),
    ],
)
def test_free_memory_is_what_the_system_says(tmp_path, text, expected):
    if text is not None:
        (tmp_path / "meminfo").write_text(text)
    assert free_memory(tmp_path / "meminfo") == expected


def test_there_is_free_memory():
    assert 0 < free_memory() <= psutil.virtual_memory().total
