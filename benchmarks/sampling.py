"""Runs the command line and samples what its threads do; `benchmarks.profile` starts it.

    python -m benchmarks.sampling REPORT STARTED ARGS...

REPORT is the JSON file to write, STARTED what `time.monotonic()` said when the process was started.
Little is imported before the command line, so that its imports are measured as its own.

Each sample notes the Python stack of every thread, and how long the kernel had it on a processor
since the sample before (`/proc/self/task/TID/schedstat`). What C code does below a Python function
therefore counts for that line of that function, also where it runs without the interpreter's lock.
"""

import sys
import threading
import time

_INTERVAL = 0.004
_IO = ("rchar", "wchar", "syscr", "syscw")


class Sampler:
    """Samples all threads of this process until it is stopped."""

    def __init__(self):
        self.stacks = {}
        """By stack, a tuple of code objects and lines, innermost first: seconds on a processor, and
        seconds off it."""
        self.modules = {}
        """Names of the modules that code objects belong to."""
        self._used = {}
        self._before = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self):
        """Begin; what threads have used so far is left out."""
        for thread in threading.enumerate():
            self._used[thread.native_id] = on_processor(thread.native_id)
        self._thread.start()

    def stop(self):
        """Take a last sample and end; return the seconds that sampling itself took."""
        self._stop.set()
        self._thread.join()
        return self._own

    def _run(self):
        own = self._thread.native_id
        before = time.perf_counter()
        stopped = False
        while not stopped:
            stopped = self._stop.wait(_INTERVAL)
            now = time.perf_counter()
            self._sample(now - before)
            before = now
        self._own = on_processor(own) or 0.0

    def _sample(self, elapsed):
        frames = sys._current_frames()  # noqa: SLF001 - documented, for this very use
        for thread in threading.enumerate():
            frame, number = frames.get(thread.ident), thread.native_id
            if frame is None or thread is self._thread:
                continue
            total = on_processor(number)
            if total is None:
                continue
            used = total - self._used.get(number, 0.0)
            self._used[number] = total
            stack = []
            while frame is not None:
                stack.append((frame.f_code, frame.f_lineno or 0))
                self.modules[frame.f_code] = frame.f_globals.get("__name__", "")
                frame = frame.f_back
            counted = self.stacks.setdefault(tuple(stack), [0.0, 0.0])
            counted[0] += used
            counted[1] += max(elapsed - used, 0.0)
        del frames, frame


def on_processor(thread):
    """Return the seconds that a thread of this process has run; None if it has ended."""
    try:
        with open(f"/proc/self/task/{thread}/schedstat") as file:
            return int(file.read().split()[0]) / 1e9
    except OSError:
        return None


def main():
    """Run the command line, and write the report when it has ended."""
    report, started = sys.argv[1], float(sys.argv[2])
    sys.argv = ["polar-etl", *sys.argv[3:]]
    before = {"wall": time.monotonic() - started, "cpu": time.process_time()}
    sampler = Sampler()
    sampler.start()
    exit_code = 0
    try:
        from polar_etl.cli import main as run

        run()
    except SystemExit as end:
        exit_code = end.code or 0
    wall, cpu = time.monotonic() - started, time.process_time()
    own = sampler.stop()

    import json
    import linecache
    import resource

    def shown(code, line):
        module = sampler.modules[code]
        return f"{module}:{code.co_name}: {linecache.getline(code.co_filename, line).strip()}"

    usage = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open("/proc/self/io") as file:
        io = dict(line.split(": ") for line in file)
    found = {
        "exit_code": exit_code,
        "start": before,
        "wall": wall,
        "cpu": cpu,
        "sampling": own,
        "forked": children.ru_utime + children.ru_stime,
        "user": usage.ru_utime,
        "system": usage.ru_stime,
        "major_faults": usage.ru_majflt,
        "minor_faults": usage.ru_minflt,
        "switches": [usage.ru_nvcsw, usage.ru_nivcsw],
        "io": {name: int(io[name]) for name in _IO},
        "stacks": [
            {"frames": [shown(*frame) for frame in stack], "on": on, "off": off}
            for stack, (on, off) in sampler.stacks.items()
        ],
    }
    with open(report, "w") as file:
        json.dump(found, file)
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
