#!/usr/bin/env python3
"""Times merges of two models of 1.1 B parameters in bf16, with mergekit and cp beside them, in turn, in one run.

    cargo build --release
    tests/with_torch.sh benches/mergekit.py target/release/vlmerge FOLDER [--rounds 1] [--methods linear,slerp]

FOLDER needs about 12 GB. The models have TinyLlama's shapes and random weights; they are made once. Everything is read
from a warm page cache. `cp` copies as many bytes as are written, after reading the rest of the input; neither it nor
mergekit hashes its inputs or waits for the disk, so vlmerge runs with --no-hash --no-sync (and once with its defaults).
Masks are drawn as either program does unless told otherwise. Then, unmeasured, vlmerge merges once more, by chance with
mergekit's draws, and the largest distance from the value computed in f64 is given in steps of bf16, over all tensors of
the first two layers and the last; torch draws the masks for that value.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys

import measured
import numpy
import torch
from safetensors import safe_open
from safetensors.torch import save_file

HIDDEN, INNER, LAYERS, VOCABULARY, KEYS = 2048, 5632, 22, 32000, 256
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER,
    "num_hidden_layers": LAYERS, "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": VOCABULARY,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}
SEED = 7
PARAMETERS = {
    "linear": {"weight": 0.5}, "slerp": {}, "ties": {"weight": 0.5, "density": 0.5},
    "dare_linear": {"weight": 0.5, "density": 0.5}, "dare_ties": {"weight": 0.5, "density": 0.5},
    "della": {"weight": 0.5, "density": 0.5},
}


def shapes():
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(LAYERS):
        start = f"model.layers.{layer}"
        for part, rows in (("q", HIDDEN), ("k", KEYS), ("v", KEYS), ("o", HIDDEN)):
            yield f"{start}.self_attn.{part}_proj.weight", (rows, HIDDEN)
        yield f"{start}.mlp.gate_proj.weight", (INNER, HIDDEN)
        yield f"{start}.mlp.up_proj.weight", (INNER, HIDDEN)
        yield f"{start}.mlp.down_proj.weight", (HIDDEN, INNER)
        yield f"{start}.input_layernorm.weight", (HIDDEN,)
        yield f"{start}.post_attention_layernorm.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def make_models(folder):
    """A base and two models at a distance of a fine-tune from it."""
    for index, name in enumerate(("base", "a", "b")):
        target = folder / name
        if (target / "model.safetensors").exists():
            continue
        target.mkdir(parents=True, exist_ok=True)
        draws = torch.Generator().manual_seed(1)
        own = torch.Generator().manual_seed(100 + index)
        tensors = {}
        for key, shape in shapes():
            value = torch.empty(shape).normal_(0, 0.02, generator=draws)
            if index:
                value += torch.empty(shape).normal_(0, 0.001, generator=own)
            tensors[key] = value.to(torch.bfloat16)
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        (target / "config.json").write_text(json.dumps(CONFIG))


def is_drawn(method):
    return method.startswith(("dare", "della"))


def recipe(folder, method, name, rng=None):
    lines = [f"merge_method: {method}", "dtype: bfloat16"]
    if rng:
        lines += [f"rng: {rng}", f"seed: {SEED}"]
    names = [folder / "a", folder / "b"]
    if method == "slerp":
        lines += [f"base_model: {names[0]}", "parameters: {t: 0.4}"]
    elif method != "linear":
        lines += [f"base_model: {folder / 'base'}"]
    lines.append("models:")
    for model in names:
        lines.append(f"  - model: {model}")
        if PARAMETERS[method]:
            lines.append(f"    parameters: {json.dumps(PARAMETERS[method])}")
    path = folder / f"{method}-{name}.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def run(command):
    """Wall seconds, processor seconds and peak resident MiB of a command."""
    os.sync()
    # mergekit's command is a script, so that its program is this one's interpreter.
    started = (lambda _: True) if str(command[0]).endswith("mergekit-yaml") else None
    seconds, processor, peak = measured.run(command, started)
    return seconds, processor, peak / 2**20


def step_of(value):
    """Distance of neighbors among bf16 numbers of a value's size."""
    _, exponent = numpy.frexp(numpy.abs(value))
    return numpy.ldexp(1.0, numpy.maximum(exponent, -125) - 8)


def chances(method, delta):
    """Each element's chance to stay, in float32: one number, or by rank in its row."""
    if not method.startswith("della"):
        return torch.full(delta.shape, 0.5)
    low, high = numpy.float32(0.5 - 0.15), numpy.float32(0.5 + 0.15)
    rows = numpy.abs(delta).reshape(-1, delta.shape[-1])
    order = numpy.argsort(rows, axis=1, kind="stable")
    ranks = numpy.empty(rows.shape, dtype=numpy.float32)
    numpy.put_along_axis(ranks, order, numpy.arange(rows.shape[1], dtype=numpy.float32)[None, :], axis=1)
    shares = low + (high - low) * (ranks / numpy.float32(rows.shape[1] - 1))
    return torch.from_numpy(shares.astype(numpy.float32).reshape(delta.shape))


def largest(delta):
    """The larger half, and of equals the first."""
    keep = max(1, int(0.5 * delta.size))
    mask = numpy.zeros(delta.size)
    mask[numpy.argsort(-numpy.abs(delta).ravel(), kind="stable")[:keep]] = 1
    return mask.reshape(delta.shape)


