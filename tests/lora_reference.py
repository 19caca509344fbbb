"""Low-rank adapters made by PEFT: what its `merge_and_unload` gives, beside `vlmerge merge base+adapter`. Then adapters
of `vlmerge extract-lora`: PEFT loads them, and what they miss is what torch's singular values say.

    tests/with_torch.sh tests/lora_reference.py target/release/vlmerge
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

PROGRAM = str(pathlib.Path(sys.argv[1]).resolve())
# float32 sums of up to 16 products in another order, of a tensor's largest value.
TOLERANCE = 1e-6


def vlmerge(*arguments):
    run = subprocess.run([PROGRAM, *map(str, arguments), "--quiet"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


class Small(torch.nn.Module):
    """Convolutions, an embedding and a linear layer outside any architecture."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(11, 6)
        self.patch = torch.nn.Conv2d(3, 8, 4, stride=4)
        self.point = torch.nn.Conv2d(8, 6, 1)
        self.line = torch.nn.Conv1d(6, 6, 3)
        self.head = torch.nn.Linear(6, 6)

    def forward(self, x):
        return self.head(self.line(self.point(self.patch(x)).flatten(2)).mean(2))


def llama():
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=40, tie_word_embeddings=False, attention_bias=True,
        )
    )


def gpt2():
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=16, vocab_size=40))


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EVERY = ATTENTION + ["gate_proj", "up_proj", "down_proj"]
CASES = {
    "plain": (llama, {"target_modules": ["q_proj", "v_proj"], "lora_alpha": 16}),
    "rslora": (llama, {"target_modules": EVERY, "use_rslora": True, "lora_alpha": 5}),
    "patterns": (
        llama,
        {
            "target_modules": EVERY,
            "rank_pattern": {"layers.1.*proj": 3, "q_proj": 5, "^model.layers.0.mlp.up_proj": 2},
            "alpha_pattern": {"mlp.down_proj": 3, "v_proj": 11},
        },
    ),
    "patterns_rslora": (
        llama, {"target_modules": EVERY, "use_rslora": True, "rank_pattern": {"q_proj": 9}, "alpha_pattern": {"q_proj": 2}},
    ),
    "embeddings": (llama, {"target_modules": ["embed_tokens", "lm_head", "o_proj"]}),
    "whole_modules": (llama, {"target_modules": ["down_proj"], "modules_to_save": ["lm_head", "input_layernorm"]}),
    "every_bias": (llama, {"target_modules": ATTENTION, "bias": "all"}),
    "their_biases": (llama, {"target_modules": ATTENTION, "bias": "lora_only"}),
    "bias_of_b": (llama, {"target_modules": ATTENTION, "lora_bias": True}),
    "transposed": (gpt2, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "convolutions": (Small, {"target_modules": ["embed", "patch", "point", "line", "head"]}),
}


def made(build, settings):
    """A base, and an adapter of random numbers on it."""
    torch.manual_seed(1)
    base = build()
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    settings = {"r": 4, "lora_alpha": 8, "init_lora_weights": False, **settings}
    model = get_peft_model(base, LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif name.endswith("lora_B.default.bias"):
                parameter.copy_(torch.randn_like(parameter))
    return weights, model


def saved(weights, model, folder, dtype=torch.float32):
    base, adapter = folder / "base", folder / "adapter"
    base.mkdir()
    # What transformers leaves out of files: the head that is the embedding.
    tied = {"lm_head.weight"} if weights.get("lm_head.weight") is not None and "transformer.wte.weight" in weights else set()
    save_file({k: v.to(dtype).contiguous() for k, v in weights.items() if k not in tied}, base / "model.safetensors")
    model.save_pretrained(adapter)
    return base, adapter


def merges_agree():
    worst = 0.0
    for name, (build, settings) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            weights, model = made(build, settings)
            base, adapter = saved(weights, model, folder)
            out = folder / "merged.safetensors"
            vlmerge("merge", f"{base}+{adapter}", "--out", out)
            found = load_file(out)
            expected = model.merge_and_unload().state_dict()
            n_changed = 0
            for key, tensor in found.items():
                error = (tensor - expected[key]).abs().max() / expected[key].abs().max().clamp_min(1e-9)
                assert error <= TOLERANCE, (name, key, error)
                worst = max(worst, error.item())
                n_changed += not torch.equal(tensor, weights[key])
            assert n_changed > 0, name
            print(f"{name}: {len(found)} tensors, {n_changed} of them changed")
    print(f"largest difference {worst:.1e} of a tensor's largest value")


def bfloat16_is_rounded_once():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        weights, model = made(*CASES["plain"])
        base, adapter = saved(weights, model, folder, torch.bfloat16)
        out = folder / "merged.safetensors"
        vlmerge("merge", f"{base}+{adapter}", "--out", out)
        state = model.state_dict()
        key = "model.layers.0.self_attn.q_proj"
        a, b = (state[f"base_model.model.{key}.lora_{x}.default.weight"].double() for x in "AB")
        exact = weights[f"{key}.weight"].bfloat16().double() + 4 * b @ a
        found = load_file(out)[f"{key}.weight"]
        assert found.dtype == torch.bfloat16
        # Half a step of bfloat16, and what float32 adds to it.
        assert ((found.double() - exact).abs() <= exact.abs() * 2.0**-8 + 1e-6).all()
        plain = LlamaForCausalLM(llama().config).bfloat16()
        plain.load_state_dict(load_file(base / "model.safetensors"))
        theirs = PeftModel.from_pretrained(plain, adapter).merge_and_unload().state_dict()[f"{key}.weight"]
        ours, theirs = ((x.double() - exact).norm().item() for x in (found, theirs))
        assert ours <= theirs, (ours, theirs)
        print(f"bfloat16: error {ours:.2e} here, {theirs:.2e} by merge_and_unload, of {exact.norm().item():.2e}")


def refusals():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        base, adapter = saved(*made(llama, {"target_modules": ["q_proj"], "use_dora": True}), folder)
        run = subprocess.run([PROGRAM, "merge", f"{base}+{adapter}", "--dry-run"], capture_output=True, text=True)
        assert run.returncode == 1 and "of the kind DoRA" in run.stderr, run.stderr
    print("DoRA is refused by name")


# The model, flags, and whether every changed tensor is in the adapter.
EXTRACTIONS = {
    "rank": (llama, ["--rank", "5"], False),
    "energy": (llama, ["--energy", "0.8"], False),
    "everything": (llama, ["--rank", "12", "--embeddings", "--save-whole"], True),
    "whole_embeddings": (llama, ["--energy", "0.9", "--rank", "9", "--save-whole"], True),
    "transposed": (gpt2, ["--rank", "7", "--fan-in-fan-out", "--exclude", "lm_head.weight"], False),
    "convolutions": (Small, ["--rank", "3", "--embeddings", "--save-whole"], True),
}


def best_rank(squares, flags):
    """The rank by all singular values: the largest, or the smallest that keeps enough."""
    rank = int(flags[flags.index("--rank") + 1]) if "--rank" in flags else len(squares)
    if "--energy" in flags:
        kept = squares.cumsum(0) / squares.sum()
        rank = min(rank, int((kept < float(flags[flags.index("--energy") + 1])).sum()) + 1)
    return min(rank, len(squares))


def extractions_load():
    for name, (build, flags, is_complete) in EXTRACTIONS.items():
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            torch.manual_seed(2)
            model = build()
            # The head that is the embedding is in files once.
            weights = {k: v.clone() for k, v in model.state_dict().items() if not (build is gpt2 and k == "lm_head.weight")}
            tuned = {k: v + 0.1 * torch.randn_like(v) if v.is_floating_point() else v for k, v in weights.items()}
            base, other = folder / "base.safetensors", folder / "tuned.safetensors"
            save_file(weights, base)
            save_file(tuned, other)
            out = folder / "adapter"
            found = json.loads(vlmerge("extract-lora", base, other, "--out", out, "--json", *flags))
            assert is_complete == (not found["left_out"]), (name, found["left_out"])
            loaded = PeftModel.from_pretrained(model, out)
            missing = [key for key in loaded.state_dict() if "lora_B" in key and not loaded.state_dict()[key].any()]
            assert not missing, (name, missing)
            theirs = loaded.merge_and_unload().state_dict()
            vlmerge("merge", f"{base}+{out}", "--out", folder / "merged.safetensors")
            ours = load_file(folder / "merged.safetensors")
            for key, tensor in ours.items():
                error = (tensor - theirs[key]).abs().max() / tensor.abs().max().clamp_min(1e-9)
                assert error <= TOLERANCE, (name, key, error)
            for key in found["whole"]:
                assert torch.equal(ours[key], tuned[key]), (name, key)
            for tensor in found["tensors"]:
                key = tensor["name"]
                change = (tuned[key].double() - weights[key].double()).flatten(1)
                squares = torch.linalg.svdvals(change).square()
                assert tensor["rank"] == best_rank(squares, flags), (name, tensor, squares)
                expected = (squares[tensor["rank"] :].sum() / squares.sum()).sqrt().item()
                assert abs(tensor["relative_error"] - expected) <= 1e-5, (name, tensor, expected)
                missed = (ours[key].double() - tuned[key].double()).norm() / change.norm()
                assert abs(tensor["relative_error"] - missed) <= 1e-5, (name, tensor, missed)
            ranks = sorted({tensor["rank"] for tensor in found["tensors"]})
            print(f"{name}: {len(found['tensors'])} tensors of ranks {ranks}, {len(found['whole'])} whole, loaded by PEFT")


def main():
    merges_agree()
    bfloat16_is_rounded_once()
    refusals()
    extractions_load()
    print(f"equal to PEFT {peft.__version__} with transformers {transformers.__version__} and torch {torch.__version__}")


main()
