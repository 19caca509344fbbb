#!/usr/bin/env python3
"""Mixtures of experts of transformers: their spellings, experts and units in another order, and more or fewer experts.

    tests/with_torch.sh tests/mixtures_reference.py target/release/vlmerge [--only NAME]

Each mixture of `tiny_models.py` is saved by transformers. Its weights are converted to every spelling that they have, loaded from
those that transformers reads, and give the same logits. A copy has its experts and hidden units in another order, made here in torch;
transformers says that it is the same function. Its merge with the model is refused by default, and with `align_experts` and
`align_units` gives the model again bit for bit.

How tokens go to experts is recorded here, with hooks, into a gram file. By it each model gets fewer experts, pruned and grouped, as a
folder, which transformers loads with nothing missing and nothing unexpected. Its logits are those of the model changed in memory, in torch.
Dense models become folders of mixtures of copies, which transformers runs as the same function, and dense again. Exit code 1 if anything differs.
"""

import argparse
import copy
import json
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


def mixtures_of(model):
    """The modules of a model that have a router and all experts together, by what the names of their tensors begin with in the file."""
    for name, module in model.named_modules():
        if hasattr(module, "experts") and hasattr(module.experts, "gate_up_proj"):
            yield name, module


def router_of(module):
    """The module with a row for each expert."""
    router = module.gate if hasattr(module, "gate") else module.router
    return getattr(router, "layer", router)


class Recorded:
    """How tokens go to the experts of each mixture: the sums of a gram file."""

    def __init__(self, model):
        self.sums, self.inputs, self.is_asking, hooks = {}, {}, False, []
        for name, module in mixtures_of(model):
            hooks.append(module.experts.register_forward_pre_hook(lambda _, given, name=name, module=module: self.record(name, module.experts, given)))
            hooks.append(router_of(module).register_forward_pre_hook(lambda _, given, name=name: self.scored(name, given[0])))
        tiny_models.outputs(model)
        for hook in hooks:
            hook.remove()

    def scored(self, name, rows):
        rows = rows.reshape(-1, rows.shape[-1]).double()
        self.inputs[name] = rows.T @ rows

    def record(self, name, experts, given):
        if self.is_asking:
            return
        self.is_asking = True
        rows, chosen, weights = given
        n, n_tokens = experts.gate_up_proj.shape[0], chosen.shape[0]
        rows = rows.reshape(n_tokens, -1)
        told = torch.zeros(n_tokens, 1 + 2 * n, dtype=torch.float64)
        told[:, 0] = 1
        for token in range(n_tokens):
            for expert, weight in zip(chosen[token].tolist(), weights[token].tolist()):
                # What the expert alone gives for the token.
                answer = experts(rows[token : token + 1], torch.tensor([[expert]]), torch.ones(1, 1))
                told[token, 1 + expert] += 1
                told[token, 1 + n + expert] += weight * answer.norm().item()
        self.sums[name] = told.T @ told
        self.is_asking = False


def file_host(name, tensors):
    """What the names of a mixture's tensors begin with in the file."""
    for host in (name, name.replace(".mlp", ".block_sparse_moe")):
        if any(key.startswith(f"{host}.") and "expert" in key or key.startswith(f"{host}.input_linear") for key in tensors):
            return host
    raise RuntimeError(f"no mixture {name} in the file")


