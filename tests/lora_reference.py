"""Low-rank adapters made by PEFT: what its `merge_and_unload` gives, beside `vlmerge merge base+adapter`; with tied
embeddings what the model computes while the adapter is on; LyCORIS's own files where it is installed. Then adapters of
`vlmerge extract-lora` and `vlmerge merge --as-adapter`: PEFT loads them, and what they miss is what torch's singular
values say.

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
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model
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


def qwen_moe():
    return transformers.Qwen3MoeForCausalLM(
        transformers.Qwen3MoeConfig(
            hidden_size=32, intermediate_size=48, moe_intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, num_experts=3, num_experts_per_tok=2, vocab_size=40,
            tie_word_embeddings=False,
        )
    )


def gpt_oss():
    return transformers.GptOssForCausalLM(
        transformers.GptOssConfig(
            hidden_size=32, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
            head_dim=8, num_local_experts=3, num_experts_per_tok=2, vocab_size=40, tie_word_embeddings=False,
        )
    )


EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
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
    "dora": (llama, {"target_modules": EVERY + ["embed_tokens"], "use_dora": True}),
    "dora_transposed": (gpt2, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "use_dora": True}),
    "dora_convolutions": (Small, {"target_modules": ["patch", "line", "head"], "use_dora": True}),
    "experts": (qwen_moe, {"target_modules": ["q_proj"], "target_parameters": EXPERTS, "lora_dropout": 0.0}),
    "turned_experts": (gpt_oss, {"target_modules": ["q_proj"], "target_parameters": EXPERTS, "lora_dropout": 0.0}),
    "tokens": (llama, {"target_modules": ["q_proj"], "trainable_token_indices": [3, 7, 8]}),
    "loha": (llama, {"kind": LoHaConfig, "target_modules": EVERY}),
    "loha_kernels": (Small, {"kind": LoHaConfig, "target_modules": ["patch", "head"], "use_effective_conv2d": True}),
    "lokr": (llama, {"kind": LoKrConfig, "target_modules": EVERY}),
    "lokr_split": (llama, {"kind": LoKrConfig, "target_modules": EVERY, "decompose_both": True, "decompose_factor": 4}),
    "lokr_kernels": (Small, {"kind": LoKrConfig, "target_modules": ["patch", "head"], "use_effective_conv2d": True}),
}


def made(build, settings):
    """A base, and an adapter of random numbers on it."""
    torch.manual_seed(1)
    base = build()
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    settings = dict(settings)
    kind = settings.pop("kind", LoraConfig)
    if kind is LoraConfig:
        settings = {"r": 4, "lora_alpha": 8, "init_lora_weights": False, **settings}
    else:
        settings = {"r": 4, "alpha": 8, "init_weights": False, **settings}
    model = get_peft_model(base, kind(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "hada_" in name or "lokr_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
            elif parameter.requires_grad and "lora_" not in name:
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


def tied_llama():
    config = llama().config
    config.tie_word_embeddings = True
    return LlamaForCausalLM(config)


TIED = {
    "embeddings": {"target_modules": ["embed_tokens"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
    "both_tied": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    "saved_embeddings": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "saved_both": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "saved_tied": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [1, 5]},
}


def tied_models_compute_what_peft_computes():
    ids = torch.arange(1, 9)[None]
    for name, settings in TIED.items():
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            torch.manual_seed(4)
            base = tied_llama()
            base.save_pretrained(folder / "base")
            settings = {"r": 4, "lora_alpha": 8, "init_lora_weights": False, **settings}
            model = get_peft_model(base, LoraConfig(**settings))
            with torch.no_grad():
                for key, parameter in model.named_parameters():
                    if parameter.requires_grad and "lora_" not in key:
                        parameter.add_(torch.randn_like(parameter) * 0.1)
            model.save_pretrained(folder / "adapter")
            # As a program that has only the files computes it.
            plain = LlamaForCausalLM.from_pretrained(folder / "base")
            expected = PeftModel.from_pretrained(plain, folder / "adapter")(ids).logits
            vlmerge("merge", f"{folder}/base+{folder}/adapter", "--out", folder / "merged")
            found = LlamaForCausalLM.from_pretrained(folder / "merged")
            error = ((found(ids).logits - expected).abs().max() / expected.abs().max()).item()
            assert error <= 1e-5, (name, error)
            keys = load_file(folder / "merged" / "model.safetensors").keys()
            config = json.loads((folder / "merged" / "config.json").read_text())
            assert config["tie_word_embeddings"] == ("lm_head.weight" not in keys), name
            print(f"tied, {name}: logits off by {error:.1e}, {'a head of its own' if 'lm_head.weight' in keys else 'still tied'}")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        torch.manual_seed(5)
        base = tied_llama()
        base.save_pretrained(folder / "base")
        with torch.no_grad():
            for parameter in base.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        expected = base(ids).logits
        base.save_pretrained(folder / "tuned")
        flags = ["--rank", "64", "--embeddings", "--save-whole"]
        vlmerge("extract-lora", folder / "base", folder / "tuned", "--out", folder / "adapter", *flags)
        plain = LlamaForCausalLM.from_pretrained(folder / "base")
        found = PeftModel.from_pretrained(plain, folder / "adapter")(ids).logits
        error = ((found - expected).abs().max() / expected.abs().max()).item()
        assert error <= 1e-4, error
        print(f"an extracted adapter of a tied model, on in PEFT: logits off by {error:.1e}")


def stacked_adapters_add_up():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        torch.manual_seed(6)
        base = llama()
        weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
        save_file(weights, folder / "base.safetensors")
        expected = {name: tensor.double() for name, tensor in weights.items()}
        for name, weight, settings in [
            ("a", 0.5, {"r": 3, "lora_alpha": 5, "target_modules": ATTENTION}),
            ("b", 1.0, {"r": 6, "lora_alpha": 4, "use_rslora": True, "target_modules": EVERY}),
        ]:
            base.load_state_dict(weights)
            model = get_peft_model(base, LoraConfig(init_lora_weights=False, **settings))
            model.save_pretrained(folder / name)
            base = model.merge_and_unload()
            for key, tensor in base.state_dict().items():
                expected[key] += weight * (tensor.double() - weights[key].double())
        both = f"{folder}/a*0.5+{folder}/b"
        vlmerge("merge", f"{folder}/base.safetensors+{both}", "--out", folder / "merged.safetensors")
        vlmerge("merge", both, "--as-adapter", "--out", folder / "joined")
        base.load_state_dict(weights)
        joined = PeftModel.from_pretrained(base, folder / "joined").merge_and_unload().state_dict()
        worst = 0.0
        for key, tensor in load_file(folder / "merged.safetensors").items():
            for found in (tensor, joined[key]):
                # Biases of zeros stay zeros.
                error = (found.double() - expected[key]).abs().max() / expected[key].abs().max().clamp(min=1e-9)
                assert error <= 3 * TOLERANCE, (key, error)
                worst = max(worst, error.item())
        found = json.loads(vlmerge("merge", both, "--as-adapter", "--rank", "4", "--out", folder / "cut", "--json"))
        base.load_state_dict(weights)
        cut = PeftModel.from_pretrained(base, folder / "cut").merge_and_unload().state_dict()
        energy = missed = 0.0
        for key, tensor in expected.items():
            change = tensor - weights[key].double()
            if change.abs().max() > 1e-3:
                squares = torch.linalg.svdvals(change).square()
                energy, missed = energy + squares.sum(), missed + squares[4:].sum()
                off = (cut[key].double() - tensor).norm().square() - squares[4:].sum()
                assert off.abs() <= 1e-4 * squares.sum(), (key, off)
        assert abs(found["relative_error"] - (missed / energy).sqrt()) <= 1e-4, found
        print(f"stacked with weights, and joined to one: off by {worst:.1e}; cut to rank 4: {found['relative_error']:.3f} missed")


def lycoris_files():
    try:
        from lycoris import LycorisNetwork, create_lycoris
    except ImportError:
        print("LyCORIS is not installed: its files are not compared")
        return
    for algorithm, more in [("lora", {}), ("loha", {}), ("lokr", {"factor": 4}), ("lokr", {"factor": 4, "full_matrix": True})]:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            torch.manual_seed(7)
            model = llama()
            weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            LycorisNetwork.apply_preset({"target_name": [".*_proj"]})
            network = create_lycoris(model, 1.0, linear_dim=4, linear_alpha=2.0, algo=algorithm, **more)
            network.apply_to()
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.copy_(torch.randn_like(parameter) * 0.3)
            save_file(weights, folder / "base.safetensors")
            save_file({k: v.contiguous() for k, v in network.state_dict().items()}, folder / "kohya.safetensors")
            expected = {}
            for lora in network.loras:
                name = lora.lora_name.removeprefix("lycoris_")
                # What its forward pass adds: `get_diff_weight` of LoHa and LoKr scales twice.
                if hasattr(lora, "get_weight"):
                    expected[name] = (lora.org_weight + lora.get_weight(lora.shape) * lora.scalar).detach()
                else:
                    expected[name] = lora.get_merged_weight(1.0, lora.shape)[0].detach()
            base = f"{folder}/base.safetensors"
            vlmerge("merge", f"{base}+{folder}/kohya.safetensors", "--out", folder / "merged.safetensors")
            worst, n = 0.0, 0
            for key, tensor in load_file(folder / "merged.safetensors").items():
                value = expected.get(key.removesuffix(".weight").replace(".", "_"))
                if value is not None:
                    error = ((tensor - value).abs().max() / value.abs().max()).item()
                    assert error <= 3 * TOLERANCE, (algorithm, key, error)
                    worst, n = max(worst, error), n + 1
            assert n == len(expected) > 0, (algorithm, n, len(expected))
            print(f"LyCORIS {algorithm} {more}: {n} modules, off by {worst:.1e}")


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
    tied_models_compute_what_peft_computes()
    stacked_adapters_add_up()
    lycoris_files()
    extractions_load()
    print(f"equal to PEFT {peft.__version__} with transformers {transformers.__version__} and torch {torch.__version__}")


main()
