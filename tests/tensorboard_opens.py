#!/usr/bin/env python3
"""TensorBoard reads the event files that training writes, also those of a resumed run.

    tests/tensorboard_opens.py target/release/examples/write_logs

Makes a virtual environment with the `tensorboard` package once. Where it cannot be installed, says so and
succeeds.
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
ENVIRONMENT = CACHE / "vlmerge" / "tensorboard"


def restart_with_tensorboard():
    python = ENVIRONMENT / "bin" / "python"
    is_there = python.exists() and not subprocess.run(
        [python, "-c", "import tensorboard"], capture_output=True).returncode
    if not is_there:
        try:
            subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
            packages = ["tensorboard==2.21.0", "setuptools<80"]
            subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        except (subprocess.CalledProcessError, OSError):
            print(f"SKIPPED: {sys.argv[0]} needs tensorboard, which could not be installed")
            return
    os.execv(python, [python, __file__, *sys.argv[1:], "--inside"])


def check(program):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([program, folder], check=True)
        events = EventAccumulator(folder)
        events.Reload()
        assert events.Tags()["scalars"] == ["loss/total", "rate"], events.Tags()
        found = [(event.step, event.value) for event in events.Scalars("loss/total")]
        wanted = [(step, (1 if step <= 6 else 100) / step) for step in range(1, 13)]
        assert [step for step, _ in found] == [step for step, _ in wanted], found
        for (step, value), (_, loss) in zip(found, wanted):
            assert abs(value - loss) <= 1e-6 * loss, (step, value, loss)
        with open(Path(folder) / "metrics.jsonl") as lines:
            logged = [json.loads(line) for line in lines]
        assert [(line["step"], line["values"]["loss/total"]) for line in logged] == wanted
        print(f"tensorboard reads {len(found)} steps of a resumed run, as they were logged")


if sys.argv[-1] == "--inside":
    check(sys.argv[1])
else:
    restart_with_tensorboard()
