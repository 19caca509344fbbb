"""Checkpoints of DeepSpeed, made by DeepSpeed itself on processors alone, against its own `zero_to_fp32`.

    tests/with_torch.sh tests/zero_shards.py target/release/vlmerge

Trains a small model for two steps in each stage of ZeRO, in each precision, on 1 to 3 ranks: with tied, frozen and odd
weights, buffers of floats and of whole numbers, and several groups. `vlmerge convert` of the folder must give what
`zero_to_fp32` gives, bit for bit. Two differences are meant: buffers of whole numbers stay whole numbers, and stage 1
keeps the frozen weights, which `zero_to_fp32` loses.
"""

import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import warnings

os.environ["DS_ACCELERATOR"] = "cpu"
warnings.filterwarnings("ignore")

import torch
from safetensors.torch import load_file

import ranks


class Model(torch.nn.Module):
    """Sizes are odd, so that nothing divides evenly."""

    def __init__(self, frozen, tied):
        super().__init__()
        self.embed = torch.nn.Embedding(23, 7)
        self.first = torch.nn.Linear(7, 13)
        self.norm = torch.nn.LayerNorm(13)
        self.frozen = torch.nn.Linear(13, 13)
        self.last = torch.nn.Linear(13, 7, bias=False)
        self.scale = torch.nn.Parameter(torch.tensor(1.5))
        self.head = torch.nn.Linear(7, 23, bias=False)
        self.register_buffer("table", torch.linspace(0, 1, 5))
        self.register_buffer("steps", torch.tensor([3, 1 << 40]))
        self.register_buffer("unsaved", torch.ones(3), persistent=False)
        if frozen:
            self.frozen.requires_grad_(False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens).mean(1)
        x = self.first(x) * self.table.mean().to(x.dtype)
        x = self.norm(x)
        return self.head(self.last(torch.relu(self.frozen(x))) * self.scale)


