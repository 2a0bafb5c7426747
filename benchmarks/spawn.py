"""What does one command cost? The small process between a measurement and what it measures.

Linux counts the memory of the process that calls `exec` into the peak of what it starts, so a large
process can't measure a small one. This one is small: it imports no package, not even `site`.

    python -I -S benchmarks/spawn.py DESCRIPTOR CGROUP_PROCS COMMAND...

It writes one JSON object to the open file DESCRIPTOR. CGROUP_PROCS is the `cgroup.procs` file
that the command joins, or nothing.
"""

import json
import os
import sys
import time


def main(descriptor: int, procs: str, command: list[str]) -> None:
    """Run `command` and write exit code, wall, cpu and peak memory to `descriptor`."""
    os.set_inheritable(descriptor, False)
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        try:
            if procs:
                with open(procs, "w") as file:
                    file.write(str(os.getpid()))
            os.execvp(command[0], command)
        except OSError as error:
            print(f"{command[0]}: {error}", file=sys.stderr, flush=True)
        os._exit(127)
    _, status, usage = os.wait4(child, 0)
    found = {
        "exit_code": os.waitstatus_to_exitcode(status),
        "wall": time.perf_counter() - started,
        "cpu": usage.ru_utime + usage.ru_stime,
        "peak": usage.ru_maxrss * 1024,
    }
    os.write(descriptor, json.dumps(found).encode())


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