def exact(method, base, a, b, masks):
    """The merged tensor in f64."""
    if method == "linear":
        return 0.5 * a + 0.5 * b
    if method == "slerp":
        t = 0.4
        cosine = numpy.clip((a * b).sum() / (numpy.linalg.norm(a) * numpy.linalg.norm(b)), -1, 1)
        if abs(cosine) > 0.9995:
            return (1 - t) * a + t * b
        angle = numpy.arccos(cosine)
        return (numpy.sin((1 - t) * angle) * a + numpy.sin(t * angle) * b) / numpy.sin(angle)
    terms = []
    for value, mask in zip((a, b), masks):
        delta = value - base
        factor = numpy.abs(delta).sum() / numpy.abs(delta * mask).sum() if is_drawn(method) else 1
        terms.append(0.5 * (delta * mask) * factor)
    if method == "dare_linear":
        return base + sum(terms)
    sign = numpy.where(sum(terms) >= 0, 1, -1)
    agrees = [numpy.sign(term) == sign for term in terms]
    total = sum(term * agree for term, agree in zip(terms, agrees))
    if method == "dare_ties":
        return base + total
    share = sum(0.5 * agree for agree in agrees)
    return base + total / numpy.where(share == 0, 1, share)


def deviation(folder, method, merged):
    """Largest distance from the exact value over all tensors of the first two layers and the last, and how many
    elements are more than a step away from it."""
    worst, far, looked_at = 0.0, 0, 0
    draws = torch.Generator().manual_seed(SEED)
    files = [safe_open(folder / name / "model.safetensors", "pt") for name in ("base", "a", "b")]
    with safe_open(merged, "pt") as ours:
        # mergekit draws for the tensors in the order of their names.
        for key, shape in sorted(shapes()):
            is_looked_at = any(f".layers.{layer}." in key for layer in (0, 1, LAYERS - 1))
            if not is_looked_at:
                for _ in range(2 if is_drawn(method) else 0):
                    torch.bernoulli(torch.full(shape, 0.5), generator=draws)
                continue
            base, a, b = (file.get_tensor(key).double().numpy() for file in files)
            deltas = [a - base, b - base]
            if is_drawn(method):
                masks = [torch.bernoulli(chances(method, delta), generator=draws).double().numpy() for delta in deltas]
            else:
                masks = [largest(delta) for delta in deltas] if method == "ties" else []
            wanted = exact(method, base, a, b, masks)
            found = ours.get_tensor(key).double().numpy()
            distance = numpy.abs(found - wanted) / step_of(wanted)
            worst, far, looked_at = max(worst, float(distance.max())), far + int((distance > 1).sum()), looked_at + distance.size
    return worst, far, looked_at


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--methods", default=",".join(PARAMETERS))
    parser.add_argument("--only-ours", action="store_true")
    parser.add_argument("--deviation", action="store_true", help="look at the values, too")
    arguments = parser.parse_args()
    program, folder = arguments.program.resolve(), arguments.folder.resolve()
    make_models(folder)
    theirs = pathlib.Path(sys.executable).parent / "mergekit-yaml"
    out, other = folder / "out.safetensors", folder / "mergekit-out"
    for name in ("base", "a", "b"):
        (folder / name / "model.safetensors").open("rb").read(1)
    for method in arguments.methods.split(","):
        sources = [folder / name / "model.safetensors" for name in ("a", "b")]
        if method not in ("linear", "slerp"):
            sources.append(folder / "base/model.safetensors")
        read = "; ".join(f"cat {source} >/dev/null" for source in sources[1:])
        for source in sources:
            subprocess.run(["cat", source], stdout=subprocess.DEVNULL, check=True)
        merge = [program, "-q", "merge", recipe(folder, method, "vlmerge"), "--force", "--out", out]
        commands = {
            "cp": ["sh", "-c", f"{read}; cp --reflink=never {sources[0]} {folder / 'copy'}"],
            "vlmerge --no-hash --no-sync": [*merge, "--no-hash", "--no-sync"],
            "vlmerge": merge,
        }
        if is_drawn(method):
            same = recipe(folder, method, "same", "mergekit")
            same_draws = [program, "-q", "merge", same, "--force", "--out", out, "--no-hash", "--no-sync"]
            commands["vlmerge, rng: mergekit, likewise"] = same_draws
        if not arguments.only_ours:
            commands["mergekit"] = [theirs, recipe(folder, method, "mergekit"), other, "--random-seed", str(SEED), "--no-copy-tokenizer"]
        for round_ in range(arguments.rounds):
            for name, command in commands.items():
                for old in (out, folder / "copy"):
                    old.unlink(missing_ok=True)
                shutil.rmtree(other, ignore_errors=True)
                wall, processor, peak = run(command)
                print(f"{method:12} {name:32} {wall:8.2f} s wall {processor:8.2f} s processor {peak:8.1f} MiB", flush=True)
        if arguments.deviation:
            subprocess.run(same_draws if is_drawn(method) else [*merge, "--no-hash", "--no-sync"], check=True)
            worst, far, looked_at = deviation(folder, method, out)
            print(f"{method:12} {worst:.3f} steps of bf16 from the exact value; {far} of {looked_at} elements beyond one")
    shutil.rmtree(other, ignore_errors=True)
    for old in (out, folder / "copy"):
        old.unlink(missing_ok=True)


main()