def kept_experts(sums, n, keep, by, n_groups):
    """The experts that stay, in order, and what decides."""
    counts = sums[0, 1 : 1 + n]
    worth = counts if by == "frequency" else torch.where(counts > 0, sums[0, 1 + n :] / counts.clamp(min=1), 0.0)
    kept = []
    for group in range(n_groups):
        of = range(group * n // n_groups, (group + 1) * n // n_groups)
        kept += sorted(of, key=lambda expert: (-worth[expert].item(), expert))[: keep // n_groups]
    return sorted(kept)


def fewer_in_memory(model, recorded, keep, grouped, n_groups):
    """The model with fewer experts, changed module by module."""
    model = copy.deepcopy(model)
    for name, module in mixtures_of(model):
        experts, router = module.experts, router_of(module)
        n = experts.gate_up_proj.shape[0]
        sums = recorded.sums[name]
        kept = kept_experts(sums, n, keep, "frequency" if grouped else "saliency", n_groups)
        groups = {expert: [expert] for expert in kept}
        if grouped:
            weight = router.weight.detach().double()
            scores = weight @ recorded.inputs[name] @ weight.T
            alike = scores / torch.sqrt(scores.diag()[:, None] * scores.diag()[None, :])
            for expert in set(range(n)) - set(kept):
                groups[max(kept, key=lambda one: (alike[expert, one].item(), -one))].append(expert)
        counts = sums[0, 1 : 1 + n]
        for holder, parameter in list(experts.named_parameters(recurse=False)):
            made = []
            for expert in kept:
                share = counts[groups[expert]]
                share = share / share.sum() if share.sum() > 0 else torch.full_like(share, 1 / len(share))
                made.append(torch.einsum("e,e...->...", share, parameter.detach()[groups[expert]].double()).float())
            setattr(experts, holder, torch.nn.Parameter(torch.stack(made)))
        for holder, value in [*router.named_parameters(recurse=False), *router.named_buffers(recurse=False)]:
            rows = value.detach()[kept].clone()
            setattr(router, holder, torch.nn.Parameter(rows) if isinstance(value, torch.nn.Parameter) else rows)
        for owner in (module, experts, router, getattr(module, "router", None), getattr(module, "gate", None)):
            for number in ("num_experts", "n_routed_experts", "num_local_experts"):
                if isinstance(getattr(owner, number, None), int):
                    setattr(owner, number, keep)
    return model


def check_fewer(program, name, kind, settings, folder):
    """Fewer experts by recorded routing, in a folder that transformers loads."""
    kind, _ = tiny_models.class_of(kind)
    if kind is None:
        return "skipped"
    torch.manual_seed(0)
    model = tiny_models.make(kind, settings, 0)
    model.save_pretrained(folder / "model")
    model = kind.from_pretrained(folder / "model").eval()
    tensors = load_file(folder / "model" / WEIGHTS)
    with torch.no_grad():
        recorded = Recorded(model)
    hosts = {name: file_host(name, tensors) for name in recorded.sums}
    grams = {f"{hosts[name]}.routing": sums for name, sums in recorded.sums.items()}
    routers = [key[: -len(".weight")] for key in tensors if re.search(r"(\.gate|\.router|\.router\.layer)\.weight$", key)]
    for name, inputs in recorded.inputs.items():
        grams[next(router for router in routers if router.startswith(f"{hosts[name]}."))] = inputs
    save_file({key: value.contiguous() for key, value in grams.items()}, folder / "grams.safetensors")
    n_groups = settings.get("n_group", 1)
    keep = settings.get("kept", 2)
    done = []
    for flags, grouped in ((["--by", "saliency"], False), (["--group"], True)):
        out = folder / f"fewer{len(done)}"
        run(program, "convert", folder / "model", f"{out}/", "--experts", keep, "--grams", folder / "grams.safetensors", *flags, "--quiet")
        config = json.loads((out / "config.json").read_text())
        if keep not in (config.get(key) for key in ("num_local_experts", "num_experts", "n_routed_experts")):
            raise RuntimeError(f"{out.name}: config.json does not say {keep} experts")
        with torch.no_grad():
            changed = fewer_in_memory(model, recorded, keep, grouped, n_groups)
        compare(f"{flags}: logits", logits(out, kind), tiny_models.outputs(changed))
        done.append(flags[-1])
    return f"{keep} experts by {', '.join(done)}"


# Routers that pick groups of experts first.
GROUPS = [
    ("deepseek_v3 in groups", "DeepseekV3ForCausalLM", dict(tiny_models.LATENT, n_routed_experts=8, n_group=2, topk_group=1, kept=4)),
]

# Dense architectures that have one with mixtures, and whether layers without a mixture may stay.
DENSE = [
    ("llama", "LlamaForCausalLM", "MixtralForCausalLM", False),
    ("mistral", "MistralForCausalLM", "MixtralForCausalLM", False),
    ("qwen3", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM", True),
    ("granite", "GraniteForCausalLM", "GraniteMoeForCausalLM", False),
]


def check_upcycling(program, dense, mixture, has_dense, folder):
    """A folder of a dense model as one of a mixture of copies, which is the same function, and dense again."""
    dense, mixture = tiny_models.class_of(dense)[0], tiny_models.class_of(mixture)[0]
    if dense is None or mixture is None:
        return "skipped"
    settings = dict(tiny_models.GROUPED, num_key_value_heads=2)
    if mixture.__name__.startswith("Mixtral"):
        settings.update(rms_norm_eps=1e-3, rope_parameters=dict(rope_type="default", rope_theta=100.0))
    tiny_models.make(dense, settings, 0).save_pretrained(folder / "model")
    expected = logits(folder / "model", dense)
    there, back = folder / "there", folder / "back"
    flags = ["--blocks", "1..3"] if has_dense else []
    run(program, "expand", folder / "model", f"{there}/", "--to", "mixture", "--n-experts", 4, "--seed", 1, "--quiet", *flags)
    found = transformers.AutoConfig.from_pretrained(there)
    if [mixture.__name__] != found.architectures or not isinstance(found, mixture.config_class):
        raise RuntimeError(f"the folder is one of {found.architectures}")
    compare("a mixture of copies: logits", logits(there, mixture), expected)
    run(program, "convert", there, f"{back}/", "--experts", "dense", "--quiet")
    other = type(transformers.AutoModelForCausalLM.from_pretrained(back))
    compare("dense again: logits", logits(back, other), expected)
    own, again = load_file(folder / "model" / WEIGHTS), load_file(back / WEIGHTS)
    if own.keys() != again.keys() or any(not torch.equal(again[key], value) for key, value in own.items()):
        raise RuntimeError("dense again: not the same")
    return f"{mixture.__name__}, and {other.__name__} again"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    program = str(Path(arguments.program).resolve())
    torch.set_num_threads(1)
    failed = []
    cases = [(row[0], lambda folder, row=row: check(program, *row[:3], folder)) for row in tiny_models.MIXTURES]
    for row in [*tiny_models.MIXTURES, *GROUPS]:
        cases.append((f"fewer {row[0]}", lambda folder, row=row: check_fewer(program, *row[:3], folder)))
    for row in DENSE:
        cases.append((f"upcycled {row[0]}", lambda folder, row=row: check_upcycling(program, *row[1:], folder)))
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
