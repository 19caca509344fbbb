"""Steps of retrieval fine-tuning a second, ours against PyTorch eager, and the peak memory of both.

    cargo build --release --workspace --example training_speed
    vlmerge synth --size base --layout agnostic base.safetensors
    tests/with_torch.sh benches/training_step.py base.safetensors [--batch 8 --threads 2 --rounds 3 --steps 3]

Both train the same weights on the same images and texts in f32: features of images and of texts, contrastive loss,
gradients of everything, AdamW. They take turns, each turn a process of its own whose first step is not counted; the
losses of all steps must agree. A ratio above 1 says that ours is faster; memory is ours over theirs.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
EXAMPLE = ROOT / "target/release/examples/training_speed"


def theirs(args):
    """Trains with torch and prints a JSON line like the example's."""
    import measured
    import torch
    from reference_model import Model, fixed_inputs
    from safetensors.torch import load_file
    from torch import nn
    from torch.nn import functional

    torch.set_num_threads(args.threads)
    weights = load_file(args.checkpoint)
    model = Model(weights, None, args.text_table_len, args.attention == "sdpa").train()
    model.logit_scale = nn.Parameter(weights["logit_scale"])
    del weights
    ids, mask, image = fixed_inputs(model, model.text_embeddings.word_embeddings.num_embeddings, args.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0)
    targets = torch.arange(args.batch)
    seconds, losses, dtype = [], [], torch.bfloat16 if args.bf16 else torch.float32
    for step in range(args.steps + 1):
        if step == 1:
            cpu = time.process_time()
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=dtype, enabled=args.bf16):
            pictures, texts = model.infer_image_ft(image)[1], model.infer_text_ft(ids, mask)[1]
        logits = model.logit_scale.exp() * pictures.float() @ texts.float().t()
        loss = (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.t(), targets)) / 2
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    peak = measured.peak_of()
    found = {"engine": "torch " + torch.__version__, "threads": args.threads, "seconds": seconds, "losses": losses}
    found |= {"mean_cpu_seconds": (time.process_time() - cpu) / args.steps, "peak_rss_bytes": peak}
    print(json.dumps(found))


def run(command, threads):
    environment = os.environ | {"RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--attention", choices=("eager", "sdpa"), default="eager")
    parser.add_argument("--text-table-len", type=int, default=196)
    parser.add_argument("--bf16", action="store_true", help="torch under autocast, for the gap to it")
    parser.add_argument("--checkpointing", action="store_true", help="ours computes the inside of blocks anew")
    parser.add_argument("--theirs", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.theirs:
        return theirs(args)
    ours = [EXAMPLE, args.checkpoint, str(args.batch), str(args.steps + 1)] + ["checkpointing"] * args.checkpointing
    others = [sys.executable, __file__, *sys.argv[1:], "--theirs"]
    ratios = []
    for turn in range(args.rounds):
        pair = [run(ours, args.threads), run(others, args.threads)]
        for found in pair:
            print(json.dumps(found))
        [mine, torchs] = [statistics.median(found["seconds"][1:]) for found in pair]
        memory = pair[0]["peak_rss_bytes"] / pair[1]["peak_rss_bytes"]
        apart = max(abs(a - b) for a, b in zip(pair[0]["losses"], pair[1]["losses"]))
        cpu = pair[1]["mean_cpu_seconds"] / pair[0]["mean_cpu_seconds"]
        ratios.append((torchs / mine, cpu, memory))
        print(
            f"round {turn + 1}: ours {mine:.3f} s, torch {torchs:.3f} s: {torchs / mine:.2f} x the speed, {cpu:.2f} x by "
            f"processor time, {memory:.2f} x the memory; losses {apart:.1e} apart",
            flush=True,
        )
    speed, cpu, memory = (statistics.median(column) for column in zip(*ratios))
    print(f"medians of {args.rounds} rounds: {speed:.2f} x the speed, {cpu:.2f} x by processor time, {memory:.2f} x the memory")


if __name__ == "__main__":
    main()
