"""Steps of retrieval fine-tuning with PyTorch on a device: those that `card steps` takes, of the same checkpoint.

    python tests/gpu/torch_steps.py MODEL.safetensors --device cuda --dtype bf16 --batch 64 --steps 21 --way eager

The model is that of `benches/reference_model.py`: attention and norms as separate operations (eager), blocks computed again in the
backward pass (checkpointing), or torch's fused attention (sdpa). bf16 is torch's autocast: weights, their gradients and AdamW in f32.
It prints a JSON line. Losses of the first steps must agree with those of `card steps`.
"""

import argparse
import json
import math
import pathlib
import resource
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benches"))

import torch  # noqa: E402
from reference_model import Block, Model  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402


class Recomputed(Block):
    """A block whose inside is computed again in the backward pass."""

    def forward(self, *inputs):
        return checkpoint(super().forward, *inputs, use_reentrant=False)


def inputs(model, n, device):
    """Numbers that depend on their place only, as the other program makes them."""
    t, side = model.text_len, model.grid * model.patch
    vocabulary = model.text_embeddings.word_embeddings.num_embeddings
    length = torch.tensor([8 + text * 5 % (t - 7) for text in range(n)])
    mask = torch.arange(t)[None] < length[:, None]
    ids = torch.where(mask, (torch.arange(n * t) * 7919 % vocabulary).view(n, t), 0)
    image = torch.sin(torch.arange(n * 3 * side * side, dtype=torch.float64) * 0.05 % (2 * math.pi))
    return ids.to(device), mask.to(device), image.float().view(n, 3, side, side).to(device)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=21)
    parser.add_argument("--way", choices=("eager", "checkpointing", "sdpa"), default="eager")
    parser.add_argument("--text-table-len", type=int, default=196)
    args = parser.parse_args()
    device = torch.device(args.device)
    is_card = device.type == "cuda"
    weights = load_file(args.checkpoint)
    # Blocks of vlmerge synth are 64 wide a head, except those of the small model.
    heads = weights["relative_position_bias_table"].shape[1] // sum(key.endswith("attn.proj.weight") for key in weights)
    model = Model(weights, heads, args.text_table_len, args.way == "sdpa").train()
    model.logit_scale = nn.Parameter(weights["logit_scale"])
    model = model.to(device)
    model.index = {kind: index.to(device) for kind, index in model.index.items()}
    if args.way == "checkpointing":
        for block in model.transformer.blocks:
            block.__class__ = Recomputed
    del weights
    ids, mask, image = inputs(model, args.batch, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0)
    targets = torch.arange(args.batch, device=device)

    def wait():
        if is_card:
            torch.cuda.synchronize(device)

    seconds, losses = [], []
    for _ in range(args.steps):
        wait()
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.dtype == "bf16"):
            pictures, texts = model.infer_image_ft(image)[1], model.infer_text_ft(ids, mask)[1]
        logits = model.logit_scale.exp() * pictures.float() @ texts.float().t()
        loss = (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.t(), targets)) / 2
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        wait()
        seconds.append(time.perf_counter() - start)
    found = {"engine": "torch " + torch.__version__, "way": args.way, "dtype": args.dtype, "batch": args.batch}
    found |= {"seconds": seconds, "losses": losses}
    found |= {"peak_memory_of_the_process": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
    if is_card:
        found["allocated_peak"] = torch.cuda.max_memory_allocated(device)
        found["reserved_peak"] = torch.cuda.max_memory_reserved(device)
        found["tf32"] = torch.backends.cuda.matmul.allow_tf32
    print(json.dumps(found))


if __name__ == "__main__":
    main()
