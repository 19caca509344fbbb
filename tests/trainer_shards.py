"""Checkpoints that trainers on several devices leave: `convert` makes of their pieces what torch itself makes of them,
bit for bit.

    tests/with_torch.sh tests/trainer_shards.py target/release/vlmerge
    tests/with_torch.sh tests/trainer_shards.py --write fixtures/trainer

Two to four processes with gloo train nothing, but wrap a small model in FSDP1, FSDP2, tensor parallelism and meshes of
two axes, and save it as `torch.distributed.checkpoint`, as shards of safetensors by its writer for Hugging Face, and as one
file per rank, as verl calls `torch.save`. The judges are `dcp_to_torch_save`, torch's reader of such shards, and the tensors
that the processes gather. The second form writes two small folders as fixtures.
"""

import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import warnings

warnings.filterwarnings("ignore")
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
os.environ["GLOO_LOG_LEVEL"] = "ERROR"

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, ShardedStateDictConfig
from torch.distributed.fsdp import ShardingStrategy, StateDictType, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import ranks

MODULES = ["torch.distributed.fsdp", "torch.distributed.checkpoint", "torch.distributed.tensor.parallel"]


class Block(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Model(nn.Module):
    """Tied embeddings, a buffer, a convolution, and sizes that no number of ranks divides."""

    def __init__(self, width=10, inner=7, words=13, tied=True, blocks=2):
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.patch = nn.Conv2d(3, 5, 2)
        self.blocks = nn.ModuleList(Block(width, inner) for _ in range(blocks))
        self.head = nn.Linear(width, words, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        self.register_buffer("positions", torch.arange(6.0) / 3)


def drawn(dtype=torch.float32, **sizes):
    torch.manual_seed(sizes.pop("seed", 3))
    return Model(**sizes).to(dtype)


def save(path, state):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)


def rank_file(folder):
    return folder / f"model_world_size_{dist.get_world_size()}_rank_{dist.get_rank()}.pt"


def save_shards(folder, state, parts=1):
    """Shards of safetensors, for each process one, or one for each part of the names."""
    parts = {name: 1 + number % parts for number, name in enumerate(state)} if parts > 1 else None
    writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=parts, save_sharded=True)
    dcp.save(state, storage_writer=writer)


def gathered(state):
    """Every tensor as a whole."""
    return {name: (value.full_tensor() if isinstance(value, DTensor) else value) for name, value in state.items()}


def optimizer_of(model):
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


# ---- cases, each run by every rank: what it writes into a folder, and the model as rank 0 gathers it ----------------------


def fsdp1(folder, dtype=torch.float32, mesh=None, strategy=ShardingStrategy.FULL_SHARD):
    names = {"mesh_dim_names": ("replicas", "shards")} if mesh and len(mesh) == 2 else {}
    mesh = init_device_mesh("cpu", mesh, **names) if mesh else None
    groups = {"device_mesh": mesh} if mesh else {}
    model = FullyShardedDataParallel(
        drawn(dtype), device_id=torch.device("cpu"), sharding_strategy=strategy, use_orig_params=True, **groups
    )
    kind = StateDictType.SHARDED_STATE_DICT
    with FullyShardedDataParallel.state_dict_type(model, kind, ShardedStateDictConfig(offload_to_cpu=True)):
        state = model.state_dict()
    save(rank_file(folder / "ranks"), state)
    dcp.save({"model": state}, checkpoint_id=folder / "dcp")
    kind = StateDictType.FULL_STATE_DICT
    with FullyShardedDataParallel.state_dict_type(model, kind, FullStateDictConfig(rank0_only=True)):
        return model.state_dict()


