#!/usr/bin/env python3
"""Mixtures of experts of transformers: their spellings, experts and units in another order, and more or fewer experts.

    tests/with_torch.sh tests/mixtures_reference.py target/release/vlmerge [--only NAME]

Each mixture of `tiny_models.py` is saved by transformers. Its weights are converted to every spelling that they have, loaded from
those that transformers reads, and give the same logits. A copy has its experts and hidden units in another order, made here in torch;
transformers says that it is the same function. Its merge with the model is refused by default, and with `align_experts` and
`align_units` gives the model again bit for bit. A dense model becomes a mixture of copies, which transformers runs as the same
function, and dense again. Exit code 1 if anything differs.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

import tiny_models

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

WEIGHTS = "model.safetensors"
# Spellings that transformers loads into its mixtures with a gate and a value, Granite's apart, whose own names it keeps.
LOADED = ["fused-experts"]
SPELLINGS = ["mixtral", "single-experts", "fused-experts", "fused-transposed", "granite"]
ORDER = [2, 0, 3, 1]
INTO = {"w1": 1, "w3": 1, "gate_proj": 1, "up_proj": 1}
TOLERANCE = 1e-5


def run(program, *arguments, fails=False):
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    if (done.returncode != 0) != fails:
        raise RuntimeError(f"{' '.join(map(str, arguments))}: exit {done.returncode}: {done.stderr.strip()}")
    return done.stdout + done.stderr


def shuffled(tensors):
    """The tensors with experts in another order, and the hidden units of each expert."""
    out = {}
    for key, value in tensors.items():
        single = re.search(r"\.experts\.(\d+)\.(\w+)\.weight$", key)
        fused = re.search(r"(\.experts\.|block_sparse_moe\.)(gate_up_proj|down_proj|input_linear|output_linear)(_bias|\.weight)?$", key)
        rows = re.search(r"\.(gate|router|router\.layer)\.(weight|bias|e_score_correction_bias)$", key)
        if single:
            # The tensor that expert `to` of the copy has.
            layer = key[: single.start()]
            expert, part = ORDER[int(single.group(1))], single.group(2)
            value = tensors[f"{layer}.experts.{expert}.{part}.weight"]
            n = value.shape[0] if part in INTO else value.shape[1]
            units = torch.randperm(n, generator=torch.Generator().manual_seed(expert))
            value = value[units] if part in INTO else value[:, units]
        elif fused or rows:
            value = value[ORDER]
        out[key] = value.contiguous()
    return out


def logits(folder, kind):
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    wrong = {key: report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if report.get(key)}
    if wrong:
        raise RuntimeError(f"loading says {wrong}")
    return tiny_models.outputs(model.eval())


def compare(what, found, expected):
    difference = (found - expected).abs().max().item()
    if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
        raise RuntimeError(f"{what} differ by {difference:.3g}")


def with_weights(folder, name, tensors):
    """A folder like the model's with other weights."""
    other = folder / name
    shutil.copytree(folder / "model", other)
    save_file(tensors, other / WEIGHTS, {"format": "pt"})
    return other


def check(program, name, kind, settings, folder):
    kind, _ = tiny_models.class_of(kind)
    if kind is None:
        return "skipped"
    torch.manual_seed(0)
    tiny_models.make(kind, settings, 0).save_pretrained(folder / "model")
    tensors = load_file(folder / "model" / WEIGHTS)
    expected = logits(folder / "model", kind)
    # Experts in another order compute the same, and merge back.
    copy = with_weights(folder, "copy", shuffled(tensors))
    compare("a shuffled copy: logits", logits(copy, kind), expected)
    recipe = folder / "recipe.yaml"
    plain = f"merge_method: linear\nmodels: [{folder}/model, {copy}]\nparameters: {{ weight: 0.5 }}\n"
    recipe.write_text(plain)
    # Units in another order hide which expert is which from a sample of weights, fused experts have none here.
    if any(".experts.gate_up_proj" in key or "input_linear" in key for key in tensors):
        said = run(program, "merge", recipe, "--out", folder / "refused.safetensors", fails=True)
        if "no common order" not in said:
            raise RuntimeError(f"refused for another reason: {said}")
    recipe.write_text(plain + "align_experts: weights\nalign_units: true\n")
    run(program, "merge", recipe, "--out", folder / "merged.safetensors", "--quiet", "--no-sync")
    merged = load_file(folder / "merged.safetensors")
    for key, value in tensors.items():
        if not torch.equal(merged[key], value):
            raise RuntimeError(f"merged: {key} differs")
    # Every spelling and back.
    done = []
    for spelling in SPELLINGS:
        there, back = folder / f"{spelling}.safetensors", folder / f"{spelling}-back.safetensors"
        try:
            run(program, "convert", folder / "model" / WEIGHTS, there, "--to", spelling, "--quiet", "--no-sync")
        except RuntimeError as error:
            if "no counterpart" in str(error) or "no other spelling" in str(error):
                continue
            raise
        own = "granite" if any("input_linear" in key for key in tensors) else "mixtral" if any(".w1." in key for key in tensors) else "single-experts"
        run(program, "convert", there, back, "--to", own, "--quiet", "--no-sync")
        again = load_file(back)
        if again.keys() != tensors.keys() or any(not torch.equal(again[key], value) for key, value in tensors.items()):
            raise RuntimeError(f"{spelling} and back: not the same")
        if spelling in LOADED and own != "granite":
            compare(f"{spelling}: logits", logits(with_weights(folder, spelling, load_file(there)), kind), expected)
        done.append(spelling)
    return ", ".join(done) or "one spelling"


def check_upcycling(program, folder):
    """Llama's layers as a mixture of copies are those of Mixtral."""
    settings = dict(tiny_models.GROUPED, rms_norm_eps=1e-5, rope_parameters=dict(rope_type="default", rope_theta=10000.0))
    dense, _ = tiny_models.class_of("LlamaForCausalLM")
    mixture, _ = tiny_models.class_of("MixtralForCausalLM")
    tiny_models.make(dense, settings, 0).save_pretrained(folder / "model")
    expected = logits(folder / "model", dense)
    there, back = folder / "mixture.safetensors", folder / "dense.safetensors"
    run(program, "expand", folder / "model" / WEIGHTS, there, "--to", "mixture", "--n-experts", 4, "--seed", 1, "--quiet")
    (folder / "mixture").mkdir()
    config = mixture.config_class(**settings, num_local_experts=4, num_experts_per_tok=2)
    config.architectures = ["MixtralForCausalLM"]
    config.save_pretrained(folder / "mixture")
    run(program, "convert", there, folder / "mixture" / WEIGHTS, "--to", "mixtral", "--quiet")
    compare("a mixture of copies: logits", logits(folder / "mixture", mixture), expected)
    run(program, "convert", there, back, "--experts", "dense", "--quiet")
    own, again = load_file(folder / "model" / WEIGHTS), load_file(back)
    if own.keys() != again.keys() or any(not torch.equal(again[key], value) for key, value in own.items()):
        raise RuntimeError("dense again: not the same")
    return "copies, and dense again"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    program = str(Path(arguments.program).resolve())
    torch.set_num_threads(1)
    failed = []
    cases = [(row[0], lambda folder, row=row: check(program, *row[:3], folder)) for row in tiny_models.MIXTURES]
    cases.append(("upcycling", lambda folder: check_upcycling(program, folder)))
    for name, case in cases:
        if arguments.only and name not in arguments.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                print(f"OK {name}: {case(Path(folder))}")
            except Exception as error:  # noqa: BLE001: every model is tried
                failed.append(name)
                print(f"FAILED {name}: {type(error).__name__}: {error}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
