#!/usr/bin/env python3
"""Merges tiny models of current architectures, and loads what comes out with transformers, or diffusers.

    tests/with_torch.sh tests/architectures.py target/release/vlmerge [--only NAME] [--processes N]

Each model of `tiny_models.py` is made three times with random weights. Three merges (linear, slerp, task_arithmetic) are loaded, with
no tensor missing or unexpected, and have the weights and the outputs of a model whose tensors were merged here in torch. Then each stack
of layers is merged with itself by slices that repeat and reorder its layers: what is written must load likewise, and give the outputs of
the same model with its layers moved in memory. Architectures that the installed libraries do not have are skipped by name. Exit
code 1 if anything differs.
"""

import argparse
import copy
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

import tiny_models

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

RECIPES = {
    "linear": "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 0.25}}\n- {model: b, parameters: {weight: 0.75}}\n",
    "slerp": "merge_method: slerp\nbase_model: a\nmodels: [a, b]\nparameters: {t: 0.4}\n",
    "task_arithmetic": "merge_method: task_arithmetic\nbase_model: base\nmodels:\n- {model: a, parameters: {weight: 0.5}}\n- {model: b, parameters: {weight: 0.3}}\n",
}
# Layers of an encoder may be followed by others that see what it gives, so a difference of one rounding grows.
TOLERANCE = 1e-4


def merged(method, base, a, b):
    """The merge in torch, tensor by tensor, as they are in the files; queries, keys and values that a SigLIP packs are merged apart."""

    def one(w, x, y):
        if not w.is_floating_point():
            return w
        w, x, y = (t.double() for t in (w, x, y))
        if method == "linear":
            return 0.25 * x + 0.75 * y
        if method == "task_arithmetic":
            return w + 0.5 * (x - w) + 0.3 * (y - w)
        u, v = x / x.norm().clamp(min=1e-8), y / y.norm().clamp(min=1e-8)
        dot = (u * v).sum().clamp(-1, 1)
        if dot.abs() > 0.9995:
            return 0.6 * x + 0.4 * y
        angle = torch.arccos(dot)
        return (torch.sin(0.6 * angle) * x + torch.sin(0.4 * angle) * y) / torch.sin(angle)

    def whole(key):
        of = [model[key] for model in (base, a, b)]
        if not key.startswith("vision_model.head.attention.in_proj_"):
            return one(*of)
        return torch.cat([one(*part) for part in zip(*(tensor.chunk(3) for tensor in of))])

    return {key: whole(key).to(base[key].dtype).contiguous() for key in a}


def stacks(names):
    """Stacks of layers by their names, as `model.layers` -> 4."""
    found = {}
    for name in names:
        parts = name.split(".")
        for at, part in enumerate(parts):
            if part.isdigit() and at > 0 and at + 2 < len(parts):
                found.setdefault(".".join(parts[:at]), set()).add(int(part))
                break
    layers = {prefix: len(seen) for prefix, seen in found.items() if seen == set(range(len(seen))) and len(seen) > 1}
    # Lists of convolutions and mergers are no layers: each has its own shape, or its own place in the model.
    return {prefix: n for prefix, n in layers.items() if not any(word in prefix for word in ("conv", "merger", "feature"))}


def without_model(name):
    return [part for part in name.split(".") if part != "model"]


def list_of_layers(model, stack, n):
    """The module that holds the layers of a stack, wherever the class has it."""
    wanted, prefix = without_model(stack), getattr(model, "base_model_prefix", "").split(".")
    lists = {
        name: module for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList) and len(module) == n
    }
    for name in lists:
        own = without_model(name)
        if own in (wanted, [part for part in wanted if part not in prefix], [*prefix, *wanted]):
            return lists[name]
    endings = [name for name in lists if without_model(name)[-1].rstrip("s") == wanted[-1].rstrip("s")]
    if len(endings) == 1:
        return lists[endings[0]]
    raise RuntimeError(f"{stack}: which of {list(lists)} has its layers?")