def fsdp2(folder, dtype=torch.float32, mesh=None, **sizes):
    names = ("replicas", "shards")[-len(mesh) :] if mesh else None
    mesh = init_device_mesh("cpu", mesh, mesh_dim_names=names) if mesh else None
    model = drawn(dtype, **sizes)
    whole = {name: value.clone() for name, value in model.state_dict().items()}
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    save(rank_file(folder / "ranks"), model.state_dict())
    save(folder / "ranks" / f"optim_world_size_{dist.get_world_size()}_rank_{dist.get_rank()}.pt", {"step": torch.ones(3)})
    save(folder / "ranks" / f"extra_state_world_size_{dist.get_world_size()}_rank_{dist.get_rank()}.pt", {"rng": b"1"})
    optimizer = optimizer_of(model)
    state, optimizer_state = get_state_dict(model, optimizer)
    moved = gathered(state)
    dcp.save({"model": state, "optimizer": optimizer_state, "step": 7, "rate": torch.ones(())}, checkpoint_id=folder / "dcp")
    # An application's own object around it, and names flattened beside the optimizer's, as torchtitan does.
    dcp.save({"app": {"model": state, "optim": optimizer_state}}, checkpoint_id=folder / "app")
    dcp.save({**state, "optimizer": optimizer_state, "lr_scheduler": {"last": 3}}, checkpoint_id=folder / "flat")
    dcp.async_save({"model": state}, checkpoint_id=folder / "async").result()
    # The writer refuses tied tensors.
    if not sizes.get("tied", True):
        save_shards(folder / "shards", state)
    # accelerate's and Lightning's folders.
    dcp.save({"model": state}, checkpoint_id=folder / "accelerate" / "pytorch_model_fsdp_0")
    dcp.save({"optimizer": optimizer_state}, checkpoint_id=folder / "accelerate" / "optimizer_0")
    dcp.save({"model": state, "optimizer_0": optimizer_state}, checkpoint_id=folder / "lightning.ckpt")
    if dist.get_rank() == 0:
        save(folder / "accelerate" / "scheduler.bin", {"last_epoch": 3})
        save(folder / "accelerate" / "random_states_0.pkl", {"step": 3})
        save(folder / "lightning.ckpt" / "meta.pt", {"epoch": 1, "global_step": 3, "hyper_parameters": {"width": 10}})
    return {"ranks": whole, None: moved}


