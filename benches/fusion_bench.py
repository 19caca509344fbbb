#!/usr/bin/env python3
"""Merges fine-tuned image towers of CLIP by TSV-M, Iso-C, Iso-CTS and WUDI: FusionBench 0.2.33 beside vlmerge, in one run.

    cargo build --release
    tests/with_torch.sh benches/fusion_bench.py target/release/vlmerge FOLDER [--tower B32 --models 8 --methods tsv_m]

The models have the shape of transformers' CLIPVisionModel, drawn weights and drawn task vectors in f32, and are made
once (350 MB each for B32, 1.2 GB for L14). Each turn is a process of its own that reads the base and the models from
safetensors and writes the merged model: FusionBench's own functions on the processor, by torch's threads, and `vlmerge
merge` without hashes and without waiting for the disk. Both treat every tensor of two dimensions as a matrix. Printed:
seconds, the seconds that the decompositions and products of the method take at the rate of torch's products (the
floor), peak memory, and the largest distance between both results as a share of the largest change.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import measured
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import fusion_bench_wheel  # noqa: E402

# Width, blocks, patch, side.
TOWERS = {"B32": (768, 12, 32, 224), "B16": (768, 12, 16, 224), "L14": (1024, 24, 14, 224)}
PARAMETERS = {
    "tsv_m": {},
    "iso_c": {},
    "iso_cts": {"common_space_fraction": 0.8},
    "wudi": {"solver": "adam", "iterations": 300},
    "wudi-closed": {},
}


def shapes(tower):
    width, blocks, patch, side = TOWERS[tower]
    yield "vision_model.embeddings.class_embedding", (width,)
    yield "vision_model.embeddings.patch_embedding.weight", (width, 3, patch, patch)
    yield "vision_model.embeddings.position_embedding.weight", ((side // patch) ** 2 + 1, width)
    yield from norm("vision_model.pre_layrnorm", width)
    for block in range(blocks):
        start = f"vision_model.encoder.layers.{block}"
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from linear(f"{start}.self_attn.{part}", width, width)
        yield from norm(f"{start}.layer_norm1", width)
        yield from linear(f"{start}.mlp.fc1", 4 * width, width)
        yield from linear(f"{start}.mlp.fc2", width, 4 * width)
        yield from norm(f"{start}.layer_norm2", width)
    yield from norm("vision_model.post_layernorm", width)


def linear(name, rows, columns):
    yield f"{name}.weight", (rows, columns)
    yield f"{name}.bias", (rows,)


def norm(name, width):
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def make_models(folder, given):
    """A base and models whose task vectors share a part, as copies fine-tuned from one model do."""
    paths = [folder / f"{given.tower}-{name}.safetensors" for name in ["base", *range(given.models)]]
    generator = torch.Generator().manual_seed(7)
    normal = lambda shape: torch.randn(*shape, generator=generator)  # noqa: E731
    base = {name: 0.02 * normal(shape) for name, shape in shapes(given.tower)}
    shared = {name: 2e-4 * normal(shape) for name, shape in shapes(given.tower)}
    for index, path in enumerate(paths):
        if not path.exists():
            generator.manual_seed(100 + index)
            drawn = lambda name: base[name] + shared[name] + 5e-4 * normal(base[name].shape)  # noqa: E731
            save_file(base if index == 0 else {name: drawn(name) for name in base}, path)
    return paths


def by_fusion_bench(given, paths, out):
    """What FusionBench's algorithms do with the state dicts of their models."""
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        tsv, iso, wudi = fusion_bench_wheel.methods(pathlib.Path(folder))
    began = time.perf_counter()
    base, *models = [load_file(path) for path in paths]
    vectors = [{name: model[name] - base[name] for name in base} for model in models]
    del models
    settings = PARAMETERS[given.only]
    if given.only == "tsv_m":
        merged = tsv.compute_and_sum_svd_mem_reduction(vectors, accelerator="cpu")
    elif given.only == "iso_c":
        merged = iso.iso_c(vectors, accelerator="cpu")
    elif given.only == "iso_cts":
        merged = iso.iso_cts(vectors, settings["common_space_fraction"], accelerator="cpu")
    else:
        merged = wudi.wudi_merging(vectors, accelerator="cpu", iter_num=settings["iterations"])
    save_file({name: (base[name] + merged[name].detach()).contiguous() for name in base}, out)
    return time.perf_counter() - began


