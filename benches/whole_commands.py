"""Times whole commands with the alternatives beside them, in turn, in one run; prints ratios.

    cargo build --release --workspace --examples
    tests/with_torch.sh benches/whole_commands.py target/release/vlmerge FOLDER [ROUNDS]

FOLDER needs about 8 GB and should lie on the disk that matters. Everything is read from a warm page
cache. The rows and their floors are explained in docs/performance.md.
"""

import os
import pathlib
import statistics
import subprocess
import sys

import measured

PROGRAM = str(pathlib.Path(sys.argv[1]).resolve())
FOLDER = pathlib.Path(sys.argv[2]).resolve()
ROUNDS = int(sys.argv[3]) if len(sys.argv) > 3 else 5
EXAMPLE = pathlib.Path(PROGRAM).parent / "examples/regmean_solve"

MERGE_IN_TORCH = """
import sys, torch
source, target, ratio, seed, lam = sys.argv[1:6]
torch.set_num_threads(2)
weights = torch.load(source, weights_only=True)
base = torch.load(seed, weights_only=True) if seed else None
out, groups = {}, {}
for key, value in weights.items():
    parts = key.split(".")
    if "blocks" in parts and parts[4:5] and parts[4] in ("v", "l", "vl"):
        groups.setdefault(".".join(parts[:4] + parts[5:]), {})[parts[4]] = value
    else:
        out[key] = value
r = float(ratio)
for slot, copies in groups.items():
    if base is not None:
        c = base[slot]
        out[slot] = c + float(lam) * sum(w - c for w in copies.values())
    elif len(copies) == 2:
        out[slot] = r * copies["v"] + (1 - r) * copies["l"]
    else:
        out[slot] = 2 / 3 * r * copies["v"] + 2 / 3 * (1 - r) * copies["l"] + 1 / 3 * copies["vl"]
torch.save(out, target)
"""

REGMEAN_IN_TORCH = """
import sys, time, torch
out, width = map(int, sys.argv[1:3])
torch.set_num_threads(2)
i = torch.arange(width, dtype=torch.float64)
gram = 1 / (1 + (i[:, None] - i[None, :]) ** 2)
gram.fill_diagonal_(3.0)
weight = ((torch.arange(out)[:, None] * 31 + torch.arange(width)[None, :] * 17) % 97).double()
other = weight.flip(0).contiguous()
best = float("inf")
for _ in range(5):
    start = time.perf_counter()
    (weight @ gram + other @ gram) @ torch.inverse(gram + gram)
    best = min(best, time.perf_counter() - start)
print(best)
"""


def run(command, **options):
    """Wall seconds and peak resident MiB of one command, with no old targets and an idle disk.

    Replacing a file whose pages are on their way to the disk waits for them, whoever replaces it.
    """
    for name in ("out.safetensors", "out.pt", "copy", "py.pt"):
        (FOLDER / name).unlink(missing_ok=True)
    os.sync()
    seconds, _, peak = measured.run(command, **options)
    return seconds, peak / 2**20


def shell(script):
    return ["sh", "-c", script]


def in_turn(commands):
    """Runs each command ROUNDS times in turn, after a warm-up; lists of (seconds, MiB)."""
    results = {name: [] for name in commands}
    for round_ in range(ROUNDS + 1):
        for name, command in commands.items():
            result = run(command)
            if round_ > 0:
                results[name].append(result)
    return results


def report(title, results, ours, others):
    seconds = lambda name: statistics.median(s for s, _ in results[name])
    print(f"\n{title}")
    for name, runs in results.items():
        walls = sorted(s for s, _ in runs)
        peak = max(m for _, m in runs)
        print(f"  {name:34} {seconds(name):7.3f} s  ({walls[0]:.3f}-{walls[-1]:.3f})  {peak:7.1f} MiB")
    for other in others:
        pairs = [a / b for (a, _), (b, _) in zip(results[ours], results[other])]
        print(f"  {ours} / {other}: {statistics.median(pairs):.3f} ({min(pairs):.3f}-{max(pairs):.3f})")