def tensor_parallel(folder, dtype=torch.float32, with_fsdp=True, **sizes):
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("dp", "tp"))
    model = drawn(dtype, tied=False, **sizes)
    whole = {name: value.clone() for name, value in model.state_dict().items()}
    for block in model.blocks:
        parallelize_module(block, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    if with_fsdp:
        for block in model.blocks:
            fully_shard(block, mesh=mesh["dp"])
        fully_shard(model, mesh=mesh["dp"])
    save(rank_file(folder / "ranks"), model.state_dict())
    dcp.save({"model": model.state_dict()}, checkpoint_id=folder / "dcp")
    save_shards(folder / "shards", model.state_dict(), parts=2)
    return whole


def placed(folder, seed=0, axes=2):
    """Tensors of any shape placed in any way on a mesh."""
    draw = random.Random(seed)
    world = dist.get_world_size()
    shape = (2, world // 2) if axes == 2 and world % 2 == 0 else (world,)
    mesh = init_device_mesh("cpu", shape)
    torch.manual_seed(seed)
    state, whole = {}, {}
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.float64]
    for number in range(40):
        size = [draw.choice([3, 4, 5, 7, 8, 12]) for _ in range(draw.randint(1, 4))]
        value = (torch.rand(size) * 100).to(draw.choice(dtypes))
        placements = [draw.choice([Replicate(), Shard(draw.randrange(len(size)))]) for _ in shape]
        whole[f"layers.{number}.weight"] = value
        state[f"layers.{number}.weight"] = distribute_tensor(value, mesh, placements)
    for name, value in {"scalar": torch.tensor(2.5), "mask": torch.rand(5) > 0.5, "turned": torch.rand(4, 6).t()}.items():
        state[name] = whole[name] = value
    save(rank_file(folder / "ranks"), state)
    dcp.save(state, checkpoint_id=folder / "dcp")
    # The writer refuses tensors that are not contiguous, and its reader has no dtype for truth values.
    names = [name for name in state if name not in ("turned", "mask")]
    save_shards(folder / "shards", {name: state[name] for name in names}, parts=1 + seed % 3)
    return {None: whole, "shards": {name: whole[name] for name in names}}


def partial(folder):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    save(rank_file(folder / "ranks"), {"w": DTensor.from_local(torch.ones(3), mesh, [Partial()])})


def drifted(folder):
    save(rank_file(folder / "ranks"), {"w": torch.full((3,), float(dist.get_rank()))})


CASES = {
    "fsdp1_2": (2, fsdp1, {}),
    "fsdp1_4_bf16": (4, fsdp1, {"dtype": torch.bfloat16}),
    "fsdp1_mesh_3": (3, fsdp1, {"mesh": (3,)}),
    "fsdp1_hybrid_4": (4, fsdp1, {"mesh": (2, 2), "strategy": ShardingStrategy.HYBRID_SHARD}),
    "fsdp1_whole_2": (2, fsdp1, {"strategy": ShardingStrategy.NO_SHARD}),
    "fsdp2_1": (1, fsdp2, {}),
    "fsdp2_2": (2, fsdp2, {"tied": False}),
    "fsdp2_3_bf16": (3, fsdp2, {"dtype": torch.bfloat16}),
    "fsdp2_4": (4, fsdp2, {"width": 3, "inner": 2, "words": 5}),
    "fsdp2_hybrid_4": (4, fsdp2, {"mesh": (2, 2), "width": 5}),
    "tp_fsdp_4": (4, tensor_parallel, {}),
    "tp_fsdp_even_4": (4, tensor_parallel, {"width": 8, "inner": 12, "dtype": torch.bfloat16}),
    "tp_4": (4, tensor_parallel, {"with_fsdp": False}),
    **{f"placed_{world}_{seed}": (world, placed, {"seed": seed}) for world, seed in [(2, 1), (3, 2), (4, 3), (4, 4)]},
    "placed_line_4": (4, placed, {"seed": 9, "axes": 1}),
}


def process(rank, port, world, folder, run, settings):
    # gloo says a line per connection.
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    whole = run(folder, **settings)
    if rank == 0 and whole is not None:
        torch.save(whole, folder / "whole.pt")
    dist.barrier()
    dist.destroy_process_group()


def in_processes(world, folder, run, settings):
    folder.mkdir(parents=True, exist_ok=True)
    ranks.start(process, (world, folder, run, settings), world, MODULES)


# ---- what the program makes of them --------------------------------------------------------------------------------------


def convert(program, folder, target, *options):
    command = [program, "convert", folder, target, "--force", *options]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def converted(program, folder, target, *options):
    run = convert(program, folder, target, *options)
    assert run.returncode == 0, f"{folder}: {run.stderr}"
    with safe_open(target, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        others = json.loads((file.metadata() or {}).get("vlmerge.aliases", "{}"))
    return {**tensors, **{name: tensors[of] for name, of in others.items()}}


def bits(tensor):
    return tensor.contiguous().flatten().view(torch.uint8)


def require_equal(case, found, expected):
    assert found.keys() == expected.keys(), f"{case}: {sorted(found.keys() ^ expected.keys())}"
    for name, value in expected.items():
        said = (found[name].dtype, found[name].shape)
        assert said == (value.dtype, value.shape), f"{case}: {name}: {said}, expected {(value.dtype, value.shape)}"
        assert torch.equal(bits(found[name]), bits(value)), f"{case}: {name} has other bits"


def consolidated(folder, scratch):
    """The weights as torch's own converter gathers them."""
    dcp_to_torch_save(folder, scratch)
    state = torch.load(scratch, weights_only=False)
    for key in ["app", "model"]:
        state = state.get(key, state)
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor) and name != "rate"}


