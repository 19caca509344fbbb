"""Makes one model of a checkpoint in four pieces, beside `cp` and torch's own `dcp_to_torch_save`, in turn, in one run.

    tests/with_torch.sh benches/trainer_shards.py target/release/vlmerge FOLDER [GIGABYTES] [ROUNDS]

Four processes save the shapes of a Llama of random numbers in bf16: as `torch.distributed.checkpoint`, each matrix cut by
rows, and as one file per rank. FOLDER needs three times the size. Everything is read from a warm page cache; prints
wall time, peak resident memory and the ratio to `cp`.
"""

import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import sys
import time

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

WORLD = 4
CONSOLIDATE = (
    "import sys; from torch.distributed.checkpoint.format_utils import dcp_to_torch_save; dcp_to_torch_save(*sys.argv[1:])"
)


def write(rank, folder, gigabytes, port):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    mesh = init_device_mesh("cpu", (WORLD,))
    torch.manual_seed(rank)
    width, inner, words = 2048, 5632, 32000

    def part(rows, columns=None):
        local = torch.randn([rows // WORLD] + [columns] * bool(columns)).bfloat16()
        return DTensor.from_local(local, mesh, [Shard(0)])

    state = {"model.embed_tokens.weight": part(words, width), "lm_head.weight": part(words, width)}
    per_block = 2 * (4 * width * width + 3 * width * inner)
    for block in range(max(1, round((gigabytes * 1e9 - 4 * words * width) / per_block))):
        name = f"model.layers.{block}"
        for key in ["q_proj", "k_proj", "v_proj", "o_proj"]:
            state[f"{name}.self_attn.{key}.weight"] = part(width, width)
        state[f"{name}.mlp.gate_proj.weight"] = part(inner, width)
        state[f"{name}.mlp.up_proj.weight"] = part(inner, width)
        state[f"{name}.mlp.down_proj.weight"] = part(width, inner)
        state[f"{name}.input_layernorm.weight"] = part(width)
    dcp.save({"model": state}, checkpoint_id=folder / "dcp")
    (folder / "ranks").mkdir(exist_ok=True)
    torch.save(state, folder / "ranks" / f"model_world_size_{WORLD}_rank_{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def run(command, target):
    """Wall seconds and peak resident MiB, with no old target and an idle disk."""
    for old in [target, target.with_suffix(".pt")]:
        shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink(missing_ok=True)
    os.sync()
    start = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status) != 0:
        sys.exit(f"failed: {command}")
    return seconds, usage.ru_maxrss / 1024


def main():
    program, folder = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    gigabytes = float(sys.argv[3]) if len(sys.argv) > 3 else 1.5
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 3
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(write, (folder, gigabytes, port), nprocs=WORLD)
    out = folder / "out.safetensors"
    flags = ["--no-hash", "--no-sync"]
    rows = {
        "cp": ["cp", "-r", folder / "dcp", out],
        "vlmerge, distributed checkpoint": [program, "convert", folder / "dcp", out, *flags],
        "vlmerge, files of ranks": [program, "convert", folder / "ranks", out, *flags],
        "dcp_to_torch_save": [sys.executable, "-c", CONSOLIDATE, folder / "dcp", out.with_suffix(".pt")],
    }
    times = {name: [] for name in rows}
    for number in range(rounds + 1):
        for name, command in rows.items():
            measured = run(command, out)
            # The first round fills the page cache.
            if number:
                times[name].append(measured)
    n_bytes = sum(path.stat().st_size for path in (folder / "dcp").iterdir())
    print(f"{n_bytes / 1e9:.2f} GB in {WORLD} files")
    floor = statistics.median(seconds for seconds, _ in times["cp"])
    for name, measured in times.items():
        seconds = statistics.median(seconds for seconds, _ in measured)
        peak = max(peak for _, peak in measured)
        print(f"{name}: {seconds:.2f} s, {peak:.0f} MiB, {seconds / floor:.2f} of cp")


if __name__ == "__main__":
    main()
