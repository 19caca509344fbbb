"""Folders that accelerate and Lightning leave of a model on two processes, made by the libraries themselves on processors
alone: `convert` makes of them what the library gathers, bit for bit.

    tests/with_torch.sh tests/trainer_libraries.py target/release/vlmerge

accelerate's `save_fsdp_model` and `save_fsdp_optimizer`, which its `save_state` calls, write a model under FSDP1 and under
FSDP2; Lightning's trainer fits and saves one by its `ModelParallelStrategy`. Its strategies for FSDP1 and DeepSpeed refuse
to run without graphics cards, which the script asserts: what they leave is compared by its form alone, in
`tests/trainer_shards.py` and `tests/zero_shards.py`.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import warnings

warnings.filterwarnings("ignore")
os.environ.update(TORCH_CPP_LOG_LEVEL="ERROR", GLOO_LOG_LEVEL="ERROR", ACCELERATE_USE_CPU="true")

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, StateDictType, fully_shard

import trainer_shards

WORLD = 2


def network():
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3, bias=False))


# ---- accelerate --------------------------------------------------------------------------------------------------------


def accelerate(folder, version):
    """The folder of accelerate, and the model as its processes gather it."""
    rank = str(dist.get_rank())
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=str(WORLD), LOCAL_WORLD_SIZE=str(WORLD))
    # The processes have met already.
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.utils import save_fsdp_model, save_fsdp_optimizer

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=version,
        state_dict_type="SHARDED_STATE_DICT",
        auto_wrap_policy="NO_WRAP",
        cpu_ram_efficient_loading=False,
    )
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == WORLD
    model = network()
    if version == 1:
        model = FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)
    else:
        fully_shard(model)
    optimizer = trainer_shards.optimizer_of(model)
    save_fsdp_model(plugin, accelerator, model, str(folder / "accelerate"))
    save_fsdp_optimizer(plugin, accelerator, optimizer, model, str(folder / "accelerate"))
    if dist.get_rank() == 0:
        torch.save({"last_epoch": 3}, folder / "accelerate" / "scheduler.bin")
    if version == 2:
        return trainer_shards.gathered(model.state_dict())
    with FullyShardedDataParallel.state_dict_type(model, StateDictType.FULL_STATE_DICT, FullStateDictConfig(rank0_only=True)):
        return model.state_dict()


# ---- Lightning ---------------------------------------------------------------------------------------------------------


def lightning(folder):
    """Starts the script on two processes, as Lightning does it itself."""
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.network = network()

        def configure_model(self):
            fully_shard(self.network, mesh=self.device_mesh["data_parallel"])

        def training_step(self, batch, _):
            return self.network(batch[0]).sum()

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters())

    def trainer(strategy):
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        return Trainer(accelerator="cpu", devices=WORLD, strategy=strategy, max_steps=2, **quiet)

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 5)), batch_size=2)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        for make in [lambda: trainer(FSDPStrategy()), lambda: trainer(DeepSpeedStrategy()).fit(Module(), data)]:
            try:
                make()
            except (ValueError, RuntimeError) as refused:
                assert "GPU" in str(refused), refused
            else:
                raise AssertionError("Lightning runs FSDP1 or DeepSpeed on processors: compare what it writes")
    strategy = ModelParallelStrategy(data_parallel_size=WORLD, tensor_parallel_size=1, process_group_backend="gloo")
    fit, module = trainer(strategy), Module()
    fit.fit(module, data)
    fit.save_checkpoint(folder / "lightning.ckpt")
    whole = trainer_shards.gathered(module.state_dict())
    if dist.get_rank() == 0:
        torch.save(whole, folder / "whole.pt")
    dist.barrier()


def main():
    if sys.argv[1] == "--lightning":
        return lightning(pathlib.Path(sys.argv[2]))
    program = pathlib.Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        for version in [1, 2]:
            folder = scratch / f"accelerate_{version}"
            trainer_shards.in_processes(WORLD, folder, accelerate, {"version": version})
            found = trainer_shards.converted(program, folder / "accelerate", scratch / "out.safetensors")
            trainer_shards.require_equal(folder.name, found, torch.load(folder / "whole.pt"))
            print(f"accelerate, FSDP{version}: equal", flush=True)
        folder = scratch / "lightning"
        folder.mkdir()
        command = [sys.executable, __file__, "--lightning", str(folder)]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        found = trainer_shards.converted(program, folder / "lightning.ckpt", scratch / "out.safetensors")
        trainer_shards.require_equal("lightning", found, torch.load(folder / "whole.pt"))
        print("Lightning, FSDP2: equal", flush=True)
    print("3 folders of accelerate and Lightning are read as the libraries gather them, bit for bit")


if __name__ == "__main__":
    main()