class Models:
    """The three models of one architecture in a folder, and the program that merges them."""

    def __init__(self, program, kind, weights, settings, part, folder):
        self.program, self.kind, self.weights, self.part, self.folder = program, kind, weights, part, folder
        for seed, name in enumerate(("base", "a", "b")):
            tiny_models.make(kind, settings, seed).save_pretrained(folder / name)
        self.files = {name: load_file(folder / name / weights) for name in ("base", "a", "b")}

    def load(self, name):
        model, report = self.kind.from_pretrained(self.folder / name, output_loading_info=True)
        wrong = {key: sorted(report[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if report.get(key)}
        if wrong:
            raise RuntimeError(f"{name}: loading says {wrong}")
        return model

    def merge(self, recipe, out):
        (self.folder / "recipe.yaml").write_text(recipe)
        command = [self.program, "merge", "recipe.yaml", "--out", f"{out}/", "--quiet", "--no-sync"]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{out}: {done.stderr.strip()}")

    def outputs(self, model):
        return tiny_models.outputs(model, self.part)

    def check_methods(self):
        for method, recipe in RECIPES.items():
            self.merge(recipe, method)
            found = self.load(method)
            own = f"torch-{method}"
            (self.folder / own).mkdir()
            for file in ("config.json", "generation_config.json"):
                if (self.folder / "a" / file).exists():
                    (self.folder / own / file).write_bytes((self.folder / "a" / file).read_bytes())
            save_file(merged(method, *self.files.values()), self.folder / own / self.weights, {"format": "pt"})
            expected = self.load(own)
            weights = expected.state_dict()
            for key, value in found.state_dict().items():
                compare(f"{method}: {key}", value, weights[key], 1e-6)
            compare(f"{method}: outputs", self.outputs(found), self.outputs(expected), TOLERANCE)

    def check_slices(self, stack, n):
        order = [*range(n - 1), *range(1, n)]
        out = f"slices-{stack}"
        self.merge(
            f"merge_method: passthrough\nlayers: {stack}\nslices:\n- sources: [{{model: a, layer_range: [0, {n - 1}]}}]\n"
            f"- sources: [{{model: a, layer_range: [1, {n}]}}]\n",
            out,
        )
        found = self.load(out)
        new = load_file(self.folder / out / self.weights)
        for key, value in new.items():
            if key.startswith(f"{stack}."):
                layer, rest = key[len(stack) + 1 :].split(".", 1)
                if not torch.equal(value, self.files["a"][f"{stack}.{order[int(layer)]}.{rest}"]):
                    raise RuntimeError(f"slices: {key} is not layer {order[int(layer)]}")
        if stacks(new)[stack] != len(order):
            raise RuntimeError(f"slices: {stacks(new)[stack]} layers of {stack}, not {len(order)}")
        model = self.load("a")
        own = list_of_layers(model, stack, n)
        layers = [copy.deepcopy(own[layer]) for layer in order]
        del own[:]
        own.extend(layers)
        reorder(model, n, order)
        compare(f"slices of {stack}: outputs", self.outputs(found), self.outputs(model), TOLERANCE)


def reorder(model, n, order):
    """Brings what the parts of a model in memory know of each layer into the order of the layers."""
    owners = {id(owner): owner for module in model.modules() for owner in (module, getattr(module, "config", None))}
    for owner in owners.values():
        types = getattr(owner, "layer_types", None)
        if isinstance(types, list) and len(types) == n and not isinstance(getattr(type(owner), "layer_types", None), property):
            owner.layer_types = [types[layer] for layer in order]
        # Classes differ in whether they ask for the length of the list or for this.
        if getattr(owner, "num_hidden_layers", None) == n:
            owner.num_hidden_layers = len(order)


def compare(what, found, expected, tolerance):
    if found.shape != expected.shape:
        raise RuntimeError(f"{what}: shape {list(found.shape)}, not {list(expected.shape)}")
    if not found.is_floating_point():
        difference = float((found != expected).any())
    else:
        difference = (found - expected).abs().max().item() / max(1.0, expected.abs().max().item())
    if not difference <= tolerance:
        raise RuntimeError(f"{what} differ by {difference:.3g}")


def check(case):
    """What is wrong with an architecture: nothing, or a text; `None` if no installed library has it."""
    program, (name, kind, settings, part) = case
    torch.set_num_threads(1)
    kind, weights = tiny_models.class_of(kind)
    if kind is None:
        return name, None, ""
    with tempfile.TemporaryDirectory() as folder:
        try:
            models = Models(program, kind, weights, settings, part, Path(folder))
            models.check_methods()
            cut = stacks(models.files["a"])
            for stack, n in cut.items():
                models.check_slices(stack, n)
            return name, [], ", ".join(f"{stack} {n}" for stack, n in cut.items())
        except Exception as error:  # noqa: BLE001: every architecture is tried
            return name, [f"{type(error).__name__}: {error}"], ""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--only", nargs="*", help="names of architectures")
    parser.add_argument("--processes", type=int, default=min(4, os.cpu_count() or 1))
    arguments = parser.parse_args()
    program = str(Path(arguments.program).resolve())
    cases = [(program, row) for row in tiny_models.MODELS if not arguments.only or row[0] in arguments.only]
    begun, failed, skipped, passed = time.time(), [], [], 0
    with multiprocessing.get_context("fork").Pool(arguments.processes) as pool:
        for name, faults, layers in pool.imap(check, cases):
            if faults is None:
                skipped.append(name)
            elif faults:
                failed.append(name)
                print(f"FAILED {name}: {faults[0]}")
            else:
                passed += 1
                print(f"OK {name}: {layers}")
    print(f"{passed} architectures merged and loaded in {time.time() - begun:.0f} s; skipped: {', '.join(skipped) or 'none'}")
    if failed:
        print(f"{len(failed)} failed: {', '.join(failed)}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