def merging(dtype):
    specific, seed = FOLDER / f"specific-{dtype}.safetensors", FOLDER / f"seed-{dtype}.safetensors"
    specific_pt, seed_pt = specific.with_suffix(".pt"), seed.with_suffix(".pt")
    for path, layout in ((specific, "all-specific"), (seed, "agnostic")):
        if not path.exists():
            run([PROGRAM, "-q", "synth", "--size", "base", "--layout", layout, "--dtype", dtype, path])
    for path in (specific, seed):
        if not path.with_suffix(".pt").exists():
            run([PROGRAM, "-q", "convert", path, path.with_suffix(".pt")])
    out, copy, py = FOLDER / "out.safetensors", FOLDER / "copy", FOLDER / "py.pt"
    merge = [PROGRAM, "-q", "interpolate", specific, "--force", "--out", out]
    run(merge)
    reference = FOLDER / f"merged-{dtype}.safetensors"
    out.rename(reference)
    out_path, out = out, reference
    n_in, n_out = specific.stat().st_size, out.stat().st_size
    # The same bytes in and out with cp: copies as much as is written, and reads the rest.
    cp = f"head -c {n_in - n_out} {specific} >/dev/null; cp --reflink=never {out} {copy}"
    shown = f"{dtype}: {n_in / 1e6:.0f} MB in, {n_out / 1e6:.0f} MB out"
    results = in_turn({
        "cp": shell(cp),
        "cp, then sync": shell(f"{cp}; sync {copy}"),
        "vlmerge --no-sync --no-hash": [*merge, "--no-sync", "--no-hash"],
        "vlmerge --no-hash": [*merge, "--no-hash"],
        "vlmerge": merge,
        "vlmerge --no-sync": [*merge, "--no-sync"],
        "vlmerge --no-sync --hash sha256": [*merge, "--no-sync", "--hash", "sha256"],
        "torch": [sys.executable, "-c", MERGE_IN_TORCH, specific_pt, py, "0.5", "", ""],
    })
    report(f"interpolate, base, {shown}", results, "vlmerge --no-sync --no-hash", ["cp", "torch"])
    report_ratio(results, "vlmerge --no-hash", "cp, then sync")
    report_ratio(results, "vlmerge", "torch")
    for hashed in ("vlmerge --no-sync", "vlmerge --no-sync --hash sha256"):
        report_ratio(results, hashed, "vlmerge --no-sync --no-hash")
    from_pt = [PROGRAM, "-q", "interpolate", specific_pt, "--force", "--out", FOLDER / "out.pt", "--no-sync", "--no-hash"]
    results = in_turn({"cp": shell(cp), "vlmerge .pt": from_pt})
    report(f"interpolate from and to .pt, base, {shown}", results, "vlmerge .pt", ["cp"])
    out = out_path
    arithmetic = [PROGRAM, "-q", "arithmetic", specific, "--seed-checkpoint", seed, "--force", "--out", out]
    cp = f"head -c {n_in} {specific} >/dev/null; cp --reflink=never {seed} {copy}"
    results = in_turn({
        "cp": shell(cp),
        "vlmerge --no-sync --no-hash": [*arithmetic, "--no-sync", "--no-hash"],
        "vlmerge": arithmetic,
        "torch": [sys.executable, "-c", MERGE_IN_TORCH, specific_pt, py, "0.5", seed_pt, "0.75"],
    })
    report(f"arithmetic, base, {dtype}, and the seed read", results, "vlmerge --no-sync --no-hash", ["cp", "torch"])


def report_ratio(results, ours, other):
    pairs = [a / b for (a, _), (b, _) in zip(results[ours], results[other])]
    print(f"  {ours} / {other}: {statistics.median(pairs):.3f} ({min(pairs):.3f}-{max(pairs):.3f})")


