"""What the benches of a model in PyTorch have in common: rounds, and the line that they print."""

import json
import statistics
import time

import measured
import torch


def time_rounds(which, batch, rounds, threads, run):
    """Calls `run` once for warmth and then `rounds` times, and prints a JSON line: the median and the least
    of their seconds, the first number of the last result, and the peak memory in bytes."""
    torch.set_num_threads(threads)
    seconds = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - started)
    line = {
        "engine": f"torch {torch.__version__}",
        "which": which,
        "batch": batch,
        "threads": threads,
        "seconds": round(statistics.median(seconds[1:]), 4),
        "fastest_seconds": round(min(seconds[1:]), 4),
        "first_number": round(result.detach().flatten()[0].item(), 6),
        "peak_rss_bytes": measured.peak_of(),
    }
    print(json.dumps(line), flush=True)