def read_by_torch(folder, like):
    """What torch's own reader of shards puts into tensors of these shapes."""
    state = {name: torch.zeros_like(value) for name, value in like.items()}
    dcp.load(state, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return state


def compare(program, case, folder, scratch):
    whole = torch.load(folder / "whole.pt", weights_only=False)
    expected = whole if isinstance(next(iter(whole.values())), dict) else {None: whole}
    n = 0
    for found in sorted(path for path in folder.iterdir() if path.is_dir()):
        told = converted(program, found, scratch / "out.safetensors")
        require_equal(f"{case}/{found.name}", told, expected.get(found.name, expected[None]))
        if found.name == "shards":
            require_equal(f"{case}/shards by torch", told, read_by_torch(found, told))
            part = convert(program, next(found.iterdir()), scratch / "out.safetensors")
            assert part.returncode == 1 and "is one part of a model in shards" in part.stderr, part.stderr
        inner = next((path for path in [found, found / "pytorch_model_fsdp_0"] if (path / ".metadata").exists()), None)
        if inner:
            require_equal(f"{case}/{found.name} by torch", told, consolidated(inner, scratch / "out.pt"))
            # Its own file stands for it, a file of pieces does not.
            named = converted(program, inner / ".metadata", scratch / "out.safetensors")
            require_equal(f"{case}/{found.name} by its metadata", named, told)
            part = convert(program, inner / "__0_0.distcp", scratch / "out.safetensors")
            assert part.returncode == 1 and "is one part of a torch distributed checkpoint" in part.stderr, part.stderr
        n += 1
    return n


def refused(program, folder, *said):
    run = convert(program, folder, folder.parent / "refused.safetensors")
    assert run.returncode == 1, f"{folder} was taken: {run.stdout}"
    for text in said:
        assert re.search(text, run.stderr), f"{folder}: {text!r} is not in {run.stderr}"


def refusals(program, made, scratch):
    """Folders that lack a rank, have too many, or are of two worlds."""
    ranks = made / "fsdp2_3_bf16" / "ranks"
    copy = scratch / "copy"

    def changed(change):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(ranks, copy)
        change(copy)
        return copy

    def name(rank, world=3):
        return f"model_world_size_{world}_rank_{rank}.pt"

    refused(program, changed(lambda folder: (folder / name(1)).unlink()), "1 of 3 ranks", "rank 1")
    swapped = changed(lambda folder: shutil.copy(folder / name(0), folder / name(2)))
    refused(program, swapped, "part of rank 0", name(2))
    other = made / "fsdp2_2" / "ranks"
    refused(program, changed(lambda folder: shutil.copy(other / name(0, 2), folder / name(0, 2))), "several models or worlds")
    refused(program, changed(lambda folder: shutil.copy(folder / name(0), folder / name(5))), "a world of 3 does not have")
    refused(program, changed(lambda folder: shutil.copy(other / name(1, 2), folder / name(1))), "model_world_size_3_rank_1.pt")
    refused(program, ranks / name(0), "is one part of a model with one file per rank")

    def alone(folder):
        (folder / name(0)).rename(folder.parent / "alone.pt")

    changed(alone)
    refused(program, scratch / "alone.pt", "part of rank 0 of `embed.weight`")
    shards = made / "fsdp2_2" / "shards"
    shutil.rmtree(copy)
    shutil.copytree(shards, copy)
    (copy / "shard-00001-model-00001-of-00001.safetensors").unlink()
    refused(program, copy, "pieces of", "of its")
    for case, run, said in [("partial", partial, ["`w`", "Partial"]), ("drifted", drifted, ["`w`", "other numbers"])]:
        in_processes(2, scratch / case, run, {})
        refused(program, scratch / case / "ranks", *said)


def plain(program, scratch):
    """Of one process without a group, and a tensor saved by a name only."""
    state = {"model": drawn(seed=5).state_dict(), "epoch": 3}
    dcp.save(state, checkpoint_id=scratch / "plain", no_dist=True)
    found = converted(program, scratch / "plain", scratch / "out.safetensors")
    require_equal("plain", found, consolidated(scratch / "plain", scratch / "out.pt"))
    found = converted(program, scratch / "plain", scratch / "out.safetensors", "--root", "model")
    require_equal("plain by root", found, state["model"])
    return 2


def write(target):
    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        in_processes(2, scratch / "fsdp2", fsdp2, {"width": 5, "inner": 3, "words": 4, "blocks": 1})
        in_processes(2, scratch / "fsdp1", fsdp1, {})
        target.mkdir(parents=True)
        shutil.copytree(scratch / "fsdp2" / "dcp", target / "distributed")
        shutil.copytree(scratch / "fsdp2" / "ranks", target / "ranks")
        shutil.copytree(scratch / "fsdp1" / "ranks", target / "sharded_tensors")
        for name, whole in [
            ("distributed", torch.load(scratch / "fsdp2" / "whole.pt")[None]),
            ("ranks", torch.load(scratch / "fsdp2" / "whole.pt")["ranks"]),
            ("sharded_tensors", torch.load(scratch / "fsdp1" / "whole.pt")),
        ]:
            torch.save(dict(whole), target / f"{name}.pt")


def main():
    if sys.argv[1] == "--write":
        return write(pathlib.Path(sys.argv[2]))
    program = pathlib.Path(sys.argv[1]).resolve()
    only = sys.argv[2:]
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        n = 0
        for case, (world, run, settings) in CASES.items():
            if only and case not in only:
                continue
            folder = scratch / "made" / case
            in_processes(world, folder, run, settings)
            n += compare(program, case, folder, scratch)
            print(f"{case}: equal", flush=True)
        n += plain(program, scratch)
        if not only:
            refusals(program, scratch / "made", scratch)
    print(f"{n} folders are read as torch gathers them, bit for bit; those that lack something are refused")


if __name__ == "__main__":
    main()