def starting():
    big = FOLDER / "big.safetensors"
    if not big.exists():
        run([PROGRAM, "-q", "synth", "--size", "large", "--layout", "all-specific", big])
    results = in_turn({"/bin/true": ["/bin/true"], "vlmerge --version": [PROGRAM, "--version"], "vlmerge inspect": [PROGRAM, "inspect", big]})
    report(f"starting; inspect of {big.stat().st_size / 1e9:.1f} GB", results, "vlmerge --version", ["/bin/true"])
    trace = subprocess.run([sys.executable, "-c", COUNT_READS, PROGRAM, str(big)], capture_output=True, text=True, check=True)
    print(f"  bytes read by inspect: {trace.stdout.strip()}")


COUNT_READS = """
import subprocess, sys, os, time
process = subprocess.Popen([sys.argv[1], "inspect", sys.argv[2]], stdout=subprocess.PIPE, text=True)
# Bytes of all reads, the program's own loading included; asked after it is done but before it is reaped.
process.stdout.read()
os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
print(open(f"/proc/{process.pid}/io").read().split()[1])
process.wait()
"""


def regmean():
    print("\nRegMean of one layer, two experts, 2 threads, best of 5 each; three rounds")
    for out, width in ((768, 768), (768, 3072)):
        for _ in range(3):
            environment = {**os.environ, "RAYON_NUM_THREADS": "2"}
            ours = subprocess.run([EXAMPLE, str(out), str(width)], capture_output=True, text=True, check=True, env=environment)
            theirs = subprocess.run([sys.executable, "-c", REGMEAN_IN_TORCH, str(out), str(width)], capture_output=True, text=True, check=True)
            seconds, product = map(float, ours.stdout.split())
            inverse = float(theirs.stdout)
            product_flops = 2 * out * width * width
            flops = product_flops + width**3 / 3 + 2 * out * width * width
            share = (flops / seconds) / (product_flops / product)
            print(f"  {out} x {width}: {seconds:.3f} s, torch's inverse {inverse:.3f} s = {inverse / seconds:.2f} x; {flops / seconds / 1e9:.0f} GFLOP/s = {share:.0%} of the product's {product_flops / product / 1e9:.0f}")


def regmean_model():
    specific, grams = FOLDER / "specific-f32.safetensors", FOLDER / "grams.safetensors"
    if not grams.exists():
        subprocess.run([sys.executable, "-c", MAKE_GRAMS, str(grams)], check=True)
    command = [PROGRAM, "-q", "regmean", specific, "--grams", grams, "--for", "retrieval", "--force", "--out", FOLDER / "out.safetensors", "--no-hash"]
    results = in_turn({"vlmerge regmean": command})
    report("RegMean of a whole base model, grams of 24 expert blocks", results, "vlmerge regmean", [])


MAKE_GRAMS = """
import sys, torch
from safetensors.torch import save_file
torch.manual_seed(0)
def gram(width):
    i = torch.arange(width, dtype=torch.float64)
    g = 1 / (1 + (i[:, None] - i[None, :]) ** 2)
    g.fill_diagonal_(3.0)
    return g * (1 + torch.rand((), dtype=torch.float64))
tensors = {}
for block in range(12):
    for expert in ("v", "l"):
        p = f"transformer.blocks.{block}"
        for name, width in ((f"attn.{expert}", 768), (f"attn.{expert}.proj", 768), (f"mlp.{expert}.fc1", 768), (f"mlp.{expert}.fc2", 3072)):
            tensors[f"{p}.{name}"] = gram(width)
save_file(tensors, sys.argv[1])
"""


def main():
    print(f"{os.cpu_count()} cores, {ROUNDS} rounds in turn after a warm-up; medians, lowest and highest in brackets")
    FOLDER.mkdir(exist_ok=True)
    for dtype in ("f32", "bf16"):
        merging(dtype)
    starting()
    regmean()
    regmean_model()


main()
