"""Seconds and memory of a command, for the benches that start whole programs."""

import os
import pathlib
import subprocess
import sys
import threading
import time


def run(command, started=None, **options):
    """Wall seconds, processor seconds and peak resident bytes of a command.

    The peak is VmHWM of the command's own process, looked at while it runs: what the system hands over at its end
    counts the script that started it, too. `started` tells by the path of the process's program whether it is the
    command yet; by default, any program but this one's interpreter is.
    """
    own = os.readlink("/proc/self/exe")
    started = started or (lambda program: program != own)
    start = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, **{"stdout": subprocess.DEVNULL, **options})
    errors, peaks = [], [0]
    reader = threading.Thread(target=lambda: errors.append(process.stderr.read()))
    watcher = threading.Thread(target=watch, args=(process.pid, started, peaks))
    reader.start()
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    reader.join()
    watcher.join()
    if os.waitstatus_to_exitcode(status) != 0:
        sys.exit(f"failed: {command}\n{errors[0].decode()[-2000:]}")
    return seconds, usage.ru_utime + usage.ru_stime, max(peaks)


def watch(pid, started, peaks):
    """Notes the peak of a process every 20 ms until it is gone."""
    while True:
        try:
            # Before it becomes the command, it is a copy of the script.
            is_started = started(os.readlink(f"/proc/{pid}/exe"))
            peak = peak_of(pid)
        except (OSError, StopIteration):
            return
        if is_started:
            peaks.append(peak)
        time.sleep(0.02)


def peak_of(pid="self"):
    """Peak resident bytes of a process since it became its program."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
