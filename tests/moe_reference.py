#!/usr/bin/env python3
"""Compares `vlmerge moe` with mergekit-moe on tiny models that transformers makes.

    tests/with_torch.sh tests/moe_reference.py target/release/vlmerge

For each architecture and gate, all tensors and the configuration of both folders are compared: tensors as transformers holds them
when it has loaded the folder, gates that are drawn by their statistics, a DeepSeek-MoE, whose code is not in transformers, by the
names in its file. transformers runs what it loads. Recipes that make no mixture are refused. Exit code 1 if anything differs.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

PROGRAM = Path(sys.argv[1]).resolve()
WORDS = "<unk> <s> </s> a b c d e f g h i j k l m n o p the cat sat on mat code def main return poem rose".split()
SIZES = dict(
    vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=64,
)
# 256 bytes and some pairs.
SIZES_OF_BYTES = 290
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, dict(rms_norm_eps=1e-5)),
    "llama-tied": (LlamaConfig, LlamaForCausalLM, dict(tie_word_embeddings=True)),
    "mistral": (MistralConfig, MistralForCausalLM, dict(sliding_window=None)),
    "mistral-window": (MistralConfig, MistralForCausalLM, dict(sliding_window=8)),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, dict(vocab_size=SIZES_OF_BYTES)),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, dict(head_dim=16)),
}
failures = []


def check(name, condition, why=""):
    print(("ok      " if condition else "DIFFERS ") + name + (f": {why}" if why and not condition else ""))
    if not condition:
        failures.append(name)


def tokenizer(folder):
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made.save_pretrained(folder)


def byte_level(folder):
    """Qwen2's kind: pairs of bytes, and no token that texts begin with."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=SIZES_OF_BYTES, special_tokens=["</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    inner.train_from_iterator([" ".join(WORDS[3:])] * 4, trainer)
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>").save_pretrained(folder)


def model(folder, family, seed, dtype=torch.float32):
    torch.manual_seed(seed)
    config_class, model_class, settings = FAMILIES[family]
    made = model_class(config_class(**{**SIZES, **settings})).to(dtype)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    made.save_pretrained(folder)
    byte_level(folder) if family == "qwen2" else tokenizer(folder)