def train_all(rank, port, world, jobs):
    """One rank of all runs with this number of ranks, for starting DeepSpeed takes longer than the runs."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel("ERROR")
    # It would compile this, and does without it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    for folder, case in jobs:
        train(deepspeed, rank, folder, case)
    torch.distributed.destroy_process_group()


def train(deepspeed, rank, folder, case):
    torch.manual_seed(case["seed"])
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "zero_optimization": {"stage": case["stage"], **case.get("zero", {})},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if case["dtype"] == "bf16":
        config["bf16"] = {"enabled": True}
    with contextlib.ExitStack() as stack:
        if case.get("init"):
            stack.enter_context(deepspeed.zero.Init(config_dict_or_path=config))
        model = Model(case["frozen"], case["tied"])
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if case["groups"] == 1:
        groups = [{"params": [p for _, p in named]}]
    else:
        groups = [
            {"params": [p for name, p in named if "bias" not in name], "weight_decay": 0.1},
            {"params": [p for name, p in named if "bias" in name], "weight_decay": 0.0},
        ]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    for step in range(2):
        generator = torch.Generator().manual_seed(100 * step + rank)
        tokens = torch.randint(0, 23, (4, 5), generator=generator)
        loss = engine(tokens).float().square().mean()
        engine.backward(loss)
        engine.step()
    engine.save_checkpoint(folder, **case.get("save", {}))
    if case.get("tags"):
        engine.save_checkpoint(folder, tag="later")
    torch.distributed.barrier()


def judged(folder, tag=None):
    """What DeepSpeed makes of a folder."""
    from deepspeed.utils import zero_to_fp32

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(str(folder), tag)


def convert(program, folder, out):
    command = [program, "convert", str(folder), str(out), "--force"]
    subprocess.run(command, check=True, capture_output=True, text=True)


def same_bits(a, b):
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a.contiguous().reshape(-1).view(torch.uint8).equal(b.contiguous().reshape(-1).view(torch.uint8))


def compare(name, wanted, found, case, folder):
    """Says what differs between what DeepSpeed gives and what the program gives."""
    faults = []
    for key, tensor in wanted.items():
        got = found.get(key)
        if got is None:
            faults.append(f"{key} is missing")
            continue
        if key == "steps":
            # zero_to_fp32 makes a float of it.
            if got.dtype != torch.int64 or not torch.equal(got.float(), tensor):
                faults.append(f"{key} is {got}, not {tensor}")
        elif not same_bits(tensor, got):
            faults.append(f"{key}: {got.dtype} {tuple(got.shape)} against {tensor.dtype} {tuple(tensor.shape)}")
    beyond = set(found) - set(wanted)
    expected = set()
    if case["stage"] == 1 and case["frozen"] and not case.get("save"):
        expected = {"frozen.weight", "frozen.bias"}
        module = torch.load(
            next(folder.glob("*/mp_rank_00_model_states.pt")), weights_only=False, map_location="cpu"
        )["module"]
        faults += [f"{key} differs" for key in expected if not same_bits(module[key], found[key])]
    if beyond != expected:
        faults.append(f"beyond what DeepSpeed gives: {sorted(beyond)}")
    return [f"{name}: {fault}" for fault in faults]


def read(path):
    """The tensors of a file under all of their names."""
    tensors = load_file(path)
    with open(path, "rb") as file:
        n_bytes = int.from_bytes(file.read(8), "little")
        metadata = json.loads(file.read(n_bytes)).get("__metadata__", {})
    for name, of in json.loads(metadata.get("vlmerge.aliases", "{}")).items():
        tensors[name] = tensors[of]
    return tensors


def cases():
    seed = 0
    for dtype in ["f32", "bf16"]:
        for stage in [1, 2, 3]:
            for world in [1, 2, 3]:
                for groups in [1, 2]:
                    seed += 1
                    yield f"stage {stage}, {dtype}, {world} ranks, {groups} groups", {
                        "stage": stage,
                        "dtype": dtype,
                        "world": world,
                        "groups": groups,
                        "frozen": seed % 3 != 0,
                        "tied": seed % 4 != 0,
                        "seed": seed,
                    }
    usual = {"world": 2, "groups": 2, "frozen": True, "tied": True, "dtype": "bf16"}
    yield "stage 3 with many small groups", {**usual, "stage": 3, "seed": 90, "zero": {"sub_group_size": 50}}
    yield "stage 3 from zero.Init", {**usual, "stage": 3, "seed": 91, "init": True}
    yield "stage 3 without the frozen weights", {
        **usual,
        "stage": 3,
        "seed": 92,
        "save": {"exclude_frozen_parameters": True},
    }
    yield "stage 2 without the frozen weights", {
        **usual,
        "stage": 2,
        "seed": 93,
        "save": {"exclude_frozen_parameters": True},
    }
    yield "stage 2 in turns", {**usual, "stage": 2, "seed": 94, "zero": {"round_robin_gradients": True}}
    yield "stage 2, two tags", {**usual, "stage": 2, "seed": 95, "tags": True}
    yield "stage 2, a tag of another name", {**usual, "stage": 2, "seed": 96, "save": {"tag": "pytorch_model"}}


def main():
    program = os.path.abspath(sys.argv[1])
    wanted = sys.argv[2:]
    chosen = [(name, case) for name, case in cases() if not wanted or any(part in name for part in wanted)]
    faults = []
    with tempfile.TemporaryDirectory() as home:
        home = pathlib.Path(home)
        folders = {name: home / f"run{number}" for number, (name, _) in enumerate(chosen)}
        for world in sorted({case["world"] for _, case in chosen}):
            jobs = [(str(folders[name]), case) for name, case in chosen if case["world"] == world]
            ranks.start(train_all, (world, jobs), world, ["torch"])
        out = home / "out.safetensors"
        for name, case in chosen:
            folder = folders[name]
            judge = judged(folder)
            for where in [folder, folder / (folder / "latest").read_text().strip()]:
                try:
                    convert(program, where, out)
                except subprocess.CalledProcessError as failed:
                    faults.append(f"{name}: {failed.stderr}")
                    continue
                faults += compare(name, judge, read(out), case, folder)
            print(f"{name}: {len(judge)} tensors", flush=True)
    for fault in faults:
        print("FAULT", fault)
    if faults or not chosen:
        sys.exit(1)
    print(f"{len(chosen)} checkpoints of DeepSpeed are those of zero_to_fp32, bit for bit")


if __name__ == "__main__":
    main()
