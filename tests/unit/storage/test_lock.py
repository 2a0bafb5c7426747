"""One holder at a time; a dead one holds nothing."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from polar_etl.errors import OutputLockedError, StateMismatchError
from polar_etl.storage.lock import OutputLock

HOLD = """
import sys
from pathlib import Path
from polar_etl.storage.lock import OutputLock
with OutputLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    with process:
        yield process
        process.kill()


def test_a_second_holder_is_refused_and_told_of_the_first(tmp_path, holder):
    with pytest.raises(OutputLockedError) as caught, OutputLock(tmp_path / "lock"):
        pass

    assert f"pid {holder.pid} " in str(caught.value)
    assert socket.gethostname() in str(caught.value)


def test_a_second_holder_in_the_same_process_is_refused(tmp_path):
    with (
        OutputLock(tmp_path / "lock"),
        pytest.raises(OutputLockedError, match=f"pid {os.getpid()}"),
        OutputLock(tmp_path / "lock"),
    ):
        pass


def test_being_refused_changes_nothing(tmp_path, holder):
    before = (tmp_path / "lock").read_bytes()
    for _ in range(2):
        with pytest.raises(OutputLockedError), OutputLock(tmp_path / "lock"):
            pass

    assert (tmp_path / "lock").read_bytes() == before


def test_a_killed_holder_holds_nothing(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()

    assert (tmp_path / "lock").read_text().count(str(holder.pid)) == 1
    with OutputLock(tmp_path / "lock"):
        assert f'"pid": {os.getpid()}' in (tmp_path / "lock").read_text()


def test_the_lock_is_free_again_afterwards(tmp_path):
    for _ in range(3):
        with OutputLock(tmp_path / "lock"):
            pass
    with pytest.raises(ZeroDivisionError), OutputLock(tmp_path / "lock"):
        raise ZeroDivisionError
    with OutputLock(tmp_path / "lock"):
        pass


@pytest.mark.parametrize(
    "text", ["", "garbage", "{}", "[]", '{"pid": "\\u001b[31m"}', "\xff" * 9_000]
)
def test_whatever_the_file_says_a_holder_is_refused(tmp_path, holder, text):
    (tmp_path / "lock").write_bytes(text.encode("latin-1"))

    with pytest.raises(OutputLockedError) as caught, OutputLock(tmp_path / "lock"):
        pass
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "garbage" * 1_000])
def test_whatever_the_file_says_it_can_be_taken(tmp_path, text):
    (tmp_path / "lock").write_text(text)

    with OutputLock(tmp_path / "lock"):
        assert "garbage" not in (tmp_path / "lock").read_text()


def test_a_symlink_is_not_followed(tmp_path):
    (tmp_path / "target").write_text("precious")
    (tmp_path / "lock").symlink_to("target")

    with pytest.raises(StateMismatchError, match="remove it"), OutputLock(tmp_path / "lock"):
        pass
    assert (tmp_path / "target").read_text() == "precious"


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    """Whoever ends may remove the file: two processes must not hold one that only one can see."""
    take, removed = fcntl.flock, []

    def remove_first(descriptor, how):
        if not removed:
            removed.append((tmp_path / "lock").unlink())
        take(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with OutputLock(tmp_path / "lock"):
        with pytest.raises(OutputLockedError), OutputLock(tmp_path / "lock"):
            pass
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_a_lock_that_could_not_be_signed_is_let_go(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", lambda *_: os.stat(tmp_path / "nothing"))
        with pytest.raises(FileNotFoundError), OutputLock(tmp_path / "lock"):
            pass
    with OutputLock(tmp_path / "lock"):
        pass