def run(*words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def both(name, recipe, folder, *flags):
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    ours, theirs = folder / f"{name}-ours", folder / f"{name}-theirs"
    code, said = run(PROGRAM, "moe", path, "--out", f"{ours}/", "--quiet", *flags)
    if code:
        check(name, False, said)
        return None
    code, said = run(Path(sys.executable).parent / "mergekit-moe", path, theirs)
    if code:
        check(f"{name}: mergekit-moe", False, said[-1500:])
        return None
    return ours, theirs


def settings_of(folder):
    """The configuration without what names the program that wrote it, and with what is left to transformers."""
    config = json.loads((folder / "config.json").read_text())
    if "auto_map" in config:
        config = {**PreTrainedConfig().to_dict(), **config}
        # How keys of labels are spelled.
        config = {key: value for key, value in config.items() if key not in ("id2label", "label2id")}
    else:
        config = AutoConfig.from_pretrained(folder).to_dict()
    for key in ("transformers_version", "_name_or_path", "torch_dtype", "dtype"):
        config.pop(key, None)
    return config


def compare_configs(name, ours, theirs):
    ours, theirs = settings_of(ours), settings_of(theirs)
    keys = sorted(ours.keys() | theirs.keys())
    other = {key: (ours.get(key), theirs.get(key)) for key in keys if ours.get(key) != theirs.get(key)}
    check(f"{name}: config.json", not other, str(other))


def weights_of(folder):
    files = sorted(folder.glob("*.safetensors"))
    weights = {}
    for file in files:
        weights.update(load_file(file))
    return weights


def compare(name, recipe, folder, *flags, tolerance=0.0):
    made = both(name, recipe, folder, *flags)
    if made is None:
        return
    ours, theirs = made
    compare_configs(name, ours, theirs)
    drawn = recipe["gate_mode"] in ("random", "uniform_random")
    if "deepseek" in json.loads((ours / "config.json").read_text())["model_type"]:
        left, right = weights_of(ours), weights_of(theirs)
    else:
        loaded = AutoModelForCausalLM.from_pretrained(ours, dtype="auto")
        left = loaded.state_dict()
        right = AutoModelForCausalLM.from_pretrained(theirs, dtype="auto").state_dict()
        with torch.no_grad():
            logits = loaded(input_ids=torch.tensor([[1, 5, 7, 20]])).logits
        check(f"{name}: transformers runs it", bool(torch.isfinite(logits).all()))
    # A tied head may be in one file alone.
    for names in (left, right):
        names.pop("lm_head.weight", None) if recipe.get("tied") else None
    check(f"{name}: names", left.keys() == right.keys(), str(left.keys() ^ right.keys()))
    worst = {}
    for key in sorted(left.keys() & right.keys()):
        one, other = left[key], right[key]
        if one.dtype != other.dtype or one.shape != other.shape:
            worst[key] = f"{one.dtype} {tuple(one.shape)} and {other.dtype} {tuple(other.shape)}"
            continue
        is_gate = key.endswith("gate.weight")
        if is_gate and drawn:
            deviation = 1.0 if recipe["gate_mode"] == "random" else (1 / SIZES["hidden_size"] / 3) ** 0.5
            # The error of a deviation of n draws is about 1 / √(2n).
            error = abs(one.float().std().item() / deviation - 1)
            if error > 5 / (2 * one.numel()) ** 0.5:
                worst[key] = f"deviation {one.float().std().item()}, expected {deviation}"
            continue
        allowed = tolerance if is_gate else 0.0
        off = (one.double() - other.double()).abs().max().item()
        if off > allowed:
            worst[key] = off
    check(f"{name}: tensors", not worst, str(dict(list(worst.items())[:4])))


def main():
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for family in FAMILIES:
            for number in range(4):
                model(folder / f"{family}{number}", family, 10 + number)
        for number in range(3):
            model(folder / f"half{number}", "llama", 30 + number, torch.bfloat16)

        prompts = [["the cat sat", "a b c d"], ["code def main return"], ["poem rose"]]

        def recipe(family, gate, n=3, shared=False, **more):
            experts = []
            for number in range(n):
                expert = dict(source_model=str(folder / f"{family}{number + 1 if number < 2 else 0}"))
                expert["positive_prompts"] = prompts[number]
                if number == 1:
                    expert["negative_prompts"] = ["the cat", "rose"]
                experts.append(expert)
            made = dict(base_model=str(folder / f"{family}0"), gate_mode=gate, experts=experts, **more)
            if shared:
                # mergekit-moe opens the models of the base and the experts alone.
                made["shared_experts"] = [dict(source_model=str(folder / f"{family}2"))]
                if shared == "prompts":
                    made["shared_experts"][0]["positive_prompts"] = ["a", "b c"]
            return made

        # Sums of a few f32 in another order.
        close = dict(tolerance=1e-6)
        compare("mixtral of llama, cheap_embed", recipe("llama", "cheap_embed"), folder, **close)
        compare("mixtral of llama, random", recipe("llama", "random", 2), folder, "--seed", 3)
        compare("mixtral of llama, uniform_random", recipe("llama", "uniform_random"), folder)
        compare("mixtral of tied llama", recipe("llama-tied", "cheap_embed"), folder, **close)
        compare("mixtral of mistral", recipe("mistral", "cheap_embed", experts_per_token=1), folder, **close)
        compare("mixtral of mistral with a window", recipe("mistral-window", "cheap_embed"), folder, **close)
        # A gate of bf16 may fall on the other side of a tie.
        compare("mixtral of bf16", recipe("half", "cheap_embed", 2), folder, tolerance=2**-8)
        compare("mixtral to bf16", recipe("llama", "cheap_embed", dtype="bfloat16"), folder, tolerance=2**-8)
        scaled = recipe("llama", "cheap_embed")
        scaled["experts"][0]["residual_scale"] = 0.5
        scaled["experts"][1]["residual_scale"] = -1.25
        compare("mixtral with residual_scale", scaled, folder, **close)
        compare("qwen3-moe", recipe("qwen3", "cheap_embed"), folder, **close)
        compare("qwen3-moe, random", recipe("qwen3", "random"), folder)
        compare("qwen2-moe", recipe("qwen2", "cheap_embed", shared="prompts"), folder, **close)
        compare("qwen2-moe, random", recipe("qwen2", "random", shared=True), folder)
        compare("qwen2-moe of llama", recipe("llama", "cheap_embed", shared="prompts", architecture="qwen"), folder, **close)
        compare("deepseek", recipe("llama", "cheap_embed", architecture="deepseek"), folder, **close)
        compare("deepseek with a shared expert", recipe("mistral", "cheap_embed", shared=True), folder, **close)

        def refused(name, recipe, why, *flags):
            path = folder / "refused.yaml"
            path.write_text(yaml.safe_dump(recipe))
            out = folder / "refused"
            code, said = run(PROGRAM, "moe", path, "--out", f"{out}/", *flags)
            check(f"refused: {name}", code in (1, 2) and why in said and not out.exists(), said)

        refused("hidden", recipe("llama", "hidden"), "cheap_embed")
        refused("other models", dict(recipe("llama", "random"), base_model=str(folder / "mistral0")), "one architecture")
        same = recipe("llama", "cheap_embed", 2)
        same["experts"][1]["source_model"] = same["experts"][0]["source_model"]
        refused("one model", same, "--allow-same")
        refused("too few experts", recipe("llama", "random", 2, experts_per_token=3), "1 to 2 of them")
        refused("qwen2 without a shared expert", recipe("qwen2", "random"), "needs 1 shared expert")
        bias = LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True))
        bias.save_pretrained(folder / "bias0")
        odd = recipe("llama", "random", 2)
        odd["base_model"] = str(folder / "bias0")
        refused("biases that a Mixtral drops", odd, "has no place in a `mixtral`")
        small = LlamaForCausalLM(LlamaConfig(**dict(SIZES, intermediate_size=64)))
        small.save_pretrained(folder / "wide")
        odd = recipe("llama", "random", 2)
        odd["experts"][1]["source_model"] = str(folder / "wide")
        refused("experts of another size", odd, "`intermediate_size` is 64, and 48")
    if failures:
        sys.exit(f"{len(failures)} differences: {', '.join(failures)}")


main()
