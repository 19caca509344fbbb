"""TSV-M, Iso-C, Iso-CTS and WUDI by FusionBench 0.2.33, beside `vlmerge merge` of the same models: other sizes, seeds and
numbers of models than those of `fixtures/methods`. The package's own functions run, in float64, without the libraries
that the rest of it needs. Where the wheel cannot be had it says so and succeeds.

    tests/with_torch.sh tests/fusion_bench.py target/release/vlmerge
"""

import contextlib
import io
import json
import pathlib
import subprocess
import sys
import tempfile

import fusion_bench_wheel
import torch
from safetensors.torch import load_file, save_file

PROGRAM = str(pathlib.Path(sys.argv[1]).resolve())
# Of the largest value of a tensor's change.
TOLERANCE = 1e-5


def models(seed, n_models, sizes):
    """A base and fine-tuned copies: what all learn, what each does, and noise, so that nothing is of low rank."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    base, shared = {}, {}
    for index, (rows, columns) in enumerate(sizes):
        base[f"blocks.{index}.fc.weight"] = normal(rows, columns)
        base[f"blocks.{index}.fc.bias"] = normal(rows)
    for name, value in base.items():
        shared[name] = 0.01 * normal(*value.shape)
    copies = [
        {name: value + shared[name] + 0.02 * normal(*value.shape) for name, value in base.items()}
        for _ in range(n_models)
    ]
    rounded = lambda model: {name: value.float() for name, value in model.items()}
    return rounded(base), [rounded(copy) for copy in copies]


def merged(folder, method, base, copies, parameters):
    save_file(base, folder / "base.safetensors")
    paths = []
    for index, copy in enumerate(copies):
        paths.append(str(folder / f"model_{index}.safetensors"))
        save_file(copy, paths[-1])
    recipe = {
        "merge_method": method,
        "dtype": "float64",
        "base_model": str(folder / "base.safetensors"),
        "models": paths,
        "parameters": parameters,
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    target = folder / "merged.safetensors"
    command = [PROGRAM, "merge", str(folder / "recipe.yaml"), "--out", str(target), "--force", "--quiet"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return load_file(target)


def main():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        tsv, iso, wudi = fusion_bench_wheel.methods(folder)
        cases = [
            ("tsv_m", {}, lambda vectors: tsv.compute_and_sum_svd_mem_reduction(vectors, accelerator="cpu")),
            ("iso_c", {"lambda": 1.0}, lambda vectors: iso.iso_c(vectors, accelerator="cpu")),
            (
                "iso_cts",
                {"common_space_fraction": 0.7},
                lambda vectors: iso.iso_cts(vectors, 0.7, accelerator="cpu"),
            ),
            (
                "wudi",
                {"solver": "adam", "iterations": 40},
                lambda vectors: wudi.wudi_merging(vectors, accelerator="cpu", iter_num=40),
            ),
        ]
        worst = 0.0
        for seed, n_models, sizes in [
            (1, 2, [(17, 40), (40, 17)]),
            (2, 3, [(33, 33), (9, 64)]),
            (3, 5, [(50, 26), (26, 50)]),
        ]:
            base, copies = models(seed, n_models, sizes)
            vectors = [{name: copy[name].double() - base[name].double() for name in base} for copy in copies]
            for method, parameters, published in cases:
                with contextlib.redirect_stdout(io.StringIO()):
                    expected = published([dict(vector) for vector in vectors])
                found = merged(folder, method, base, copies, {"matrix": True, **parameters})
                for name in base:
                    change = found[name].double() - base[name].double()
                    wanted = expected[name].detach().double()
                    off = float((change - wanted).abs().max() / wanted.abs().max())
                    assert off < TOLERANCE, f"{method} of {n_models} models, {name}: {off:.1e} of the largest value"
                    worst = max(worst, off)
        print(f"FusionBench 0.2.33: {len(cases)} methods agree to {worst:.1e} of the largest value")


main()
