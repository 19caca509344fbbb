"""A checkpoint of DeepSpeed by `vlmerge convert` beside `cp` and `zero_to_fp32.py`: seconds and peak memory.

    cargo build --release --workspace
    tests/with_torch.sh benches/zero_shards.py FOLDER [--gigabytes 1 --ranks 4 --stage 3 --rounds 3]

Writes files of ZeRO with drawn weights to FOLDER once: in the layout that `tests/zero_shards.py` holds against DeepSpeed
itself, with the two moments of the optimizer in the same files, as DeepSpeed leaves them. Runs the three in turn, each
in a process of its own, and prints seconds (median of the rounds) and peak memory. `cp` copies as many bytes as the model
has. `zero_to_fp32.py` writes safetensors, too, and must give the same bits.
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import time

os.environ["DS_ACCELERATOR"] = "cpu"

import torch
from safetensors import safe_open

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "target/release/vlmerge"


def parameters(gigabytes):
    """Names and shapes as of a language model, about so large in f32."""
    width, blocks = 2048, max(1, round(gigabytes * 1e9 / 4 / (12 * 2048 * 2048)))
    shapes = {"embed.weight": (8009, width)}
    for block in range(blocks):
        shapes[f"layers.{block}.norm.weight"] = (width,)
        shapes[f"layers.{block}.qkv.weight"] = (3 * width, width)
        shapes[f"layers.{block}.proj.weight"] = (width, width)
        shapes[f"layers.{block}.up.weight"] = (4 * width, width)
        shapes[f"layers.{block}.down.weight"] = (width, 4 * width)
    return {name: torch.Size(shape) for name, shape in shapes.items()}


def write(folder, given):
    tag = folder / "global_step1"
    if (folder / "latest").exists():
        return
    tag.mkdir(parents=True, exist_ok=True)
    shapes, world = parameters(given.gigabytes), given.ranks
    sizes = [math.prod(shape) for shape in shapes.values()]
    states = {
        "module": {},
        "buffer_names": [],
        "param_shapes": [shapes],
        "frozen_param_shapes": None,
        "frozen_param_fragments": None,
        "shared_params": {},
        "ds_version": "0.19.2",
    }
    if given.stage == 3:
        flat, key = sum(math.ceil(size / world) for size in sizes), "fp32_flat_groups"
    else:
        flat, key = math.ceil(sum(sizes) / (2 * world)) * 2, "single_partition_of_fp32_groups"
    for rank in range(world):
        generator = torch.Generator().manual_seed(rank)
        weights = torch.randn(flat, generator=generator)
        if given.stage != 3 and rank + 1 == world:
            weights = weights[: flat - (flat * world - sum(sizes))].clone()
        moments = {0: {"exp_avg": weights * 0.5, "exp_avg_sq": weights * 0.25}}
        of_rank = {"zero_stage": given.stage, "partition_count": world, key: [weights]}
        of_rank["optimizer_state_dict" if given.stage == 3 else "base_optimizer_state"] = {"state": moments}
        torch.save({"optimizer_state_dict": of_rank}, tag / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        if given.stage == 3:
            torch.save(states, tag / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    if given.stage != 3:
        torch.save(states, tag / "mp_rank_00_model_states.pt")
    (folder / "latest").write_text("global_step1")


# Between this process and the command, for the system counts the memory of a process's parent as its own peak.
BETWEEN = """
import json, os, subprocess, sys, time
began = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(json.dumps([status, time.perf_counter() - began, usage.ru_maxrss / 1024]))
"""


def timed(command):
    run = subprocess.run([sys.executable, "-I", "-S", "-c", BETWEEN, *command], check=True, capture_output=True)
    status, seconds, memory = json.loads(run.stdout)
    assert status == 0, command
    return seconds, memory


def same(ours, theirs):
    with safe_open(ours, "pt") as a, safe_open(theirs, "pt") as b:
        names = set(a.keys())
        return names == set(b.keys()) and all(torch.equal(a.get_tensor(n), b.get_tensor(n)) for n in names)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--stage", type=int, default=3, choices=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    run = given.folder / f"stage{given.stage}_{given.ranks}_{given.gigabytes:g}"
    write(run, given)
    ours, copy, theirs = given.folder / "ours.safetensors", given.folder / "copy", given.folder / "theirs"
    script = "from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict as convert; import sys; "
    script += "convert(sys.argv[1], sys.argv[2], max_shard_size='1000GB', safe_serialization=True)"
    commands = {
        "vlmerge convert": [str(PROGRAM), "convert", str(run), str(ours), "--force"],
        "cp": ["cp", str(ours), str(copy)],
        "zero_to_fp32": [sys.executable, "-c", script, str(run), str(theirs)],
    }
    found = {name: [] for name in commands}
    for _ in range(given.rounds):
        for name, command in commands.items():
            found[name].append(timed(command))
    assert same(ours, theirs / "model.safetensors"), "the results differ"
    for name, runs in found.items():
        seconds = statistics.median(seconds for seconds, _ in runs)
        memory = max(memory for _, memory in runs)
        line = {"program": name, "seconds": round(seconds, 2), "peak_mib": round(memory)}
        line["gb_per_second"] = round(ours.stat().st_size / 1e9 / seconds, 2)
        print(json.dumps(line))


if __name__ == "__main__":
    main()
