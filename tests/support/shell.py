"""One process that runs many command lines, one after the other: no start-up time for each."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from pathlib import Path

from support import cli

_SERVER = """
import io, json, os, sys, tempfile, traceback
from polar_etl.cli import main

def streams():
    files = [tempfile.TemporaryFile() for _ in range(2)]
    for number, file in enumerate(files, start=1):
        os.dup2(file.fileno(), number)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8", "strict")
    sys.stderr = io.TextIOWrapper(
        io.FileIO(2, "w", closefd=False), "utf-8", "backslashreplace", line_buffering=True
    )
    return files

def run(args):
    sys.argv = ["polar-etl", *args]
    try:
        main()
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
for line in requests:
    request = json.loads(line)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    files = streams()
    code = run(request["args"])
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    texts = []
    for file in files:
        file.seek(0)
        texts.append(file.read().decode("utf-8", "surrogateescape"))
        file.close()
    os.chdir("/")
    answers.write(json.dumps([code, *texts]) + chr(10))
    answers.flush()
"""


class Shell:
    """Runs command lines in a process that is started when it is needed, and again if it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def run(
        self,
        *args: object,
        cwd: Path,
        env: dict[str, str] | None = None,
        deadline: float = cli.DEADLINE,
    ) -> cli.Outcome:
        """Run `polar-etl ARGS` in `cwd` to its end; see `cli.run`."""
        words = tuple(os.fspath(a) if isinstance(a, Path) else str(a) for a in args)
        request = {"cwd": str(cwd), "env": cli.environment(**(env or {})), "args": words}
        process = self._started()
        assert process.stdin is not None
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        answer = self._answer(process, deadline)
        if answer is None:
            code = process.wait(cli.DEADLINE)
            self.close()
            return cli.Outcome(words, code, "", "the process died")
        code, stdout, stderr = json.loads(answer)
        return cli.Outcome(words, code, stdout, stderr)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SERVER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=cli.environment(),
            )
        return self._process

    def _answer(self, process: subprocess.Popen[bytes], deadline: float) -> bytes | None:
        assert process.stdout is not None
        descriptor, received = process.stdout.fileno(), bytearray()
        ends = time.monotonic() + deadline
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while not received.endswith(b"\n"):
                if not selector.select(max(ends - time.monotonic(), 0)):
                    self.close()
                    raise AssertionError(f"no answer within {deadline} seconds")
                chunk = os.read(descriptor, 1 << 20)
                if not chunk:
                    return None
                received += chunk
        return bytes(received)
