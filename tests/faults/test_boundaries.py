"""What is none of our business: files outside the two directories, and credentials."""

from __future__ import annotations

import re
import shlex

import pytest
from support import cli, tables, tracing, trees

COMMAND = ("normalize", "in.parquet", "out", "--rows-per-part", 300)
SECRET = "s3cr3t"
ENVIRONMENT = {
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_SESSION_TOKEN": SECRET,
    "AZURE_STORAGE_ACCOUNT_KEY": SECRET,
    "GOOGLE_APPLICATION_CREDENTIALS": SECRET,
    "PGPASSWORD": SECRET,
    "POLARS_VERBOSE": "1",
}


@pytest.fixture
def here(tmp_path):
    """tmp_path/here with in.parquet, beside a home and a folder of temporary files."""
    tables.write(tmp_path / "here" / "in.parquet", tables.mixed(1000), row_group_size=200)
    (tmp_path / "home").mkdir()
    (tmp_path / "temporary").mkdir()
    return tmp_path / "here"


def environment(here) -> dict[str, str]:
    beside = here.parent
    return {
        "HOME": str(beside / "home"),
        "XDG_CACHE_HOME": str(beside / "home"),
        "TMPDIR": str(beside / "temporary"),
    }


def outside(here) -> trees.Tree:
    found = trees.tree(here.parent)
    return {
        name: content
        for name, content in found.items()
        if not name.startswith(("here/out/", "here/out.polar-etl/"))
        and name not in ("here/out", "here/out.polar-etl")
    }


def test_nothing_beside_the_two_directories_is_changed(shell, here):
    before = outside(here)
    env = environment(here)
    shell.run(*COMMAND, cwd=here, env=env).expect(0)
    (here / "out" / "part-00001.parquet").unlink()
    for command in (COMMAND, (*COMMAND, "--overwrite"), ("verify", "out", "--deep")):
        shell.run(*command, cwd=here, env=env).expect(0)
    (here / "in.parquet").rename(here / "away.parquet")
    (here / "in.parquet").write_bytes(b"junk")
    shell.run(*COMMAND, cwd=here, env=env).expect(4)
    (here / "away.parquet").rename(here / "in.parquet")
    assert outside(here) == before


CREATING = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC")
PATH = re.compile(r'"([^"]+)"')
HARMLESS = ("/dev/", "/proc/self/", "/sys/", "anon_inode:")


def test_every_call_that_changes_a_file_names_one_of_ours(here):
    tracing.require()
    names = ("openat", "open", "creat", *tracing.CHANGING)
    cli.run("normalize", "in.parquet", "out", cwd=here).expect(0)
    calls = tracing.census(here, *COMMAND, "--overwrite", names=names)
    foreign = []
    for call in calls:
        if call.name.startswith("open") and not CREATING.search(call.text):
            continue
        if call.name in ("write", "pwrite64", "fsync", "fdatasync", "ftruncate", "fallocate"):
            paths = re.findall(r"^\d+<([^>]*)>", call.text)
        else:
            paths = PATH.findall(call.text)
        foreign += [
            f"{call.name}({call.text[:200]}"
            for path in paths
            if str(here / "out") not in path
            and not path.startswith(HARMLESS)
            and not path.startswith(("pipe:", "socket:", "/dev"))
            and ".pyc" not in path
        ]
    assert not foreign, "\n".join(foreign)
    assert any("part-00000.parquet" in call.text for call in calls)


URLS = (f"s3://key:{SECRET}@bucket/x.parquet", f"https://host/x.parquet?X-Amz-Signature={SECRET}")


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("flags", [[], ["--json"], ["--log-format", "json"]], ids=" ".join)
def test_credentials_in_urls_are_not_repeated(shell, here, url, flags):
    flags = [*flags, "--log-level", "debug"]
    before = trees.tree(here)
    commands = [
        ("normalize", url, "out"),
        ("normalize", "in.parquet", url),
        ("normalize", "in.parquet", "out", "--state-dir", url),
        ("fit", url, "scaler.json"),
        ("transform", "in.parquet", "out", "--scaler", url),
        ("plan", url),
        ("status", url),
        ("verify", url),
    ]
    for command in commands:
        done = shell.run(*command, *flags, cwd=here).expect(2, 4, 5)
        assert SECRET not in done.stdout + done.stderr, done
    assert trees.tree(here) == before


def test_credentials_in_the_environment_are_written_nowhere(shell, here):
    said = []

    def run(*command, expect):
        done = shell.run(*command, "--log-level", "debug", cwd=here, env=ENVIRONMENT)
        done.expect(expect)
        said.append(done.stdout + done.stderr)

    run(*COMMAND, "--json", expect=0)
    run("status", "out", "--json", expect=0)
    run("verify", "out", "--deep", expect=0)
    run(*COMMAND, "--ddof", 1, expect=5)
    run(*COMMAND[:2], "nowhere", "--memory-limit", "1MB", expect=7)
    (here / "junk.parquet").write_bytes(b"junk")
    run("normalize", "junk.parquet", "new", expect=4)
    written = [content for content in trees.tree(here).values() if isinstance(content, bytes)]
    assert not any(SECRET in text for text in said)
    assert not any(SECRET.encode() in content for content in written)


def test_the_command_to_go_on_keeps_what_a_shell_needs_and_no_credentials(shell, here):
    (here / "file").write_text("in the way of the output's parent")
    failed = shell.run(*COMMAND[:2], "file/it's out", "--exclude", URLS[0], cwd=here)
    failed.expect(1, 2)
    assert SECRET not in failed.stderr
    for line in failed.stderr.splitlines():
        if line.startswith("To go on: "):
            assert "file/it's out" in shlex.split(line)