def by_vlmerge(given, folder, method, paths, out):
    recipe = {
        "merge_method": method.split("-")[0],
        "base_model": str(paths[0]),
        "models": [str(path) for path in paths[1:]],
        "parameters": {"matrix": True, **PARAMETERS[method]},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    command = [given.program, "merge", folder / "recipe.yaml", "--out", out, "--force", "--quiet", "--no-hash", "--no-sync"]
    seconds, _, peak = measured.run(command, env=os.environ | {"RAYON_NUM_THREADS": str(given.threads)})
    return seconds, peak


def distance(base, ours, theirs):
    """The largest distance of both results, as a share of the largest change of the tensor."""
    worst, where = 0.0, ""
    with safe_open(base, "pt") as base, safe_open(ours, "pt") as ours, safe_open(theirs, "pt") as theirs:
        for name in base.keys():
            change = theirs.get_tensor(name) - base.get_tensor(name)
            off = (ours.get_tensor(name) - theirs.get_tensor(name)).abs().max() / change.abs().max()
            if off > worst:
                worst, where = float(off), name
    return worst, where


def rate(threads):
    """Floating point operations a second of torch's product of f32 matrices."""
    torch.set_num_threads(threads)
    left, right = torch.randn(1536, 1536), torch.randn(1536, 1536)
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - began)
    return 2 * 1536**3 / best


def floor(given, method):
    """Operations of what no way around is known for: a decomposition of each task vector (TSV-M) or of their sum, by
    the smaller side n and the larger m: a Gram matrix (n²m), its eigenvectors (9 n³), and the product back (2n²m)."""
    operations = 0
    for _, shape in shapes(given.tower):
        if len(shape) == 2:
            n, m = sorted(shape)
            once = 3 * n * n * m + 9 * n**3
            products = 8 * n * n * m * given.models
            operations += {"tsv_m": given.models * once, "iso_c": once, "iso_cts": (given.models + 1) * once}.get(
                method, products * (PARAMETERS[method].get("iterations", 1))
            )
    return operations


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--tower", default="B32", choices=TOWERS)
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--methods", default="tsv_m,iso_c,iso_cts,wudi,wudi-closed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=300, help="steps of WUDI's Adam, in both (default: 300)")
    parser.add_argument("--ours", action="store_true", help="vlmerge alone")
    parser.add_argument("--only", choices=PARAMETERS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.program = given.program.resolve()
    PARAMETERS["wudi"]["iterations"] = given.iterations
    given.folder.mkdir(parents=True, exist_ok=True)
    paths = make_models(given.folder, given)
    out = {who: given.folder / f"merged-{who}.safetensors" for who in ("theirs", "ours")}
    if given.only:
        seconds = by_fusion_bench(given, paths, out["theirs"])
        print(json.dumps({"seconds": seconds, "peak": measured.peak_of()}))
        return
    products = rate(given.threads)
    for method in given.methods.split(","):
        seconds, peak = by_vlmerge(given, given.folder, method, paths, out["ours"])
        line = {
            "method": method,
            "vlmerge_seconds": round(seconds, 2),
            "floor_seconds": round(floor(given, method) / products, 2),
            "vlmerge_peak_bytes": peak,
        }
        if not given.ours and not method.endswith("closed"):
            sizes = ["--tower", given.tower, "--models", str(given.models), "--threads", str(given.threads)]
            sizes += ["--iterations", str(given.iterations)]
            command = [sys.executable, __file__, given.program, given.folder, "--only", method, *sizes]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            theirs = json.loads(told.splitlines()[-1])
            off, where = distance(paths[0], out["ours"], out["theirs"])
            line |= {
                "fusion_bench_seconds": round(theirs["seconds"], 2),
                "ratio": round(theirs["seconds"] / seconds, 2),
                "fusion_bench_peak_bytes": theirs["peak"],
                "largest_distance": off,
                "in": where,
            }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
